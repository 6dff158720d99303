"""Start or join Ray, check that it has the resources of a trial, and leave it at the end."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from ray.tune import PlacementGroupFactory

from rllib_kd import _rllib
from rllib_kd.cluster import ray_address
from rllib_kd.environments.imports import setup_hook
from rllib_kd.experiment.names import check_not_empty
from rllib_kd.terminal import say
from rllib_kd.text import first_line
from rllib_kd.workers.forking import forked_workers

_CONNECT_TIMEOUT = 5.0  # seconds

MAX_SHARED_CPUS = 8  # what RLlib's algorithms need by default, they get on small machines too


@dataclass(frozen=True)
class LocalRay:
    """Resources of a Ray that this process starts; None means Ray's default."""

    num_cpus: int | None = None  # of each node
    num_gpus: int | None = None  # of each node
    num_nodes: int | None = None  # emulates a cluster of so many on this machine
    object_store_memory: int | None = None  # bytes
    dashboard: bool = False

    def __post_init__(self) -> None:
        least = {"num_cpus": 1, "num_gpus": 0, "num_nodes": 1, "object_store_memory": _rllib.LEAST_OBJECT_STORE_MEMORY}
        for name, low in least.items():
            number = getattr(self, name)
            if number is not None and number < low:
                raise ValueError(f"--ray-{name.replace('_', '-')} must be at least {low:,}, got {number:,}.")


def bundles_of(request: PlacementGroupFactory) -> list[dict[str, float]]:
    """Return the resources of a trial that need a node which has them at once: its bundles, or all of them together."""
    return [request.required_resources] if request.strategy == "STRICT_PACK" else request.bundles


@contextmanager
def connection(
    needs: Mapping[str, float],
    *,
    bundles: Sequence[Mapping[str, float]] = (),
    address: str | None = None,
    local: LocalRay = LocalRay(),
    log_level: str | None = None,
    lacks: Callable[[str, str], str] | None = None,
) -> Iterator[None]:
    """Join or start Ray, and leave it at the end. If Ray is already initialized in this process, use that.

    Args:
        needs: resources of one trial, `{"CPU": 1.0, ...}`.
        bundles: result of `bundles_of()`; empty: not checked.
        address: address of a Ray to join, or "auto" for the one on this machine; None: RAY_ADDRESS if it is set,
            otherwise a local Ray is started.
        local: resources of the local Ray.
        log_level: level from which Ray's log is shown; None: errors of this process only.
        lacks: makes the message of a resource's name and of the words "10 CPUs, but Ray has 2"; None: that of a trial.

    Raises:
        ValueError: no Ray answers at the address, or Ray lacks resources of a trial, which would wait forever.
        OSError: the local Ray does not start.
    """
    check_not_empty(address=address)
    address = ray_address(address)
    if address is not None:
        if local != LocalRay():
            raise ValueError(
                "CPUs, GPUs, nodes, memory and dashboard can only be set for a local Ray, but an address was given. "
                "Leave out these --ray-... flags, or the address."
            )
        _check_reachable(address)
    _set_variables_of_ray(is_logged=log_level is not None)
    lacks = lacks or partial(_trial_lacks, is_local=address is None)
    is_started = address is None and not ray.is_initialized()
    settings = _settings(needs, local, lacks) if is_started else {}
    with ExitStack() as stack:
        if not ray.is_initialized():
            if address is None:
                stack.enter_context(_rllib.trials_in_waiting_workers())
                stack.enter_context(forked_workers())
            trains_here = bool(needs) and address is None and local.num_nodes is None  # Ray Serve runs no trial
            is_lean = trains_here and not local.dashboard
            daemons = _rllib.few_daemons(log_monitor=log_level is not None) if is_lean else nullcontext()
            with _explained(), daemons, _own_sessions(), _kept_sigterm_handler():
                where = {"address": address} if address is not None else _started(stack, settings, local)
                stack.callback(ray.shutdown)
                logging = {"logging_level": log_level or "ERROR", "log_to_driver": log_level is not None}
                ray.init(**where, **_paths_of_workers(), **logging)
        _check_room(needs, bundles, lacks, may_grow=address is not None, is_started=is_started)
        yield


@contextmanager
def _explained() -> Iterator[None]:
    """Say that Ray does not start, and why."""
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"Ray does not start: {first_line(error)}.") from error
    except Exception as error:  # of no other kind where the machine is too busy
        raise OSError(f"Ray does not start: {first_line(error)}.") from error


def _set_variables_of_ray(*, is_logged: bool) -> None:
    """Set environment variables that Ray and Tune read, unless the user has set them."""
    # Tune's tables would overwrite the progress line; trials stay in this directory, so that relative paths hold.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a return is missing until an episode has ended
    # Tune reports a failed save. Without this, Ray would print its traceback as well.
    if not is_logged:
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")


def _paths_of_workers() -> dict[str, Any]:
    """Return the argument of `ray.init()` that keeps the user's folders behind installed modules, if it is needed.

    It makes the start of Ray's processes some seconds slower.
    """
    hook = setup_hook()
    return {} if hook is None else {"runtime_env": {"worker_process_setup_hook": hook}}


def _settings(needs: Mapping[str, float], local: LocalRay, lacks: Callable[[str, str], str]) -> dict[str, Any]:
    """Return the resources of each node of a local Ray, with those that a trial needs.

    Raises:
        ValueError: this machine has fewer CPUs or GPUs.
    """
    settings = {
        "num_cpus": local.num_cpus,
        "num_gpus": local.num_gpus,
        "object_store_memory": local.object_store_memory,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    is_too_small = (os.cpu_count() or 1) < needs.get("CPU", 1) <= MAX_SHARED_CPUS
    if local.num_cpus is None and local.num_nodes is None and is_too_small:
        settings["num_cpus"] = math.ceil(needs["CPU"])
        say(f"note: a trial has {settings['num_cpus']} processes, but this machine has {os.cpu_count()} CPUs.")
    own: dict[str, Any] = {
        "CPU": settings.get("num_cpus", (os.cpu_count() or 1) if local.num_nodes is None else 1),
        "GPU": settings.get("num_gpus", torch.cuda.device_count()),
    }
    there = {name: count * (local.num_nodes or 1) for name, count in own.items()}
    for name, amounts in _missing({name: needs[name] for name in there.keys() & needs.keys()}, there):
        raise ValueError(lacks(name, amounts))
    return settings


def _started(stack: ExitStack, settings: Mapping[str, Any], local: LocalRay) -> dict[str, Any]:
    """Return the arguments of `ray.init()` for a local Ray, or for an emulated cluster that ends with the stack."""
    if local.num_nodes is not None:
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        stack.callback(cluster.shutdown)
        for _ in range(local.num_nodes):
            cluster.add_node(**{"num_cpus": 1, **settings})
        return {"address": cluster.address}
    return {"address": "local", "include_dashboard": local.dashboard, **settings}


@contextmanager
def _own_sessions() -> Iterator[None]:
    """Start Ray's daemons in sessions of their own, out of reach of signals to our process group.

    `timeout`, schedulers and closed terminals signal the whole group. Ray blocks SIGINT alone in its daemons, so that
    SIGTERM or SIGHUP ended them before a checkpoint was saved (`services.start_ray_process`, ray 2.60). They still end
    with this process: by `ray.shutdown()`, and if it is killed, by the kernel (PR_SET_PDEATHSIG). Other systems than
    Linux have no such call. There, Ray's reaper needs its daemons in one group, and they stay in it.
    """
    if sys.platform != "linux":
        yield
        return
    with _rllib.daemons_started_with(start_new_session=True):
        yield


def _kept_sigterm_handler() -> AbstractContextManager[None]:
    """Keep this process's handler for SIGTERM, if it has one, while Ray starts and after that."""
    has_own = signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    return _rllib.sigterm_handler_kept() if has_own else nullcontext()


def _check_reachable(address: str) -> None:
    """Raise a ValueError if no server listens at the address. Ray itself would try for a minute."""
    host, _, port = address.split("://")[-1].rpartition(":")
    if not port.isdigit():
        return  # "auto", "local"
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ValueError(
            f"No Ray answers at '{address}': {error}. Start one there with `ray start --head`, or leave out the "
            "address."
        ) from error


def _check_room(
    needs: Mapping[str, float],
    bundles: Sequence[Mapping[str, float]],
    lacks: Callable[[str, str], str],
    *,
    may_grow: bool,
    is_started: bool,
) -> None:
    """Check that Ray has the resources of a trial, and for each bundle a node; of a cluster that may grow, note it."""
    missing = list(_missing(needs, ray.cluster_resources()))
    for name, amounts in missing:
        if not may_grow:
            raise ValueError(lacks(name, amounts))
        say(f"note: a trial needs {amounts} now. Training waits until the cluster grows.")
    for name, amounts in () if missing else _too_large(bundles):
        if is_started:
            raise ValueError(lacks(name, amounts))
        say(f"note: training waits until the cluster has a larger node. {lacks(name, amounts)}")


def _missing(needs: Mapping[str, float], available: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the name of each resource of which there is too little, and both amounts in words."""
    for name, amount in needs.items():
        if amount > available.get(name, 0):
            yield name, f"{amount:g} {name}s, but Ray has {available.get(name, 0):g}"


def _too_large(bundles: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    """Yield what the node that lacks least lacks for the first bundle that no node can take, and its amounts."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]] if bundles else []
    for bundle in bundles:
        lacking = [[name for name, _ in _missing(bundle, node)] for node in nodes]
        if all(lacking):
            amounts = " and ".join(f"{amount:g} {name}s" for name, amount in bundle.items() if amount)
            yield min(lacking, key=len, default=list(bundle))[0], f"{amounts} on one node, but no node has as many"
            return


def _trial_lacks(name: str, amounts: str, *, is_local: bool) -> str:
    flag = f", or raise --ray-num-{name.lower()}s" if is_local and name in ("CPU", "GPU") else ""
    return f"A trial needs {amounts}. Lower num_env_runners, num_learners or their {name}s in --config{flag}."
