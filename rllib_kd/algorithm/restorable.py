"""Check that an algorithm has the networks of a checkpoint, before RLlib and PyTorch fail in mid-restore."""

from __future__ import annotations

import json
import pickle
import posixpath
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import pyarrow.fs
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_kd.algorithm.dead_learners import ask_learner
from rllib_kd.checkpoints.manifest import CLASS_FILE, MODULES
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.uris import is_file, is_folder, list_folder
from rllib_kd.observations.spaces import brief, same_space

_MAX_NAMED = 10  # networks, in a message


class NetworkSignature(NamedTuple):
    """The properties that a network must share in a checkpoint and in the algorithm that restores it."""

    shapes: Mapping[str, tuple[int, ...]]  # of its weights, by name
    observation_space: gym.Space | None
    action_space: gym.Space | None
    model_config: Mapping[str, Any]


def check_networks(learner_group: LearnerGroup, path: str, filesystem: pyarrow.fs.FileSystem) -> None:
    """Check that the Learners have the networks of a checkpoint: the same names, spaces and layers.

    Args:
        learner_group: the Learners of the algorithm.
        path: path of the Algorithm's checkpoint. Files that cannot be read are left to RLlib.
        filesystem: the filesystem of `path`.

    Raises:
        CheckpointError: they differ; the message has both, and the remedy.
    """
    folder = posixpath.join(path, MODULES)
    if not is_folder(filesystem, folder):
        return
    saved = sorted(e.base_name for e in list_folder(filesystem, folder) if e.type == pyarrow.fs.FileType.Directory)
    present = ask_learner(learner_group, 0, _networks)
    here = sorted(present)
    if saved != here:
        raise CheckpointError(
            f"The checkpoint '{path}' contains the networks {_named(saved)}, but this run has {_named(here)}. "
            "Restore it with the `students` (or policies) of its own run, or begin a new run without it."
        )
    for name, network in present.items():
        there = _read(posixpath.join(folder, name), filesystem)
        if there is not None and there.shapes != network.shapes:
            raise CheckpointError(
                f"The network '{name}' in the checkpoint '{path}' {_difference(name, there, network)}"
            )


def _networks(learner: Any) -> dict[str, NetworkSignature]:
    """Return the networks of a Learner by name."""
    return {
        name: NetworkSignature(
            {key: tuple(value.shape) for key, value in getattr(module, "state_dict", dict)().items()},
            module.observation_space,
            module.action_space,
            _plain(module.model_config),
        )
        for name, module in learner.module.items()
    }


def _read(folder: str, filesystem: pyarrow.fs.FileSystem) -> NetworkSignature | None:
    """Return a network of a checkpoint; None if its files are missing, or cannot be read."""
    paths = [posixpath.join(folder, name) for name in ("module_state.pkl", CLASS_FILE)]
    if not all(is_file(filesystem, path) for path in paths):
        return None
    try:
        contents = []
        for path in paths:
            with filesystem.open_input_stream(path) as stream:
                contents.append(pickle.load(stream))  # as RLlib does next
        state, (_, arguments) = contents[0], contents[1]["ctor_args_and_kwargs"]
        shapes = {key: tuple(value.shape) for key, value in state.items()}
    except Exception:  # unpickling executes what is in it
        return None
    spaces = arguments.get("observation_space"), arguments.get("action_space")
    return NetworkSignature(shapes, *spaces, _plain(arguments.get("model_config")))


def _difference(name: str, there: NetworkSignature, here: NetworkSignature) -> str:
    """Return how a network in a checkpoint differs from the algorithm's, and what to do, as the end of a sentence."""
    for what, one, other in (
        ("observations", there.observation_space, here.observation_space),
        ("actions", there.action_space, here.action_space),
    ):
        if one is not None and other is not None and not same_space(one, other):
            return (
                f"was trained with {what} {brief(one)}, but this run's has {brief(other)}. Restore it in the "
                "environment, and with the connectors, of its own run."
            )
    keys = [key for key in there.model_config if there.model_config[key] != here.model_config.get(key)]
    if keys:
        one, other = ({key: config.get(key) for key in keys} for config in (there.model_config, here.model_config))
        setting = f"--config '{json.dumps({'model_config': one}, default=str)}' (.rl_module() in Python)"
        how = f"{setting} and without another size" if name == DEFAULT_MODULE_ID else "these layers in its settings"
        return (
            f"has other layers than this run's: model_config {one}, here {other}. Its weights fit no others: "
            f"restore it with {how}, or begin a new run without it."
        )
    key = next(key for key in {**there.shapes, **here.shapes} if there.shapes.get(key) != here.shapes.get(key))
    one, other = ("missing" if s.get(key) is None else list(s[key]) for s in (there.shapes, here.shapes))
    return (
        f"has other weights than this run's: of '{key}', the shape is {one}, here {other}. Restore it with the "
        "settings of its own run, or begin a new run without it."
    )


def _plain(model_config: Any) -> Mapping[str, Any]:
    """Return a model config, which may be one of RLlib's dataclasses, as a mapping."""
    return model_config if isinstance(model_config, Mapping) else getattr(model_config, "__dict__", {})


def _named(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
