"""Restarts: copies of a student with different first weights; the best one gets the student's name."""

from __future__ import annotations

from collections.abc import Iterable

_MARK = "__restart_"


def names_of(student: str, num_restarts: int) -> list[str]:
    """Return the module IDs of all copies of a student; the first is the student's own."""
    return [student, *(f"{student}{_MARK}{number}" for number in range(1, num_restarts))]


def student_of(name: str) -> str:
    """Return the name of the student of which a module is a copy."""
    return name.partition(_MARK)[0]


def is_named(name: str) -> bool:
    """Return whether a module has its student's own name, and not that of another copy."""
    return _MARK not in name


def by_student(names: Iterable[str]) -> dict[str, list[str]]:
    """Sort the module IDs of copies by student, each list in the order of `names`."""
    copies: dict[str, list[str]] = {}
    for name in names:
        copies.setdefault(student_of(name), []).append(name)
    return copies
