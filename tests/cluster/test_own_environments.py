"""Environments in files, on nodes whose disks lack these files; and on which of the nodes."""

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_kd import DistillDQNConfig, Sweep
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.running import RunOptions, run
from tests.cli.commands import FAST
from tests.conftest import make_q_module
from tests.environments.own_files import write_files

pytestmark = pytest.mark.slow


def remove_files(folder):
    """The nodes of a test share a disk."""
    for path in folder.rglob("*.py"):
        path.unlink()


class Places(RLlibCallback):
    """Reports the node of the main process, and of each EnvRunner."""

    def on_train_result(self, *, algorithm, result, **kwargs):
        def place(env_runner=None):
            return ray.get_runtime_context().get_node_id()

        result["runners"] = algorithm.env_runner_group.foreach_env_runner(place, local_env_runner=False)
        result["main"] = place()


def test_trials_env_runners_and_sweeps_make_it_where_the_config_says(nodes, own_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("rllib_kd.sweeps.sweep.doubt", lambda *played, **words: None)
    node = nodes.add_node(num_cpus=3, resources={"runner": 2})
    write_files(own_folder)
    settings = {**FAST, "num_env_runners": 1, "placement_strategy": "SPREAD", "teacher": None, "td_coeff": 1.0}
    little = {"min_sample_timesteps_per_iteration": 64}
    plain = Experiment("plain", "DQN", settings={"env": "cells.py:Cells", **little}).checked()
    config = DistillDQNConfig().environment("mine.worlds:Walk").update_from_dict(settings).callbacks(Places)
    config.env_runners(num_env_runners=2, custom_resources_per_env_runner={"runner": 1})
    teacher = make_q_module(gym.spaces.Box(0.0, 1.0, (2,), np.float32)).save_to_path(str(tmp_path / "teacher"))
    short = {"num_samples": 1, "num_seeds": 1, "env_steps": 64, "search": "random"}
    sweep = Sweep(teacher, "corridor.py:Corridor", storage_path=str(tmp_path), **short)
    remove_files(own_folder)
    plain.stop["training_iteration"] = 1
    (result,) = run(plain, RunOptions(storage_path=str(tmp_path)))[0]
    assert result.error is None
    run_config = tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 1}, verbose=0)
    (result,) = tune.Tuner("DistillDQN", param_space=config, run_config=run_config).fit()
    assert result.error is None
    assert result.metrics["runners"] == [node.node_id] * 2  # by their resource
    assert result.metrics["main"] != node.node_id  # which has a CPU for it, too, and would have it with PACK
    assert len(sweep.run().students) == 1
