"""Short distinct names of runs, from their paths."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

#: Prefixes of checkpoint folders, as RLlib and Tune name them.
CHECKPOINT = "checkpoint_"
#: File in the folder of a sweep, of which each trial has a student for each seed.
SWEEP = "sweep.json"
#: Tune's files: its settings of an experiment, which it resumes with; and the results of a trial.
TUNER, RESULTS = "tuner.pkl", "result.json"
#: Algorithm_environment_experiment_number_and-again_what=it varies_date_time
_TRIAL = re.compile(r"^.+_(?P<number>\d{5})_\d+(_(?P<varied>.+))?_(?P<began>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)$")
#: Algorithm_environment_date_time, of runs without a given name; and a number, if several began at once.
_RUN = re.compile(r"^(?P<what>.+)_(?P<began>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?)$")
#: Where the network lies in an Algorithm's checkpoint.
_MODULE = ("learner_group", "learner", "rl_module")
_MAX_PARTS = 3  # of a path, in a name


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the shortest distinct ends of paths, without checkpoints; for Tune's trials, the settings that vary.

    Trials without varied settings get the name of their experiment, or their number if there are several. Those that
    were begun again with the same settings, in the same folder, also have the time of their beginning. Runs without a
    given name that share algorithm and environment become that time. A long end keeps its first and last part.
    """
    parts = [_parts(path) for path in paths]
    for shorten in (
        _without_module,
        _without_checkpoint,
        _with_brief_trial,
        _with_trial_and_time,
        _without_number,
    ):
        parts = _distinct(parts, list(map(shorten, parts)))
    parts = _distinct(parts, _with_times(parts))
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    ends = [part[-length:] for part in parts]
    if length > _MAX_PARTS:
        ends = _distinct(ends, [(end[0], "…", end[-1]) if len(end) > _MAX_PARTS else end for end in ends])
    return [str(Path(*end)) for end in ends]


def _distinct(parts: list[tuple[str, ...]], shorter: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the shorter paths if they are as many different ones, else the longer."""
    return shorter if len(set(shorter)) == len(set(parts)) and all(shorter) else parts


def _parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path; `.` and `..` are resolved, since they have no name."""
    return Path(path if Path(path).name not in ("", "..") else os.path.abspath(path)).parts


def _without_module(parts: tuple[str, ...]) -> tuple[str, ...]:
    for end in (len(parts), len(parts) - 1):
        if end > len(_MODULE) and parts[end - len(_MODULE) : end] == _MODULE:
            return parts[: end - len(_MODULE)]
    return parts


def _without_checkpoint(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if parts[-1].startswith(CHECKPOINT) else parts


def _with_brief_trial(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_TRIAL.sub(lambda match: match["varied"] or match["number"], part) for part in parts)


def _with_trial_and_time(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parts with trials named by settings and time, for those that settings alone do not tell apart."""
    return tuple(_TRIAL.sub(lambda match: f"{match['varied'] or match['number']}_{match['began']}", p) for p in parts)


def _without_number(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if re.fullmatch(r"\d{5}", parts[-1]) else parts


def _with_times(parts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Reduce several runs without a given name to their times, if algorithm and environment are the same."""
    matches = [_RUN.match(part[-1]) for part in parts]
    if len(set(parts)) < 2 or len({match["what"] if match else None for match in matches}) > 1 or not matches[0]:
        return parts
    return [(*part[:-1], match["began"]) for part, match in zip(parts, matches, strict=True) if match]
