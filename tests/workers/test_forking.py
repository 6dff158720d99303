"""Ray's workers as forks of a process that has imported the package."""

import fnmatch
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from rllib_kd import _rllib
from rllib_kd.workers import fork_server, forking, ray_worker
from tests.background import in_background, wait_for
from tests.conftest import fork_server as server_of_tests
from tests.conftest import ray_address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
needs_forks = pytest.mark.skipif(not forking.is_possible(), reason="workers are not forked beside a GPU")


@ray.remote
class Actor:
    def look(self):
        import gc
        import logging
        import random

        import numpy as np
        import torch

        return {
            "imported": "rllib_kd.algorithm.algorithm" in sys.modules,
            "drawn": [np.random.rand(), torch.rand(1).item(), random.random(), ray.UniqueID.from_random().hex()],
            "threads": torch.get_num_threads(),
            "collects": gc.isenabled(),
            "warns": len(logging.getLogger("rllib_kd").handlers),
            "parent": os.getppid(),
            "raylet": os.environ["RAY_RAYLET_PID"],
            "session": os.getsid(0) == os.getpid(),
        }


@pytest.fixture
def server(cluster) -> forking.ForkServer:
    return server_of_tests()


@needs_forks
def test_actors_are_forks_that_differ_in_what_must_differ(server):
    """Before its class is unpickled, an actor of these tests has imported nothing of the package by itself."""
    actors = [Actor.remote() for _ in range(2)]
    one, other = ray.get([actor.look.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    assert (one["imported"], one["session"], one["collects"], one["warns"]) == (True, True, True, 1)
    assert one["parent"] == other["parent"] != int(one["raylet"])
    assert not set(one["drawn"]) & set(other["drawn"])
    assert one["threads"] == int(os.environ["OMP_NUM_THREADS"])


def test_torch_has_the_threads_that_ray_sets(monkeypatch):
    def set_variable():
        os.environ["OMP_NUM_THREADS"] = "3"
        return True

    told = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(_rllib.utils, "set_omp_num_threads_if_unset", set_variable)
    monkeypatch.setattr("torch.set_num_threads", told.append)
    _rllib.torch_has_the_threads_of_a_task()
    assert _rllib.utils.set_omp_num_threads_if_unset()
    assert told == [3]


@pytest.mark.parametrize(
    ("wanted", "is_possible"),
    [
        ({}, True),
        ({"RAY_JOB_ID": "ffffffff", "PYTHONPATH": "/elsewhere", "OURS": "1"}, True),
        ({"RAY_JOB_ID": "02000000"}, False),
        ({"SET_BY_IMPORTS": "new"}, True),  # the process that asks has imported them, too
        ({"SET_BY_IMPORTS": "another"}, False),
        ({"KMP_SETTINGS": "1"}, False),
        ({"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}, False),  # imports read it, unlike the folder of the cache
        ({"HOME": "/elsewhere"}, False),
        ({"HOME": None}, False),
    ],
)
def test_variables_that_imports_may_have_read_are_the_same_or_nothing_is_forked(monkeypatch, wanted, is_possible):
    before = {"HOME": "/home/user", "SET_BY_IMPORTS": "old", "RAY_JOB_ID": "01000000"}
    monkeypatch.setattr(os, "environ", before | {"SET_BY_IMPORTS": "new", "ADDED_BY_IMPORTS": "1"})
    wanted = {name: value for name, value in (before | wanted).items() if value is not None}
    environment = fork_server._environment(wanted, before, ["OURS"])
    added = {"SET_BY_IMPORTS": "new", "ADDED_BY_IMPORTS": "1"}
    assert environment == (wanted | added if is_possible else None)


@pytest.mark.slow
def test_variables_that_libraries_set_for_themselves_change_nothing():
    libraries = ("mlflow", "pygame", "sklearn", "tensorboardX")
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    code = f"""
import importlib, os
from rllib_kd.workers.fork_server import _environment
os.environ["RAY_JOB_ID"] = "01000000"
before = dict(os.environ)
for name in {libraries}:
    importlib.import_module(name)
after = dict(os.environ) | {{"SDL_AUDIODRIVER": "dummy", "TORCHINDUCTOR_CACHE_DIR": "/tmp/a"}}
os.environ.clear()  # the server has not imported them
os.environ.update(before)
print(_environment(after, before, []) == after)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def ask(folder: Path, script: str, server: str, environment: dict[str, str] | None = None, **variables: str) -> str:
    """Start ray_worker.py as Ray does, with a script in the place of Ray's own; return what it has printed.

    The server was started with this environment; None: it is that of the tests.
    """
    worker, output = folder / "worker.py", folder / "output"
    at_once = "; sys.stdout.flush(); os._exit(0)"  # some libraries print when a fork ends as others do
    worker.write_text(f"import os, sys; {script}{at_once}")
    if environment is None:
        at_start = Path(f"/proc/{server_of_tests()._pid}/environ").read_text().split("\0")
        environment = dict(variable.split("=", 1) for variable in at_start if variable)
    rays = {"RAY_JOB_ID": "ffffffff", ray_worker.SERVER: server, ray_worker.WORKER: str(worker)}
    environment = environment | rays | variables
    with output.open("w") as file:
        command = [sys.executable, ray_worker.__file__, "--node-id=1"]
        subprocess.run(command, env=environment, stdout=file, stderr=file, timeout=300, check=True)
    return output.read_text()


@needs_forks
def test_without_a_server_or_with_other_variables_a_worker_is_rays_own(tmp_path, server):
    script = "print(sys.argv, sys.path[0], 'torch' in sys.modules)"
    plain = f"{[str(tmp_path / 'worker.py'), '--node-id=1']} {tmp_path} False\n"
    assert ask(tmp_path, script, "gone") == plain
    assert ask(tmp_path, script, server.name, KMP_SETTINGS="1") == plain
    assert ask(tmp_path, script, server.name, RAY_JOB_ID="02000000") == plain


@needs_forks
def test_a_fork_that_ends_before_it_is_connected_is_replaced_by_a_worker_of_rays_own(tmp_path, server):
    printed = ask(tmp_path, "print('torch' in sys.modules)", server.name, RAY_RAYLET_PID=str(os.getpid()))
    assert printed == "True\nFalse\n"


@needs_forks
def test_a_fork_has_the_path_of_rays_own_worker(tmp_path, server):
    """A fork that ends at once is replaced by Ray's own worker: both print."""
    script = "print([folder for folder in sys.path if 'thirdparty_files' not in folder])"
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), *4 * [str(tmp_path / "twice")]])
    fork, own = ask(tmp_path, script, server.name, PYTHONPATH=path, RAY_RAYLET_PID=str(os.getpid())).splitlines()
    assert fork == own
    assert str(tmp_path / "twice") in ask(tmp_path, script, "gone", PYTHONPATH=path, PYTHONSAFEPATH="1")


@pytest.fixture
def listener():
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # Linux finds a name
        listening.listen()
        yield listening


def name_of(listener: socket.socket) -> str:
    return listener.getsockname()[1:].decode()


def test_a_thread_that_has_just_ended_is_none(monkeypatch):
    own = str(threading.get_native_id())
    monkeypatch.setattr(os, "listdir", lambda path: [own, "999999999"])
    assert fork_server._is_whole()
    monkeypatch.setattr(os, "listdir", lambda path: [own, own])
    assert not fork_server._is_whole()


def test_a_worker_that_no_longer_waits_is_not_forked(monkeypatch, listener):
    monkeypatch.setattr(ray_worker, "_SECONDS", 0.1)
    assert not ray_worker.is_forked(name_of(listener))
    connection, _ = listener.accept()
    with connection:
        wanted, files = fork_server._request(connection)
    for file in files:
        os.close(file)
    assert (wanted, len(files)) == (None, 3)


@pytest.mark.timeout(30)
def test_a_fork_that_never_begins_is_not_waited_for_without_end(monkeypatch, listener):
    monkeypatch.setattr(ray_worker, "_SECONDS_TO_BEGIN", 0.1)
    asked = in_background(lambda: ray_worker.is_forked(name_of(listener)))
    connection, _ = listener.accept()
    with connection:
        _, files = fork_server._request(connection)
        assert not asked.result(timeout=20)
    for file in files:
        os.close(file)


def test_a_socket_of_another_user_is_told_nothing(monkeypatch, listener):
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert not ray_worker.is_forked(name_of(listener))
    connection, _ = listener.accept()
    with connection:
        assert fork_server._request(connection) == (None, [])
        assert connection.recv(1) == b""


def test_a_path_may_have_entries_that_imports_ignore(monkeypatch):
    started = []
    monkeypatch.setattr(sys, "path", ["/of/text", Path("/of/no/text")])
    monkeypatch.setattr(forking.ForkServer, "_start", lambda self, arguments: started.append(arguments))
    forking.ForkServer()
    assert started[0]["path"] == ["/of/text"]


@pytest.mark.slow
def test_another_driver_has_workers_too(cluster):
    code = "import ray, sys; ray.init(sys.argv[1]); print(ray.get(ray.remote(lambda: 42).remote(), timeout=50))"
    command = [sys.executable, "-c", code, ray_address()]
    assert subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout == "42\n"


@needs_forks
def test_what_nobody_can_read_is_no_request(server):
    for request in (b"", b"1", b"1{", b"1[]"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"\0{server.name}")
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    os.kill(server._pid, 0)
    assert not ended(server._pid)


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


COMMAND = """
import json, os
from rllib_kd.workers.forking import ForkServer, ServerOfCommand
try:
    here = ForkServer(of_command=True)
    print(here.name, here._pid, json.dumps(dict(os.environ)), flush=True)
    input()
    here.close()
    print("closed", flush=True)
    input()
except ServerOfCommand as forked:
    here = forked.with_traceback(None)
here.run()
"""
ELSEWHERE = (
    "from rllib_kd.workers.forking import ForkServer; s = ForkServer(); print(s.name, s._pid, flush=True); input()"
)


@pytest.mark.parametrize(
    "code", [ELSEWHERE, pytest.param(COMMAND, marks=[needs_forks, pytest.mark.slow])], ids=["elsewhere", "command"]
)
def test_the_server_ends_with_the_process_that_started_it(code):
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    server = int(parent.stdout.readline().split()[1])
    os.kill(server, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: ended(server))


@needs_forks
def test_a_command_forks_its_server_after_its_imports(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    name, server, environment = parent.stdout.readline().split(" ", 2)
    script = "print('torch' in sys.modules, os.getppid())"
    printed = ask(tmp_path, script, name, json.loads(environment), RAY_RAYLET_PID=str(os.getpid()))
    assert printed.startswith(f"True {server}\n")
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "closed\n"
    assert ended(int(server))
    parent.kill()
    parent.wait()


@needs_forks
def test_only_a_command_is_forked_and_no_program_that_calls_main():
    code = """
import sys
from rllib_kd.cli.main import main
from rllib_kd.workers import forking

def server(*, of_command):
    print(of_command)
    raise SystemExit

forking.ForkServer = server
sys.argv = ["rllib", "train"]
for arguments in (None, ["train"], None):
    try:
        main(arguments)
    except SystemExit:
        pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


@pytest.mark.slow
@needs_forks
def test_a_command_without_standard_files_and_whose_ended_processes_are_forgotten_has_a_server():
    code = """
import json, os, signal, socket, sys
from rllib_kd.workers import forking
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # inherited
for number in range(3):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
forking.this_process_is_a_command(True)
try:
    forking.begin()
    server = forking._begun
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(f"\\0{server.name}")
        socket.send_fds(connection, [b"1"], [0, 1, 2])
        connection.sendall(json.dumps({"environment": {}}).encode())
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1)
    server.close()
except forking.ServerOfCommand as forked:
    here = forked.with_traceback(None)
    here.run()
    os._exit(1)
os.write(int(os.environ["ANSWER"]), answer)
"""
    reading, writing = os.pipe()
    environment = os.environ | {"ANSWER": str(writing)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"1"
    assert process.wait() == 0


@needs_forks
def test_a_signal_during_the_fork_of_a_command_ends_it():
    code = """
import os, signal, sys
from rllib_kd.workers import fork_server, forking

def end(number, frame):
    raise SystemExit("ended")

signal.signal(signal.SIGTERM, end)
fork_server.import_package = lambda parent: None
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGTERM))
forking.ForkServer(of_command=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "ended\n"


@needs_forks
@pytest.mark.slow
def test_trials_of_a_command_are_forks_without_what_the_command_has_set(tmp_path):
    (tmp_path / "experiment.py").write_text(
        """
import json, logging, os, pathlib, signal
from rllib_kd import DistillDQNConfig

FOLDER = pathlib.Path(__file__).parent
FOLDER.joinpath("driver").write_text(str(os.getpid()))

def look(*, algorithm, **kwargs):
    parent = os.getppid()
    its_parent = pathlib.Path(f"/proc/{parent}/stat").read_text().split()[3]
    handlers = [type(handler).__name__ for handler in logging.getLogger("rllib_kd").handlers]
    FOLDER.joinpath("seen").write_text(json.dumps([its_parent, handlers]))

config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole", num_baseline_episodes=0)
config.callbacks(on_algorithm_init=look)
stop = {"num_env_steps_sampled_lifetime": 1}
"""
    )
    command = [sys.executable, "-m", "rllib_kd", "train", "file", "experiment.py", "--storage-path", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    driver, handlers = json.loads((tmp_path / "seen").read_text())
    assert driver == (tmp_path / "driver").read_text()
    assert handlers == ["_Sender"]


@pytest.mark.parametrize("device", ["/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd"])
def test_nothing_is_forked_where_there_is_a_gpu(monkeypatch, device):
    monkeypatch.setattr(forking, "glob", lambda pattern: fnmatch.filter([device], pattern))
    assert not forking.is_possible()


def test_where_python_has_no_resource_limits_commands_are_imported_too():
    code = "import sys; sys.modules['resource'] = None; import rllib_kd.workers.forking"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_forks
def test_a_ray_that_is_joined_or_runs_already_needs_no_server(monkeypatch):
    monkeypatch.setattr(forking, "ForkServer", lambda **settings: pytest.fail("a server"))
    monkeypatch.setattr(forking, "_begun", None)
    forking.begin(address="127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    forking.begin()
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    forking.begin()
