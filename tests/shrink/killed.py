"""Runs of `rllib shrink` that are killed again and again, and what they end with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rllib_kd.shrink.progress import Progress


def content(folder: Path) -> str:
    """Text of a run's certificate that is equal for equal results, wherever and however fast they were made."""
    found = json.loads((folder / "certificate.json").read_text())
    found.pop("seconds")
    return json.dumps(found).replace(f"/{folder.name}", "")


def run_killed(shrink: Callable[[], Any], folder: Path, monkeypatch: pytest.MonkeyPatch, *, after_writes: int) -> int:
    """Let a run die after so many writes of its progress, and resume it, until it has its certificate.

    Returns:
        How often it died.
    """
    write, num_kills, resume = Progress.write, 0, False
    while not (folder / "certificate.json").exists():
        assert num_kills < 100, "it dies at the same place again and again"
        num_writes = 0

        def dying(self: Progress, state: Any) -> None:
            nonlocal num_writes
            write(self, state)
            num_writes += 1
            if num_writes == after_writes:
                raise KeyboardInterrupt

        monkeypatch.setattr(Progress, "write", dying)
        try:
            shrink().run(resume=resume)
        except KeyboardInterrupt:
            num_kills, resume = num_kills + 1, True
    return num_kills
