"""Settings by name, through RLlib's fluent API: their names and the values that each takes."""

from __future__ import annotations

import collections.abc
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any

from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE, AlgorithmConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.models.utils import get_activation_fn
from ray.rllib.utils import replay_buffers

from rllib_kd import _rllib
from rllib_kd.algorithm.unknown_settings import unknown_setting
from rllib_kd.networks.recurrent import LAYER_TYPE
from rllib_kd.networks.trees.shape import TREE, TreeShape
from rllib_kd.numeric import as_float, is_finite, is_integer
from rllib_kd.schedules import check_schedule
from rllib_kd.text import did_you_mean

#: Settings of the old API stack that have another name now.
RENAMED = {
    "num_workers": "num_env_runners",
    "num_rollout_workers": "num_env_runners",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_gpus_per_worker": "num_gpus_per_env_runner",
    "num_cpus_per_worker": "num_cpus_per_env_runner",
    "num_cpus_for_driver": "num_cpus_for_main_process",
    "num_sgd_iter": "num_epochs",
    "sgd_minibatch_size": "minibatch_size",
    "evaluation_num_workers": "evaluation_num_env_runners",
    "timesteps_per_iteration": "min_sample_timesteps_per_iteration",
    "min_time_s_per_reporting": "min_time_s_per_iteration",
    "model": "model_config",
    "lambda": "lambda_",
    "input": "input_",
}

#: Settings that the new API stack does not read, although it accepts some of them, with their successors. A config may
#: have those that it reads nevertheless in `READ_HERE`.
_GONE = {
    "hiddens": "set model_config: {'head_fcnet_hiddens': [...]}",
    "noisy": "leave it out",
    "adam_epsilon": "leave it out",
    "exploration_config": "set epsilon, a number or a schedule like [[0, 1.0], [10000, 0.05]]",
    "observation_filter": "set env_to_module_connector in a Python file",
    "num_gpus": "set num_gpus_per_learner",
    "lr_schedule": "set lr, which takes a schedule like [[0, 1e-3], [100000, 1e-4]]",
    "entropy_coeff_schedule": "set entropy_coeff, which takes a schedule",
    "multiagent": "set policies and policy_mapping_fn in a Python file",
    "enable_connectors": "leave it out; connectors are always used",
    "buffer_size": "set replay_buffer_config: {'capacity': ...}",
    "learning_starts": "set num_steps_sampled_before_learning_starts",
}

#: The fluent methods whose arguments are names of settings.
_FLUENT_METHODS = (
    "environment",
    "env_runners",
    "learners",
    "training",
    "distillation",
    "evaluation",
    "offline_data",
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
    "experimental",
)

#: The smallest and the largest valid number, and whether it must be whole, by the first pattern that matches the whole
#: name. RLlib itself accepts any number and trains with it, such as a learning rate of -1.
_RANGES = {
    r"gamma|lambda_|tau|epsilon|jsd_beta|replay_buffer_config\['(alpha|beta)'\]": (0, 1, False),
    r"train_batch_size.*|minibatch_size|num_(envs_per_env_runner|epochs|atoms)|n_step": (1, math.inf, True),
    r"restarts|patience|replay_buffer_config\['(capacity|batch_size_B|batch_length_T)'\]": (1, math.inf, True),
    r"max_requests_in_flight_per_env_runner": (1, math.inf, True),
    r"(evaluation_)?num_(?!cpus|gpus).*|seed|max_staleness|.*_(freq|interval)": (0, math.inf, True),
    r"num_.*|(.*_)?lr|.*_s|(min|max)_.*|grad_clip|adam_epsilon": (0, math.inf, False),
    r".*": (-math.inf, math.inf, False),
}

#: Words that RLlib does not check, or only when processes are running.
_WORDS = {
    "evaluation_duration_unit": ("episodes", "timesteps"),
    "log_level": ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL"),
    "merge_env_runner_states": ("training_only",),
    "placement_strategy": ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
}

#: Settings that may be infinite, for no limit.
_MAY_BE_INFINITE = re.compile(r".*clip.*|.*_timeout_s|max_.*")
#: Numbers that may be None, for no limit, or for the value of another setting.
_MAY_BE_NONE = re.compile(r".*clip.*|.*_timeout_s|(min|max)_.*|train_batch_size.*")
#: Settings that are dicts, and must be.
_NEEDED = frozenset({"env_config", "learner_config_dict", "model_config", "optimizer", "replay_buffer_config"})
#: Settings that are dicts, whose numbers are checked key by key, or are read by the user's own code.
_BY_KEY = frozenset({"model_config", "students", "replay_buffer_config", "evaluation_config", "env_config"})
#: Settings that may be a schedule: `[[env_steps, value], ...]`.
_MAY_BE_SCHEDULE = re.compile(r"(.*_)?lr|epsilon|(?!feature_).*_coeff|teacher_fraction")
#: Among the type hints of a dict's keys, the hint of those that are not named.
_ANY = "*"
#: Of RLlib's replay buffers, what counts something.
_BUFFER_HINTS: dict[str, Any] = dict.fromkeys(("capacity", "batch_size_B", "batch_length_T", "max_episodes"), int)


def apply_settings(config: AlgorithmConfig, settings: Mapping[str, Any]) -> AlgorithmConfig:
    """Set fields of a config by name, each through the fluent method that takes it.

    Raises:
        ValueError: a name that no fluent method takes, also in dicts with keys that RLlib defines, with the nearest
            known name; or a value of another type or out of range.
    """
    known, gone = _fluent_arguments(type(config)), gone_settings(type(config))
    meant = [(RENAMED.get(given, given), value) for given, value in as_meant(type(config), settings).items()]
    for name, value in sorted(meant, key=lambda item: item[0] == "input_"):  # after its filesystem
        if name in gone:
            raise ValueError(f"The setting '{name}' no longer exists: {gone[name]}.")
        if name not in known:
            raise unknown_setting(type(config), name, known)
        method, type_hint = known[name]
        if value is None and name in _NEEDED:
            raise ValueError(f"The setting '{name}' cannot be None. Leave it out.")
        _check_value(name, value, type_hint)
        if isinstance(value, Mapping):
            _check_keys(config, name, value)
        try:
            getattr(config, method)(**{name: value})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"The setting '{name}' cannot be {value!r}: {error}") from error
    return config


def as_meant(cls: type[AlgorithmConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with integers wherever the type is integer: JSON and YAML also write 50000.0 or 1e5."""
    hints: dict[str, Any] = {name: hint for name, (_, hint) in _fluent_arguments(cls).items()}
    model = _model_hints(cls)
    hints |= {"model_config": model, "students": {_ANY: model}, "replay_buffer_config": _BUFFER_HINTS}
    hints |= {"evaluation_config": dict(hints)}
    return {given: _with_integers(value, hints.get(RENAMED.get(given, given))) for given, value in settings.items()}


def check_settings(config: AlgorithmConfig) -> None:
    """Check that `apply_settings()` would accept the values of a config, however they were set.

    Values that RLlib itself has set are not checked.

    Raises:
        ValueError: it would not accept a value.
    """
    defaults, gone = type(config)(), gone_settings(type(config))
    for name, (_, type_hint) in _fluent_arguments(type(config)).items():
        value, default = _value_in(config, name), _value_in(defaults, name)
        if name in gone or value is default or _equal(value, default):
            continue
        if value is None and isinstance(default, Real) and not _MAY_BE_NONE.fullmatch(name):
            raise ValueError(f"The setting '{name}' cannot be None. Leave it out: its default is {default!r}.")
        _check_value(name, value, type_hint)
        if name == "model_config" and isinstance(value, Mapping) and _value_in(config, "rl_module_spec") is not None:
            check_model_config(name, value)  # a module of the user's may have keys of its own
        elif name in ("model_config", "replay_buffer_config") and isinstance(value, Mapping):
            _check_keys(config, name, value)


def gone_settings(cls: type[AlgorithmConfig]) -> dict[str, str]:
    """Return the settings that are accepted but not read by an algorithm, each with what to do instead."""
    return {name: instead for name, instead in _GONE.items() if name not in getattr(cls, "READ_HERE", ())}


def check_model_config(where: str, model_config: Mapping[str, Any]) -> None:
    """Check the values of a model config.

    Args:
        where: name of the setting that has it, for messages.
        model_config: as in `rl_module(model_config=...)`.

    Raises:
        ValueError: a value has another type or is out of range.
    """
    if TREE in model_config:
        TreeShape.of(model_config[TREE], where)
    hints = typing.get_type_hints(DefaultModelConfig)
    for key, value in model_config.items():
        if key in hints:
            _check_model(where, key, value, hints[key])


def check_names(cls: type[AlgorithmConfig], names: Iterable[str]) -> None:
    """Check that all names are settings.

    Raises:
        ValueError: one is not. The message has the setting with a key of this name, or the nearest known name.
    """
    known = _fluent_arguments(cls)
    for name in names:
        if name not in known:
            raise unknown_setting(cls, name, known)


def validate(config: AlgorithmConfig) -> AlgorithmConfig:
    """Validate a config and return it.

    Raises:
        ValueError: RLlib's `validate()` raised any error; the message has its text.
    """
    try:
        config.validate()
    except ValueError as error:
        raise ValueError(str(error).split("To suppress all validation errors")[0].strip()) from error
    except Exception as error:  # RLlib raises many kinds: NotImplementedError, ImportError, AssertionError, ...
        raise ValueError(f"RLlib refuses this config: {error}") from error
    check_settings(config)
    return config


def _fluent_arguments(cls: type[AlgorithmConfig]) -> Mapping[str, tuple[str, Any]]:
    """Return each setting's fluent method and its type hint there. Methods of subclasses take precedence."""
    return _arguments_of(cls.__mro__)


@cache  # reading the hints takes 30 ms, and a config is validated several times before it is an algorithm
def _arguments_of(classes: tuple[type, ...]) -> Mapping[str, tuple[str, Any]]:
    arguments: dict[str, tuple[str, Any]] = {}
    for name in _FLUENT_METHODS:
        for method in (vars(each)[name] for each in classes if name in vars(each)):
            try:
                hints = typing.get_type_hints(method)
            except NameError:  # RLlib imports some of its types for type checkers only
                hints = {}
            for parameter in inspect.signature(method).parameters.values():
                is_named = parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD
                if is_named and parameter.default != DEPRECATED_VALUE:
                    hint = hints.get(parameter.name, parameter.annotation)
                    arguments.setdefault(parameter.name, (name, hint))
    return types.MappingProxyType(arguments)


def _check_keys(config: AlgorithmConfig, name: str, value: Mapping[str, Any]) -> None:
    """Refuse unknown keys in dicts with keys that RLlib defines."""
    known: Iterable[str]
    if name == "model_config":
        check_model_config(name, value)
        known = _model_hints(type(config))
    elif name == "replay_buffer_config":
        known = _buffer_keys(config, value)
        for key in value:
            _check_value(f"{name}['{key}']", value[key], _BUFFER_HINTS.get(key))
    elif name == "evaluation_config":
        apply_settings(type(config)(), value)
        return
    else:
        return
    for key in value:
        if key not in known:
            raise ValueError(f"'{name}' has no key '{key}'.{did_you_mean(key, known)}")


def _check_model(where: str, key: str, value: Any, type_hint: Any) -> None:
    if not _fits(value, type_hint) or (value is None and type(None) not in _types_in(type_hint)):
        raise ValueError(f"{where}['{key}'] cannot be {value!r}: expected {_spell(type_hint)}.")
    if key == "conv_filters" and not all(map(_is_filter, value or ())):
        raise ValueError(
            f"{where}['{key}'] cannot be {value!r}: expected a list of [channels, kernel, stride], integers of at "
            "least 1 (Python's, not numpy's). Kernel and stride may be pairs [height, width]."
        )
    if key.endswith("_hiddens") and not all(is_integer(width, 1) for width in value or ()):
        raise ValueError(f"{where}['{key}'] cannot be {value!r}: expected a list of integers of at least 1.")
    if not _all_finite(value) and not _MAY_BE_INFINITE.fullmatch(key):
        raise ValueError(f"{where}['{key}'] cannot be {value!r}: expected finite numbers.")
    if key.endswith("_activation") and value is not None:
        try:
            get_activation_fn(value, framework="torch")
        except ValueError as error:
            raise ValueError(
                f"{where}['{key}'] cannot be {value!r}: expected an activation of PyTorch, such as relu, tanh or silu."
            ) from error


def _check_value(name: str, value: Any, type_hint: Any) -> None:
    """Check kind and range of a value; `name` may be a key's, like "replay_buffer_config['capacity']"."""
    if not _fits(value, type_hint):
        raise ValueError(f"The setting '{name}' cannot be {value!r}: expected {_spell(type_hint)}.")
    if isinstance(value, str) and value not in _WORDS.get(name, (value,)):
        hint = did_you_mean(value, _WORDS[name])
        raise ValueError(f"The setting '{name}' cannot be {value!r}.{hint} Known are: {', '.join(_WORDS[name])}.")
    if name.startswith("custom_resources_") and isinstance(value, Mapping):
        for resource, amount in value.items():
            if not is_finite(amount, 0):
                raise ValueError(f"The setting '{name}' needs an amount of at least 0 of '{resource}', got {amount!r}.")
    _check_range(name, value)


def _check_range(name: str, value: Any) -> None:
    if isinstance(value, bool):
        return
    low, high, whole = next(limits for pattern, limits in _RANGES.items() if re.fullmatch(pattern, name))
    if isinstance(value, Sequence) and not isinstance(value, str) and _MAY_BE_SCHEDULE.fullmatch(name):
        check_schedule(name, value, low=low, high=high)
    elif isinstance(value, Real):
        number, limits = as_float(value), ""
        if high < math.inf:
            limits = f" between {low} and {high}"
        elif low > -math.inf:
            limits = f" of at least {low}"
        is_number = math.isfinite(number) or (number == math.inf and _MAY_BE_INFINITE.fullmatch(name))
        if not is_number or not low <= number <= high or (whole and number % 1):
            kind = "an integer" if whole else "a finite number" if math.isinf(number) else "a number"
            raise ValueError(f"The setting '{name}' cannot be {value!r}: expected {kind}{limits}.")
    elif name not in _BY_KEY and not _all_finite(value):
        raise ValueError(f"The setting '{name}' cannot be {value!r}: expected finite numbers.")


def _all_finite(value: Any) -> bool:
    """Return whether no number in a value is infinite or NaN."""
    if isinstance(value, Mapping):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_filter(value: Any) -> bool:
    """Return whether a value is one convolution of RLlib: channels, kernel, stride, and optionally padding."""
    if not isinstance(value, list | tuple) or len(value) not in (3, 4) or not all(map(_is_size, value[1:3])):
        return False
    return _is_size(value[0]) and not isinstance(value[0], list | tuple) and all(isinstance(p, str) for p in value[3:])


def _is_size(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    return all(isinstance(part, int) and is_integer(part, 1) for part in parts)  # RLlib unpacks numpy's as pairs


def _with_integers(value: Any, hint: Any) -> Any:
    """Convert whole floats to integers if their type hint is integer; `hint` is one hint, or one for each key."""
    if isinstance(value, Mapping):
        if set(value) == {"grid_search"} and isinstance(value["grid_search"], list):
            return {"grid_search": [_with_integers(each, hint) for each in value["grid_search"]]}
        hints = hint if isinstance(hint, Mapping) else {}
        return {key: _with_integers(part, hints.get(key, hints.get(_ANY))) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_integers(each, hint) for each in value]
    if not isinstance(value, float) or not value.is_integer() or isinstance(hint, Mapping):
        return value
    types_ = _types_in(hint)
    return int(value) if int in types_ and float not in types_ else value


def _types_in(hint: Any) -> set[Any]:
    """Return the types in a type hint."""
    parts = typing.get_args(hint)
    return {hint} if not parts else set().union(*map(_types_in, parts))


def _model_hints(cls: type[AlgorithmConfig]) -> dict[str, Any]:
    """Return the type hint of each key of a model config."""
    known = _fluent_arguments(cls)
    included: dict[str, Any] = {TREE: dict, LAYER_TYPE: str}
    included |= {key: known.get(key, (None, None))[1] for key in _included_in_model_config(cls.__mro__)}
    return {**included, **typing.get_type_hints(DefaultModelConfig)}


@cache  # making a config takes milliseconds
def _included_in_model_config(classes: tuple[type, ...]) -> tuple[str, ...]:
    return tuple(_rllib.included_in_model_config(classes[0]()))


def _value_in(config: AlgorithmConfig, name: str) -> Any:
    """Return a config's value of a setting; None if it has none."""
    names = (_rllib.CONFIG_ATTRIBUTES.get(name, name), f"_{name}", f"{name}_str")
    return next((vars(config)[attribute] for attribute in names if attribute in vars(config)), None)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays, and whatever users have
        return False


def _buffer_keys(config: AlgorithmConfig, given: Mapping[str, Any]) -> set[str]:
    own = type(config)().replay_buffer_config  # an algorithm may have a replay that RLlib does not know
    buffer = given.get("type", config.replay_buffer_config.get("type"))
    if buffer == own.get("type"):
        is_rllibs = not isinstance(buffer, str) or hasattr(replay_buffers, buffer)
        return set(own) | (_buffer_arguments(buffer) if is_rllibs else set())
    return set(config.replay_buffer_config) | _buffer_arguments(buffer)


def _buffer_arguments(buffer: Any) -> set[str]:
    if isinstance(buffer, str) and "." not in buffer and not hasattr(replay_buffers, buffer):
        known = [name for name, value in vars(replay_buffers).items() if inspect.isclass(value)]
        raise ValueError(f"There is no replay buffer '{buffer}'.{did_you_mean(buffer, known)} Known are: {known}.")
    cls = buffer if isinstance(buffer, type) else getattr(replay_buffers, str(buffer).rsplit(".")[-1], None)
    if cls is None:  # the path of a custom class
        return set()
    return {name for base in cls.__mro__ for name in inspect.signature(base).parameters if base is not object}


#: Kinds of values in JSON and YAML. Some hints of RLlib are `int` although 0.5 is valid, or `Tuple` although lists are.
_KINDS: dict[Any, str] = {
    int: "a number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
    dict: "an object",
    collections.abc.Mapping: "an object",
    list: "a list",
    tuple: "a list",
    set: "a list",
    collections.abc.Sequence: "a list",
    collections.abc.Collection: "a list",
}


def _kinds(hint: Any) -> set[str] | None:
    """Return the kinds of JSON values that a type hint admits; None if unknown."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        return None if None in parts else {kind for part in parts if part is not None for kind in part}
    if origin is typing.Literal:
        return {_KINDS[type(value)] for value in typing.get_args(hint)}
    if (kind := _KINDS.get(origin or hint)) is not None:
        return {kind}
    return set() if origin is None and isinstance(hint, type) and hint is not inspect.Parameter.empty else None


def _fits(value: Any, hint: Any) -> bool:
    admitted, kind = (_kinds(hint) or set()) - {"null"}, _KINDS.get(type(value))
    if kind is None:  # an object of Python: numpy's numbers, a class, ...
        return admitted != {"a number"} or isinstance(value, Real)
    if not admitted and _kinds(hint) is not None:  # classes alone, which JSON cannot express
        return value is None
    return value is None or not admitted or kind in admitted


def _spell(hint: Any) -> str:
    names = sorted(part.__name__ for part in _types_in(hint) - {type(None)} if isinstance(part, type))
    return " or ".join(sorted((_kinds(hint) or set()) - {"null"}) or [f"{name}, in Python" for name in names])
