"""Names of experiments that nobody has named."""

import os
import re
import shlex
from contextlib import nullcontext
from datetime import datetime

import pytest
from ray.rllib.algorithms.dqn import DQN

from rllib_kd.experiment import names, running
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.names import new_name, newest, own_folder, subject
from rllib_kd.experiment.running import RunOptions
from tests.cli.commands import DISTIL
from tests.conftest import exit_code

TIME = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"


def some_env(config):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("envs", "name"),
    [
        (["CartPole-v1"], "DQN_CartPole-v1"),
        (["CartPole-v1", "CartPole-v1"], "DQN_CartPole-v1"),
        (["CartPole-v1", "Acrobot-v1"], "DQN"),
        (["ALE/Pong-v5"], "DQN_ALE-Pong-v5"),
        (["highway_env:highway-fast-v0"], "DQN_highway_env-highway-fast-v0"),
        ([some_env], "DQN_some_env"),
        (["~/of/mine/grid.py:Maze"], "DQN_grid-Maze"),
        (["../../x y"], "DQN_..-..-x-y"),
        (["e" * 500], "DQN_" + "e" * 60),
    ],
)
def test_a_name_is_that_of_algorithm_and_environment(envs, name):
    assert subject(DQN, envs) == name


def test_an_experiment_without_a_name_has_one_with_the_time():
    checked = Experiment(None, "DQN", settings={"env": "CartPole-v1"}).checked()
    assert re.fullmatch(f"DQN_CartPole-v1_{TIME}", checked.name)
    assert Experiment("mine", "DQN", settings={"env": "CartPole-v1"}).checked().name == "mine"


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path):
    storage = tmp_path / "new"
    with own_folder(str(storage), "a") as first, own_folder(str(storage), "a") as second:
        assert [first, second] == ["a", "a_2"]
        (storage / first / "result").touch()
    assert os.listdir(storage) == ["a"]  # nothing was written to the other one
    with own_folder("s3://bucket/x", "a") as there:
        assert there == "a"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Results cannot be written to"), own_folder(str(tmp_path / "file"), "a"):
        pass


def test_the_newest_is_found_by_its_time(tmp_path):
    assert newest(str(tmp_path / "none"), "DQN_x") is None
    assert newest(str(tmp_path), "DQN_x") is None
    for name in ("DQN_x_2026-01-02_03-04-05", "DQN_x_2026-01-02_03-04-05_2", "DQN_x_2026-01-02_03-04-05_10"):
        (tmp_path / name).mkdir()
    for name in ("DQN_x_2025-12-31_23-59-59", "DQN_xy_2027-01-01_00-00-00", "DQN_x_soon", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "DQN_x_2028-01-01_00-00-00").touch()  # a file
    for place in (str(tmp_path), f"file://{tmp_path}"):
        assert newest(place, "DQN_x") == "DQN_x_2026-01-02_03-04-05_10"


# --- On the command line ----------------------------------------------------------------------------------------------


class Results(list):
    """Of no trials."""

    errors = ()


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the command without Ray; returns the experiments that it ran, its exit code, and its errors."""
    ran = []

    def run(experiment, options):
        (tmp_path / experiment.name).mkdir(exist_ok=True)
        (tmp_path / experiment.name / "result").touch()
        ran.append((experiment, options))
        return Results(), interrupted

    monkeypatch.setattr("rllib_kd.experiment.running.run", run)
    monkeypatch.setattr("rllib_kd.experiment.connection.connection", lambda *args, **kwargs: nullcontext())
    interrupted = False

    def train_(*flags, is_interrupted=False):
        nonlocal interrupted
        interrupted = is_interrupted
        code = exit_code(*DISTIL, "--storage-path", str(tmp_path), *flags)
        return [experiment for experiment, _ in ran], code, capsys.readouterr().err

    monkeypatch.setattr("ray.tune.Tuner.can_restore", lambda path: True)
    return train_


def test_the_printed_name_is_the_one_to_resume(train, tmp_path):
    (first,), code, error = train(is_interrupted=True)
    assert code == 1
    assert re.fullmatch(f"DistillDQN_CartPole-v1_{TIME}", first.name)
    note, interrupted = error.splitlines()
    assert note == f"note: results go to '{tmp_path}/{first.name}'."
    words = shlex.split(interrupted.removeprefix("interrupted; continue with: "))
    assert words[:5] == ["cd", os.getcwd(), "&&", "rllib", "train"]  # paths in files are relative to this folder
    assert words[-3:] == ["--experiment-name", first.name, "--resume"]
    experiments, code, error = train(*words[-3:])
    assert (experiments[-1].name, code, error) == (first.name, 0, "")

    _, code, error = train("--resume")
    assert code == 2
    assert error == (
        "error: --resume needs the name of the run, which was printed when it began: --experiment-name NAME. The "
        f"newest one here is '{first.name}'.\n"
    )


def test_runs_of_the_same_second_are_two(train, tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 26, 16, 19, 5)

    monkeypatch.setattr(names, "datetime", Clock)
    assert new_name("x") == "x_2026-11-26_16-19-05"
    train()
    (first, second), _, _ = train()
    assert second.name == f"{first.name}_2"


def test_a_name_that_is_given_is_taken(train):
    (mine,), code, error = train("-n", "mine")
    assert (mine.name, code, error) == ("mine", 0, "")


@pytest.mark.parametrize(
    ("flags", "level"),
    [([], "WARN"), (["-v"], "INFO"), (["-v", "info"], "INFO"), (["-vv"], "DEBUG"), (["-v", "DEBUG"], "DEBUG")],
)
def test_the_log_level_is_also_that_of_the_algorithm(train, flags, level):
    (experiment,), code, error = train("-n", "mine", *flags)
    assert (code, error) == (0, "")
    assert experiment.param_space.log_level == level
    assert "log_level" not in running._flags(experiment, RunOptions())  # so that a resumed run may change it


def test_keys_of_the_environments_config_are_changed(train, tmp_path):
    file = tmp_path / "env.yaml"
    file.write_text("render_mode: rgb_array")
    flags = ["--config", '{"env_config": {"sutton_barto_reward": false, "render_mode": null}}']
    (experiment,), code, error = train("-n", "mine", *flags, "--env-config", f"@{file}")
    assert (code, error) == (0, "")
    assert experiment.param_space.env_config == {"sutton_barto_reward": False, "render_mode": "rgb_array"}
