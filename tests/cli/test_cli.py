"""The `rllib` command as a user types it."""

import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import ray
from ray import tune

import rllib_kd
from rllib_kd.cli.main import main
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.running import RunOptions, alone
from rllib_kd.experiment.running import run as run_experiment
from rllib_kd.export.artifact import artifact_format_of
from rllib_kd.locks import locked

ROOT = Path(__file__).parents[2]
FAST = {"num_envs_per_env_runner": 4, "num_baseline_episodes": 0, "min_sample_timesteps_per_iteration": 64}
DISTIL = ["train", "--algo", "DistillDQN", "--env", "CartPole-v1", "--teacher", "cartpole"]


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rllib_kd", *arguments], capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize("command", [[], ["train"], ["compare"], ["evaluate"], ["export"]])
def test_help_fits_a_screen_shows_an_example_and_imports_no_ray(command):
    code = (
        "import sys; from rllib_kd.cli import main as cli\n"
        f"sys.argv[1:] = {[*command, '--help']}\n"
        "try: cli.main()\n"
        "finally: assert not {'ray', 'torch', 'gymnasium'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 43
    assert max(map(len, lines)) <= 80
    assert not command or "rllib " + command[0] in done.stdout.split("Options")[0].split("Usage")[1][10:]


def test_the_version():
    assert f"rllib-kd {rllib_kd.__version__}, ray " in run("--version").stdout


RUN = ["train", "--algo", "DQN", "--env", "CartPole-v1"]
BAD = {
    "no command": ([], "Usage: rllib"),
    "unknown command": (["fly"], "No such command 'fly'"),
    "a command that is gone": (["rollout", "x"], "use `rllib evaluate`"),
    "another command that is gone": (["example", "list"], "rllib train file FILE"),
    "no algorithm": (["train", "--env", "CartPole-v1"], "--algo DistillDQN"),
    "unknown algorithm": (["train", "--algo", "DistilDQN", "--env", "CartPole-v1"], "Did you mean 'DistillDQN'?"),
    "algorithm that cannot be imported": (["train", "--algo", "no.such.Algorithm"], "No module named 'no'"),
    "class that is no algorithm": (["train", "--algo", "json.JSONDecoder"], "not an RLlib Algorithm"),
    "no environment": (["train", "--algo", "DQN"], "--env CartPole-v1"),
    "environment unknown": (["train", "--algo", "DQN", "--env", "CartPool-v1"], "Did you mean: `CartPole`?"),
    "environment empty": (["train", "--algo", "DQN", "--env", ""], "The name of the environment is empty"),
    "environment class that is not there": (["train", "--algo", "DQN", "--env", "no.such.Env"], "no environment class"),
    "environment refuses its config": ([*RUN, "-c", '{"env_config": {"wrong": 1}}'], "'wrong'"),
    "actions that DQN cannot choose": (["train", "--algo", "DQN", "--env", "Pendulum-v1"], "discrete actions"),
    "algorithm in another case": (["train", "--algo", "dqn", "--env", "CartPole-v1"], "Did you mean 'DQN'?"),
    "environment of a package that is not there": (["train", "--algo", "DQN", "--env", "none:X-v0"], "none"),
    "no teacher": (["train", "--algo", "DistillDQN", "--env", "CartPole-v1"], "needs a teacher"),
    "teacher is not there": ([*DISTIL[:-1], "/does/not/exist"], "There is no checkpoint at '/does/not/exist'"),
    "teacher of another environment": (
        ["train", "--algo", "DistillDQN", "--env", "Acrobot-v1", "--teacher", "cartpole", "--ray-num-cpus", "1"],
        "The teacher's observation space is Box(4,), but in 'Acrobot-v1' it is Box(6,)",
    ),
    "teacher for another algorithm": ([*RUN, "--teacher", "cartpole"], "DQNConfig has no setting 'teacher'"),
    "unknown setting": ([*DISTIL, "--config", '{"temprature": 1}'], "Did you mean 'temperature'?"),
    "unknown setting of DQN": ([*RUN, "-c", '{"gama": 1}'], "Did you mean 'gamma'?"),
    "setting that is gone": ([*RUN, "-c", '{"exploration_config": {}}'], "set epsilon"),
    "setting that nobody reads": ([*RUN, "-c", '{"noisy": true}'], "no longer exists"),
    "unknown key within a setting": ([*RUN, "-c", '{"model_config": {"fcnet_hidden": [8]}}'], "'fcnet_hiddens'"),
    "unknown key of the replay": ([*RUN, "-c", '{"replay_buffer_config": {"capacty": 8}}'], "'capacity'"),
    "unknown key of the evaluation": ([*RUN, "-c", '{"evaluation_config": {"explor": true}}'], "'explore'"),
    "unknown key in a grid": ([*DISTIL, "-c", '{"model_config": {"grid_search": [{}, {"x": 1}]}}'], "no key 'x'"),
    "grid without values": ([*RUN, "-c", '{"lr": {"grid_search": []}}'], "must be a list"),
    "grid of one value": ([*RUN, "-c", '{"lr": {"grid_search": 0.1}}'], '{"grid_search": [...]}'),
    "negative number": ([*RUN, "-c", '{"lr": -1}'], "expected a number of at least 0"),
    "number that is none": ([*RUN, "-c", '{"lr": NaN}'], "JSON has no NaN"),
    "number beyond all": ([*RUN, "-c", '{"lr": 1e999}'], "1e999 is too large a number"),
    "infinite number": ([*RUN, "-c", '{"model_config": {"log_std_clip_param": Infinity}}'], "JSON has no Infinity"),
    "schedule with a word": ([*DISTIL, "-c", '{"lr": [[0, 0.1], [9, "low"]]}'], "`lr` must be a number or a schedule"),
    "schedule of another kind": ([*DISTIL, "-c", '{"td_coeff": [[0, "x"]]}'], "`td_coeff` must be a number or a sche"),
    "schedule of RLlib with a word": ([*RUN, "-c", '{"epsilon": [[0, 1], [9, "x"]]}'], "`epsilon` must be a number"),
    "null for a number": ([*DISTIL, "-c", '{"gamma": null}'], "'gamma' cannot be None. Leave it out"),
    "no rows in the replay": ([*DISTIL, "-c", '{"replay_buffer_config": {"capacity": 0}}'], "integer of at least 1"),
    "replay of another kind": (
        [*DISTIL, "-c", '{"replay_buffer_config": {"type": "EpisodeReplayBuffer"}}'],
        "a replay of its own",
    ),
    "widths of a family": ([*DISTIL, "-c", '{"students": {"a": {"fcnet_hiddens": [0]}}}'], "students['a']"),
    "evaluation with a bad number": ([*DISTIL, "-c", '{"evaluation_config": {"lr": -1}}'], "'lr' cannot be -1"),
    "observations that are no numbers": (
        ["train", "--algo", "DistillDQN", "--env", "FrozenLake-v1", "--teacher", "cartpole"],
        "The networks need observations in a Box of floats",
    ),
    "teacher of another environment in an ensemble": (
        [*DISTIL[:3], "--env", "Acrobot-v1", "--teacher", "cartpole", "--teacher", "cartpole"],
        "in 'Acrobot-v1' it is Box(6,)",
    ),
    "number that is too large": ([*RUN, "-c", '{"gamma": 5}'], "between 0 and 1"),
    "half a process": ([*RUN, "-c", '{"num_env_runners": 1.5}'], "expected an integer"),
    "unknown activation": ([*RUN, "-c", '{"model_config": {"fcnet_activation": "no"}}'], "fcnet_activation='no'"),
    "widths that are none": ([*RUN, "-c", '{"model_config": {"fcnet_hiddens": ["x"]}}'], "list of integers"),
    "unknown replay": ([*RUN, "-c", '{"replay_buffer_config": {"type": "Replay"}}'], "no replay buffer 'Replay'"),
    "string for a number": ([*RUN, "-c", '{"lr": "fast"}'], "expected a list or a number"),
    "number for a list": ([*DISTIL, "-c", '{"model_config": 8}'], "expected an object"),
    "list for a truth": ([*RUN, "-c", '{"double_q": [1]}'], "expected true or false"),
    "bad value": ([*DISTIL, "--config", '{"temperature": -1}'], "`temperature` must be positive"),
    "bad value in a grid": ([*DISTIL, "--config", '{"temperature": {"grid_search": [1, -1]}}'], "must be positive"),
    "value that RLlib refuses": ([*RUN, "-c", '{"evaluation_duration": -1}'], "evaluation_duration"),
    "unknown loss": ([*DISTIL, "--loss", "l2"], "Unknown loss 'l2'"),
    "compression beyond 1": ([*DISTIL, "--compression", "7"], "`compression` must be in (0, 1]"),
    "compression is no number": ([*DISTIL, "--compression", "tiny"], "valid number"),
    "compression and widths": (
        [*DISTIL, "--compression", "0.1", "-c", '{"model_config": {"fcnet_hiddens": [8]}}'],
        "Set one of them",
    ),
    "config is no JSON": ([*DISTIL, "--config", '{"lr": 1,}'], "line 1 column"),
    "config is empty": ([*DISTIL, "--config", ""], "Got nothing"),
    "config is a list": ([*DISTIL, "--config", "[1]"], "--config must be a JSON object"),
    "config file is not there": ([*DISTIL, "--config", "@nowhere.json"], "there is no file 'nowhere.json'"),
    "config file is no JSON": ([*DISTIL, "--config", "@README.md"], "the file 'README.md'"),
    "stop is no JSON": ([*DISTIL, "--stop", "soon"], "--stop must be JSON"),
    "stop at a word": ([*DISTIL, "--stop", '{"training_iteration": "ten"}'], "reaches a number"),
    "stop at no number": ([*DISTIL, "--stop", '{"training_iteration": NaN}'], "JSON has no NaN"),
    "stop at an unknown metric": ([*DISTIL, "--stop", '{"training_iteraton": 9}'], "mean 'training_iteration'?"),
    "stop at half a metric": (
        [*DISTIL, "--stop", '{"episode_return_mean": 9}'],
        "mean 'env_runners/episode_return_mean'?",
    ),
    "unknown flag": ([*DISTIL, "--lr", "1"], "No such option: --lr"),
    "flag without its value": ([*DISTIL, "--stop"], "requires an argument"),
    "a flag that is gone": ([*DISTIL, "--local-mode"], "no longer exists"),
    "another flag that is gone": ([*DISTIL, "--upload-dir=s3://x"], "use --storage-path"),
    "a flag from long ago": (["train", "-f", "tuning/cartpole.py"], "rllib train file FILE"),
    "no trials": ([*DISTIL, "--num-samples", "0"], "`num_samples` must be at least 1"),
    "checkpoints in the past": ([*DISTIL, "--checkpoint-freq", "-1"], "`checkpoint_freq` must be at least 0"),
    "failures below none": ([*DISTIL, "--max-failures", "-2"], "`max_failures` must be at least -1"),
    "no checkpoints to keep": ([*DISTIL, "--keep-checkpoints-num", "0"], "must be at least 1"),
    "no comparison without a student": ([*RUN, "--compare-episodes", "3"], "needs DistillDQN"),
    "an experiment without a name": ([*DISTIL, "-n", ""], "`experiment_name` is empty"),
    "results nowhere": ([*DISTIL, "--storage-path", ""], "`storage_path` is empty"),
    "unknown metric of the best": ([*DISTIL, "--checkpoint-score-attr", "env_runner/x"], "mean 'env_runners'?"),
    "no CPUs": ([*DISTIL, "--ray-num-cpus", "0"], "--ray-num-cpus must be at least 1"),
    "no nodes": ([*DISTIL, "--ray-num-nodes", "0"], "--ray-num-nodes must be at least 1"),
    "no memory": ([*DISTIL, "--ray-object-store-memory", "5"], "must be at least"),
    "unknown setting to mutate": (
        [*RUN, "--scheduler", "pbt", "--scheduler-config", '{"metric": "x", "hyperparam_mutations": {"lrr": [1]}}'],
        "no setting 'lrr'",
    ),
    "unknown scheduler": ([*DISTIL, "--scheduler", "magic"], "Unknown scheduler 'magic'"),
    "scheduler without a metric": ([*DISTIL, "--scheduler", "hyperband"], "needs a metric"),
    "argument of no scheduler": (
        [*DISTIL, "--scheduler", "hyperband", "--scheduler-config", '{"metrc": "x"}'],
        "Did you mean 'metric'?",
    ),
    "arguments of a bad kind": (
        [*DISTIL, "--scheduler", "hyperband", "--scheduler-config", '{"metric": "x", "mode": "up"}'],
        "does not take",
    ),
    "metric of no result": (
        [*DISTIL, "--scheduler", "hyperband", "--scheduler-config", '{"metric": "episode_return_mean"}'],
        "mean 'env_runners/episode_return_mean'?",
    ),
    "scheduler's arguments are no JSON": ([*DISTIL, "--scheduler", "pbt", "--scheduler-config", "x"], "must be JSON"),
    "half a metric of the best": ([*DISTIL, "--checkpoint-score-attr", "min-episode_return_mean"], "Did you mean"),
    "checkpoint of a folder that is none": ([*DISTIL, "--restore", "tests"], "no checkpoint of an Algorithm"),
    "no number of trials": ([*DISTIL, "--num-samples", "-3"], "`num_samples` must be at least 1"),
    "GPUs that are not there": ([*DISTIL, "-c", '{"num_gpus_per_learner": 64, "num_learners": 1}'], "64 GPUs"),
    "nodes without CPUs": (
        [*RUN, "-c", '{"num_env_runners": 9}', "--ray-num-nodes", "2"],
        "A trial needs 10 CPUs, but Ray has 2",
    ),
    "scheduler's arguments alone": ([*DISTIL, "--scheduler-config", '{"metric": "x"}'], "needs a --scheduler"),
    "nowhere to write": ([*DISTIL, "--storage-path", "/dev/null/x"], "cannot be written"),
    "nothing to restore": ([*DISTIL, "--restore", "/none"], "no checkpoint of an Algorithm at '/none'"),
    "nothing to resume": ([*DISTIL, "--resume", "--storage-path", "/tmp/rllib_kd_none"], "no experiment to resume"),
    "nobody at the address": ([*RUN, "--ray-address", "127.0.0.1:1"], "No Ray answers at '127.0.0.1:1'"),
    "address and CPUs": (
        [*RUN, "--ray-address", "127.0.0.1:1", "--ray-num-cpus", "2"],
        "can only be set for a local Ray",
    ),
    "more CPUs than there are": ([*RUN, "-c", '{"num_env_runners": 500}'], "A trial needs 501 CPUs"),
    "file is not there": (["train", "file", "nowhere.py"], "no experiment file at 'nowhere.py'"),
    "file of another kind": (["train", "file", "README.md"], "ends in .py or .yaml"),
    "file from the internet": (["train", "file", "https://example.com/a.py"], "Download it first"),
    "file and algorithm": (["train", "file", "tuning/cartpole.py", "--algo", "DQN"], "Leave out --algo"),
    "file word missing": (["train", "run", "x.py"], "rllib train file FILE"),
    "no student": (["compare", "--teacher", "cartpole", "--env", "CartPole-v1"], "Missing argument"),
    "student is not there": (["compare", "--teacher", "cartpole", "--env", "CartPole-v1", "/none"], "at '/none'"),
    "unknown format": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x.gguf", "--format", "gguf", "--episodes", "1"],
        "Unknown format 'gguf'. Known are onnx, safetensors, torchscript",
    ),
    "int8 of another format": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x", "--format", "safetensors", "--int8"],
        "int8",
    ),
    "no episodes to export": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x.onnx", "--episodes", "0"],
        "at least 1",
    ),
    "environment that an artifact does not fit": (
        ["export", "cartpole", "--env", "Acrobot-v1", "--out", "x.onnx"],
        "The student was made for observations Box(4,)",
    ),
    "an ending that no format has": (
        ["export", "cartpole", "--out", "fl.bin"],
        "The ending of 'fl.bin' names no format. Known endings: .onnx for onnx; .safetensors for safetensors; .pt or "
        ".ts or .torchscript for torchscript. Rename the file, or set --format (onnx, safetensors, torchscript)",
    ),
    "no ending": (["export", "cartpole", "--out", "student"], "The ending of 'student' names no format"),
    "an empty file name": (["train", "file", ""], "A path is empty"),
    "a home folder that nobody has": (["train", "file", "~nosuchuser/x.py"], "a home folder that is not known here"),
    "no environment's name in evaluate": (
        ["evaluate", "cartpole", "--env", " "],
        "The name of the environment is empty",
    ),
    "a key of another setting": (
        [*RUN, "-c", '{"alpha": 0.6}'],
        'has no setting \'alpha\'. It is a key of another setting: {"replay_buffer_config": {"alpha": ...}}',
    ),
    "a folder for a file": (["export", "cartpole", "--out", "tests"], "'tests' is a folder. Name a file"),
    "a file for a folder": (["evaluate", "cartpole", "--video", "README.md"], "'README.md' is not a folder"),
    "environment refuses its config in evaluate": (
        ["evaluate", "cartpole", "--env-config", '{"wrong": 1}'],
        "The environment 'CartPole-v1' cannot be made",
    ),
    "negative seed": (["evaluate", "cartpole", "--seed", "-1"], "`seed` must be at least 0"),
    "policy of another algorithm": (["evaluate", "cartpole", "--algo", "PPO"], "was trained by DQN, but --algo is PPO"),
    "no episodes": (["evaluate", "cartpole", "--env", "CartPole-v1", "--episodes", "0"], "at least 1"),
    "report where nothing can be written": (
        ["compare", "--teacher", "cartpole", "--env", "CartPole-v1", "cartpole", "--out", "/dev/null/x"],
        "cannot be written",
    ),
    "returns where nothing can be written": (
        ["evaluate", "cartpole", "--env", "CartPole-v1", "--out", "/dev/null/x.json"],
        "cannot be written",
    ),
    "artifact where nothing can be written": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "/dev/null/x.onnx"],
        "cannot be written",
    ),
    "a flag that evaluate no longer has": (["evaluate", "cartpole", "--steps", "1000000"], "use --episodes"),
    "another one": (["evaluate", "cartpole", "--config", "{}"], "use --env-config"),
    "environment unknown to evaluate": (["evaluate", "cartpole", "--env", "CartPool-v1"], "CartPool"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_usage_is_one_line_and_exit_code_2_before_ray_starts(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.cluster_utils.Cluster", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["rllib", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    output, error = capsys.readouterr()
    assert exit_.value.code == 2
    assert message in error + output
    assert not arguments or re.fullmatch(r"(note: .*\n)?error: .*\n", error), error


@pytest.mark.parametrize("command", [["export", "cartpole"], ["evaluate", "cartpole"]])
def test_a_folder_that_takes_no_files_is_refused_before_anything_plays(tmp_path, monkeypatch, capsys, command):
    """As /proc, in which root may write by its permissions, and still cannot."""

    def fails(dir):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    monkeypatch.setattr(sys, "argv", ["rllib", *command, "--out", f"{tmp_path}/x.onnx"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert f"'{tmp_path}/x.onnx' cannot be written: '{tmp_path}' is not a folder" in capsys.readouterr().err


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
    monkeypatch.setattr(sys, "argv", ["rllib", *DISTIL, "--storage-path", str(tmp_path), "-n", "mine", *flags])
    with locked(tmp_path / "mine", wait=False), pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert re.fullmatch(
        rf"error: '{tmp_path}/mine' is in use by process {os.getpid()} on \S+\. Wait until it ends, or choose another "
        r"--experiment-name\.\n",
        capsys.readouterr().err,
    )


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

    artifact = tmp_path / "student.onnx"
    arguments = ["export", checkpoint, "--out", str(artifact), "--teacher", "cartpole"]
    done = rllib(*arguments, "--episodes", "2")
    assert done.returncode == 0, done.stderr
    assert artifact.is_file()
    for row in ("student.onnx", "bytes on disk", "peak memory", "latency, batch of 1", "difference from PyTorch"):
        assert row in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80

    done = rllib(
        *train, "--stop", '{"training_iteration": 5}', "-n", "second", "--restore", f"{tmp_path / 'first'}@newest"
    )
    assert done.returncode == 0, done.stderr
    assert f"note: Using checkpoint '{checkpoint}' of run '" in done.stderr
    (result,) = (tmp_path / "second").glob("*/result.json")
    assert json.loads(result.read_text().splitlines()[0])["training_iteration"] == 4

    ppo = Experiment("third", "PPO", settings={"env": "CartPole-v1"}).checked()
    with pytest.raises(ValueError, match="was saved by DistillDQN, which PPO cannot restore"):
        run_experiment(ppo, RunOptions(restore=checkpoint, storage_path=str(tmp_path)))


def test_the_old_spellings_train_a_teacher(tmp_path, rllib):
    done = rllib(
        *["train", "--run", "DQN", "--env", "CartPole-v1", "--stop", '{"timesteps_total": 1000}'],
        *["--checkpoint-freq", "1", "--checkpoint-at-end", "--storage-path", str(tmp_path)],
    )
    assert done.returncode == 0, done.stderr
    checkpoint = done.stdout.splitlines()[1]
    done = rllib("evaluate", checkpoint, "--algo", "DQN", "--env", "CartPole-v1", "--episodes", "2")
    assert done.returncode == 0, done.stderr


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
def test_an_algorithm_of_ones_own_and_modules_beside_the_file(tmp_path):
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
    done = run("train", "file", str(tmp_path / "mine.py"), "--storage-path", str(tmp_path), *flags)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "x").glob("Mine_Env_*/result.json"))
    assert not checkpoints(tmp_path / "x")


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


@pytest.mark.parametrize("command", ["evaluate", "compare"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def step(self, action): raise RuntimeError('no licence')", "in step(): RuntimeError: no licence"),
        ("def reset(self, **kwargs): raise KeyError('no map')", "in reset(): KeyError: 'no map'"),
        ("def __init__(self, config): raise OSError('no port')", "cannot be made: OSError: no port"),
    ],
)
def test_an_environment_that_raises_while_policies_play_says_where(
    tmp_path, monkeypatch, capsys, command, body, message
):
    name = f"env_{command}_{len(body)}"
    (tmp_path / f"{name}.py").write_text(
        "import gymnasium as gym\n"
        "class Env(gym.Env):\n"
        "    observation_space = gym.make('CartPole-v1').observation_space\n"
        "    action_space = gym.spaces.Discrete(2)\n"
        "    def __init__(self, config): pass\n"
        "    def reset(self, **kwargs): return self.observation_space.sample(), {}\n"
        f"    {body}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    policies = ["cartpole"] if command == "evaluate" else ["--teacher", "cartpole", "cartpole"]
    monkeypatch.setattr(sys, "argv", ["rllib", command, *policies, "--env", f"{name}.Env", "--episodes", "1"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert f"({tmp_path / name}.py:7, in " in error
    assert re.fullmatch(r"error: .*\n", error), error


def test_an_environment_that_cannot_be_shown_says_so_before_it_plays(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pygame", None)
    monkeypatch.setattr(sys, "argv", ["rllib", "evaluate", "cartpole", "--video", str(tmp_path / "films")])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert re.fullmatch(r"error: The environment cannot be shown: .*pip install.*\n", capsys.readouterr().err)
    assert not (tmp_path / "films").exists()


def test_the_files_ending_says_the_format_and_one_episode_has_no_interval(tmp_path, monkeypatch, capsys):
    artifact = tmp_path / "student.safetensors"
    monkeypatch.setattr(sys, "argv", ["rllib", "export", "cartpole", "--out", str(artifact), "--episodes", "1"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    assert artifact_format_of(artifact) == "safetensors"
    monkeypatch.setattr(sys, "argv", ["rllib", "evaluate", str(artifact), "--env", "CartPole-v1", "--episodes", "1"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == "return 500.0 (1 episode of CartPole-v1)\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.py", "x = 1", "must define `config`"),
        ("a.py", "config = 1", "Got int"),
        ("a.py", "1 / 0", "ZeroDivisionError"),
        ("a.yaml", "{", "is not YAML"),
        ("a.yaml", "a: {run: DQN}\nb: {run: DQN}", "must contain one experiment, got 2: ['a', 'b']"),
        ("a.yaml", "- run: DQN", "must contain an experiment"),
        ("a.yaml", "a: {run: DQN, config: [1]}", "must be a mapping of settings"),
        ("a.yaml", "a: {run: DQN, stop: soon}", "must be a mapping like {training_iteration: 10}"),
        ("a.yaml", "a: {run: DQN, num_samples: many}", "`num_samples` must be at least 1"),
        ("a.yaml", "a: {run: DQN}", "No environment was given"),
        ("a.yaml", "a: {env: CartPole-v1}", "names no algorithm"),
        ("a.yaml", "a: {run: DQN, confg: {}}", "Did you mean 'config'?"),
        ("a.yaml", "a: {run: DQN, checkpoint_freq: 5}", "is a flag now: --checkpoint-freq"),
        ("a.yaml", "a: {run: DQN, max_failures: 3}", "is a flag now: --max-failures"),
        ("a.yaml", "a: {run: DQN, env: CartPole-v1, config: {1: 2}}", "The name of a setting must be text"),
        ("a.yaml", "a: {run: DQN, env: CartPole-v1, stop: {1: 2}}", "A metric must be a name"),
        ("a.yaml", "", "must contain an experiment"),
        ("a.py", "", "must define `config`"),
    ],
)
def test_files_that_hold_no_experiment_say_so(tmp_path, monkeypatch, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "argv", ["rllib", "train", "file", str(tmp_path / name)])
    with pytest.raises(SystemExit) as exit_:
        main()
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert re.fullmatch(r"error: .*\n", error)


ESCAPES = "\x1b]0;title\x07\x1b[31m\x9b1m\u202e[red]"
IN_YAML = "\\e]0;title\\a\\e[31m\\x9b1m\\u202e[red]"  # between double quotes


def assert_harmless(text: str) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text), ascii(text)


@pytest.mark.parametrize(
    "content",
    [
        "x: {run: 'ESCAPES', env: CartPole-v1}",
        "x: {run: 'json.ESCAPES', env: CartPole-v1}",
        "x: {run: DQN, env: 'ESCAPES'}",
        "x: {run: DQN, env: 'module.ESCAPES'}",
        "x: {run: DQN, env: 'ESCAPES:Env-v0'}",
        "x: {run: DQN, env: CartPole-v1, config: {env_config: {'ESCAPES': 1}}}",
        "x: {run: DQN, env: CartPole-v1, config: {'ESCAPES': 1}}",
        "x: {run: DQN, env: CartPole-v1, config: {lr: 'ESCAPES'}}",
        "x: {run: DQN, env: CartPole-v1, config: {model_config: {'ESCAPES': 1}}}",
        "x: {run: DQN, env: CartPole-v1, stop: {'training_\\eiteration': 1}}",
        "x: {run: DQN, env: CartPole-v1, stop: {a: 'ESCAPES'}}",
        "x: {run: DQN, env: CartPole-v1, num_samples: 'ESCAPES'}",
        "x: {run: DistillDQN, env: CartPole-v1, config: {teacher: '/ESCAPES'}}",
        "x: {run: DQN, 'ESCAPES': 1}",
        "{'ESCAPES': {run: DQN}, b: {run: DQN}}",
        "'../ESCAPES': {run: DQN, env: CartPole-v1}",
        "ESCAPES",
    ],
)
def test_what_a_file_names_steers_no_terminal(tmp_path, monkeypatch, capsys, content):
    file = tmp_path / f"{ESCAPES}.yaml"
    file.write_text(content.replace("'", '"').replace("ESCAPES", IN_YAML))
    monkeypatch.setattr(sys, "argv", ["rllib", "train", "file", str(file)])
    with pytest.raises(SystemExit) as exit_:
        main()
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert re.fullmatch(r"error: .*\n", printed.err)
    assert_harmless(printed.err + printed.out)


def test_names_of_files_and_folders_steer_no_terminal(tmp_path, monkeypatch, capsys):
    def rllib(*arguments):
        monkeypatch.setattr(sys, "argv", ["rllib", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        assert_harmless(printed.out + printed.err)
        return exit_.value.code, printed.out + printed.err

    folder = tmp_path / ESCAPES
    folder.mkdir()
    student, flags = folder / f"{ESCAPES}.safetensors", ("--env", "CartPole-v1", "--episodes", 1)
    code, table = rllib("export", "cartpole", "--out", student, "--episodes", 1)
    assert not code
    assert "[red]" in table
    code, output = rllib("compare", "--teacher", student, student, student.parent / student.name, *flags)
    assert not code, output
    code, output = rllib("compare", "--teacher", "cartpole", student, *flags, "--out", folder / "report")
    assert not code, output
    assert "report/index.html" in output.replace("\n", "")
    assert_harmless((folder / "report" / "index.html").read_text(encoding="utf-8"))
    assert rllib("evaluate", folder, *flags)[0] == 2
    assert rllib("evaluate", folder / "none", *flags)[0] == 2
    assert rllib(ESCAPES)[0] == 2
    assert rllib("evaluate", "cartpole", f"--{ESCAPES}")[0] == 2


def test_what_nobody_foresaw_and_what_others_warn_of_is_printed_cleanly(monkeypatch, capsys):
    def fails(**kwargs):
        warnings.warn(f"\x1b[33mWARN: {ESCAPES}\x1b[0m", stacklevel=1)
        raise KeyError(f"{ESCAPES}", RuntimeError(ESCAPES))

    class OddError(Exception):
        def __str__(self):
            return ESCAPES

    def fails_oddly(**kwargs):
        raise OddError

    monkeypatch.setattr(sys, "argv", ["rllib"])
    monkeypatch.setattr(warnings, "showwarning", _show_as_python_does)
    for failure in (fails, fails_oddly):
        monkeypatch.setattr("rllib_kd.cli.main.app", failure)
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 1
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert_harmless(error)
    assert warnings.formatwarning("x", UserWarning, "f", 1) == "f:1: UserWarning: x\n"


def _show_as_python_does(*args):
    sys.stderr.write(warnings.formatwarning(*args[:4]))


@pytest.mark.slow
def test_a_cluster_is_emulated_and_ended():
    code = (
        "import ray; from rllib_kd.experiment.connection import LocalRay, connection\n"
        "with connection({'CPU': 1}, local=LocalRay(num_nodes=3, num_cpus=2)):\n"
        "    print(len(ray.nodes()), ray.cluster_resources()['CPU'])\n"
        "print(ray.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "3 6.0\nFalse\n", done.stderr


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
    monkeypatch.setattr(sys, "argv", ["rllib", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    assert FakeWandb.made == [{"project": "DistillDQN-CartPole-v1", "name": "mine"}]
    assert FakeWandb.iterations == [1, 2]
    assert os.environ["WANDB_API_KEY"] == "very-secret"
    assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


class Terminal:
    """A command in a terminal of so many columns, as a user sees it."""

    def __init__(self, *command: str, columns: int = 80):
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # readline, which pytest imports, sets COLUMNS behind Python's back, and for all processes that follow.
            environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
            os.execve(sys.executable, [sys.executable, "-m", "rllib_kd", *command], environment)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.raw = ""

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw)

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def wait_for(self, something: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not something():
            assert time.monotonic() < deadline, self.text
            self._read()

    def wait(self) -> int:
        """Its exit code."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        os.set_blocking(self._terminal, False)
        time.sleep(0.05)
        try:
            chunk = os.read(self._terminal, 100_000)
        except BlockingIOError:
            return True
        except OSError:  # what Linux says at the end
            return False
        self.raw += chunk.decode(errors="replace")
        return bool(chunk)


def num_results(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*/result.json"))


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/checkpoint_*"))


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "default"
    arguments = ["--config", json.dumps(FAST), "--storage-path", str(tmp_path), "--num-samples", "2"]
    terminal = Terminal(*DISTIL, *arguments, "--stop", '{"training_iteration": 1e6}', "--ray-num-cpus", "1")
    terminal.wait_for(lambda: "env steps" in terminal.text)
    terminal.press_ctrl_c()
    assert terminal.wait() == 1, terminal.text
    assert len(checkpoints(folder)) == 1  # the other one has not begun
    before = num_results(folder)
    assert "0 of 2 trials done" in terminal.text
    assert max(map(len, re.findall(r"[^\r\n]*env steps[^\r\n]*", terminal.text))) <= 80
    command = re.search(r"continue with: rllib (train .* --resume)", terminal.text.replace("\r\n", " "))
    assert command is not None, terminal.text

    terminal = Terminal(*shlex.split(command[1]), columns=40)
    terminal.wait_for(lambda: len(set(re.findall(r"trials done[^\r\n]*", terminal.text))) > 2)
    terminal.press_ctrl_c()
    assert terminal.wait() == 1, terminal.text
    assert num_results(folder) > before
    assert len(checkpoints(folder)) == 2
    (result,) = folder.glob("*/result.json")
    iterations = [json.loads(line)["training_iteration"] for line in result.read_text().splitlines()]
    assert iterations == list(range(1, len(iterations) + 1))  # none is lost, none is done twice
    shown = re.findall(r"0 of 2 trials done[^\r\n]*", terminal.text)
    assert shown
    assert max(map(len, shown)) <= 40


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    config = json.dumps(FAST | {"evaluation_interval": 2, "evaluation_duration": 1_000_000})  # that will never end
    terminal = Terminal(*DISTIL, "--config", config, "--storage-path", str(tmp_path))
    terminal.wait_for(lambda: "env steps" in terminal.text)
    terminal.press_ctrl_c()
    terminal.wait_for(lambda: "stopping" in terminal.text)
    terminal.press_ctrl_c()
    start = time.monotonic()
    assert terminal.wait() == 1, terminal.text
    assert time.monotonic() - start < 15
    assert "interrupted\r\n" in terminal.text
    assert "continue with" not in terminal.text
    assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("\x1b[?25l")  # the cursor is there again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_before_training_end_in_one_line(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "rllib_kd", *DISTIL, "--storage-path", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (output, error) == ("", "error: interrupted\n")
