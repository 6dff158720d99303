"""Algorithms restored from checkpoints: where, by whom, and without what."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tree
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_kd import DistillDQN, load_teacher
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.running import RunOptions, check_options
from rllib_kd.networks.weights import weights_of
from tests.algorithm.weights import assert_equal_weights, bytes_of, student_weights
from tests.conftest import make_q_module, states


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


def test_a_callback_at_the_start_has_the_whole_algorithm(cartpole_config, build, tmp_path):
    algo = build(cartpole_config)
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    got = {}

    def look(*, algorithm, **kwargs):
        algorithm.restore_from_path(f"{path}/learner_group", component="learner_group")
        algorithm.restore_from_path(f"{path}/env_runner", component="env_runner")
        got.update(module=algorithm.get_module(), steps=algorithm.num_gradient_steps)
        got["saved"] = algorithm.save_to_path(str(tmp_path / "at the start"))

    begun = build(cartpole_config.copy(copy_frozen=False).callbacks(on_algorithm_init=look))
    assert_equal_weights(student_weights(begun), student_weights(algo))
    assert got["module"] is begun.get_module()
    assert got["steps"] == 0
    obs = torch.as_tensor(states(4))
    assert torch.equal(load_teacher(got["saved"]).q_values(obs), load_teacher(path).q_values(obs))


def test_an_earlier_student_plays_at_once(cartpole_config, build, tmp_path):
    algo = build(cartpole_config.evaluation(evaluation_duration=1))
    algo.train()
    path, state = algo.save_to_path(str(tmp_path / "checkpoint")), algo.get_state()
    expected = weights_of(algo.get_module())
    name = next(iter(expected))
    algo.get_module().save_to_path(str(tmp_path / "module"))
    component = "learner_group/learner/rl_module/default_policy"
    for restore in (
        lambda: algo.restore_from_path(path),
        lambda: algo.set_state(state),
        lambda: algo.set_state({"learner_group": {"learner": {"rl_module": {"default_policy": expected}}}}),
        lambda: algo.restore_from_path(str(tmp_path / "module"), component=component),
    ):
        for _ in range(2):
            algo.train()
        algo.evaluate()
        assert not np.array_equal(weights_of(algo.get_module())[name], expected[name])
        restore()
        algo.evaluate()
        for module in (algo.get_module(), algo.env_runner.module, algo.eval_env_runner.module):
            assert_equal_weights(weights_of(module), expected)
        algo.train()
        learned = student_weights(algo)
        assert_equal_weights(weights_of(algo.get_module()), {name: learned[name] for name in expected})


@pytest.mark.parametrize(
    ("num_env_runners", "restore"),
    [
        (0, "Algorithm.from_checkpoint"),
        (0, "restore_from_path"),
        pytest.param(1, "DistillDQN.from_checkpoint", marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.slow
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    name, q = done.stdout.strip().split(" ", 1)
    assert name == "DefaultDQNTorchRLModule"
    np.testing.assert_allclose(eval(q), expected, rtol=1e-5)


def test_a_student_can_teach(cartpole_config, build, tmp_path):
    algo = build(cartpole_config)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    result = build(cartpole_config.copy(copy_frozen=False).distillation(teacher=path)).train()
    assert result["distillation"]["teacher_params"] == 58


def test_half_a_checkpoint_is_refused_before_anything_changes(cartpole_config, build, tmp_path):
    algo = build(cartpole_config)
    path = Path(algo.save_to_path(str(tmp_path / "checkpoint")))
    algo.train()
    before = student_weights(algo)
    (path / "learner_group" / "state.pkl").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: its learner_group/state\.pkl is missing\. Restore another"):
        algo.restore_from_path(path)
    assert_equal_weights(student_weights(algo), before)
    again = Experiment("again", "DistillDQN", settings={"env": "CartPole-v1", "teacher": "cartpole"}).checked()
    with pytest.raises(ValueError, match="is incomplete"):  # before Ray starts
        check_options(again, RunOptions(storage_path=str(tmp_path), restore=str(path)))
