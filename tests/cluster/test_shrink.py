"""`rllib shrink` on several nodes: training is divided, and there is one certificate."""

import json
import os
import signal

import pytest

from rllib_kd import Shrink, load_teacher
from rllib_kd.shrink.progress import Progress
from rllib_kd.shrink.spread import SpreadTrainer
from tests.cluster.test_faults import living

pytestmark = pytest.mark.slow

SIZES = {"linear": "linear", "units-2": {"fcnet_hiddens": [2], "fcnet_activation": "tanh"}}
SMALL = {"sizes": SIZES, "env_steps": 1_000, "restarts": 4, "episodes": 100, "seed": 3, "parts": 3}


def content(folder):
    content = json.loads((folder / "certificate.json").read_text())
    content.pop("seconds")
    return json.dumps(content).replace(f"/{folder.name}", "")


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    """Teacher and random policy differ clearly; workers have the lowest priority, and other tests run beside these."""
    monkeypatch.setattr("rllib_kd.shrink.run._NUM_CHECKS", 20)


def test_whatever_dies_the_certificate_is_the_same(nodes, tmp_path, monkeypatch, caplog):
    nodes.add_node(num_cpus=2)
    teacher = load_teacher("cartpole")  # an object: no node reads its file
    whole = Shrink(teacher, "CartPole-v1", out=tmp_path / "whole", **SMALL).run()
    assert whole.facts["parts"] == 2  # so few copies are not divided
    assert [one.certificate for one in whole.students] != [None, None]
    killed = Shrink(teacher, "CartPole-v1", out=tmp_path / "killed", **SMALL)

    copies, killed_at = SpreadTrainer.copies, []

    def killing_one(self):
        modules = copies(self)
        if self.env_steps and not killed_at:
            killed_at.append(self.env_steps)
            os.kill(living("Worker")[0][1], signal.SIGKILL)
        return modules

    monkeypatch.setattr(SpreadTrainer, "copies", killing_one)
    write, num_writes = Progress.write, 0

    def dying(self, state):
        nonlocal num_writes
        write(self, state)
        num_writes += 1
        if num_writes == 6:  # in the second round
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    assert not living("Worker")
    killed.run(resume=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert "has died with its process, and starts again from its last save" in caplog.text


POLE = """
import gymnasium as gym


class Pole(gym.Wrapper):
    def __init__(self, **kwargs):
        super().__init__(gym.make("CartPole-v1", **kwargs))
"""


def test_there_are_as_many_parts_as_free_cpus_and_nodes_need_no_file_of_the_environment(nodes, own_folder, tmp_path):
    nodes.add_node(num_cpus=2)
    (own_folder / "pole.py").write_text(POLE)
    options = {**SMALL, "parts": None, "env_steps": 300, "restarts": 8}
    shrink = Shrink("cartpole", "pole.py:Pole", out=tmp_path / "out", **options)
    (own_folder / "pole.py").unlink()  # the nodes of a test share a disk
    result = shrink.run(address=nodes.address)
    assert result.facts["parts"] == 4
    assert len(result.students) == 2
