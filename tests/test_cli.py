"""The `rllib` command as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rllib_kd import cli
from rllib_kd.callbacks import describe

ROOT = Path(__file__).parents[1]
FAST = {"num_envs_per_env_runner": 4, "num_baseline_episodes": 0, "min_sample_timesteps_per_iteration": 64}
DISTIL = ["train", "--algo", "DistillDQN", "--env", "CartPole-v1", "--teacher", "cartpole"]


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rllib_kd", *arguments], capture_output=True, text=True, timeout=timeout
    )


def test_help_is_quick_fits_a_screen_and_shows_an_example():
    for command in ([], ["train"], ["compare"], ["evaluate"], ["export"]):
        start = time.perf_counter()
        done = run(*command, "--help")
        assert done.returncode == 0
        assert time.perf_counter() - start < 1.5
        lines = done.stdout.splitlines()
        assert len(lines) <= 55
        assert max(map(len, lines)) <= 80
        assert not command or "rllib " + command[0] in done.stdout.split("Options")[0].split("Usage")[1]


def test_help_does_not_import_ray():
    code = "import sys; from rllib_kd import cli; print({'ray', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


BAD = {
    "no command": (["fly"], "No such command 'fly'"),
    "no algorithm": (["train", "--env", "CartPole-v1"], "--algo DistillDQN"),
    "unknown algorithm": (["train", "--algo", "DistilDQN", "--env", "CartPole-v1"], "Did you mean 'DistillDQN'?"),
    "no environment": (["train", "--algo", "DQN"], "--env CartPole-v1"),
    "no teacher": (["train", "--algo", "DistillDQN", "--env", "CartPole-v1"], "needs a teacher"),
    "teacher is not there": ([*DISTIL[:-1], "/does/not/exist"], "There is no checkpoint at '/does/not/exist'"),
    "unknown setting": ([*DISTIL, "--config", '{"temprature": 1}'], "Did you mean 'temperature'?"),
    "unknown setting of DQN": (["train", "--algo", "DQN", "--env", "CartPole-v1", "-c", '{"gama": 1}'], "'gamma'"),
    "bad value": ([*DISTIL, "--config", '{"temperature": -1}'], "`temperature` must be positive"),
    "unknown loss": ([*DISTIL, "--loss", "l2"], "Unknown loss 'l2'"),
    "compression beyond 1": ([*DISTIL, "--compression", "7"], "`compression` must be in (0, 1]"),
    "compression is no number": ([*DISTIL, "--compression", "tiny"], "valid number"),
    "config is no JSON": ([*DISTIL, "--config", "{lr: 1}"], "--config must be a JSON object"),
    "config is a list": ([*DISTIL, "--config", "[1]"], "--config must be a JSON object"),
    "config file is not there": ([*DISTIL, "--config", "@nowhere.json"], "there is no file 'nowhere.json'"),
    "stop is no JSON": ([*DISTIL, "--stop", "soon"], "--stop must be a JSON object"),
    "unknown flag": ([*DISTIL, "--lr", "1"], "No such option: --lr"),
    "a flag that is gone": ([*DISTIL, "--local-mode"], "no longer exists"),
    "another flag that is gone": ([*DISTIL, "--upload-dir=s3://x"], "use --storage-path"),
    "unknown scheduler": ([*DISTIL, "--scheduler", "magic"], "Unknown scheduler 'magic'"),
    "file is not there": (["train", "file", "nowhere.py"], "no experiment file at 'nowhere.py'"),
    "file of another kind": (["train", "file", "README.md"], "ends in .py or .yaml"),
    "file and flags": (["train", "file", "tuning/cartpole.py", "--algo", "DQN"], "leave out --algo"),
    "file word missing": (["train", "run", "x.py"], "rllib train file FILE"),
    "nothing to resume": ([*DISTIL, "--resume", "--storage-path", "/tmp/rllib_kd_none"], "no experiment to resume"),
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
    "no episodes": (["evaluate", "cartpole", "--env", "CartPole-v1", "--episodes", "0"], "at least 1"),
    "environment unknown": (["train", "--algo", "DQN", "--env", "CartPool-v1"], "Did you mean: `CartPole`?"),
    "environment unknown to evaluate": (["evaluate", "cartpole", "--env", "CartPool-v1"], "CartPool"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_usage_is_one_line_and_exit_code_2(cluster, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["rllib", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert "Traceback" not in error


def test_trains_evaluates_compares_and_goes_on(tmp_path):
    config = json.dumps(FAST | {"evaluation_interval": 1, "evaluation_duration": 1})
    train = [*DISTIL, "--compression", "0.05", "--config", config, "--storage-path", str(tmp_path)]
    done = run(*train, "--stop", '{"training_iteration": 3}', "--experiment-name", "first")
    assert done.returncode == 0, done.stderr
    summary, checkpoint = done.stdout.splitlines()
    assert re.match(r"\d+ env steps", summary)
    assert Path(checkpoint).is_dir()
    assert done.stderr == ""  # quiet where it is not a terminal

    report = tmp_path / "returns.json"
    done = run("evaluate", checkpoint, "--env", "CartPole-v1", "--episodes", "5", "--out", str(report))
    assert re.fullmatch(r"return [\d.]+ ± [\d.]+ \(95 % CI, 5 episodes of CartPole-v1\)\n", done.stdout), done
    assert len(json.loads(report.read_text())["returns"]) == 5

    arguments = ["compare", "--teacher", "cartpole", "--env", "CartPole-v1", checkpoint, "--episodes", "3"]
    done = run(*arguments, "--out", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    assert Path(checkpoint).name in done.stdout
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())
    assert [student["name"] for student in figures["students"]] == [Path(checkpoint).name]
    assert figures["curves"]
    assert (tmp_path / "report" / "index.html").is_file()

    artifact = tmp_path / "student.onnx"
    arguments = ["export", checkpoint, "--env", "CartPole-v1", "--out", str(artifact), "--teacher", "cartpole"]
    done = run(*arguments, "--episodes", "2")
    assert done.returncode == 0, done.stderr
    assert artifact.is_file()
    for row in ("bytes on disk", "peak memory", "latency, batch of 1", "difference from PyTorch"):
        assert row in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80

    done = run(*train, "--stop", '{"training_iteration": 5}', "-n", "second", "--restore", checkpoint)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "second").glob("*/result.json")
    assert json.loads(result.read_text().splitlines()[0])["training_iteration"] == 4


def test_the_old_spellings_train_a_teacher(tmp_path):
    done = run(
        *["train", "--run", "DQN", "--env", "CartPole-v1", "--stop", '{"timesteps_total": 1000}'],
        *["--checkpoint-freq", "1", "--checkpoint-at-end", "--storage-path", str(tmp_path)],
    )
    assert done.returncode == 0, done.stderr
    assert run("evaluate", done.stdout.splitlines()[1], "--env", "CartPole-v1", "--episodes", "2").returncode == 0


def test_files_with_a_grid_search(tmp_path):
    experiment = tmp_path / "sizes.yaml"
    experiment.write_text(
        f"""
sizes:
  run: DistillDQN
  env: CartPole-v1
  stop: {{training_iteration: 1}}
  config:
    teacher: cartpole
    compression: {{grid_search: [0.05, 0.1]}}
    num_baseline_episodes: 0
    num_envs_per_env_runner: {FAST["num_envs_per_env_runner"]}
"""
    )
    done = run("train", "file", str(experiment), "--storage-path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sizes").glob("*/result.json"))) == 2


def test_a_python_file_and_its_stop(tmp_path):
    arguments = ["train", "file", str(ROOT / "tuning" / "cartpole.py"), "--storage-path", str(tmp_path)]
    done = run(*arguments, "--stop", '{"training_iteration": 1}')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cartpole").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.py", "x = 1", "must define `config`"),
        ("a.py", "config = 1", "Got int"),
        ("a.py", "1 / 0", "ZeroDivisionError"),
        ("a.yaml", "{", "is not YAML"),
        ("a.yaml", "a: {run: DQN}\nb: {run: DQN}", "must hold one experiment"),
        ("a.yaml", "a: {env: CartPole-v1}", "must name the algorithm"),
        ("a.yaml", "a: {run: DQN, environment: CartPole-v1}", "Unknown keys"),
    ],
)
def test_files_that_hold_no_experiment_say_so(tmp_path, monkeypatch, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "argv", ["rllib", "train", "file", str(tmp_path / name)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_saves_a_checkpoint_and_ends(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "rllib_kd", *DISTIL, "--config", json.dumps(FAST), "--storage-path", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob("default/*/result.json")):
        assert time.monotonic() < deadline, "training has not started"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in error
    assert "--restore" in error
    assert list(tmp_path.glob("default/*/checkpoint_*/teacher/state.pkl")), output


def test_the_progress_line_says_what_one_wants_to_know():
    result = {
        "num_env_steps_sampled_lifetime": 5_000,
        "time_total_s": 10.0,
        "env_runners": {"episode_return_mean": 80.0},
        "evaluation": {"env_runners": {"episode_return_mean": 123.45}},
        "distillation": {"num_gradient_steps_lifetime": 20_000, "return_ratio": 0.2346},
    }
    line = describe(result, {"num_env_steps_sampled_lifetime": 20_000}, 10.0)
    assert line == "5,000 env steps · 2,000 gradient steps/s · return 123.5 · ratio 0.235 · 30 s left"
    assert describe({"num_env_steps_sampled_lifetime": 10}, {}, 1.0) == "10 env steps"
