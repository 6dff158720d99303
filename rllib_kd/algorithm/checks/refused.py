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


def refuse_priorities(config: Any, students: str, rows: str) -> None:
    """Refuse prioritized replay for students whose rows are drawn uniformly.

    Args:
        config: config of the run.
        students: these students, in the message.
        rows: what is drawn for them.

    Raises:
        ValueError: `replay_buffer_config['alpha']` is set, and not 0.
    """
    if alpha := config.replay_buffer_config.get("alpha"):
        raise ValueError(
            f"`replay_buffer_config['alpha']`={alpha!r} is not supported for {students}. Set alpha=0: {rows} are drawn "
            "uniformly."
        )


def _shown(config: Any, name: str) -> str:
    value = getattr(config, name, None)
    return f"`{name}`" if value is None and name != "teacher" else f"`{name}`={value!r}"
