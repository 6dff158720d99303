"""The command that measures speed: rows of a run beside those of an earlier one."""

import pytest

from tests.benchmarks.learning import summary
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
        (row(1.0, "steps/s of each student"), row(0.5, "steps/s of each student"), True),
        (row(1.0, "CPU s/M states"), row(1.5, "CPU s/M states"), True),
    ],
)
def test_what_is_worse_than_before_is_named(before, now, is_worse):
    assert compare_with([before], [now]) == ([f"worse: x, ratio {now['ratio']:.3f}, was 1.000"] if is_worse else [])


def test_students_of_other_kinds_have_a_table_too():
    made = {"env": "E", "hiddens": ["LSTM"], "settings": [], "env_steps": 9, "num_episodes": 2, "curve": 0}
    played = {"teacher_returns": [1.0, 1.0], "random_returns": [0.0, 0.0], "returns": [1.0, 0.0], "return_ratio": 0.5}
    (one,) = summary([{**made, **played, "seed": seed} for seed in range(2)])
    assert (one["student"], one["activation"], one["seeds"], one["ratio"]) == ("LSTM", "", 2, 0.5)


def test_a_row_fits_a_terminal():
    assert len(line(row(0.98765) | {"name": "iteration_vs_slower_half_remote"})) <= 80
