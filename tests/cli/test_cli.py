"""The `rllib` command as a user types it."""

import re
import subprocess
import sys

import pytest

import rllib_kd
from rllib_kd.cli.app import without_key
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.artifact import artifact_format_of
from tests.cli.commands import run
from tests.conftest import exit_code


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sweep"], ["shrink"], ["label"], ["compare"], ["evaluate"], ["export"], ["serve"]]
)
def test_help_fits_a_screen_shows_an_example_and_imports_no_ray(command):
    code = (
        "import sys; from rllib_kd.cli import main as cli\n"
        f"sys.argv[1:] = {[*command, '--help']}\n"
        "try: cli.main()\n"
        "finally: assert not {'ray', 'torch', 'gymnasium'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 49
    assert max(map(len, lines)) <= 80
    assert not command or "rllib " + command[0] in done.stdout.split("Options")[0].split("Usage")[1][10:]


def test_the_version():
    assert f"rllib-kd {rllib_kd.__version__}, ray " in run("--version").stdout


def test_the_interpreter_ends_without_a_search_for_garbage():
    code = "import atexit, gc; from rllib_kd.cli import main as cli\n"
    code += "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"  # functions run in reverse order
    ends = "try: cli.main(['--version'])\nfinally: assert gc.get_freeze_count() == 0"
    done = subprocess.run([sys.executable, "-c", code + ends], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "True"), done.stderr


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
    assert exit_code(command, *policies, "--env", f"{name}.Env", "--episodes", "1") in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert f"({tmp_path / name}.py:7, in " in error
    assert re.fullmatch(r"error: .*\n", error), error


def test_an_environment_that_cannot_be_shown_says_so_before_it_plays(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert exit_code("evaluate", "cartpole", "--video", str(tmp_path / "films")) == 2
    assert re.fullmatch(r"error: The environment cannot be shown: .*pip install.*\n", capsys.readouterr().err)
    assert not (tmp_path / "films").exists()


@pytest.mark.parametrize("missing", ["moviepy", "imageio_ffmpeg"])
def test_a_package_that_videos_lack_is_named_before_anything_is_opened(tmp_path, monkeypatch, capsys, missing):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("moviepy", "imageio")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("rllib_kd.evaluation.sources.open_source", "rllib_kd.evaluation.comparing.open_source"):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail("A checkpoint was opened"))
    assert exit_code("evaluate", "cartpole", "--video", str(tmp_path / "films")) == 2
    message = f"Videos need the package '{missing}': pip install 'rllib-kd[video]'"
    assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate("cartpole", video_dir=tmp_path)


def test_the_files_ending_says_the_format_and_one_episode_has_no_interval(tmp_path, monkeypatch, capsys):
    artifact = tmp_path / "student.safetensors"
    assert not exit_code("export", "cartpole", "--out", str(artifact), "--episodes", "1")
    assert artifact_format_of(artifact) == "safetensors"
    capsys.readouterr()
    exit_code("evaluate", str(artifact), "--env", "CartPole-v1", "--episodes", "1")
    assert capsys.readouterr().out == "return 500.0 (1 episode of CartPole-v1)\n"


def test_a_key_is_not_printed():
    arguments = ["train", "--wandb-key", "SECRET", "--wandb-project", "p", "--wandb-key=SECRET", "-n", "mine"]
    assert without_key(arguments) == ["train", "--wandb-project", "p", "-n", "mine"]
