"""Read experiments and settings from Python, YAML and JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_kd import limits
from rllib_kd.environments.own import defined_in, given_environment
from rllib_kd.environments.run_files import run_file
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.paths import expanded
from rllib_kd.text import did_you_mean

_YAML_KEYS = ("run", "env", "config", "stop", "num_samples", "compare_episodes")

#: Other keys of the old layout, with the flags that replace them.
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


def read_experiment(path: str | os.PathLike[str], *, imports: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a Python or YAML file.

    Args:
        path: a `.py` file with a `config` (an AlgorithmConfig), and optionally `stop`, `num_samples` and
            `compare_episodes`; or a `.yaml` file with one experiment: name → run, env, config, stop, and the others.
        imports: Python files and modules to import before the file is read.

    Raises:
        ValueError: the file does not exist, or has other content; the message describes what was found.
    """
    if "://" in str(path):
        raise ValueError(f"Experiment files are read from this machine only, got '{path}'. Download it first.")
    path = expanded(os.fspath(path))
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder. Expected an experiment file, which ends in .py or .yaml.")
    if not path.is_file():
        raise ValueError(f"There is no experiment file at '{path}'.")
    if path.suffix == ".py":
        return _read_python(path, imports)
    if path.suffix in (".yaml", ".yml"):
        experiment = _read_yaml(path)
        if isinstance(env := experiment.settings.get("env"), str):
            experiment.settings["env"] = given_environment(env, imports)
        return experiment
    raise ValueError(f"An experiment file ends in .py or .yaml, got '{path.name}'.")


def _read_python(path: Path, imports: Sequence[str]) -> Experiment:
    given_environment(None, imports)
    names = run_file(path)
    config = names.get("config")
    if not isinstance(config, AlgorithmConfig) or config.algo_class is None:
        raise ValueError(
            f"'{path}' must define `config`, the AlgorithmConfig of an algorithm, at its top level. Got "
            f"{type(config).__name__ if 'config' in names else 'none'}."
        )
    env = defined_in(path.absolute(), config.env, imports)
    if env is not config.env:
        config = config.copy(copy_frozen=False).environment(env)
    return _with_entries(Experiment(path.stem, config.algo_class, config), path, names)


def _read_yaml(path: Path) -> Experiment:
    try:
        content = _load_yaml(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ValueError(
            f"'{path}' must contain an experiment, name: {{run: ..., env: ..., config: ..., stop: ...}}, got "
            f"{type(content).__name__}."
        )
    if len(content) != 1:
        raise ValueError(
            f"'{path}' must contain one experiment, got {len(content)}: {list(content)}. Use one file for each."
        )
    ((name, entry),) = content.items()
    for key in entry:
        if key in _YAML_FLAGS:
            raise ValueError(f"'{key}' in '{path}' is a flag now: {_YAML_FLAGS[key]}. Leave it out of the file.")
        if key not in _YAML_KEYS:
            hint = did_you_mean(key, _YAML_KEYS)
            raise ValueError(f"Unknown key '{key}' in '{path}'.{hint} Known are: {', '.join(_YAML_KEYS)}.")
    if not isinstance(entry.get("run"), str):
        raise ValueError(f"'{path}' names no algorithm. Add one, such as `run: DQN`.")
    settings = entry.get("config") or {}
    if not isinstance(settings, dict):
        raise ValueError(f"`config` in '{path}' must be a mapping of settings, like {{lr: 0.001}}. Got {settings!r}.")
    if "env" in entry:
        settings = {**settings, "env": entry["env"]}
    return _with_entries(Experiment(str(name), entry["run"], settings=settings), path, entry)


def _with_entries(experiment: Experiment, path: Path, entries: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the entries that Python and YAML files may have beside the config."""
    stop = entries.get("stop") or {}
    if not isinstance(stop, Mapping):
        raise ValueError(f"`stop` in '{path}' must be a mapping like {{training_iteration: 10}}. Got {stop!r}.")
    experiment.stop = dict(stop)
    for name in ("num_samples", "compare_episodes"):
        if entries.get(name) is not None:
            setattr(experiment, name, entries[name])
    return experiment


def parse_settings(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object, or read it from a JSON or YAML file if `text` is `@file`.

    Raises:
        ValueError: the text is not such an object, or the file does not exist; the message shows what was got.
    """
    example = '{"training_iteration": 10}' if what == "--stop" else '{"lr": 0.001}'
    source = text
    if text.startswith("@"):
        try:
            path = expanded(text[1:])
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
        if not path.is_file():
            raise ValueError(f"{what}: there is no file '{path}'.")
        text, source = path.read_text(encoding="utf-8-sig", errors="replace"), f"the file '{path}'"
        is_yaml = path.suffix in (".yaml", ".yml")
    else:
        is_yaml = False
    try:
        if is_yaml:
            value = _load_yaml(text)
        else:
            value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply. Expected an object like '{example}'.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{what} must be JSON like '{example}': {' '.join(str(error).split())}. Got {source or 'nothing'}."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object like '{example}', got {source}.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _finite_float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is too large a number")
    return number


def with_env_config(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose `env_config` has further entries, as --env-config gives them.

    Raises:
        ValueError: their own `env_config` is no object.
    """
    own = settings.get("env_config")
    if not isinstance(own, Mapping | None):
        raise ValueError(f"The setting 'env_config' cannot be {own!r}: expected an object.")
    return {**settings, "env_config": {**(own or {}), **changes}} if changes else dict(settings)


class _YamlLoader(yaml.SafeLoader):
    """A YAML loader that reads the numbers of YAML 1.2: PyYAML takes 1e-3 as a string, and only 1.0e-3 as a number."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _load_yaml(text: str) -> Any:
    value = yaml.load(text, _YamlLoader)
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Refuse YAML that refers to itself, or whose references make much of little text.

    Raises:
        ValueError: it does.
    """
    left, count = [value], 0
    while left:
        part = left.pop()
        count += 1
        if count + len(left) > limits.MAX_PARTS:
            raise ValueError(f"it has more than {limits.MAX_PARTS:,} values, by references to itself or its parts")
        if isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list | tuple | set):
            left += part
