"""Environments in files, on nodes whose disks lack these files."""

import gymnasium as gym
import numpy as np
import pytest
from ray import tune

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


def test_trials_env_runners_and_sweeps_make_it(nodes, own_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("rllib_kd.sweeps.sweep.doubt", lambda *played, **words: None)
    nodes.add_node(num_cpus=3)
    write_files(own_folder)
    settings = {**FAST, "num_env_runners": 1, "placement_strategy": "SPREAD", "teacher": None, "td_coeff": 1.0}
    plain = Experiment("plain", "DQN", settings={"env": "cells.py:Cells"}).checked()
    config = DistillDQNConfig().environment("mine.worlds:Walk").update_from_dict(settings)
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
    assert len(sweep.run().students) == 1
