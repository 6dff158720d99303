"""Locks of folders between processes."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from rllib_kd import locks
from rllib_kd.locks import LockedError, locked
from tests.background import in_background, wait_for

HOLDER = """
import sys, time
from pathlib import Path
from rllib_kd.locks import locked
with locked(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, that holds the lock of a folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "x")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_who_holds_a_lock_is_named_and_whoever_is_killed_frees_it(tmp_path, holder):
    folder = tmp_path / "x"
    with pytest.raises(LockedError, match=rf"^process {holder.pid} on \S+$"), locked(folder, wait=False):
        pass
    with locked(tmp_path / "y", wait=False) as held:
        assert held
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]
    with locked(folder, wait=False) as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def test_whoever_waits_comes_next_and_one_at_a_time(tmp_path):
    inside, most, turns = [], [], []

    def enter(name):
        for _ in range(20):
            with locked(tmp_path / "x", wait=True) as held:
                assert held
                inside.append(name)
                most.append(len(inside))
                inside.remove(name)
                turns.append(name)

    threads = [threading.Thread(target=enter, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert len(turns) == 80
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_whoever_waits_for_long_says_for_whom(tmp_path, holder, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_SECONDS_BEFORE_WARNING", 0.05)

    def enter():
        with locked(tmp_path / "x", wait=True) as held:
            return held

    entering = in_background(enter)
    wait_for(lambda: caplog.messages)
    assert not entering.done()
    os.kill(holder.pid, signal.SIGKILL)
    assert entering.result(timeout=300)
    (said,) = caplog.messages
    assert f"x.lock', which process {holder.pid} on " in said


def test_a_filesystem_without_locks_is_no_error(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locked(tmp_path / "x", wait=True) as held:
        assert not held
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_nobody_from_holding_a_lock(tmp_path, monkeypatch):
    def pwrite(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.os, "pwrite", pwrite)
    with locked(tmp_path / "x", wait=False) as held:
        assert held
        with pytest.raises(LockedError, match="another process"), locked(tmp_path / "x", wait=False):
            pass
