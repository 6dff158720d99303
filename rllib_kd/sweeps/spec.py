"""What a sweep began with, kept in its folder: it is resumed as it began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rllib_kd.checkpoints.run_json import read_json, write_json
from rllib_kd.checkpoints.run_names import SWEEP
from rllib_kd.experiment.resuming import differences, is_equal
from rllib_kd.offline.fingerprint import WEIGHTS, as_kept
from rllib_kd.text import plain

#: Entry with the user's own search space, setting → domain; None: the default one. Older versions did not keep it.
SPACE = "space"
#: A range of a space may come from the teacher's action gap, which machines round differently.
_ROUNDING = 1e-4


def write_spec(uri: str, spec: Mapping[str, Any]) -> None:
    """Write what a sweep begins with into its folder.

    Args:
        uri: path or URI of the folder, which is made if it is missing.
        spec: the sweep's options.
    """
    write_json(uri, SWEEP, plain(spec), indent=1)


def check_spec(uri: str, spec: Mapping[str, Any]) -> None:
    """Check that a sweep is resumed with what it began with.

    Args:
        uri: path or URI of its folder.
        spec: its options now, as far as they are known.

    Raises:
        ValueError: an option differs, or the folder is not a sweep's.
    """
    begun = _read(uri)
    if "minimize" not in begun:
        raise ValueError(
            f"The sweep in '{uri}' was started by a version of rllib-kd before 0.2, whose sweeps cannot be resumed. "
            "Start a new sweep, with another name."
        )
    now = plain(spec)
    for name in {WEIGHTS, SPACE} - begun.keys():
        now.pop(name, None)
    if WEIGHTS in now:
        now[WEIGHTS] = as_kept(now[WEIGHTS], begun[WEIGHTS])
    if SPACE in now and (settings := _changed(begun.pop(SPACE) or {}, now.pop(SPACE) or {})):
        raise ValueError(
            f"The sweep in '{uri}' was started with another search space, which differs in {', '.join(settings)}. "
            "Resume it with the same, or give another name."
        )
    if words := differences({**dict.fromkeys(now), **begun}, now):
        raise ValueError(
            f"The sweep in '{uri}' was started with other options: {words}. Resume it with the same, or give another "
            "name."
        )


def _changed(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings whose domains differ between two search spaces, in the order of names."""
    names = sorted(begun.keys() | now.keys())
    return [name for name in names if not is_equal(begun.get(name), now.get(name), rel_tol=_ROUNDING)]


def _read(uri: str) -> dict[str, Any]:
    try:
        begun = read_json(uri, SWEEP)
    except ValueError as error:
        raise ValueError(f"{error} Start a new sweep, with another name.") from error
    if begun is None:
        raise ValueError(
            f"'{uri}' contains another kind of run: a sweep keeps {SWEEP} there. Give the name of a sweep."
        )
    if not isinstance(begun, dict):
        raise ValueError(f"'{uri}/{SWEEP}' is damaged: expected an object. Start a new sweep, with another name.")
    return begun
