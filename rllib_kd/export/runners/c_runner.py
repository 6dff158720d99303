"""Runs a student from a C header with a C compiler and numpy alone."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")

#: Nothing but the policy, as a device has it: a recurrent one with its state.
_POLICY = """\
#include "network.h"

int policy(const float *observation);

int policy(const float *observation)
{
    return p_act(observation);
}
"""

_RECURRENT_POLICY = """\
#include "network.h"

int policy(const float *observation, int first);

int policy(const float *observation, int first)
{
    static p_state state;
    if (first)
        p_begin(&state);
    return p_act(&state, observation);
}
"""

#: Python calls it with many observations at once, and measures one in the processor's time.
_LIBRARY = """\
#include <time.h>
#include "network.h"

void run(const float *observations, int32_t count, float *q_values, int32_t *actions);
double seconds(const float *observation, int32_t calls);

void run(const float *observations, int32_t count, float *q_values, int32_t *actions)
{
    int32_t i;
    for (i = 0; i < count; i++, observations += P_OBSERVATION_SIZE, q_values += P_NUM_ACTIONS) {
        actions[i] = p_act(observations);
        p_q_values(observations, q_values);
    }
}

double seconds(const float *observation, int32_t calls)
{
    const float *volatile where = observation; /* which may differ each time: no call can be left out */
    volatile int action;
    clock_t start = clock();
    while (calls-- > 0)
        action = p_act(where);
    (void)action;
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}
"""

#: The same of a recurrent network, with a state for each observation; if `stride` is 0, one goes through all of them.
_RECURRENT_LIBRARY = """\
#include <time.h>
#include "network.h"

void run(const float *observations, int32_t count, float *q_values, int32_t *actions, p_state *states, int32_t stride);
double seconds(const float *observation, int32_t calls);

void run(const float *observations, int32_t count, float *q_values, int32_t *actions, p_state *states, int32_t stride)
{
    int32_t i;
    for (i = 0; i < count; i++, observations += P_OBSERVATION_SIZE, q_values += P_NUM_ACTIONS, states += stride) {
        p_state before = *states;
        actions[i] = p_act(states, observations);
        p_q_values(&before, observations, q_values);
    }
}

double seconds(const float *observation, int32_t calls)
{
    const float *volatile where = observation; /* which may differ each time: no call can be left out */
    volatile int action;
    clock_t start = clock();
    p_state state;
    p_begin(&state);
    while (calls-- > 0)
        action = p_act(&state, where);
    (void)action;
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}
"""

_SHORTEST = 2e-3  # seconds of one measurement; the clock counts in microseconds
_MEASUREMENTS = 15


def compiler() -> list[str] | None:
    """Return the command of a C compiler: `$CC` if it is set, else cc, gcc or clang; None if there is none.

    Raises:
        ValueError: `$CC` names none.
    """
    try:
        given = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise ValueError(f"$CC is {os.environ['CC']!r}, which is no command: {error}. Mend it, or unset it.") from error
    if given and shutil.which(given[0]) is None:
        raise ValueError(f"$CC names '{given[0]}', but there is no such program. Name a C compiler, or unset it.")
    return given or next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name) is not None), None)


def build(source: Path, out: Path, *options: str) -> None:
    """Compile one C file, with every warning as an error.

    Raises:
        ValueError: there is no compiler, or it failed; the message has the end of its output.
    """
    command = compiler()
    if command is None:
        raise ValueError("There is no C compiler: expected cc, gcc or clang. Install one, or name another in $CC.")
    done = subprocess.run(
        [*command, *FLAGS, *options, str(source), "-o", str(out), *(() if "-c" in options else ("-lm",))],
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise ValueError(f"The C compiler '{command[0]}' failed for '{source.name}':\n{done.stderr[-2000:]}")


def cannot_run(folder: str, error: OSError) -> ValueError:
    """Return the error about a folder from which nothing that was compiled can be run, such as a `noexec` one."""
    parent = Path(folder).parent
    return ValueError(f"Programs cannot be run from '{parent}' ({error}). Set TMPDIR to another folder.")


class CNetwork:
    """A header, compiled and loaded.

    Args:
        path: path of the header.
        options: further options of the compiler, after `-O2`.
    """

    def __init__(self, path: str, *options: str):
        text = Path(path).read_text(encoding="utf-8")
        prefix = header_field(text, "Prefix")
        self.num_actions = int(_macro(text, prefix, "NUM_ACTIONS"))
        self.size = int(_macro(text, prefix, "OBSERVATION_SIZE"))
        self.multiply_adds = int(_macro(text, prefix, "MULTIPLY_ADDS"))
        self.state_sizes = state_sizes(text)
        self._text, self._prefix, self._options = text, prefix, options
        self._library = self._built(_RECURRENT_LIBRARY if self.state_sizes else _LIBRARY)
        self._library.seconds.restype = ctypes.c_double

    def _built(self, code: str) -> ctypes.CDLL:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "network.h").write_text(self._text, encoding="utf-8")
            source = Path(folder) / "library.c"
            source.write_text(with_prefix(code, self._prefix), encoding="utf-8")
            build(source, Path(folder) / "library.so", "-O2", "-shared", "-fPIC", *self._options)
            try:
                return ctypes.CDLL(str(Path(folder) / "library.so"))
            except OSError as error:
                raise cannot_run(folder, error) from error

    def run(self, obs: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return actions `[B]` (int32; negative: refused) and Q-values `[B, A]` (NaN where refused).

        Args:
            obs: observations `[B, ...]`.
            states: of a recurrent network, float32, contiguous, `[B, S]`: one for each observation, replaced by the
                next one; or `[S]`: that of an episode, of which the observations are the next steps.
        """
        obs = np.ascontiguousarray(obs, np.float32).reshape(len(obs), self.size)
        q_values = np.full((len(obs), self.num_actions), np.nan, np.float32)
        actions = np.zeros(len(obs), np.int32)
        more = self._given(states, len(obs))
        self._library.run(_pointer(obs), ctypes.c_int32(len(obs)), _pointer(q_values), _pointer(actions), *more)
        return actions, q_values

    def _given(self, states: np.ndarray | None, count: int) -> tuple[object, ...]:
        """Return the last arguments of a library, of a recurrent network: states, and the step from one to the next."""
        size = sum(self.state_sizes.values())
        if not size and states is None:
            return ()
        if (
            states is None
            or states.shape not in ((size,), (count, size))
            or states.dtype != np.float32
            or not states.flags.c_contiguous
        ):
            got = None if states is None else f"{states.dtype}, {list(states.shape)}"
            raise ValueError(
                f"The states are {got}, expected None of a network without memory, or of {count} observations a "
                f"contiguous array of float32 with the shape [{count}, {size}] or [{size}]."
            )
        return _pointer(states), ctypes.c_int32(states.ndim - 1)

    def first_states(self, *shape: int) -> np.ndarray:
        """Return the states `[*shape, S]` at the beginning of episodes."""
        return np.zeros((*shape, sum(self.state_sizes.values())), np.float32)

    def latency_ms(self) -> float:
        """Return the median processor time of one observation."""
        obs = np.linspace(-1, 1, self.size, dtype=np.float32)
        calls = 1
        while self._seconds(obs, calls) < _SHORTEST:
            calls *= 2
        return 1e3 * statistics.median(self._seconds(obs, calls) / calls for _ in range(_MEASUREMENTS))

    def _seconds(self, obs: np.ndarray, calls: int) -> float:
        return float(self._library.seconds(_pointer(obs), ctypes.c_int32(calls)))


def load(path: str) -> Callable[..., np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of a header; NaN where it refuses one.

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf. Of a recurrent
    student it is a `Remembering`, for which remembering.py must lie beside this file.
    """
    network = CNetwork(path)
    if network.state_sizes:
        return _remembering(network)

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        q = network.run(obs)[1]
        return q if action_mask is None else np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values


def _remembering(network: CNetwork) -> Callable[..., np.ndarray]:
    """Return a recurrent student as a function that keeps its state."""
    beside = f"{__package__}.remembering" if __package__ else "remembering"  # taken along without the package
    remembering = importlib.import_module(beside)
    sizes = network.state_sizes
    ends = np.cumsum(list(sizes.values()))

    def step(
        obs: np.ndarray, state: dict[str, np.ndarray], action_mask: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        states = np.concatenate([state[name] for name in sizes], -1, dtype=np.float32)
        q = network.run(obs, states)[1]
        q = q if action_mask is None else np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))
        return q, dict(zip(sizes, np.split(states, ends[:-1], -1), strict=True))

    return remembering.Remembering(step, sizes)


def state_sizes(text: str) -> dict[str, int]:
    """Return the units of each part of the state of a recurrent network's header, by name; empty of another one."""
    if " State: " not in text.partition("\n")[0]:
        return {}
    return dict(zip(("state_h", "state_c"), json.loads(header_field(text, "State")), strict=False))


def header_field(text: str, name: str) -> str:
    """Return a field of a header's first line."""
    found = re.search(rf"\b{name}: (\w+|\[[\d, ]*\])\.? ", text.partition("\n")[0])
    if found is None:
        raise ValueError(f"This is not a C header that export() wrote: its first line has no '{name}'.")
    return found[1]


def section_bytes(path: str) -> tuple[int, int] | None:
    """Return bytes of flash (code and constants) and of static RAM of a header, compiled with -Os for this machine.

    The static RAM contains the state of a recurrent network, which is the caller's in a program.

    None if the program `size` of the binutils is missing, or does not read this machine's object files.
    """
    if shutil.which("size") is None:
        return None
    text = Path(path).read_text(encoding="utf-8")
    prefix, policy = header_field(text, "Prefix"), _RECURRENT_POLICY if state_sizes(text) else _POLICY
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "network.h")
        source, out = Path(folder) / "policy.c", Path(folder) / "policy.o"
        source.write_text(with_prefix(policy, prefix), encoding="utf-8")
        # As on a device: without tables for debuggers and exceptions.
        build(source, out, "-Os", "-c", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
        done = subprocess.run(["size", "-A", str(out)], capture_output=True, encoding="utf-8")
    sections = re.findall(r"^\.(text|rodata|data|bss)\S*\s+(\d+)", done.stdout, re.MULTILINE)
    if done.returncode or not sections:
        return None
    totals = {
        kind: sum(int(size) for name, size in sections if name == kind) for kind in ("text", "rodata", "data", "bss")
    }
    return totals["text"] + totals["rodata"] + totals["data"], totals["data"] + totals["bss"]


def with_prefix(text: str, prefix: str) -> str:
    """Return C in which names that begin with `p_` and `P_` begin with the prefix, for macros in capitals."""
    return re.sub(r"\b([pP])_(?=\w)", lambda match: f"{prefix if match[1] == 'p' else prefix.upper()}_", text)


def _macro(text: str, prefix: str, name: str) -> str:
    found = re.search(rf"^#define {prefix.upper()}_{name} (\d+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"This is not a C header that export() wrote: it does not define {prefix.upper()}_{name}.")
    return found[1]


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
