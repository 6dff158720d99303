"""The progress of a run on disk, so that it can be continued after a kill at any moment.

`FOLDER/progress` has `state.json`, a file with the weights of all copies at each round of validation, and during
training a checkpoint of it. Each is written beside its place and renamed. `state.json` comes last: it names the others,
which never change.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rllib_kd.environments.own import source_digests
from rllib_kd.experiment.resuming import differences
from rllib_kd.paths import replace_file
from rllib_kd.shrink.outcome import CERTIFICATE
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.names import absolute_teachers
from rllib_kd.text import one_line, plain

_FOLDER, _STATE = "progress", "state.json"
#: Name of the entry of the state that shows whether somebody has changed the others.
_DIGEST = "sha256"
_SOURCE = "source of "  # before the path of a file of the environment, as the name of an option
_PACKAGES = ("rllib-kd", "ray", "torch", "gymnasium", "numpy")


class Progress:
    """The state of a run on disk.

    Args:
        folder: folder of the run's files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._own = folder / _FOLDER

    @property
    def exists(self) -> bool:
        """Return whether there is a run to continue."""
        return (self._own / _STATE).is_file()

    def read(self) -> dict[str, Any]:
        """Return the state that was written last.

        Raises:
            ValueError: there is none, or it cannot be read.
        """
        if not self.exists:
            has_ended = (self.folder / CERTIFICATE).is_file()
            reason = f"its run has ended, see {CERTIFICATE}" if has_ended else "no run was begun there"
            raise ValueError(
                f"There is no run to resume in '{self.folder}': {reason}. Give the folder of an interrupted run: --out "
                "(out=...)."
            )
        try:
            state = json.loads((self._own / _STATE).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            reason = one_line(str(error))
            raise ValueError(
                f"The state in '{self._own / _STATE}' cannot be read: {reason}. Start a new run in another folder."
            ) from error
        if not isinstance(state, dict) or state.pop(_DIGEST, None) != _digest(state):
            raise ValueError(
                f"'{self._own / _STATE}' is not as this program wrote it: it was changed, or is damaged. A certificate "
                "would not hold. Start a new run in another folder."
            )
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Write the state, as JSON; what it no longer names is deleted."""
        self._own.mkdir(parents=True, exist_ok=True)
        replace_file(self._own / _STATE, json.dumps({**state, _DIGEST: _digest(state)}).encode())
        is_trained, training = state.get("is_trained"), state.get("training")
        for folder in self._own.glob("training-*"):
            if is_trained or training is None or folder != self.checkpoint(training["env_steps"]):
                shutil.rmtree(folder, ignore_errors=True)

    def checkpoint(self, env_steps: int) -> Path:
        """Return the folder of the checkpoint of training after so many env steps."""
        return self._own / f"training-{env_steps}"

    def saved_checkpoint(self, env_steps: int) -> Path:
        """Return `checkpoint()`, from which the run continues.

        Raises:
            ValueError: it is missing.
        """
        folder = self.checkpoint(env_steps)
        if not folder.is_dir():
            raise _unusable(folder, "it is missing")
        return folder

    def save_copies(self, env_steps: int, modules: Mapping[str, Any]) -> None:
        """Write the weights of all copies after so many env steps."""
        self._own.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}/{key}": value.detach().cpu().contiguous().clone()
            for name, module in modules.items()
            for key, value in module.state_dict().items()
        }
        replace_file(self._copies(env_steps), save(tensors))

    def load_copies(self, env_steps: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Return the modules of all copies after so many env steps.

        Args:
            env_steps: as in `save_copies()`.
            like: modules of the same shapes, by name; they do not change.

        Raises:
            ValueError: their file is missing or damaged.
        """
        weights: dict[str, dict[str, torch.Tensor]] = {name: {} for name in like}
        modules = {name: copy.deepcopy(module) for name, module in like.items()}
        try:
            for key, value in load_file(self._copies(env_steps)).items():
                name, _, parameter = key.partition("/")
                weights[name][parameter] = value
            for name, module in modules.items():
                module.load_state_dict(weights[name])
        except FileNotFoundError:
            raise _unusable(self._copies(env_steps), "it is missing") from None
        except (KeyError, RuntimeError) as error:
            raise _unusable(self._copies(env_steps), "it has weights of other students") from error
        except (OSError, SafetensorError) as error:
            raise _unusable(self._copies(env_steps), one_line(str(error))) from error
        return modules

    def clear(self) -> None:
        """Delete everything, when the run has ended: the state first, by which it could be continued."""
        (self._own / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self._own, ignore_errors=True)

    def _copies(self, env_steps: int) -> Path:
        return self._own / f"copies-{env_steps}.safetensors"


def _digest(state: Mapping[str, Any]) -> str:
    """Return a digest of a state, which is the same after it was written and read."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _unusable(path: Path, reason: str) -> ValueError:
    """Return the error for a file without which the run cannot continue."""
    return ValueError(f"The run cannot continue without '{path}': {reason}. Start a new run in another folder.")


# --- What a resumed run must have -------------------------------------------------------------------------------------


def options_of(asked: Any) -> dict[str, Any]:
    """Return the options of a `Shrink` as JSON, without its folder; with the versions of packages and environment."""
    values = {field.name: getattr(asked, field.name) for field in fields(asked) if field.name != "out"}
    values["teacher"] = _named(asked.teacher)
    sources = {f"{_SOURCE}{path}": digest for path, digest in source_digests(asked.env).items()}
    own_versions = {f"version of {name}": value for name, value in versions().items()}
    return {**{name: plain(value) for name, value in values.items()}, **sources, **own_versions}


def versions() -> dict[str, str]:
    """Return the versions of this package, of those that it needs, and of Python."""
    return {**{name: version(name) for name in _PACKAGES}, "python": platform.python_version()}


def check_unchanged(folder: Path, began_with: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run is continued with the options, teacher and versions that it began with.

    Raises:
        ValueError: one differs; the message has both values of each.
    """
    # A process may have loaded further modules, which stand in the same folder and are not the environment's.
    shared = {name: value for name, value in now.items() if name in began_with or not name.startswith(_SOURCE)}
    if words := differences(began_with, shared):
        raise ValueError(
            f"The run in '{folder}' can only be resumed as it began, or its certificate would not hold: {words}. Leave "
            "these options out, or start a new run in another folder."
        )


def _named(teacher: Any) -> Any:
    """Return a teacher's path, valid in any working folder; of an object, its class."""
    try:
        return absolute_teachers(teacher) if not isinstance(teacher, Teacher) else teacher.source
    except (ValueError, TypeError):
        return type(teacher).__qualname__


def resuming_command(folder: str | os.PathLike[str]) -> list[str]:
    """Return the words of the command that continues a run, from any folder."""
    return ["rllib", "shrink", "--resume", "--out", os.path.abspath(folder)]
