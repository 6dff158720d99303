"""RLlib's connectors, from running pipelines and from checkpoints, as stages of an observation pipeline."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.numpy import SMALL_NUMBER
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import CheckpointError, Name
from rllib_kd.numeric import is_integer
from rllib_kd.observations.connectors import MaskApart, OneVector
from rllib_kd.observations.images import ImagesToFloats
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.pipeline import (
    Flatten,
    Images,
    Normalize,
    ObservationPipeline,
    RLlibConnectors,
    StackFrames,
    Stage,
)
from rllib_kd.observations.spaces import image_places, input_space, is_byte_image, is_flattened
from rllib_kd.text import one_line

#: Connectors that RLlib adds by default: every vectorised player has their function.
_DEFAULT_CONNECTORS = {
    "AddObservationsFromEpisodesToBatch",
    "AddStatesFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "BatchIndividualItems",
    "GetActions",
    "ListifyDataForVectorEnv",
    "NormalizeAndClipActions",
    "NumpyToTensor",
    "RemoveSingleTsTimeRankFromBatch",
    "TensorToNumpy",
    "UnBatchToIndividualItems",
}

_SUM_OF_SQUARES = ("sum_sq_diff_array", "std_array")
#: Class, constructor's keyword arguments, state.
ConnectorSpec = tuple[Name, Mapping[str, Any], Mapping[Any, Any]]
#: A function from a module's actions `[N, ...]`, and RLlib's base struct of their space, to actions for an environment:
#: scaled from [−1, 1] to the bounds of a Box (RLlib's `normalize_actions`), clipped (`clip_actions`), or as they are.
ToEnv = Callable[[Any, Any], Any]


def pipeline_of(connectors: ConnectorPipelineV2, module: RLModule | None = None) -> ObservationPipeline:
    """Convert a running env-to-module pipeline, with its current statistics frozen.

    Args:
        connectors: RLlib's pipeline.
        module: the network, for connectors that need it.
    """
    own = [connector for connector in connectors.connectors if not is_default_connector(connector)]
    space = shown_space(map(_name, own), connectors.input_observation_space)
    stages = stages_of(connectors)
    if stages is None:
        own = own[1:] if own and isinstance(own[0], MaskApart) else own
        alone = type(connectors)(space, connectors.input_action_space, connectors=own)
        stages = (RLlibConnectors(alone, module),)
    return ObservationPipeline(space, stages)


def stages_of(connectors: ConnectorPipelineV2) -> tuple[Stage, ...] | None:
    """Return a running env-to-module pipeline as stages; None if it has connectors without such a stage."""
    own = [connector for connector in connectors.connectors if not is_default_connector(connector)]
    return connector_stages([_spec(connector) for connector in own], connectors.input_observation_space)


def is_default_connector(connector: Any) -> bool:
    """Return whether RLlib adds the connector by default, so that every player has its function."""
    return is_default(_name(connector))


def to_env_of(connectors: ConnectorPipelineV2) -> ToEnv:
    """Return what a running module-to-env pipeline does with actions.

    Raises:
        CheckpointError: it has other connectors than RLlib's default ones.
    """
    return to_env([_spec(connector) for connector in connectors.connectors])


_STAGES = ("FlattenObservations", "MeanStdFilter", "FrameStacking")
_IMAGES = Name(ImagesToFloats.__module__, ImagesToFloats.__name__)

#: Its name now, and that of a former version.
_ONE_VECTOR = (
    Name(OneVector.__module__, OneVector.__name__),
    Name("rllib_kd.observations.discrete", "OneHotObservations"),
)

_MASK_APART = Name(MaskApart.__module__, MaskApart.__name__)
_FLATTENING = ("FlattenObservations", *(name.name for name in _ONE_VECTOR))


def _name(connector: Any) -> Name:
    return Name(type(connector).__module__, type(connector).__name__)


def _spec(connector: Any) -> ConnectorSpec:
    return _name(connector), connector.get_ctor_args_and_kwargs()[1], connector.get_state()


def to_env(specs: Sequence[ConnectorSpec]) -> ToEnv:
    """Return what these module-to-env connectors do with actions.

    Raises:
        CheckpointError: there are others than RLlib's default ones.
    """
    found: ToEnv = _unchanged
    for name, kwargs, _ in specs:
        if not is_default(name):
            raise CheckpointError(
                f"The module-to-env connector {name} is not supported here. Only RLlib's default ones are."
            )
        if name.name == "NormalizeAndClipActions":
            normalizes, clips = kwargs.get("normalize_actions", True), kwargs.get("clip_actions", False)
            found = unsquash_action if normalizes else clip_action if clips else _unchanged
    return found


def _unchanged(actions: Any, spaces: Any) -> Any:
    return actions


def is_default(name: Name) -> bool:
    """Return whether RLlib adds a connector of this class by default."""
    return is_rllibs(name) and name.name in _DEFAULT_CONNECTORS


def stage_name(name: Name) -> str | None:
    """Return which known connector it is; default ones count as known."""
    if name in (_IMAGES, _MASK_APART, *_ONE_VECTOR):
        return name.name
    return name.name if is_rllibs(name) and name.name in (*_STAGES, *_DEFAULT_CONNECTORS) else None


def is_rllibs(name: Name) -> bool:
    """Return whether a connector is one of RLlib's own, known or not."""
    return name.module.startswith("ray.rllib.connectors.")


def check_connectors_of_agents(names: Iterable[Name], folder: str) -> None:
    """Check that the connectors of several agents leave their observations as any player gives them to the networks.

    Args:
        names: names of the connectors.
        folder: their folder, for messages.

    Raises:
        CheckpointError: one of them is a filter, or a custom class.
    """
    changing = [
        str(name) for name in names if stage_name(name) == "MeanStdFilter" or not (stage_name(name) or is_rllibs(name))
    ]
    if changing:
        raise CheckpointError(
            f"'{folder}' was refused: its connectors {one_line(', '.join(changing), limit=300)} change what "
            "several agents observe, and are not read. The policy would get observations that differ from those of its "
            "training. Let a wrapper of the environment normalise, in training and play; or copy the policy's folder "
            "out of the checkpoint, and load the copy by load_teacher(path, pipeline=ObservationPipeline(space, "
            "(Normalize(mean, std, clip),)))."
        )


def is_flattening(name: Name) -> bool:
    """Return whether a known connector makes one vector of observations."""
    return stage_name(name) in _FLATTENING


def connector_stages(specs: Sequence[ConnectorSpec], space: gym.Space) -> tuple[Stage, ...] | None:
    """Convert connectors to stages; None if one of them is unknown, or has a function that these stages lack."""
    stages: list[Stage] = []
    for name, kwargs, state in specs:
        if is_default(name):
            continue
        if name == _MASK_APART and not kwargs.get("multi_agent"):
            space = features_space(space)
            continue
        stage = _stage(stage_name(name), kwargs, state, space)
        # These write to the batch: a connector of RLlib's after them would be without effect.
        has_written = any(isinstance(earlier, StackFrames | Images) for earlier in stages)
        if stage is None or (has_written and name not in (_IMAGES, *_ONE_VECTOR)):
            return None
        stages.append(stage)
        space = _space_after(stage, space)
    return tuple(stages)


def _space_after(stage: Stage, space: gym.Space) -> gym.Space:
    """Return the space of the outputs of a connector, as the next one takes it."""
    if isinstance(stage, Flatten):
        return gym.spaces.Box(-np.inf, np.inf, (stage.size,), np.float32)
    if isinstance(stage, StackFrames) and isinstance(space, gym.spaces.Box):
        return gym.spaces.Box(0, 1, (*space.shape[:-1], stage.num_frames), space.dtype)
    return input_space(space) if isinstance(stage, Images) else space


def shown_space(names: Iterable[Name], space: gym.Space) -> gym.Space:
    """Return the space of what a pipeline's stages see: without a mask, if the first connector takes it out."""
    return features_space(space) if next(iter(names), None) == _MASK_APART else space


def _stage(kind: str | None, kwargs: Mapping[str, Any], state: Mapping[Any, Any], space: gym.Space) -> Stage | None:
    if kwargs.get("multi_agent") or kwargs.get("as_learner_connector"):
        return None
    if kind == "FlattenObservations" or (kind in _FLATTENING and is_flattened(space)):
        is_ours = kind != "FlattenObservations" or not image_places(space)  # or RLlib's makes the same vectors
        return Flatten(space, tuple(kwargs.get("keys_to_remove") or ()), scales_images=is_ours)
    if kind == "FrameStacking":
        return _stack_frames(kwargs["num_frames"], space)
    if kind == _IMAGES.name and is_byte_image(space):
        return Images(input_space(space).shape)
    if kind == "MeanStdFilter" and set(state) == {None} and len(state[None]["running_stats"]) == 1:
        return _normalize(state[None], space)
    return None


def _stack_frames(num_frames: Any, space: gym.Space) -> StackFrames:
    count = int(num_frames)
    if not 0 < count <= limits.MAX_FRAMES or count * math.prod(space.shape or ()) > limits.MAX_INPUTS:
        raise ValueError(f"a stack of {count} frames; expected at most {limits.MAX_FRAMES} that fit into memory")
    return StackFrames(count)


def _normalize(state: Mapping[str, Any], space: gym.Space) -> Normalize | None:
    statistics = state["running_stats"][0]
    if statistics is None or space.shape is None:
        return None
    is_old = "std_array" in statistics  # up to Ray 2.44 at least; the name was wrong, it is the sum of squares, too
    mean, sum_of_squares = (
        _unpack(statistics[key]).astype(np.float64) for key in ("mean_array", _SUM_OF_SQUARES[is_old])
    )
    if not mean.shape == sum_of_squares.shape == space.shape:
        raise ValueError(f"a MeanStdFilter of the shape {mean.shape} is for observations of the shape {space.shape}")
    count = statistics["num_pushes"]
    if not is_integer(count, 0):
        raise ValueError(f"a MeanStdFilter has num_pushes={one_line(repr(count), limit=100)}, expected an integer ≥ 0")
    without_spread = np.square(mean) if is_old else np.zeros_like(mean)
    variance = (sum_of_squares / (count - 1) if count > 1 else without_spread).astype(np.float32)
    std = np.sqrt(np.maximum(0, variance)) + SMALL_NUMBER
    clip = state["clip_by_value"]
    return Normalize(
        mean=mean if state["de_mean_to_zero"] else None,
        std=std if state["de_std_to_one"] else None,
        clip=float(clip) if clip else None,
        dtype=space.dtype,
    )


def _unpack(text: str) -> np.ndarray:
    """Read RLlib's text form of an array. RLlib's own reader would unpickle objects in it."""
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text), limits.MAX_UNPACKED)
    if unpacker.unconsumed_tail:
        raise ValueError(f"the statistics of a MeanStdFilter unpack to more than {limits.MAX_UNPACKED} bytes")
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    reads_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reads_header(file)
    # numpy would first allocate the memory that the header claims.
    if dtype.kind not in "biuf" or dtype.itemsize * math.prod(shape) != len(data) - file.tell():
        raise ValueError(f"the statistics of a MeanStdFilter have the shape {shape} and the type {dtype}")
    return np.load(io.BytesIO(data), allow_pickle=False)
