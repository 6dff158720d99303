"""What ends an export that no setting explains."""

from __future__ import annotations


class ProgramFailedError(RuntimeError):
    """A program that an export starts, to check or to measure its file, has failed."""

    def __init__(self, what: str, output: str):
        super().__init__(f"{what} failed: {output.strip()[-2_000:] or 'it has printed nothing'}")
