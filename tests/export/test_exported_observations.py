"""What stands before the network is in the file, or is refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.checkpoints.connectors import pipeline_of
from rllib_kd.export.artifact import FORMATS, deployment_cost, q_function
from rllib_kd.export.deployment import deploy
from rllib_kd.export.export import artifact_view, check_exportable, export
from rllib_kd.export.recorded import deploy_on_rows
from rllib_kd.export.runners.flatten import flatten, parts_in
from rllib_kd.observations.pipeline import Flatten, Normalize, ObservationPipeline, RLlibConnectors, Shown, StackFrames
from rllib_kd.observations.spaces import flat_size, input_space
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_OBS, states
from tests.export.students import FILTER, PIPELINES, QUICK_TO_PLAY, SLOW_TO_PLAY, THREE_ACTIONS, network
from tests.observations.spaces import COMPOSED, TEXTS


def each_with(names, *, slow):
    """All names in two formats, and one in each format that imports torch when it is played."""
    quick = [(name, each) for each in ("safetensors", "onnx") for name in names]
    return [*quick, *(pytest.param(slow, *each.values, marks=each.marks) for each in SLOW_TO_PLAY)]


@pytest.mark.parametrize(
    ("name", "artifact_format"),
    each_with(PIPELINES, slow="one-hots, filtered"),
)
def test_what_connectors_do_is_in_the_file(name, artifact_format, tmp_path):
    shown_space, input_space, stages = PIPELINES[name]
    pipeline = ObservationPipeline(shown_space, stages)
    student = Teacher(network(input_space).module, pipeline=pipeline)
    shown_space.seed(0)
    obs = np.stack([shown_space.sample() for _ in range(30)])
    obs = np.clip(obs, -3, 3)  # CartPole's speeds have no bounds
    result = export(student, tmp_path / "student", format=artifact_format, obs=obs)
    seen = pipeline.start()(Shown(obs, first=np.ones(len(obs), dtype=bool)))
    expected = student.q_values(torch.as_tensor(seen)).numpy()
    assert q_function(tmp_path / "student")(obs) == pytest.approx(expected, abs=1e-5)
    assert result.max_difference < 1e-5
    assert np.ptp(expected, axis=0).min() > 0.01
    assert deployment_cost(tmp_path / "student").latency_ms > 0  # it is played with the right shape


@pytest.mark.parametrize(
    "space",
    [Box(0, 255, (8, 9, 3), np.uint8), Box(0, 255, (3, 8, 9), np.uint8), Box(0, 1, (3, 8, 9))],
    ids=["bytes", "bytes, channels first", "floats, channels first"],
)
@pytest.mark.parametrize("way", ["export", "deploy", "rows"])
def test_a_file_takes_images_as_they_are_shown_if_no_connectors_are_recorded(space, way, tmp_path):
    student = network(Box(0, 1, (8, 9, 3)), conv_filters=[[2, 4, 2], [4, 4, 1]])
    space.seed(0)
    obs, file = np.stack([space.sample() for _ in range(30)]), tmp_path / "student.safetensors"
    if way == "export":
        export(student, file, format="safetensors", obs=obs)
    elif way == "deploy":
        deploy(student.module, file, lambda config: Shows(space), format="safetensors", num_episodes=2)
    else:
        np.savez(tmp_path / "rows.npz", obs=obs)
        deploy_on_rows(student, file, [str(tmp_path / "rows.npz")], format="safetensors")
    inputs = student.start()(Shown(obs, first=np.ones(30, bool)))
    expected = student.q_values(torch.as_tensor(inputs)).numpy()
    assert q_function(file)(obs.astype(np.float32)) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected, axis=0).min() > 0.01


def test_frames_are_stacked_outside(tmp_path):
    space, conv = gym.spaces.Box(0, 1, (8, 8, 1)), {"conv_filters": [[2, 4, 2], [4, 4, 1]]}
    pipeline = ObservationPipeline(space, (StackFrames(3),))
    student = Teacher(network(gym.spaces.Box(0, 1, (8, 8, 3)), **conv).module, pipeline=pipeline)
    seen = artifact_view(student)()(Shown(np.ones((4, 8, 8, 1)), np.ones(4, dtype=bool)))
    assert seen.shape == (4, 8, 8, 3)
    export(student, tmp_path / "student", format="safetensors", obs=seen)
    assert q_function(tmp_path / "student")(seen) == pytest.approx(
        student.q_values(torch.as_tensor(seen)).numpy(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("space", "stages", "message"),
    [
        (gym.spaces.Sequence(CARTPOLE_OBS), (), "takes one array"),
        (CARTPOLE_OBS, (FILTER, StackFrames(2)), "combines frame stacking with other connectors"),
        (CARTPOLE_OBS, (RLlibConnectors(None),), "custom connectors"),
    ],
)
def test_connectors_that_no_file_can_hold(space, stages, message, tmp_path):
    student = Teacher(network().module, pipeline=ObservationPipeline(space, stages))
    with pytest.raises(ValueError, match=message):
        export(student, tmp_path / "student", format="onnx", obs=states(2))


@pytest.mark.parametrize(
    ("space", "largest"),
    [
        (gym.spaces.Discrete(5, start=2**24 - 3), "16,777,217"),
        (gym.spaces.Discrete(5, start=-(2**40)), "1,099,511,627,776"),
        (gym.spaces.MultiDiscrete([2, 3], start=[0, 2**25]), "33,554,434"),
    ],
)
@pytest.mark.parametrize("artifact_format", FORMATS)
def test_numbers_that_floats_cannot_hold_are_refused(space, largest, artifact_format):
    with pytest.raises(ValueError, match=rf"integers up to 16,777,216 exactly, .* numbers up to ±{largest}"):
        check_exportable(flat_student(space), format=artifact_format)
    check_exportable(flat_student(gym.spaces.Discrete(5, start=2**24 - 4)), format="c", int8=True)


@pytest.mark.parametrize("space", [*COMPOSED.values(), TEXTS["with texts"]], ids=[*COMPOSED, "with texts"])
def test_a_list_of_what_the_environment_returns(space, tmp_path):
    pipeline = ObservationPipeline(space, (Flatten(space),))
    student = Teacher(network(input_space(space)).module, pipeline=pipeline)
    space.seed(0)
    obs = [space.sample() for _ in range(20)]
    given = export(student, tmp_path / "list.safetensors", format="safetensors", obs=obs)
    parts = parts_in(tmp_path / "list.safetensors")
    vectors = np.stack([flatten(parts, each) for each in obs])
    seen = pipeline.start()
    expected = np.concatenate([seen(Shown(each, np.ones(1, dtype=bool))) for each in obs])
    np.testing.assert_array_equal(vectors, expected)
    assert given.num_observations == 20
    with pytest.raises(ValueError, match="or a list of N observations that the environment returns"):
        export(student, tmp_path / "x.safetensors", format="safetensors", obs=np.zeros(3))


class Shows(gym.Env):
    """Observations of any space; an episode has nine steps."""

    action_space = THREE_ACTIONS

    def __init__(self, space: gym.Space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(action == self.t % 3), self.t >= 9, False, {}


def flat_student(space: gym.Space) -> Teacher:
    """As RLlib's FlattenObservations shows it the space."""
    flat = gym.spaces.Box(-1, 1, (flat_size(space),))
    return Teacher(network(flat).module, pipeline=ObservationPipeline(space, (Flatten(space),)))


VECTORS = {
    str(space): space
    for space in (
        gym.spaces.Discrete(5),
        gym.spaces.MultiDiscrete([3, 2, 4]),
        gym.spaces.MultiBinary(4),
        gym.spaces.MultiBinary([2, 3]),
        gym.spaces.Box(-1, 1, (2, 3)),
    )
}


@pytest.mark.parametrize(
    ("name", "artifact_format"),
    [
        *each_with(VECTORS, slow="MultiDiscrete([3 2 4])"),
        pytest.param("MultiDiscrete([3 2 4])", "onnx, int8", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_a_vector_plays_through_its_file(name, artifact_format, tmp_path):
    kind, _, int8 = artifact_format.partition(", ")
    space, out = VECTORS[name], tmp_path / "s"
    done = deploy(flat_student(space), out, lambda config: Shows(space), format=kind, int8=bool(int8), num_episodes=4)
    assert done.exported.num_observations == 36
    if not int8:
        assert done.exported.max_difference < 1e-5
        assert done.return_mean == done.torch_return
    assert done.cost.latency_ms > 0
    obs = np.stack([space.sample() for _ in range(7)])  # integers, as the environment shows them
    q = q_function(out)
    assert q(obs) == pytest.approx(q(obs.astype(np.float32)), abs=1e-6)
    assert q(obs).shape == (7, 3)


@pytest.mark.parametrize("artifact_format", ["safetensors", "torchscript"])
def test_a_single_number_is_taken_by_the_file(artifact_format, tmp_path):
    student, out = flat_student(gym.spaces.Box(-1, 1, ())), tmp_path / "s"
    obs = np.linspace(-1, 1, 5, dtype=np.float32)
    assert export(student, out, format=artifact_format, obs=obs).max_difference < 1e-5
    expected = student.q_values(torch.from_numpy(obs[:, None])).numpy()
    assert q_function(out)(obs) == pytest.approx(expected, abs=1e-5)
    loaded = load_teacher(out, trust_checkpoint=True)
    assert loaded.q_values(torch.from_numpy(obs)).numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "artifact_format"),
    each_with(["nested", "with texts", "missions"], slow="with texts"),
)
def test_what_is_not_one_array_plays_through_its_file(name, artifact_format, tmp_path):
    """The file takes vectors, and describes how to make them."""
    space, out = (COMPOSED | TEXTS)[name], tmp_path / "s"
    student = flat_student(space)
    done = deploy(student, out, lambda config: Shows(space), format=artifact_format, num_episodes=3)
    assert done.exported.num_observations == 27
    assert done.exported.max_difference <= done.exported.max_difference_allowed
    assert done.return_mean == done.torch_return
    assert done.cost.latency_ms > 0
    space.seed(0)
    seen = [space.sample() for _ in range(10)]
    parts, view = parts_in(str(out)), student.start()
    vectors = np.array([flatten(parts, obs) for obs in seen])
    np.testing.assert_array_equal(vectors, [view(Shown(obs, np.ones(1, dtype=bool)))[0] for obs in seen])
    assert q_function(out)(vectors) == pytest.approx(student.q_values(torch.from_numpy(vectors)).numpy(), rel=1e-4)


def test_parts_that_a_connector_leaves_out_are_in_no_vector(tmp_path):
    space = COMPOSED["dict"]
    stage = Flatten(space, ("m",))
    student = Teacher(
        network(gym.spaces.Box(-1, 1, (stage.size,))).module,
        pipeline=ObservationPipeline(space, (stage, filter_of(stage))),
    )
    out = tmp_path / "s"
    deploy(student, out, lambda config: Shows(space), format="safetensors", num_episodes=1)
    assert [part["path"] for part in parts_in(str(out))] == [["a"], ["z"]]
    assert flatten(parts_in(str(out)), space.sample()).shape == (stage.size,)


def filter_of(stage: Flatten) -> Normalize:
    return Normalize(np.zeros(stage.size), np.full(stage.size, 2.0), clip=None)


@pytest.mark.parametrize("artifact_format", QUICK_TO_PLAY)
def test_images_of_truth_values_are_in_the_file(artifact_format, tmp_path):
    space = gym.spaces.Box(0, 1, (1, 8, 8), bool)
    spaces = {INPUT_ENV_SINGLE_SPACES: (space, THREE_ACTIONS)}
    pipeline = pipeline_of(DistillDQNConfig().build_env_to_module_connector(spaces=spaces))
    student = Teacher(network(input_space(space), conv_filters=[[2, 4, 2]]).module, pipeline=pipeline)
    obs = np.stack([space.sample() for _ in range(20)])
    seen = pipeline.start()(Shown(obs, np.ones(20, dtype=bool)))
    np.testing.assert_array_equal(seen, np.moveaxis(obs, 1, -1))
    export(student, tmp_path / "s", format=artifact_format, obs=obs)
    expected = student.q_values(torch.from_numpy(seen)).numpy()
    assert q_function(tmp_path / "s")(obs) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("artifact_format", QUICK_TO_PLAY)
def test_other_files_describe_no_parts(artifact_format, tmp_path):
    export(network(), tmp_path / "s", format=artifact_format, obs=states(3))
    assert parts_in(str(tmp_path / "s")) is None


@pytest.mark.parametrize(("mean", "std", "count"), [(101_325.3, 1.0, 2), (1.0, 1e-6, 2), (0.1, 2.0, 1)])
def test_a_filter_whose_mean_is_far_from_zero_is_exact(mean, std, count, tmp_path):
    means = mean + std * np.array([0.11, 0.22, 0.33, 0.44])
    pipeline = ObservationPipeline(CARTPOLE_OBS, (Normalize(means, np.full(4, std), np.inf),))
    student, out = Teacher(network().module, pipeline=pipeline), tmp_path / "s.safetensors"
    obs = (means + std * states(40)).astype(np.float32)
    assert export(student, out, format="safetensors", obs=obs).max_difference < 1e-5
    assert out.read_bytes().count(b"normalize") == count
    assert b"Infinity" not in out.read_bytes()  # which JSON does not have
    shown, loaded = Shown(obs, np.ones(40, dtype=bool)), load_teacher(out)
    expected, got = (each.q_values(torch.from_numpy(each.start()(shown))) for each in (student, loaded))
    assert torch.allclose(got, expected, atol=1e-5)
