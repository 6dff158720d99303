"""Code shared by formats of files: functions with an unknown number of actions, and descriptions beside files."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.pickles import CheckpointError, as_checkpoint_error
from rllib_kd.numeric import is_integer
from rllib_kd.observations.pipeline import Images, ObservationPipeline
from rllib_kd.observations.spaces import discrete_space
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.function import QNetwork, as_numbers
from rllib_kd.text import first_line, one_line

#: Note in files of `export()` whose observations are images of bytes, which the network itself divides.
TAKES_BYTES = "takes_bytes"
#: Note in files of `export()` about how the vectors that they take are made, as `described_parts()` describes it.
PARTS = "observation_parts"
#: Note in files of `export()` about discrete numbers, of which the network itself makes one-hot vectors: how many cases
#: each has, and with which number they begin.
DISCRETE = "discrete_numbers"
#: All notes of functions.
NOTES = (TAKES_BYTES, PARTS, DISCRETE)


def teacher_of(
    function: Any,
    shape: tuple[int, ...],
    uri: str,
    num_parameters: int | None = None,
    *,
    notes: Mapping[str, str],
    takes_bytes: bool = False,
) -> Teacher:
    """Create a teacher from a function, which is called once to find out the number of actions.

    Args:
        function: from observations `[B, ...]` to Q-values `[B, A]`.
        shape: shape of one observation.
        uri: source of the function, for messages.
        num_parameters: number of the function's parameters; None if unknown.
        notes: texts of those of `NOTES` that its file has.
        takes_bytes: whether the function itself takes bytes, of images as they are, with channels where it has them.

    Raises:
        CheckpointError: the function fails, or does not return Q-values; or a note cannot be read.
    """
    with as_checkpoint_error(
        lambda error: (
            f"'{uri}' fails on observations of the shape {list(shape)}: {first_line(error)}. Expected a "
            "function of batches of any size, of 32-bit floats."
        )
    ):
        if len(shape) > limits.MAX_RANK or math.prod(shape) > limits.MAX_INPUTS:
            raise ValueError("these are too many numbers")
        q = as_numbers(function(torch.zeros(2, *shape)))
        function(torch.zeros(3, *shape))  # an example of two rows may have fixed their number
    if q.ndim != 2 or len(q) != 2 or q.shape[1] == 0:
        raise CheckpointError(
            f"'{uri}' returns the shape {list(q.shape)} for two observations, expected Q-values [2, actions]."
        )
    if q.is_complex():
        raise CheckpointError(f"'{uri}' returns complex numbers ({q.dtype}), expected real Q-values.")
    observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    network = QNetwork(function, observation_space, gym.spaces.Discrete(int(q.shape[1])), num_parameters)
    with as_checkpoint_error(lambda error: f"'{uri}' has a note that cannot be read: {reason(error)}"):
        pipeline = _noted_pipeline(notes, observation_space, takes_bytes=takes_bytes)
    return Teacher(network, pipeline=pipeline, source=uri)


def _noted_pipeline(
    notes: Mapping[str, str], space: gym.spaces.Box, *, takes_bytes: bool
) -> ObservationPipeline | None:
    """Return the pipeline to the inputs of a function, which are in this space; None if they are what is shown."""
    if takes_bytes or TAKES_BYTES in notes:
        stages = (Images(space.shape, scaled=False),) if len(space.shape) == 3 else ()
        return ObservationPipeline(gym.spaces.Box(0, 255, space.shape, np.uint8), stages)
    if PARTS in notes:
        return ObservationPipeline(space, parts=checked_parts(parse_json(notes[PARTS].encode())))
    if DISCRETE in notes:
        return ObservationPipeline(_noted_numbers(parse_json(notes[DISCRETE].encode()), space.shape))
    return None


def _noted_numbers(note: Any, shape: tuple[int, ...]) -> gym.Space:
    """Return the space of discrete numbers of a shape, as a file describes them."""
    found = []
    for name, low in (("lengths", 1), ("starts", -(2**31))):
        numbers = note.get(name) if isinstance(note, dict) else None
        if (
            not isinstance(numbers, list)
            or len(numbers) != math.prod(shape)
            or not all(is_integer(number, low, 2**31) for number in numbers)
        ):
            raise ValueError(f"its {DISCRETE} are {str(note)[:100]}, expected a length and a start for each number")
        found.append(np.array(numbers))
    return discrete_space(shape, *found)


def pipeline_of_bytes(teacher: Teacher, divisor: Any) -> ObservationPipeline:
    """Return the pipeline from images of bytes to the inputs of a function, which takes floats `[B, ...]`.

    Args:
        teacher: teacher of the function, as `teacher_of()` returns it.
        divisor: of the bytes, as the file's description has it: 255, for inputs in [0, 1], which may also come as
            floats; or 1.

    Raises:
        CheckpointError: it is another divisor, or the function takes bytes or no images.
    """
    shape: tuple[int, ...] = teacher.input_space.shape or ()
    source = teacher.source
    if not is_integer(divisor) or divisor not in (1, 255):
        raise CheckpointError(
            f"The description of '{source}' has the divisor {one_line(repr(divisor), limit=100)}, expected 255 for a "
            "network that was trained on pixels divided by 255, or 1 for one that takes bytes as they are."
        )
    if len(shape) != 3:
        raise CheckpointError(
            f"The description of '{source}' has a divisor, which is for images, but its inputs have the shape "
            f"{list(shape)}. Leave the divisor out."
        )
    if teacher.pipeline is not None:
        raise CheckpointError(
            f"The description of '{source}' has a divisor, but the model takes bytes: it divides them itself. Leave "
            "the divisor out."
        )
    return ObservationPipeline(gym.spaces.Box(0, 255, shape, np.uint8), (Images(shape, scaled=divisor == 255),))


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of one observation, as a file gives it.

    Raises:
        ValueError: it is not a list of lengths, or exceeds the limits of an observation.
    """
    if not isinstance(shape, list | tuple):
        raise ValueError(f"its observation_shape is a {type(shape).__name__}, expected a list of positive integers")
    if len(shape) > limits.MAX_RANK:
        raise ValueError(f"its observation_shape has {len(shape)} dimensions, expected at most {limits.MAX_RANK}")
    if not all(is_integer(n, 1) for n in shape):
        raise ValueError(
            f"its observation_shape is {str(shape)[:100]}, expected a list of positive integers, such as [4]"
        )
    if math.prod(shape) > limits.MAX_INPUTS:
        raise ValueError(f"its observation_shape {str(list(shape))[:100]} has more than {limits.MAX_INPUTS} numbers")
    return tuple(int(n) for n in shape)


def checked_parts(parts: Any) -> list[dict[str, Any]]:
    """Return the parts of a vector, as a file describes them.

    Raises:
        ValueError: they are not a list of objects, each with a path of keys and indices.
    """
    if isinstance(parts, list) and all(isinstance(part, dict) and isinstance(part.get("path"), list) for part in parts):
        keys = [key for part in parts for key in part["path"]]
        if all(isinstance(key, str | int) for key in keys):
            return parts
    raise ValueError(f"its {PARTS} are {str(parts)[:100]}, expected a list of objects with a path of keys and indices")


def description_name(uri: str) -> str:
    """Return the name of the JSON file that describes a file of weights, beside it."""
    name = uri.rpartition("/")[2]
    return f"{name.rpartition('.')[0] or name}.json"


def read_description(content: bytes) -> dict[str, Any]:
    """Return the JSON object beside a file of weights; raise a ValueError if it is not one."""
    description = parse_json(content)
    if not isinstance(description, dict):
        raise ValueError("the JSON beside it is not an object")
    return description


def described_network(
    given: Mapping[str, Any] | None, description: bytes | None, uri: str, *, keys: Collection[str]
) -> dict[str, Any]:
    """Return the user's description of a network: from a config, or else from the JSON beside the file.

    Args:
        given: the description in the config; None if there is none.
        description: content of the JSON file; None if there is none.
        uri: path of the network's file, for messages.
        keys: keys that are read. Others in the JSON are not looked at: it may be for something else.

    Raises:
        CheckpointError: the JSON cannot be read, or the config has other keys.
    """
    if given is None:
        try:
            written = {} if description is None else read_description(description)
        except ValueError as error:
            raise CheckpointError(f"'{description_name(uri)}' beside '{uri}' cannot be read: {error}.") from error
        return {key: value for key, value in written.items() if key in keys}
    if unknown := sorted(set(map(str, given)) - set(keys)):
        expected = f"one of {', '.join(sorted(keys))}" if keys else "none: the file itself describes its network"
        raise CheckpointError(f"The network of '{uri}' has the key '{unknown[0][:100]}', expected {expected}.")
    return dict(given)


def reason(error: Exception) -> str:
    """Return the words of an error; of a KeyError the sentence that something is missing."""
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)
