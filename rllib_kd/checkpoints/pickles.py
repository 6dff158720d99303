"""Checkpoints as data: their pickles are read without executing anything that is in them.

A pickle is a program: it names functions and calls them. Here no name is ever looked up. Each becomes an inert `Tag`,
each call of one a record of its arguments, and `build()` makes values from those few records that it knows: numpy
arrays, gymnasium spaces, plain containers. Whatever else is in a file is refused by its name.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import gymnasium as gym
import numpy as np

from rllib_kd.text import one_line

#: Numbers and truth values. Not objects, which are pickles again, nor structured types.
_DTYPE = re.compile(r"[|<>=]?([biu][1248]|f[248]|bool|u?int(8|16|32|64)|float(16|32|64))")
_MAX_DEPTH = 100  # of containers in containers
_MAX_SHARED = 64  # bytes of an array that another one may have, too
_MAX_MESSAGE = 1_000  # characters


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that holds more than data.

    Its message is one line of a bounded length, without control characters: checkpoints put their words into it.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message, limit=_MAX_MESSAGE))


@dataclass(frozen=True)
class Name:
    """A class or function that a checkpoint names; nothing but its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Tag:
    """What stands for a global while a pickle is read: its subclasses for names, its instances for calls of them."""

    of: Name
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Tag:  # noqa: D102
        self = object.__new__(cls)
        self.args, self.kwargs, self.state = args, kwargs, None
        self.items = []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """As pickle fills a list."""
        self.items.append(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Tag:
        """What a call returned is called: a record too."""
        return type(self)(*args, **kwargs)


class _Reader(pickle._Unpickler):
    """The one in Python: a few bytes make the one in C take gigabytes for its memo."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[Any], None]  # to the stack
    stack: list[Any]

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.names: set[Name] = set()
        self._depths: dict[int, int] = {}  # of tuples on the stack, and in the memo, by their ids

    def find_class(self, module: str, name: str) -> Any:
        of = Name(_today(module), name)
        self.names.add(of)
        return type("Tag", (Tag,), {"of": of})

    def get_extension(self, code: int) -> Any:
        """Not from the cache of classes, which this process may have filled."""
        raise pickle.UnpicklingError(f"extension code {code}")

    def load_bytearray(self) -> None:
        """As pickle's own, which takes as much memory as the pickle claims to need."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _note_depth(self) -> None:
        value = self.stack[-1]
        depth = 1 + max((self._depths[id(part)] for part in value if isinstance(part, tuple) and part), default=0)
        if depth > _MAX_DEPTH:
            raise RecursionError
        self._depths[id(value)] = depth


class _ReaderOfTensors(_Reader):
    def persistent_load(self, pid: Any) -> Any:
        """The numbers of a tensor, which are in another file."""
        return pid


def _shallow(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Loads a tuple, if it is not deep: Python dies when it hashes one in one in one in one."""

    def load_shallow(reader: Any) -> None:
        load(reader)
        reader._note_depth()

    return load_shallow


_Reader.dispatch[pickle.BYTEARRAY8[0]] = _Reader.load_bytearray
for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Reader.dispatch[_opcode[0]] = _shallow(_Reader.dispatch[_opcode[0]])


def read_pickle(file: IO[bytes], where: str) -> Any:
    """What a pickle holds, with tags for everything that it names.

    Args:
        file: open for reading.
        where: its path, for messages.

    Raises:
        CheckpointError: it is no whole pickle.
    """
    return _load(_Reader(file), where)


def _load(reader: _Reader, where: str) -> Any:
    try:
        return reader.load()
    except RecursionError as error:
        raise CheckpointError(f"'{where}' nests its parts too deeply to be a checkpoint.") from error
    except Exception as error:  # a broken pickle fails in as many ways as there are opcodes
        raise CheckpointError(
            f"'{where}' cannot be read: it is no whole pickle ({type(error).__name__}: {error}). Is the file complete?"
        ) from error


def names_in(content: bytes, where: str) -> set[Name]:
    """Every class and function that a pickle of PyTorch names, in tensors too.

    Args:
        content: of the pickle.
        where: its path, for messages.

    Raises:
        CheckpointError: it is no whole pickle.
    """
    reader = _ReaderOfTensors(io.BytesIO(content))
    _load(reader, where)
    return reader.names


def build(value: Any, where: str) -> Any:
    """The data that was read: numbers, texts, containers, numpy arrays, gymnasium spaces and bare `Name`s.

    Args:
        value: of `read_pickle()`, or a part of it.
        where: its file, for messages.

    Raises:
        CheckpointError: there is something else in it; the message names it.
    """
    return _Builder(where).build(value)


def build_entries(entries: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """As `build()`, for each entry by itself: one that is more than data is the error that says so.

    Args:
        entries: of `read_pickle()`.
        where: their file, for messages.
    """
    builder = _Builder(where)  # one for all: they may share parts
    built = {}
    for key, value in entries.items():
        try:
            built[str(builder.build(key))] = builder.build(value)
        except CheckpointError as error:
            built[key if isinstance(key, str) else "a key that is no text"] = error
            builder.begin_anew()
    return built


class _Builder:
    def __init__(self, where: str):
        self._where = where
        # Pickles share parts: without a memo, twenty lists of two references each would make a million. And bytes:
        # a thousand arrays of the same million would take a thousand.
        self._built: dict[int, Any] = {}
        self._used: set[int] = set()
        self._depth = 0

    def begin_anew(self) -> None:
        """Leave the nested parts in which something was refused."""
        self._depth = 0

    def build(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
            return value
        if id(value) in self._built:
            return self._built[id(value)]
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise CheckpointError(f"'{self._where}' nests its parts too deeply to be a checkpoint.")
        built = self._built[id(value)] = self._build(value)
        self._depth -= 1
        return built

    def _build(self, value: Any) -> Any:
        if isinstance(value, list | tuple | set | frozenset):
            build = self._key if isinstance(value, set | frozenset) else self.build
            return type(value)([build(part) for part in value])
        if isinstance(value, dict):
            return self.build_items(value.items())
        if isinstance(value, type) and issubclass(value, Tag):
            return value.of
        if isinstance(value, Tag) and value.of in _BUILDERS:
            try:
                return _BUILDERS[value.of](value, self)
            except CheckpointError:
                raise
            except Exception as error:
                raise CheckpointError(
                    f"'{self._where}' has a broken {value.of} ({type(error).__name__}: {error}). Is the file complete?"
                ) from error
        what = value.of if isinstance(value, Tag) else type(value).__name__
        raise CheckpointError(
            f"'{self._where}' was refused: it calls '{what}', which is no data. If you trust its origin, say so with "
            "trust_checkpoint=True (--trust-checkpoint), which executes what it holds."
        )

    def build_items(self, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """A dict of built keys and values."""
        return {self._key(key): self.build(value) for key, value in items}

    def build_array(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """An array of numbers that no other array has."""
        dtype, shape = self.build(dtype), self.build(shape)
        if not isinstance(data, bytes | bytearray) or len(data) != dtype.itemsize * math.prod(shape):
            raise ValueError(f"an array of the shape {shape} has too few numbers, or too many")
        if len(data) > _MAX_SHARED and id(data) in self._used:
            raise ValueError(f"several arrays share the same {len(data)} bytes")
        self._used.add(id(data))
        return np.frombuffer(bytes(data), dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="))

    def _key(self, key: Any) -> Any:
        key = self.build(key)
        if key is not None and not isinstance(key, bool | int | float | str):
            raise CheckpointError(f"'{self._where}' has a {type(key).__name__} as a key, or in a set.")
        return key


# --- What is known ----------------------------------------------------------------------------------------------------


def _dtype(tag: Tag, builder: _Builder) -> np.dtype:
    text = tag.args[0]
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError(f"arrays of numbers were expected, got the type {text!r}")
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
    return gym.spaces.Box(state["low"], state["high"], dtype=state["dtype"])


def _discrete(tag: Tag, builder: _Builder) -> gym.spaces.Discrete:
    state = builder.build(tag.state)
    return gym.spaces.Discrete(int(state["n"]), start=int(state.get("start", 0)))


def _multi_discrete(tag: Tag, builder: _Builder) -> gym.spaces.MultiDiscrete:
    state = builder.build(tag.state)
    return gym.spaces.MultiDiscrete(state["nvec"], dtype=state["dtype"])


def _multi_binary(tag: Tag, builder: _Builder) -> gym.spaces.MultiBinary:
    return gym.spaces.MultiBinary(builder.build(tag.state)["n"])


def _dict_space(tag: Tag, builder: _Builder) -> gym.spaces.Dict:
    return gym.spaces.Dict(builder.build(tag.state)["spaces"])


def _tuple_space(tag: Tag, builder: _Builder) -> gym.spaces.Tuple:
    return gym.spaces.Tuple(builder.build(tag.state)["spaces"])


def _ordered_dict(tag: Tag, builder: _Builder) -> dict[Any, Any]:
    if tag.state is not None:
        raise ValueError("it has attributes")
    return builder.build_items([*(tag.args[0] if tag.args else ()), *tag.items])


def _fields(tag: Tag, builder: _Builder) -> dict[str, Any]:
    return builder.build(tag.state)


def _left_out(tag: Tag, builder: _Builder) -> None:
    """Random states of spaces and devices of another machine: data, too."""
    builder.build([tag.args, tag.kwargs, tag.state])


_BUILDERS: dict[Name, Callable[[Tag, _Builder], Any]] = {
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("gymnasium.spaces.box", "Box"): _box,
    Name("gymnasium.spaces.dict", "Dict"): _dict_space,
    Name("gymnasium.spaces.discrete", "Discrete"): _discrete,
    Name("gymnasium.spaces.multi_binary", "MultiBinary"): _multi_binary,
    Name("gymnasium.spaces.multi_discrete", "MultiDiscrete"): _multi_discrete,
    Name("gymnasium.spaces.tuple", "Tuple"): _tuple_space,
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


def _today(module: str) -> str:
    """Modules of numpy before 2.0, and of gym, under their names of today."""
    return re.sub(r"^gym\.spaces\b", "gymnasium.spaces", re.sub(r"^numpy\.core\b", "numpy._core", module))
