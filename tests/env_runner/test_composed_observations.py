"""EnvRunners in environments whose observations become one vector."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_kd import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm.fit import check_fit
from rllib_kd.algorithm.preflight import check_teachers_fit
from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.pipeline import Flatten, ObservationPipeline
from rllib_kd.observations.spaces import flat_size, input_space
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import receive
from tests.conftest import make_q_module
from tests.env_runner.runners import ALL_COLUMNS, Silent, make_runner, sample
from tests.observations.environments import Missioned, Signs
from tests.observations.spaces import CASES


class Walk(gym.Env):
    """A row of cells, as Discrete."""

    observation_space = gym.spaces.Discrete(5)
    action_space = gym.spaces.Discrete(2)
    broken = None  # what to show at the fourth step

    def __init__(self, config=None):
        self.t = 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        return self.t, 1.0, self.t == 4, False, {}


class Bits(Walk):
    """Truth values as images."""

    observation_space = gym.spaces.Box(0, 1, (4, 4, 1), bool)

    def reset(self, *, seed=None, options=None):
        return np.zeros((4, 4, 1), bool), super().reset(seed=seed)[1]

    def step(self, action):
        _, *others = super().step(action)
        return np.arange(16).reshape(4, 4, 1) % 3 == self.t % 3, *others


def teacher_of(env, **model_config):
    return Teacher(make_q_module(input_space(env.observation_space), env.action_space, **model_config))


def config_of(env, **model_config):
    return (
        DistillDQNConfig()
        .environment(env)
        .env_runners(num_envs_per_env_runner=3, rollout_fragment_length=11)
        .rl_module(model_config={"fcnet_hiddens": [4]} | model_config)
        .distillation(teacher="cartpole")
        .debugging(seed=0)
    )


@pytest.mark.parametrize("env", [Signs, Missioned, Walk])
def test_both_ways_of_sampling_yield_the_same_vectors(cluster, env):
    config, teacher = config_of(env), teacher_of(env)
    direct, by_rllib = make_runner(config, teacher), make_runner(config.copy().callbacks(Silent), teacher)
    assert direct._samples_directly
    assert not by_rllib._samples_directly
    (columns,), _ = sample(direct, teacher_fraction=0.5, epsilon=0.3)
    (expected,), _ = sample(by_rllib, teacher_fraction=0.5, epsilon=0.3)
    for name in ALL_COLUMNS:  # RLlib does not count the steps that only reset, so that it samples more
        rows, expected_rows = (some[name].reshape(3, -1, *some[name].shape[1:])[:, :11] for some in (columns, expected))
        np.testing.assert_array_equal(rows, expected_rows)
    assert columns["obs"].dtype == np.float32
    assert columns["obs"].shape[1:] == (flat_size(env.observation_space),)
    q = teacher.q_values(torch.from_numpy(columns["obs"]))
    np.testing.assert_allclose(columns["teacher_q"][columns[VALID]], q[columns[VALID]], rtol=1e-5, atol=1e-6)
    assert len(np.unique(columns["obs"], axis=0)) > 1


def test_truth_values_are_stored_as_bytes(cluster):
    conv = {"conv_filters": [[2, 4, 4]]}
    teacher = teacher_of(Bits, **conv)
    runner = make_runner(config_of(Bits, **conv), teacher)
    assert runner._samples_directly
    (columns,), _ = sample(runner)
    assert columns["obs"].dtype == np.uint8
    assert set(np.unique(columns["obs"])) == {0, 255}
    q = teacher.q_values(torch.from_numpy(columns["obs"] / 255.0).float())
    np.testing.assert_allclose(columns["teacher_q"][columns[VALID]], q[columns[VALID]], rtol=1e-5, atol=1e-6)


def test_a_teacher_with_the_same_encoding_labels_what_the_student_sees(cluster):
    space = Signs.observation_space
    flat = teacher_of(Signs)
    teacher = Teacher(flat.module, pipeline=ObservationPipeline(space, (Flatten(space),)))
    part = {"sign"}
    seen = Flatten(space, tuple(part))
    narrow = make_q_module(gym.spaces.Box(-1, 1, (seen.size,)), Signs.action_space)
    for given, looks in (
        (flat, False),
        (teacher, False),
        (Teacher(narrow, pipeline=ObservationPipeline(space, (seen,))), True),
    ):
        runner = make_runner(config_of(Signs), given)
        assert (runner._teacher_view is not None) is looks
        sample(runner)


def test_a_file_as_a_teacher_sees_vectors_as_it_records_them(cluster):
    space = Signs.observation_space
    flat = teacher_of(Signs)
    vectors = flat.input_space
    known = Teacher(flat.module, pipeline=ObservationPipeline(vectors, parts=Flatten(space).parts))
    assert make_runner(config_of(Signs), known)._teacher_view is None  # the student's vectors are made alike
    seen = Flatten(space, ("sign",))
    narrow = make_q_module(gym.spaces.Box(-1, 1, (seen.size,)), Signs.action_space)
    other = Teacher(narrow, pipeline=ObservationPipeline(narrow.observation_space, parts=seen.parts))
    runner = make_runner(config_of(Signs), other)
    (columns,), _ = sample(runner)
    expected = Teacher(narrow, pipeline=ObservationPipeline(space, (seen,)))
    (labels,), _ = sample(make_runner(config_of(Signs), expected))
    np.testing.assert_array_equal(columns["teacher_q"], labels["teacher_q"])


class Wrapped(Walk):
    """A Dict in a Dict."""

    observation_space = gym.spaces.Dict(inner=gym.spaces.Dict(cell=Walk.observation_space, bit=gym.spaces.Discrete(2)))

    def reset(self, *, seed=None, options=None):
        cell, infos = super().reset(seed=seed)
        return {"inner": {"cell": cell, "bit": 0}}, infos

    def step(self, action):
        cell, *others = super().step(action)
        return {"inner": {"cell": cell, "bit": 1}}, *others


@pytest.mark.parametrize("is_inner", [True, False])
def test_connectors_make_vectors_of_other_parts_than_a_file_records(cluster, is_inner):
    """Of the same parts, the file makes its vectors itself."""
    shown = Wrapped.observation_space
    vectors = gym.spaces.Box(-np.inf, np.inf, (7,), np.float32)
    parts = Flatten(shown["inner"] if is_inner else shown).parts
    file = Teacher(
        make_q_module(vectors, Walk.action_space), pipeline=ObservationPipeline(vectors, parts=parts), source="file"
    )
    own = config_of(Wrapped).env_runners(env_to_module_connector=lambda env, spaces, device: FlattenObservations())
    check_teachers_fit(own, {DEFAULT_MODULE_ID: file}, (shown, Walk.action_space))
    runner = make_runner(own, file)
    check_fit(own, {DEFAULT_MODULE_ID: file}, None, runner.get_spaces())
    (columns,), _ = sample(runner)
    q = file.q_values(torch.from_numpy(columns["obs"]))
    np.testing.assert_allclose(columns["teacher_q"][columns[VALID]], q[columns[VALID]], rtol=1e-5, atol=1e-6)
    if is_inner:
        with pytest.raises(ValueError, match="'file' takes vectors that are made of"):
            check_teachers_fit(config_of(Wrapped), {DEFAULT_MODULE_ID: file}, (shown, Walk.action_space))


def test_numbers_that_are_not_finite_are_named_by_their_part(cluster):
    class Broken(Signs):
        def look(self):
            obs = super().look()
            if self.t == 5:
                obs["at"][1][0, 1] = np.nan
            return obs

    runner = make_runner(config_of(Broken), teacher_of(Broken))
    sample(runner)
    assert "as observation['at'][1] of sub-environment 0: nan at index 1 (1 of 2 components)" in runner.not_finite


def test_a_number_outside_of_its_space_is_a_failure_of_the_environment(cluster):
    class Broken(Walk):
        observation_space = gym.spaces.Discrete(3)

    with pytest.raises(EnvFailedError, match=r"'Broken' raised.*contains the number 3, but its space has 0 to 2"):
        sample(make_runner(config_of(Broken), teacher_of(Broken)))


def test_texts_in_vector_envs_of_other_processes_are_refused(cluster):
    """gymnasium's return those of the time before the first reset."""
    with pytest.raises(ValueError, match=r"Observations contain texts.*gym_env_vectorize_mode='async'"):
        make_runner(config_of(Signs).env_runners(gym_env_vectorize_mode="async"), teacher_of(Signs))


class Team(MultiAgentEnv):
    """Two agents with Signs, and one that sees a number."""

    def __init__(self, config=None):
        super().__init__()
        self.agents = self.possible_agents = ["ant", "bee", "cow"]
        self.observation_spaces = {
            "ant": Signs.observation_space,
            "bee": Signs.observation_space,
            "cow": CASES["start"],
        }
        self.action_spaces = dict.fromkeys(self.agents, Signs.action_space)
        self.signs = {name: Signs() for name in ("ant", "bee")}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        obs = {name: env.reset(seed=seed)[0] for name, env in self.signs.items()}
        return obs | {"cow": -2}, {}

    def step(self, actions):
        self.t += 1
        results = {name: env.step(actions[name]) for name, env in self.signs.items()}
        obs = {name: result[0] for name, result in results.items()} | {"cow": self.t % 4 - 2}
        rewards = {name: result[1] for name, result in results.items()} | {"cow": 1.0}
        return obs, rewards, {"__all__": self.t == 5}, {"__all__": False}, {}


@pytest.fixture
def team(tmp_path):
    space = Signs.observation_space
    signs = Teacher(teacher_of(Signs).module, pipeline=ObservationPipeline(space, (Flatten(space),)))
    cow = Teacher(make_q_module(input_space(CASES["start"]), Signs.action_space))
    config = (
        DistillDQNConfig()
        .environment(Team)
        .multi_agent(
            policies={"signs", "cow"},
            policy_mapping_fn=lambda agent, *args, **kwargs: "cow" if agent == "cow" else "signs",
        )
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=12)
        .training(train_batch_size_per_learner=16, num_steps_sampled_before_learning_starts=32, training_intensity=4)
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .distillation(teacher={"signs": signs, "cow": cow}, num_baseline_episodes=0)
        .debugging(seed=0)
    )
    return config


def test_agents_with_observations_of_many_parts(cluster, team):
    team = team.copy(copy_frozen=False)
    team.validate()
    runner = DistillMultiAgentEnvRunner(config=team, worker_index=0)
    runner.set_teacher(team.teacher)
    names = ("obs", "teacher_q", "actions", "rewards", "terminateds", "truncateds", "valid")
    refs, _ = runner.sample_columns(teacher_fraction=0.5, epsilon=0.3, names=names, num_shards=1)
    (columns,) = map(receive, refs)
    for name, space in (("signs", Signs.observation_space), ("cow", CASES["start"])):
        own = columns[name]
        assert own["obs"].shape[1:] == (flat_size(space),)
        q = team.teacher[name].q_values(torch.from_numpy(own["obs"]))
        np.testing.assert_allclose(own["teacher_q"][own[VALID]], q[own[VALID]], rtol=1e-5, atol=1e-6)
    cows = columns["cow"]["obs"]
    assert (cows.sum(-1) == 1).all()  # also the last state of an episode
    flatten = Flattener(Signs.observation_space)
    assert flatten(Signs().reset(seed=0)[0], 1).shape[1:] == columns["signs"]["obs"].shape[1:]


@pytest.mark.slow
def test_a_team_learns_and_resumes(build, team, tmp_path):
    algo = build(team)
    for _ in range(2):
        result = algo.train()
    assert all(np.isfinite(result["learners"][name]["kd_loss"]) for name in ("signs", "cow"))
    path = algo.save_to_path(str(tmp_path / "team"))
    algo.stop()
    resumed = DistillDQN.from_checkpoint(path)
    resumed.train()
    resumed.stop()
