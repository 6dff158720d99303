"""The whole machine on a small scale: results, teacher, TD."""

import math
import pickle
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_kd import DistillDQN, DistillDQNConfig, DistillDQNTorchLearner, load_teacher
from rllib_kd.env_runner.students import StudentsEnvRunner
from tests.algorithm.weights import assert_equal_weights, bytes_of, student_weights
from tests.conftest import make_q_module

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
        cartpole_config.distillation(teacher="cartpole", num_baseline_episodes=1).evaluation(
            evaluation_interval=3, evaluation_duration=1
        )
    )
    ratios = [algo.train()["distillation"]["return_ratio"] for _ in range(5)]
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
    results = [algo.train() for _ in range(5)]
    result = results[-1]
    made = algo.learner_group._learner.groups["default_policy"].num_steps
    assert result["distillation"]["num_gradient_steps_lifetime"] == made > 0
    learners = [each["learners"]["default_policy"] for each in results]
    assert learners[-1]["num_gradient_steps"] == 0
    assert any("kd_loss" in own for own in learners)
    assert not {"kd_loss", "total_loss"} & learners[-1].keys()  # they would be NaN
    assert "teacher_agreement" in learners[-1]


def test_a_loss_whose_coefficient_has_fallen_to_0_is_in_no_result(cartpole_config, build):
    config = cartpole_config.distillation(kd_coeff=[[0, 1.0], [150, 0.0]], td_coeff=1.0)
    algo = build(config)
    losses = [set(algo.train()["learners"]["default_policy"]) & {"kd_loss", "td_loss", "total_loss"} for _ in range(5)]
    assert {"kd_loss", "td_loss", "total_loss"} in losses
    assert losses[-1] == {"td_loss", "total_loss"}


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


def test_the_teacher_leaves_the_mixture_and_takes_over_where_it_must(cartpole_config):
    assert [cartpole_config.teacher_fraction_at(steps) for steps in (0, 5_000, 10_000, 10**6)] == [1.0, 0.75, 0.5, 0.0]
    assert cartpole_config.max_regret_in_gaps == math.inf
    copies = cartpole_config.copy().distillation(restarts=2)
    assert copies.max_regret_in_gaps == 30.0
    assert copies.distillation(rollout_policy="student").max_regret_in_gaps == math.inf
    tree = {"tree": {"max_leaf_nodes": 8}}
    assert cartpole_config.copy().distillation(student=tree).max_regret_in_gaps == 30.0
    assert cartpole_config.copy().distillation(student=tree, restarts=1).max_regret_in_gaps == math.inf
    family = cartpole_config.copy().distillation(students={"tree": tree, "net": {"fcnet_hiddens": [8]}}, restarts=2)
    assert family.max_regret_in_gaps == 30.0
    cartpole_config.distillation(td_coeff=[[0, 0.0], [100, 1.0]])
    assert [cartpole_config.teacher_fraction_at(steps) for steps in (0, 5_000, 10_000)] == [1.0, 0.5, 0.0]
    assert cartpole_config.max_regret_in_gaps == math.inf
    assert cartpole_config.distillation(max_regret=2).max_regret_in_gaps == 2
    unlimited = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole", student=tree)
    unlimited.distillation(max_regret=math.inf)
    assert unlimited.max_regret_in_gaps == math.inf
    unlimited.validate()


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
    assert algo.get_copies() == {"default_policy": algo.get_module()}


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
    assert type(algo.eval_env_runner) is StudentsEnvRunner  # RLlib's loop, with legal actions
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
    config = cartpole_config.env_runners(num_env_runners=1).rl_module(model_config={})
    algo = build(config.distillation(td_coeff=0.5, compression=0.1))
    before = bytes_of(algo._teachers["default_policy"])
    for _ in range(5):
        algo.train()
    assert bytes_of(algo._teachers["default_policy"]) == before == bytes_of(load_teacher(cartpole_config.teacher))
    remote = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: [p.numpy().tobytes() for p in env_runner._teacher._module.parameters()],
        local_env_runner=False,
    )
    assert remote == [before]
    widths = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: env_runner.module.model_config["fcnet_hiddens"], local_env_runner=False
    )
    assert widths == [[7, 7]] == [algo.get_module().model_config["fcnet_hiddens"]]  # settled before any actor started

    learner = algo.learner_group._learner
    optimized = sum(
        p.numel() for group in learner.get_optimizer("default_policy").param_groups for p in group["params"]
    )
    assert optimized == 4 * 7 + 7 + 7 * 7 + 7 + 7 * 2 + 2
    synced = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: len(pickle.dumps(env_runner.get_state())), local_env_runner=False
    )
    teacher_size = sum(map(len, before))
    assert max(synced) < teacher_size
    assert len(pickle.dumps(learner.get_state())) < teacher_size + 5_000  # statistics and optimizer, no teacher
    labels = {name for name in student_weights(algo) if not name.startswith("_target")}
    assert labels == set(make_q_module(fcnet_hiddens=[7, 7]).get_state())

    path = Path(algo.save_to_path(str(tmp_path / "checkpoint")))
    needle = before[0][:64]
    holders = [file for file in path.rglob("*") if file.is_file() and needle in file.read_bytes()]
    assert holders == [path / "teacher" / "state.pkl"]


@pytest.mark.slow
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


@pytest.mark.slow
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
    for _ in range(8):
        last = algo.train()["learners"]["default_policy"]["kd_loss"]
    assert last < first
    assert algo.get_module().num_atoms == 11


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_features_of_another_width_are_matched(cartpole_config, build, tmp_path, num_learners):
    algo = build(cartpole_config.distillation(feature_coeff=0.01).learners(num_learners=num_learners))
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


def test_compression_settles_the_widths(cartpole_config, build, tmp_path):
    path = make_q_module(fcnet_hiddens=[64, 64]).save_to_path(str(tmp_path / "teacher"))
    config = cartpole_config.rl_module(model_config={}).distillation(teacher=path, compression=0.1)
    algo = build(config)
    result = algo.train()
    assert 0.08 < result["distillation"]["compression"] <= 0.1
    assert algo.get_module().model_config["fcnet_hiddens"] == [17, 17]
    with pytest.raises(ValueError, match=r"There is one student, 'default_policy', got the name 's4'\. Leave it out"):
        algo.get_module("s4")
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


@pytest.mark.parametrize(("num_env_runners", "num_learners"), [(0, 0), pytest.param(1, 2, marks=pytest.mark.slow)])
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

    saved = student_weights(algo)
    algo.stop()  # its processes have the CPUs that the next ones need
    resumed = DistillDQN.from_checkpoint(path)
    assert_equal_weights(student_weights(resumed), saved)
    assert resumed.train()["num_env_steps_sampled_lifetime"] > result["num_env_steps_sampled_lifetime"]
    resumed.stop()
    here = cartpole_config.copy(copy_frozen=False).env_runners(num_env_runners=0).learners(num_learners=0)
    student = build(here.distillation(teacher=path))
    assert student.train()["distillation"]["teacher_params"] == 58


def test_a_running_ray_is_used_as_it_is(cartpole_config, build):
    node = ray.get_runtime_context().get_node_id()
    build(cartpole_config)
    assert ray.get_runtime_context().get_node_id() == node
    assert ray.cluster_resources()["CPU"] == 4


def test_rllibs_own_dqn_is_untouched(cluster):
    assert DQNConfig().environment("CartPole-v1").learner_class is not DistillDQNTorchLearner
    assert DistillDQN.get_default_config().learner_class is DistillDQNTorchLearner
    assert isinstance(DistillDQN.get_default_config(), DistillDQNConfig)
