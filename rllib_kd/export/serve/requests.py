"""Read the JSON of a request: observations of any composition, and masks of legal actions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

from rllib_kd.observations.masks import features_space
from rllib_kd.observations.spaces import MOST_OF_FLOATS, is_float_image, is_text, parts_of
from rllib_kd.text import one_line

MAX_ROWS = 1_024  # observations of one request
MAX_BODY = 8 * 2**20  # bytes of any request
#: Bytes in a body for each number with its separators, for each part with its key, and for the rest.
_BYTES = {"number": 64, "part": 256, "rest": 2**16}
_KEYS = ("observations", "action_masks")
_MAX_QUOTED = 60  # characters of a request in an error message
_NUMBERS = (TypeError, ValueError, OverflowError, RecursionError)  # what numpy raises for JSON that is no array


class RequestError(ValueError):
    """A request that cannot be answered. The message has what was got and what was expected."""


def parsed(body: bytes) -> Any:
    """Return the JSON of a body.

    Raises:
        RequestError: it is not JSON, also if it has NaN or Infinity, which Python's reader accepts.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RequestError:
        raise
    except RecursionError as error:
        raise RequestError("The body is nested too deeply. Expected a JSON object with 'observations'.") from error
    except ValueError as error:  # of UTF-8, of JSON, of integers with thousands of digits
        raise RequestError(
            f'The body is not JSON: {_quoted(error)}. Expected an object such as {{"observations": [...]}}.'
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"The body has {name}, which is not a JSON number. Expected finite numbers.")


class RequestReader:
    """Reads requests to one policy.

    Args:
        space: space of one observation, without the mask.
        num_actions: number of actions, A.
    """

    def __init__(self, space: gym.Space, num_actions: int):
        self.space, self.num_actions = features_space(space), num_actions

    @property
    def max_body(self) -> int:
        """Return the bytes that the largest request may have: many that wait do not fill the memory."""
        parts = [part for _, part in parts_of(self.space)]
        if any(map(is_text, parts)):
            return MAX_BODY
        count = self.num_actions + sum(math.prod(part.shape or ()) for part in parts)
        row = _BYTES["number"] * count + _BYTES["part"] * len(parts)
        return min(MAX_BODY, _BYTES["rest"] + MAX_ROWS * row)

    def read(self, request: Any) -> tuple[Any, np.ndarray | None, int]:
        """Return observations as a vector env has them, masks `[N, A]` (bool; None: all actions are legal), and N.

        Raises:
            RequestError: the request does not fit the policy.
        """
        if not isinstance(request, dict) or "observations" not in request:
            raise RequestError(f"The body is {_kind(request)}. Expected an object with the key 'observations'.")
        for key in request:
            if key not in _KEYS:
                raise RequestError(f"The body has the unknown key '{_quoted(key)}'. Known are: {', '.join(_KEYS)}.")
        rows = request["observations"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_ROWS:
            got = f"{len(rows)} of them" if isinstance(rows, list) else _kind(rows)
            raise RequestError(f"'observations' must be a list of 1 to {MAX_ROWS:,} observations, got {got}.")
        masks = request.get("action_masks")
        return _read(self.space, rows, ""), None if masks is None else self._masks(masks, len(rows)), len(rows)

    def _masks(self, masks: Any, num_rows: int) -> np.ndarray:
        array = _as_numbers(masks)
        if array is None or array.shape != (num_rows, self.num_actions):
            raise RequestError(
                f"'action_masks' must be a list of {num_rows} lists of {self.num_actions} numbers, one for each action "
                f"of each observation, got {_found(masks, array)}."
            )
        if not np.isin(array, (0, 1)).all():
            raise RequestError("'action_masks' must be of 0 (illegal) and 1 (legal), got other numbers.")
        without = np.flatnonzero(~(array == 1).any(-1))
        if len(without):
            raise RequestError(f"'action_masks'[{without[0]}] has no legal action. Expected a 1 for at least one.")
        return array == 1

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a request."""
        mask = {"type": "array", "items": {"enum": [0, 1]}, "minItems": self.num_actions, "maxItems": self.num_actions}
        return {
            "type": "object",
            "required": ["observations"],
            "additionalProperties": False,
            "properties": {
                "observations": {"type": "array", "items": _schema(self.space), "minItems": 1, "maxItems": MAX_ROWS},
                "action_masks": {"type": "array", "items": mask, "minItems": 1, "maxItems": MAX_ROWS},
            },
        }

    def example(self) -> dict[str, Any]:
        """Return a request, for documentation."""
        return {"observations": [_example(self.space)]}


# --- Observations -----------------------------------------------------------------------------------------------------


def _read(space: gym.Space, rows: Sequence[Any], where: str) -> Any:
    """Return one part of all observations: an array `[N, ...]`, a list of texts, or a dict or tuple of these."""
    if isinstance(space, gym.spaces.Dict):
        names = {str(key): key for key in space.spaces}
        for index, row in enumerate(rows):
            if not isinstance(row, dict) or row.keys() != names.keys():
                got = f"the keys {_quoted(sorted(row))}" if isinstance(row, dict) else _kind(row)
                raise RequestError(f"{_at(index, where)} must be an object with the keys {sorted(names)}, got {got}.")
        return {
            key: _read(space[key], [row[name] for row in rows], f"{where}[{name!r}]") for name, key in names.items()
        }
    if isinstance(space, gym.spaces.Tuple):
        for index, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != len(space.spaces):
                raise RequestError(
                    f"{_at(index, where)} must be a list of {len(space.spaces)} parts, got {_found(row, None)}."
                )
        parts = enumerate(space.spaces)
        return tuple(_read(part, [row[place] for row in rows], f"{where}[{place}]") for place, part in parts)
    if is_text(space):
        for index, row in enumerate(rows):
            if not isinstance(row, str):
                raise RequestError(f"{_at(index, where)} must be a string, got {_kind(row)}.")
        return list(rows)
    return _array(space, rows, where)


def _array(space: gym.Space, rows: Sequence[Any], where: str) -> np.ndarray:
    """Return numbers `[N, ...]` of the space's type."""
    shape = tuple(space.shape or ())
    array = _as_numbers(rows)
    if array is None or array.shape[1:] != shape:
        index, row = next(((i, row) for i, row in enumerate(rows) if _shape(row) != shape), (0, rows[0]))
        expected = f"numbers of the shape {list(shape)}" if shape else "a number"
        raise RequestError(f"{_at(index, where)} must be {expected}, got {_found(row, _as_numbers(row))}.")
    low, high = _whole_range(space)
    if low is None:
        with np.errstate(over="ignore"):
            is_bad = ~np.isfinite(array.astype(np.float32))
        expected = "finite numbers that 32-bit floats can hold"
        if is_float_image(space):
            is_bad |= array > MOST_OF_FLOATS
            expected = "numbers in [0, 1], such as bytes divided by 255"
    else:
        is_bad = (array != np.floor(array)) | (array < low) | (array >= high + 1)  # 2^63 is a float
        expected = f"integers from {int(np.min(low))} to {int(np.max(high))}"
    if is_bad.any():
        place = tuple(np.argwhere(is_bad)[0])
        raise RequestError(f"{_at(place[0], where)} has the number {array[place]:.6g}, expected {expected}.")
    return array.astype(space.dtype)


def _whole_range(space: gym.Space) -> tuple[Any, Any]:
    """Return the smallest and largest integer of each place; None and None for floats."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, gym.spaces.MultiBinary) or space.dtype == np.bool_:
        return 0, 1
    if np.issubdtype(space.dtype, np.integer):
        limits = np.iinfo(space.dtype)
        return limits.min, limits.max
    return None, None


def _as_numbers(value: Any) -> np.ndarray | None:
    """Return JSON as an array, or None: numpy would read texts as numbers, and null as NaN."""
    try:
        array = np.asarray(value)
    except _NUMBERS:
        return None
    return array if array.dtype.kind in "biuf" else None


def _shape(row: Any) -> tuple[int, ...] | None:
    array = _as_numbers(row)
    return None if array is None else array.shape


# --- Words ------------------------------------------------------------------------------------------------------------


def _at(index: int, where: str) -> str:
    return f"'observations'[{index}]{where}"


def _found(value: Any, array: np.ndarray | None) -> str:
    if array is not None and array.size == 0:
        return "a list without numbers"
    if array is not None:
        return f"the shape {list(array.shape)}" if array.ndim else "a number"
    return (
        f"a list of {len(value)} with other things than numbers, integers beyond 64 bits, or lists of unequal lengths"
        if value and isinstance(value, list)
        else _kind(value)
    )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _quoted(text: object) -> str:
    return one_line(text, limit=_MAX_QUOTED)


# --- OpenAPI ----------------------------------------------------------------------------------------------------------


def _schema(space: gym.Space) -> dict[str, Any]:
    if isinstance(space, gym.spaces.Dict):
        parts = {str(key): _schema(part) for key, part in space.spaces.items()}
        return {"type": "object", "properties": parts, "required": sorted(parts), "additionalProperties": False}
    if isinstance(space, gym.spaces.Tuple):
        count = len(space.spaces)
        return {"type": "array", "prefixItems": list(map(_schema, space.spaces)), "minItems": count, "maxItems": count}
    if is_text(space):
        return {"type": "string"}
    low, high = _whole_range(space)
    schema: dict[str, Any] = {"type": "number"}
    if low is not None:
        schema = {"type": "integer", "minimum": int(np.min(low)), "maximum": int(np.max(high))}
    for length in reversed(space.shape or ()):
        schema = {"type": "array", "items": schema, "minItems": length, "maxItems": length}
    return schema


def _example(space: gym.Space) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {str(key): _example(part) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return list(map(_example, space.spaces))
    if is_text(space):
        return "text"
    low, _ = _whole_range(space)
    first = np.maximum(0, low) if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete) else 0
    shape = tuple(space.shape or ())
    return np.broadcast_to(first, shape).tolist() if math.prod(shape) <= 1_000 else []  # an image is no example
