"""A teacher for each policy of RLlib's own multi-agent CartPole."""

import re
from typing import ClassVar

import numpy as np
import pytest
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole

from rllib_kd import DistillDQN, DistillDQNConfig, load_teacher
from rllib_kd.env_runner.column_sampler import NUM_NOT_FINITE_LIFETIME, NUM_STATES_DROPPED_LIFETIME
from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.returned import NotFiniteError
from rllib_kd.observations.frames import VALID
from rllib_kd.wire import receive
from tests.conftest import make_q_module

POLICIES = ("left", "right")


def policy_of(agent_id, *args, **kwargs):
    return POLICIES[agent_id % 2]


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory):
    return make_q_module(seed=5).save_to_path(str(tmp_path_factory.mktemp("teachers") / "other"))


@pytest.fixture
def config(small_teacher, other_teacher):
    return (
        DistillDQNConfig()
        .environment(MultiAgentCartPole, env_config={"num_agents": 3})
        .multi_agent(policies=set(POLICIES), policy_mapping_fn=policy_of)
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=16)
        .training(train_batch_size_per_learner=32, num_steps_sampled_before_learning_starts=32, training_intensity=8)
        .reporting(min_sample_timesteps_per_iteration=200)
        .rl_module(model_config={"fcnet_hiddens": [8], "fcnet_activation": "relu"})
        .distillation(teacher={"left": small_teacher, "right": other_teacher}, num_baseline_episodes=0)
        .debugging(seed=0)
    )


def shards_of(config, num_shards=1, worker_index=0, **kwargs):
    config = config.copy(copy_frozen=False)
    config.validate()
    runner = DistillMultiAgentEnvRunner(config=config, worker_index=worker_index)
    runner.set_teacher({name: load_teacher(path) for name, path in config.teacher.items()})
    names = ("obs", "teacher_q", "actions", "rewards", "terminateds", "truncateds", "valid")
    settings = {"teacher_fraction": 0.5, "epsilon": 0.3, "names": names, "num_shards": num_shards} | kwargs
    refs, metrics = runner.sample_columns(**settings)
    return runner, [receive(ref) for ref in refs], metrics


def test_rows_are_labelled_by_the_teacher_of_their_policy(cluster, config):
    import torch

    _, (columns,), _ = shards_of(config)
    for name in POLICIES:
        own = columns[name]
        valid = own[VALID]
        expected = load_teacher(config.teacher[name]).q_values(torch.from_numpy(own["obs"]))
        np.testing.assert_allclose(own["teacher_q"][valid], expected.numpy()[valid], rtol=1e-5, atol=1e-5)
        # CartPole moves by what was chosen: row i + 1 is the successor of row i.
        follows = np.flatnonzero(valid[:-1])
        velocity = own["obs"][follows + 1, 1] - own["obs"][follows, 1]
        assert ((velocity > 0) == (own["actions"][follows] == 1)).all()
        assert (own["rewards"][valid] == 1.0).all()
    # Three agents, of whom two are "left".
    assert columns["left"][VALID].sum() > columns["right"][VALID].sum()


def test_without_td_only_states_in_which_an_action_was_taken_are_sent(cluster, config):
    _, (columns,), _ = shards_of(config, names=("obs", "teacher_q"))
    assert set(columns["left"]) == {"obs", "teacher_q"}
    assert (np.abs(columns["left"]["teacher_q"]).sum(-1) > 0).all()


def test_shards_hold_agents_of_their_own(cluster, config):
    _, shards, _ = shards_of(config, num_shards=2)
    together = [len(shard["left"][VALID]) for shard in shards]
    assert all(together)


def test_the_greedy_teachers_act_where_beta_is_1(cluster, config):
    import torch

    _, (columns,), _ = shards_of(config, teacher_fraction=1.0, epsilon=0.0)
    for name in POLICIES:
        own = columns[name]
        expected = load_teacher(config.teacher[name]).q_values(torch.from_numpy(own["obs"])).argmax(-1).numpy()
        assert (own["actions"] == expected)[own[VALID]].all()


@pytest.mark.slow
def test_each_policy_learns_from_its_teacher(config, build, tmp_path):
    config.env_runners(num_env_runners=1).learners(num_learners=1, num_cpus_per_learner=1)
    algo = build(config.distillation(td_coeff=1.0))
    first = None
    for _ in range(8):
        result = algo.train()
        losses = {name: result["learners"][name].get("kd_loss") for name in POLICIES}
        first = first or (losses if all(losses.values()) else None)
    assert all(losses[name] < first[name] for name in POLICIES)
    students = result["distillation"]["students"]
    assert {name: own["student_params"] for name, own in students.items()} == {"left": 58, "right": 58}
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    resumed = DistillDQN.from_checkpoint(path)
    assert resumed.config.teacher == {"left": "checkpoint:teacher", "right": "checkpoint:teacher"}
    resumed.train()
    resumed.stop()


class Seeded(MultiAgentCartPole):
    seeds: ClassVar = []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def test_environments_of_all_env_runners_have_seeds_of_their_own(cluster, config):
    seeds = []
    for worker_index in range(4):
        Seeded.seeds.clear()
        runner, *_ = shards_of(config.environment(Seeded), worker_index=worker_index)
        seeds.append(Seeded.seeds[-2:])
        runner.play_episodes(2, teacher=True)
        assert Seeded.seeds[-2:] == seeds[-1]
    assert seeds == [[0, 1], [1, 2], [3, 4], [5, 6]]


def test_compression_is_of_each_teacher(config, build, tmp_path):
    wide = make_q_module(fcnet_hiddens=[64, 64]).save_to_path(str(tmp_path / "wide"))
    config = config.distillation(teacher={**config.teacher, "right": wide}, compression=0.2)
    config._model_config = {"fcnet_activation": "relu"}
    students = build(config).train()["distillation"]["students"]
    for own in students.values():
        assert 0.1 < own["compression"] <= 0.2
    assert students["right"]["student_params"] > 2 * students["left"]["student_params"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("cartpole", r"each policy that learns needs a teacher of its own.*'left'.*Got 'cartpole'"),
        ({"left": "cartpole", "up": "cartpole"}, r"policies of \['left', 'right'\]. Got \['left', 'up'\]"),
        ({"left": "cartpole"}, r"Set multi_agent\(policies_to_train=\['left'\]\)"),
    ],
)
def test_teachers_must_fit_the_policies(config, teacher, message):
    with pytest.raises(ValueError, match=message):
        config.distillation(teacher=teacher).validate()


def test_policies_to_train_must_be_names(config):
    with pytest.raises(ValueError, match=re.escape("""to be trained are ["['left', 'right']"].""")):
        config.multi_agent(policies_to_train=[["left", "right"]]).validate()


def test_a_function_may_name_the_policies_to_train(config, small_teacher):
    config.multi_agent(policies_to_train=lambda policy, batch=None: policy == "left")
    with pytest.raises(
        ValueError, match=r"with a teacher are \['left', 'right'\], but those to be trained are \['left'\]"
    ):
        config.validate()
    config.distillation(teacher={"left": small_teacher}).validate()
    with pytest.raises(ValueError, match=r"a function of a name and a batch, .* It raised TypeError"):
        config.multi_agent(policies_to_train=lambda policy, batch: len(batch)).validate()


@pytest.mark.slow
def test_a_policy_without_a_teacher_acts_and_does_not_learn(config, build, small_teacher):
    config.multi_agent(policies_to_train=["left"]).distillation(teacher={"left": small_teacher})
    algo = build(config)

    def weights(name):
        return [p.numpy().copy() for p in algo.learner_group._learner.module[name].state_dict().values()]

    before = weights("right")
    for _ in range(4):
        result = algo.train()
    assert set(result["distillation"]["students"]) == {"left"}
    assert algo.get_copies() == {"left": algo.get_module("left")}
    assert all((a == b).all() for a, b in zip(weights("right"), before, strict=True))


def test_teachers_by_policy_need_policies():
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher={"left": "cartpole"})
    with pytest.raises(ValueError, match="no such policies"):
        config.validate()


@pytest.mark.parametrize(
    ("how", "said"), [("rewards", "reward[1] of sub-environment"), ("observations", "observation[1]")]
)
def test_numbers_that_are_not_finite_are_named_with_their_agent(cluster, config, how, said):
    class Broken(MultiAgentCartPole):
        def step(self, actions):
            obs, rewards, *others = super().step(actions)
            values = rewards if how == "rewards" else obs
            if 1 in values:  # the agent has not ended
                values[1] = values[1] * np.nan
            return obs, rewards, *others

    runner, (columns,), metrics = shards_of(config.environment(Broken))
    assert f"as {said}" in runner.not_finite
    assert f"{__file__}:{Broken.step.__code__.co_firstlineno}, in step" in runner.not_finite
    num_right = int(metrics["num_module_steps_sampled"]["right"].peek())  # of the agent 1 alone
    assert metrics[NUM_STATES_DROPPED_LIFETIME].peek() == metrics[NUM_NOT_FINITE_LIFETIME[how]].peek() == num_right > 0
    assert metrics[NUM_NOT_FINITE_LIFETIME["labels"]].peek() == 0
    assert not columns["right"][VALID].any()
    assert columns["left"][VALID].any()
    with pytest.raises(NotFiniteError, match="from step"):
        runner.play_episodes(1, teacher=True)


class Broken(MultiAgentCartPole):
    """Its second step fails: by an observation of another shape than declared, or by an error."""

    num_steps = 0

    def __init__(self, config):
        super().__init__(config)
        self._returns_another_shape = config["returns_another_shape"]

    def step(self, actions):
        """Step all agents."""
        self.num_steps += 1
        obs, *others = super().step(actions)
        if self._returns_another_shape and self.num_steps > 1:
            return {agent: value[:3] for agent, value in obs.items()}, *others
        if not self._returns_another_shape:
            raise KeyError("no such pole")
        return obs, *others


@pytest.mark.parametrize(
    ("returns_another_shape", "said"),
    [
        (True, r"in step\(\) or reset\(\), an observation\[0\] of shape \(3,\) .* shape \(4,\).*in step"),
        (False, r"'Broken' raised in step\(\): KeyError: 'no such pole' \(.*test_multi_agent.py"),
    ],
)
def test_environments_that_fail_are_named_with_their_line(cluster, config, returns_another_shape, said):
    """Networks failed on the shape, and RLlib's check takes every error for an environment of gym."""
    config.environment(Broken, env_config={"num_agents": 2, "returns_another_shape": returns_another_shape})
    with pytest.raises(EnvFailedError, match=said):
        shards_of(config)


class Dying(MultiAgentCartPole):
    """Its simulator is gone, or crashes at every so many-th step."""

    num_made = 0

    def __init__(self, config):
        super().__init__(config)
        self.every, self.num_steps = config["every"], 0
        Dying.num_made += 1

    def step(self, action_dict):
        self.num_steps += 1
        if self.num_steps % self.every == 0:
            raise RuntimeError("the simulator has crashed")
        return super().step(action_dict)


@pytest.mark.timeout(300)
def test_an_environment_is_replaced_as_long_as_something_whole_comes_between(cluster, config):
    config.environment(Dying, env_config={"num_agents": 3, "every": 60})
    config.fault_tolerance(restart_failed_sub_environments=True)
    runner, *_ = shards_of(config)
    Dying.num_made = 0
    runner.play_episodes(40, teacher=False)
    assert Dying.num_made > 10 * 2
    config.environment(env_config={"every": 2})
    with pytest.raises(EnvFailedError, match="has replaced the environment 10 times in a row"):
        shards_of(config)


class Unequal(MultiAgentCartPole):
    """Its episodes are of three steps in one environment, and of 20 in the next."""

    num_made = num_steps = 0

    def __init__(self, config):
        super().__init__(config)
        self.length = (3, 20)[Unequal.num_made % 2]
        Unequal.num_made += 1

    def reset(self, **kwargs):
        self.num_steps = 0
        return super().reset(**kwargs)

    def step(self, action_dict):
        self.num_steps += 1
        obs, infos = MultiAgentCartPole.reset(self)
        ends, nothing = self.num_steps == self.length, dict.fromkeys(obs, False)
        return obs, dict.fromkeys(obs, 1.0), {**nothing, "__all__": ends}, {**nothing, "__all__": False}, infos


@pytest.mark.parametrize(("num_episodes", "expected"), [(1, [3]), (5, [3, 3, 3, 20, 20])])
def test_short_baseline_episodes_count_no_more_than_long_ones(cluster, config, num_episodes, expected):
    Unequal.num_made = 0
    runner, *_ = shards_of(config.environment(Unequal))
    for _ in range(2):
        returns = runner.play_episodes(num_episodes, teacher=True)
        assert sorted(returns["right"]) == expected  # of one agent
        assert sorted(returns["left"]) == [2 * length for length in expected]  # of two


class Endless(MultiAgentCartPole):
    """Its episodes end only at every other reset, after ten steps."""

    num_resets = num_steps = 0

    def reset(self, **kwargs):
        self.num_resets, self.num_steps = self.num_resets + 1, 0
        return super().reset(**kwargs)

    def step(self, action_dict):
        self.num_steps += 1
        obs, infos = MultiAgentCartPole.reset(self)
        ends = self.num_steps == 10 and self.num_resets % 2 == 0
        nothing = dict.fromkeys(obs, False)
        return obs, dict.fromkeys(obs, 1.0), {**nothing, "__all__": ends}, {**nothing, "__all__": False}, infos


@pytest.mark.timeout(300)
def test_a_baseline_episode_that_does_not_end_is_cut_with_a_warning(cluster, config, monkeypatch, caplog):
    monkeypatch.setattr("rllib_kd.env_runner.whole_episodes._LEAST_LIMIT", 50)
    runner, *_ = shards_of(config.environment(Endless).env_runners(num_envs_per_env_runner=1))
    returns = runner.play_episodes(4, teacher=False)
    assert sorted(returns["right"]) == [10.0, 10.0, 50.0, 50.0]  # of one agent
    assert sorted(returns["left"]) == [20.0, 20.0, 100.0, 100.0]  # of two
    assert "2 episodes of the random policies had not ended after 50 steps" in caplog.text
    assert "step" not in vars(runner.env.envs[0])


@pytest.mark.parametrize("method", ["add_module", "remove_module"])
def test_policies_stay_those_of_the_config(method):
    with pytest.raises(
        ValueError, match=rf"^{method}\(\) is not supported: .* Name all policies when the algorithm is"
    ):
        getattr(DistillDQN.__new__(DistillDQN), method)("left")
