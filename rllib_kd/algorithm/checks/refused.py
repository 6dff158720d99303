"""Settings that are not supported beside others: refused by tables, each row with what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def refuse(config: Any, settings: Iterable[tuple[str, object, str]], message: Callable[[str, str], str]) -> None:
    """Refuse the first setting that is not supported.

    Args:
        config: config of the run.
        settings: (name, whether it is refused, reason and remedy) of each.
        message: makes the message of a name with its value, and of reason and remedy.

    Raises:
        ValueError: one is refused.
    """
    for name, is_refused, remedy in settings:
        if is_refused:
            raise ValueError(message(_shown(config, name), remedy))


def _shown(config: Any, name: str) -> str:
    value = getattr(config, name, None)
    return f"`{name}`" if value is None and name != "teacher" else f"`{name}`={value!r}"
