"""What ends a run from outside: signals, closed terminals, dead processes, a full disk. Real ones, to real commands."""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from ray._private import services, utils

from rllib_kd.experiment.connection import _kept_sigterm_handler, _own_sessions
from rllib_kd.experiment.interrupts import _ECHO, _leave_closed_terminals, saving_on_interrupt
from rllib_kd.locks import LockedError, locked
from tests import background
from tests.conftest import ray_address

FAST = {"num_envs_per_env_runner": 4, "num_baseline_episodes": 0, "min_sample_timesteps_per_iteration": 64}
FOREVER = 1_000_000  # iterations

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


# --- Signals, without Ray ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_to_save_and_handlers_come_back(number, request):
    before = signal.getsignal(number)
    if before == signal.SIG_IGN:  # these tests may run under nohup, which a run respects
        request.addfinalizer(lambda: signal.signal(number, signal.SIG_IGN))
        signal.signal(number, before := signal.SIG_DFL)
    with saving_on_interrupt() as interrupted:
        assert not interrupted.is_set()
        signal.raise_signal(number)
        assert interrupted.is_set()
    assert signal.getsignal(number) == before


def test_sigterm_to_the_process_and_to_its_group_is_one_request():
    with saving_on_interrupt() as interrupted:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert interrupted.is_set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_ends_at_once(number, monkeypatch, capsys):
    monkeypatch.setattr("rllib_kd.experiment.interrupts._ECHO", 0.0)
    with saving_on_interrupt():
        signal.raise_signal(number)
        with pytest.raises(SystemExit) as exit_:
            signal.raise_signal(number)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "interrupted\n"


def test_a_terminal_that_closes_never_ends_at_once(monkeypatch):
    monkeypatch.setattr("rllib_kd.experiment.interrupts._ECHO", 0.0)
    with saving_on_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)


def test_under_nohup_a_closed_terminal_is_no_reason_to_end():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with saving_on_interrupt() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted.is_set()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_what_goes_to_a_closed_terminal_is_no_error():
    ours, theirs = pty.openpty()
    _leave_closed_terminals([theirs])
    os.write(theirs, b"there")
    assert os.read(ours, 100) == b"there"
    os.close(ours)
    with pytest.raises(OSError, match="Input/output"):
        os.write(theirs, b"gone")
    _leave_closed_terminals([theirs])
    os.write(theirs, b"nowhere")
    os.close(theirs)


# --- Ray's daemons ----------------------------------------------------------------------------------------------------


SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = f"""
from ray._private import services, utils
from rllib_kd.experiment.connection import _own_sessions
import time
with _own_sessions():
    print(services.start_ray_process({SLEEPER}, "test", fate_share=True).process.pid, flush=True)
time.sleep(600)
"""


def test_rays_daemons_start_in_sessions_of_their_own():
    popen = services.ConsolePopen
    with _own_sessions():
        apart = services.start_ray_process(SLEEPER, "test", fate_share=True).process
    assert services.ConsolePopen is popen
    beside = services.start_ray_process(SLEEPER, "test", fate_share=True).process
    try:
        assert os.getsid(apart.pid) == os.getpgid(apart.pid) == apart.pid
        assert os.getsid(beside.pid) == os.getsid(0)
        assert isinstance(apart, popen)
    finally:
        for process in (apart, beside):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_daemon_in_a_session_of_its_own_dies_with_a_parent_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    wait_for(lambda: not is_alive(pid), seconds=120)


def test_rays_handler_of_sigterm_does_not_replace_ours():
    ours, rays = (lambda *args: None), (lambda *args: None)
    previous = signal.signal(signal.SIGTERM, ours)
    try:
        with _kept_sigterm_handler():
            utils.set_sigterm_handler(rays)
            assert signal.getsignal(signal.SIGTERM) is ours  # a signal may come while Ray starts
        assert signal.getsignal(signal.SIGTERM) is ours
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with _kept_sigterm_handler():
            utils.set_sigterm_handler(rays)
        assert signal.getsignal(signal.SIGTERM) is rays
    finally:
        signal.signal(signal.SIGTERM, previous)


# --- Real runs --------------------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


#: Looking for processes takes CPU time, too.
wait_for = partial(background.wait_for, seconds=600, pause=0.25)


def train(storage, *flags, at=None, **config) -> list[str]:
    """At the Ray of an address, or with one of its own."""
    command = [sys.executable, "-m", "rllib_kd", "train", "--algo", "DistillDQN", "--env", "CartPole-v1"]
    settings = ["--teacher", "cartpole", "--compression", "0.05", "--config", json.dumps(FAST | config)]
    ray_flags = ["--ray-num-cpus", "2"] if at is None else ["--ray-address", at]
    return [*command, *settings, "--storage-path", str(storage), "-n", "mine", *ray_flags, *flags]


def until(iterations) -> list[str]:
    return ["--stop", json.dumps({"training_iteration": iterations})]


def arguments(command: list[str]) -> list[str]:
    """Of `rllib`, to run it in this process."""
    return command[3:]


def rows_in(storage: Path) -> list[dict]:
    """The results of a run."""
    files = storage.glob("mine/*/result.json")
    return [json.loads(line) for path in files for line in path.read_text().splitlines() if line.endswith("}")]


class Run:
    """A command as the leader of a session, with all processes that come of it."""

    def __init__(self, command: list[str], storage: Path, **streams):
        self._mark, self._storage = uuid.uuid4().hex, storage
        streams = streams or {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # Agents of a Ray that was killed try for so many seconds to tell it so; the default is a minute.
        environment = {**os.environ, "RLLIB_KD_TEST": self._mark, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)

    @property
    def pids(self) -> dict[int, str]:
        """Process id → command line, of all that live."""
        found, mark = {}, f"RLLIB_KD_TEST={self._mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0") and is_alive(int(folder.name)):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended
                continue
        return found

    @property
    def rows(self) -> list[dict]:
        return rows_in(self._storage)

    def wait_for_iteration(self, number: int) -> None:
        """While the file of results is copied, it may hold none."""
        wait_for(lambda: [row for row in self.rows[-1:] if row["training_iteration"] >= number] or self.has_ended)
        assert not self.has_ended, self.process.communicate()[0]

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Its exit code and output; so many seconds later nobody is left."""
        output, _ = self.process.communicate(timeout=600)
        wait_for(lambda: not self.pids, seconds=seconds)
        return self.process.returncode, output

    def kill(self) -> None:
        """All that live, Ray's daemons among them. Whoever dies of another's death is no error."""
        while pids := self.pids:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def start(tmp_path):
    """Starts runs, of which nothing is left at the end of the test."""
    runs = []

    def start_run(command: list[str], **streams) -> Run:
        runs.append(Run(command, tmp_path, **streams))
        return runs[-1]

    yield start_run
    for run in runs:
        run.kill()


def assert_saved(storage, output) -> list[str]:
    """The command that goes on, after a run that has saved a checkpoint."""
    (checkpoint,) = storage.glob("mine/*/checkpoint_*")
    assert (checkpoint / "replay/0.npz").exists()
    assert "stopping: a checkpoint will be saved" in output
    command = re.search(r"interrupted; continue with: cd .* && rllib (train .* --resume)", output)
    assert command is not None, output
    return [sys.executable, "-m", "rllib_kd", *shlex.split(command[1])]


IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which a run respects
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow(as_many=10)
def test_timeout_and_a_closed_terminal_save_a_checkpoint_and_the_run_goes_on_to_another_stop(start, tmp_path, rllib):
    """First on an emulated cluster, then on a local Ray."""
    emulated = ["--ray-num-nodes", "2"]
    run = start(["timeout", "-k", "120", "600", *train(tmp_path, *until(FOREVER), *emulated)])  # signals the group
    run.wait_for_iteration(2)
    raylets = [command for command in run.pids.values() if "raylet/raylet " in command]
    assert ["CPU,2" in command for command in raylets] == [True, True]
    run.process.terminate()  # on which timeout does what it does when the time is up
    code, output = run.end()
    assert code != 0
    command = assert_saved(tmp_path, output)
    at = command.index(emulated[0])
    assert command[at : at + 2] == emulated
    del command[at : at + 2]
    before = run.rows[-1]["training_iteration"]
    ours, theirs = pty.openpty()
    resumed = start(
        [sys.executable, "-c", IN_A_TERMINAL, *command], **{"stdin": theirs, "stdout": theirs, "stderr": theirs}
    )
    os.close(theirs)
    resumed.wait_for_iteration(before + 1)
    os.close(ours)  # as when ssh is lost
    code, _ = resumed.end()
    assert code == 1
    last = run.rows[-1]["training_iteration"] + 2
    go_on = [*arguments(train(tmp_path, at=ray_address())), "--resume"]
    done = rllib(*go_on, *until(last))
    assert done.returncode == 0, done
    iterations = [row["training_iteration"] for row in run.rows]
    assert iterations == list(range(1, last + 1))  # both saved: none is lost, none is done twice
    done = rllib(*go_on, *until(last + 2))
    assert done.returncode == 2, done
    assert "1 of 1 trials have finished by an earlier --stop" in done.stderr


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once_and_leaves_nobody(start, tmp_path):
    endless = {"evaluation_interval": 2, "evaluation_duration": 1_000_000}
    run = start(train(tmp_path, *until(FOREVER), **endless))
    run.wait_for_iteration(1)
    run.process.terminate()  # the run alone
    time.sleep(_ECHO + 1)
    assert run.process.poll() is None
    os.killpg(run.process.pid, signal.SIGTERM)
    code, output = run.end()
    assert code == 1
    assert "interrupted\n" in output
    assert "continue with" not in output


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--ray-num-nodes", "2"]], ids=["a local Ray", "an emulated cluster"])
def test_a_run_that_is_killed_leaves_nobody(start, tmp_path, flags):
    run = start(train(tmp_path, *until(FOREVER), *flags))
    run.wait_for_iteration(1)
    with pytest.raises(LockedError, match=f"process {run.process.pid} "), locked(tmp_path / "mine", wait=False):
        pass  # of which `rllib train` tells the user (tests/cli/test_train.py)
    run.process.kill()
    run.end(seconds=480)  # the agents of an emulated cluster try for a minute all the same
    with locked(tmp_path / "mine", wait=False) as held:
        assert held


# --- Dead processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dead_process_sends_a_trial_back_to_its_checkpoint_as_often_as_allowed(tmp_path, rllib):
    """That of a Learner does, too (tests/cluster/test_recorded.py)."""

    def kill_when(fits: Callable[[dict], bool]) -> None:
        wait_for(lambda: any(map(fits, rows_in(tmp_path)[-1:])), seconds=300)
        os.kill(rows_in(tmp_path)[-1]["pid"], signal.SIGKILL)

    def kill_twice() -> None:
        try:
            kill_when(lambda row: row["training_iteration"] >= 3)
            kill_when(lambda row: 1 <= row["iterations_since_restore"] < row["training_iteration"])
        except BaseException:
            os.kill(os.getpid(), signal.SIGINT)  # ends the run
            raise

    flags = [*until(FOREVER), "--checkpoint-freq", "1", "--max-failures", "1"]
    with ThreadPoolExecutor(1) as threads:
        killing = threads.submit(kill_twice)
        done = rllib(*arguments(train(tmp_path, *flags, at=ray_address())))
        killing.result()
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "died" in output, output
    assert re.search(r"continue from the last checkpoint with: cd \S+ && rllib train", output), output


# --- A full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 6 MB, and what makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("only root may mount a small filesystem")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_run_that_has_filled_its_disk_goes_on_when_there_is_room(small_disk, rllib):
    disk, enlarge = small_disk
    # Several iterations for each state of the trials, which is kept once in a second.
    settings = {"min_time_s_per_iteration": 0.4, "replay_buffer_config": {"capacity": 500}}
    command = train(disk, *until(15), "--checkpoint-freq", "1", at=ray_address(), **settings)
    full = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert full.returncode == 1
    assert len(full.stderr.splitlines()) <= 2
    assert "No space left on device" in full.stdout + full.stderr
    assert re.search(r"continue .*--resume", full.stderr), full.stderr
    kept = len(list(disk.glob("mine/*/checkpoint_*")))
    assert kept > 3
    enlarge()
    resumed = rllib(*arguments(command), "--resume")
    assert resumed.returncode == 0, resumed
    rows = []
    for line in next(disk.glob("mine/*/result.json")).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the one that the full disk has cut off
            continue
    assert rows[-1]["training_iteration"] == 15
    assert rows[-1]["iterations_since_restore"] < 15  # it went on from a checkpoint
