"""The last student of a run, not the best, on episodes that were not used for anything before."""

import pytest

from rllib_kd import DistillDQNConfig, compare
from tests.conftest import shared_teacher

pytestmark = pytest.mark.slow

FRESH_SEED = 1_000_000
RECIPES = {"kl": {"units": 16, "env_steps": 12_000}, "mse": {"units": 32, "env_steps": 20_000}}


def distil(build, teacher, loss, *, num_env_runners=0, num_learners=0):
    recipe = RECIPES[loss]
    steps = recipe["env_steps"]
    algo = build(
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=num_env_runners, gym_env_vectorize_mode="vector_entry_point")
        .learners(num_learners=num_learners, num_cpus_per_learner=1)
        .rl_module(model_config={"fcnet_hiddens": [recipe["units"]], "fcnet_activation": "relu"})
        .distillation(teacher=teacher, loss=loss, rollout_policy="mixture", num_baseline_episodes=0)
        .debugging(seed=0)
    )
    while algo.train()["num_env_steps_sampled_lifetime"] < steps:
        pass
    return algo


def test_a_student_reaches_95_percent(build):
    teacher = str(shared_teacher("sb3/dqn-CartPole-v1.zip"))
    algo = distil(build, teacher, "mse")
    result = compare(teacher, algo, "CartPole-v1", num_episodes=50, seed=FRESH_SEED)
    assert result.student.return_mean >= 0.95 * result.teacher.return_mean


def test_so_does_one_that_learns_elsewhere(build):
    algo = distil(build, "cartpole", "kl", num_env_runners=2, num_learners=2)
    result = compare("cartpole", algo, "CartPole-v1", num_episodes=50, seed=FRESH_SEED)
    assert result.student.return_mean >= 0.95 * result.teacher.return_mean
    weights = [
        result.get()
        for result in algo.learner_group.foreach_learner(
            lambda learner: [p.detach().numpy().tobytes() for p in learner.module["default_policy"].parameters()]
        )
    ]
    assert weights[0] == weights[1]
