"""RLlib's checkpoints of the new API stack as data: the network, its connectors and its environment."""

from __future__ import annotations

import io
import math
import pickle
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.fs
import torch
from ray import cloudpickle
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.spaces.space_utils import unsquash_action

from rllib_kd import limits
from rllib_kd.checkpoints.connectors import (
    ConnectorSpec,
    ToEnv,
    check_connectors_of_agents,
    connector_stages,
    is_default,
    is_flattening,
    is_rllibs,
    pipeline_of,
    shown_space,
    stage_name,
    to_env,
)
from rllib_kd.checkpoints.known_classes import CATALOG_CLASSES, MODULE_CLASSES, known_class
from rllib_kd.checkpoints.manifest import CLASS_FILE, MODULES
from rllib_kd.checkpoints.pickles import CheckpointError, Name, ReadBudget, Tag, as_checkpoint_error, read_pickle
from rllib_kd.checkpoints.uris import first_file, is_folder, list_folder, open_uri, read_file, uri_of
from rllib_kd.checkpoints.values import build, build_entries
from rllib_kd.networks.layers import CostMeter
from rllib_kd.numeric import is_integer
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.observations.spaces import check_size
from rllib_kd.text import one_line

_CONNECTORS = "env_runner/{}_connector"
_LARGEST_SETTING = 2**63  # larger numbers and infinite ones are left out
_MODULE_STATE_FILES = ("module_state.pkl", "module_state.pt")  # today's, and Ray 2.40's; both are pickles
#: Encoder and head of today's BC, and of Ray 2.40's.
_FORMER_PARTS = {"_encoder.": "encoder.", "_pi_head.": "pi."}
#: Activations, which RLlib looks up in torch.nn by these names.
_ACTIVATIONS = {"elu", "gelu", "leaky_relu", "linear", "none", "relu", "sigmoid", "silu", "swish", "tanh"}
_MAX_NAME = 200  # characters, of an environment


@dataclass(frozen=True)
class RLlibCheckpoint:
    """The parts of one policy in a checkpoint.

    Args:
        uri: as it was given, for messages.
        filesystem: filesystem of the paths.
        module_path: folder of the RLModule.
        algorithm_path: folder of the Algorithm; None if only the RLModule was saved.
        trusted: whether code in its pickles may be run.
        agents_path: folder of the Algorithm of several agents, whose connectors are not read; None for other policies.
    """

    uri: str
    filesystem: pyarrow.fs.FileSystem
    module_path: str
    algorithm_path: str | None
    trusted: bool
    agents_path: str | None = None
    _budget: ReadBudget = field(  # of all that is read of it as data
        default_factory=lambda: ReadBudget(num_bytes=limits.MAX_FILE + limits.MAX_SMALL_FILE), compare=False, repr=False
    )

    def load_module(self) -> RLModule:
        """Return the network, with its weights.

        Raises:
            CheckpointError: it cannot be read, or its class cannot be built without running its code.
        """
        if self.trusted:
            return self._load_trusted(RLModule, self.module_path)
        class_file = posixpath.join(self.module_path, CLASS_FILE)
        content = self._read(class_file)
        try:
            name, kwargs = content["class"], content["ctor_args_and_kwargs"][1]
            observation_space, action_space = kwargs["observation_space"], kwargs["action_space"]
            model_config, catalog = kwargs["model_config"], kwargs.get("catalog_class")
        except (KeyError, IndexError, TypeError) as error:
            raise CheckpointError(f"'{class_file}' does not describe an RLModule: it lacks {error}.") from error
        _check_space(observation_space, class_file)
        _check_space(action_space, class_file)
        module_class = known_class(name, MODULE_CLASSES, "RLModule", class_file)
        constructor_kwargs: dict[str, Any] = {
            "observation_space": observation_space,
            "action_space": action_space,
            "inference_only": True,
            "model_config": _checked_model_config(model_config, observation_space, class_file),
            "catalog_class": None if catalog is None else known_class(catalog, CATALOG_CLASSES, "catalog", class_file),
        }
        state_file = first_file(self.filesystem, self.module_path, _MODULE_STATE_FILES)
        assert state_file is not None  # or the folder would not have been found
        state = build(self._read_tags(state_file, limits.MAX_FILE), state_file)
        try:
            with torch.device("meta"):  # shapes without memory: the model config may name any size
                expected = module_class(**constructor_kwargs).state_dict()
        except Exception as error:
            raise CheckpointError(
                f"No {module_class.__name__} can be built from '{class_file}' ({type(error).__name__}: {error})."
            ) from error
        state = _under_current_names(state, expected)
        _check_weights(state, expected, state_file)
        module = module_class(**constructor_kwargs)
        try:
            module.load_state_dict({key: torch.as_tensor(state[key]) for key in expected})
        except ValueError as error:  # a tree whose arrays are no tree
            raise CheckpointError(f"'{state_file}' was refused: {error}") from error
        return module

    def load_observation_pipeline(self, module: RLModule | None = None) -> ObservationPipeline | None:
        """Return the pipeline from the environment's observations to the network; None if it is not recorded.

        Args:
            module: the network, for connectors that need it.

        Raises:
            CheckpointError: it cannot be read, or has connectors that cannot be built without running their code; or
                the policy is one of several agents, whose connectors change its observations.
        """
        if agents_folder := self._connectors("env_to_module", self.agents_path):
            check_connectors_of_agents([name for name, _ in self._read_names(agents_folder)[1]], agents_folder)
        folder = self._connectors("env_to_module", self.algorithm_path)
        if folder is None:
            return None
        if self.trusted:
            return pipeline_of(self._load_trusted(ConnectorPipelineV2, folder), module)
        observation_space, specs = self._read_connectors(folder)
        try:
            stages = connector_stages(specs, observation_space)
        except Exception as error:  # a broken state may raise anything
            raise CheckpointError(f"'{folder}' has a broken connector ({type(error).__name__}: {error}).") from error
        if stages is None:
            custom = [str(name) for name, _, _ in specs if not (stage_name(name) or is_rllibs(name))]
            if not custom:
                own = [name.name for name, _, _ in specs if not is_default(name)]
                raise CheckpointError(
                    f"'{folder}' was refused: its connectors {', '.join(own)} cannot be read as data in this "
                    f"combination, or for observations in {one_line(observation_space, limit=100)}. Let a wrapper of "
                    "the environment do their work; or, if you trust the checkpoint, let RLlib run them: "
                    "trust_checkpoint=True (--trust-checkpoint)."
                )
            raise CheckpointError(
                f"'{folder}' was refused: its connectors {', '.join(custom)} are custom classes; loading them runs "
                "their code. Pass trust_checkpoint=True (--trust-checkpoint) if you trust the checkpoint."
            )
        return ObservationPipeline(shown_space((name for name, _, _ in specs), observation_space), stages)

    def to_env(self) -> ToEnv:
        """Return what the module-to-env connectors do with actions: without any, they are scaled.

        Raises:
            CheckpointError: there are other module-to-env connectors than RLlib's default ones.
        """
        folder = self._connectors("module_to_env", self.algorithm_path)
        if folder is None:
            return unsquash_action
        return to_env(self._read_connectors(folder)[1])

    def algorithm(self) -> str | None:
        """Return the name of the Algorithm's class; None if only the RLModule was saved."""
        algorithm = self._algorithm.get("class")
        return _name_of(algorithm).name.split(".")[-1] if algorithm is not None else None

    def environment(self) -> tuple[Any, dict[Any, Any]]:
        """Return name and config of the environment in which it was trained; None if it has no name.

        A class is returned as a `Name`, and an entry of the config that is more than data as a `CheckpointError`;
        unless the checkpoint is trusted, and its code can be run.
        """
        if self.trusted and (executed := self._executed_environment()) is not None:
            return executed
        config = self._read_config()
        env, env_config = config.get("env"), config.get("env_config") or {}
        if isinstance(env, type) and issubclass(env, Tag):
            env = env.of
        if not isinstance(env, str | Name) or not str(env).isprintable() or len(str(env)) > _MAX_NAME:
            return None, {}
        if isinstance(env_config, dict):
            return env, build_entries(env_config, self.uri)
        whole = build_entries({"all of it": env_config}, self.uri)  # another kind of dict, or an object
        return env, whole["all of it"] if isinstance(whole["all of it"], dict) else whole

    def _executed_environment(self) -> tuple[Any, dict[Any, Any]] | None:
        """Return environment and config as their original objects; None if they cannot be loaded."""
        if self.algorithm_path is None:
            return None
        try:
            file = posixpath.join(self.algorithm_path, CLASS_FILE)
            config = cloudpickle.loads(read_file(self.filesystem, file))["ctor_args_and_kwargs"][0][0]
            look_up = config.get if isinstance(config, Mapping) else partial(getattr, config)
            return look_up("env"), dict(look_up("env_config") or {})
        except Exception:  # whatever unpickling runs into, such as a class that is not here: then it is read as data
            return None

    def settings(self) -> dict[str, Any]:
        """Return the entries of the Algorithm's config that are texts or numbers; {} without a config."""
        config = self._read_config()
        return {
            name: value
            for name, value in config.items()
            if isinstance(name, str)
            and (isinstance(value, str) or (isinstance(value, int | float) and abs(value) < _LARGEST_SETTING))
        }

    def is_of_family(self, name: str) -> bool:
        """Return whether a student of this name is one of a family, whose students have the same observations."""
        students = self._read_config().get("students")
        return isinstance(students, dict) and name in students

    def _read_config(self) -> dict[Any, Any]:
        """Return the Algorithm's config, unbuilt; empty if there is none, or it cannot be read."""
        try:
            config = self._algorithm["ctor_args_and_kwargs"][0][0]
        except (KeyError, IndexError, TypeError, CheckpointError):
            return {}
        config = config.state if isinstance(config, Tag) else config
        return config if isinstance(config, dict) else {}

    @cached_property
    def _algorithm(self) -> dict[str, Any]:
        """Return the file of the Algorithm's class and config, unbuilt; empty if only the RLModule was saved."""
        if self.algorithm_path is None:
            return {}
        content = self._read_tags(posixpath.join(self.algorithm_path, CLASS_FILE))
        return content if isinstance(content, dict) else {}

    def _connectors(self, kind: str, algorithm_path: str | None) -> str | None:
        if algorithm_path is None:
            return None
        folder = posixpath.join(algorithm_path, _CONNECTORS.format(kind))
        return folder if is_folder(self.filesystem, folder) else None

    def _read_names(self, folder: str) -> tuple[Any, list[tuple[Name, Any]]]:
        """Return a pipeline's arguments, and the names of its connectors with their keyword arguments, all unbuilt."""
        content = self._read_tags(posixpath.join(folder, CLASS_FILE))
        with as_checkpoint_error(lambda error: f"'{folder}' does not describe connectors: {error!r}."):
            args, pipeline_kwargs = content["ctor_args_and_kwargs"]
            if len(pipeline_kwargs["connectors"]) > limits.MAX_CONNECTORS:
                raise ValueError(f"{len(pipeline_kwargs['connectors'])} connectors")
            return args, [(_name_of(tag), kwargs) for tag, _, kwargs in pipeline_kwargs["connectors"]]

    def _read_connectors(self, folder: str) -> tuple[gym.Space, list[ConnectorSpec]]:
        """Return the space of the pipeline's inputs, and its connectors."""
        class_file = posixpath.join(folder, CLASS_FILE)
        args, connectors = self._read_names(folder)
        with as_checkpoint_error(lambda error: f"'{class_file}' does not describe connectors: {error!r}."):
            own_kwargs = [
                {key: kwargs[key] for key in kwargs if stage_name(name) and not key.startswith("input_")}
                for name, kwargs in connectors
            ]
            observation_space, own_kwargs = build([args[0], own_kwargs], class_file)
            _check_space(observation_space, class_file)
            names = [name for name, _ in connectors]
            filters = [name for name in names if stage_name(name) == "MeanStdFilter"]
            if len(filters) > 1:  # whatever modules they name: their states would lie in the same file
                raise ValueError("several observation filters, of which RLlib saves the state of one")
            if sum(is_flattening(name) for name in names) > 1:  # each takes memory of its own
                raise ValueError("several connectors that flatten observations")
            states = {name: self._read(posixpath.join(folder, name.name, "state.pkl")) for name in filters}
        specs = [(name, kwargs, states.get(name, {})) for name, kwargs in zip(names, own_kwargs, strict=True)]
        return observation_space, specs

    def _read(self, path: str) -> Any:
        return build(self._read_tags(path), path)

    def _read_tags(self, path: str, max_bytes: int = limits.MAX_SMALL_FILE) -> Any:
        def check_head(head: bytes) -> None:
            if not head.startswith(pickle.PROTO):
                raise CheckpointError(f"'{path}' cannot be read: it is not a whole pickle. Is the file complete?")

        content = read_file(self.filesystem, path, max_bytes=max_bytes, check_head=check_head)
        self._budget.take(content, path)
        return read_pickle(io.BytesIO(content), path, self._budget)

    def _load_trusted(self, kind: Any, path: str) -> Any:
        try:
            return kind.from_checkpoint(path, filesystem=self.filesystem)
        except Exception as error:
            raise CheckpointError(
                f"'{path}' cannot be read ({type(error).__name__}: {error}). Is it complete, and are the classes that "
                "it names importable here?"
            ) from error


def open_checkpoint(
    uri: str,
    *,
    at: tuple[pyarrow.fs.FileSystem, str] | None = None,
    trust_checkpoint: bool = False,
) -> RLlibCheckpoint:
    """Find a policy in any kind of RLlib checkpoint.

    Args:
        uri: an absolute path, or a URI that pyarrow supports (`file://`, `s3://`, `gs://`), of an Algorithm's
            checkpoint, or of an rl_module folder in it or by itself.
        at: filesystem and path of `uri`, if they are known.
        trust_checkpoint: whether code in its pickles may be run.

    Raises:
        CheckpointError: there is nothing at `uri`, or not an RLlib checkpoint.
    """
    filesystem, path = at or open_uri(uri)
    module_path = _find_module(filesystem, path, uri)
    name = posixpath.basename(module_path)
    for folder in (MODULES, posixpath.join(MODULES, name)):
        if module_path.endswith(f"/{folder}"):
            algorithm_path = module_path[: -len(folder) - 1]
            whole = RLlibCheckpoint(uri, filesystem, module_path, algorithm_path, trust_checkpoint)
            # Policies of several agents have multi-agent connectors.
            if folder == MODULES or name == DEFAULT_MODULE_ID or whole.is_of_family(name):
                return whole
            return RLlibCheckpoint(uri, filesystem, module_path, None, trust_checkpoint, algorithm_path)
    return RLlibCheckpoint(uri, filesystem, module_path, None, trust_checkpoint)


def _checked_model_config(model_config: Any, observation_space: gym.Space, where: str) -> dict[str, Any]:
    """Return the model config without initialisers, which RLlib looks up by name and loaded weights do not need."""
    if not isinstance(model_config, dict):
        raise CheckpointError(f"'{where}' has a {type(model_config).__name__} as model config, expected a dict.")
    for key, value in model_config.items():
        if not isinstance(key, str):
            raise CheckpointError(f"'{where}' has the {type(key).__name__} {key} in its model config.")
        if "activation" in key and not (value is None or str(value)[:_MAX_WORD].lower() in _ACTIVATIONS):
            raise CheckpointError(
                f"'{where}' was refused: its {key} is '{value}', expected one of {', '.join(sorted(_ACTIVATIONS))}."
            )
        if isinstance(value, list | tuple | dict | str) and len(value) > limits.MAX_LAYERS:
            raise CheckpointError(f"'{where}' was refused: its {key} has {len(value)} parts.")
    _check_convolutions(model_config.get("conv_filters"), observation_space, where)
    return {key: value for key, value in model_config.items() if "initializer" not in key}


_MAX_WORD = 100  # characters
_MAX_NAMED = 10  # RLModules, in a message


def _check_convolutions(conv_filters: Any, observation_space: gym.Space, where: str) -> None:
    """Check the costs of convolutions: unlike other layers, they can have more outputs than weights."""
    shape: tuple[int, ...] = getattr(observation_space, "shape", None) or ()
    height, width, *more = (*shape, 1, 1, 1)
    channels, cost = more[0], CostMeter()
    try:
        for filters, kernel, stride, *_ in conv_filters or ():
            (high, wide), (down, along) = (_pair(sizes) for sizes in (kernel, stride))
            if not all(is_integer(n, 1) for n in (filters, high, wide, down, along)):
                raise ValueError("sizes that are not positive integers")
            padded = (height + high, width + wide)  # at most: RLlib pads an image by a kernel's size
            cost.add("what a convolution takes", channels * padded[0] * padded[1])
            height, width = math.ceil(height / down), math.ceil(width / along)
            what = f"a convolution to {filters} channels of [{height}, {width}] pixels"
            cost.add_convolution(what, pixels=height * width, filters=filters, patch=channels * high * wide)
            channels = filters
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{where}' was refused: its convolutions are invalid ({error}).") from error


def _pair(sizes: Any) -> tuple[Any, Any]:
    down, along = sizes if isinstance(sizes, list | tuple) else (sizes, sizes)
    return down, along


def _check_space(space: Any, where: str) -> None:
    try:
        if isinstance(space, gym.Space):
            check_size(space)
    except ValueError as error:
        raise CheckpointError(f"'{where}' was refused: it has {error}.") from error


def _under_current_names(state: Any, expected: Mapping[str, torch.Tensor]) -> Any:
    """Return the arrays of a module with those that it lacks from their names in Ray 2.40."""
    if not isinstance(state, dict):
        return state
    former = {
        key: begin + key.removeprefix(current)
        for current, begin in _FORMER_PARTS.items()
        for key in expected
        if key.startswith(current)
    }
    return state | {key: state[name] for key, name in former.items() if key not in state and name in state}


def _check_weights(state: Any, expected: Mapping[str, torch.Tensor], where: str) -> None:
    if not isinstance(state, dict):
        raise CheckpointError(f"'{where}' contains a {type(state).__name__}, expected arrays by name.")
    for key, tensor in expected.items():
        value = state.get(key)
        if not isinstance(value, np.ndarray) or value.shape != tuple(tensor.shape):
            got = f"of the shape {list(value.shape)}" if isinstance(value, np.ndarray) else "missing"
            raise CheckpointError(
                f"'{where}' does not fit its model config: the weight '{key}' is {got}, expected {list(tensor.shape)}."
            )


def _name_of(tag: Any) -> Name:
    if isinstance(tag, type) and issubclass(tag, Tag):
        return tag.of
    is_named = isinstance(tag, Tag) and len(tag.args) > 1 and isinstance(tag.args[1], str)
    return Name("pickled by value", tag.args[1] if is_named else "a class")


def _find_module(filesystem: pyarrow.fs.FileSystem, path: str, uri: str) -> str:
    """Return the folder of the single RLModule in any kind of checkpoint."""
    for parts in ((), (DEFAULT_MODULE_ID,), (MODULES, DEFAULT_MODULE_ID)):
        folder = posixpath.join(path, *parts)
        if _holds_module(filesystem, folder):
            others = _modules_in(filesystem, folder)
            if not others:
                return folder
            if DEFAULT_MODULE_ID not in others:
                raise _several(uri, path, folder, others)
    folder = posixpath.join(path, MODULES)
    if others := _modules_in(filesystem, folder):
        raise _several(uri, path, folder, others)
    if is_folder(filesystem, posixpath.join(path, "policies")):
        raise CheckpointError(
            f"'{uri}' is a checkpoint of RLlib's old API stack. Only those of the new API stack can be "
            "read. Train the teacher with config.api_stack(enable_rl_module_and_learner=True, "
            "enable_env_runner_and_connector_v2=True)."
        )
    seed = posixpath.join(path, "seed_0")
    if is_folder(filesystem, seed):
        raise CheckpointError(
            f"'{uri}' is the checkpoint of a setting in a sweep, with a student for each seed. Name one of them, such "
            f"as '{uri_of(uri, path, seed)}'."
        )
    raise CheckpointError(
        f"'{uri}' is not an RLlib checkpoint: found no RLModule '{DEFAULT_MODULE_ID}' ({CLASS_FILE} and "
        f"{_MODULE_STATE_FILES[0]}) in it, nor below '{MODULES}'. Expected a folder that "
        "`algo.save_to_path()` or `module.save_to_path()` wrote, or that of a Tune experiment; for other libraries, "
        "name the file itself."
    )


def _several(uri: str, path: str, folder: str, names: Sequence[str]) -> CheckpointError:
    """Return the error for a checkpoint of several policies, such as a family's, with the path of each."""
    paths = [f"'{uri_of(uri, path, posixpath.join(folder, name))}'" for name in names[:_MAX_NAMED]]
    more = ", ..." if len(names) > _MAX_NAMED else ""
    return CheckpointError(
        f"'{uri}' is not an RLlib checkpoint of one policy: it contains the RLModules "
        f"{list(names[:_MAX_NAMED])}{more}, none of which is '{DEFAULT_MODULE_ID}'. Name the folder of one of them: "
        f"{', '.join(paths)}{more}."
    )


def _holds_module(filesystem: pyarrow.fs.FileSystem, folder: str) -> bool:
    return all(first_file(filesystem, folder, names) for names in ((CLASS_FILE,), _MODULE_STATE_FILES))


def _modules_in(filesystem: pyarrow.fs.FileSystem, folder: str) -> list[str]:
    """Return the parts of a MultiRLModule, which has both files, too."""
    entries = list_folder(filesystem, folder, missing_ok=True)
    folders = [entry for entry in entries if entry.type == pyarrow.fs.FileType.Directory]
    return sorted(entry.base_name for entry in folders if _holds_module(filesystem, entry.path))
