"""Runs a student from a C header with a C compiler and numpy alone."""

from __future__ import annotations

import ctypes
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


#: Nothing but the policy, as a device has it.
_POLICY = """\
#include "network.h"

int policy(const float *observation);

int policy(const float *observation)
{
    return p_act(observation);
}
"""


#: The choice among legal actions, in a library of its own: headers of a version without masks lack the function.
_LEGAL_LIBRARY = """\
#include "network.h"

void run(const float *observations, const uint8_t *masks, int32_t count, int32_t *actions);

void run(const float *observations, const uint8_t *masks, int32_t count, int32_t *actions)
{
    int32_t i;
    for (i = 0; i < count; i++, observations += P_OBSERVATION_SIZE, masks += P_NUM_ACTIONS)
        actions[i] = p_act_legal(observations, masks);
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


_SHORTEST = 2e-3  # seconds of one measurement; the clock counts in microseconds


_MEASUREMENTS = 15


def compiler() -> list[str] | None:
    """Return the command of a C compiler: `$CC` if it is set, else cc, gcc or clang; None if there is none."""
    given = shlex.split(os.environ.get("CC", ""))
    for command in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]) is not None:
            return command
    return None


def build(source: Path, out: Path, *options: str) -> None:
    """Compile one C file, with every warning as an error.

    Raises:
        ValueError: there is no compiler, or it failed; the message has the end of its output.
    """
    command = compiler()
    if command is None:
        raise ValueError("There is no C compiler: neither cc, gcc nor clang, or not the one of $CC. Install one.")
    done = subprocess.run(
        [*command, *FLAGS, *options, str(source), "-o", str(out), *(() if "-c" in options else ("-lm",))],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"The C compiler '{command[0]}' failed for '{source.name}':\n{done.stderr[-2000:]}")


class CNetwork:
    """A header, compiled and loaded.

    Args:
        path: path of the header.
        options: further options of the compiler, after `-O2`.
    """

    def __init__(self, path: str, *options: str):
        text = Path(path).read_text()
        prefix = header_field(text, "Prefix")
        self.num_actions = int(_macro(text, prefix, "NUM_ACTIONS"))
        self.size = int(_macro(text, prefix, "OBSERVATION_SIZE"))
        self.multiply_adds = int(_macro(text, prefix, "MULTIPLY_ADDS"))
        self._text, self._prefix, self._options = text, prefix, options
        self._library = self._built(_LIBRARY)
        self._library.seconds.restype = ctypes.c_double

    def _built(self, code: str) -> ctypes.CDLL:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "network.h").write_text(self._text)
            source = Path(folder) / "library.c"
            source.write_text(with_prefix(code, self._prefix))
            build(source, Path(folder) / "library.so", "-O2", "-shared", "-fPIC", *self._options)
            return ctypes.CDLL(str(Path(folder) / "library.so"))

    def legal_actions(self, obs: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Return actions `[B]` (int32; negative: refused) among the legal ones, `masks` `[B, A]` (1: legal, 0: not)."""
        obs = np.ascontiguousarray(obs, np.float32).reshape(len(obs), self.size)
        masks = np.ascontiguousarray(masks, np.uint8).reshape(len(obs), self.num_actions)
        actions = np.zeros(len(obs), np.int32)
        library = self._built(_LEGAL_LIBRARY)
        library.run(_pointer(obs), _pointer(masks), ctypes.c_int32(len(obs)), _pointer(actions))
        return actions

    def run(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return actions `[B]` (int32; negative: refused) and Q-values `[B, A]` (NaN where refused)."""
        obs = np.ascontiguousarray(obs, np.float32).reshape(len(obs), self.size)
        q_values = np.full((len(obs), self.num_actions), np.nan, np.float32)
        actions = np.zeros(len(obs), np.int32)
        self._library.run(_pointer(obs), ctypes.c_int32(len(obs)), _pointer(q_values), _pointer(actions))
        return actions, q_values

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

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf.
    """
    network = CNetwork(path)

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        q = network.run(obs)[1]
        return q if action_mask is None else np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values


def header_field(text: str, name: str) -> str:
    """Return a field of a header's first line."""
    found = re.search(rf"\b{name}: (\w+|\[[\d, ]*\])\.? ", text.partition("\n")[0])
    if found is None:
        raise ValueError(f"This is not a C header that export() wrote: its first line has no '{name}'.")
    return found[1]


def section_bytes(path: str) -> tuple[int, int] | None:
    """Return bytes of flash (code and constants) and of static RAM of a header, compiled with -Os for this machine.

    None if the program `size` of the binutils is missing, or does not read this machine's object files.
    """
    if shutil.which("size") is None:
        return None
    prefix = header_field(Path(path).read_text(), "Prefix")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "network.h")
        source, out = Path(folder) / "policy.c", Path(folder) / "policy.o"
        source.write_text(with_prefix(_POLICY, prefix))
        # As on a device: without tables for debuggers and exceptions.
        build(source, out, "-Os", "-c", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
        done = subprocess.run(["size", "-A", str(out)], capture_output=True, text=True)
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
