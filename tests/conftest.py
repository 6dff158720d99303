"""Small teachers, and one small Ray for all tests that need it."""

from __future__ import annotations

import atexit
import errno
import gc
import inspect
import itertools
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

# Several processes share the cores: with more threads each, torch is many times slower.
os.environ["OMP_NUM_THREADS"] = "1"
# A hundred processes would compile the package and the tests anew, each for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Ray's worker processes yield to others. Beside other tests they would hardly run, and these wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from hypothesis import settings
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.connectors import connector_v2
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.tune.registry import register_trainable
from ray.tune.trainable import trainable

from rllib_kd import DistillDQN, DistillDQNConfig, _rllib
from rllib_kd.cli.main import main
from rllib_kd.environments import imports, own, sources
from rllib_kd.workers.forking import ForkServer, is_possible

sys.dont_write_bytecode = False  # this one, too
gc.disable()  # What is collected stays: looking for garbage in it, again and again, takes seconds.
torch.set_num_threads(1)
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def _frames() -> list[SimpleNamespace]:
    """As inspect.stack(): the frame of whoever calls this, and of its caller."""
    frame = sys._getframe(1)
    return [SimpleNamespace(frame=frame), SimpleNamespace(frame=frame.f_back)]


# Each of RLlib's connectors asks inspect.stack() for its caller's frame. That also looks for the source lines of every
# frame in every module: below pytest's fifty frames, most of the CPU time of building an algorithm.
connector_v2.inspect = SimpleNamespace(**vars(inspect) | {"stack": _frames})

# An algorithm that stops waits for the thread that measures the machine's load, which sleeps 0.7 s at a time.
trainable.UtilMonitor = partial(trainable.UtilMonitor, delay=0.05)

CARTPOLE_OBS = gym.make("CartPole-v1").observation_space
CARTPOLE_ACTIONS = gym.spaces.Discrete(2)


def make_q_module(
    observation_space: gym.Space = CARTPOLE_OBS,
    action_space: gym.Space = CARTPOLE_ACTIONS,
    *,
    seed: int = 0,
    inference_only: bool = True,
    **model_config: Any,
) -> RLModule:
    """RLlib's DQN module with random weights."""
    torch.manual_seed(seed)
    defaults = {"fcnet_hiddens": [32, 32], "fcnet_activation": "relu", "dueling": False, "double_q": True}
    defaults |= {"num_atoms": 1, "v_min": -10.0, "v_max": 10.0, "epsilon": 0.0}
    return RLModuleSpec(
        module_class=DefaultDQNTorchRLModule,
        observation_space=observation_space,
        action_space=action_space,
        inference_only=inference_only,
        model_config=defaults | model_config,
    ).build()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many processes as pay: each starts a Ray of its own, and the tests of one file run in one process."""
    files = {argument.partition("::")[0] for argument in config.args}
    if len(files) == 1 and files.pop().endswith(".py"):
        return 0
    often_waits = config.option.markexpr == "slow"  # for nodes that start, for processes that end
    return 3 if often_waits else 2


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take longest come first, so that no process has a long file left when the others are done.

    That is: learning and clusters, then the files with most tests that start Ray or are slow. A slow test counts as
    one, or as `slow(as_many=...)`.
    """
    num_long: Counter[Path] = Counter()
    for item in items:
        slow = item.get_closest_marker("slow")
        starts_ray = "cluster" in getattr(item, "fixturenames", ())
        num_long[item.path] += slow.kwargs.get("as_many", 1) if slow is not None else starts_ray
        if any(mark.name == "slow" for mark in item.listchain()[-2].own_markers):
            num_long[item.path] += 100
    items.sort(key=lambda item: -num_long[item.path])
    if is_possible() and any("cluster" in getattr(item, "fixturenames", ()) for item in items):
        starting_fork_server()


def pytest_collection_finish() -> None:
    """From here on, garbage is looked for in what tests make: rarely, since it would take 6 % of their time."""
    gc.freeze()
    gc.set_threshold(5_000)
    gc.enable()


_numbers = itertools.count()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from earlier tests. The few that write there make the folders."""
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(_numbers))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a user, with files of their own; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(".")  # where it returns to if a test leaves the folder by it
    folder = tmp_path / "own"
    folder.mkdir()
    ids = set(gym.registry)
    # Not by `monkeypatch`, which ends after fixtures that start Ray anew: its processes would start here.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("PYTHONPATH", "")
        remembered = (imports, "_own_folders"), (imports, "_replaced"), (imports, "_imported")
        for module, name in (*remembered, (own, "_defined"), (sources, "_provided")):
            patch.setattr(module, name, type(getattr(module, name))())
        yield folder
    # Other finders stay: if `importlib_metadata` was imported meanwhile, its finder has replaced Python's own.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("rllib_kd")]
    for name, module in list(sys.modules.items()):  # also those that have replaced another one of their name
        if re.search(f"{tmp_path}|rllib_kd-environment-", str(getattr(module, "__file__", ""))):
            del sys.modules[name]
    for env_id in set(gym.registry) - ids:
        del gym.registry[env_id]


@pytest.fixture(scope="session")
def small_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a CartPole teacher with random weights: quick to load, and knows nothing."""
    return make_q_module().save_to_path(str(tmp_path_factory.mktemp("teachers") / "small"))


@cache
def starting_fork_server() -> ForkServer:
    """One for all tests of this process. It imports the package while this process does something else."""
    server = ForkServer(differing=("AWS_", "PYTEST_", "XDG_"))
    atexit.register(server.close)
    return server


@cache
def fork_server() -> ForkServer:
    """The same, which has imported the package: beside other tests that may take a minute, and Ray's workers wait for
    half of one."""
    server = starting_fork_server()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(300)
        connection.connect(f"\0{server.name}")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""  # nothing was asked for
    return server


def forked_workers() -> AbstractContextManager[None]:
    """In this context, workers of a Ray that is started are forks, as those of the commands."""
    return fork_server().forking() if is_possible() else nullcontext()


def start_ray(**kwargs: Any) -> None:
    """Start or join Ray, and tell it the algorithm's name, which it forgets when a test has shut it down before."""
    joins = kwargs.get("address") != "local"  # a Ray whose workers others fork
    with nullcontext() if joins else forked_workers(), _rllib.few_daemons(log_monitor=False):
        ray.init(log_to_driver=False, **kwargs)
    register_trainable("DistillDQN", DistillDQN)


def ray_address() -> str:
    """Where another process joins the Ray of this one: several CPU-seconds cheaper than a Ray of its own."""
    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray with four logical CPUs."""
    start_ray(address="local", num_cpus=4, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function after which no file of a name can be written whole: there is no space left for it."""
    replace = os.replace

    def full_for(name: str) -> None:
        def replace_others(new: str, path: str) -> None:
            if os.path.basename(path) == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(new, path)

        monkeypatch.setattr(os, "replace", replace_others)

    return full_for


def exit_code(*words: object) -> Any:
    """Run the command in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rllib", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0


@pytest.fixture
def rllib(cluster: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., CompletedProcess[str]]:
    """Run the command here, on the Ray that tests share: several times cheaper than a process that starts its own."""

    def call(*arguments: str) -> CompletedProcess[str]:
        capsys.readouterr()  # what came before is not the command's
        return CompletedProcess(arguments, exit_code(*arguments), *capsys.readouterr())

    return call


@pytest.fixture
def cartpole_config(small_teacher: str) -> DistillDQNConfig:
    """A config that builds quickly."""
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=16)
        .training(train_batch_size_per_learner=32, num_steps_sampled_before_learning_starts=64, training_intensity=8)
        .reporting(min_sample_timesteps_per_iteration=64)
        .rl_module(model_config={"fcnet_hiddens": [8], "fcnet_activation": "relu"})
        .distillation(teacher=small_teacher, num_baseline_episodes=0)
        .debugging(seed=0)
    )


@pytest.fixture
def build(cluster: None) -> Iterator[Callable[[DistillDQNConfig], Any]]:
    """Builds algorithms, and stops them at the end of the test."""
    algorithms = []

    def build_algo(config: DistillDQNConfig) -> Any:
        algorithms.append(config.build_algo())
        return algorithms[-1]

    yield build_algo
    for algo in algorithms:
        algo.stop()


def shared_teacher(name: str) -> Path:
    """Path of a teacher that others trained; skips where that folder is absent."""
    path = Path(__file__).parents[2] / "shared" / "teachers" / name
    if not path.exists():
        pytest.skip(f"the teachers of others are not here: {path}")
    return path


def states(count: int, space: gym.Space = CARTPOLE_OBS, seed: int = 0) -> np.ndarray:
    """Observations of a bounded range."""
    return np.random.default_rng(seed).normal(size=(count, *space.shape)).astype(np.float32)


class Reflex:
    """A player that acts by a function from observations `[N, ...]` to actions `[N, ...]`."""

    def __init__(self, function: Callable[[Any], np.ndarray]):
        self._function = function

    def player(self) -> Callable[[Any], np.ndarray]:
        """Plays one vector env."""
        return lambda shown: self._function(shown.obs)
