"""Experiments: what the command line trains, checked as the fluent API checks it, and run by Ray Tune.

An experiment comes from flags, from a Python file with a `config`, or from a YAML file in the layout of RLlib's old
`rllib train file`: name → run, env, config, stop.
"""

from __future__ import annotations

import inspect
import json
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import yaml
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.tune.registry import ENV_CREATOR, TRAINABLE_CLASS, _global_registry

from rllib_kd.algorithm import DistillDQN  # its name is registered by this import
from rllib_kd.config import DistillDQNConfig
from rllib_kd.hints import did_you_mean
from rllib_kd.playing import check_gymnasium_id
from rllib_kd.teachers import absolute_uri, load_teacher

#: Stop criteria of the old API stack, and where a result holds them now.
RENAMED_METRICS = {
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "episode_reward_mean": "env_runners/episode_return_mean",
    "sampler_results/episode_reward_mean": "env_runners/episode_return_mean",
    "episodes_total": "env_runners/num_episodes_lifetime",
}
#: The fluent methods whose arguments may be keys of a config dict.
_FLUENT_METHODS = (
    "environment",
    "env_runners",
    "learners",
    "training",
    "distillation",
    "evaluation",
    "rl_module",
    "reporting",
    "fault_tolerance",
    "debugging",
    "multi_agent",
    "callbacks",
    "checkpointing",
    "framework",
    "api_stack",
    "resources",
    "python_environment",
)
#: Keys of a config dict that are attributes of another name.
_ATTRIBUTE_NAMES = {"model_config": "_model_config"}


@dataclass
class Experiment:
    """What to train, until when.

    Args:
        name: of the experiment's folder.
        algorithm: a name that Tune knows.
        config: a config, or keys of one, whose values may be Tune's search spaces (`{"grid_search": [...]}`).
        stop: metric → value at which to stop.
    """

    name: str
    algorithm: str
    config: AlgorithmConfig | dict[str, Any]
    stop: dict[str, Any] = field(default_factory=dict)

    def checked(self) -> Experiment:
        """This experiment, with its stop criteria under today's names, and its config validated.

        Raises:
            ValueError: an unknown algorithm or key, or a value that the config refuses; the message names what is near.
        """
        self.stop = {RENAMED_METRICS.get(metric, metric): value for metric, value in self.stop.items()}
        if isinstance(self.config, AlgorithmConfig):
            self.config.validate()
            _check_teacher(self.config)
            return self
        config = apply_config(
            algorithm_class(self.algorithm).get_default_config(), {k: _first(v) for k, v in self.config.items()}
        )
        if config.env is None:
            raise ValueError("An environment is needed: --env CartPole-v1, say, or `env` in the file.")
        is_class_path = isinstance(config.env, str) and "." in config.env
        if isinstance(config.env, str) and not is_class_path and not _global_registry.contains(ENV_CREATOR, config.env):
            check_gymnasium_id(config.env)
        config.validate()
        _check_teacher(config)
        if isinstance(self.config.get("teacher"), str):
            self.config["teacher"] = config.teacher  # absolute: a trial runs in another working directory
        self.config = {_ATTRIBUTE_NAMES.get(key, key): value for key, value in self.config.items()}
        return self


def _check_teacher(config: AlgorithmConfig) -> None:
    """Now, where the user sees it, and not in every trial."""
    if isinstance(config, DistillDQNConfig) and config.teacher is not None:
        load_teacher(str(config.teacher), trust_checkpoint=config.trust_checkpoint)


def algorithm_class(algorithm: str) -> type[Algorithm]:
    """The class of a registered algorithm.

    Raises:
        ValueError: nobody has registered the name.
    """
    # Not by tune.registry.get_trainable_cls(): that imports all of RLlib's algorithms, and some need more packages.
    if algorithm in ALGORITHMS:
        return ALGORITHMS[algorithm]()[0]
    if not _global_registry.contains(TRAINABLE_CLASS, algorithm):
        known = [DistillDQN.__name__, *ALGORITHMS]
        hint = did_you_mean(algorithm, known, cutoff=0.4)
        raise ValueError(f"Unknown algorithm '{algorithm}'.{hint} Known are: {', '.join(known)}.")
    return _global_registry.get(TRAINABLE_CLASS, algorithm)


def apply_config(config: AlgorithmConfig, values: Mapping[str, Any]) -> AlgorithmConfig:
    """Set config fields by name, each through the fluent method that takes it.

    Raises:
        ValueError: a name that no fluent method takes; the message has the nearest one.
    """
    methods = {
        argument: method
        for method in _FLUENT_METHODS
        for cls in type(config).__mro__
        if method in vars(cls)
        for argument in inspect.signature(vars(cls)[method]).parameters
        if argument not in ("self", "kwargs")
    }
    for name, value in values.items():
        if name not in methods:
            raise ValueError(f"{type(config).__name__} has no setting '{name}'.{did_you_mean(name, methods)}")
        try:
            getattr(config, methods[name])(**{name: value})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"The setting '{name}' cannot be {value!r}: {error}") from error
    return config


def read_experiment(path: str | os.PathLike[str], *, stop: Mapping[str, Any]) -> Experiment:
    """Read an experiment from a Python or YAML file.

    Args:
        path: a `.py` file with a `config` (an AlgorithmConfig) and perhaps a `stop`, or a `.yaml` file with one
            experiment: name → run, env, config, stop.
        stop: criteria that go before those of the file.

    Raises:
        ValueError: the file is not there, or does not hold that; the message says what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no experiment file at '{path}'.")
    if path.suffix == ".py":
        return _read_python(path, stop)
    if path.suffix in (".yaml", ".yml"):
        return _read_yaml(path, stop)
    raise ValueError(f"An experiment file ends in .py or .yaml, got '{path.name}'.")


def _read_python(path: Path, stop: Mapping[str, Any]) -> Experiment:
    sys.path.insert(0, str(path.parent))  # as `python FILE` does
    try:
        names = runpy.run_path(str(path), run_name="experiment")
    except Exception as error:
        raise ValueError(f"'{path}' cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    config = names.get("config")
    if not isinstance(config, AlgorithmConfig):
        raise ValueError(
            f"'{path}' must define `config`, an AlgorithmConfig, at its top level. Got "
            f"{type(config).__name__ if 'config' in names else 'none'}."
        )
    return Experiment(path.stem, config.algo_class.__name__, config, {**names.get("stop", {}), **stop})


def _read_yaml(path: Path, stop: Mapping[str, Any]) -> Experiment:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(content, dict) or len(content) != 1 or not isinstance(next(iter(content.values())), dict):
        raise ValueError(f"'{path}' must hold one experiment, name: {{run: ..., env: ..., config: ..., stop: ...}}.")
    ((name, entry),) = content.items()
    if unknown := set(entry) - {"run", "env", "config", "stop"}:
        raise ValueError(f"Unknown keys in '{path}': {sorted(unknown)}. Known are: run, env, config, stop.")
    if "run" not in entry:
        raise ValueError(f"'{path}' must name the algorithm: `run: DQN`, say.")
    config = dict(entry.get("config") or {})
    if "env" in entry:
        config["env"] = entry["env"]
    return Experiment(str(name), entry["run"], config, {**(entry.get("stop") or {}), **stop})


@dataclass(frozen=True)
class RunOptions:
    """How an experiment is run: the flags of `rllib train` that are not about the algorithm."""

    num_samples: int = 1
    checkpoint_freq: int = 0  # training iterations; 0: never
    checkpoint_at_end: bool = True
    keep_checkpoints_num: int | None = None
    checkpoint_score_attr: str | None = None
    storage_path: str | None = None
    restore: str | None = None
    resume: bool = False
    scheduler: str | None = None
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    callbacks: tuple[tune.Callback, ...] = ()


def run(experiment: Experiment, options: RunOptions) -> tuple[tune.ResultGrid, bool]:
    """Train by Ray Tune.

    Ctrl-C lets every trial end its iteration and save a checkpoint; a second one ends at once.

    Returns:
        The results, and whether Ctrl-C has ended training.

    Raises:
        ValueError: an unknown scheduler, or nothing to resume.
    """
    storage = absolute_uri(options.storage_path or "~/ray_results")
    if options.resume:
        return _resume(experiment, storage), False
    config = experiment.config
    if options.restore is not None:
        config = _restoring(experiment, options.restore)
    stopper = _StopOnInterrupt(experiment.stop)
    tuner = tune.Tuner(
        algorithm_class(experiment.algorithm),
        param_space=config,
        tune_config=tune.TuneConfig(
            num_samples=options.num_samples,
            scheduler=_scheduler(options.scheduler, options.scheduler_config),
        ),
        run_config=tune.RunConfig(
            name=experiment.name,
            storage_path=storage,
            stop=stopper,
            verbose=0,
            callbacks=list(options.callbacks),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=options.checkpoint_freq,
                checkpoint_at_end=options.checkpoint_at_end,
                num_to_keep=options.keep_checkpoints_num,
                checkpoint_score_attribute=options.checkpoint_score_attr,
            ),
        ),
    )
    with stopper:
        return tuner.fit(), stopper.interrupted


def _resume(experiment: Experiment, storage: str) -> tune.ResultGrid:
    path = f"{storage}/{experiment.name}"
    if not tune.Tuner.can_restore(path):
        raise ValueError(f"There is no experiment to resume at '{path}'. --experiment-name and --storage-path name it.")
    tuner = tune.Tuner.restore(
        path,
        trainable=algorithm_class(experiment.algorithm),
        param_space=experiment.config,
        resume_unfinished=True,
        resume_errored=True,
    )
    return tuner.fit()


def _restoring(experiment: Experiment, checkpoint: str) -> AlgorithmConfig | dict[str, Any]:
    """The experiment's config, whose algorithms start from a checkpoint."""
    restore = partial(_restore, absolute_uri(checkpoint))
    if isinstance(experiment.config, AlgorithmConfig):
        return experiment.config.copy(copy_frozen=False).callbacks(on_algorithm_init=restore)
    return {**experiment.config, "callbacks_on_algorithm_init": restore}


def _restore(path: str, *, algorithm: Any, **kwargs: Any) -> None:
    algorithm.restore_from_path(path)


def _scheduler(name: str | None, arguments: Mapping[str, Any]) -> Any:
    if name is None:
        return None
    from ray.tune.schedulers import SCHEDULER_IMPORT

    known = sorted(key for key in SCHEDULER_IMPORT if "_" not in key)
    if name.lower() not in SCHEDULER_IMPORT:
        raise ValueError(f"Unknown scheduler '{name}'. Known are: {', '.join(known)}.")
    try:
        return tune.create_scheduler(name, **arguments)
    except TypeError as error:
        raise ValueError(f"The scheduler '{name}' does not take {dict(arguments)}: {error}") from error


class _StopOnInterrupt(tune.Stopper):
    """Stops trials at their criteria; after Ctrl-C at their next result, with a checkpoint."""

    def __init__(self, criteria: Mapping[str, float]):
        self._criteria = dict(criteria)
        self.interrupted = False
        self._previous: Any = None

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return self.interrupted or any(_at(result, path) >= value for path, value in self._criteria.items())

    def stop_all(self) -> bool:
        return False  # each trial stops by itself, after its checkpoint

    def __enter__(self) -> _StopOnInterrupt:
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def __getstate__(self) -> dict[str, Any]:
        return {"_criteria": self._criteria, "interrupted": False, "_previous": None}


def _at(result: Mapping[str, Any], path: str) -> float:
    """The metric at `a/b/c`; −inf where the result does not hold it (yet)."""
    value: Any = result
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return -float("inf") if value is None else float(value)


def _first(value: Any) -> Any:
    """One value of a search space."""
    if isinstance(value, Mapping):
        return (
            _first(value["grid_search"][0])
            if set(value) == {"grid_search"}
            else {k: _first(v) for k, v in value.items()}
        )
    return value.sample() if hasattr(value, "sample") else value


def parse_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object, or the one in a file, where `text` is `@file`.

    Raises:
        ValueError: it is no JSON object; the message shows what was got.
    """
    if text.startswith("@"):
        path = Path(text[1:])
        if not path.is_file():
            raise ValueError(f"{what}: there is no file '{path}'.")
        text = path.read_text()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} must be a JSON object like '{{\"lr\": 0.001}}': {error}. Got {text!r}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object like '{{\"lr\": 0.001}}', got {text!r}.")
    return value


def connect(**kwargs: Any) -> None:
    """Start or join Ray, quietly."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's tables, beside which a progress line has no place
    if not ray.is_initialized():
        ray.init(
            **{key: value for key, value in kwargs.items() if value is not None},
            logging_level="ERROR",
            log_to_driver=False,
        )
