"""Policies of every origin play as RLlib plays them."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import tree
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline, NormalizeAndClipActions
from ray.rllib.utils.spaces.space_utils import unsquash_action

from rllib_kd.checkpoints.connectors import to_env_of
from rllib_kd.evaluation.comparing import compare, evaluate
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ, LikeliestAction
from rllib_kd.evaluation.sources import open_source
from rllib_kd.observations.pipeline import ObservationPipeline, RLlibConnectors, Shown
from tests.conftest import make_q_module
from tests.rllib_checkpoints import KINDS, build_dqn

NUMBERS = gym.spaces.Box(-1, 1, (2,), np.float32)
LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 5, "fcnet_hiddens": [8]}
OTHERS = {
    "PPO": lambda: PPOConfig().environment("CartPole-v1").rl_module(model_config={"fcnet_hiddens": [8]}),
    "PPO, recurrent": lambda: PPOConfig().environment("CartPole-v1").rl_module(model_config=LSTM),
    "PPO, continuous": lambda: PPOConfig().environment("Pendulum-v1").rl_module(model_config={"fcnet_hiddens": [8]}),
    "SAC": lambda: SACConfig().environment("Pendulum-v1"),
}


def returns_by_rllib(algo, seed, num_episodes=2):
    """RLlib's own EnvRunner, without exploration, and with filters that stay."""
    runner = algo.env_runner
    for connector in runner._env_to_module.connectors:
        if hasattr(connector, "_update_stats"):
            connector._update_stats = False
    returns = []
    for i in range(num_episodes):
        runner._seed = seed + i
        (episode,) = runner.sample(num_episodes=1, explore=False)
        returns.append(episode.get_return())
    return returns


@pytest.mark.parametrize(
    "kind", ["PPO", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*OTHERS][1:]), *KINDS]
)
def test_returns_are_those_of_rllibs_env_runner(cluster, tmp_path, kind):
    if kind in OTHERS:
        algo = OTHERS[kind]().env_runners(num_env_runners=0).debugging(seed=0).build_algo()
    else:
        algo = build_dqn(kind)
    path = algo.save_to_path(str(tmp_path / "algo"))
    running = evaluate(algo, num_episodes=2, seed=5).returns
    expected = returns_by_rllib(algo, seed=5)
    algo.stop()
    env = KINDS[kind]["env"] if kind in KINDS else None
    restored = evaluate(path, env, num_episodes=2, seed=5, trust_checkpoint=kind == "own").returns
    assert running == pytest.approx(expected, rel=1e-4)
    assert restored == pytest.approx(expected, rel=1e-4)


def test_what_has_q_values_takes_the_best_action(small_teacher):
    assert isinstance(open_source(small_teacher).policy(), GreedyQ)
    assert isinstance(open_source(make_q_module()).policy(), GreedyQ)
    assert open_source("cartpole").environment() == ("CartPole-v1", {})
    assert open_source(make_q_module()).environment() == (None, {})


def test_a_policy_with_logits_is_evaluated_and_compared(cluster, tmp_path):
    algo = OTHERS["PPO"]().env_runners(num_env_runners=0).build_algo()
    path = algo.save_to_path(str(tmp_path / "algo"))
    assert isinstance(open_source(algo).policy(), LikeliestAction)
    algo.stop()
    policy = open_source(path).policy()
    assert isinstance(policy, LikeliestAction)
    actor = 4 * 8 + 8 + 8 * 2 + 2
    assert policy.num_parameters == open_source(path, trust_checkpoint=True).policy().num_parameters == actor
    assert compare("cartpole", path, num_episodes=1).regret_unit == "return units"
    assert compare(path, "cartpole", num_episodes=1).regret_unit == "nats"


def test_a_recurrent_policy_is_evaluated_and_compared(cluster, tmp_path):
    algo = OTHERS["PPO, recurrent"]().env_runners(num_env_runners=0).build_algo()
    path = algo.save_to_path(str(tmp_path / "algo"))
    algo.stop()
    compared = compare("cartpole", path, num_episodes=3)
    assert compared.student.returns == evaluate(path, num_episodes=3).returns  # by RLlib's own passes


class Decided:
    """A module that takes the same action always."""

    named_parameters = staticmethod(tuple)

    def __init__(self, action_space, actions, *, is_recurrent=False):
        self.action_space, self._actions = action_space, actions
        self.is_stateful = lambda: is_recurrent
        self.get_initial_state = lambda: {"h": np.zeros(1, np.float32)}

    def eval(self):
        return self

    def forward_inference(self, batch):
        axes = batch["obs"].shape[:-1]  # with time, if it is recurrent
        actions = tree.map_structure(lambda part: part.expand(*axes, *part.shape), self._actions)
        return {"actions": actions, "state_out": batch.get("state_in")}


def test_a_state_that_is_not_finite_begins_anew():
    module, states = Decided(gym.spaces.Discrete(2), torch.tensor(0), is_recurrent=True), []

    def forward_inference(batch):
        states.append(batch["state_in"]["h"].item())
        return {"actions": torch.zeros(1, 1), "state_out": {"h": batch["state_in"]["h"] + batch["obs"][:, 0, :1]}}

    module.forward_inference = forward_inference
    act = LikeliestAction(module, ObservationPipeline(NUMBERS), to_env=lambda actions, spaces: actions).player()
    for number, first in ((1.0, True), (np.nan, False), (2.0, False), (3.0, False), (4.0, True)):
        act(Shown(np.full((1, 2), number, np.float32), np.array([first])))
    assert states == [0.0, 1.0, 0.0, 2.0, 0.0]


def taken(policy):
    """The action that an environment gets."""
    shown = Shown(np.zeros((1, 2), np.float32), np.ones(1, bool))
    return tree.map_structure(lambda part: part[0].tolist(), policy.player()(shown))


@pytest.mark.parametrize(
    ("normalizes", "clips", "expected"),
    [
        (True, True, [2.0, -1.0]),
        (True, False, [2.0, -1.0]),
        (False, True, [0.5, -1.0]),
        (False, False, [0.5, -9.0]),
    ],
)
def test_actions_are_scaled_or_clipped_as_in_training(normalizes, clips, expected):
    actions = gym.spaces.Box(-1, 3, (2,), np.float32)
    connector = NormalizeAndClipActions(normalize_actions=normalizes, clip_actions=clips)
    to_env = to_env_of(ModuleToEnvPipeline(NUMBERS, actions, connectors=[connector]))
    module = Decided(actions, torch.tensor([0.5, -9.0]))
    assert taken(LikeliestAction(module, ObservationPipeline(NUMBERS), to_env=to_env)) == expected


class Matched(gym.Env):
    """Pays for each step in which the action is the second turn, and a push of [3, 0]."""

    observation_space = NUMBERS
    action_space = gym.spaces.Dict(turn=gym.spaces.Discrete(3), push=gym.spaces.Tuple([gym.spaces.Box(0, 4, (2,))]))

    def reset(self, *, seed=None, options=None):
        self.left = 3
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action in self.action_space
        self.left -= 1
        reward = action["turn"] == 2 and action["push"][0].tolist() == [3.0, 0.0]
        return np.zeros(2, np.float32), float(reward), self.left == 0, False, {}


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_actions_may_have_parts(is_recurrent):
    decided = {"turn": torch.tensor(2), "push": (torch.tensor([0.5, -1.0]),)}
    module = Decided(Matched.action_space, decided, is_recurrent=is_recurrent)
    connectors = RLlibConnectors(EnvToModulePipeline(NUMBERS, Matched.action_space, connectors=[]))
    for stages in (), (connectors,):
        player = LikeliestAction(module, ObservationPipeline(NUMBERS, stages), to_env=unsquash_action)
        assert play(Matched, player, [0, 1])[0] == [3.0, 3.0]


def test_epsilon_needs_discrete_actions(cluster):
    algo = OTHERS["PPO, continuous"]().env_runners(num_env_runners=0).build_algo()
    with pytest.raises(ValueError, match=r"`epsilon` needs discrete actions, but the policy has Box"):
        evaluate(algo, num_episodes=1, epsilon=0.1)
    algo.stop()


def test_films_of_the_first_episodes(tmp_path):
    student, env = make_q_module(), "CartPole-v1"  # its episodes are short
    report = evaluate(student, env, num_episodes=3, seed=7, video_dir=tmp_path / "films", num_videos=2)
    assert report.returns == evaluate(student, env, num_episodes=3, seed=7).returns
    films = sorted((tmp_path / "films").iterdir())
    assert [film.name for film in films] == ["seed-7-episode-0.mp4", "seed-8-episode-0.mp4"]
    assert all(film.stat().st_size > 1000 for film in films)
    with pytest.raises(ValueError, match="`num_videos` must be an integer of at least 1, got 0"):
        evaluate(student, env, num_episodes=3, video_dir=tmp_path / "none", num_videos=0)


def test_an_environment_that_does_not_render_says_so(tmp_path):
    class Dark(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def __init__(self, config):
            pass

    class Unasked(Dark):
        def __init__(self, size=1):
            pass

    class Blank(Dark):
        def __init__(self, config):
            self.render_mode = config.get("render_mode")

        def reset(self, *, seed=None, options=None):
            return np.zeros(4, np.float32), {}

        def render(self):
            return None

    for env, message in (
        (Dark, "cannot be rendered as 'rgb_array': its render_mode is None"),
        (lambda config: Unasked(**config), "cannot be made: TypeError: .* keyword argument 'render_mode' .*"),
        (Blank, r"returns None from render\(\), which is no picture"),
    ):
        with pytest.raises(ValueError, match=rf"{message}\. Take `render_mode` in the constructor, or config\["):
            evaluate(make_q_module(), env, num_episodes=1, video_dir=tmp_path)
    with pytest.raises(ValueError, match="but both were given"):
        evaluate("cartpole", num_episodes=1, video_dir=tmp_path, render=True)


def test_nobody_says_in_which_environment():
    with pytest.raises(ValueError, match=r"does not record its environment.*--env on the command line\.$"):
        evaluate(make_q_module(), num_episodes=1)


def test_an_environment_by_the_path_of_its_class():
    stranger = make_q_module(gym.spaces.Box(0, 1, (8, 8, 1)), gym.spaces.Discrete(3), conv_filters=[[2, 8, 8]])
    assert len(evaluate(stranger, "tests.rllib_checkpoints.Frames", num_episodes=2).returns) == 2
    with pytest.raises(ValueError, match=r"no environment class 'tests\.nowhere\.Env'"):
        evaluate(stranger, "tests.nowhere.Env", num_episodes=1)
