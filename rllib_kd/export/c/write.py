"""Write a student as a C header, and a program beside it; check that the program plays as the header does."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from rllib_kd.export.c.floats import float_body
from rllib_kd.export.c.header import DEFAULT_PREFIX, header, main_program
from rllib_kd.export.c.integers import check_integers
from rllib_kd.export.c.integers_c import integer_body
from rllib_kd.export.c.program import lower
from rllib_kd.export.c.reference import closest_integers, integer_q_values
from rllib_kd.export.c.text import checked_header_name, checked_prefix
from rllib_kd.export.failures import ProgramFailedError
from rllib_kd.export.formats import describe, input_shape
from rllib_kd.export.runners import c_runner
from rllib_kd.networks.layers import Layer
from rllib_kd.teachers.base import Teacher

_EPISODE = 100  # env steps of an episode that the check of a recurrent student's program plays


def main_path(path: Path) -> Path:
    """Return the path of the program beside a header: `student_main.c` beside `student.h`."""
    return path.with_name(f"{path.stem}_main.c")


@dataclass(frozen=True)
class CNetworkText:
    """A network as C.

    Args:
        header: the text of its header.
        integers: the function from observations `[B, ...]` to Q-values `[B, A]` that the header has to be, bit by bit;
            None for a network in floats, which is compared with PyTorch alone.
    """

    header: str
    integers: Callable[[np.ndarray], np.ndarray] | None


def c_network(
    layers: Sequence[Layer],
    tensors: Mapping[str, Tensor],
    shape: Sequence[int],
    *,
    prefix: str = DEFAULT_PREFIX,
    int8_obs: np.ndarray | None = None,
) -> CNetworkText:
    """Return a described network as C.

    Args:
        layers: the layers, as `describe()` returns them.
        tensors: their tensors by name.
        shape: shape of one observation.
        prefix: what its names begin with.
        int8_obs: None: floats. Recorded observations `[N, ...]`, N ≥ 1, whose ranges fix the scales of integers.

    Raises:
        ValueError: C cannot hold a layer, a weight is NaN or infinite, or the prefix is no C identifier.
    """
    program = lower(layers, tensors, shape)
    if int8_obs is None:
        body, reference = float_body(program, tensors), None
    else:
        network = closest_integers(layers, program, tensors, int8_obs)
        body, reference = integer_body(network, tensors), integer_q_values(network, tensors)
    text = header(
        body,
        prefix=checked_prefix(prefix),
        shape=shape,
        num_actions=program.output.size,
        multiply_adds=program.multiply_adds,
    )
    return CNetworkText(text, reference)


def check_c(student: Teacher, *, int8: bool) -> None:
    """Raise a ValueError with the reason if C cannot hold the student."""
    layers, tensors = describe(student)
    program = lower(layers, tensors, input_shape(student))
    if int8:
        check_integers(program)


def write_c(
    student: Teacher, file: Path, *, prefix: str, int8_obs: np.ndarray | None
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Write the header, and `main_path()` of it; return `CNetworkText.integers`.

    Raises:
        ValueError: C cannot hold a layer, a weight is NaN or infinite, or the prefix or the file's name are no names
            in C.
    """
    name, main = checked_header_name(file), main_path(file)
    network = c_network(*describe(student), input_shape(student), prefix=prefix, int8_obs=int8_obs)
    file.write_text(network.header, encoding="utf-8")
    needs_math = "#include <math.h>" in network.header
    is_recurrent = bool(c_runner.state_sizes(network.header))
    text = main_program(
        header_name=name, main_name=main.name, prefix=prefix, needs_math=needs_math, is_recurrent=is_recurrent
    )
    main.write_text(text, encoding="utf-8")
    return network.integers


def check_programs(
    file: Path,
    obs: np.ndarray,
    integers: Callable[[np.ndarray], np.ndarray] | None = None,
    masks: np.ndarray | None = None,
) -> None:
    """Compile the header, and the program beside it; compare what they play, bit by bit.

    Args:
        file: the header.
        obs: observations `[N, ...]`; for a recurrent student the steps of episodes.
        integers: the Q-values that the header has to give, exactly; None: any.
        masks: legal actions `[N, A]`, among which the program chooses, too; None: it is not asked to.

    Raises:
        ValueError: they differ, an action is not the one with the largest Q-value, or the compiler failed.
        RuntimeError: the program failed.
    """
    network = c_runner.CNetwork(str(file))
    actions, q_values, records = _played(network, np.asarray(obs, np.float32).reshape(len(obs), -1))
    if integers is not None and not np.array_equal(q_values, integers(obs)):
        raise ValueError("The C policy computes other integers than expected. Nothing was written.")
    if not np.array_equal(actions, q_values.argmax(-1)):
        raise ValueError("The C policy takes an action whose Q-value is not the largest. Nothing was written.")
    with main_program_of(file) as printed:
        _compare(printed("-q", records=records), actions, q_values)
        if masks is not None:
            legal = np.where(masks, q_values, -np.inf).argmax(-1)
            _compare(printed("-m", "-q", records=np.concatenate([records, masks], -1)), legal, q_values)


def _played(network: c_runner.CNetwork, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return actions `[N]` and Q-values `[N, A]` of a header, and what the program beside it reads, `[N, ...]`.

    A recurrent one plays episodes of `_EPISODE` steps.
    """
    if not network.state_sizes:
        return *network.run(obs), obs
    starts = range(0, len(obs), _EPISODE)
    parts = [network.run(obs[start : start + _EPISODE], network.first_states()) for start in starts]
    first = np.arange(len(obs)) % _EPISODE == 0
    actions, q_values = map(np.concatenate, zip(*parts, strict=True))
    return actions, q_values, np.concatenate([first[:, None], obs], -1)


def _compare(lines: Sequence[str], actions: np.ndarray, q_values: np.ndarray) -> None:
    """Raise a ValueError if lines of a program have other actions or Q-values."""
    if len(lines) != len(actions):
        raise ValueError(f"The C program prints {len(lines)} lines, expected {len(actions)}. Nothing was written.")
    for line, action, values in zip(lines, actions, q_values, strict=True):
        first, *others = line.split()
        if int(first) != action or not np.array_equal(np.array(others, np.float32), values):
            raise ValueError(f"The C program prints '{line}', expected {action} {values}. Nothing was written.")


@contextlib.contextmanager
def main_program_of(file: Path, *options: str) -> Iterator[Callable[..., list[str]]]:
    """Compile the program beside a header.

    Args:
        file: the header.
        options: further options of the compiler, after `-O2`.

    Yields:
        The function from arguments of the program, and `records` `[N, ...]` as it reads them, to the lines that it
        prints. It raises a RuntimeError if the program fails, and a ValueError if none can be run from the temporary
        folder.

    Raises:
        ValueError: the compiler failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        c_runner.build(main_path(file), program, "-O2", *options)

        def printed(*arguments: str, records: np.ndarray) -> list[str]:
            given = np.asarray(records, np.float32).tobytes()
            try:
                done = subprocess.run([program, *arguments], input=given, capture_output=True)
            except OSError as error:
                raise c_runner.cannot_run(folder, error) from error
            if done.returncode:
                raise ProgramFailedError("The C program", done.stderr.decode(errors="replace"))
            return done.stdout.decode().splitlines()

        yield printed
