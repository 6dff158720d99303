"""Recurrent students as files: played statefully, they equal PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.export import runners
from rllib_kd.export.artifact import FORMATS, deployment_cost, q_function
from rllib_kd.export.deployment import ArtifactPlayer, deploy
from rllib_kd.export.export import artifact_view, export
from rllib_kd.export.loading_code import loading_code
from rllib_kd.export.recurrent import RECURRENT_FORMATS, state_sizes
from rllib_kd.export.runners import c_runner
from rllib_kd.observations.pipeline import Normalize, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_ACTIONS, make_q_module
from tests.networks.test_recurrent import SHAPES, recurrent

CARTPOLE = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)


def observations(shape, count=40):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


#: The C of all of them is one program in tests/export/c/test_recurrent.py.
CASES = [
    *((name, each) for name in SHAPES for each in ("onnx", "safetensors")),
    ("GRU behind an MLP", "c"),
]


@pytest.mark.parametrize(("name", "artifact_format"), CASES)
def test_files_equal_pytorch_over_sequences(tmp_path, name, artifact_format):
    model_config, shape = SHAPES[name]
    student, obs = Teacher(recurrent(shape, **model_config)), observations(shape)
    masks = np.random.default_rng(1).random((40, 3)) < 0.7
    masks[:, 0] = True
    for action_masks in (None, masks):
        done = export(student, tmp_path / "s", format=artifact_format, obs=obs, action_masks=action_masks)
        assert done.max_difference < 1e-5
        assert done.agreement == 1.0
    q_values = q_function(tmp_path / "s")
    beginning = q_values(obs[:3])
    assert not np.allclose(q_values(obs[:3]), beginning)  # it remembers the first step
    q_values.begin(np.array([True, False, False]))
    third = q_values(obs[:3])
    assert third[0] == pytest.approx(beginning[0])
    assert third[1:] != pytest.approx(beginning[1:])
    assert deployment_cost(tmp_path / "s").latency_ms > 0


class Recorded:
    """A player whose actions are recorded."""

    def __init__(self, player):
        self._player, self.actions = player, []

    def player(self):
        act = self._player.player()

        def record(shown):
            self.actions.append(act(shown))
            return self.actions[-1]

        return record


@pytest.mark.parametrize("artifact_format", RECURRENT_FORMATS)
def test_files_choose_the_same_actions_through_100_episodes(tmp_path, artifact_format):
    pipeline = ObservationPipeline(CARTPOLE, (Normalize(np.zeros(4), np.full(4, 0.1), 5.0),))
    student = Teacher(two_actions(), pipeline=pipeline)
    export(student, tmp_path / "s", format=artifact_format, obs=observations((4,)))
    players = [GreedyQ(student), ArtifactPlayer(q_function(tmp_path / "s"), artifact_view(student))]
    recorded = [Recorded(player) for player in players]
    for player in recorded:
        play(lambda: gym.make("CartPole-v1"), player, range(100))
    torchs, files = ([actions.tolist() for actions in player.actions] for player in recorded)
    assert torchs == files


@pytest.mark.parametrize("artifact_format", ["onnx", "safetensors"])
def test_an_observation_that_is_not_finite_costs_its_episode_what_was_before_and_no_more(tmp_path, artifact_format):
    student = Teacher(two_actions())
    export(student, tmp_path / "s", format=artifact_format, obs=observations((4,)))
    obs = observations((4,))[:6]
    file, begun = q_function(tmp_path / "s"), q_function(tmp_path / "s")
    for one in obs[:3]:
        file(np.stack([one, one]))
    file(np.stack([obs[3], np.full(4, np.nan, np.float32)]))
    for one in obs[4:]:
        alone, lost = file(np.stack([one, one]))
        assert lost == pytest.approx(begun(one[None])[0], abs=1e-6)
        assert np.abs(alone - lost).max() > 1e-6
    with pytest.raises(ValueError, match=r"3 inputs|'lstm'"):  # it cannot teach
        load_teacher(tmp_path / "s")


def two_actions():
    return make_q_module(CARTPOLE, CARTPOLE_ACTIONS, use_lstm=True, lstm_cell_size=8, fcnet_hiddens=[8], seed=3)


def test_deployed(tmp_path):
    path = two_actions().save_to_path(str(tmp_path / "student"))
    done = deploy(path, tmp_path / "s", "CartPole-v1", format="safetensors", num_episodes=3)
    assert done.return_mean == done.torch_return


@pytest.mark.parametrize("artifact_format", [name for name in FORMATS if name not in (*RECURRENT_FORMATS, "python")])
def test_other_formats_are_refused(tmp_path, artifact_format):
    with pytest.raises(ValueError, match=f"format='{artifact_format}' keeps no state. Use one of c, onnx, safetensors"):
        export(Teacher(recurrent()), tmp_path / "s", format=artifact_format, obs=observations((2,)))


def test_int8_is_refused(tmp_path):
    with pytest.raises(ValueError, match="int8 is for feed-forward students"):
        export(Teacher(recurrent()), tmp_path / "s", format="onnx", int8=True, obs=observations((2,)))


@pytest.mark.parametrize(("runner", "artifact_format"), [("numpy_runner", "safetensors"), ("c_runner", "c")])
def test_it_is_played_with_numpy_alone(runner, artifact_format, tmp_path):
    student, obs = Teacher(recurrent()), observations((2,), 6)
    export(student, tmp_path / "s", format=artifact_format, obs=obs)
    expected = q_function(tmp_path / "s")
    code = (
        f"import sys, json; sys.path.insert(0, {str(Path(runners.__file__).parent)!r})\n"
        f"from {runner} import load\n"
        f"q, obs = load({str(tmp_path / 's')!r}), {obs.tolist()!r}\n"
        "print(json.dumps([q([row]).tolist() for row in obs]))\n"
        "assert not {'torch', 'ray', 'rllib_kd'} & set(sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert np.array(json.loads(out)) == pytest.approx(np.array([expected(row[None]) for row in obs]))


@pytest.mark.parametrize(
    ("artifact_format", "has_mask"), [("c", False), ("c", True), ("onnx", True), ("safetensors", False)]
)
def test_code_that_loads_it_runs(tmp_path, monkeypatch, artifact_format, has_mask):
    student, masks = Teacher(recurrent()), np.ones((8, 3), np.float32) if has_mask else None
    path = tmp_path / f"s.{'h' if artifact_format == 'c' else artifact_format}"
    export(student, path, format=artifact_format, obs=observations((2,), 8), action_masks=masks)
    monkeypatch.chdir(tmp_path)
    num_masked, state = 3 if has_mask else None, state_sizes(student.module)
    expected = student.first_q_values(torch.zeros(1, 2))[0]
    blocks = dict(loading_code(str(path), artifact_format, (2,), num_masked=num_masked, state=state))
    names: dict = {}
    exec(blocks.pop("python"), names)
    assert names["action"] == int(expected.argmax())
    if artifact_format != "c":
        assert blocks == {}
        return
    done = subprocess.run(["bash", "-ec", blocks["bash"]], capture_output=True, text=True, check=True)
    action, *q_values = done.stdout.split()
    assert int(action) == int(expected.argmax())
    assert [float(value) for value in q_values] == pytest.approx(expected.tolist(), abs=1e-5)
    Path("own.c").write_text(blocks["c"] + "\nint main(void) { return choose(); }\n")
    c_runner.build(Path("own.c"), Path("own"), "-Wno-unused-function")
    assert subprocess.run(["./own"]).returncode == (0 if has_mask else int(expected.argmax()))
