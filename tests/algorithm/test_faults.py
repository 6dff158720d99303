"""What breaks on one machine: EnvRunners, environments and teachers. Real processes are killed; nodes in cluster/."""

import itertools
import os
import re
import signal
import sys
import threading
import time
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.env.env_runner import NUM_ENV_STEP_FAILURES_LIFETIME

from rllib_kd import DistillDQNConfig, compare
from rllib_kd.env_runner.column_sampler import NUM_STATES_DROPPED_LIFETIME
from rllib_kd.environments.failures import EnvFailedError, ExitedError, SamplingFailedError
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.loading import load_teacher
from rllib_kd.wire import TEACHER_Q

FRESH_SEED = 1_000_000


class Faulty(gym.Wrapper):
    """CartPole that breaks at some steps, by its config: which worker, after how many steps, and how.

    How: "raise", "hang", "slow", "nan_obs", "nan_reward" (every seventh step from then on), or "shape".
    """

    def __init__(self, config):
        super().__init__(gym.make("CartPole-v1"))
        self._how = config["how"]
        self._every = config.get("every")
        self._after = config["after"] if getattr(config, "worker_index", 0) in config["workers"] else 10**9
        self._steps = 0

    def step(self, action):
        self._steps += 1
        obs, reward, terminated, truncated, info = super().step(action)
        if self._steps > self._after:
            match self._how:
                case "raise" if self._steps % (self._every or 40) == 0:
                    raise RuntimeError("the simulator has crashed")
                case "hang":
                    time.sleep(3_600)
                case "slow":
                    time.sleep(0.05)
                case "nan_obs" if self._steps % (self._every or 7) == 0:
                    obs = np.full_like(obs, np.nan)
                case "nan_reward" if self._steps % (self._every or 7) == 0:
                    reward = np.nan
                case "shape":
                    obs = obs[:3]
        return obs, reward, terminated, truncated, info


def faulty(how, *, after=0, workers=(0, 1)):
    return {"how": how, "after": after, "workers": workers}


def config(num_env_runners=0, **env_config) -> DistillDQNConfig:
    config = (
        DistillDQNConfig()
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4, rollout_fragment_length=16)
        .training(num_steps_sampled_before_learning_starts=128, training_intensity=8, train_batch_size_per_learner=64)
        .reporting(min_sample_timesteps_per_iteration=256)
        .rl_module(model_config={"fcnet_hiddens": [16], "fcnet_activation": "relu"})
        .distillation(teacher="cartpole", num_baseline_episodes=0, teacher_fraction=[[0, 1.0], [4_000, 0.0]])
        .debugging(seed=0)
    )
    return config.environment(Faulty, env_config=env_config) if env_config else config.environment("CartPole-v1")


def pids(algo):
    return algo.env_runner_group.foreach_env_runner(lambda env_runner: os.getpid(), local_env_runner=False)


def assert_counters(rows):
    """Env steps only grow, and no more is learned from than the replay ratio says."""
    steps = [row["num_env_steps_sampled_lifetime"] for row in rows]
    assert all(later >= earlier for earlier, later in pairwise(steps))
    assert steps[-1] > steps[0]
    made = rows[-1]["distillation"]["num_gradient_steps_lifetime"]
    assert 8 * (steps[-1] - 2 * 128) / 64 - 8 <= made <= 8 * steps[-1] / 64


def is_as_good_as_its_teacher(algo):
    result = compare("cartpole", algo, "CartPole-v1", num_episodes=20, seed=FRESH_SEED)
    return result.return_ratio >= 0.95


# --- EnvRunners -------------------------------------------------------------------------------------------------------


@pytest.mark.slow(as_many=5)
def test_env_runners_killed_in_mid_sample_come_back_and_the_student_reaches_its_target(build):
    """All of them; tests/cluster/test_faults.py kills one."""
    algo = build(config(num_env_runners=2))
    rows = [algo.train()]
    doomed = pids(algo)
    # Each EnvRunner has requests under way at any moment of an iteration.
    assert len(algo._sampling.requests) > 0

    def kill():
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(0.01, kill)
    timer.start()
    rows.append(algo.train())
    timer.join()
    while algo.env_runner_group.num_healthy_remote_workers() < 2 or set(pids(algo)) & set(doomed):
        rows.append(algo.train())
        assert len(rows) < 300
    while rows[-1]["num_env_steps_sampled_lifetime"] < 8_000:
        rows.append(algo.train())
    assert_counters(rows)
    kept = len(algo.learner_group._learner.groups["default_policy"].replay)
    # What came from the dead, but was lost with them: two requests of 64 env steps each.
    assert kept <= rows[-1]["num_env_steps_sampled_lifetime"] <= kept + 2 * 2 * 64
    has_teacher = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: env_runner._teacher is not None, local_env_runner=False
    )
    assert has_teacher == [True, True]
    assert is_as_good_as_its_teacher(algo)


@pytest.mark.slow
def test_an_env_runner_whose_environment_hangs_keeps_nobody_waiting(build, caplog):
    algo = build(config(2, **faulty("hang", after=40, workers=(1,))).env_runners(sample_timeout_s=1.0))
    rows = []
    while not rows or rows[-1]["num_env_steps_sampled_lifetime"] < 3_000:
        rows.append(algo.train())
        assert len(rows) < 100
    assert_counters(rows)
    algo.stop()
    assert "did not finish its sample" in caplog.text  # and is killed, instead of keeping stop() waiting


@pytest.mark.slow
def test_an_evaluation_env_runner_that_comes_back_plays_for_the_student_in_turn(build):
    settings = config().distillation(students={"one": {"fcnet_hiddens": [4]}, "two": {"fcnet_hiddens": [8]}})
    algo = build(settings.evaluation(evaluation_num_env_runners=1, evaluation_duration=1))
    algo.train()
    algo.evaluate()
    group = algo.eval_env_runner_group
    (pid,) = group.foreach_env_runner(lambda env_runner: os.getpid(), local_env_runner=False)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while not algo.restore_env_runners(group):
        group.foreach_env_runner(lambda env_runner: None, local_env_runner=False)  # at which RLlib notices its death
        assert time.monotonic() < deadline
    acts = group.foreach_env_runner(lambda runner: runner.module is runner.family["two"], local_env_runner=False)
    assert acts == [True]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_evaluation_that_hangs_does_not_keep_the_next_student_waiting(build, caplog, monkeypatch):
    monkeypatch.setattr("rllib_kd.algorithm.algorithm.SECONDS_TO_ANSWER", 2.0)
    settings = config().distillation(students={"one": {"fcnet_hiddens": [4]}, "two": {"fcnet_hiddens": [8]}})
    hangs = {"env": Faulty, "env_config": faulty("hang")}
    settings.evaluation(evaluation_num_env_runners=1, evaluation_sample_timeout_s=2.0, evaluation_config=hangs)
    algo = build(settings)
    algo.train()
    algo.evaluate()
    assert "EnvRunner 1 did not answer within 2 s, so it is killed" in caplog.text


@pytest.mark.slow
def test_with_a_bound_on_staleness_one_that_hangs_is_given_up_after_the_timeout(build, caplog):
    settings = config(2, **faulty("hang", after=40, workers=(1,))).env_runners(sample_timeout_s=1.0)
    algo = build(settings.distillation(max_staleness=0))
    rows = [algo.train()]
    while rows[-1]["num_env_steps_sampled_lifetime"] < 1_000:
        rows.append(algo.train())
        assert len(rows) < 100
    assert "did not arrive within sample_timeout_s=1.0" in caplog.text


@pytest.mark.slow
def test_a_slow_env_runner_does_not_slow_the_fast_one(build):
    algo = build(config(2, **faulty("slow", workers=(1,))))
    rows = [algo.train()]
    while rows[-1]["num_env_steps_sampled_lifetime"] < 4_000:
        rows.append(algo.train())
    assert_counters(rows)
    sampled = algo.env_runner_group.foreach_env_runner(
        lambda runner: max(each.get_wrapper_attr("_steps") for each in runner.env.unwrapped.envs),
        local_env_runner=False,
    )
    assert sampled[1] > 2 * sampled[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_ends_with_the_reason_when_all_are_dead_and_none_is_restarted(build):
    settings = config(2, **faulty("raise", after=300, workers=(1, 2)))
    algo = build(settings.fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=True))

    def train():
        while True:
            algo.train()

    with pytest.raises(SamplingFailedError, match=r"All 2 EnvRunners have died, .*the simulator has crashed"):
        train()


# --- Environments -----------------------------------------------------------------------------------------------------


def test_an_environment_that_raises_is_made_anew_where_one_asks_for_it(build):
    settings = config(**faulty("raise"))
    algo = build(settings.fault_tolerance(restart_failed_sub_environments=True))
    rows = [algo.train() for _ in range(4)]
    assert_counters(rows)
    assert rows[-1]["env_runners"][NUM_ENV_STEP_FAILURES_LIFETIME] > 0


def test_an_environment_that_raises_is_otherwise_an_error_with_its_reason(build):
    algo = build(config(**faulty("raise")))
    with pytest.raises(RuntimeError) as raised:
        algo.train()
    assert "the simulator has crashed" in str(raised.value.__cause__)


def assert_names_the_numbers(text, what):
    """Once, with the environment, the components and the line that they came from; and the teacher is not to blame."""
    assert text.count("'Faulty' returned numbers that are not finite from step") == 1
    components = " at index 0, 1, 2, 3 (4 of 4 components)" if what == "observation" else ""
    (said,) = [line for line in text.splitlines() if "numbers that are not finite" in line]
    assert re.search(f"as {what} of sub-environment [0-3]: nan{re.escape(components)} \\(", said)
    assert f"{__file__}:{Faulty.step.__code__.co_firstlineno}, in step" in said
    assert "the teacher" not in text


def assert_learns_from_finite_states(algo):
    """What is drawn from the replay, and what the statistics of observations and labels have seen."""
    group = algo.learner_group._learner.groups["default_policy"]
    drawable = group.replay.spread(10**9)
    assert len(drawable) > 500
    rows = group.gather(drawable, uses_td=group.config.uses_td)
    assert all(torch.isfinite(column).all() for column in rows.values())
    assert group.obs_statistics.num_inputs == (0 if group.config.uses_td else 4)
    assert np.isfinite(group.obs_statistics.get_state()["sums"]).all()
    assert np.isfinite(group.statistics.get_state()["sums"]).all()


@pytest.mark.parametrize(
    ("how", "what", "model"),
    [("nan_obs", "observation", {}), ("nan_reward", "reward", {}), ("nan_reward", "reward", {"use_lstm": True})],
)
def test_who_never_gave_finite_numbers_is_named(build, how, what, model):
    algo = build(config(**faulty(how) | {"every": 1}).rl_module(model_config={"fcnet_hiddens": [16], **model}))
    with pytest.raises(ValueError, match=f"{what}s of the environment 'Faulty' are not finite in") as raised:
        algo.train()
    assert str(raised.value).startswith("There is nothing to learn from: ")
    assert_names_the_numbers(str(raised.value), what)


def test_a_teacher_that_never_gives_finite_numbers_is_named(build):
    teacher = load_teacher("cartpole")
    teacher.__class__ = Ignorant
    algo = build(config().distillation(teacher=teacher))
    with pytest.raises(ValueError, match=r"the teacher '.*cartpole' returns NaN or infinite Q-values in") as raised:
        algo.train()
    assert "environment" not in str(raised.value)
    assert "rewards" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("baselines", [0, 4], ids=["in training", "in baselines"])
def test_an_environment_that_raises_in_every_remote_env_runner_is_an_error_with_its_reason(build, baselines):
    said = r"'Faulty' raised in step\(\): RuntimeError: the simulator has crashed \(.*:\d+, in step\)"
    settings = config(1, **faulty("raise", workers=(1,)) | {"every": 1}).distillation(num_baseline_episodes=baselines)
    with pytest.raises(EnvFailedError, match=said):
        build(settings).train()


class Unreachable(Teacher):
    """A teacher that answers in this process alone."""

    def q_values(self, obs, mask=None):
        if ray.get_runtime_context().get_actor_id() is not None:
            raise ConnectionError("the teacher's service is gone")
        return super().q_values(obs, mask)


@pytest.mark.slow
def test_a_teacher_that_raises_in_every_remote_env_runner_is_an_error_with_its_reason(build):
    teacher = load_teacher("cartpole")
    teacher.__class__ = Unreachable
    said = r"An EnvRunner failed: ConnectionError: the teacher's service is gone \(.*:\d+, in q_values\)"
    with pytest.raises(SamplingFailedError, match=said):
        build(config(1).distillation(teacher=teacher)).train()


@pytest.mark.slow
def test_an_evaluation_in_which_every_remote_env_runner_fails_is_an_error_with_its_reason(build):
    settings = config(**faulty("nan_obs", workers=(1,)) | {"every": 10}).evaluation(evaluation_num_env_runners=1)
    algo = build(settings)
    with pytest.raises(EnvFailedError, match=r"The environment 'Faulty' returned .* from step") as raised:
        algo.evaluate()
    assert f"{__file__}:" in str(raised.value)


@pytest.mark.parametrize("hook", ["on_algorithm_init", "on_train_result"])
def test_a_callback_that_ends_the_process_is_an_error_with_its_line(build, hook):
    settings = config().callbacks(**{hook: lambda **kwargs: sys.exit(3)})
    with pytest.raises(ExitedError, match=rf"ended the process: SystemExit: 3 \({__file__}:\d+, in <lambda>\)"):
        build(settings).train()


def test_an_environment_whose_observations_change_their_shape_is_an_error(build):
    algo = build(config(**faulty("shape", after=10)))
    said = (
        r"observation of shape \(3,\) and dtype float32, but its observation_space has shape \(4,\) and dtype float32"
    )
    with pytest.raises(EnvFailedError, match=said):
        algo.train()


@pytest.mark.parametrize(
    ("num_env_runners", "learns_by", "how"),
    [
        *itertools.product([0], ["distillation", "td"], ["nan_obs", "nan_reward"]),
        pytest.param(2, "td", "nan_reward", marks=pytest.mark.slow),
    ],
)
def test_numbers_that_are_not_finite_are_dropped_and_counted(build, how, learns_by, num_env_runners, caplog):
    settings = config(num_env_runners, **faulty(how, after=20, workers=(0, 1, 2)))
    if learns_by == "td":
        settings.training(n_step=3).distillation(td_coeff=1.0)
    algo = build(settings)
    rows = [algo.train() for _ in range(4)]
    assert_counters(rows)
    dropped = rows[-1]["env_runners"][NUM_STATES_DROPPED_LIFETIME]
    share = dropped / rows[-1]["num_env_steps_sampled_lifetime"]
    assert 0.05 < share < 0.35  # a seventh, and of states also the ones before
    for weights in algo.get_module().get_state().values():
        assert np.isfinite(weights).all()
    if not num_env_runners:
        assert_learns_from_finite_states(algo)
    assert_names_the_numbers(caplog.text, "observation" if how == "nan_obs" else "reward")
    assert "These states are not learned from; the results count them." in caplog.text


# --- Teachers ---------------------------------------------------------------------------------------------------------


class Ignorant(Teacher):
    """A teacher that knows nothing."""

    def labels(self, obs, names, mask=None):
        labels = super().labels(obs, names, mask)
        return {**labels, TEACHER_Q: torch.full_like(labels[TEACHER_Q], torch.nan)}


class Forgetful(Teacher):
    """A teacher that knows nothing of states in which the cart is on the right."""

    def labels(self, obs, names, mask=None):
        labels = super().labels(obs, names, mask)
        q = labels[TEACHER_Q]
        return {**labels, TEACHER_Q: torch.where(obs[:, :1] > 0, torch.nan, q)}


def test_states_of_which_the_teacher_knows_nothing_are_dropped_and_counted(build):
    teacher = load_teacher("cartpole")
    teacher.__class__ = Forgetful
    algo = build(config().distillation(teacher=teacher))
    rows = [algo.train() for _ in range(4)]
    assert_counters(rows)
    dropped = rows[-1]["env_runners"][NUM_STATES_DROPPED_LIFETIME]
    assert 0.1 < dropped / rows[-1]["num_env_steps_sampled_lifetime"] < 0.9
    learned_from = algo.learner_group._learner.replay_arrays()["default_policy/columns/obs"]
    assert (learned_from[:, 0] <= 0).all()
