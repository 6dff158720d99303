"""Experiments: what the command line trains, checked as the fluent API checks it, and run by Ray Tune.

An experiment comes from flags, from a Python file with a `config`, or from a YAML file in the layout of RLlib's old
`rllib train file`: name → run, env, config, stop.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import math
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.registry import TRAINABLE_CLASS, _global_registry

from rllib_kd.algorithm import DistillDQN  # its name is registered by this import
from rllib_kd.callbacks import MissingMetrics, SaveOnInterrupt, describe, metric_at, saving_on_interrupt, say
from rllib_kd.checks import check_environment, check_teachers, known_spaces
from rllib_kd.config import DistillDQNConfig
from rllib_kd.env_failures import EnvFailedError, frames_in, users_line
from rllib_kd.evaluation import compare_all
from rllib_kd.locks import LockedError, locked
from rllib_kd.played_environment import PlayedEnvironment
from rllib_kd.playing import env_maker
from rllib_kd.policies import algorithm_of
from rllib_kd.relay import listening
from rllib_kd.report import summary_table
from rllib_kd.resume import local_folder
from rllib_kd.runs import GREEDY, Curve, find_student, read_curve
from rllib_kd.settings import apply_settings, as_meant, check_names, has_space, param_space, validate, variants
from rllib_kd.snapshots import Snapshots, has_snapshot, put_back, snapshot_often
from rllib_kd.teachers import absolute_teachers, absolute_uri, load_teacher
from rllib_kd.teachers.ensemble import as_configured
from rllib_kd.text import did_you_mean

#: Metrics of the old API stack, and where a result holds them now.
RENAMED_METRICS = {
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_reward_min": "env_runners/episode_return_min",
    "episode_reward_max": "env_runners/episode_return_max",
    "episode_len_mean": "env_runners/episode_len_mean",
    "sampler_results/episode_reward_mean": "env_runners/episode_return_mean",
    "env_runners/episode_reward_mean": "env_runners/episode_return_mean",
    "evaluation/episode_reward_mean": "evaluation/env_runners/episode_return_mean",
    "evaluation/env_runners/episode_reward_mean": "evaluation/env_runners/episode_return_mean",
    "evaluation/sampler_results/episode_reward_mean": "evaluation/env_runners/episode_return_mean",
    "episodes_total": "env_runners/num_episodes_lifetime",
}
#: What results hold at their top level. Callbacks may add to it, so that other names are errors only if near to these.
_METRICS = (
    "distillation",
    "env_runners",
    "evaluation",
    "iterations_since_restore",
    "learners",
    "num_env_steps_sampled_lifetime",
    "num_training_step_calls_per_iteration",
    "time_since_restore",
    "time_this_iter_s",
    "time_total_s",
    "training_iteration",
)
#: Of the first episode that judges students: none that they were trained on.
FRESH_SEED = 1_000_000

_EXPLAINED = f"{EnvFailedError.__module__}.{EnvFailedError.__name__}: "
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota used up, file too large

_YAML_KEYS = ("run", "env", "config", "stop", "num_samples", "compare_episodes")
#: Other keys of the old layout, and what does their work.
_YAML_FLAGS = {
    "checkpoint_at_end": "--checkpoint-at-end, which is the default",
    "checkpoint_freq": "--checkpoint-freq",
    "checkpoint_score_attr": "--checkpoint-score-attr",
    "keep_checkpoints_num": "--keep-checkpoints-num",
    "local_dir": "--storage-path",
    "max_failures": "--max-failures",
    "restore": "--restore",
    "scheduler": "--scheduler",
    "storage_path": "--storage-path",
    "upload_dir": "--storage-path",
}


@dataclass
class Experiment:
    """What to train, until when.

    Args:
        name: of the experiment's folder.
        algorithm: a name that Tune knows, `package.module.Class`, or the class.
        config: a config; None: the algorithm's default one.
        settings: fields of the config by name, whose values may be Tune's search spaces (`{"grid_search": [...]}`).
        stop: metric → value at which to stop.
        num_samples: trials of each combination of values.
        compare_episodes: that teacher and student play at the end, each; 0: none.
    """

    name: str
    algorithm: str | type[Algorithm]
    config: AlgorithmConfig | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    stop: dict[str, float] = field(default_factory=dict)
    num_samples: int = 1
    compare_episodes: int = 0

    def checked(self) -> CheckedExperiment:
        """This experiment, with every combination of its values validated.

        Raises:
            ValueError: an unknown algorithm or setting, or a value that the config refuses; the message names what is
                near.
        """
        _check_not_empty(experiment_name=self.name)
        _check_below_storage(self.name)
        _check_at_least(1, num_samples=self.num_samples)
        _check_at_least(0, compare_episodes=self.compare_episodes)
        cls = algorithm_class(self.algorithm)
        settings = dict(self.settings)
        if "teacher" in settings:
            settings["teacher"] = _absolute_teachers(settings["teacher"])
        base = cls.get_default_config() if self.config is None else self.config
        settings = as_meant(type(base), settings)
        own = {name: value for name, value in base.to_dict().items() if has_space(value)}  # in the config itself
        configs = [
            apply_settings(base.copy(copy_frozen=False).update_from_dict(chosen), variant)
            for chosen in variants(own)
            for variant in variants(settings)
        ]
        for config in configs:
            _check_env(config)
            validate(config)
        teachers = _checked_teachers(configs)
        if self.compare_episodes and len(teachers) != 1:
            raise ValueError(f"A comparison at the end needs DistillDQN and one teacher, got {len(teachers)} teachers.")
        first, requests = configs[0], [cls.default_resource_request(config).required_resources for config in configs]
        return CheckedExperiment(
            name=self.name,
            trainable=cls,
            param_space=param_space(first, own | settings) if own or has_space(settings) else first,
            stop=_checked_stop(self.stop),
            num_samples=self.num_samples,
            compare_episodes=self.compare_episodes,
            trial_resources={name: max(r.get(name, 0.0) for r in requests) for name in set().union(*requests)},
            title=f"{cls.__name__}-{getattr(first.env, '__name__', first.env)}",
        )


@dataclass(frozen=True)
class CheckedExperiment:
    """An experiment that can be run."""

    name: str
    trainable: type[Algorithm]
    param_space: AlgorithmConfig | dict[str, Any]
    stop: dict[str, float]
    num_samples: int
    compare_episodes: int
    trial_resources: dict[str, float]  # {"CPU": 1.0, ...}
    title: str  # algorithm and environment


@dataclass(frozen=True)
class RunOptions:
    """How an experiment is run: the flags of `rllib train` that are not about what is trained."""

    checkpoint_freq: int = 0  # training iterations; 0: never
    checkpoint_at_end: bool = True
    keep_checkpoints_num: int | None = None
    checkpoint_score_attr: str | None = None  # "min-..." where low is good
    max_failures: int = 0  # of a trial, that send it back to its last checkpoint, or to its start; -1: no limit
    storage_path: str = "~/ray_results"
    restore: str | None = None
    resume: bool = False
    scheduler: str | None = None
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[tune.Callback] = ()

    def __post_init__(self) -> None:
        _check_at_least(0, checkpoint_freq=self.checkpoint_freq)
        _check_at_least(1, keep_checkpoints_num=self.keep_checkpoints_num)
        _check_at_least(-1, max_failures=self.max_failures)
        _check_not_empty(
            storage_path=self.storage_path,
            checkpoint_score_attr=self.checkpoint_score_attr,
            restore=self.restore,
            scheduler=self.scheduler,
        )
        for path in (self.storage_path, self.restore):
            if path is not None:
                absolute_uri(path)  # before Ray starts


# --- What is trained --------------------------------------------------------------------------------------------------


def algorithm_class(algorithm: str | type[Algorithm]) -> type[Algorithm]:
    """The class of a registered algorithm, or of one at `package.module.Class`.

    Raises:
        ValueError: nobody has registered the name, or it cannot be imported.
    """
    if not isinstance(algorithm, str):
        return algorithm
    # Not by tune.registry.get_trainable_cls(): that imports all of RLlib's algorithms, and some need more packages.
    if algorithm in ALGORITHMS:
        try:
            return ALGORITHMS[algorithm]()[0]
        except ImportError as error:
            raise ValueError(f"The algorithm '{algorithm}' needs a package that is not installed: {error}") from error
    if _global_registry.contains(TRAINABLE_CLASS, algorithm):
        return _global_registry.get(TRAINABLE_CLASS, algorithm)
    if "." in algorithm:
        return _imported(algorithm)
    known = [DistillDQN.__name__, *ALGORITHMS]
    hint = did_you_mean(algorithm, known, cutoff=0.5)
    raise ValueError(f"Unknown algorithm '{algorithm}'.{hint} Known are: {', '.join(known)}; or package.module.Class.")


def _imported(path: str) -> type[Algorithm]:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The algorithm '{path}' cannot be imported: {error}") from error
    if not (inspect.isclass(cls) and issubclass(cls, Algorithm)):
        raise ValueError(f"'{path}' is no RLlib Algorithm.")
    return cls


def _absolute_teachers(value: Any) -> Any:
    """Teachers under names that mean the same in every trial's working directory."""
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        return {"grid_search": [_absolute_teachers(teacher) for teacher in value["grid_search"]]}
    return None if value is None else absolute_teachers(value)


def _check_env(config: AlgorithmConfig) -> None:
    """Whether an environment is named that there is."""
    if config.env is None:
        raise ValueError("An environment is needed: --env CartPole-v1, say, or `env` in the file.")
    env_maker(config.env)


def _checked_teachers(configs: Sequence[AlgorithmConfig]) -> dict[str, Any]:
    """The teachers of all configs, once they and DQN suit the environments, as far as gymnasium makes these.

    Loaded now, where the user sees what is wrong, and not in every trial.
    """
    spaces: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    for config in configs:
        place = repr((config.env, config.env_config))
        if place not in spaces:
            spaces[place] = known_spaces(config)
        if isinstance(config, DQNConfig) and spaces[place] is not None:
            check_environment(config, spaces[place])
        if not isinstance(config, DistillDQNConfig) or not isinstance(config.teacher, str | list):
            continue
        name = repr(config.teacher)
        if name not in teachers:
            teachers[name] = load_teacher(config.teacher, trust_checkpoint=config.trust_checkpoint)
        check_teachers(config, {DEFAULT_MODULE_ID: teachers[name]}, spaces[place])
    return teachers


def _check_at_least(low: int, **numbers: Any) -> None:
    for name, number in numbers.items():
        if number is not None and (not isinstance(number, int) or number < low):
            raise ValueError(f"`{name}` must be at least {low}, got {number!r}.")


def _check_not_empty(**texts: str | None) -> None:
    """An empty text is a variable of the shell that is not set."""
    for name, text in texts.items():
        if text is not None and not text.strip():
            raise ValueError(f"`{name}` is empty.")


def _check_below_storage(name: str) -> None:
    """Whether results stay in the folder that was named for them: the name may come from a file of somebody else."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"`experiment_name` must name a folder below --storage-path, got '{name}'.")


def _checked_stop(stop: Mapping[str, Any]) -> dict[str, float]:
    for metric, value in stop.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"Training stops when a metric reaches a number, got {value!r} for '{metric}'.")
    return {_checked_metric(metric): value for metric, value in stop.items()}


def _checked_metric(metric: Any) -> str:
    """Its name in results."""
    if not isinstance(metric, str):
        raise ValueError(f"A metric has a name, like 'training_iteration'. Got {metric!r}.")
    metric = RENAMED_METRICS.get(metric, metric)
    for path in RENAMED_METRICS.values():
        if "/" not in metric and path.endswith(f"/{metric}"):
            raise ValueError(f"Results hold no metric '{metric}'. Did you mean '{path}'?")
    top = metric.split("/")[0]
    if top not in _METRICS and (hint := did_you_mean(top, _METRICS, cutoff=0.8)):
        raise ValueError(f"Results hold no metric '{metric}'.{hint}")
    return metric


# --- Files ------------------------------------------------------------------------------------------------------------


def read_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read an experiment from a Python or YAML file.

    Args:
        path: a `.py` file with a `config` (an AlgorithmConfig), and perhaps `stop`, `num_samples` and
            `compare_episodes`; or a `.yaml` file with one experiment: name → run, env, config, stop, and the others.

    Raises:
        ValueError: the file is not there, or does not hold that; the message says what was found.
    """
    if "://" in str(path):
        raise ValueError(f"Experiments are read from this machine only: download '{path}' first.")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no experiment file at '{path}'.")
    if path.suffix == ".py":
        return _read_python(path)
    if path.suffix in (".yaml", ".yml"):
        return _read_yaml(path)
    raise ValueError(f"An experiment file ends in .py or .yaml, got '{path.name}'.")


def _read_python(path: Path) -> Experiment:
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)  # as `python FILE` does; and so do the processes of a local Ray
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    try:
        names = runpy.run_path(str(path), run_name="experiment")
    except Exception as error:
        raise ValueError(f"'{path}' cannot be run: {type(error).__name__}: {error}") from error
    config = names.get("config")
    if not isinstance(config, AlgorithmConfig) or config.algo_class is None:
        raise ValueError(
            f"'{path}' must define `config`, an AlgorithmConfig of an algorithm, at its top level. Got "
            f"{type(config).__name__ if 'config' in names else 'none'}."
        )
    return _with_entries(Experiment(path.stem, config.algo_class, config), path, names)


def _read_yaml(path: Path) -> Experiment:
    try:
        content = _load_yaml(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"'{path}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ValueError(f"'{path}' must hold an experiment, name: {{run: ..., env: ..., config: ..., stop: ...}}.")
    if len(content) != 1:
        raise ValueError(
            f"'{path}' must hold one experiment, got {len(content)}: {list(content)}. Use a file for each."
        )
    ((name, entry),) = content.items()
    for key in entry:
        if key in _YAML_FLAGS:
            raise ValueError(f"'{key}' in '{path}' is a flag now: {_YAML_FLAGS[key]}. Leave it out of the file.")
        if key not in _YAML_KEYS:
            hint = did_you_mean(key, _YAML_KEYS)
            raise ValueError(f"Unknown key '{key}' in '{path}'.{hint} Known are: {', '.join(_YAML_KEYS)}.")
    if not isinstance(entry.get("run"), str):
        raise ValueError(f"'{path}' must name the algorithm: `run: DQN`, say.")
    settings = entry.get("config") or {}
    if not isinstance(settings, dict):
        raise ValueError(f"`config` in '{path}' must hold settings, like {{lr: 0.001}}. Got {settings!r}.")
    if "env" in entry:
        settings = {**settings, "env": entry["env"]}
    return _with_entries(Experiment(str(name), entry["run"], settings=settings), path, entry)


def _with_entries(experiment: Experiment, path: Path, entries: Mapping[str, Any]) -> Experiment:
    """What Python and YAML files may hold beside the config."""
    stop = entries.get("stop") or {}
    if not isinstance(stop, Mapping):
        raise ValueError(f"`stop` in '{path}' must be like {{training_iteration: 10}}. Got {stop!r}.")
    experiment.stop = dict(stop)
    experiment.num_samples = entries.get("num_samples", 1)
    experiment.compare_episodes = entries.get("compare_episodes", 0)
    return experiment


def parse_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object, or the one in a JSON or YAML file, where `text` is `@file`.

    Raises:
        ValueError: it is no such object; the message shows what was got.
    """
    example = '{"training_iteration": 10}' if what == "--stop" else '{"lr": 0.001}'
    source = text
    if text.startswith("@"):
        path = Path(text[1:])
        if not path.is_file():
            raise ValueError(f"{what}: there is no file '{path}'.")
        text, source = path.read_text(errors="replace"), f"the file '{path}'"
        is_yaml = path.suffix in (".yaml", ".yml")
    else:
        is_yaml = False
    try:
        value = _load_yaml(text) if is_yaml else _load_json(text)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply to be read. Expected an object like '{example}'.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{what} must be JSON like '{example}': {' '.join(str(error).split())}. Got {source or 'nothing'}."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object like '{example}', got {source}.")
    return value


def _load_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _finite_float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is too large a number")
    return number


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2's numbers: for PyYAML 1e-3 is a string, and only 1.0e-3 a number."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, _YamlLoader)


# --- Training ---------------------------------------------------------------------------------------------------------


def check_options(experiment: CheckedExperiment, options: RunOptions) -> None:
    """Whether an experiment can be run so, as far as that is known before Ray starts.

    Raises:
        ValueError: as `run()` would, after the start of Ray.
    """
    storage = absolute_uri(options.storage_path)
    if options.restore is not None:
        _checkpoint_uri(options.restore, experiment.trainable)
    if options.resume:
        _check_resumable(f"{storage}/{experiment.name}")
        return
    check_names(
        type(experiment.trainable.get_default_config()), options.scheduler_config.get("hyperparam_mutations", ())
    )
    _scheduler(options.scheduler, options.scheduler_config)
    _checkpoint_config(options)
    _check_writable(storage)


@contextmanager
def alone_in(uri: str, *, remedy: str) -> Iterator[None]:
    """Keep other runs out of an experiment's folder, where they would mix their files, as long as this one lasts.

    Only folders have locks: nobody is kept out of one at a URI (S3, ...).

    Args:
        uri: path or URI of the folder, which need not exist.
        remedy: what else to do than to wait.

    Raises:
        ValueError: another run is in it; the message names its process.
    """
    folder = local_folder(uri, None)
    if folder is None:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, wait=False):
            yield
    except LockedError as error:
        raise ValueError(f"'{uri}' is in use by {error}. Wait until it ends, or {remedy}.") from error


def alone(experiment: CheckedExperiment, options: RunOptions) -> AbstractContextManager[None]:
    """Keep other runs out of the experiment's folder.

    Raises:
        ValueError: there is another one.
    """
    path = f"{absolute_uri(options.storage_path)}/{experiment.name}"
    return alone_in(path, remedy="choose another --experiment-name")


def run(experiment: CheckedExperiment, options: RunOptions) -> tuple[tune.ResultGrid, bool]:
    """Train by Ray Tune.

    Ctrl-C, SIGTERM or SIGHUP lets every trial end its iteration and save a checkpoint. A second Ctrl-C or SIGTERM ends
    at once.

    Returns:
        The results, and whether Ctrl-C has ended training, which can then be resumed.

    Raises:
        ValueError: an unknown scheduler, nothing to resume or to restore, or no place for the results.
        OSError: the results' disk is full.
    """
    snapshot_often(experiment.num_samples, seconds=1.0)
    storage = absolute_uri(options.storage_path)
    space = experiment.param_space
    if options.restore is not None:
        space = _restoring(space, _checkpoint_uri(options.restore, experiment.trainable))
    if options.resume:
        tuner = _resumed(experiment, space, storage)
    else:
        _check_writable(storage)
        check_names(
            type(experiment.trainable.get_default_config()), options.scheduler_config.get("hyperparam_mutations", ())
        )
        scheduler, checkpoints = _scheduler(options.scheduler, options.scheduler_config), _checkpoint_config(options)
        metrics = [*experiment.stop, getattr(scheduler, "metric", None), checkpoints.checkpoint_score_attribute]
        tuner = tune.Tuner(
            experiment.trainable,
            param_space=space,
            tune_config=tune.TuneConfig(num_samples=experiment.num_samples, scheduler=scheduler),
            run_config=tune.RunConfig(
                name=experiment.name,
                storage_path=storage,
                stop=partial(_reached, experiment.stop),
                verbose=0,
                callbacks=[
                    *options.callbacks,
                    SaveOnInterrupt(),
                    MissingMetrics([m for m in metrics if m]),
                    Snapshots(),
                ],
                checkpoint_config=checkpoints,
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
            ),
        )
        if options.max_failures and not options.checkpoint_freq:
            say("note: without --checkpoint-freq, a trial that fails starts anew.")
        if not experiment.stop:
            say("note: there is no --stop, so training goes on until Ctrl-C.")
    with listening(), saving_on_interrupt() as interrupted:
        try:
            return tuner.fit(), interrupted.is_set()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise OSError(
                f"There is no room for the results in '{storage}': {error}. Make room, and go on by --resume."
            ) from error


def _resumed(experiment: CheckedExperiment, space: AlgorithmConfig | dict[str, Any], storage: str) -> tune.Tuner:
    path = f"{storage}/{experiment.name}"
    _check_resumable(path)
    if has_snapshot(path):
        put_back(path)
    return tune.Tuner.restore(
        path, trainable=experiment.trainable, param_space=space, resume_unfinished=True, resume_errored=True
    )


def _check_resumable(path: str) -> None:
    if not tune.Tuner.can_restore(path):
        raise ValueError(f"There is no experiment to resume at '{path}'. --experiment-name and --storage-path name it.")


def _checkpoint_config(options: RunOptions) -> tune.CheckpointConfig:
    attribute, order = options.checkpoint_score_attr, "max"
    if attribute is not None and attribute.startswith("min-"):
        attribute, order = attribute.removeprefix("min-"), "min"
    return tune.CheckpointConfig(
        checkpoint_frequency=options.checkpoint_freq,
        checkpoint_at_end=options.checkpoint_at_end,
        num_to_keep=options.keep_checkpoints_num,
        checkpoint_score_attribute=None if attribute is None else _checked_metric(attribute),
        checkpoint_score_order=order,
    )


def _check_writable(storage: str) -> None:
    if "://" in storage:
        return
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
        writable = os.access(storage, os.W_OK)
    except OSError as error:
        raise ValueError(f"Results cannot be written to '{storage}': {error.strerror}. Set --storage-path.") from error
    if not writable:
        raise ValueError(f"Results cannot be written to '{storage}': permission denied. Set --storage-path.")


def _checkpoint_uri(path: str, trainable: type[Algorithm]) -> str:
    uri = absolute_uri(find_student(path))
    if "://" in uri:
        return uri
    if not all((Path(uri) / name).is_file() for name in ("rllib_checkpoint.json", "class_and_ctor_args.pkl")):
        raise ValueError(f"There is no checkpoint of an Algorithm at '{path}' to restore.")
    trained_by = algorithm_of(uri)
    if trained_by is not None and trained_by not in {cls.__name__ for cls in trainable.__mro__}:
        raise ValueError(f"The checkpoint '{path}' is one of {trained_by}, which {trainable.__name__} cannot restore.")
    return uri


def _restoring(space: AlgorithmConfig | dict[str, Any], checkpoint: str) -> AlgorithmConfig | dict[str, Any]:
    """The same, with algorithms that start from a checkpoint."""
    restore = partial(_restore, checkpoint)
    if isinstance(space, AlgorithmConfig):
        return space.copy(copy_frozen=False).callbacks(on_algorithm_init=restore)
    return {**space, "callbacks_on_algorithm_init": restore}


def _restore(path: str, *, algorithm: Any, **kwargs: Any) -> None:
    algorithm.restore_from_path(path)


def _scheduler(name: str | None, arguments: Mapping[str, Any]) -> Any:
    if name is None:
        if arguments:
            raise ValueError("--scheduler-config needs a --scheduler.")
        return None
    from ray.tune.schedulers import SCHEDULER_IMPORT

    cls = SCHEDULER_IMPORT.get(name.lower())
    if cls is None:
        hint = did_you_mean(name, SCHEDULER_IMPORT)
        raise ValueError(f"Unknown scheduler '{name}'.{hint} Known are: {', '.join(SCHEDULER_IMPORT)}.")
    known = inspect.signature(cls() if inspect.isfunction(cls) else cls).parameters
    for key in arguments:  # Tune leaves out what it does not know, without a word
        if key not in known:
            raise ValueError(f"The scheduler '{name}' has no argument '{key}'.{did_you_mean(key, known)}")
    arguments = dict(arguments)
    if "metric" in arguments:
        arguments["metric"] = _checked_metric(arguments["metric"])
        arguments.setdefault("mode", "max")
    elif "metric" in known:
        raise ValueError(
            f"The scheduler '{name}' needs a metric: --scheduler-config "
            '\'{"metric": "env_runners/episode_return_mean", "mode": "max"}\'.'
        )
    try:
        return tune.create_scheduler(name, **arguments)
    except Exception as error:  # TuneError, TypeError, AssertionError, ...
        raise ValueError(f"The scheduler '{name}' does not take {arguments}: {error}") from error


def _reached(stop: Mapping[str, float], trial_id: str, result: Mapping[str, Any]) -> bool:
    """Whether one of the criteria is met. Tune's own check fails where a result does not hold a metric yet."""
    return any(metric_at(result, path) >= value for path, value in stop.items())


# --- What came of it --------------------------------------------------------------------------------------------------


def refusal(results: tune.ResultGrid) -> str | None:
    """Why no trial could begin, where each was refused by a ValueError, and so for its settings."""
    unbegun = [result for result in results if "training_iteration" not in (result.metrics or {})]
    reasons = [_reason(result.error) for result in unbegun if result.error is not None]
    if not reasons or len(reasons) < len(results) or not all(reason.startswith("ValueError: ") for reason in reasons):
        return None
    return reasons[0].removeprefix("ValueError: ")


def _reason(error: Exception) -> str:
    """The exception at the end of the traceback that an actor's error holds, in one line, with the user's line.

    Of one without a message, such as RLlib's when an environment raises, the exception that it was raised from.
    """
    lines = str(error).strip().splitlines()
    begins = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b", line)]
    while len(begins) > 1 and re.fullmatch(r"[\w.]+:?\s*", lines[begins[-1]]):
        lines = lines[: begins.pop()]
    if not begins:
        return " ".join(lines[-1:])
    ends = [
        i for i, line in enumerate(lines) if i > begins[-1] and re.match(r"The above exception|During handling", line)
    ]
    text = " ".join(" ".join(lines[begins[-1] : min(ends, default=None)]).split())
    if text.startswith(_EXPLAINED):
        return text.removeprefix(_EXPLAINED)
    line = users_line(frames_in("\n".join(lines[begins[-2] if len(begins) > 1 else 0 : begins[-1]])))
    return text if line is None or str(line) in text else f"{text} ({line})"


def summary(result: tune.Result) -> str:
    """How far a trial came, and where its checkpoint lies; or why it failed, in one line."""
    if result.error is not None:
        return f"{Path(result.path).name} failed: {_reason(result.error)}"
    metrics = result.metrics or {}
    if "training_iteration" not in metrics:
        return f"{Path(result.path).name}: nothing was trained yet"
    where = result.path if result.checkpoint is None else location(result.checkpoint)
    return f"{describe([_with_last_evaluation(metrics, Path(result.path))])}\n{where}"


def _with_last_evaluation(metrics: Mapping[str, Any], trial: Path) -> Mapping[str, Any]:
    """The last result, with the last evaluation where the last iteration had none, and its files are here."""
    file = trial / "result.json"
    curve = read_curve(file) if not metrics.get("evaluation") and file.is_file() else Curve()
    if not curve or curve.of != GREEDY:
        return metrics
    return {**metrics, "evaluation": {"env_runners": {"episode_return_mean": curve[-1][1]}}}


def remedy(results: tune.ResultGrid, resuming_command: str) -> str:
    """How to go on after trials that have failed on the way, in one line; empty where none has."""
    failed = [
        result for result in results if result.error is not None and "training_iteration" in (result.metrics or {})
    ]
    if any(result.checkpoint is not None for result in failed):
        return f"go on from the last checkpoint by: {resuming_command}"
    if failed:
        return "there is no checkpoint to go on from: --checkpoint-freq N saves them, --max-failures N then restarts."
    return ""


def comparison(experiment: CheckedExperiment, results: tune.ResultGrid) -> str:
    """The students beside their teacher, who play what was asked for; else the command that compares them.

    Empty where there is nothing to compare.
    """
    students = [r for r in results if r.checkpoint is not None and r.config and r.config.get("teacher")]
    if not students:
        return ""
    config = students[0].config
    if not experiment.compare_episodes:
        paths = [location(student.checkpoint) for student in students]
        teachers = config["teacher"] if isinstance(config["teacher"], list) else [config["teacher"]]
        named = [word for teacher in teachers for word in ("--teacher", str(teacher))]
        return "compare by: " + shlex.join(["rllib", "compare", *named, *paths])
    teacher = load_teacher(config["teacher"], trust_checkpoint=config["trust_checkpoint"])
    comparisons = compare_all(
        as_configured(teacher, config["ensemble"], config["temperature"]),
        {"student" if len(students) == 1 else Path(s.path).name: location(s.checkpoint) for s in students},
        PlayedEnvironment(config["env"], config["env_config"]),
        num_episodes=experiment.compare_episodes,
        seed=FRESH_SEED,
        trust_checkpoint=config["trust_checkpoint"],
        progress=True,
    )
    return str(comparisons[0]) if len(comparisons) == 1 else summary_table(comparisons)


def location(checkpoint: tune.Checkpoint) -> str:
    """Path or URI of a checkpoint, as `rllib evaluate` takes it."""
    kind = checkpoint.filesystem.type_name
    return checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"
