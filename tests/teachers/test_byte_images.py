"""Images of bytes before functions of floats: whether they are divided by 255 is described, or a warning asks."""

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import nn

from rllib_kd import Teacher, load_teacher
from rllib_kd.algorithm.preflight import check_teachers_fit
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.export.export import export
from rllib_kd.observations.pipeline import Images, ObservationPipeline, Shown
from rllib_kd.offline.fingerprint import fingerprint
from tests.formats import mlp, q_values

SHAPE = (6, 5, 3)
BYTES = gym.spaces.Box(0, 255, SHAPE, np.uint8)
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(90, 2))
OBS = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)


def save(path, shape=SHAPE, network=NETWORK, **description):
    torch.jit.save(torch.jit.script(network), path)
    path.with_suffix(".json").write_text(json.dumps({"observation_shape": shape, **description}))
    return path


@torch.no_grad()
def said_of(obs):
    return pytest.approx(NETWORK(torch.as_tensor(obs).float()).numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("is_in_config", [False, True], ids=["JSON", "config"])
@pytest.mark.parametrize("divisor", [255, 1])
def test_bytes_are_divided_as_described(tmp_path, caplog, divisor, is_in_config):
    if is_in_config:
        teacher = {"path": save(tmp_path / "a.pt"), "network": {"divisor": divisor}}
    else:
        teacher = save(tmp_path / "a.pt", divisor=divisor)
    teacher = load_teacher(teacher, trust_checkpoint=True)
    expected = said_of(OBS / np.float32(divisor))
    for obs in (OBS, np.moveaxis(OBS, -1, 1)):
        space = gym.spaces.Box(0, 255, obs.shape[1:], np.uint8)
        (fitted,) = check_players_fit(lambda space=space: Shows(space), {"The teacher": teacher})
        assert fingerprint(fitted) == fingerprint(teacher)  # by which labels are known as its own
        assert q_values(teacher, obs) == expected
    if divisor == 255:
        assert teacher.takes(gym.spaces.Box(0, 1, SHAPE))
        assert q_values(teacher, OBS / np.float32(255)) == expected
    assert not caplog.records


@pytest.mark.parametrize("divisor", [2, True, "255", 0, [255], None])
def test_other_divisors_are_refused(tmp_path, divisor):
    with pytest.raises(ValueError, match=r"the divisor .*, expected 255 .* or 1"):
        load_teacher(save(tmp_path / "a.pt", divisor=divisor), trust_checkpoint=True)


def test_a_divisor_is_for_images(tmp_path):
    with pytest.raises(ValueError, match=r"divisor, which is for images, but its inputs have the shape \[4\]\. Leave"):
        load_teacher(save(tmp_path / "a.pt", shape=[4], network=mlp(4, 2), divisor=255), trust_checkpoint=True)


def test_a_divisor_is_for_models_of_floats(tmp_path):
    class Mean(nn.Module):
        def forward(self, obs):
            return obs.float().flatten(1)[:, :2]

    names = {"input_names": ["obs"], "dynamic_axes": {"obs": {0: "n"}}}
    torch.onnx.export(Mean(), (torch.zeros(1, *SHAPE).byte(),), tmp_path / "a.onnx", dynamo=False, **names)
    (tmp_path / "a.json").write_text('{"divisor": 255}')
    with pytest.raises(ValueError, match=r"has a divisor, but the model takes bytes.*Leave the divisor out"):
        load_teacher(tmp_path / "a.onnx")


class Shows(gym.Env):
    """Only its spaces are looked at."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, observation_space):
        self.observation_space = observation_space


def function(low=-np.inf, high=np.inf, dtype=np.float32, pipeline=None):
    space = gym.spaces.Box(low, high, SHAPE, dtype)
    actions = gym.spaces.Discrete(2)
    return Teacher.from_callable(NETWORK, observation_space=space, action_space=actions, pipeline=pipeline)


CHECKS = {
    "training": lambda teacher, space: check_teachers_fit(
        SimpleNamespace(own_connectors=(), is_multi_agent=False, env="any"),
        {DEFAULT_MODULE_ID: teacher},
        (space, gym.spaces.Discrete(2)),
    ),
    "a comparison": lambda teacher, space: check_players_fit(lambda: Shows(space), {"The teacher": teacher}),
    "an evaluation": lambda teacher, space: check_players_fit(lambda: Shows(space), {"It": GreedyQ(teacher)}),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_bytes_that_reach_a_function_of_floats_are_reported(caplog, check):
    check(function(), BYTES)
    (message,) = caplog.messages
    assert "gets bytes from 0 to 255. If it was trained on pixels divided by 255" in message
    assert '{"divisor": 255}' in message


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(
    ("teacher", "space"),
    [
        (function(), gym.spaces.Box(0, 255, SHAPE)),
        (function(), gym.spaces.Box(0, 1, SHAPE, np.bool_)),
        (function(0, 1), BYTES),
        (function(0, 255), BYTES),
        (function(), gym.spaces.Box(0, 1, SHAPE, np.uint8)),
        (function(0, 255, np.uint8), BYTES),
        (function(pipeline=ObservationPipeline(BYTES, (Images(SHAPE, scaled=False),))), BYTES),
    ],
    ids=[
        "floats",
        "truth values",
        "a function of [0, 1]",
        "a function of [0, 255]",
        "bits",
        "a function of bytes",
        "with a pipeline",
    ],
)
def test_what_is_known_is_not_reported(caplog, check, teacher, space):
    check(teacher, space)
    assert not caplog.records


@pytest.mark.parametrize("ending", ["onnx", "pt2", "pt"])
def test_files_of_our_own_say_that_they_take_bytes(tmp_path, caplog, ending):
    formats = {"onnx": "onnx", "pt2": "pt2", "pt": "torchscript"}
    student = function(0, 1, pipeline=ObservationPipeline(BYTES, (Images(SHAPE),)))
    images = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)
    export(student, tmp_path / f"s.{ending}", format=formats[ending], obs=images)
    loaded = load_teacher(tmp_path / f"s.{ending}", trust_checkpoint=True)
    expected, got = (
        each.q_values(torch.from_numpy(each.start()(Shown(images, np.ones(20, bool))))) for each in (student, loaded)
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    CHECKS["a comparison"](loaded, BYTES)
    assert "gets bytes" not in caplog.text


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_a_function_of_bytes_gets_no_images_that_are_divided(check, dtype):
    teacher = function(0, 255, pipeline=ObservationPipeline(BYTES, (Images(SHAPE, scaled=False),)))
    with pytest.raises(ValueError, match=rf"uint8\).*Box\(.*{np.dtype(dtype)}\)"):
        check(teacher, gym.spaces.Box(0, 1, SHAPE, dtype))
    check(teacher, gym.spaces.Box(0, 1, SHAPE, np.uint8))
    check(teacher, gym.spaces.Box(0, 255, SHAPE))


@pytest.mark.parametrize(
    "first", [ObservationPipeline(BYTES, (Images(SHAPE),)), ObservationPipeline(gym.spaces.Box(0, 1, SHAPE))]
)
def test_bytes_are_not_divided_by_a_pipeline_and_by_the_network(first):
    own = ObservationPipeline(BYTES, (Images(SHAPE, scaled=False),))
    with pytest.raises(ValueError, match=r"'net' takes bytes.*the pipeline before it returns images in"):
        own.after(first, "net")
    assert own.after(ObservationPipeline(BYTES)).stages == own.stages
