"""Environments that fail beside what they play: results count, and the environment is named."""

import os

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical

from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.making import EnvMaker, env_maker
from rllib_kd.environments.video import check_renders
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.playing import EpsilonGreedy, RandomActions, VisitedStates, mask_view, play, play_chunk
from rllib_kd.evaluation.policies import GreedyQ, LikeliestAction
from rllib_kd.evaluation.validation import play_validation
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.observations.masked import ALL, NUMBERS, ByMethod, InDict, InInfo


class Unclosable(gym.Wrapper):
    """CartPole, which counts how often it is closed."""

    closed = 0

    def __init__(self):
        super().__init__(gym.make("CartPole-v1", render_mode="rgb_array"))

    def close(self):
        type(self).closed += 1
        raise OSError("the simulator is gone")


class Unplayable(Unclosable):
    def step(self, action):
        raise KeyError("map")


@pytest.fixture(autouse=True)
def _count_from_zero(monkeypatch):
    for env in (Unclosable, Unplayable):
        monkeypatch.setattr(env, "closed", 0)


def assert_warned_once(caplog):
    (record,) = (record for record in caplog.records if record.name.startswith("rllib_kd"))
    said = "The environment 'CartPole-v1' raised in close(): OSError: the simulator is gone"
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{said} ({__file__}:")
    assert record.getMessage().endswith(", in close)")


def test_an_environment_that_cannot_be_closed_is_played_and_named(caplog):
    returns, _ = play(Unclosable, RandomActions(2, seed=0), [0, 1, 2])
    assert returns == play(lambda: gym.make("CartPole-v1"), RandomActions(2, seed=0), [0, 1, 2])[0]
    assert Unclosable.closed == 3  # each, once
    assert_warned_once(caplog)


def test_an_environment_that_cannot_be_closed_is_validated_and_named(caplog):
    students = {"student": make_q_module(fcnet_hiddens=[8])}
    pipeline = ObservationPipeline(gym.make("CartPole-v1").observation_space)
    returns = play_validation(Unclosable, students, pipeline, num_episodes=2).returns
    assert returns == play_validation(lambda: gym.make("CartPole-v1"), students, pipeline, num_episodes=2).returns
    assert Unclosable.closed == 2
    assert_warned_once(caplog)


def test_an_error_of_close_does_not_hide_that_of_the_episode(caplog):
    with pytest.raises(RuntimeError, match=r"'CartPole-v1' raised in step\(\): KeyError: 'map'"):
        play(Unplayable, RandomActions(2, seed=0), [0])
    assert_warned_once(caplog)


@pytest.mark.parametrize(
    "check",
    [lambda: check_players_fit(Unclosable, {}), lambda: check_renders(Unclosable, "rgb_array")],
    ids=["fit", "renders"],
)
def test_an_environment_that_cannot_be_closed_passes_the_checks_before_it_plays(caplog, check):
    check()
    assert_warned_once(caplog)


def test_pictures_need_no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "")  # so that it is put back
    for name in ("DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    check_renders(lambda: gym.make("CartPole-v1", render_mode="rgb_array"), "rgb_array")
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"  # otherwise pygame prints errors about a screen


class Endless(gym.Env):
    """Each step has a reward of 1."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


class Limited(gym.Wrapper):
    """An environment that gymnasium does not make: it has no spec. The limit is below another wrapper."""

    def __init__(self, config=None):
        super().__init__(gym.wrappers.TimeLimit(gym.wrappers.TimeLimit(Endless(), 9), 12))


gym.register("Long-v0", Endless, max_episode_steps=9)


def test_an_episode_without_an_end_names_the_environment(monkeypatch):
    monkeypatch.setattr("rllib_kd.evaluation.playing._MAX_EPISODE_STEPS", 5)
    with pytest.raises(
        ValueError, match=r"^An episode of the environment 'Endless' has not ended after 5 steps\. Give"
    ):
        play(Endless, RandomActions(2, seed=0), [0])


@pytest.mark.parametrize("make_env", [lambda: gym.make("Long-v0"), env_maker("Long-v0"), env_maker(Limited)])
def test_an_episode_may_be_as_long_as_its_environment_says(monkeypatch, make_env):
    monkeypatch.setattr("rllib_kd.evaluation.playing._MAX_EPISODE_STEPS", 5)
    assert play(make_env, RandomActions(2, seed=0), [0, 1])[0] == [9.0, 9.0]


def test_one_episode_after_the_other_each_may_be_of_the_greatest_length(monkeypatch):
    monkeypatch.setattr("rllib_kd.evaluation.playing._MAX_EPISODE_STEPS", 9)
    manual = gym.vector.AutoresetMode.DISABLED
    envs = gym.vector.SyncVectorEnv([lambda: gym.make("Long-v0")], autoreset_mode=manual)
    assert play_chunk(envs, RandomActions(2, seed=0).player(), [0, 1]) == ([9.0, 9.0], 18)


def test_of_large_states_fewer_are_kept(monkeypatch):
    monkeypatch.setattr("rllib_kd.evaluation.playing._MAX_BYTES", 2_000 * 5 * 4)  # 2,000 states of five numbers
    large, small = VisitedStates(2), VisitedStates(1)
    for first in range(0, 12_000, 8):
        rows = np.arange(first, first + 8, dtype=np.float32)[:, None]
        large.add([np.repeat(rows, 4, axis=1), rows])
        small.add([rows])
    numbers, kept = large.states()
    assert 1_000 <= len(kept) <= 2_008
    np.testing.assert_array_equal(numbers[:, :1], kept)
    assert (np.diff(kept[:, 0]) > 0).all()
    assert min(np.histogram(kept, bins=10, range=(0, 12_000))[0]) > 100  # evenly
    assert 4_000 <= len(small.states()[0]) <= 10_000


@pytest.mark.parametrize("num_envs", [16, 32, 50])
def test_states_of_all_environments_are_kept_equally_often(num_envs):
    """Rows come in the order of the environments, all of which play on."""
    seen = VisitedStates(1)
    for step in range(80_000 // num_envs):
        seen.add([np.stack([np.arange(num_envs), np.full(num_envs, step)], axis=1)])
    (states,) = seen.states()
    assert 4_000 <= len(states) <= 10_000
    counts = np.bincount(states[:, 0], minlength=num_envs)
    assert counts.min() > 0.5 * len(states) / num_envs


def test_without_seeds_nothing_is_played():
    assert play(EnvMaker("E", pytest.fail, pytest.fail), RandomActions(2, seed=0), []) == ([], [])


ACTIONS = gym.spaces.Discrete(4)


@pytest.mark.parametrize("env", ALL)
def test_nobody_plays_an_illegal_action(env):
    """Each raises in the environment."""
    network = Teacher(make_q_module(NUMBERS, ACTIONS)).for_space(env().observation_space)
    players = [RandomActions(4, seed=0), GreedyQ(network), EpsilonGreedy(GreedyQ(network), 4, epsilon=0.5, seed=0)]
    for player in players:
        returns, (masks,) = play(env, player, [0, 1, 2], views=[lambda: mask_view(4)])
        assert min(returns) > 0.5
        assert masks.shape == (24, 4)
        assert masks.any(-1).all()
        assert not masks.all(-1).any()
    students = {name: make_q_module(NUMBERS, ACTIONS, seed=seed) for seed, name in enumerate(("a", "b"))}
    played = play_validation(env, students, network.pipeline or ObservationPipeline(NUMBERS), num_episodes=3)
    assert min(played.returns["a"]) > 0.5


@pytest.mark.parametrize("output", ["actions", "action_dist_inputs"])
def test_modules_of_any_kind_take_legal_actions(output):
    class Stubborn:
        action_space = ACTIONS
        is_stateful = staticmethod(lambda: False)
        get_initial_state = None

        def eval(self):
            return self

        def named_parameters(self):
            return ()

        def get_inference_action_dist_cls(self):
            return TorchCategorical

        def forward_inference(self, batch):
            pays = batch["obs"]  # the highest one is illegal
            return {output: pays.argmax(-1) if output == "actions" else pays}

    policy = LikeliestAction(Stubborn(), ObservationPipeline(NUMBERS), to_env=lambda actions, spaces: actions)
    returns, _ = play(InInfo, policy, [0, 1])
    assert min(returns) > (0.5 if output == "actions" else 4.0)


@pytest.mark.parametrize("env", [InDict, InInfo, ByMethod])
@pytest.mark.parametrize(
    ("legal", "message"),
    [
        ([0, 0, 0, 0], "is .*(0|False), (0|False).*, expected zeros and ones"),
        ([1, 1], r"has the shape \[2\], expected \[4\]"),
    ],
)
def test_a_mask_without_sense_names_the_environment(env, legal, message):
    class Broken(env):
        def look(self):
            pays = super().look()
            self.legal = np.array(legal, np.int8)
            return pays

    expected = f"environment 'Broken' has a mask .* after reset.*{message}.*Return a mask"
    if env is InDict and len(legal) == 2:  # a vector env cannot hold such an observation
        expected = r"environment 'Broken' returned, in reset\(\), an observation\['action_mask'\] of shape \(2,\)"
    with pytest.raises(EnvFailedError, match=expected):
        play(Broken, RandomActions(4, seed=0), [0])


class Guessing(gym.Env):
    """Each step pays 1 if the action is the number that the environment draws."""

    observation_space, action_space = NUMBERS, ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(NUMBERS.shape, np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = float(action == self.np_random.integers(4))
        return np.zeros(NUMBERS.shape, np.float32), reward, self.steps == 100, False, {}


@pytest.mark.parametrize("seed", [0, 1_750_000_000])
def test_a_random_policy_does_not_know_what_the_environment_draws(seed):
    """The environment makes its generator from the same seed."""
    always = Teacher(make_q_module(NUMBERS, ACTIONS)).for_space(NUMBERS)
    random = RandomActions(4, seed=seed), EpsilonGreedy(GreedyQ(always), 4, epsilon=1.0, seed=seed)
    for player in random:
        (episode_return,), _ = play(Guessing, player, [seed])
        assert 10 < episode_return < 40  # 3.5 standard deviations around 25
