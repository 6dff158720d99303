"""Trials of Tune."""

import pytest
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback

from tests.conftest import make_q_module


def trial_of(teacher, tmp_path):
    """The result of a trial that Tune runs from a plain dict."""
    settings = {
        "env": "CartPole-v1",
        "teacher": teacher,
        "loss": "mse",
        "compression": 0.2,
        "num_baseline_episodes": 0,
        "num_envs_per_env_runner": 2,
    }
    run_config = tune.RunConfig(stop={"training_iteration": 1}, storage_path=str(tmp_path), verbose=0)
    (result,) = tune.Tuner("DistillDQN", param_space=settings, run_config=run_config).fit()
    return result


def test_tune_runs_it_from_a_plain_dict(cluster, small_teacher, tmp_path):
    result = trial_of(small_teacher, tmp_path)
    assert result.error is None
    assert 0.1 < result.metrics["distillation"]["compression"] <= 0.2


@pytest.mark.slow
def test_a_bad_trial_says_why(cluster, tmp_path):
    assert "There is no checkpoint at '/does/not/exist'" in str(trial_of("/does/not/exist", tmp_path).error)


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
            "num_envs_per_env_runner": 2,
            "min_sample_timesteps_per_iteration": 64,
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
