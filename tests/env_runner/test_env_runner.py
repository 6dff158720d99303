"""The columns against what the environment and the teacher say."""

import gc
import os
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import FlattenObservations

from rllib_kd import DistillDQNConfig, DistillEnvRunner, Teacher, load_teacher
from rllib_kd.env_runner.column_sampler import log_episodes
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from rllib_kd.networks.parts import last_linear
from rllib_kd.observations.pipeline import Normalize, ObservationPipeline, StackFrames
from tests.conftest import make_q_module
from tests.env_runner.runners import ALL_COLUMNS, Counting, Silent, make_runner, sample
from tests.rllib_checkpoints import Doubled, Frames, connector


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_whole_trajectories_follow_each_other(counting_config, direct):
    config = counting_config if direct else counting_config.callbacks(Silent)
    runner = make_runner(config)
    assert runner._samples_directly is direct
    total = 0
    for _ in range(3):
        (columns,), metrics = sample(runner)
        total += int(columns["valid"].sum())
        rows = {name: column.reshape(3, -1, *column.shape[1:]) for name, column in columns.items()}
        for env in range(3):
            obs, valid = rows["obs"][env, :, 0], rows["valid"][env]
            reward, terminated = rows["rewards"][env], rows["terminateds"][env]
            for t in np.flatnonzero(valid):
                assert obs[t + 1] == obs[t] + 1 == reward[t]  # the row after a transition is where it leads to
                assert terminated[t] == (obs[t + 1] == 5)
            assert not valid[-1]
            assert not valid[obs == 5].any()  # no action is taken in a last state
        assert not rows["truncateds"].any()
    assert metrics["num_env_steps_sampled_lifetime"].peek() > 0
    assert total > 3 * 3 * 5


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_labels_are_the_teachers_values_of_the_very_state(counting_config, direct):
    runner = make_runner(counting_config if direct else counting_config.callbacks(Silent))
    for teacher_fraction in (1.0, 0.3):
        (columns,), _ = sample(runner, teacher_fraction=teacher_fraction, epsilon=0.2)
        valid = columns["valid"]
        expected = load_teacher(counting_config.teacher).q_values(torch.tensor(columns["obs"][valid]))
        np.testing.assert_allclose(columns["teacher_q"][valid], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_labels_of_a_c51_are_its_return_distributions(counting_config, tmp_path, direct):
    support = {"num_atoms": 7, "v_min": -1.0, "v_max": 2.0}
    module = make_q_module(Counting.observation_space, Counting.action_space, **support)
    config = counting_config.training(**support).distillation(
        teacher=module.save_to_path(str(tmp_path / "c51")), loss="categorical"
    )
    (columns,), _ = sample(make_runner(config if direct else config.callbacks(Silent)), ("obs", *config.label_columns))
    expected = module.compute_q_values({"obs": torch.tensor(columns["obs"])})
    assert columns["teacher_probs"].shape == (len(columns["obs"]), 3, 7)
    np.testing.assert_allclose(columns["teacher_probs"], expected["qf_probs"].detach(), atol=1e-6)
    np.testing.assert_allclose(columns["teacher_q"], expected["qf_preds"].detach(), atol=1e-5)


def test_both_ways_give_the_same_data(cartpole_config, cluster):
    """Fragments end at other places (RLlib counts transitions, the direct way steps): compare their beginnings."""
    sampled = []
    for config in (cartpole_config, cartpole_config.copy(copy_frozen=False).callbacks(Silent)):
        (columns,), _ = sample(make_runner(config), teacher_fraction=0.5, epsilon=0.1)
        sampled.append({name: column.reshape(4, -1, *column.shape[1:])[:, :16] for name, column in columns.items()})
    for name in ("obs", "teacher_q", "actions", "rewards", "terminateds", "valid"):
        np.testing.assert_array_equal(sampled[0][name], sampled[1][name], err_msg=name)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_without_a_teacher_there_are_transitions_only(counting_config, direct):
    config = counting_config.distillation(teacher=None, td_coeff=1.0)
    config = (config if direct else config.callbacks(Silent)).copy(copy_frozen=False)
    config.validate()
    runner = DistillEnvRunner(config=config, worker_index=0)
    names = ("obs", *TD_COLUMNS)
    (columns,), _ = sample(runner, names, teacher_fraction=0.0, epsilon=0.1)
    assert set(columns) == set(names)
    rows = {name: columns[name].reshape(3, -1) for name in ("obs", "rewards", "valid")}
    steps = np.diff(rows["obs"], axis=1)[rows["valid"][:, :-1]]
    assert (steps == 1).all()
    greedy = runner.module.compute_q_values({"obs": torch.tensor(columns["obs"])})["qf_preds"].argmax(-1).numpy()
    assert (greedy == columns["actions"])[columns["valid"]].mean() > 0.7


def test_distillation_alone_sends_only_the_states_in_which_one_acts(counting_config):
    (columns,), _ = sample(make_runner(counting_config), DISTILLATION_COLUMNS)
    assert set(columns) == {"obs", "teacher_q"}
    assert 5.0 not in columns["obs"]
    # 8 steps in each of 3 environments; step 6 only resets.
    assert len(columns["obs"]) == 3 * 7


def test_each_learner_gets_environments_of_its_own(counting_config):
    whole, _ = sample(make_runner(counting_config), epsilon=0.5)
    parts, _ = sample(make_runner(counting_config), epsilon=0.5, num_shards=2)
    assert [len(part["obs"]) for part in parts] == [2 * 9, 1 * 9]
    for name in ALL_COLUMNS:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[0][name])


def test_reports_returns_and_lengths_of_whole_episodes(counting_config):
    runner = make_runner(counting_config)
    for _ in range(4):
        _, metrics = sample(runner)
    assert metrics["episode_return_mean"].peek() == 1 + 2 + 3 + 4 + 5
    assert metrics["episode_len_mean"].peek() == 5
    assert metrics["env_step_timer"].peek() > 0.0  # seconds


def test_hooks_of_the_student_see_its_passes(counting_config):
    runner, seen = make_runner(counting_config), []
    runner.module.encoder.register_forward_hook(lambda *args: seen.append(args))
    sample(runner, teacher_fraction=0.0)
    assert len(seen) == 8  # steps


@pytest.mark.parametrize("num_episodes", [0, 1, 3, 6])
def test_episodes_are_logged_as_rllib_logs_them(counting_config, num_episodes):
    config = counting_config.reporting(metrics_num_episodes_for_smoothing=4)
    ours, rllibs = make_runner(config), make_runner(config)
    lengths, returns = [3, 9, 5, 4, 2, 7], [-1.0, 8.0, 0.5, 2.0, 30.0, 1.0]
    log_episodes(ours, lengths[:num_episodes], returns[:num_episodes])
    for length, episode_return in zip(lengths[:num_episodes], returns[:num_episodes], strict=True):
        rllibs._log_episode_metrics(length, episode_return, 0.0)
    assert ours.metrics.peek() == rllibs.metrics.peek()


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_a_crashing_env_is_made_anew_and_its_fragment_dropped(counting_config, direct):
    config = counting_config if direct else counting_config.callbacks(Silent)
    config.environment(env_config={"length": 5, "fails_at": 7}).fault_tolerance(restart_failed_sub_environments=True)
    config.env_runners(rollout_fragment_length=4)
    runner = make_runner(config)
    for _ in range(3):
        (columns,), _ = sample(runner)
        rows = columns["obs"].reshape(3, -1)
        steps = np.diff(rows, axis=1)[columns["valid"].reshape(3, -1)[:, :-1]]
        assert (steps == 1).all()


def test_states_that_the_teacher_cannot_label_are_never_drawn(counting_config):
    class Forgetful(Teacher):
        input_space = Counting.observation_space

        def to(self, device):
            return self

        def q_values(self, obs, mask=None):
            q = torch.ones(len(obs), 3)
            q[obs[:, 0] == 2] = torch.nan
            q[obs[:, 0] == 3, 0] = torch.inf
            q[obs[:, 0] == 4, 0] = -torch.inf  # only an illegal action
            return q

    (columns,), _ = sample(make_runner(counting_config, Forgetful()))
    assert set(columns["obs"][columns["valid"]].ravel()) == {0.0, 1.0, 4.0}


def test_students_connectors_are_none_of_the_teachers(counting_config):
    config = counting_config.env_runners(env_to_module_connector=connector(Doubled))
    runner = make_runner(config)
    assert not runner._samples_directly
    for _ in range(3):
        (columns,), _ = sample(runner, teacher_fraction=0.5, epsilon=0.2)
        valid = columns["valid"]
        assert set(columns["obs"][valid].ravel()) <= {0.0, 2.0, 4.0, 6.0, 8.0}
        expected = load_teacher(config.teacher).q_values(torch.tensor(columns["obs"][valid] / 2))
        np.testing.assert_allclose(columns["teacher_q"][valid], expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_that_fits_only_what_the_student_takes_gets_that(cluster, tmp_path):
    teacher = make_q_module(gym.spaces.Box(0, 1, (16,)), gym.spaces.Discrete(4)).save_to_path(str(tmp_path / "teacher"))
    config = (
        DistillDQNConfig()
        .environment("FrozenLake-v1")
        .env_runners(env_to_module_connector=connector(FlattenObservations), num_envs_per_env_runner=2)
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .distillation(teacher=teacher)
    )
    (columns,), _ = sample(make_runner(config))
    expected = load_teacher(teacher).q_values(torch.tensor(columns["obs"]))
    np.testing.assert_allclose(columns["teacher_q"][columns["valid"]], expected[columns["valid"]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_a_teacher_sees_through_its_own_filter(counting_config, direct):
    space = Counting.observation_space
    filtered = ObservationPipeline(space, (Normalize(np.array([2.0]), np.array([3.0]), clip=0.5),))
    teacher = Teacher(make_q_module(space, Counting.action_space), pipeline=filtered)
    config = counting_config if direct else counting_config.env_runners(env_to_module_connector=connector(Doubled))
    (columns,), _ = sample(make_runner(config, teacher), teacher_fraction=0.5)
    valid = columns["valid"]
    shown = columns["obs"][valid] / (1 if direct else 2)
    expected = teacher.q_values(torch.tensor(np.clip((shown - 2) / 3, -0.5, 0.5)))
    np.testing.assert_allclose(columns["teacher_q"][valid], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_a_teacher_that_stacks_frames_labels_single_ones(cluster, direct):
    conv = {"conv_filters": [[2, 4, 2], [4, 4, 1]], "fcnet_hiddens": [4]}
    module = make_q_module(gym.spaces.Box(0, 1, (8, 8, 3)), Frames.action_space, **conv)
    teacher = Teacher(module, pipeline=ObservationPipeline(Frames.observation_space, (StackFrames(3),)))
    config = (
        DistillDQNConfig()
        .environment(Frames)
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=10)
        .rl_module(model_config=conv)
        .distillation(teacher="cartpole")
        .debugging(seed=0)
    )
    runner = make_runner(config if direct else config.callbacks(Silent), teacher)
    stacks = np.zeros((2, 8, 8, 3), np.float32)
    starts = np.ones(2, dtype=bool)
    for _ in range(3):  # stacks go on from fragment to fragment
        (columns,), _ = sample(runner)
        rows = {name: column.reshape(2, -1, *column.shape[1:]) for name, column in columns.items()}
        for t in range(rows["obs"].shape[1] - 1):  # the last row begins the next fragment
            stacks[starts] = 0
            stacks = np.concatenate([stacks[..., 1:], rows["obs"][:, t]], axis=-1)
            expected = teacher.q_values(torch.tensor(stacks)).numpy()
            np.testing.assert_allclose(rows["teacher_q"][:, t], expected, rtol=1e-4, atol=1e-5)
            starts = ~rows["valid"][:, t]
        assert starts.any() or not rows["valid"][:, :-1].all()


def test_a_crash_does_not_spoil_the_baselines(counting_config, tmp_path):
    config = counting_config.environment(env_config={"length": 5, "fails_at": 7, "mark": tmp_path / "crashed"})
    config.fault_tolerance(restart_failed_sub_environments=True).env_runners(rollout_fragment_length=4)
    assert make_runner(config).play_episodes(6, teacher=True) == {"default_policy": [15.0] * 6}
    assert (tmp_path / "crashed").exists()


def test_baseline_episodes_are_whole_and_evenly_shared(counting_config):
    runner = make_runner(counting_config)
    assert runner.play_episodes(7, teacher=True) == {"default_policy": [15.0] * 7}
    before, _ = sample(make_runner(counting_config))
    after, metrics = sample(runner)
    for name in ALL_COLUMNS:  # sampling starts as if nothing had been
        np.testing.assert_array_equal(before[0][name], after[0][name])
    assert metrics["num_env_steps_sampled_lifetime"].peek() == 3 * 7


class Seeded(Counting):
    """Notes the seeds of all resets."""

    seeds: ClassVar = []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seeds.append(seed)
        return super().reset()


@pytest.mark.parametrize("seed", [None, 10])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_environments_of_all_env_runners_have_seeds_of_their_own(counting_config, direct, seed):
    config = counting_config.environment(Seeded).debugging(seed=seed)
    config = config if direct else config.callbacks(Silent)
    played, sampled = [], []
    for worker_index in range(4):
        runner = make_runner(config, worker_index=worker_index)
        Seeded.seeds.clear()
        sample(runner)
        sampled.append(list(Seeded.seeds))
        Seeded.seeds.clear()
        runner.play_episodes(3, teacher=True)
        played.append(list(Seeded.seeds))
    base = seed or 0
    # Index 0 is the local one, which does not sample if there are others.
    expected = [[first, first + 1, first + 2] for first in (base, base + 1, base + 4, base + 7)]
    assert played == expected
    assert sampled == (expected if seed is not None else [[]] * 4)


def test_evaluations_have_other_seeds_than_training(counting_config):
    evaluation = counting_config.environment(Seeded).debugging(seed=10).evaluation(evaluation_interval=1)
    Seeded.seeds.clear()
    make_runner(evaluation.get_evaluation_config_object()).sample(num_episodes=1, explore=False)
    assert Seeded.seeds == [1_100_000_010]


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_metrics_do_not_tell_of_baseline_episodes(counting_config, direct):
    """Another run has the same teacher's returns from a file, and must report the same keys."""
    config = (counting_config if direct else counting_config.callbacks(Silent)).environment(env_config={"length": 50})
    runner = make_runner(config)
    runner.play_episodes(3, teacher=True)
    _, after = sample(runner)
    _, without = sample(make_runner(config))
    assert after.keys() - {"time_between_sampling"} == without.keys()  # RLlib's, of the end of its last sample
    assert "episode_return_mean" not in after  # no episode ends in the sample


class Collecting(Counting):
    """Looks for garbage in its process."""

    def reset(self, **kwargs):
        gc.collect()
        return super().reset(**kwargs)


class Noisy:
    def __init__(self, path):
        self.path, self.itself = path, self

    def __del__(self):
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} ")


def test_processes_of_environments_collect_nothing_of_this_one(counting_config, tmp_path):
    """It could be references to Ray's actors, which speak over this process's connection."""
    config = counting_config.environment(Collecting).env_runners(gym_env_vectorize_mode="async")
    gc.disable()
    try:
        Noisy(tmp_path / "collector")
        runner = make_runner(config)
        sample(runner)
        runner.env.close()
        assert (tmp_path / "collector").read_text() == f"{os.getpid()} "
    finally:
        gc.enable()


class Limited(gym.wrappers.TimeLimit):
    """A longer limit than that of environments without one."""

    def __init__(self, config):
        super().__init__(Counting(config), 80)


@pytest.mark.parametrize(("env", "length", "count"), [(Counting, 50, 3), (Limited, 80, 7)])
def test_a_baseline_episode_may_be_as_long_as_its_environment_says(
    counting_config, monkeypatch, caplog, env, length, count
):
    monkeypatch.setattr("rllib_kd.env_runner.whole_episodes._LEAST_LIMIT", 50)
    runner = make_runner(counting_config.environment(env, env_config={"length": 1_000}))
    returns = runner.play_episodes(7, teacher=False)["default_policy"]
    assert returns == [length * (length + 1) / 2] * count  # none begins where another one was cut
    assert ("3 episodes of the random policy had not ended after 50 steps" in caplog.text) == (env is Counting)


def test_a_request_brings_the_student_that_acts_an_older_one_too(counting_config):
    runner = make_runner(counting_config)
    kwargs = {"teacher_fraction": 0.0, "epsilon": 0.0, "names": DISTILLATION_COLUMNS, "num_shards": 1}
    for weights_seq_no in (3, 4, 2):  # the last one from a checkpoint that was restored
        student = make_q_module(
            Counting.observation_space, Counting.action_space, seed=weights_seq_no, fcnet_hiddens=[4]
        )
        state = {"rl_module": {"default_policy": student.get_state()}, "weights_seq_no": weights_seq_no}
        sampled = runner.set_state_and_sample(state, **kwargs)
        assert sampled.weights_seq_no == weights_seq_no
        assert sampled.connector_states == {}
        assert torch.equal(last_linear(runner.module.af).bias, last_linear(student.af).bias)


def test_a_second_runner_of_an_own_environment_gives_no_warning_of_its_registration(counting_config, recwarn):
    for runner in (make_runner(counting_config), make_runner(counting_config)):
        runner.make_env()
        runner.stop()
    assert not [warning for warning in recwarn if "already in registry" in str(warning.message)]
