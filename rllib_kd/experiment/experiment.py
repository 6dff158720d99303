"""Experiments: an algorithm, its settings and stop criteria, checked before anything starts."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.registry import TRAINABLE_CLASS

from rllib_kd import _rllib
from rllib_kd.algorithm.algorithm import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm.checks.labels import check_labels
from rllib_kd.algorithm.fit import check_shapes
from rllib_kd.algorithm.preflight import (
    check_environment,
    check_evaluation_environment,
    check_teachers_fit,
    known_spaces,
    try_out,
)
from rllib_kd.algorithm.recorded import check_before
from rllib_kd.algorithm.settings import apply_settings, as_meant, validate
from rllib_kd.checkpoints.manifest import MODULES
from rllib_kd.env_runner.explaining import ExplainingEnvRunner
from rllib_kd.environments.imports import make_importable
from rllib_kd.environments.making import env_maker
from rllib_kd.environments.own import settled, short_name
from rllib_kd.evaluation.played_environment import PlayedEnvironment, record_config
from rllib_kd.evaluation.sources import Source, open_source
from rllib_kd.experiment.connection import bundles_of
from rllib_kd.experiment.metrics import checked_stop
from rllib_kd.experiment.names import check_below_storage, check_not_empty, new_name, subject
from rllib_kd.experiment.variants import has_space, param_space, variants
from rllib_kd.numeric import check_integer
from rllib_kd.observations.connectors import flatten_observations
from rllib_kd.observations.spaces import has_texts, image_places, is_flattened
from rllib_kd.offline.labelled_files import absolute_uris
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import as_configured
from rllib_kd.teachers.names import absolute_teachers, is_described
from rllib_kd.terminal import say
from rllib_kd.text import did_you_mean, plain, stable_text


@dataclass
class Experiment:
    """An algorithm, its settings, and when to stop.

    Args:
        name: name of the experiment's folder; None: by algorithm, environment and time.
        algorithm: a name registered with Tune, `package.module.Class`, or the class.
        config: a config; None: the algorithm's default config.
        settings: fields of the config by name; values may be Tune's search spaces (`{"grid_search": [...]}`).
        stop: metric → value at which a trial stops.
        num_samples: trials of each combination of values, ≥ 1.
        compare_episodes: episodes that teacher and student each play at the end; 0: none.
    """

    name: str | None
    algorithm: str | type[Algorithm]
    config: AlgorithmConfig | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    stop: dict[str, float] = field(default_factory=dict)
    num_samples: int = 1
    compare_episodes: int = 0

    def checked(self) -> CheckedExperiment:
        """Validate every combination of the experiment's values.

        Raises:
            ValueError: an unknown algorithm or setting, or a value that the config refuses; the message suggests the
                nearest known name.
        """
        check_not_empty(experiment_name=self.name)
        if self.name is not None:
            check_below_storage(experiment_name=self.name)
        check_integer("num_samples", self.num_samples, low=1)
        check_integer("compare_episodes", self.compare_episodes, low=0)
        cls = algorithm_class(self.algorithm)
        settings = dict(self.settings)
        base = cls.get_default_config() if self.config is None else self.config
        filesystem = settings.get("input_filesystem", base.input_filesystem)
        make_valid = _VALID_EVERYWHERE | {"input_": partial(absolute_uris, filesystem=filesystem)}
        for name in make_valid.keys() & settings.keys():
            settings[name] = _over_grid(settings[name], make_valid[name])
        written = dict(settings)
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
            raise ValueError(
                f"`compare_episodes` needs DistillDQN and one teacher, got {len(teachers)} teachers. Leave it out, or "
                "run `rllib compare` afterwards."
            )
        if self.compare_episodes:
            _check_is_one_student(configs)
            if any(config.env is None for config in configs):
                raise ValueError("`compare_episodes` needs an environment. Name one: --env ID, or leave it out.")
        first, requests = configs[0], [cls.default_resource_request(config) for config in configs]
        needs = [request.required_resources for request in requests]
        about = subject(cls, map(_place_of, configs))
        return CheckedExperiment(
            name=new_name(about) if self.name is None else self.name,
            trainable=cls,
            param_space=param_space(first, own | settings) if own or has_space(settings) else first,
            stop=checked_stop(self.stop),
            num_samples=self.num_samples,
            compare_episodes=self.compare_episodes,
            trial_resources={name: max(need.get(name, 0.0) for need in needs) for name in set().union(*needs)},
            bundles=[bundle for request in requests for bundle in bundles_of(request)],
            settings=written,
            configured={} if self.config is None else _configured(base),
            title=f"{cls.__name__}-{short_name(_place_of(first))}",
            subject=about,
        )


@dataclass(frozen=True)
class CheckedExperiment:
    """An experiment whose settings have been validated."""

    name: str
    trainable: type[Algorithm]
    param_space: AlgorithmConfig | dict[str, Any]
    stop: dict[str, float]
    num_samples: int
    compare_episodes: int
    trial_resources: dict[str, float]  # {"CPU": 1.0, ...}
    title: str  # algorithm and environment
    settings: dict[str, Any] = field(default_factory=dict)  # as the user has written them, with absolute teachers
    configured: dict[str, Any] = field(default_factory=dict)  # what its config itself sets, before these settings
    subject: str = ""  # beginning of the experiment's default name
    bundles: Sequence[Mapping[str, float]] = ()  # of the trials; each is for one node


#: A setting that any command may change, also one that resumes.
LOG_LEVEL = "log_level"


def _configured(config: AlgorithmConfig) -> dict[str, Any]:
    """Return in JSON's terms what a config sets to other values than the defaults of its class."""
    settings, defaults = plain(config.to_dict()), plain(type(config)().to_dict())
    return {
        name: value
        for name, value in settings.items()
        if name != LOG_LEVEL and (name not in defaults or value != defaults[name])
    }


def algorithm_class(algorithm: str | type[Algorithm]) -> type[Algorithm]:
    """Return the class of a registered algorithm, or the one at `package.module.Class`.

    Raises:
        ValueError: the name is not registered, or the class cannot be imported.
    """
    if not isinstance(algorithm, str):
        return algorithm
    # Not by tune.registry.get_trainable_cls(): that imports all of RLlib's algorithms, and some need more packages.
    if algorithm in ALGORITHMS:
        try:
            return ALGORITHMS[algorithm]()[0]
        except ImportError as error:
            raise ValueError(f"The algorithm '{algorithm}' needs a package that is not installed: {error}") from error
    if _rllib.is_registered(TRAINABLE_CLASS, algorithm):
        return _rllib.registered(TRAINABLE_CLASS, algorithm)
    if "." in algorithm:
        return _imported(algorithm)
    known = [DistillDQN.__name__, *ALGORITHMS]
    hint = did_you_mean(algorithm, known, cutoff=0.5)
    raise ValueError(f"Unknown algorithm '{algorithm}'.{hint} Known are: {', '.join(known)}; or package.module.Class.")


def _imported(path: str) -> type[Algorithm]:
    module, _, name = path.rpartition(".")
    make_importable(os.getcwd())
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The algorithm '{path}' cannot be imported: {error}") from error
    if not (inspect.isclass(cls) and issubclass(cls, Algorithm)):
        raise ValueError(f"'{path}' is not an RLlib Algorithm. Name a subclass of it, or a registered algorithm.")
    return cls


#: Makes of a setting what is valid in every trial's working directory: absolute paths, and environments known to Ray.
_VALID_EVERYWHERE: dict[str, Callable[[Any], Any]] = {
    "teacher": absolute_teachers,
    "env": settled,
    "output": absolute_uris,
}


def _over_grid(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a setting changed; of a grid, each of its values. None stays None."""
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        return {"grid_search": [_over_grid(each, change) for each in value["grid_search"]]}
    return None if value is None else change(value)


def _place_of(config: AlgorithmConfig) -> Any:
    """Return the environment; without one, the name of the folder or file of recorded rows."""
    if config.env is not None or not config.is_offline:
        return config.env
    first = config.input_ if isinstance(config.input_, str) else config.input_[0]
    return first.partition("?")[0].rstrip("/").rpartition("/")[2]


def _check_env(config: AlgorithmConfig) -> None:
    """Check that an environment is named, and that it exists. Recorded rows need none."""
    if config.env is None and isinstance(config, DistillDQNConfig) and config.is_offline:
        return
    if config.env is None:
        raise ValueError("No environment was given. Name one, such as --env CartPole-v1, or `env` in the file.")
    if (env := settled(config.env)) is not config.env:
        config.environment(env)  # in a config of RLlib's own
    env_maker(config.env)
    record_config(config.env, config.env_config)


def _checked_teachers(configs: Sequence[AlgorithmConfig]) -> dict[str, Any]:
    """Load the teachers of all configs, and check that they and DQN suit the environments that gymnasium can make.

    They are loaded here once, so that errors reach the user before trials start.
    """
    spaces: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    tried: set[str] = set()
    for config in configs:
        # Of large arrays, repr() shows the ends alone; without repr(), functions of the same name would be equal.
        place = repr((config.env, config.env_config)) + stable_text(config.env_config)
        if place not in spaces:
            spaces[place] = known_spaces(config)
        _flatten_observations(config, spaces[place])
        if isinstance(config, DQNConfig) and spaces[place] is not None:
            check_environment(config, spaces[place])
        if spaces[place] is not None:
            check_evaluation_environment(config, spaces[place])
        if spaces[place] is not None and place not in tried:
            try_out(config)
        tried.add(place)
        if not isinstance(config, DistillDQNConfig):
            continue
        if not isinstance(config.teacher, str | list | Teacher) and not is_described(config.teacher):
            continue
        name = repr(config.teacher)
        if name not in teachers:
            members = list(open_source(config.teacher, trust_checkpoint=config.trust_checkpoint).members())
            teachers[name] = [member.network() for member in members]
            _note_other_config(config, members)
        teacher = as_configured(teachers[name], config.ensemble, config.temperature)
        check_labels(config, {DEFAULT_MODULE_ID: teacher})
        check_teachers_fit(config, {DEFAULT_MODULE_ID: teacher}, spaces[place])
        check_before(config, {DEFAULT_MODULE_ID: teacher}, spaces[place])
        check_shapes(config, {DEFAULT_MODULE_ID: teacher}, spaces[place])
    return teachers


def _note_other_config(config: DistillDQNConfig, teachers: Sequence[Source]) -> None:
    """Print a note if a teacher was trained in this environment with another config than this run's."""
    here = PlayedEnvironment(config.env, config.env_config)
    for teacher in teachers:
        there = PlayedEnvironment(*teacher.environment())
        if there.env == here.env and there.env_config and there.config_as_json() != here.config_as_json():
            say(f"note: the teacher was trained in {there}, and this run is in {here}.")


def _check_is_one_student(configs: Sequence[AlgorithmConfig]) -> None:
    """Check that no trial has a family of students, which `compare_episodes` cannot tell apart at the end."""
    families = (config.students for config in configs if isinstance(config, DistillDQNConfig) and config.students)
    for students in families:
        paths = " ".join(f"{name}=CHECKPOINT/{MODULES}/{name}" for name in students)
        raise ValueError(
            f"`compare_episodes` needs one student, got the family {', '.join(students)}. Leave it out, and afterwards "
            f"run `rllib compare --teacher TEACHER {paths}`."
        )


def _flatten_observations(config: AlgorithmConfig, spaces: Any) -> None:
    """Let one of RLlib's algorithms make one vector of observations for which it has no network, as DistillDQN does."""
    is_own = isinstance(config, DistillDQNConfig) or _rllib.has_env_to_module(config)
    if spaces is None or is_own or not is_flattened(spaces[0]):
        return
    config.env_runners(env_to_module_connector=flatten_observations)
    if image_places(spaces[0]):
        say(
            "note: RLlib's own algorithms have no convolutions for images beside other parts of an observation: they "
            "get all pixels as numbers. DistillDQN with --no-teacher is DQN with convolutions."
        )
    if config.env_runner_cls is None and has_texts(spaces[0]):
        config.env_runners(env_runner_cls=ExplainingEnvRunner)  # RLlib's own takes a vector env's texts apart
