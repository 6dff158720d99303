"""What a terminal shows, and what is pressed in it."""

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from rllib_kd.cli.main import _ending_on_signals, main
from tests.cli.commands import DISTIL, ESCAPES, FAST, IN_YAML, assert_harmless, checkpoints
from tests.conftest import exit_code, ray_address


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
    assert exit_code("train", "file", file) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: .*\n", printed.err)
    assert_harmless(printed.err + printed.out)


@pytest.mark.slow
def test_names_of_files_and_folders_steer_no_terminal(tmp_path, monkeypatch, capsys):
    def rllib(*arguments):
        code = exit_code(*arguments)
        printed = capsys.readouterr()
        assert_harmless(printed.out + printed.err)
        return code, printed.out + printed.err

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

    monkeypatch.setattr(warnings, "showwarning", _show_as_python_does)
    for failure in (fails, fails_oddly):
        monkeypatch.setattr("rllib_kd.cli.main.app", failure)
        assert exit_code() == 1
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert_harmless(error)
    assert warnings.formatwarning("x", UserWarning, "f", 1) == "f:1: UserWarning: x\n"


def _show_as_python_does(*args):
    sys.stderr.write(warnings.formatwarning(*args[:4]))


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

    def wait_for(self, something: Callable[[], bool], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not something():
            assert time.monotonic() < deadline, self.text
            self._read()

    def wait(self) -> int:
        """Its exit code, within minutes."""
        self.wait_for(lambda: not self._read())
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


def iterations_of(trial: Path) -> list[int]:
    rows = map(json.loads, (trial / "result.json").read_text().splitlines())
    return [row["training_iteration"] for row in rows]


def shown_by(terminal: Terminal) -> list[str]:
    """Each state of the progress line."""
    return re.findall(r"[^\r\n]*env steps[^\r\n]*", terminal.text)


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(tmp_path, rllib):
    config = json.dumps(FAST | {"num_cpus_for_main_process": 3})  # one trial after the other
    arguments = ["--config", config, "--storage-path", str(tmp_path), "--num-samples", "2"]
    arguments += ["--ray-address", ray_address()]
    terminal = Terminal(*DISTIL, *arguments, "--stop", '{"training_iteration": 1e6}')
    terminal.wait_for(lambda: "env steps" in terminal.text)
    terminal.press_ctrl_c()
    assert terminal.wait() == 1, terminal.text
    (folder,) = tmp_path.glob("DistillDQN_CartPole-v1_*")  # nobody has named it
    assert f"note: results go to '{folder}'." in terminal.text.replace("\r\n", "")
    (begun,) = (path.parent for path in checkpoints(folder))  # the other one has not begun
    before = iterations_of(begun)
    assert "0 of 2 trials done" in terminal.text
    assert max(map(len, shown_by(terminal))) <= 80
    command = re.search(r"continue with: cd .* && rllib (train .* --resume)", terminal.text.replace("\r\n", " "))
    assert command is not None, terminal.text

    words = shlex.split(command[1])
    words[words.index("--stop") + 1] = '{"iterations_since_restore": 2}'
    done = rllib(*words)
    assert done.returncode == 0, done.stderr
    iterations = {path.parent: iterations_of(path.parent) for path in checkpoints(folder)}
    assert iterations.pop(begun) == list(range(1, len(before) + 3))  # none is lost, none is done twice
    assert list(iterations.values()) == [[1, 2]]


def catches_sigterm(pid: int) -> bool:
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="what a process catches is read in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_before_training_end_in_one_line(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "rllib_kd", *DISTIL, "--storage-path", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not catches_sigterm(process.pid):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)  # it imports Ray, which takes seconds
        process.send_signal(number)
        output, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 1
    assert (output, error) == ("", "error: interrupted\n")


def test_characters_that_the_encoding_of_stdout_lacks_are_replaced():
    code = "import rllib_kd.cli.main as c; c.app = lambda *a, **k: c.echo('a \u2020 \u2192 b'); c.main(['x'])"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == (b"a ? ? b\n", b"", 0)


def test_an_exit_of_the_users_code_is_an_error_of_the_command(monkeypatch, capsys):
    monkeypatch.setattr("rllib_kd.cli.main.app", lambda *args, **kwargs: sys.exit())
    with pytest.raises(SystemExit) as raised:
        main(["train"])
    assert raised.value.code == 1
    assert capsys.readouterr().err.startswith("error: Code of your own has ended the process: SystemExit (")


def test_a_signal_ends_the_command_also_if_nobody_reads_its_stderr(monkeypatch):
    monkeypatch.setattr("typer.echo", lambda *args, **kwargs: os.write(-1, b""))
    with pytest.raises(SystemExit) as raised, _ending_on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 1


class SignalledWhereAllIsIgnored:
    """Python ignores what is raised here, as in hooks of os.fork()."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_whose_exception_is_ignored_ends_the_command_too(capsys):
    def wait():
        thing = [SignalledWhereAllIsIgnored()]
        thing.clear()
        for _ in range(200):
            time.sleep(0.05)

    with pytest.raises(SystemExit) as raised, _ending_on_signals():
        wait()
    assert raised.value.code == 1
    assert capsys.readouterr().err == "error: interrupted\n"
