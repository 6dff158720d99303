"""Folders of Ray Tune as teachers: which checkpoint is taken, and with which return."""

import json
from pathlib import Path

import pytest
from ray import tune
from ray.rllib.algorithms.dqn import DQNConfig

from rllib_kd import load_teacher
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.sources import open_source
from tests.conftest import make_q_module


def write_trial(folder, returns, *, evaluated=False, named=True):
    """A trial with a checkpoint for each return."""
    folder.mkdir(parents=True)
    rows = []
    for i, value in enumerate(returns):
        name = f"checkpoint_{i:06d}"
        make_q_module(seed=i, fcnet_hiddens=[4 + i]).save_to_path(str(folder / name))
        result = {"env_runners": {"episode_return_mean": value}}
        result = {"evaluation": result, "env_runners": {"episode_return_mean": 1e6}} if evaluated else result
        rows.append(json.dumps(result | {"checkpoint_dir_name": name if named else None}))
    (folder / "result.json").write_text("\n".join([*rows, '{"half": ']))


def test_the_best_checkpoint_of_an_experiment(tmp_path):
    write_trial(tmp_path / "experiment" / "one", [10.0, 30.0, 20.0])
    write_trial(tmp_path / "experiment" / "two", [25.0])
    for path in (tmp_path / "experiment", tmp_path / "experiment" / "one"):
        teacher = load_teacher(f"{path}@best")  # by training, since there was no evaluation
        assert teacher.model_config["fcnet_hiddens"] == [5]
        assert teacher.trained_return == 30.0
        assert "one/checkpoint_000001" in teacher.source
    assert load_teacher(tmp_path / "experiment" / "one").trained_return == 20.0  # the newest
    assert load_teacher(tmp_path / "experiment" / "two").trained_return == 25.0
    assert load_teacher(tmp_path / "experiment" / "one" / "checkpoint_000002").trained_return == 20.0
    write_trial(tmp_path / "experiment" / "three", [22.0, 21.0], evaluated=True)  # says more than training does
    assert load_teacher(tmp_path / "experiment").trained_return == 22.0
    assert isinstance(open_source(tmp_path / "experiment").policy(), GreedyQ)
    assert open_source(tmp_path / "experiment").environment() == (None, {})


def test_a_checkpoint_at_the_end_is_in_no_result(tmp_path):
    write_trial(tmp_path / "trial", [10.0], named=False)
    assert load_teacher(tmp_path / "trial").trained_return == 10.0


@pytest.mark.slow
def test_each_checkpoint_of_a_real_trial_has_the_return_of_its_own_iteration(cluster, tmp_path):
    def say(algorithm, evaluation_metrics, **kwargs):
        evaluation_metrics["env_runners"]["episode_return_mean"] = returns[algorithm.iteration]

    returns = [20.0, 30.0, 10.0, 30.0, 15.0]
    config = (
        DQNConfig()
        .environment("CartPole-v1")
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .reporting(min_sample_timesteps_per_iteration=50)
        .evaluation(evaluation_interval=1, evaluation_duration=1)
        .callbacks(on_evaluate_end=say)
    )
    checkpoints = tune.CheckpointConfig(checkpoint_frequency=1)
    run_config = tune.RunConfig(
        name="run",
        storage_path=str(tmp_path),
        stop={"training_iteration": len(returns)},
        checkpoint_config=checkpoints,
        verbose=0,
    )
    trial = Path(tune.Tuner("DQN", param_space=config, run_config=run_config).fit()[0].path)
    folders = sorted(trial.glob("checkpoint_*"))
    assert [load_teacher(folder).trained_return for folder in folders] == returns
    assert load_teacher(tmp_path / "run").source == str(folders[3])  # of equals the newest


def test_a_trial_without_checkpoints_says_so(tmp_path):
    write_trial(tmp_path / "experiment" / "trial", [])
    with pytest.raises(ValueError, match=r"experiment' has no checkpoint\. .*checkpoint_at_end"):
        load_teacher(tmp_path / "experiment")
