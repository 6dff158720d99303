"""EnvRunners and Learners elsewhere: what they learn, and how sampling goes on while they do."""

import numpy as np
import pytest
import ray
import torch
from ray.rllib.connectors.env_to_module import MeanStdFilter

from rllib_kd import DistillDQNTorchLearner
from rllib_kd.algorithm import algorithm
from tests.algorithm.weights import assert_equal_weights, student_weights
from tests.background import wait_for
from tests.conftest import states


def test_nothing_is_stored_where_sampling_and_learning_share_a_process(cartpole_config, build, monkeypatch):
    algo = build(cartpole_config)
    before = student_weights(algo)
    monkeypatch.setattr(ray, "put", None)
    algo.train(), algo.train()
    assert algo.num_gradient_steps > 0
    after, acting = student_weights(algo), algo.env_runner.module.get_state()
    assert any((after[name] != before[name]).any() for name in after)
    assert_equal_weights({name: after[name] for name in acting}, acting)


@pytest.mark.slow
def test_two_learners_make_the_step_of_one_on_both_batches(cartpole_config, build):
    """The gradients that two Learners step along, against those of one Learner on the union of their batches."""
    config = cartpole_config.distillation(weight_averaging=0.0, normalize_observations=False, td_coeff=0.5)
    one = build(config.copy(copy_frozen=False)).learner_group._learner
    two = build(config.learners(num_learners=2, num_cpus_per_learner=1))
    two.train()

    def next_batch(learner: DistillDQNTorchLearner):
        group = learner.groups["default_policy"]
        generator = group.replay._generator
        before = generator.get_state()
        ((rows, _),) = group.replay.draw(1, 32)
        generator.set_state(before)
        batch = group.gather(rows, uses_td=True)
        return {name: column.clone() for name, column in batch.items()}, learner.get_state("rl_module")

    def gradients(learner: DistillDQNTorchLearner):
        return [p.grad.clone() for p in learner.module["default_policy"].parameters() if p.grad is not None]

    (first, state), (second, _) = (result.get() for result in two.learner_group.foreach_learner(next_batch))
    assert not torch.equal(first["obs"], second["obs"])
    two.learner_group.update(
        batch_refs=[ray.put({name: column[:0] for name, column in shard().items()})] * 2,
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
    fwd_out = module.forward_train(union)
    one.compute_loss_for_module(module_id="default_policy", config=one.config, batch=union, fwd_out=fwd_out).backward()
    expected = gradients(one)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for result in two.learner_group.foreach_learner(gradients):
        torch.testing.assert_close(result.get(), expected, rtol=1e-5, atol=1e-6)


def shard():
    """A fragment as EnvRunners send it."""
    columns = {"obs": states(4), "teacher_q": np.ones((4, 2), np.float32)}
    columns |= {"actions": np.zeros(4, np.int64), "rewards": np.ones(4, np.float32)}
    return columns | {name: np.ones(4, dtype=bool) for name in ("terminateds", "truncateds", "valid")}


# --- Sampling while the Learner learns --------------------------------------------------------------------------------


def rows_in_replay(learner):
    return len(learner.groups["default_policy"].replay)


@pytest.mark.slow
def test_counters_are_those_of_the_states_that_came(cartpole_config, build):
    config = cartpole_config.env_runners(num_env_runners=2).learners(num_learners=1, num_cpus_per_learner=1)
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
def test_no_sample_is_staler_than_allowed(cartpole_config, build):
    algo = build(cartpole_config.env_runners(num_env_runners=2).distillation(max_staleness=1))
    stalest = [algo.train()["distillation"]["staleness_max"] for _ in range(10)]
    assert max(stalest) == 1


@pytest.mark.slow
def test_taking_turns_the_same_seed_gives_the_same_student(cartpole_config, build):
    config = cartpole_config.env_runners(num_env_runners=2).distillation(max_staleness=0)
    algos = [build(config.copy(copy_frozen=False)) for _ in range(2)]
    for algo in algos:
        for _ in range(3):
            assert algo.train()["distillation"]["staleness_max"] == 0
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


@pytest.mark.slow
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


@pytest.mark.parametrize("where", ["on_algorithm_init", "play_baselines"])
def test_a_set_up_that_fails_leaves_no_actors(cartpole_config, cluster, monkeypatch, where):
    def fail(*args, **kwargs):
        raise ArithmeticError("too late")

    if where == "play_baselines":
        monkeypatch.setattr(algorithm, "play_baselines", fail)
    else:
        cartpole_config.callbacks(on_algorithm_init=fail)
    config = cartpole_config.env_runners(num_env_runners=1).learners(num_learners=1, num_cpus_per_learner=1)

    def num_free():
        return ray.available_resources().get("CPU", 0)

    wait_for(lambda: num_free() == 4, seconds=30)  # those of earlier tests have ended
    with pytest.raises(ArithmeticError, match="too late") as raised:
        config.build_algo()
    wait_for(lambda: num_free() == 4, seconds=30)
    del raised  # until here it has kept the traceback, as a notebook does, and with it the algorithm
