"""Exported files take a mask of legal actions as their second input, and choose a legal action."""

import json
import subprocess

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.export.artifact import FORMATS, deployment_cost, latencies_ms, q_function
from rllib_kd.export.deployment import deploy
from rllib_kd.export.export import export
from rllib_kd.export.recorded import recorded_states
from rllib_kd.export.runners import c_runner
from rllib_kd.teachers.base import Teacher
from tests.conftest import states
from tests.export.c.legal import legal_actions
from tests.export.students import network
from tests.networks.trees.trees import tree_module


def masks_of(count, num_actions=3):
    masks = np.random.default_rng(1).random((count, num_actions)) < 0.5
    masks[np.arange(count), np.arange(count) % num_actions] = True
    return masks


SLOW = pytest.mark.slow  # files that import torch when they are played


@pytest.fixture(scope="module")
def obs():
    return states(60)


@pytest.mark.parametrize(
    ("int8", "artifact_format"),
    [
        *(pytest.param(False, name, marks=SLOW if name in ("pt2", "torchscript") else ()) for name in FORMATS),
        (True, "c"),
        (True, "onnx"),
    ],
)
def test_illegal_actions_are_never_the_best(artifact_format, int8, obs, tmp_path):
    is_tree = artifact_format == "python"
    student = Teacher(tree_module(5)) if is_tree else network()
    obs = obs[:, :3] if is_tree else obs
    masks, path = masks_of(len(obs)), tmp_path / "student"
    exported = export(student, path, format=artifact_format, obs=obs, action_masks=masks, int8=int8)
    assert exported.agreement > 0.9 if int8 else exported.agreement == 1.0
    q = q_function(path)
    expected = student.q_values(torch.as_tensor(obs), torch.as_tensor(masks)).numpy()
    got = q(obs, masks)
    np.testing.assert_array_equal(np.isneginf(got), ~masks)
    if not int8:
        np.testing.assert_allclose(got[masks], expected[masks], atol=1e-5)
        np.testing.assert_allclose(q(obs), student.q_values(torch.as_tensor(obs)).numpy(), atol=1e-5)
    cost = deployment_cost(path)
    assert cost.latency_ms > 0
    if artifact_format in ("pt2", "torchscript"):
        assert 5e6 < cost.peak_memory_bytes < 600e6
        assert cost.disk_bytes == path.stat().st_size < 4 * student.num_parameters + 18_000
    if artifact_format == "onnx":
        assert [(value.name, value.type, value.shape[1:]) for value in inputs_of(path)] == [
            ("obs", "tensor(float)", [4]),
            ("action_mask", "tensor(float)", [3]),
        ]
    if artifact_format != "c":
        assert len(latencies_ms([path, path])) == 2


def inputs_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).get_inputs()


def test_safetensors_says_that_there_is_a_mask(obs, tmp_path):
    path = tmp_path / "student.safetensors"
    for masks, expected in ((None, None), (masks_of(len(obs)), "[3]")):
        export(network(), path, format="safetensors", obs=obs, action_masks=masks)
        data = path.read_bytes()
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        assert metadata.get("action_mask") == expected


@pytest.mark.parametrize("artifact_format", ["onnx", "safetensors", "torchscript"])
def test_files_that_take_a_mask_can_teach(artifact_format, obs, tmp_path):
    student, path = network(), tmp_path / f"student.{artifact_format}"
    export(student, path, format=artifact_format, obs=obs, action_masks=masks_of(len(obs)))
    teacher = load_teacher(path, trust_checkpoint=artifact_format == "torchscript")
    expected = student.q_values(torch.as_tensor(obs)).numpy()
    np.testing.assert_allclose(teacher.q_values(torch.as_tensor(obs)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((60, 2)), r"has the shape \[60, 2\], expected \[60, 3\]"),
        (np.ones(60), r"has the shape \[60\]"),
        (np.eye(60, 3), "a state without a legal action"),
        (np.full((60, 3), np.nan), "a state without a legal action"),
    ],
)
def test_masks_without_sense_are_refused(masks, message, obs, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(network(), tmp_path / "student", format="safetensors", obs=obs, action_masks=masks)
    assert not list(tmp_path.iterdir())


def test_c_tells_that_no_action_is_legal(obs, tmp_path):
    path = tmp_path / "student.h"
    export(network(), path, format="c", obs=obs)  # also without masks
    compiled = c_runner.CNetwork(str(path))
    masks = masks_of(len(obs))
    masks[3] = False
    actions = legal_actions(compiled, obs, masks)
    assert actions[3] == -3  # STUDENT_NO_LEGAL
    q = compiled.run(obs)[1]
    others = np.arange(len(obs)) != 3
    np.testing.assert_array_equal(actions[others], np.where(masks, q, -np.inf).argmax(-1)[others])
    bad = obs.copy()
    bad[0, 0] = np.nan
    assert legal_actions(compiled, bad, masks)[0] == -1  # STUDENT_NOT_FINITE
    assert subprocess.run(["grep", "-c", "student_act_legal", str(path)], capture_output=True).returncode == 0


def test_a_mask_that_claims_to_be_huge_is_refused(obs, tmp_path):
    import onnx

    path = tmp_path / "student.onnx"
    export(network(), path, format="onnx", obs=obs, action_masks=masks_of(len(obs)))
    model = onnx.load(path)
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 2**40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="was refused"):
        load_teacher(path)


class AllLegal(gym.Env):
    """Its masks are all ones in its short episodes."""

    observation_space, action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32), gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(4, np.float32), {"action_mask": np.ones(3, np.int8)}

    def step(self, action):
        return self.np_random.random(4, np.float32), 0.0, False, True, {"action_mask": np.ones(3, np.int8)}


def test_a_file_takes_masks_if_none_was_needed_so_far(obs, tmp_path):
    done = deploy(network(), tmp_path / "s.onnx", lambda config: AllLegal(), format="onnx", num_episodes=2)
    assert done.exported.takes_mask
    assert [value.name for value in inputs_of(tmp_path / "s.onnx")] == ["obs", "action_mask"]
    rows = {"obs": obs, "action_mask": np.ones((len(obs), 3), bool)}
    np.savez(tmp_path / "rows.npz", **rows)
    _, masks = recorded_states([str(tmp_path / "rows.npz")], network())
    np.testing.assert_array_equal(masks, rows["action_mask"])
