"""First weights from the teacher, in an algorithm."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole

from rllib_kd import DistillDQN, DistillDQNConfig, load_teacher
from rllib_kd.algorithm.first_weights import FirstStates, FirstWeights
from rllib_kd.algorithm.students import new_student
from tests.algorithm.weights import assert_equal_weights, student_weights
from tests.conftest import make_q_module, states


def standing_still(config, **kwargs):
    """A student as wide as its teacher, whose learning rate is too small to change it."""
    return (
        config.rl_module(model_config={"fcnet_hiddens": [32, 32], "fcnet_activation": "relu"})
        .training(lr=1e-12)
        .distillation(init="teacher", **kwargs)
    )


@pytest.mark.parametrize(
    ("settings", "num_learners"),
    [
        ({"loss": "mse"}, 0),
        ({"loss": "mse", "normalize_q_values": False}, 0),
        ({"loss": "kl"}, 0),
        ({"loss": "kl", "student_temperature": 1.0}, 0),
        pytest.param({"loss": "huber", "td_coeff": 1.0}, 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_student_starts_as_its_teacher(cartpole_config, build, small_teacher, settings, num_learners):
    algo = build(standing_still(cartpole_config, **settings).learners(num_learners=num_learners))
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


def test_a_student_behind_a_filter_that_learns_is_refused_at_once(cartpole_config, build):
    config = cartpole_config.env_runners(env_to_module_connector=lambda *_: MeanStdFilter())
    with pytest.raises(ValueError, match=r"init='teacher' needs a student with the same observations .* MeanStdFilter"):
        build(config.distillation(init="teacher"))


def test_a_student_that_sees_something_else_cannot_start_from_its_teacher(cartpole_config, build):
    config = cartpole_config.env_runners(env_to_module_connector=lambda *_: MeanStdFilter(update_stats=False))
    algo = build(config.distillation(init="teacher").training(num_steps_sampled_before_learning_starts=0))
    with pytest.raises(ValueError, match=r"need a student with the same observations as its teacher"):
        algo.train()


def test_an_agent_that_has_not_acted_yet_gets_its_first_weights_with_its_first_states(
    cartpole_config, build, small_teacher
):
    config = standing_still(cartpole_config, loss="mse").environment(MultiAgentCartPole, env_config={"num_agents": 1})
    config.multi_agent(policies={"early", "late"}, policy_mapping_fn=lambda *args, **kwargs: "early")
    algo = build(config.distillation(teacher=dict.fromkeys(("early", "late"), small_teacher)))
    for _ in range(10):
        if algo.num_gradient_steps == 0:
            algo.train()
    assert not algo._first_weights.is_done
    early = algo.learner_group._learner.groups["early"].students["early"]
    learned = [weight.copy() for weight in early.get_state()["training_weights"]]
    assert learned
    q = load_teacher(small_teacher).q_values(torch.as_tensor(states(50)))
    late = algo.learner_group._learner.module["late"].unwrapped()
    for columns in ({"valid": np.zeros(50, dtype=bool)}, {}):  # the first ones cannot be learned from
        sample = {"late": {"obs": states(50), "teacher_q": q.numpy(), **columns}}
        algo._first_weights.keep([sample])
        make = partial(new_student, algo.config, algo.spaces)
        algo._first_weights.set_on(algo.learner_group, algo._students, algo._teachers, make, algo.config)
        assert algo._first_weights.is_done == (not columns)
    own_q = late.compute_q_values({"obs": torch.as_tensor(states(50, seed=9))})["qf_preds"].detach()
    expected = load_teacher(small_teacher).q_values(torch.as_tensor(states(50, seed=9)))
    torch.testing.assert_close(own_q, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_equal(early.get_state()["training_weights"], learned)  # nothing else has changed


def test_each_policy_starts_by_its_own_loss(cartpole_config, small_teacher, monkeypatch):
    config = standing_still(cartpole_config, loss="kl")
    config.rl_module(algorithm_config_overrides_per_module={"values": {"loss": "mse"}})
    teacher, obs = load_teacher(small_teacher), torch.as_tensor(states(50))
    teacher_q = teacher.q_values(obs)
    teachers = dict.fromkeys(("values", "ranks"), teacher)
    first_weights, found = FirstWeights(teachers), {}
    columns = {"obs": obs.numpy(), "teacher_q": teacher_q.numpy()}
    first_weights.keep([dict.fromkeys(teachers, columns)])
    name = "rllib_kd.algorithm.first_weights.set_first_weights"
    monkeypatch.setattr(name, lambda _, weights, **kwargs: found.update(weights))
    students = SimpleNamespace(of_group=lambda group_id: [group_id])
    first_weights.set_on(None, students, teachers, lambda _: make_q_module(), config)
    own_q = {}
    for policy, weights in found.items():
        student = make_q_module()
        student.set_state(weights)
        own_q[policy] = student.compute_q_values({"obs": obs})["qf_preds"].detach()
    torch.testing.assert_close(own_q["values"], teacher_q, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own_q["ranks"].mean(-1), torch.zeros(50), rtol=0.0, atol=1e-3)


def test_they_are_fitted_to_states_of_all_phases_where_environments_alternate(
    cartpole_config, small_teacher, monkeypatch
):
    teacher, obs = load_teacher(small_teacher), states(4_096)
    obs[:, 0] = np.arange(len(obs)) % 2
    first, seen = FirstStates(), []
    first.keep({"obs": obs, "teacher_q": teacher.q_values(torch.as_tensor(obs)).numpy()})
    name = "rllib_kd.algorithm.first_weights.initialize"
    monkeypatch.setattr(name, lambda student, teacher, obs, **kwargs: seen.append(obs))
    first.initial_weights(make_q_module(), teacher, standing_still(cartpole_config))
    assert seen[0].shape == (2_048, 4)
    assert seen[0][:, 0].mean() == pytest.approx(0.5, abs=0.05)
