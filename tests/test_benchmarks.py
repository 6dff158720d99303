"""The command that measures speed: rows of a run beside those of an earlier one."""

import pytest

from tests.benchmarks.run import compare_with, line


def row(ratio, unit="gradient steps/s", spread=0.0):
    turns = [ratio * (1 - spread), ratio, ratio * (1 + spread)]
    return {
        "name": "x",
        "value": ratio,
        "baseline": 1.0,
        "ratio": ratio,
        "unit": unit,
        "runs": {"value": turns, "baseline": [1.0] * 3},
    }


@pytest.mark.parametrize(
    ("before", "now", "is_worse"),
    [
        (row(1.0), row(0.96), True),
        (row(1.0), row(0.98), False),  # within the tolerance
        (row(1.0), row(1.5), False),
        (row(1.0, spread=0.1), row(0.96), False),  # as one repetition was then
        (row(1.0, "s"), row(1.04, "s"), True),  # of seconds, more is worse
        (row(1.0, "s"), row(0.5, "s"), False),
        (row(1.0, "bytes", spread=0.1), row(1.05, "bytes"), False),
    ],
)
def test_what_is_worse_than_before_is_named(before, now, is_worse):
    assert compare_with([before], [now]) == ([f"worse: x, ratio {now['ratio']:.3f}, was 1.000"] if is_worse else [])


def test_a_row_fits_a_terminal():
    assert len(line(row(0.98765) | {"name": "iteration_vs_slower_half_remote"})) <= 80
