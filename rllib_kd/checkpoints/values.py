"""Build values from the contents of a pickle: only from the few records of calls that are supported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import SURE_HASH, CheckpointError, Name, Tag, without_looking_for_cycles
from rllib_kd.networks.mixed_space import MixedBox

#: Kinds of numbers and truth values. Neither objects, which are pickles again, nor structured types.
_DTYPE = re.compile(r"[|<>=]?([biu][1248]|f[248]|bool|u?int(8|16|32|64)|float(16|32|64))")
_MAX_SHARED = 64  # bytes of an array that another one may have, too; of texts, those that count as one part
_MAX_AXES = 32  # of an array
_TRUST = "Pass trust_checkpoint=True (--trust-checkpoint) if you trust the checkpoint; loading it then runs its code."


def build(value: Any, where: str, remedy: str = _TRUST) -> Any:
    """Build data: numbers, texts, containers, numpy arrays, gymnasium spaces and bare `Name`s.

    Args:
        value: result of `read_pickle()`, or a part of it.
        where: its file, for messages.
        remedy: what to do about code in it, for messages.

    Raises:
        CheckpointError: it contains something else; the message names it.
    """
    with without_looking_for_cycles():
        return _Builder(where, remedy).build(value)


def build_entries(entries: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Build each entry separately: one that is more than data becomes a `CheckpointError`, which is not raised.

    Args:
        entries: entries from `read_pickle()`.
        where: their file, for messages.
    """
    builder = _Builder(where)  # one for all: they may share parts
    built = {}
    with without_looking_for_cycles():
        for key, value in entries.items():
            try:
                built[str(builder.build(key))] = builder.build(value)
            except CheckpointError as error:
                built[key if isinstance(key, str) else "a key that is not text"] = error
                builder.begin_anew()
    return built


class _Builder:
    def __init__(self, where: str, remedy: str = _TRUST):
        self._where, self._remedy = where, remedy
        # Pickles share parts: without a memo, twenty lists of two references each would become a million. The same with
        # bytes: a thousand arrays of the same million bytes would take a billion.
        self._built: dict[int, tuple[Any, int]] = {}  # with the number of its parts, shared ones wherever they stand
        self._used: set[int] = set()  # by arrays
        self._texts: set[int] = set()  # long ones
        self._depth = 0
        self._num_parts = 0
        self._num_spaces = self._num_bounds = 0

    def begin_anew(self) -> None:
        """Reset the depth of nesting after a part was refused."""
        self._depth = 0

    def build(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
            self._count(self._size_again(value) if isinstance(value, str | bytes | bytearray) else 1)
            return value
        if id(value) in self._built:
            built, num_parts = self._built[id(value)]
            self._count(num_parts + (built.nbytes // _MAX_SHARED if isinstance(built, np.ndarray) else 0))
            return built
        before = self._num_parts
        self._depth += 1
        self._count(1)
        if self._depth > limits.MAX_DEPTH:
            raise CheckpointError(f"'{self._where}' was refused: its parts are nested too deeply for a checkpoint.")
        built = self._build(value)
        self._built[id(value)] = built, self._num_parts - before
        self._depth -= 1
        return built

    def _size_again(self, text: str | bytes | bytearray) -> int:
        """Return the size of a text: one part at first, and its length from the second time on."""
        if len(text) <= _MAX_SHARED:
            return 1
        is_first = id(text) not in self._texts
        self._texts.add(id(text))
        return 1 if is_first else 1 + len(text) // _MAX_SHARED

    def _count(self, num_parts: int) -> None:
        """Count parts as often as they occur in the result: iterating over all of them must end."""
        self._num_parts += num_parts
        if self._num_parts > limits.MAX_PARTS:
            raise CheckpointError(
                f"'{self._where}' was refused: including shared ones, it has more than {limits.MAX_PARTS} parts. "
                "No checkpoint needs that."
            )

    def _build(self, value: Any) -> Any:
        if isinstance(value, list | tuple | set | frozenset):
            build = self._key if isinstance(value, set | frozenset) else self.build
            return type(value)([build(part) for part in value])
        if isinstance(value, dict):
            return self.build_items(value.items())
        if isinstance(value, type) and issubclass(value, Tag):
            return value.of
        if isinstance(value, Tag) and (builder := _builder_of(value)) is not None:
            try:
                self._num_spaces += value.of.module.startswith("gymnasium.") or builder is _text
                if self._num_spaces > limits.MAX_SPACES:
                    raise ValueError(f"more than {limits.MAX_SPACES} spaces")
                return builder(value, self)
            except CheckpointError:
                raise
            except Exception as error:
                raise CheckpointError(
                    f"'{self._where}' has a broken {value.of} ({type(error).__name__}: {error}). Is the file complete?"
                ) from error
        what = value.of if isinstance(value, Tag) else type(value).__name__
        raise CheckpointError(
            f"'{self._where}' was refused: it calls '{what}', which is code, not data. {self._remedy}"
        )

    def build_items(self, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return a dict of built keys and values."""
        return {self._key(key): self.build(value) for key, value in items}

    def build_array(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """Return an array of numbers that is not shared with any other array."""
        dtype, shape = self.build(dtype), self.build(shape)
        if len(shape) > _MAX_AXES:
            raise ValueError(f"an array of {len(shape)} axes")
        if not isinstance(data, bytes | bytearray) or len(data) != dtype.itemsize * math.prod(shape):
            raise ValueError(f"an array of the shape {shape} has too few numbers, or too many")
        if len(data) > _MAX_SHARED and id(data) in self._used:
            raise ValueError(f"several arrays share the same {len(data)} bytes")
        self._used.add(id(data))
        return np.frombuffer(bytes(data), dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="))

    def take_bounds(self, *shape: int) -> None:
        """Count the bounds of a space before it copies them, and creates more arrays of their size."""
        self._num_bounds += math.prod(shape)
        if self._num_bounds > 2 * limits.MAX_INPUTS:
            raise ValueError(f"spaces of more than {limits.MAX_INPUTS} numbers")

    def _key(self, key: Any) -> Any:
        key = self.build(key)
        if isinstance(key, int) and abs(key) >= SURE_HASH:
            raise CheckpointError(f"'{self._where}' was refused: it has an integer of more than 60 bits as a key.")
        if key is not None and not isinstance(key, bool | int | float | str):
            raise CheckpointError(f"'{self._where}' has a {type(key).__name__} as a key, or in a set.")
        return key


# --- Supported calls --------------------------------------------------------------------------------------------------


def _dtype(tag: Tag, builder: _Builder) -> np.dtype:
    text = tag.args[0]
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        got = repr(text[:_MAX_SHARED]) if isinstance(text, str) else type(text).__name__
        raise ValueError(f"arrays of numbers were expected, got the type {got}")
    state = builder.build(tag.state)
    is_big_endian = state is not None and state[1] == ">"
    return np.dtype(text).newbyteorder(">" if is_big_endian else "<")


def _from_buffer(tag: Tag, builder: _Builder) -> np.ndarray:
    return builder.build_array(*tag.args)


def _reconstruct(tag: Tag, builder: _Builder) -> np.ndarray:
    if (kind := builder.build(tag.args[0])) != Name("numpy", "ndarray"):
        raise ValueError(f"a numpy.ndarray was expected, got a {kind}")
    _, shape, dtype, is_fortran, data = tag.state
    return builder.build_array(data, dtype, shape, "F" if is_fortran else "C")


def _scalar(tag: Tag, builder: _Builder) -> Any:
    dtype, data = tag.args
    return builder.build_array(data, dtype, (), "C")[()]


def _box(tag: Tag, builder: _Builder) -> gym.spaces.Box:
    state = builder.build(tag.state)
    builder.take_bounds(*np.broadcast_shapes(np.shape(state["low"]), np.shape(state["high"])))
    if not isinstance(state["dtype"], np.dtype):
        raise ValueError("its dtype is not one of numpy's")
    return gym.spaces.Box(state["low"], state["high"], dtype=state["dtype"])


def _mixed_box(tag: Tag, builder: _Builder) -> MixedBox:
    """Return a space whose images lie in its vector, one after the other."""
    state = builder.build(tag.state)
    (size,), end = np.shape(state["low"]), 0
    builder.take_bounds(size)
    images = [tuple(map(int, image)) for image in state["images"]]
    for start, height, width, channels in images:
        if start < end or min(height, width, channels) < 1:
            raise ValueError(f"images at {images[:10]}")
        end = start + height * width * channels
    if end > size:
        raise ValueError(f"images of {end} numbers in vectors of {size}")
    return MixedBox(size, images)


def _discrete(tag: Tag, builder: _Builder) -> gym.spaces.Discrete:
    state = builder.build(tag.state)
    return gym.spaces.Discrete(int(state["n"]), start=int(state.get("start", 0)))


def _multi_discrete(tag: Tag, builder: _Builder) -> gym.spaces.MultiDiscrete:
    state = builder.build(tag.state)
    builder.take_bounds(*np.shape(state["nvec"]))
    start = state.get("start")
    if start is not None and (np.shape(start) != np.shape(state["nvec"]) or np.asarray(start).dtype.kind not in "iu"):
        raise ValueError(f"a MultiDiscrete that starts at {str(start)[:100]}")
    return gym.spaces.MultiDiscrete(state["nvec"], dtype=state["dtype"], start=start)


def _multi_binary(tag: Tag, builder: _Builder) -> gym.spaces.MultiBinary:
    return gym.spaces.MultiBinary(builder.build(tag.state)["n"])


def _dict_space(tag: Tag, builder: _Builder) -> gym.spaces.Dict:
    return gym.spaces.Dict(list(builder.build(tag.state)["spaces"].items()))  # in their own order


def _tuple_space(tag: Tag, builder: _Builder) -> gym.spaces.Tuple:
    return gym.spaces.Tuple(builder.build(tag.state)["spaces"])


def _text(tag: Tag, builder: _Builder) -> gym.spaces.Text:
    """Return a Text, also for spaces of other packages whose values are texts: nothing else of them is read."""
    if tag.of.module != _TEXT.module:
        return gym.spaces.Text(1)
    shortest, longest, charset = (builder.build(tag.state[key]) for key in ("min_length", "max_length", "_char_str"))
    if not isinstance(shortest, int) or not isinstance(longest, int) or not isinstance(charset, str):
        raise ValueError(f"a Text of {str([shortest, longest])[:100]} characters among {str(charset)[:100]}")
    builder.take_bounds(len(charset), _NUMBERS_OF_A_CHARACTER)
    return gym.spaces.Text(longest, min_length=shortest, charset=charset)


def _has_texts(tag: Tag) -> bool:
    """Return whether a call creates a space of texts, by its dtype, which is that of `str`."""
    if not isinstance(tag.state, dict) or tag.state.get("_shape", ()) is not None:
        return False
    dtype = tag.state.get("dtype")
    return isinstance(dtype, Tag) and dtype.of == Name("numpy", "dtype") and dtype.args[:1] == ("U0",)


def _ordered_dict(tag: Tag, builder: _Builder) -> dict[Any, Any]:
    if tag.state is not None:
        raise ValueError("it has attributes")
    return builder.build_items([*(tag.args[0] if tag.args else ()), *tag.items])


def _fields(tag: Tag, builder: _Builder) -> dict[str, Any]:
    return builder.build(tag.state)


def _left_out(tag: Tag, builder: _Builder) -> None:
    """Return None for random states of spaces and for devices of another machine, which are data, too."""
    for part in (tag.args, tag.kwargs, tag.state):
        builder.build(part)


_NUMBERS_OF_A_CHARACTER = 16  # that take as much memory as one of a Text's characters
_TEXT = Name("gymnasium.spaces.text", "Text")

_BUILDERS: dict[Name, Callable[[Tag, _Builder], Any]] = {
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("gymnasium.spaces.box", "Box"): _box,
    Name("gymnasium.spaces.dict", "Dict"): _dict_space,
    Name("gymnasium.spaces.discrete", "Discrete"): _discrete,
    Name("gymnasium.spaces.multi_binary", "MultiBinary"): _multi_binary,
    Name("gymnasium.spaces.multi_discrete", "MultiDiscrete"): _multi_discrete,
    _TEXT: _text,
    Name("gymnasium.spaces.tuple", "Tuple"): _tuple_space,
    Name(MixedBox.__module__, MixedBox.__name__): _mixed_box,
    Name("numpy", "dtype"): _dtype,
    Name("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    Name("numpy._core.multiarray", "scalar"): _scalar,
    Name("numpy._core.numeric", "_frombuffer"): _from_buffer,
    Name("numpy.random._pickle", "__bit_generator_ctor"): _left_out,
    Name("numpy.random._pickle", "__generator_ctor"): _left_out,
    Name("numpy.random._pickle", "__randomstate_ctor"): _left_out,
    Name("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): _left_out,
    Name("ray.rllib.core.rl_module.default_model_config", "DefaultModelConfig"): _fields,
    Name("torch", "device"): _left_out,
}


def _builder_of(tag: Tag) -> Callable[[Tag, _Builder], Any] | None:
    """Return what builds a call; None for one that is not supported."""
    builder = _BUILDERS.get(tag.of)
    return _text if builder is None and _has_texts(tag) else builder
