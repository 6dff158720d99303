"""Calls that are postponed until an Algorithm is set up."""

from __future__ import annotations

from collections.abc import Callable


class Postponed:
    """The last call before the end of `setup()`, to be made after it: RLlib calls `on_algorithm_init` earlier."""

    def __init__(self) -> None:
        self.is_set_up = False
        self._call: Callable[[], None] | None = None

    def put_off(self, call: Callable[[], None]) -> bool:
        """Postpone a call, instead of an earlier one.

        Returns:
            False if the Algorithm is set up: then the call is not kept.
        """
        if not self.is_set_up:
            self._call = call
        return not self.is_set_up

    def catch_up(self) -> None:
        """Make the call that was kept, now that the Algorithm is set up."""
        self.is_set_up = True
        call, self._call = self._call, None
        if call is not None:
            call()
