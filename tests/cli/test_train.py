"""`rllib train`, and what is done with what it has trained."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from ray import tune

from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.running import RunOptions, alone
from rllib_kd.experiment.running import run as run_experiment
from rllib_kd.locks import locked
from tests.cli.commands import DISTIL, ESCAPES, FAST, IN_YAML, ROOT, assert_harmless, checkpoints, run
from tests.conftest import exit_code, ray_address


def test_python_leaves_an_experiment_that_runs_alone_too(tmp_path, monkeypatch):
    checked = Experiment("mine", "DQN", settings={"env": "CartPole-v1"}).checked()
    options = RunOptions(storage_path=str(tmp_path))
    monkeypatch.setattr("rllib_kd.experiment.running._run", lambda *arguments: "trained")
    with locked(tmp_path / "mine", wait=False), pytest.raises(ValueError, match=r"is in use by process .* or choose"):
        run_experiment(checked, options)
    assert run_experiment(checked, options) == "trained"
    with alone(checked, options):  # as the command does, before it starts Ray
        assert run_experiment(checked, options) == "trained"
        with ThreadPoolExecutor() as pool, pytest.raises(ValueError, match="is in use by process"):
            pool.submit(run_experiment, checked, options).result()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("flags", [[], ["--resume"]], ids=["a second run", "a resume"])
def test_an_experiment_that_runs_is_left_alone_before_ray_starts(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.setattr("rllib_kd.experiment.connection.connection", None)
    monkeypatch.setattr(tune.Tuner, "can_restore", lambda path: True)
    with locked(tmp_path / "mine", wait=False):
        assert exit_code(*DISTIL, "--storage-path", tmp_path, "-n", "mine", *flags) == 2
    assert re.fullmatch(
        rf"error: '{tmp_path}/mine' is in use by process {os.getpid()} on \S+\. Wait until it ends, or choose another "
        r"--experiment-name\.\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [[0, 1.0], [10_000, 0.05]]),
        (["--config", '{"epsilon": 0.2}'], 0.2),
        (["--config", '{"td_coeff": 0.5}'], [[0, 1.0], [10_000, 0.05]]),
    ],
)
def test_without_a_teacher_exploration_begins_at_random(monkeypatch, flags, expected):
    asked = {}

    def stop(experiment):
        asked.update(experiment.settings)
        raise ValueError("that is all")

    monkeypatch.setattr(Experiment, "checked", stop)
    exit_code("train", "--algo", "DistillDQN", "--env", "Taxi-v3", "--no-teacher", *flags)
    assert asked["teacher"] is None
    assert asked["epsilon"] == expected


@pytest.mark.parametrize("given", [["--algo", "DistillDQN", "--env", "CartPole-v1"], ["file", "tuning/cartpole.py"]])
def test_trust_is_given_by_a_flag(monkeypatch, given):
    asked = []

    def stop(experiment):
        asked.append(experiment.settings.get("trust_checkpoint"))
        raise ValueError("that is all")

    monkeypatch.setattr(Experiment, "checked", stop)
    monkeypatch.chdir(ROOT)
    exit_code("train", *given)
    exit_code("train", *given, "--trust-checkpoint")
    assert asked == [None, True]


def test_trains_evaluates_compares_and_goes_on(tmp_path, rllib):
    config = json.dumps(FAST | {"evaluation_interval": 1, "evaluation_duration": 1})
    train = [*DISTIL, "--compression", "0.05", "--config", config, "--storage-path", str(tmp_path)]
    done = run(*train, "--stop", '{"training_iteration": 3}', "--experiment-name", "first")
    assert done.returncode == 0, done.stderr
    summary, checkpoint, hint = done.stdout.splitlines()
    assert re.match(r"\d+ env steps", summary)
    assert hint == f"compare with: rllib compare --teacher cartpole {checkpoint}"
    assert Path(checkpoint).is_dir()
    assert done.stderr == ""  # quiet where it is not a terminal

    report = tmp_path / "returns.json"
    done = rllib("evaluate", checkpoint, "--run", "DistillDQN", "--episodes", "5", "--out", str(report))
    assert re.fullmatch(r"return [\d.]+ ± [\d.]+ \(95 % CI, 5 episodes of CartPole-v1\)\n", done.stdout), done
    assert len(json.loads(report.read_text())["returns"]) == 5

    arguments = ["compare", "--teacher", "cartpole", str(tmp_path / "first"), "--episodes", "3"]
    done = rllib(*arguments, "--epsilon", "0.02", "--out", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    assert "3 episodes each, same seeds, ε = 0.02" in done.stdout
    assert "student / teacher" in done.stdout
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())
    assert [student["name"] for student in figures["students"]] == list(figures["curves"]) == ["student"]
    assert (tmp_path / "report" / "index.html").is_file()

    done = rllib(
        *train, "--stop", '{"training_iteration": 5}', "-n", "second", "--restore", f"{tmp_path / 'first'}@newest"
    )
    assert done.returncode == 0, done.stderr
    assert f"note: Using '{Path(checkpoint).name}' of run '" in done.stderr
    (result,) = (tmp_path / "second").glob("*/result.json")
    assert json.loads(result.read_text().splitlines()[0])["training_iteration"] == 4

    ppo = Experiment("third", "PPO", settings={"env": "CartPole-v1"}).checked()
    with pytest.raises(ValueError, match="was saved by DistillDQN, which PPO cannot restore"):
        run_experiment(ppo, RunOptions(restore=checkpoint, storage_path=str(tmp_path)))


@pytest.mark.slow
def test_the_old_spellings_train_a_teacher(tmp_path, rllib):
    done = rllib(
        *["train", "--run", "DQN", "--env", "CartPole-v1", "--stop", '{"timesteps_total": 100}'],
        *["--config", '{"min_sample_timesteps_per_iteration": 50}'],
        *["--checkpoint-freq", "1", "--checkpoint-at-end", "--storage-path", str(tmp_path)],
    )
    assert done.returncode == 0, done.stderr
    checkpoint = done.stdout.splitlines()[1]
    done = rllib("evaluate", checkpoint, "--algo", "DQN", "--env", "CartPole-v1", "--episodes", "2")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_files_with_a_grid_search_and_its_warnings(tmp_path, rllib, small_teacher):
    """Each warning is printed once, whoever has it; names of folders steer no terminal."""
    teacher = tmp_path / f"teacher{ESCAPES}"
    shutil.copytree(small_teacher, teacher)
    experiment = tmp_path / "sizes.yaml"
    experiment.write_text(
        f"""
"sizes{IN_YAML}":
  run: DistillDQN
  env: CartPole-v1
  stop: {{training_iteration: 1}}
  config:
    teacher: "{tmp_path}/teacher{IN_YAML}"
    compression: {{grid_search: [0.95, 1.0]}}
    num_baseline_episodes: 2
    num_envs_per_env_runner: {FAST["num_envs_per_env_runner"]}
    min_sample_timesteps_per_iteration: 64
"""
    )
    done = rllib("train", "file", str(experiment), "--storage-path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / f"sizes{ESCAPES}").glob("*/result.json"))) == 2
    assert_harmless(done.stdout + done.stderr)
    lines = done.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in lines), lines
    assert len(lines) == len(set(lines))
    (of_teacher,) = [line for line in lines if "no better than a random policy" in line]  # of two trials
    assert "teacher\N{REPLACEMENT CHARACTER}]0;title" in of_teacher
    assert [line for line in lines if "nearly as many as its teacher" in line]
    summaries = [line for line in done.stdout.splitlines() if "env steps" in line]
    assert len(summaries) == 2
    assert all(re.search(r" · behaviour return [\d.]+$", line) for line in summaries), summaries  # never evaluated


def test_a_python_file_whose_settings_flags_change_ends_with_a_comparison(tmp_path, rllib):
    arguments = ["train", "file", str(ROOT / "tuning" / "cartpole.py"), "--storage-path", str(tmp_path)]
    flags = ["--stop", '{"training_iteration": 1}', "--compression", "0.1", "--compare-episodes", "2"]
    done = rllib(*arguments, *flags)
    assert done.returncode == 0, done.stderr
    assert "CartPole-v1, 2 episodes each, same seeds" in done.stdout
    (share,) = re.findall(r"parameters.*?([\d.]+) %", done.stdout)
    assert 4 < float(share) <= 10
    (trial,) = (tmp_path / "cartpole").glob("*/params.json")
    assert json.loads(trial.read_text())["compression"] == 0.1


@pytest.mark.slow
def test_an_algorithm_of_ones_own_and_modules_beside_the_file(tmp_path, cluster):
    (tmp_path / "their_env.py").write_text(
        "import gymnasium as gym\n"
        "class Env(gym.Wrapper):\n"
        "    def __init__(self, config):\n"
        "        super().__init__(gym.make('CartPole-v1'))\n"
    )
    (tmp_path / "mine.py").write_text(
        "from ray.rllib.algorithms.dqn import DQN, DQNConfig\n"
        "from their_env import Env\n"
        "class Mine(DQN):\n"
        "    pass\n"
        "config = DQNConfig(algo_class=Mine).environment(Env).reporting(min_sample_timesteps_per_iteration=10)\n"
    )
    flags = ["--stop", '{"training_iteration": 1}', "-n", "x", "--no-checkpoint-at-end"]
    flags += ["--ray-address", ray_address()]
    done = run("train", "file", str(tmp_path / "mine.py"), "--storage-path", str(tmp_path), *flags)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "x").glob("Mine_Env_*/result.json"))
    assert not checkpoints(tmp_path / "x")


@pytest.mark.slow
def test_a_trial_that_fails_says_why_in_one_line(tmp_path, rllib):
    (tmp_path / "broken.py").write_text(
        "import gymnasium as gym\n"
        "from ray.rllib.algorithms.dqn import DQNConfig\n"
        "class Env(gym.Env):\n"
        "    def __init__(self, config):\n"
        "        raise RuntimeError('the simulator\\nis away')\n"
        "config = DQNConfig().environment(Env)\n"
    )
    done = rllib("train", "file", str(tmp_path / "broken.py"), "--storage-path", str(tmp_path))
    assert done.returncode == 1
    line = rf"\({re.escape(str(tmp_path))}/broken.py:5, in __init__\)"
    assert re.fullmatch(rf"DQN_Env_\S+ failed: RuntimeError: the simulator is away {line}\n", done.stdout), done.stdout


class FakeWandb(tune.Callback):
    """In the place of Ray's logger for Weights & Biases, which needs the network."""

    made: ClassVar[list[dict]] = []
    iterations: ClassVar[list[int]] = []

    def __init__(self, **kwargs):
        self.made.append(kwargs)

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.iterations.append(result["training_iteration"])


@pytest.mark.slow
def test_weights_and_biases_get_the_results_and_no_file_gets_the_key(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ray.air.integrations.wandb.WandbLoggerCallback", FakeWandb)
    monkeypatch.setattr("rllib_kd.experiment.loggers.find_spec", lambda name: True)
    monkeypatch.setenv("WANDB_API_KEY", "")
    flags = ["--wandb-key", "very-secret", "--wandb-run-name", "mine", "--stop", '{"training_iteration": 2}']
    arguments = [*DISTIL, "--config", json.dumps(FAST), "--storage-path", str(tmp_path), *flags]
    assert not exit_code(*arguments)
    assert FakeWandb.made == [{"project": "DistillDQN-CartPole-v1", "name": "mine"}]
    assert FakeWandb.iterations == [1, 2]
    assert os.environ["WANDB_API_KEY"] == "very-secret"
    assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
