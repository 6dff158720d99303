"""Flags of a resumed experiment: another --stop takes effect, and other changed flags are refused.

Tune silently keeps everything else as it was when the experiment began.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ray import tune

from rllib_kd.checkpoints.replay_files import local_folder
from rllib_kd.checkpoints.run_json import read_json, write_json
from rllib_kd.experiment.locations import location
from rllib_kd.experiment.metrics import metric_at
from rllib_kd.teachers.names import PACKAGED_TEACHERS
from rllib_kd.terminal import say
from rllib_kd.text import plain

_RECORD = "flags.json"  # in the experiment's folder
_BEGIN_ANEW = "begin a new experiment from a checkpoint: --restore CHECKPOINT --experiment-name NAME."
#: Flags and settings that are paths.
_PATHS = ("teacher", "--restore")
_resumed_with: dict[str, float] = {}  # stop criteria of this process: Tune restores the criteria that it has pickled


class StopAt:
    """Stops a trial that meets one of the criteria. Tune's own check fails where a result does not hold a metric yet.

    Args:
        stop: metric → value at which a trial stops.
    """

    def __init__(self, stop: Mapping[str, float]):
        self._stop = dict(stop)

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Return whether the trial stops; Tune calls this after each result."""
        return is_reached(criteria(self._stop), result)


def is_reached(stop: Mapping[str, float], result: Mapping[str, Any]) -> bool:
    """Return whether a result meets one of the criteria."""
    return any(metric_at(result, path) >= value for path, value in stop.items())


def criteria(began_with: Mapping[str, float]) -> Mapping[str, float]:
    """Return the criteria at which trials stop now: those of the command that resumes, else those they began with."""
    return _resumed_with or began_with


def have_stopped(results: Iterable[tune.Result], stop: Mapping[str, float]) -> bool:
    """Return whether all trials have met the criteria, so that a signal since then has interrupted nothing.

    Args:
        results: results of the trials.
        stop: the criteria that they began with.
    """
    return all(result.error is None and is_reached(criteria(stop), result.metrics or {}) for result in results)


def begin_with(stop: Mapping[str, float]) -> None:
    """Let a resumed experiment stop by these criteria; if they are empty, by those that it began with."""
    global _resumed_with
    _resumed_with = dict(stop)


def record(uri: str, flags: Mapping[str, Any]) -> None:
    """Keep the flags that an experiment begins with in its folder."""
    write_json(uri, _RECORD, plain(flags))


def recorded(uri: str) -> dict[str, Any]:
    """Return the flags that an experiment began with; empty if none are kept."""
    try:
        flags = read_json(uri, _RECORD)
    except ValueError:
        return {}
    return flags if isinstance(flags, dict) else {}


def check_unchanged(began_with: Mapping[str, Any], flags: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check that a command that resumes asks for nothing but what the experiment began with.

    Args:
        began_with: result of `recorded()`.
        flags: flags of the command, by name.
        defaults: their defaults; a flag that is left out changes nothing.

    Raises:
        ValueError: a flag has another value; the message names each.
    """
    given = {name: plain(value) for name, value in flags.items()}
    given = {name: value for name, value in given.items() if not _is_same(name, value, plain(defaults.get(name)))}
    # Older versions kept no record, or fewer flags. Of the settings, the record has all that were given.
    known = [name for name in given if name in began_with or (began_with and not name.startswith("--"))]
    if words := differences(began_with, {name: given[name] for name in known}):
        raise ValueError(
            f"A resumed experiment keeps its original settings, and only --stop may change: {words}. Leave this out, "
            f"or {_BEGIN_ANEW}"
        )


def check_same_config(began_with: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a command that resumes has the config with which the experiment began, such as that of its file.

    Args:
        began_with: what the config set to other values than its defaults, as from `plain()`.
        now: the same of the config now.

    Raises:
        ValueError: a setting has another value; the message names each.
    """
    gone = [f"{name} was {value!r} and is not set" for name, value in began_with.items() if name not in now]
    if words := ", ".join(filter(None, [differences(began_with, now), *gone])):
        raise ValueError(
            f"A resumed experiment keeps its original settings, but its config has changed: {words}. Change it back, "
            f"or {_BEGIN_ANEW}"
        )


def differences(began_with: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Name the values that differ from those at the beginning, each with both: "keep was 0.9 and is 0.97".

    Args:
        began_with: of `recorded()`.
        given: values now, as from `plain()`, by name.

    Returns:
        Words; empty if all are the same.
    """
    changed = [name for name in given if name not in began_with or not _is_same(name, given[name], began_with[name])]
    before = {name: repr(began_with[name]) if name in began_with else "not set" for name in changed}
    return ", ".join(f"{name} was {before[name]} and is {given[name]!r}" for name in changed)


def check_unfinished(results: tune.ResultGrid, stop: Mapping[str, float]) -> None:
    """Check that a changed --stop has an effect: Tune resumes no trial that has finished.

    Args:
        results: of the experiment so far.
        stop: the new criteria.

    Raises:
        ValueError: all trials have finished, by the criteria that they began with, and do not meet the new ones.
    """
    finished = [r for r in results if r.error is None and (r.metrics or {}).get("done")]
    short = [r for r in finished if not is_reached(stop, r.metrics or {})]
    if not short:
        return
    words = f"{len(short)} of {len(results)} trials have finished by an earlier --stop, and are not resumed"
    if len(finished) < len(results):
        say(f"note: {words}.")
        return
    checkpoint = short[0].checkpoint
    where = "CHECKPOINT" if checkpoint is None else shlex.quote(location(checkpoint))
    raise ValueError(f"{words}. Continue in a new one: --restore {where} --experiment-name NAME, without --resume.")


# --- What a flag means ------------------------------------------------------------------------------------------------


def _is_same(name: str, value: Any, other: Any) -> bool:
    """Return whether two values of a flag mean the same: NaNs are equal, and so are spellings of the same path."""
    if name in _PATHS:
        value, other = _places(value), _places(other)
    return is_equal(value, other)


def is_equal(value: Any, other: Any, *, rel_tol: float = 0.0) -> bool:
    """Return whether two values in JSON's terms are equal, as NaNs are.

    Args:
        value: as from `plain()`.
        other: the same.
        rel_tol: by which numbers with a fraction may differ, as in `math.isclose()`.
    """
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(is_equal(value[key], other[key], rel_tol=rel_tol) for key in value)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(partial(is_equal, rel_tol=rel_tol), value, other))
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=rel_tol) or (math.isnan(value) and math.isnan(other))
    return bool(value == other)


def _places(value: Any) -> Any:
    """Return the paths in a value, each as that of the file or folder that it leads to."""
    if isinstance(value, list):
        return [_places(part) for part in value]
    if isinstance(value, dict):  # a search space
        return {key: _places(part) for key, part in value.items()}
    if not isinstance(value, str) or value in PACKAGED_TEACHERS:
        return value
    try:
        folder = local_folder(value, None)
        return value.rstrip("/") if folder is None else os.path.realpath(folder)
    except (ValueError, OSError):
        return value
