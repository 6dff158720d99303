"""C as text: names, numbers and arrays. No name of a layer, environment or path gets into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: The longest prefix: C99 distinguishes names by 31 characters at least, and the names behind it have up to 16.
_MAX_PREFIX = 40
_TYPES = {"f": "float", "int8": "int8_t", "int16": "int16_t", "int32": "int32_t"}


def checked_prefix(prefix: str) -> str:
    """Return the prefix of all names, if it is a C identifier.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_]{{0,{_MAX_PREFIX - 1}}}", prefix) or prefix.endswith("_"):
        raise ValueError(
            f"The prefix {prefix[:80]!r} is not a C identifier that names can begin with. Expected a letter, then "
            f"letters, digits and underscores, up to {_MAX_PREFIX} characters, and no underscore at its end."
        )
    return prefix


def checked_header_name(path: Path) -> str:
    """Return the file name of a header, if C can include it.

    Raises:
        ValueError: it has other characters than letters of ASCII, digits, `.`, `_`, `-` and `+`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*", path.name):
        raise ValueError(
            f"{path.name[:80]!r} cannot be included by every C compiler. Expected a file name of letters, digits, "
            "'.', '_', '-' and '+', such as student.h."
        )
    return path.name


def literal(number: np.floating | float) -> str:
    """Return a finite 32-bit float as the shortest decimal constant that is read back as the same number."""
    return f"{np.float32(number)!s}f"


class Arrays:
    """The constant arrays of a header, named by numbers."""

    def __init__(self) -> None:
        self._definitions: list[str] = []
        self.num_bytes = 0

    def add(self, numbers: np.ndarray) -> str:
        """Add an array and return its name.

        Args:
            numbers: finite 32-bit floats, or integers of 8, 16 or 32 bits.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        numbers = np.ravel(numbers)
        if not np.isfinite(numbers).all():
            raise ValueError("The network has weights that are NaN or infinite, which C cannot hold.")
        name = f"p_data_{len(self._definitions)}"
        is_float = numbers.dtype.kind == "f"
        texts = [literal(number) for number in numbers] if is_float else list(map(str, numbers.tolist()))
        lines = [", ".join(texts[i : i + 12]) for i in range(0, len(texts), 12)]
        kind = _TYPES["f" if is_float else numbers.dtype.name]
        body = ",\n    ".join(lines)
        self._definitions.append(f"static const {kind} {name}[{len(numbers)}] = {{\n    {body}\n}};\n")
        self.num_bytes += len(numbers) * (4 if is_float else numbers.dtype.itemsize)
        return name

    def __str__(self) -> str:
        return "\n".join(self._definitions)


@dataclass(frozen=True)
class Body:
    """What a header holds of one network.

    Args:
        arithmetic: "float32" or "int8", for its first line.
        needs_math: whether it calls functions of `math.h`.
        arrays: the weights.
        functions: C functions of the layers.
        policy: the buffers, and the functions that a program calls.
        ram_bytes: bytes of the buffers.
        state: parts and units of the state of a recurrent network; empty: it has none.
    """

    arithmetic: str
    needs_math: bool
    arrays: Arrays
    functions: Sequence[str]
    policy: str
    ram_bytes: int
    state: tuple[int, ...] = ()


_ACT = """\
static inline int p_act(PARAMETERS)
{
    TYPE q[P_NUM_ACTIONS];
    int action, best = 0, code = FUNCTION(ARGUMENTS, q);
    if (code != 0)
        return code;
    for (action = 1; action < P_NUM_ACTIONS; action++)
        if (q[action] > q[best])
            best = action;
    return best;
}

static inline int p_act_legal(PARAMETERS, const uint8_t *action_mask)
{
    TYPE q[P_NUM_ACTIONS];
    int action, best = 0, code;
    while (best < P_NUM_ACTIONS && !action_mask[best])
        best++;
    if (best == P_NUM_ACTIONS)
        return P_NO_LEGAL;
    code = FUNCTION(ARGUMENTS, q);
    if (code != 0)
        return code;
    for (action = best + 1; action < P_NUM_ACTIONS; action++)
        if (action_mask[action] && q[action] > q[best])
            best = action;
    return best;
}
"""


#: What the functions take, and how a program passes it; of a recurrent network, the state before the observation.
PARAMETERS = "const float *observation"
ARGUMENTS = "observation"
RECURRENT_PARAMETERS = f"p_state *state, {PARAMETERS}"
RECURRENT_ARGUMENTS = f"state, {ARGUMENTS}"


def act_function(kind: str, q_values: str, *, is_recurrent: bool = False) -> str:
    """Return the C functions that choose the action: the first one with the largest Q-value, of all or the legal ones.

    Args:
        kind: C type of a Q-value.
        q_values: name of the C function that computes them.
        is_recurrent: whether they take a state.
    """
    text = _ACT.replace("TYPE", kind).replace("FUNCTION", q_values)
    if is_recurrent:
        return text.replace("PARAMETERS", RECURRENT_PARAMETERS).replace("ARGUMENTS", RECURRENT_ARGUMENTS)
    return text.replace("PARAMETERS", PARAMETERS).replace("ARGUMENTS", ARGUMENTS)
