"""Checkpoints as data: their pickles are read without running any code in them.

A pickle is a program: it names functions and calls them. Here no name is ever looked up. Each becomes an inert `Tag`,
and each call of one a record of its arguments; `values.py` builds values from the few records that it supports: numpy
arrays, gymnasium spaces, plain containers. Everything else in a file is refused by its name.
"""

from __future__ import annotations

import gc
import io
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, ClassVar

from rllib_kd import limits
from rllib_kd.text import one_line

_MAX_MESSAGE = 1_000  # characters
_MAX_PLACE = 2**32  # in the memo
SURE_HASH = 2**61 - 1  # below it integers have hashes of their own; at its multiples all have the same


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that contains more than data.

    Its message is one line of limited length, without control characters: it may quote the checkpoint.
    """

    def __init__(self, message: str):
        if len(message) > 4 * _MAX_MESSAGE:  # before each word of it takes memory of its own
            message = f"{message[: 2 * _MAX_MESSAGE]} ... {message[-2 * _MAX_MESSAGE :]}"
        super().__init__(one_line(message, limit=_MAX_MESSAGE))


@contextmanager
def as_checkpoint_error(message: Callable[[Exception], str]) -> Iterator[None]:
    """Raise whatever is raised within as a CheckpointError with this message of it, unless it already is one."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(message(error)) from error


@dataclass(frozen=True)
class Name:
    """The name of a class or function in a checkpoint."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Tag:
    """A placeholder for a global in a pickle: its subclasses represent names, its instances calls of them."""

    __slots__ = ("_items", "args", "kwargs", "state")
    of: ClassVar[Name]

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    _items: list[Any] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Tag:  # noqa: D102
        return cls.called(args, kwargs)

    @classmethod
    def called(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tag:
        """Return a call with these arguments, which are not copied: thousands of calls may share the same."""
        self = object.__new__(cls)
        self.args, self.kwargs, self.state, self._items = args, kwargs, None, None
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def items(self) -> list[Any]:
        """Return the items that pickle added, in order."""
        return self._items or []

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.append((key, value))

    def append(self, value: Any) -> None:
        """Add an item, as pickle does with lists."""
        self._items = self._items or []
        self._items.append(value)


class _TooMuchError(Exception):
    """A pickle that exceeds a limit which real checkpoints stay far below."""


class ReadBudget:
    """The number of opcodes and bytes that may be read, of one pickle or of several together."""

    def __init__(self, opcodes: int = limits.MAX_OPCODES, num_bytes: int = limits.MAX_FILE):
        self.opcodes = opcodes
        self.num_bytes = num_bytes

    @property
    def is_used_up(self) -> bool:
        """Return whether no more may be read."""
        return self.opcodes <= 0 or self.num_bytes <= 0

    def take(self, content: bytes, where: str) -> None:
        """Count the bytes of one more file.

        Raises:
            CheckpointError: with those of the files before it, there are too many.
        """
        self.num_bytes -= len(content)
        if self.num_bytes < 0:
            raise CheckpointError(
                f"'{where}' was refused: together with the files read before, it has more bytes than any checkpoint."
            )


class _Counted(dict[int, Callable[[Any], None]]):
    """The dispatch table of opcodes, which counts them against a budget."""

    def __init__(self, dispatch: dict[int, Callable[[Any], None]], budget: ReadBudget):
        super().__init__(dispatch)
        self._budget = budget
        self._own = limits.MAX_OPCODES

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self._budget.opcodes -= 1
        self._own -= 1
        if self._own < 0 or self._budget.opcodes < 0:
            raise _TooMuchError("it has too many opcodes")
        return super().__getitem__(opcode)


class _InertUnpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C would allocate gigabytes for its memo on a few bytes."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    append: Callable[[Any], None]  # to the stack
    pop_mark: Callable[[], list[Any]]
    stack: list[Any]
    memo: dict[int, Any]

    def __init__(self, file: IO[bytes], budget: ReadBudget | None = None):
        super().__init__(file)
        self.dispatch = _Counted(type(self).dispatch, budget or ReadBudget())  # type: ignore[misc]
        self._kinds: dict[Name, type[Tag]] = {}
        self._depths: dict[int, int] = {}  # of tuples on the stack, and in the memo, by their ids
        self._sizes: dict[int, int] = {}  # their parts, and those of parts
        self._num_compound_keys = 0

    @property
    def names(self) -> set[Name]:
        """Return every class and function that the pickle names."""
        return set(self._kinds)

    def find_class(self, module: str, name: str) -> Any:
        of = Name(_today(module), name)
        if of not in self._kinds:
            if len(self._kinds) == limits.MAX_NAMES:
                raise _TooMuchError(f"it names more than {limits.MAX_NAMES} classes")
            self._kinds[of] = type("Tag", (Tag,), {"of": of, "__slots__": ()})
        return self._kinds[of]

    def get_extension(self, code: int) -> Any:
        """Refuse: the cache of classes may have been filled by this process."""
        raise pickle.UnpicklingError(f"extension code {code}")

    def load_bytearray(self) -> None:
        """Load a bytearray without pickle's allocation of whatever size the pickle claims."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def load_put(self) -> None:
        """Store in the memo as pickle does, but only at places with distinct hashes."""
        place = int(self.readline()[:-1])
        if not 0 <= place < _MAX_PLACE:
            raise pickle.UnpicklingError("an invalid place in the memo")
        self.memo[place] = self.stack[-1]

    def load_reduce(self) -> None:
        """Record a call, whose arguments are not copied."""
        args = self.stack.pop()
        self._check_call(self.stack[-1], args)
        self.stack[-1] = _called(self.stack[-1], args, {})

    load_newobj = load_reduce  # a call of a class

    def load_newobj_ex(self) -> None:
        """Record a call of a class with keyword arguments."""
        kwargs, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], args, kwargs)

    def _check_call(self, function: Any, args: Any) -> None:
        """Check that this may be called: subclasses refuse calls for another reader that follows."""

    def _note_tuple(self) -> None:
        """Limit nested tuples: hashing deep ones crashes Python, and does not end if they share parts."""
        value = self.stack[-1]
        parts = [id(part) for part in value if isinstance(part, tuple) and part]
        depth = 1 + max((self._depths[part] for part in parts), default=0)
        if depth > limits.MAX_DEPTH:
            raise RecursionError
        self._depths[id(value)] = depth
        self._sizes[id(value)] = 1 + len(value) + sum(self._sizes[part] for part in parts)

    def _check_integer(self) -> None:
        if self.stack[-1].bit_length() > limits.MAX_INTEGER:
            raise _TooMuchError(f"it has an integer of more than {limits.MAX_INTEGER} bits")

    def _check_keys(self, keys: Iterable[Any]) -> None:
        """Check keys before they are hashed: keys with equal hashes take time by the square of their number."""
        for key in keys:
            if isinstance(key, int) and abs(key) >= SURE_HASH:
                raise _TooMuchError("it has an integer of more than 60 bits as a key")
            if isinstance(key, tuple | frozenset):
                self._num_compound_keys += 1
                size = len(key) if isinstance(key, frozenset) else self._sizes.get(id(key), 0)
                if size > limits.MAX_KEY or self._num_compound_keys > limits.MAX_COMPOUND_KEYS:
                    raise _TooMuchError("it has too many tuples as keys, or too large ones")
                if any(isinstance(part, int) and abs(part) >= SURE_HASH for part in _parts(key)):
                    raise _TooMuchError("it has an integer of more than 60 bits in a key")


_ORDERED_DICT = Name("collections", "OrderedDict")


class _InertTensorUnpickler(_InertUnpickler):
    def persistent_load(self, pid: Any) -> Any:
        """Load a tensor's numbers, which are in another file. PyTorch hashes the file's name."""
        if not isinstance(pid, tuple) or not all(isinstance(part, str | int | type) for part in pid):
            raise pickle.UnpicklingError("numbers of a tensor without a name")
        return pid

    def _check_call(self, function: Any, args: Any) -> None:
        """Refuse an OrderedDict with entries in its call: they would be hashed unchecked. PyTorch fills it later."""
        kind = function if isinstance(function, type) else type(function)
        if issubclass(kind, Tag) and kind.of == _ORDERED_DICT and args != ():
            raise _TooMuchError("it makes an OrderedDict with entries in its call")


def _parts(key: Any) -> Iterator[Any]:
    """Yield the parts of a tuple, and of tuples in it; its size has been checked."""
    for part in key:
        if isinstance(part, tuple):
            yield from _parts(part)
        else:
            yield part


def _called(function: Any, args: Any, kwargs: Any) -> Tag:
    kind = function if isinstance(function, type) else type(function)
    if not issubclass(kind, Tag) or not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise pickle.UnpicklingError("a call of something that is not a function")
    return kind.called(args, kwargs)


def _then(load: Callable[[Any], None], check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return an opcode's function that checks the stack after it."""

    def load_and_check(reader: Any) -> None:
        load(reader)
        check(reader)

    return load_and_check


def _keys_first(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """Return an opcode's function that checks the keys on the stack before it hashes them."""

    def check_and_load(reader: Any) -> None:
        reader._check_keys(reader.stack[keys])
        load(reader)

    return check_and_load


for _opcode, _load_own in (
    (pickle.BYTEARRAY8, _InertUnpickler.load_bytearray),
    (pickle.NEWOBJ, _InertUnpickler.load_newobj),
    (pickle.NEWOBJ_EX, _InertUnpickler.load_newobj_ex),
    (pickle.PUT, _InertUnpickler.load_put),
    (pickle.REDUCE, _InertUnpickler.load_reduce),
):
    _InertUnpickler.dispatch[_opcode[0]] = _load_own


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _InertUnpickler.dispatch[_opcode[0]] = _then(_InertUnpickler.dispatch[_opcode[0]], _InertUnpickler._note_tuple)


for _opcode in (pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4):
    _InertUnpickler.dispatch[_opcode[0]] = _then(_InertUnpickler.dispatch[_opcode[0]], _InertUnpickler._check_integer)


for _opcode, _keys in (
    (pickle.SETITEM, slice(-2, -1)),
    (pickle.SETITEMS, slice(None, None, 2)),
    (pickle.DICT, slice(None, None, 2)),
    (pickle.ADDITEMS, slice(None)),
    (pickle.FROZENSET, slice(None)),
):
    _InertUnpickler.dispatch[_opcode[0]] = _keys_first(_InertUnpickler.dispatch[_opcode[0]], _keys)


def read_pickle(file: IO[bytes], where: str, budget: ReadBudget | None = None) -> Any:
    """Read a pickle, with tags for everything that it names.

    Args:
        file: file open for reading.
        where: its path, for messages.
        budget: budget of several pickles together; None: the limits of a single one.

    Raises:
        CheckpointError: it is not a whole pickle, or exceeds a limit.
    """
    return _load(_InertUnpickler(file, budget), where)


@contextmanager
def without_looking_for_cycles() -> Iterator[None]:
    """Switch off Python's search for cycles, which would take most of the time while many containers are created."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(reader: _InertUnpickler, where: str) -> Any:
    try:
        with without_looking_for_cycles():
            return reader.load()
    except RecursionError as error:
        raise CheckpointError(f"'{where}' was refused: its parts are nested too deeply for a checkpoint.") from error
    except _TooMuchError as error:
        raise CheckpointError(f"'{where}' was refused: {error}. No checkpoint needs that.") from error
    except Exception as error:  # a broken pickle fails in as many ways as there are opcodes
        raise CheckpointError(
            f"'{where}' cannot be read: it is not a whole pickle ({type(error).__name__}: {error}). Is the file "
            "complete?"
        ) from error


def names_in(content: bytes, where: str) -> set[Name]:
    """Return every class and function that a pickle of PyTorch names, also in tensors.

    Args:
        content: content of the pickle.
        where: its path, for messages.

    Raises:
        CheckpointError: it is not a whole pickle.
    """
    reader = _InertTensorUnpickler(io.BytesIO(content))
    _load(reader, where)
    return reader.names


def _today(module: str) -> str:
    """Return the current name of a module of numpy before 2.0, or of gym."""
    return re.sub(r"^gym\.spaces\b", "gymnasium.spaces", re.sub(r"^numpy\.core\b", "numpy._core", module))
