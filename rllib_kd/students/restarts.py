"""Restarts: copies of a student that learn side by side; the best one gets the student's name.

They differ in their first weights, and in how much a mistake costs beside the KL. What is best there differs from task
to task, as first weights do: a linear student has no others.
"""

from __future__ import annotations

from collections.abc import Iterable

_MARK = "__restart_"
#: The weight of the expected Q-regret, as a multiple of its default: the copies have these in turn.
REGRET_FACTORS = (1.0, 3.0, 10.0, 30.0)


def names_of(student: str, num_restarts: int) -> list[str]:
    """Return the module IDs of all copies of a student; the first is the student's own."""
    return [student, *(f"{student}{_MARK}{number}" for number in range(1, num_restarts))]


def student_of(name: str) -> str:
    """Return the name of the student of which a module is a copy."""
    return name.partition(_MARK)[0]


def copy_number(name: str) -> int:
    """Return the number of a copy; 0 for the module that has its student's own name."""
    return int(name.partition(_MARK)[2] or 0)


def regret_factor(name: str) -> float:
    """Return how many times its default the expected Q-regret weighs in a module's loss."""
    return REGRET_FACTORS[copy_number(name) % len(REGRET_FACTORS)]


def is_named(name: str) -> bool:
    """Return whether a module has its student's own name, and not that of another copy."""
    return _MARK not in name


def by_student(names: Iterable[str]) -> dict[str, list[str]]:
    """Sort the module IDs of copies by student, each list in the order of `names`."""
    copies: dict[str, list[str]] = {}
    for name in names:
        copies.setdefault(student_of(name), []).append(name)
    return copies
