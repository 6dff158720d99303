"""Defaults and first weights, judged by the last student on episodes that were not used for anything before."""

import pytest

from rllib_kd import DistillDQNConfig, compare, compare_all
from tests.benchmarks import weak_teacher
from tests.conftest import shared_teacher

pytestmark = pytest.mark.slow

FRESH_SEED = 1_000_000


def distil(build, env, teacher, env_steps, seed, **settings):
    algo = build(
        DistillDQNConfig()
        .environment(env)
        .rl_module(model_config={"fcnet_hiddens": [32], "fcnet_activation": "relu"})
        .distillation(teacher=teacher, num_baseline_episodes=0, **settings)
        .debugging(seed=seed)
    )
    while algo.train()["num_env_steps_sampled_lifetime"] < env_steps:
        pass
    return algo


def test_the_defaults_reach_the_teacher(build):
    """Over two seeds, students have 0.99 and 1.01 after 12,000 env steps, and 1.00 and 1.01 after 20,000."""
    env = "MountainCar-v0"
    teacher = str(shared_teacher(f"sb3/dqn-{env}.zip"))
    student = distil(build, env, teacher, 16_000, 0)
    assert compare(teacher, student, env, num_episodes=50, seed=FRESH_SEED).return_ratio >= 0.95


def test_first_weights_from_the_teacher_save_the_first_thousands_of_steps(build):
    students = {
        f"{init} {seed}": distil(build, "CartPole-v1", "cartpole", 1_000, seed, init=init)
        for init in ("random", "teacher")
        for seed in range(2)
    }
    comparisons = compare_all("cartpole", students, "CartPole-v1", num_episodes=25, seed=FRESH_SEED)
    random, taught = ([each for each in comparisons if each.student.name.startswith(init)] for init in ("r", "t"))
    assert min(each.return_ratio for each in taught) >= 0.95
    # Over four seeds, 0.58 to 0.63 and 0.79 to 0.89.
    least = max(each.agreement_on_student_states for each in random) + 0.05
    assert min(each.agreement_on_student_states for each in taught) > least


def test_with_td_a_student_ends_above_a_weak_teacher(cluster, tmp_path, monkeypatch):
    """As in that benchmark, in half the time. Over two other seeds, teachers of 106 and 114 had students of 500."""
    path, env_steps = tmp_path / "teacher", 20_000
    monkeypatch.setattr(weak_teacher, "STUDENT_ENV_STEPS", env_steps)  # of the learning rate's schedule, too
    monkeypatch.setattr(weak_teacher, "NUM_EPISODES", 30)
    from_teacher = weak_teacher.FROM_TEACHER | {"kd_coeff": [[0, 1.0], [env_steps // 2, 0.0]]}
    teacher = weak_teacher.train(weak_teacher.config(10, **weak_teacher.WITHOUT_TEACHER), 4_000, path)
    student = weak_teacher.train(weak_teacher.config(10, teacher=path, **from_teacher), env_steps)
    assert student > teacher + 100
