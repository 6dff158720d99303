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
SMALL = {"sizes": SIZES, "env_steps": 1_000, "restarts": 8, "episodes": 100, "seed": 3}
POLE = """
import gymnasium as gym


class Pole(gym.Wrapper):
    def __init__(self, **kwargs):
        super().__init__(gym.make("CartPole-v1", max_episode_steps=100, **kwargs))  # soon ends
"""


def content(folder):
    content = json.loads((folder / "certificate.json").read_text())
    content.pop("seconds")
    return json.dumps(content).replace(f"/{folder.name}", "")


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    """Teacher and random policy differ clearly; workers have the lowest priority, and other tests run beside these."""
    monkeypatch.setattr("rllib_kd.shrink.checks._MOST", 20)


def test_whatever_dies_the_certificate_is_the_same(nodes, own_folder, tmp_path, monkeypatch, caplog):
    nodes.add_node(num_cpus=1)
    file = own_folder / "pole.py"
    file.write_text(POLE)
    teacher = load_teacher("cartpole")  # an object: no node reads its file
    whole_run = Shrink(teacher, "pole.py:Pole", out=tmp_path / "whole", **SMALL)
    killed = Shrink(teacher, "pole.py:Pole", out=tmp_path / "killed", parts=3, **SMALL)
    file.unlink()  # the nodes of a test share a disk, and need no file of the environment
    whole = whole_run.run(address=nodes.address)
    assert whole.facts["parts"] == 2  # a size each: three free CPUs are too few to divide their copies, too
    assert [one.certificate for one in whole.students] != [None, None]
    file.write_text(POLE)  # by which a resumed run sees that it is the same environment

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
        killed.run(address=nodes.address)
    assert not living("Worker")
    killed.run(address=nodes.address, resume=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert "has died with its process, and starts again from its last save" in caplog.text
