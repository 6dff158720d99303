"""Saves small checkpoints, whole or killed in the middle."""

import atexit
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from rllib_kd.checkpoints import replacing as replacing_module
from rllib_kd.checkpoints.replacing import replacing

FILES = ("rllib_checkpoint.json", "state.pkl", "learner/weights.pkl", "replay/0.npz")


def write(folder, version):
    """A checkpoint of several files, in steps."""
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(version)


def save(folder, version):
    with replacing(folder, left_out=("replay",)) as new:
        write(new, version)


def version_of(folder):
    """Of a whole checkpoint."""
    (version,) = {(folder / name).read_text() for name in FILES}
    return version


def killed_at(step, folder, *without):
    """Whether a saver was killed: a process of its own, at that step of all that Python does with files.

    Args:
        step: from 1.
        folder: of the checkpoint.
        without: names of WITHOUT.
    """
    environment = {name: value for name, value in os.environ.items() if name.startswith("XDG_")}
    server = _server()
    server.stdin.write(json.dumps([step, str(folder), without, environment]) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@cache
def _server():
    """A small process that forks savers: forks of the tests' process, with PyTorch and Ray, take 20 times longer."""
    command, root = [sys.executable, "-m", __name__], Path(__file__).parents[2]
    server = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)  # at which it ends
    return server


def _fork(step, folder, without, environment):
    pid = os.fork()
    if pid == 0:
        left = step

        def count(event, arguments):
            nonlocal left
            if event.split(".")[0] in ("open", "os", "shutil", "tempfile", "ctypes"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.environ.update(environment)
        for name in without:
            setattr(*WITHOUT[name])
        sys.addaudithook(count)
        try:
            save(Path(folder), "newer")
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


_rename = Path.rename


def _dies_between_the_two_renames(self, to):
    return os.kill(os.getpid(), signal.SIGKILL) if self.name == "new" else _rename(self, to)


#: What a saver lacks: it moves folders by two renames, or does not get to the second one.
WITHOUT = {
    "one stroke": (replacing_module, "_exchange", lambda first, second: False),
    "the second rename": (Path, "rename", _dies_between_the_two_renames),
}


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def save_on_a_full_disk(folder):
    with replacing(folder) as new:
        write(new, "newer")
        full()


def put(folder, *names, content="mine"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_fork(*json.loads(line))), flush=True)
