"""Short distinct names of runs, from their paths."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

#: Prefixes of checkpoint folders, as RLlib and Tune name them.
CHECKPOINT = "checkpoint_"


#: Algorithm_environment_experiment_number_and-again_what=it varies_date_time
_TRIAL = re.compile(r"^.+_(?P<number>\d{5})_\d+(_(?P<varied>.+))?_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d$")


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the shortest distinct ends of paths, without checkpoints; for Tune's trials, the settings that vary.

    Trials without varied settings get the name of their experiment, or their number if there are several.
    """
    parts = [_parts(path) for path in paths]
    for shorten in (_without_checkpoint, _with_brief_trial, _without_number):
        shorter = list(map(shorten, parts))
        parts = shorter if len(set(shorter)) == len(set(parts)) and all(shorter) else parts
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    return [str(Path(*part[-length:])) for part in parts]


def _parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path; `.` and `..` are resolved, since they have no name."""
    return Path(path if Path(path).name not in ("", "..") else os.path.abspath(path)).parts


def _without_checkpoint(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if parts[-1].startswith(CHECKPOINT) else parts


def _with_brief_trial(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_TRIAL.sub(lambda match: match["varied"] or match["number"], part) for part in parts)


def _without_number(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if re.fullmatch(r"\d{5}", parts[-1]) else parts
