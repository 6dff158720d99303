"""Environments of the user's own: "path/to/file.py:Name", "module:Name" and imports before them.

What stands before the colon is imported: a Python file or a module; or several, separated by commas. NAME is then an id
of gymnasium, a name registered with Ray, or else a class or function in the last one. Only this text is in configs
and checkpoints. To RLlib the environment is registered with Ray under it, so that every process of a cluster finds it:
`OwnEnvironment` carries the source of the files.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
from ray import cloudpickle
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, register_env

from rllib_kd import _rllib
from rllib_kd.environments.failures import name_of
from rllib_kd.environments.familiar import record
from rllib_kd.environments.imports import absolute, import_own, is_file_name, make_importable
from rllib_kd.environments.sources import Sources, own_file
from rllib_kd.text import did_you_mean

_rllib.take_any_name()  # in every process that looks an environment up

#: Name under which experiment files are run; no module can be imported by it.
RUN_NAME = "experiment"
#: Names of a constructor's first parameter that takes the whole config, as RLlib passes it.
_CONFIG_NAMES = ("config", "env_config", "env_context", "context", "cfg", "ctx")


@dataclass(frozen=True)
class OwnName:
    """The parts of such a name.

    Args:
        imports: files and modules, in their order; at least one.
        name: id, registered name, class or function.

    Raises:
        ValueError: the path of a file has a comma.
    """

    imports: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for each in self.imports:
            _check_has_no_comma(each)

    def __str__(self) -> str:
        return f"{','.join(self.imports)}:{self.name}"

    @property
    def files(self) -> tuple[str, ...]:
        """Return those of the imports that are files."""
        return tuple(filter(is_file_name, self.imports))


def parsed(env: Any) -> OwnName | None:
    """Return the parts of a name with a colon, with absolute paths; None for any other environment.

    Raises:
        ValueError: it is a file without a colon and a name, a part is empty, or the path of a file has a comma.
    """
    if not isinstance(env, str):
        return None
    imports, colon, name = env.rpartition(":")
    if not colon:
        if env.endswith(".py"):
            raise ValueError(f"'{env}' is a file. Name the environment in it, too: {env}:Name.")
        return None
    if os.path.isfile(os.path.expanduser(imports)):
        _check_has_no_comma(imports)
    parts = [part.strip() for part in imports.split(",")]
    if not name.strip() or not all(parts):
        raise ValueError(f"'{env}' lacks a part. Expected path/to/file.py:Name or module:Name.")
    return OwnName(tuple(map(absolute, parts)), name.strip())


def _check_has_no_comma(path: str) -> None:
    if "," in path:
        raise ValueError(
            f"The path '{path}' has a comma, which separates imports in the name of an environment. Move or rename the "
            "file or folder."
        )


def short_name(env: Any) -> str:
    """Return a name for tables and folders: of an environment in a file the name without the file; else the id."""
    own = parsed(env)
    return own.name if own is not None and own.files else name_of(env)


def given_environment(env: str | None, imports: Sequence[str] = ()) -> str | None:
    """Import what the user names, and return the environment by the name that configs have.

    Args:
        env: as the user gives it; None: none.
        imports: files and modules to import first, in this order. They become part of the name unless the environment
            is known without them.

    Raises:
        ValueError: one of them cannot be imported, or has no such environment.
    """
    names = list(imports)
    is_known = env is None or (":" not in env and ("." in env or _is_known_anywhere(env)))
    for index, name in enumerate(imports):
        names[index] = _located(name)
        import_own(names[index])
    if env is None:
        return None
    if names and not is_known:
        own = parsed(env)
        env = str(OwnName((*names, *own.imports), own.name)) if own else str(OwnName(tuple(names), env))
    return settled(env)


def settled(env: Any) -> Any:
    """Register an environment of the user's own with Ray, and return its name with absolute paths; others unchanged.

    The user has given it: it is imported, and recorded as familiar. A name registered with Ray stays as it is.

    Raises:
        ValueError: it cannot be imported, or has no such environment.
    """
    own = None if isinstance(env, str) and is_registered_with_tune(env) else parsed(env)
    if own is None:
        return env
    own = OwnName(tuple(map(_located, own.imports)), own.name)
    OwnEnvironment(own).check()
    record(str(own))
    return env if is_gymnasiums(own) else registered(own)


def _located(name: str) -> str:
    """Return the file of a module of the user's own, such as one in the working folder; other imports as they are.

    A checkpoint that names a module means an installed one, wherever it is evaluated.
    """
    if is_file_name(name):
        return absolute(name)
    make_importable(os.getcwd())
    path = own_file(import_own(name))
    return name if path is None else str(path)


def is_gymnasiums(own: OwnName) -> bool:
    """Return whether gymnasium, and so RLlib, import and make it themselves: "module:Env-v0", once it is imported."""
    first, *others = own.imports
    return not others and not is_file_name(first) and "." not in first and own.name in gym.registry


def registered(own: OwnName) -> str:
    """Register an environment with Ray by its whole name, and return that."""
    if not is_registered_with_tune(str(own)):
        register_env(str(own), OwnEnvironment(own))
    return str(own)


def is_registered_with_tune(env: str) -> bool:
    """Return whether a name is registered with Ray Tune, which RLlib prefers to gymnasium's ids."""
    return _rllib.is_registered(ENV_CREATOR, env)


def is_registered(env: str) -> bool:
    """Return whether an environment has this name, in gymnasium or in Ray Tune."""
    return env in gym.registry or is_registered_with_tune(env)


#: Makes an environment with a config.
Make = Callable[[Mapping[str, Any]], gym.Env]
#: What makes environments of experiment files, by their whole names: the files have been run, but not imported.
_defined: dict[str, Make] = {}


def _is_known_anywhere(env: str) -> bool:
    """Return whether gymnasium has an id in every process: its own, ALE's, and those of its plugins."""
    plugins = entry_points(group="gymnasium.envs")
    return package_of(env) in {"gymnasium", "ale_py", *(_package(plugin.value) for plugin in plugins)}


def package_of(env: str) -> str | None:
    """Return the package whose code gymnasium runs for an id; None if it has no such id, or Ray's registry has it."""
    if env not in gym.registry or is_registered_with_tune(env):
        return None
    entry_point = gym.registry[env].entry_point
    return _package(entry_point if isinstance(entry_point, str) else str(getattr(entry_point, "__module__", None)))


def _package(entry_point: str) -> str:
    return entry_point.partition(":")[0].partition(".")[0]


class OwnEnvironment:
    """Makes an environment of the user's own. Pickled, it carries the source of its files.

    Args:
        own: its name.
    """

    def __init__(self, own: OwnName):
        self._own = own
        self._sources: Sources | None = None
        self._pickled: bytes | None = None

    def check(self) -> None:
        """Check that it can be imported, without making it.

        Raises:
            ValueError: it cannot.
        """
        self._make()

    def __call__(self, config: Mapping[str, Any]) -> gym.Env:
        """Return a new environment with a copy of this config: a constructor may take entries out of its own."""
        return self._make()(copy.copy(config))

    def _make(self) -> Make:
        if self._sources is not None:
            self._sources.provide()
        if self._pickled is not None:
            return cloudpickle.loads(self._pickled)
        if str(self._own) in _defined:
            return _defined[str(self._own)]
        module, name = [import_own(each) for each in self._own.imports][-1], self._own.name
        if name in gym.registry:
            return lambda config: gym.make(name, **config)
        if is_registered_with_tune(name):
            return _in_context(_rllib.registered(ENV_CREATOR, name))
        return _maker(_environment_in(module, self._own), self._own)

    def __getstate__(self) -> dict[str, Any]:
        if self._sources is not None:
            return vars(self)
        defined = _defined.get(str(self._own))
        pickled = None if defined is None else cloudpickle.dumps(defined)
        return {"_own": self._own, "_sources": _sources_of(self._own), "_pickled": pickled}


def source_digests(env: Any) -> dict[str, str]:
    """Return a digest of each file of an environment of the user's own, by path; none for any other environment."""
    own = parsed(env)
    return {} if own is None else _sources_of(own).digests()


def _sources_of(own: OwnName) -> Sources:
    is_run = str(own) in _defined
    return Sources.of(path for name in own.imports if (path := _file_of(name, is_run=is_run)) is not None)


def is_in_file(env: Any) -> bool:
    """Return whether an environment has a file or module before its name; one of an experiment file does not count."""
    return parsed(env) is not None and env not in _defined


def _file_of(name: str, *, is_run: bool) -> Path | None:
    """Return the file of an import; None for an installed module. Experiment files are run, and not imported."""
    return Path(name) if is_run and is_file_name(name) else own_file(import_own(name))


def defined_in(file: Path, env: Any, imports: Sequence[str] = ()) -> Any:
    """Return an environment of an experiment file as "file.py:Name", so that other commands can make it; others as is.

    Args:
        file: absolute path of the file, which has been run under the name `RUN_NAME`.
        env: as its config names it: perhaps a class of the file or beside it, or a name that it has registered.
        imports: files and modules that were imported before it.
    """
    if isinstance(env, str):
        if ":" in env or not is_registered(env) or _is_known_anywhere(env):
            return env
        own = OwnName((*map(_located, imports), str(file)), env)
        make = _in_context(_rllib.registered(ENV_CREATOR, env)) if is_registered_with_tune(env) else None
    elif _is_environment(env) and "<" not in env.__qualname__:
        if env.__module__ != RUN_NAME:
            beside = own_file(sys.modules.get(env.__module__))
            return env if beside is None else settled(f"{beside}:{env.__qualname__}")
        own = OwnName((str(file),), env.__qualname__)
        make = _maker(env, own)
    else:
        return env
    _defined[str(own)] = partial(_make_spec, gym.spec(env)) if make is None else make
    record(str(own))
    return registered(own)


def _make_spec(spec: Any, config: Mapping[str, Any]) -> gym.Env:
    return gym.make(spec, **config)


def _environment_in(module: ModuleType, own: OwnName) -> Any:
    """Return the class or function of this name in a module.

    Raises:
        ValueError: there is none; the message has the environments in it.
    """
    found: Any = module
    for part in own.name.split("."):
        found = getattr(found, part, None)
    if found is None:
        all_names = [name for name, value in vars(module).items() if _is_environment(value)]
        there = [name for name in all_names if vars(module)[name].__module__.split(".")[0] != "gymnasium"]
        hint = did_you_mean(own.name, there)
        has = f"It has the environments {', '.join(there)}." if there else "It has no environment."
        raise ValueError(f"There is no environment '{own.name}' in '{own.imports[-1]}'.{hint} {has}")
    if _is_environment(found) or (callable(found) and not inspect.isclass(found)):
        return found
    what = f"the class {found.__qualname__}" if inspect.isclass(found) else f"of type {type(found).__name__}"
    old = " The package gym is old: import gymnasium as gym." if is_of_old_gym(found) else ""
    raise ValueError(
        f"'{own.name}' in '{own.imports[-1]}' is {what}, expected a subclass of gymnasium.Env, or a function that "
        f"returns one.{old}"
    )


def _is_environment(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, gym.Env)


def is_of_old_gym(value: Any) -> bool:
    """Return whether a value is a class of the package gym, which gymnasium has replaced."""
    return inspect.isclass(value) and any(base.__module__.split(".")[0] == "gym" for base in value.__mro__)


def _maker(environment: Any, own: OwnName) -> Make:
    """Return what makes it: with the whole config if its first parameter takes that, else with keyword arguments."""
    make = _in_context(environment) if _takes_config(environment) else lambda config: environment(**config)
    if inspect.isclass(environment):
        return make

    def checked(config: Mapping[str, Any]) -> gym.Env:
        made = make(config)
        if not isinstance(made, gym.Env):
            raise ValueError(f"the function '{own.name}' returned {type(made).__name__}, expected a gymnasium.Env")
        return made

    return checked


def _in_context(make: Callable[..., gym.Env]) -> Make:
    """Return a function that passes the config as RLlib does: an `EnvContext`."""
    return lambda config: make(config if isinstance(config, EnvContext) else EnvContext(dict(config), worker_index=0))


def check_takes_config(env: Any) -> None:
    """Check that a class given as an object takes RLlib's config, which RLlib passes as the first argument.

    Args:
        env: environment as in the config; a name means what is registered with Ray. Functions are not checked.

    Raises:
        ValueError: its constructor has no such parameter. The config would be a number or a render mode to it.
    """
    if isinstance(env, str) and is_registered_with_tune(env):
        env = _rllib.registered(ENV_CREATOR, env)
    if not _is_environment(env) or _takes_config(env):
        return
    parameters = list(inspect.signature(env).parameters.values())
    first = parameters[0] if parameters else None
    if first is not None and first.name != "render_mode" and isinstance(first.default, Mapping | None):
        return  # which may be the config, by another name
    name, takes = env.__name__, "no argument" if first is None else f"`{first}` first"
    raise ValueError(
        f"RLlib passes env_config as the first argument to a class, but {name}() takes {takes}. Register it with "
        f"keyword arguments: ray.tune.register_env('{name}', lambda config: {name}(**config)), and .environment("
        f"'{name}'). Or name its file: 'path/to/file.py:{name}'."
    )


def _takes_config(environment: Any) -> bool:
    """Return whether the first argument is RLlib's config: it has such a name, or no default."""
    try:
        first = next(iter(inspect.signature(environment).parameters.values()), None)
    except (TypeError, ValueError):
        return True
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    return first.default is first.empty or first.name in _CONFIG_NAMES
