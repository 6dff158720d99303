"""Every private name of Ray and RLlib that is reached from outside its class or module, in one file.

Each has one small function, with the reason. tests/test_rllib_names.py fails, and names it, if a Ray has moved one.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from ray import _raylet, actor
from ray._private import parameter, ray_constants, services, utils, worker
from ray.experimental import internal_kv

# --- EnvRunners -------------------------------------------------------------------------------------------------------

#: Id under which a SingleAgentEnvRunner registers an environment that gymnasium does not know.
OWN_ENVIRONMENT = "rllib-single-agent-env-v0"
#: Attributes of RLlib's EnvRunners from which sampling continues, as far as an EnvRunner has them. Our classes have
#: lists of their own: `SAMPLING_STATE`, and `LASTING_STATE` for environments that begin new episodes.
SAMPLING_STATE = (
    "_seed",
    "_needs_initial_reset",
    "_ongoing_episodes",
    "_cached_to_module",
    "_shared_data",
    "_done_episodes_for_metrics",
    "_ongoing_episodes_for_metrics",
)


def actor_manager(env_runner_group: Any) -> Any:
    """Return the manager that counts the requests to EnvRunners: the group has no public access to them."""
    return env_runner_group._worker_manager


def ignores_errors(env_runner_group: Any) -> bool:
    """Return whether `fault_tolerance()` restarts EnvRunners that have died, or continues without them."""
    return env_runner_group._ignore_ray_errors_on_env_runners


def calls_under_way(manager: Any, tag: str) -> tuple[list[Any], list[int]]:
    """Return references and actor ids of the calls with a tag, without fetching their results as RLlib would."""
    return manager._filter_calls_by_tag(tag)


def forget_calls(manager: Any, actor_id: int) -> None:
    """Drop the calls to an actor, so that their results are never fetched: RLlib drops them with dead actors only."""
    manager._remove_async_state(actor_id)


def env_to_module(env_runner: Any) -> Any:
    """Return an EnvRunner's pipeline from observations to module inputs: RLlib has no public access to it."""
    return env_runner._env_to_module


def module_to_env(env_runner: Any) -> Any:
    """Return an EnvRunner's pipeline from module outputs to actions: RLlib has no public access to it."""
    return env_runner._module_to_env


def weights_seq_no(env_runner: Any) -> int:
    """Return the number of updates of the EnvRunner's student: `get_state()` has it only with all the weights."""
    return env_runner._weights_seq_no


def accept_older_weights(env_runner: Any) -> None:
    """Let the next `set_state()` set weights with any number: RLlib ignores older ones, as after a restore."""
    env_runner._weights_seq_no = 0


def seed(env_runner: Any) -> int | None:
    """Return the seed of the next reset: RLlib derives it from the config once."""
    return env_runner._seed


def set_seed(env_runner: Any, value: int | None) -> None:
    """Set the seed of the next reset."""
    env_runner._seed = value


def reset_next(env_runner: Any) -> None:
    """Let the next sampling begin with a reset of all environments."""
    env_runner._needs_initial_reset = True


def log_values(metrics: Any, key: str | tuple[str, ...], values: Sequence[float], **how: Any) -> None:
    """Log several values under one key: RLlib's `log_value()` searches for the key with each value."""
    if values:
        metrics.log_value(key, values[0], **how)
        stats = metrics._get_key(key)
        for value in values[1:]:
            stats.push(value)


# --- Modules ----------------------------------------------------------------------------------------------------------

#: Methods of RLlib's DQN module that make Q-values of the outputs of its encoder and its heads.
Q_VALUE_METHODS = ("compute_q_values", "_qf_forward_helper", "compute_advantage_distribution")


def has_default_q_values(module: Any) -> bool:
    """Return whether a module makes Q-values of its encoder and heads as RLlib's DQN module does."""
    from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule

    return isinstance(module, DefaultDQNTorchRLModule) and all(
        getattr(type(module), name) is getattr(DefaultDQNTorchRLModule, name) and name not in vars(module)
        for name in Q_VALUE_METHODS
    )


#: Methods of RLlib's actor-critics, BC and MARWIL that make logits of the outputs of an encoder and a head.
LOGITS_METHODS = ("forward_inference", "_forward_inference", "_forward")


def has_default_logits(module: Any) -> bool:
    """Return whether a module makes the logits of its policy by RLlib's own methods, not by some of the user's."""
    homes = ("ray.rllib.algorithms.", "ray.rllib.core.")  # RLlib's examples are written as those of users
    return all(
        getattr(type(module), name).__module__.startswith(homes) and name not in vars(module) for name in LOGITS_METHODS
    )


# --- Connectors, configs and callbacks --------------------------------------------------------------------------------

LR_SCHEDULERS, GRAD_SCALER = "_torch_lr_scheduler_classes", "_torch_grad_scaler_class"  # settings of `experimental()`
#: Settings whose attribute of a config has another name.
CONFIG_ATTRIBUTES = {"is_atari": "_is_atari", "model_config": "_model_config"}


def has_batch_size(config: Any) -> bool:
    """Return whether a batch size was set: that of each Learner, or another `train_batch_size` than the default.

    RLlib's property `train_batch_size_per_learner` divides `train_batch_size` by the Learners if it was not set itself.
    """
    is_own = config._train_batch_size_per_learner is not None
    return is_own or config.train_batch_size != type(config)().train_batch_size


def freeze_statistics(connector: Any) -> None:
    """Fix the statistics of a MeanStdFilter, which would change with each observation."""
    if hasattr(connector, "_update_stats"):
        connector._update_stats = False


def has_running_statistics(connector: Any) -> bool:
    """Return whether a connector is a MeanStdFilter whose statistics change with each observation."""
    return bool(getattr(connector, "_update_stats", False))


def has_env_to_module(config: Any) -> bool:
    """Return whether the user has set env-to-module connectors: RLlib has no public access to them."""
    return config._env_to_module_connector is not None


def raw_model_config(config: Any) -> Any:
    """Return the argument of `rl_module(model_config=...)` as it was given, which need not be a dict."""
    return config._model_config


def included_in_model_config(config: Any) -> dict[str, Any]:
    """Return the entries that an algorithm's config adds to its model config."""
    return config._model_config_auto_includes


@contextmanager
def algorithm_init_put_off(algorithm: Any) -> Iterator[None]:
    """At the end of this context, run the callbacks `on_algorithm_init` of an algorithm.

    RLlib runs them at the end of its own `setup()`, when that of a subclass is not done.
    """
    from ray.rllib.algorithms import algorithm as module  # here: most processes that import this file need no Algorithm

    original, calls = module.make_callback, []

    def make_callback(name: str, *args: Any, **settings: Any) -> None:
        call = partial(original, name, *args, **settings)
        if name == "on_algorithm_init" and settings["kwargs"]["algorithm"] is algorithm:
            calls.append(call)
        else:
            call()

    with _replaced(module, make_callback=make_callback):
        yield
    for call in calls:
        call()


def learners_wait_for_each_other(*, seconds: int) -> AbstractContextManager[None]:
    """In this context, set the timeout of the process group of Learners that are built. RLlib's is half an hour.

    RLlib makes the config of this group, which has the timeout, by itself.
    """
    from ray.rllib.core.learner import learner_group  # here: most processes that import this file need no Algorithm

    make = learner_group._get_backend_config

    def with_timeout(learner_class: type) -> Any:
        config = make(learner_class)
        config.timeout_s = seconds
        return config

    return _replaced(learner_group, _get_backend_config=with_timeout)


# --- Tune -------------------------------------------------------------------------------------------------------------


def is_registered(category: str, name: str) -> bool:
    """Return whether there is an environment or a trainable of this name: Tune's functions only register them."""
    from ray.tune import registry  # here: processes that only relay warnings need no Tune

    return registry._global_registry.contains(category, name)


def registered(category: str, name: str) -> Any:
    """Return the environment's maker or the trainable of this name."""
    from ray.tune import registry

    return registry._global_registry.get(category, name)


def take_any_name() -> None:
    """Let the names in Tune's registry have any characters: its keys are ASCII, but the path of a file need not be."""
    from ray.tune import registry  # here: processes that only relay warnings need no Tune

    make_key = registry._make_key
    if not hasattr(make_key, "takes_any_name"):

        def of_any_name(prefix: str, category: str, key: str) -> bytes:
            return make_key(prefix, category, key.encode("ascii", "backslashreplace").decode("ascii"))

        vars(of_any_name)["takes_any_name"] = True
        registry._make_key = of_any_name


def callbacks_uncounted() -> AbstractContextManager[None]:
    """In this context, Tune does not count the kinds of its callbacks, as it would for Ray's usage statistics.

    To find out which kind one is, Tune imports MLflow, Weights & Biases and Comet if they are installed: some seconds.
    """
    from ray.air._internal import usage  # here: processes that only relay warnings need no Tune

    return _replaced(usage, tag_callbacks=lambda callbacks: False)


def trial_storage(algorithm: Any) -> Any:
    """Return Tune's storage of an Algorithm's trial; None outside of Tune."""
    return algorithm._storage


# --- Ray --------------------------------------------------------------------------------------------------------------

LEAST_OBJECT_STORE_MEMORY = ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES  # bytes


def own_node() -> Any:
    """Return the node of this process, which shows whether it has started Ray; None if Ray is not initialized."""
    return worker._global_node


def is_worker_process() -> bool:
    """Return whether Ray has started this process for an actor or a task."""
    return worker.global_worker.mode == worker.WORKER_MODE


@contextmanager
def _replaced(module: ModuleType, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def daemons_started_with(**arguments: Any) -> AbstractContextManager[None]:
    """In this context, start Ray's daemons with further arguments of `subprocess.Popen`."""
    return _replaced(services, ConsolePopen=partial(services.ConsolePopen, **arguments))


def sigterm_handler_kept() -> AbstractContextManager[None]:
    """In this context, `ray.init()` does not set its handlers of SIGTERM, which exit without a message."""
    return _replaced(utils, set_sigterm_handler=lambda handler: None)


@contextmanager
def few_daemons(*, log_monitor: bool) -> Iterator[None]:
    """In this context, `ray.init()` starts neither the autoscaler nor the dashboard's server.

    Training on one machine needs neither. `ray.init()` starts both even with `include_dashboard=False`, and waits.

    Args:
        log_monitor: whether to start the daemon that sends the logs of actors to this process.
    """
    params = partial(parameter.RayParams, no_monitor=True, include_log_monitor=log_monitor)
    with (
        _replaced(parameter, RayParams=params),
        _replaced(services, start_api_server=lambda *arguments, **settings: (None, None)),
    ):
        yield


@contextmanager
def trials_in_waiting_workers() -> Iterator[None]:
    """In this context, Tune's trials run in the worker processes that wait for work.

    Tune sets some of this process's environment variables for its trials, and Ray starts a new worker for each trial,
    because the waiting ones do not count as having them. In a Ray that this process starts, they have inherited them.
    """
    from ray.tune.execution import class_cache  # here: processes that only relay warnings need no Tune

    for name, value in class_cache.DEFAULT_ENV_VARS.items():
        os.environ.setdefault(name, value)
    with _replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=set()):
        yield


def workers_started_by(script: str) -> AbstractContextManager[None]:
    """In this context, `ray.init()` and emulated clusters start a script as worker process instead of Ray's."""
    return _replaced(parameter, RayParams=partial(parameter.RayParams, worker_path=script))


def path_of_ray_worker() -> str:
    """Return the path of the script that Ray starts as its worker process."""
    return str(Path(inspect.getfile(worker)).parent / "workers" / "default_worker.py")


def no_random_ids() -> AbstractContextManager[None]:
    """In this context, Ray's C++ part draws no ids of actor classes: its generator has the same state in all forks.

    Importing RLlib and Ray Data defines such classes. Their ids come from the system.
    """
    ids = actor.ActorClassID
    return _replaced(actor, ActorClassID=SimpleNamespace(from_random=lambda: ids(os.urandom(ids.size()))))


def random_id() -> bytes:
    """Return an id that Ray's C++ part draws."""
    return _raylet.TaskID.for_fake_task(_raylet.JobID.from_int(1)).binary()


def read_environment_again() -> None:
    """Let Ray's C++ part read the variables RAY_... again, as it did when it was imported."""
    vars(_raylet)["Config"].initialize("")  # mypy's stubs lack it


def call_when_connected(call: Callable[[], None]) -> None:
    """Call a function when this process has become one of Ray's workers."""
    connect = worker.connect

    def connect_and_call(*arguments: Any, **settings: Any) -> None:
        connect(*arguments, **settings)
        call()

    worker.connect = connect_and_call


def torch_has_the_threads_of_a_task() -> None:
    """Give PyTorch as many threads as the actor or task in this worker process has CPUs.

    Ray sets OMP_NUM_THREADS before it unpickles an actor or task, and PyTorch reads it at its import. Here, PyTorch was
    imported earlier.
    """
    set_variable = utils.set_omp_num_threads_if_unset

    def set_variable_and_threads() -> bool:
        import torch

        is_set = set_variable()
        if is_set:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return is_set

    utils.set_omp_num_threads_if_unset = set_variable_and_threads


class KeyValueStore:
    """Ray's key-value store, which all processes of a cluster share."""

    NAMESPACE = "rllib_kd_warnings"  # separates these keys from those of others

    @staticmethod
    def is_there() -> bool:
        """Return whether this process is connected to a store."""
        return internal_kv._internal_kv_initialized()

    def keys(self, prefix: str) -> list[bytes]:
        """Return the keys with a prefix."""
        return internal_kv._internal_kv_list(prefix, namespace=self.NAMESPACE)

    def get(self, key: str | bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return internal_kv._internal_kv_get(key, namespace=self.NAMESPACE)

    def put(self, key: str, value: str | bytes, *, overwrite: bool = True) -> None:
        """Set the value of a key, or keep an earlier one if `overwrite` is False."""
        internal_kv._internal_kv_put(key, value, overwrite=overwrite, namespace=self.NAMESPACE)

    def has(self, key: str) -> bool:
        """Return whether a key has a value."""
        return internal_kv._internal_kv_exists(key, namespace=self.NAMESPACE)

    def delete(self, prefix: str) -> None:
        """Delete all keys with a prefix."""
        internal_kv._internal_kv_del(prefix, del_by_prefix=True, namespace=self.NAMESPACE)
