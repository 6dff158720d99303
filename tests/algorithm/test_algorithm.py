"""The whole machine on a small scale: results, teacher, checkpoints, faults, bad input."""

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
import tree
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_kd import DistillDQN, DistillDQNConfig, DistillDQNTorchLearner, load_teacher
from rllib_kd.algorithm.first_weights import FirstWeights
from tests.conftest import make_q_module, states


def student_weights(algo):
    return algo.learner_group.get_weights()["default_policy"]


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def bytes_of(teacher) -> list[bytes]:
    return [parameter.numpy().tobytes() for parameter in teacher._module.parameters()]


# --- Results ----------------------------------------------------------------------------------------------------------


def test_a_result_has_what_the_readme_lists(cartpole_config, build):
    config = cartpole_config.distillation(teacher="cartpole", num_baseline_episodes=4)
    algo = build(config.evaluation(evaluation_interval=1))
    result = algo.train()
    learner = result["learners"]["default_policy"]
    assert {"kd_loss", "total_loss", "teacher_agreement", "q_regret", "kl_to_teacher", "temperature"} <= set(learner)
    own = result["distillation"]
    assert (own["student_params"], own["teacher_params"]) == (4 * 8 + 8 + 8 * 2 + 2, 67_843)
    assert own["compression"] == pytest.approx(58 / 67_843)
    student_return = result["evaluation"]["env_runners"]["episode_return_mean"]
    expected = (student_return - own["random_return"]) / (own["teacher_return"] - own["random_return"])
    assert own["return_ratio"] == pytest.approx(expected)
    assert own["kd_coeff"] == 1.0
    assert own["num_gradient_steps_lifetime"] > 0
    assert result["num_env_steps_sampled_lifetime"] >= 64


def test_the_return_ratio_is_that_of_the_last_evaluation(cartpole_config, build):
    algo = build(
        cartpole_config.distillation(teacher="cartpole", num_baseline_episodes=4).evaluation(evaluation_interval=3)
    )
    ratios = [algo.train()["distillation"]["return_ratio"] for _ in range(8)]
    assert all(map(math.isnan, ratios[:2]))
    assert all(map(math.isfinite, ratios[2:]))
    assert ratios[2] == ratios[3] == ratios[4]


def test_threads_are_as_many_as_the_cpus_of_the_process(cartpole_config, build, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    build(cartpole_config)
    assert torch.get_num_threads() == 1


def test_a_student_as_large_as_its_teacher_is_a_warning(cartpole_config, build, caplog):
    build(cartpole_config.rl_module(model_config={"fcnet_hiddens": [32, 32]}))
    assert "1282 parameters, nearly as many as its teacher (1282) or more" in caplog.text


def test_an_activation_alone_leaves_the_widths_to_compression(cartpole_config, build):
    config = cartpole_config.rl_module(model_config={"fcnet_activation": "tanh"}).distillation(compression=0.1)
    model_config = build(config).get_module().model_config
    assert model_config["fcnet_activation"] == "tanh"
    assert model_config["fcnet_hiddens"] == [7, 7]


def test_steps_are_counted_where_they_are_made(cartpole_config, build):
    algo = build(cartpole_config.distillation(kd_coeff=[[0, 1.0], [150, 0.0]]))
    for _ in range(5):
        result = algo.train()
    made = algo.learner_group._learner.groups["default_policy"].num_steps
    assert result["distillation"]["num_gradient_steps_lifetime"] == made > 0
    assert result["learners"]["default_policy"]["num_gradient_steps"] == 0


def test_without_exploration_epsilon_is_zero(cartpole_config, build, monkeypatch):
    algo = build(cartpole_config.training(epsilon=1.0).env_runners(explore=False))
    seen = []
    sample = algo.env_runner.sample_columns
    monkeypatch.setattr(algo.env_runner, "sample_columns", lambda **kw: seen.append(kw["epsilon"]) or sample(**kw))
    algo.train()
    assert set(seen) == {0.0}


def test_the_replay_ratio_is_what_training_intensity_says(cartpole_config, build):
    config = cartpole_config.training(training_intensity=5, num_steps_sampled_before_learning_starts=0)
    algo = build(config)
    for _ in range(5):
        result = algo.train()
    rows = result["distillation"]["num_gradient_steps_lifetime"] * 32
    due = 5 * result["num_env_steps_sampled_lifetime"]
    assert due - 32 < rows <= due


def test_schedules_follow_the_env_steps(cartpole_config, build):
    schedule = [[0, 1.0], [1_000, 0.0]]
    algo = build(cartpole_config.distillation(teacher_fraction=schedule, kd_coeff=schedule))
    for _ in range(3):
        result = algo.train()
    expected = 1.0 - result["num_env_steps_sampled_lifetime"] / 1_000
    assert result["distillation"]["teacher_fraction"] == pytest.approx(expected)
    assert result["distillation"]["kd_coeff"] == pytest.approx(expected)


def test_the_teacher_stays_in_the_mixture_unless_there_is_td(cartpole_config):
    assert [cartpole_config.teacher_fraction_at(steps) for steps in (0, 5_000, 10_000, 10**6)] == [1.0, 0.75, 0.5, 0.5]
    cartpole_config.distillation(td_coeff=[[0, 0.0], [100, 1.0]])
    assert [cartpole_config.teacher_fraction_at(steps) for steps in (0, 5_000, 10_000)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(("policy", "fraction"), [("teacher", 1.0), ("student", 0.0)])
def test_rollout_policies(cartpole_config, build, policy, fraction):
    result = build(cartpole_config.distillation(rollout_policy=policy)).train()
    assert result["distillation"]["teacher_fraction"] == fraction


def test_get_module_is_the_student_with_its_newest_weights(cartpole_config, build):
    algo = build(cartpole_config)
    algo.train()
    assert_equal_weights(
        algo.get_module().get_state(),
        {name: value for name, value in student_weights(algo).items() if not name.startswith("_target")},
    )


def test_evaluation_is_the_greedy_student_in_a_group_of_its_own(cartpole_config, build):
    class Watch(RLlibCallback):
        chosen: ClassVar[list] = []

        def on_episode_end(self, *, episode, env_runner, rl_module, **kwargs):
            if env_runner.config.in_evaluation:
                obs = torch.as_tensor(np.stack(episode.get_observations()[:-1]))
                greedy = rl_module.compute_q_values({"obs": obs})["qf_preds"].argmax(-1).numpy()
                Watch.chosen.append((np.array(episode.get_actions()), greedy))

    algo = build(cartpole_config.callbacks(Watch).evaluation(evaluation_duration=3).training(epsilon=1.0))
    algo.train()
    envs = algo.env_runner.env.unwrapped.envs
    before = [env.unwrapped.state for env in envs]
    results = algo.evaluate()
    assert type(algo.eval_env_runner).sample is SingleAgentEnvRunner.sample
    assert results["env_runners"]["num_episodes"] == 3
    assert len(Watch.chosen) == 3
    for actions, greedy in Watch.chosen:
        np.testing.assert_array_equal(actions, greedy)
    np.testing.assert_array_equal(
        [env.unwrapped.state for env in envs], before
    )  # the training environments stand where they stood


def test_the_same_seed_gives_the_same_student(cartpole_config, build):
    algos = [build(cartpole_config.copy(copy_frozen=False)) for _ in range(2)]
    for algo in algos:
        for _ in range(3):
            algo.train()
    assert_equal_weights(student_weights(algos[0]), student_weights(algos[1]))


# --- Teacher ----------------------------------------------------------------------------------------------------------


def test_the_teacher_never_changes_and_enters_nothing_of_the_student(cartpole_config, build, tmp_path):
    algo = build(cartpole_config.env_runners(num_env_runners=1).distillation(td_coeff=0.5))
    before = bytes_of(algo._teachers["default_policy"])
    for _ in range(5):
        algo.train()
    assert bytes_of(algo._teachers["default_policy"]) == before == bytes_of(load_teacher(cartpole_config.teacher))
    remote = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: [p.numpy().tobytes() for p in env_runner._teacher._module.parameters()],
        local_env_runner=False,
    )
    assert remote == [before]

    learner = algo.learner_group._learner
    optimized = sum(
        p.numel() for group in learner.get_optimizer("default_policy").param_groups for p in group["params"]
    )
    assert optimized == 58
    synced = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: len(pickle.dumps(env_runner.get_state())), local_env_runner=False
    )
    teacher_size = sum(map(len, before))
    assert max(synced) < teacher_size
    assert len(pickle.dumps(learner.get_state())) < teacher_size + 4_000  # statistics and optimizer, no teacher
    labels = {name for name in student_weights(algo) if not name.startswith("_target")}
    assert labels == set(make_q_module(fcnet_hiddens=[8]).get_state())

    path = Path(algo.save_to_path(str(tmp_path / "checkpoint")))
    needle = before[0][:64]
    holders = [file for file in path.rglob("*") if file.is_file() and needle in file.read_bytes()]
    assert holders == [path / "teacher" / "state.pkl"]


def test_a_loaded_teacher_enters_no_config_of_actors_and_checkpoints(cartpole_config, build, tmp_path):
    teacher = load_teacher("cartpole")
    algo = build(cartpole_config.env_runners(num_env_runners=1).distillation(teacher=teacher))
    algo.train()
    remote = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: env_runner.config.teacher, local_env_runner=False
    )
    assert remote == [algo.config.teacher] == [teacher.source]
    needle = bytes_of(teacher)[0][:64]
    path = Path(algo.save_to_path(str(tmp_path / "checkpoint")))
    holders = [file for file in path.rglob("*") if file.is_file() and needle in file.read_bytes()]
    assert holders == [path / "teacher" / "state.pkl"]
    algo.restore_from_path(path)
    assert algo._teachers["default_policy"] is not teacher  # which other algorithms may share


def test_a_state_brings_its_teacher_to_remote_env_runners(cartpole_config, build, tmp_path):
    other = make_q_module(seed=5).save_to_path(str(tmp_path / "other"))
    first = build(cartpole_config.copy(copy_frozen=False))
    second = build(cartpole_config.env_runners(num_env_runners=1).distillation(teacher=other))
    second.set_state(first.get_state())
    remote = second.env_runner_group.foreach_env_runner(
        lambda env_runner: [p.numpy().tobytes() for p in env_runner._teacher._module.parameters()],
        local_env_runner=False,
    )
    assert remote == [bytes_of(first._teachers["default_policy"])]


@pytest.mark.parametrize("variant", [{"dueling": True}, {"num_atoms": 11}], ids=["dueling", "c51"])
def test_teachers_of_other_kinds(cartpole_config, build, tmp_path, variant):
    path = make_q_module(**variant).save_to_path(str(tmp_path / "teacher"))
    result = build(cartpole_config.distillation(teacher=path, loss="mse")).train()
    assert math.isfinite(result["learners"]["default_policy"]["kd_loss"])


C51 = {"num_atoms": 11, "v_min": -5.0, "v_max": 5.0}


def test_a_c51_teaches_a_c51(cartpole_config, build, tmp_path):
    path = make_q_module(**C51).save_to_path(str(tmp_path / "teacher"))
    config = cartpole_config.training(**C51, lr=1e-2).distillation(teacher=path, loss="categorical")
    algo = build(config)
    first = algo.train()["learners"]["default_policy"]["kd_loss"]
    for _ in range(20):
        last = algo.train()["learners"]["default_policy"]["kd_loss"]
    assert last < first
    assert algo.get_module().num_atoms == 11


@pytest.mark.parametrize(("num_env_runners", "num_learners"), [(0, 0), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_features_of_another_width_are_matched(cartpole_config, build, tmp_path, num_env_runners, num_learners):
    config = (
        cartpole_config.distillation(feature_coeff=0.01)
        .env_runners(num_env_runners=num_env_runners)
        .learners(num_learners=num_learners, num_cpus_per_learner=1)
    )
    algo = build(config)
    for _ in range(3):
        result = algo.train()
    assert math.isfinite(result["learners"]["default_policy"]["kd_loss"])
    maps = [
        weight.get()
        for weight in algo.learner_group.foreach_learner(
            lambda learner: learner.groups["default_policy"].students["default_policy"].feature_map.weight.tolist()
        )
    ]
    assert np.shape(maps[0]) == (32, 8)  # from the student's units to the teacher's
    assert all(weight == maps[0] for weight in maps)
    assert result["distillation"]["student_params"] == 58
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()  # its Learners have the CPUs that the next ones need
    resumed = DistillDQN.from_checkpoint(path)
    resumed.train()
    resumed.stop()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({**C51, "v_max": 6.0}, r"v_max=6\.0, num_atoms=11\) and the student's Support\(v_min=-5\.0, v_max=5\.0"),
        ({}, r"the teacher's is None"),
    ],
)
def test_supports_that_differ_are_both_named(cartpole_config, build, tmp_path, teacher, message):
    path = make_q_module(**teacher).save_to_path(str(tmp_path / "teacher"))
    with pytest.raises(ValueError, match=message):
        build(cartpole_config.training(**C51).distillation(teacher=path, loss="categorical"))


def test_compression_settles_the_widths_before_any_actor_starts(cartpole_config, build, tmp_path):
    path = make_q_module(fcnet_hiddens=[64, 64]).save_to_path(str(tmp_path / "teacher"))
    config = cartpole_config.rl_module(model_config={}).distillation(teacher=path, compression=0.1)
    algo = build(config.env_runners(num_env_runners=1))
    result = algo.train()
    assert 0.08 < result["distillation"]["compression"] <= 0.1
    assert algo.get_module().model_config["fcnet_hiddens"] == [17, 17]
    assert config.compression == 0.1  # the user's config stays as it was


def test_a_linear_student(cartpole_config, build):
    algo = build(cartpole_config.rl_module(model_config={"fcnet_hiddens": []}))
    assert algo.train()["distillation"]["student_params"] == 4 * 2 + 2


def test_a_teacher_no_better_than_chance_is_a_warning_with_both_numbers(cartpole_config, build, caplog):
    build(cartpole_config.distillation(num_baseline_episodes=8))
    assert "no better than a random policy: mean returns of" in caplog.text


# --- TD beside distillation, and alone --------------------------------------------------------------------------------


class Penalties(gym.Env):
    """Every step costs 1, or 2 with the second action; an episode has 10 steps."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config=None):
        pass

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.ones(4, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.ones(4, np.float32), -1.0 - action, self.t == 10, False, {}


def kd_coeff(algo):
    return algo.config.kd_coeff_at(algo.num_env_steps, algo._returns.ratio)


def biased_to(action: int, tmp_path) -> str:
    """A teacher that always prefers one action."""
    module = make_q_module(Penalties.observation_space)
    list(module.af.parameters())[-1].data[action] += 100.0
    return module.save_to_path(str(tmp_path / f"to_{action}"))


def test_qdagger_is_right_where_returns_are_negative(cartpole_config, build, tmp_path):
    config = (
        cartpole_config.environment(Penalties)
        .distillation(
            teacher=biased_to(0, tmp_path), kd_coeff="qdagger", td_coeff=1.0, num_baseline_episodes=20, loss="mse"
        )
        .evaluation(evaluation_interval=1)
    )
    algo = build(config)
    result = algo.train()
    own = result["distillation"]
    assert own["teacher_return"] == -10.0
    assert -17.0 < own["random_return"] < -13.0
    for student, expected in ((-20.0, 1.0), (own["random_return"], 1.0), (-10.0, 0.0), (-9.0, 0.0)):
        algo._returns["default_policy"].student = student
        assert kd_coeff(algo) == pytest.approx(expected)
    algo._returns["default_policy"].student = 0.25 * own["random_return"] + 0.75 * -10.0
    assert kd_coeff(algo) == pytest.approx(0.25)
    algo.train()
    assert algo.learner_group._learner.kd_coeff == pytest.approx(0.25)  # by the evaluation before
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    resumed = DistillDQN.from_checkpoint(path)
    assert kd_coeff(resumed) == kd_coeff(algo)
    resumed.stop()


def test_qdagger_needs_a_teacher_that_is_better_than_chance(cartpole_config, build, tmp_path):
    config = cartpole_config.environment(Penalties).distillation(
        teacher=biased_to(1, tmp_path), kd_coeff="qdagger", td_coeff=1.0, num_baseline_episodes=20
    )
    with pytest.raises(ValueError, match=r"mean returns are -20\.0 and -1"):
        build(config.evaluation(evaluation_interval=1))


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners"),
    [(0, 0), pytest.param(1, 0, marks=pytest.mark.slow), pytest.param(0, 2, marks=pytest.mark.slow)],
)
def test_without_a_teacher_it_is_dqn(cartpole_config, build, tmp_path, num_env_runners, num_learners):
    config = (
        cartpole_config.distillation(teacher=None, td_coeff=1.0)
        .training(replay_buffer_config={"alpha": 0.6})
        .env_runners(num_env_runners=num_env_runners)
        .learners(num_learners=num_learners, num_cpus_per_learner=1)
    )
    algo = build(config.evaluation(evaluation_interval=1, evaluation_duration=2))
    for _ in range(3):
        result = algo.train()
    staleness = {"staleness_mean", "staleness_max"}
    assert set(result["distillation"]) == {"student_params", "td_coeff", "num_gradient_steps_lifetime"} | staleness
    assert result["distillation"]["num_gradient_steps_lifetime"] > 0
    learner = result["learners"]["default_policy"]
    assert math.isfinite(learner["td_loss"])
    assert not {"kd_loss", "teacher_agreement", "q_regret", "kl_to_teacher", "temperature"} & set(learner)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    assert not (Path(path) / "teacher").exists()

    resumed = DistillDQN.from_checkpoint(path)
    assert_equal_weights(student_weights(resumed), student_weights(algo))
    assert resumed.train()["num_env_steps_sampled_lifetime"] > result["num_env_steps_sampled_lifetime"]
    resumed.stop()
    here = cartpole_config.copy(copy_frozen=False).env_runners(num_env_runners=0).learners(num_learners=0)
    student = build(here.distillation(teacher=path))
    assert student.train()["distillation"]["teacher_params"] == 58


# --- Where it runs ----------------------------------------------------------------------------------------------------


def test_nothing_is_stored_where_sampling_and_learning_share_a_process(cartpole_config, build, monkeypatch):
    algo = build(cartpole_config)
    before = student_weights(algo)
    monkeypatch.setattr(ray, "put", None)
    algo.train(), algo.train()
    assert algo.num_gradient_steps > 0
    after, acting = student_weights(algo), algo.env_runner.module.get_state()
    assert any((after[name] != before[name]).any() for name in after)
    assert_equal_weights({name: after[name] for name in acting}, acting)


# --- First weights ----------------------------------------------------------------------------------------------------


def standing_still(config, **kwargs):
    """A student as wide as its teacher, whose learning rate is too small to change it."""
    return (
        config.rl_module(model_config={"fcnet_hiddens": [32, 32], "fcnet_activation": "relu"})
        .training(lr=1e-12)
        .distillation(init="teacher", **kwargs)
    )


@pytest.mark.parametrize(
    ("settings", "num_env_runners", "num_learners"),
    [
        ({"loss": "mse"}, 0, 0),
        ({"loss": "mse", "normalize_q_values": False}, 0, 0),
        ({"loss": "kl"}, 0, 0),
        ({"loss": "kl", "student_temperature": 1.0}, 0, 0),
        pytest.param({"loss": "huber", "td_coeff": 1.0}, 1, 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_student_starts_as_its_teacher(
    cartpole_config, build, small_teacher, settings, num_env_runners, num_learners
):
    config = standing_still(cartpole_config, **settings).env_runners(num_env_runners=num_env_runners)
    algo = build(config.learners(num_learners=num_learners, num_cpus_per_learner=1))
    drawn = student_weights(algo)
    while algo.num_gradient_steps == 0:
        result = algo.train()
    assert result["learners"]["default_policy"]["kd_loss"] < 1e-4
    obs = torch.as_tensor(states(50, seed=9))
    teacher_q = load_teacher(small_teacher).q_values(obs)
    deviation = teacher_q - teacher_q.mean(-1, keepdim=True)
    weights = student_weights(algo)
    assert any(not np.array_equal(weights[name], drawn[name]) for name in weights)
    student = make_q_module()
    student.set_state(weights)
    student_q = student.compute_q_values({"obs": obs})["qf_preds"].detach()
    if settings["loss"] == "kl":  # the student's outputs say nothing of the level, and have a scale of their own
        temperature = result["distillation"]["temperature"]
        own_temperature = settings.get("student_temperature", DistillDQNConfig.AUTO_TEMPERATURE_GAPS)
        torch.testing.assert_close(student_q, deviation * own_temperature / temperature, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(student_q, teacher_q, rtol=1e-4, atol=1e-5)
    for targets in algo.learner_group.foreach_learner(target_weights):
        for target, own in targets.get():
            np.testing.assert_allclose(target, own, atol=1e-6)


def target_weights(learner):
    pairs = learner.module["default_policy"].unwrapped().get_target_network_pairs()
    return [
        (target.detach().numpy(), own.detach().numpy())
        for network, target_network in pairs
        for own, target in zip(network.parameters(), target_network.parameters(), strict=True)
    ]


def test_first_weights_are_given_once(cartpole_config, build, tmp_path, monkeypatch):
    algo = build(cartpole_config.distillation(init="teacher"))
    while algo.num_gradient_steps == 0:
        algo.train()
    monkeypatch.delattr(FirstWeights, "set_on")
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    before = student_weights(algo)
    restored = DistillDQN.from_checkpoint(path)
    assert_equal_weights(student_weights(restored), before)
    restored.train()
    restored.stop()


def test_a_student_too_wide_for_its_teacher_is_refused_at_once(cartpole_config, build):
    config = cartpole_config.rl_module(model_config={"fcnet_hiddens": [64], "fcnet_activation": "relu"})
    with pytest.raises(ValueError, match="at most as wide as its teacher's, but number 1 of its hidden layers has 64"):
        build(config.distillation(init="teacher"))


def test_a_student_that_sees_something_else_cannot_start_from_its_teacher(cartpole_config, build):
    config = cartpole_config.env_runners(env_to_module_connector=lambda *_: MeanStdFilter())
    algo = build(config.distillation(init="teacher").training(num_steps_sampled_before_learning_starts=0))
    with pytest.raises(ValueError, match=r"needs a student with the same observations as its teacher"):
        algo.train()


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners"),
    [pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(0, 1, marks=pytest.mark.slow), (2, 2)],
)
def test_env_runners_and_learners_elsewhere(cartpole_config, build, num_env_runners, num_learners):
    algo = build(
        cartpole_config.env_runners(num_env_runners=num_env_runners)
        .learners(num_learners=num_learners, num_cpus_per_learner=1)
        .distillation(loss="mse", td_coeff=0.1)
    )
    for _ in range(4):
        result = algo.train()
    assert math.isfinite(result["learners"]["default_policy"]["kd_loss"])
    weights = [
        {name: value.numpy() for name, value in state.get().items()}
        for state in algo.learner_group.foreach_learner(
            lambda learner: {n: p.detach().clone() for n, p in learner.module["default_policy"].named_parameters()}
        )
    ]
    assert len(weights) == max(1, num_learners)
    for other in weights[1:]:
        assert_equal_weights(weights[0], other)


@pytest.mark.slow
@pytest.mark.parametrize("td_coeff", [0.0, 0.5])
def test_two_learners_make_the_step_of_one_on_both_batches(cartpole_config, build, td_coeff):
    """The gradients that two Learners step along, against those of one Learner on the union of their batches."""
    config = cartpole_config.distillation(weight_averaging=0.0, normalize_observations=False, td_coeff=td_coeff)
    one = build(config.copy(copy_frozen=False)).learner_group._learner
    two = build(config.learners(num_learners=2, num_cpus_per_learner=1))
    two.train()

    def next_batch(learner: DistillDQNTorchLearner):
        group = learner.groups["default_policy"]
        generator = group.replay._generator
        before = generator.get_state()
        ((rows, _),) = group.replay.draw(1, 32)
        generator.set_state(before)
        batch = group.gather(rows, uses_td=bool(td_coeff))
        return {name: column.clone() for name, column in batch.items()}, learner.get_state("rl_module")

    def gradients(learner: DistillDQNTorchLearner):
        return [p.grad.clone() for p in learner.module["default_policy"].parameters() if p.grad is not None]

    (first, state), (second, _) = (result.get() for result in two.learner_group.foreach_learner(next_batch))
    assert not torch.equal(first["obs"], second["obs"])
    two.learner_group.update(
        batch_refs=[ray.put({name: column[:0] for name, column in shard(td_coeff).items()})] * 2,
        defer_solve_refs_to_learner=True,
        num_gradient_steps=1,
    )
    measured = ("temperature", "student_temperature", "median_gap")
    results = two.learner_group.foreach_learner(
        lambda each: {name: getattr(each.groups["default_policy"], name) for name in measured}
    )
    first_measured, second_measured = (result.get() for result in results)
    assert first_measured == second_measured

    one.set_state(state)
    group = one.groups["default_policy"]
    vars(group).update(first_measured)
    module = one.module["default_policy"]
    union = {name: torch.cat([first[name], second[name]]) for name in first}
    fwd_out = module.forward_train(union) if td_coeff else module.compute_q_values(union)
    one.compute_loss_for_module(module_id="default_policy", config=one.config, batch=union, fwd_out=fwd_out).backward()
    expected = gradients(one)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for result in two.learner_group.foreach_learner(gradients):
        torch.testing.assert_close(result.get(), expected, rtol=1e-5, atol=1e-6)


def shard(td_coeff):
    """A fragment as EnvRunners send it."""
    columns = {"obs": states(4), "teacher_q": np.ones((4, 2), np.float32)}
    if td_coeff:
        columns |= {"actions": np.zeros(4, np.int64), "rewards": np.ones(4, np.float32)}
        columns |= {name: np.ones(4, dtype=bool) for name in ("terminateds", "truncateds", "valid")}
    return columns


# --- Sampling while the Learner learns --------------------------------------------------------------------------------


def rows_in_replay(learner):
    return len(learner.groups["default_policy"].replay)


@pytest.mark.slow
@pytest.mark.parametrize("num_learners", [0, 1])
def test_counters_are_those_of_the_states_that_came(cartpole_config, build, num_learners):
    config = cartpole_config.env_runners(num_env_runners=2).learners(num_learners=num_learners, num_cpus_per_learner=1)
    algo = build(config.training(num_steps_sampled_before_learning_starts=0))
    assert algo.config.max_staleness is None
    for _ in range(10):
        result = algo.train()
    (rows,) = (result.get() for result in algo.learner_group.foreach_learner(rows_in_replay))
    assert result["num_env_steps_sampled_lifetime"] == rows >= 10 * 64
    due = 8 * rows
    assert due - 32 < 32 * result["distillation"]["num_gradient_steps_lifetime"] <= due
    assert result["distillation"]["staleness_max"] >= result["distillation"]["staleness_mean"] > 0
    assert len(algo._sampling.requests) <= 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_no_sample_is_staler_than_allowed(cartpole_config, build, max_staleness):
    algo = build(cartpole_config.env_runners(num_env_runners=2).distillation(max_staleness=max_staleness))
    stalest = [algo.train()["distillation"]["staleness_max"] for _ in range(10)]
    assert max(stalest) == max_staleness


@pytest.mark.slow
def test_taking_turns_the_same_seed_gives_the_same_student(cartpole_config, build):
    config = cartpole_config.env_runners(num_env_runners=2).distillation(max_staleness=0)
    algos = [build(config.copy(copy_frozen=False)) for _ in range(2)]
    for algo in algos:
        for _ in range(3):
            algo.train()
    assert_equal_weights(student_weights(algos[0]), student_weights(algos[1]))


@pytest.mark.slow
def test_the_states_of_connectors_come_with_the_samples(cartpole_config, build):
    config = cartpole_config.env_runners(
        num_env_runners=2, env_to_module_connector=lambda env, spaces, device: MeanStdFilter()
    )
    algo = build(config)
    for _ in range(5):
        algo.train()

    def seen(env_runner):
        (own,) = (each for each in env_runner._env_to_module.connectors if isinstance(each, MeanStdFilter))
        return next(iter(own.get_state().values()))["running_stats"][0]["num_pushes"]

    merged = seen(algo.env_runner)
    assert merged > 0
    for _ in range(100):  # an EnvRunner gets them after what it has under way
        algo.train()
        remote = algo.env_runner_group.foreach_env_runner(seen, local_env_runner=False)
        if min(remote) >= merged:
            break
    assert min(remote) >= merged


def test_a_restore_forgets_what_is_under_way(cartpole_config, build, tmp_path):
    algo = build(cartpole_config.env_runners(num_env_runners=1))
    before = algo.train()["num_env_steps_sampled_lifetime"]
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    for _ in range(3):
        algo.train()
    assert len(algo._sampling.requests)
    algo.restore_from_path(path)
    assert len(algo._sampling.requests) == 0
    assert algo.num_env_steps == before
    result = algo.train()
    assert result["num_env_steps_sampled_lifetime"] > before
    assert result["distillation"]["staleness_mean"] >= 0


@pytest.mark.slow
def test_a_killed_env_runner_comes_back_with_the_teacher(cartpole_config, build):
    algo = build(cartpole_config.env_runners(num_env_runners=2).fault_tolerance(restart_failed_env_runners=True))
    algo.train()
    pid = algo.env_runner_group.foreach_env_runner(lambda env_runner: os.getpid(), local_env_runner=False)[0]
    algo.train()  # requests are under way
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while algo.env_runner_group.num_remote_worker_restarts() == 0:
        assert time.monotonic() < deadline
        before = algo.num_env_steps
        result = algo.train()
        assert algo.num_env_steps > before  # the other goes on
    assert algo.env_runner_group.num_healthy_remote_workers() == 2
    has_teacher = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: env_runner._teacher is not None, local_env_runner=False
    )
    assert has_teacher == [True, True]
    result = algo.train()
    kept = rows_in_replay(algo.learner_group._learner)
    assert kept <= result["num_env_steps_sampled_lifetime"] <= kept + 2 * 64  # what came from it, but was lost with it
    assert 32 * result["distillation"]["num_gradient_steps_lifetime"] <= 8 * result["num_env_steps_sampled_lifetime"]


def test_tune_runs_it_from_a_plain_dict(cluster, small_teacher, tmp_path):
    results = tune.Tuner(
        "DistillDQN",
        param_space={
            "env": "CartPole-v1",
            "teacher": small_teacher,
            "loss": "mse",
            "compression": tune.grid_search([0.1, 0.2]),
            "num_baseline_episodes": 0,
            "num_envs_per_env_runner": 2,
        },
        run_config=tune.RunConfig(stop={"training_iteration": 1}, storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    sizes = sorted(result.metrics["distillation"]["compression"] for result in results)
    assert sizes[0] <= 0.1 < sizes[1] <= 0.2


@pytest.mark.slow
def test_a_trial_resumes_although_the_teacher_is_gone(cluster, tmp_path):
    teacher, broken = tmp_path / "teacher", tmp_path / "broken"
    make_q_module().save_to_path(str(teacher))
    broken.touch()

    class FailsWhileBroken(RLlibCallback):
        def on_train_result(self, *, result, **kwargs):
            if result["training_iteration"] == 3 and broken.exists():
                raise RuntimeError("out of luck")

    tuner = tune.Tuner(
        "DistillDQN",
        param_space={
            "env": "CartPole-v1",
            "teacher": str(teacher),
            "compression": 0.1,
            "num_baseline_episodes": 0,
            "callbacks_class": FailsWhileBroken,
        },
        run_config=tune.RunConfig(
            name="sweep",
            stop={"training_iteration": 4},
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            verbose=0,
        ),
    )
    (failed,) = tuner.fit()
    assert "out of luck" in str(failed.error)
    broken.unlink()
    teacher.rename(tmp_path / "gone")
    (resumed,) = tune.Tuner.restore(str(tmp_path / "sweep"), trainable="DistillDQN", resume_errored=True).fit()
    assert resumed.error is None
    assert resumed.metrics["training_iteration"] == 4
    assert resumed.metrics["num_env_steps_sampled_lifetime"] > failed.metrics["num_env_steps_sampled_lifetime"]


def test_a_bad_trial_says_why(cluster, tmp_path):
    results = tune.Tuner(
        "DistillDQN",
        param_space={"env": "CartPole-v1", "teacher": "/does/not/exist"},
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert "There is no checkpoint at '/does/not/exist'" in str(results.errors[0])


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def test_a_callback_restores_before_setup_has_ended(cartpole_config, build, tmp_path):
    algo = build(cartpole_config.distillation(num_baseline_episodes=2))
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    restored = build(
        cartpole_config.copy(copy_frozen=False)
        .distillation(num_baseline_episodes=0)
        .callbacks(on_algorithm_init=lambda *, algorithm, **kwargs: algorithm.restore_from_path(path))
    )
    assert restored.num_env_steps == algo.num_env_steps > 0
    assert_equal_weights(student_weights(restored), student_weights(algo))
    expected = algo.train()["distillation"]["teacher_return"]
    assert restored.train()["distillation"]["teacher_return"] == expected > 0


@pytest.mark.parametrize("restore", ["Algorithm.from_checkpoint", "DistillDQN.from_checkpoint", "restore_from_path"])
@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_resumes_without_the_teachers_original_path(cartpole_config, build, tmp_path, restore, num_env_runners):
    original = tmp_path / "teacher"
    make_q_module().save_to_path(str(original))
    config = cartpole_config.env_runners(num_env_runners=num_env_runners).distillation(
        teacher=original, loss="mse", teacher_fraction=[[0, 1.0], [1_000, 0.0]]
    )
    algo = build(config)
    for _ in range(3):
        before = algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    if restore == "restore_from_path":
        resumed = build(config)
        resumed.restore_from_path(path)
    else:
        original.rename(tmp_path / "gone")
        cls = Algorithm if restore.startswith("Algorithm") else DistillDQN
        resumed = cls.from_checkpoint(path)
    assert isinstance(resumed, DistillDQN)
    assert_equal_weights(student_weights(resumed), student_weights(algo))
    assert bytes_of(resumed._teachers["default_policy"]) == bytes_of(algo._teachers["default_policy"])
    states_of = [a.learner_group._learner.get_state() for a in (algo, resumed)]
    moments = [tree.flatten(state["optimizer"]) for state in states_of]
    assert len(moments[0]) == len(moments[1]) > 10
    for ours, theirs in zip(*moments, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    own = [state["distillation"]["default_policy"] for state in states_of]
    np.testing.assert_array_equal(*(state["q_statistics"]["sums"] for state in own))
    assert own[0]["num_steps"] == own[1]["num_steps"] > 0
    for ours, theirs in zip(*(state["students"]["default_policy"]["training_weights"] for state in own), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    after = resumed.train()
    resumed.stop()
    counters = ("num_env_steps_sampled_lifetime", "training_iteration")
    assert all(after[name] > before[name] for name in counters)
    assert after["num_env_steps_sampled_lifetime"] >= before["num_env_steps_sampled_lifetime"] + 64
    assert after["distillation"]["teacher_fraction"] < before["distillation"]["teacher_fraction"]
    assert after["distillation"]["num_gradient_steps_lifetime"] >= before["distillation"]["num_gradient_steps_lifetime"]


def test_a_checkpoints_config_alone_says_that_the_teacher_is_missing(cartpole_config, build, tmp_path):
    algo = build(cartpole_config)
    bare = DistillDQN(algo.get_ctor_args_and_kwargs()[0][0])
    with pytest.raises(ValueError, match=r"without the teacher\. Restore it with DistillDQN\.from_checkpoint"):
        bare.train()
    bare.stop()


def test_the_student_loads_without_this_package(cartpole_config, build, tmp_path):
    algo = build(cartpole_config.distillation(loss="mse"))
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    expected = algo.get_module().compute_q_values({"obs": torch.as_tensor(states(3))})["qf_preds"].tolist()
    code = f"""
import sys
sys.modules["rllib_kd"] = None  # importing it is an error
import torch
from ray.rllib.core.rl_module.rl_module import RLModule
module = RLModule.from_checkpoint({path!r} + "/learner_group/learner/rl_module/default_policy")
q = module.compute_q_values({{"obs": torch.tensor({states(3).tolist()})}})["qf_preds"]
print(type(module).__name__, q.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    name, q = done.stdout.strip().split(" ", 1)
    assert name == "DefaultDQNTorchRLModule"
    np.testing.assert_allclose(eval(q), expected, rtol=1e-5)


def test_a_student_can_teach(cartpole_config, build, tmp_path):
    algo = build(cartpole_config)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    result = build(cartpole_config.copy(copy_frozen=False).distillation(teacher=path)).train()
    assert result["distillation"]["teacher_params"] == 58


# --- Bad input --------------------------------------------------------------------------------------------------------


def teacher_of(tmp_path, *spaces):
    return make_q_module(*spaces, fcnet_hiddens=[4]).save_to_path(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            (gym.spaces.Box(-1, 1, (6,), np.float32),),
            r"observation space is Box\(6,\), but in 'CartPole-v1' it is Box\(4,\)",
        ),
        (
            (gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(3)),
            r"action space is Discrete\(3\).*Discrete\(2\)",
        ),
    ],
)
def test_spaces_that_differ_are_both_named(cartpole_config, build, tmp_path, spaces, message):
    with pytest.raises(ValueError, match=message):
        build(cartpole_config.distillation(teacher=teacher_of(tmp_path, *spaces)))


class Continuous(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, config=None):
        pass


class Tabular(Continuous):
    observation_space, action_space = gym.spaces.Discrete(5), gym.spaces.Discrete(2)


class Bytes(Continuous):
    observation_space, action_space = gym.spaces.Box(0, 255, (4,), np.uint8), gym.spaces.Discrete(2)


class FromThree(Continuous):
    action_space = gym.spaces.Discrete(2, start=3)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Continuous, "needs discrete actions 0 to A"),
        (FromThree, "needs discrete actions 0 to A"),
        (Tabular, "need observations in a Box of floats"),
        (Bytes, "need observations in a Box of floats"),
    ],
)
@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_environments_that_do_not_suit_a_q_network_say_so(cartpole_config, build, env, message, num_env_runners):
    with pytest.raises(ValueError, match=message):
        build(cartpole_config.environment(env).env_runners(num_env_runners=num_env_runners))


def test_an_unknown_environment_says_so_with_remote_env_runners(cartpole_config, build):
    with pytest.raises(ValueError, match=r"cannot be made: .*CartPool"):
        build(cartpole_config.environment("CartPool-v1").env_runners(num_env_runners=1))


def test_a_missing_teacher_is_an_error_when_the_algorithm_is_built(cartpole_config, build):
    with pytest.raises(ValueError, match="There is no checkpoint at '/does/not/exist'"):
        build(cartpole_config.distillation(teacher="/does/not/exist"))


def test_an_unreachable_compression_is_an_error_when_the_algorithm_is_built(cartpole_config, build):
    with pytest.raises(ValueError, match="one unit in each layer"):
        build(cartpole_config.rl_module(model_config={}).distillation(compression=1e-5))


def test_a_checkpoint_of_another_algorithm_is_refused_with_its_reason(cartpole_config, build, tmp_path):
    from ray.rllib.algorithms.ppo import PPOConfig

    ppo = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0).build_algo()
    path = ppo.save_to_path(str(tmp_path / "ppo"))
    ppo.stop()
    with pytest.raises(ValueError, match="has no Q-values"):
        build(cartpole_config.distillation(teacher=path))


def test_a_running_ray_is_used_as_it_is(cartpole_config, build):
    node = ray.get_runtime_context().get_node_id()
    build(cartpole_config)
    assert ray.get_runtime_context().get_node_id() == node
    assert ray.cluster_resources()["CPU"] == 4


def test_rllibs_own_dqn_is_untouched(cluster):
    assert DQNConfig().environment("CartPole-v1").learner_class is not DistillDQNTorchLearner
    assert DistillDQN.get_default_config().learner_class is DistillDQNTorchLearner
    assert isinstance(DistillDQN.get_default_config(), DistillDQNConfig)
