"""Images of bytes, wherever their channels are: what networks see, what is stored, what is saved and played again."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd import DistillDQNConfig, DistillEnvRunner, Teacher, compare, load_teacher
from rllib_kd.env_runner.behavior import BehaviorPolicy
from rllib_kd.export.artifact import q_function
from rllib_kd.export.deployment import deploy
from rllib_kd.export.export import export
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from rllib_kd.observations.frames import CONTEXT, observations
from rllib_kd.observations.images import as_input
from rllib_kd.observations.pipeline import Images, ObservationPipeline, Shown
from rllib_kd.observations.spaces import input_space
from rllib_kd.wire import receive
from tests.conftest import make_q_module
from tests.env_runner.runners import Silent
from tests.export.students import NETWORK_FORMATS
from tests.rllib_checkpoints import connector

SIDE, NUM_FRAMES = 12, 3
SHAPE = (SIDE, SIDE, NUM_FRAMES)
CONV = {"conv_filters": [[4, 4, 2, "valid"], [4, 3, 1, "valid"]], "head_fcnet_hiddens": [8]}
NUM_ACTIONS = 3


class Screens(gym.Env):
    """Random screens, each in a stack with those before it; an episode has some ten steps.

    Config: `channels` "first" or "last"; `stacked` False for pictures in three colours instead.
    """

    action_space = gym.spaces.Discrete(NUM_ACTIONS)

    def __init__(self, config=None):
        self.channels_first = (config or {}).get("channels", "first") == "first"
        self.is_stacked = (config or {}).get("stacked", True)
        shape = (NUM_FRAMES, SIDE, SIDE) if self.channels_first else SHAPE
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def look(self, stack):
        stack[-1] = self.np_random.integers(256, size=(SIDE, SIDE))
        self.stack = stack if self.is_stacked else self.np_random.integers(256, size=stack.shape)
        obs = self.stack.astype(np.uint8)
        return obs if self.channels_first else np.moveaxis(obs, 0, -1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(8, 14))
        return self.look(np.zeros((NUM_FRAMES, SIDE, SIDE), np.int64)), {}

    def step(self, action):
        self.left -= 1
        return self.look(np.roll(self.stack, -1, axis=0)), float(action), self.left == 0, False, {}


CHANNELS = [{"channels": "first"}, {"channels": "last"}]


def floats(obs: np.ndarray) -> np.ndarray:
    """What a network is to see, worked out by hand."""
    if obs.shape[1:] != SHAPE:
        obs = obs.transpose(0, 2, 3, 1)
    return obs.astype(np.float32) / 255


def random_teacher() -> Teacher:
    return Teacher(make_q_module(gym.spaces.Box(0, 1, SHAPE), Screens.action_space, **CONV))


@pytest.fixture
def config(cluster, tmp_path):
    return (
        DistillDQNConfig()
        .environment(Screens)
        .env_runners(num_envs_per_env_runner=3, rollout_fragment_length=16)
        .training(train_batch_size_per_learner=16, num_steps_sampled_before_learning_starts=16, training_intensity=2)
        .reporting(min_sample_timesteps_per_iteration=48)
        .evaluation(evaluation_duration=2)
        .rl_module(model_config=CONV)
        .distillation(teacher=random_teacher().module.save_to_path(str(tmp_path / "teacher")), num_baseline_episodes=2)
        .debugging(seed=0)
    )


def make_runner(config: DistillDQNConfig) -> DistillEnvRunner:
    config = config.copy(copy_frozen=False)
    config.validate()
    runner = DistillEnvRunner(config=config, worker_index=0)
    runner.set_teacher(load_teacher(config.teacher))
    return runner


def sample(runner, names, *, epsilon=0.2):
    (ref,), _ = runner.sample_columns(teacher_fraction=0.5, epsilon=epsilon, names=names, num_shards=1)
    return receive(ref)


# --- What a network sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, (NUM_FRAMES, SIDE, SIDE)], ids=["last", "first"])
def test_a_network_sees_floats_with_channels_last(shape):
    obs = np.random.default_rng(0).integers(256, size=(5, *shape)).astype(np.uint8)
    space = input_space(gym.spaces.Box(0, 255, shape, np.uint8))
    assert space == gym.spaces.Box(0.0, 1.0, SHAPE, np.float32)
    seen = as_input(torch.tensor(obs), space.shape)
    assert seen.dtype == torch.float32
    np.testing.assert_array_equal(seen, floats(obs))
    learned_from = as_input(torch.tensor(obs), space.shape, contiguous=True)
    assert learned_from.is_contiguous()
    np.testing.assert_array_equal(learned_from, seen)
    np.testing.assert_array_equal(as_input(torch.tensor(floats(obs)), SHAPE), floats(obs))  # already is
    np.testing.assert_array_equal(ObservationPipeline(space).start()(shown(obs)), floats(obs))


def shown(obs):
    return Shown(obs, np.ones(len(obs), dtype=bool))


def test_other_observations_stay_as_they_are():
    vectors = torch.tensor([[1.5, 2.5]], dtype=torch.float64)
    assert as_input(vectors, (2,)).tolist() == [[1.5, 2.5]]
    for space in (
        gym.spaces.Box(0, 1, (4,), np.float64),
        gym.spaces.Box(0, 1, (3, 12, 12)),
        gym.spaces.Sequence(gym.spaces.Discrete(2)),
    ):
        assert input_space(space) is space


def test_a_teacher_of_floats_takes_bytes_of_either_order():
    teacher = random_teacher()
    for shape in (SHAPE, (NUM_FRAMES, SIDE, SIDE)):
        assert teacher.takes(gym.spaces.Box(0, 255, shape, np.uint8))
        assert teacher.takes(gym.spaces.Box(0.0, 1.0, shape))
    assert not teacher.takes(gym.spaces.Box(0, 255, (4, SIDE, SIDE), np.uint8))
    assert not teacher.takes(gym.spaces.Box(-1.0, 1.0, SHAPE))


# --- What EnvRunners send ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_config", CHANNELS, ids=str)
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
@pytest.mark.parametrize("names", [DISTILLATION_COLUMNS, DISTILLATION_COLUMNS + TD_COLUMNS], ids=["states", "all"])
def test_labels_are_of_the_bytes_that_are_sent(config, env_config, direct, names):
    config.environment(env_config=env_config)
    runner = make_runner(config if direct else config.callbacks(Silent))
    assert runner._samples_directly is direct
    teacher = load_teacher(config.teacher)
    for _ in range(3):
        columns = sample(runner, names)
        assert columns["obs"].dtype == np.uint8
        assert columns["obs"].shape[1:] == (SIDE, SIDE)  # packed
        seen = observations(columns, np.flatnonzero(columns["valid"]))
        expected = teacher.q_values(torch.tensor(floats(seen)))
        np.testing.assert_allclose(columns["teacher_q"][columns["valid"]], expected, rtol=1e-5, atol=1e-6)
        assert len(np.unique(seen.reshape(len(seen), -1), axis=0)) == len(seen)
        # A frame a state, and two more for each trajectory that begins.
        assert columns[CONTEXT].sum() % (NUM_FRAMES - 1) == 0
        assert columns["valid"].sum() > 1.5 * columns[CONTEXT].sum()


@pytest.mark.parametrize("env_config", CHANNELS, ids=str)
def test_a_learner_takes_stacks_that_are_packed_beside_others(config, build, env_config):
    algo = build(config.environment(env_config=env_config))
    packed = sample(make_runner(config), DISTILLATION_COLUMNS)
    rows = np.flatnonzero(packed["valid"])
    stacks = observations(packed, rows)
    shown = np.moveaxis(stacks, -1, 1) if env_config["channels"] == "first" else stacks
    group = algo.learner_group._learner.groups["default_policy"]
    seen = group.take_in([packed, {"obs": shown, "teacher_q": packed["teacher_q"][rows]}], reduce=None)
    np.testing.assert_allclose(seen["obs"], np.concatenate([floats(stacks)] * 2))


def test_both_orders_and_both_ways_give_the_same_data(config):
    """The screens are drawn alike. Fragments end at other places on the two ways: compare their beginnings."""
    beginnings = []
    for env_config in CHANNELS:
        for callbacks in (None, Silent):
            variant = config.copy(copy_frozen=False).environment(env_config=env_config)
            variant = variant if callbacks is None else variant.callbacks(callbacks)
            columns = sample(make_runner(variant), DISTILLATION_COLUMNS, epsilon=0.0)
            rows = np.flatnonzero(columns["valid"])[:6]
            beginnings.append((observations(columns, rows), columns["teacher_q"][rows]))
    for obs, teacher_q in beginnings[1:]:
        np.testing.assert_array_equal(obs, beginnings[0][0])
        np.testing.assert_allclose(teacher_q, beginnings[0][1], rtol=1e-5, atol=1e-6)  # processors add in other orders


def test_pictures_that_are_no_stacks_are_sent_whole(config):
    runner = make_runner(config.environment(env_config={"stacked": False}))
    columns = sample(runner, DISTILLATION_COLUMNS)
    assert columns["obs"].dtype == np.uint8
    assert columns["obs"].shape[1:] == (NUM_FRAMES, SIDE, SIDE)
    assert "valid" not in columns
    expected = load_teacher(config.teacher).q_values(torch.tensor(floats(columns["obs"])))
    np.testing.assert_allclose(columns["teacher_q"], expected, rtol=1e-5, atol=1e-6)


def test_a_function_of_bytes_is_shown_bytes(config):
    space = gym.spaces.Box(0, 255, (NUM_FRAMES, SIDE, SIDE), np.uint8)
    teacher = Teacher.from_callable(
        lambda obs: obs.flatten(1)[:, :NUM_ACTIONS], observation_space=space, action_space=Screens.action_space
    )
    runner = make_runner(config)
    runner.set_teacher(teacher)
    columns = sample(runner, DISTILLATION_COLUMNS)
    seen = observations(columns, np.flatnonzero(columns["valid"]))
    expected = np.moveaxis(seen, -1, 1).reshape(len(seen), -1)[:, :NUM_ACTIONS]
    np.testing.assert_array_equal(columns["teacher_q"][columns["valid"]], expected.astype(np.float32))


def test_bytes_behind_connectors_of_ones_own_become_the_same_inputs(config):
    config.environment(env_config={"stacked": False})
    own = make_runner(config.copy().env_runners(env_to_module_connector=connector(Nothing)))
    assert not own._samples_directly
    columns, expected = (sample(runner, DISTILLATION_COLUMNS) for runner in (own, make_runner(config)))
    np.testing.assert_array_equal(columns["obs"][:5], floats(expected["obs"][:5]))
    np.testing.assert_allclose(columns["teacher_q"][:5], expected["teacher_q"][:5], rtol=1e-5, atol=1e-6)


class Nothing(ConnectorV2):
    """Leaves everything as it is."""

    def __call__(self, *, batch, **kwargs):
        return batch


# --- The whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env_config", "td_coeff"), zip(CHANNELS, (0.5, 0.0), strict=True), ids=["first", "last"])
def test_trains_evaluates_and_plays_again(config, build, env_config, td_coeff, tmp_path):
    config.environment(env_config=env_config)
    if td_coeff:
        config.training(replay_buffer_config={"alpha": 0.6}, n_step=2)
    algo = build(config.distillation(td_coeff=td_coeff))
    results = [algo.train() for _ in range(3)]
    assert np.isfinite(results[-1]["learners"]["default_policy"]["total_loss"])
    assert np.isfinite(results[-1]["distillation"]["teacher_return"])
    evaluated = algo.evaluate()["env_runners"]
    assert 8 <= evaluated["episode_len_mean"] <= 14

    columns = algo.learner_group._learner.groups["default_policy"].replay._columns
    assert columns["obs"].dtype == torch.uint8
    assert columns["obs"].shape[1:] == (SIDE, SIDE)

    path = algo.save_to_path(str(tmp_path / "student"))
    student = load_teacher(path)
    assert student.pipeline is not None
    assert student.pipeline.stages == (Images(SHAPE),)
    obs = np.stack([algo.env_runner.env.single_observation_space.sample() for _ in range(20)])
    q = student.q_values(torch.tensor(student.start()(shown(obs))))
    module = RLModule.from_checkpoint(f"{path}/learner_group/learner/rl_module/default_policy")
    expected = module.compute_q_values({"obs": torch.tensor(floats(obs))})["qf_preds"]
    torch.testing.assert_close(q, expected.detach())
    with torch.inference_mode():
        _, actions = algo.env_runner._decide(torch.tensor(obs), BehaviorPolicy(0.0, 0.0, np.random.default_rng(0)))
    assert actions.tolist() == expected.argmax(-1).tolist()

    comparison = compare(config.teacher, path, Screens, env_config=env_config, num_episodes=3)
    assert comparison.to_dict() == compare(config.teacher, algo, num_episodes=3).to_dict() | {
        "student": comparison.to_dict()["student"],  # latencies differ
        "teacher": comparison.to_dict()["teacher"],
    }


@pytest.mark.slow
def test_remote_env_runners_and_learners(config, build):
    algo = build(config.env_runners(num_env_runners=1, num_envs_per_env_runner=2).learners(num_learners=1))
    for _ in range(2):
        result = algo.train()
    assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])
    assert algo.evaluate()["env_runners"]["num_episodes"] == 2


def test_pictures_that_are_no_stacks_are_learned_from(config, build):
    algo = build(config.environment(env_config={"stacked": False}).distillation(td_coeff=0.5))
    for _ in range(2):
        result = algo.train()
    assert np.isfinite(result["learners"]["default_policy"]["td_loss"])


@pytest.mark.parametrize(
    ("shape", "artifact_format"),
    [*(((NUM_FRAMES, SIDE, SIDE), each) for each in NETWORK_FORMATS), (SHAPE, "c"), (SHAPE, "safetensors")],
)
def test_an_artifact_takes_what_the_environment_shows(artifact_format, shape, tmp_path):
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    student = Teacher(random_teacher().module, pipeline=ObservationPipeline(space, (Images(SHAPE),)))
    obs = np.random.default_rng(0).integers(256, size=(20, *shape)).astype(np.uint8)
    export(student, tmp_path / "student", format=artifact_format, obs=obs)
    expected = random_teacher().q_values(torch.tensor(floats(obs))).numpy()
    np.testing.assert_allclose(q_function(tmp_path / "student")(obs), expected, atol=1e-5)
    if artifact_format == "safetensors":  # a teacher again, as a module of RLlib
        again = load_teacher(tmp_path / "student")
        assert again.takes(space)
        assert again.model_config is not None
        seen = torch.tensor(again.start()(shown(obs)))
        np.testing.assert_allclose(again.q_values(seen), expected, atol=1e-5)


@pytest.mark.parametrize("env_config", CHANNELS, ids=["first", "last"])
def test_a_student_of_bytes_is_exported_and_plays(env_config, tmp_path):
    space = Screens(env_config).observation_space
    student = Teacher(random_teacher().module, pipeline=ObservationPipeline(space, (Images(SHAPE),)))
    path = tmp_path / "student.safetensors"
    deployed = deploy(student, path, Screens, format="safetensors", num_episodes=2, env_config=env_config)
    assert deployed.exported.agreement == 1.0
    assert deployed.return_mean == deployed.torch_return
