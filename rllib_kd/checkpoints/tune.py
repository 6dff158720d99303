"""Folders of Ray Tune: which checkpoint a path means.

A run folder means its best checkpoint by evaluation if training evaluated, else its newest. If training continues from
it, it means its newest. `RUN@best` and `RUN@newest` choose. A folder with a single zip means that zip. All functions
with a path argument call `resolve()`.
"""

from __future__ import annotations

import io
import logging
import math
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.manifest import ALGORITHM_FILE
from rllib_kd.checkpoints.pickles import CheckpointError, ReadBudget, read_pickle
from rllib_kd.checkpoints.results import ITERATION, TrialReader, folders_among, of_rows_that_count
from rllib_kd.checkpoints.run_names import CHECKPOINT, RESULTS, SWEEP, short_names
from rllib_kd.checkpoints.runs import EVALUATION, RETURNS, TRAINING, Curve, CurvePoint, curve_of
from rllib_kd.checkpoints.uris import (
    NothingThereError,
    absolute_uri,
    file_types,
    is_file,
    list_folder,
    only_zip,
    open_uri,
    read_file,
    uri_of,
)
from rllib_kd.checkpoints.whole import first_whole
from rllib_kd.numeric import is_integer
from rllib_kd.paths import tidied
from rllib_kd.text import number, printable

logger = logging.getLogger(__name__)

#: The rules of `RUN@RULE`, by which a checkpoint is chosen.
BEST, NEWEST = "best", "newest"
_STATE = "algorithm_state.pkl"  # in a checkpoint
_MAX_METADATA = 2**16  # bytes; those of RLlib have 200
_MAX_OPCODES = 8 * limits.MAX_OPCODES  # of the states of all checkpoints of a folder together
_MAX_NAME = 255  # characters of a checkpoint's folder
_MAX_LISTED = 10  # runs, in a message


class Location(NamedTuple):
    """The location of a checkpoint, or of another library's file."""

    uri: str
    filesystem: pyarrow.fs.FileSystem
    path: str  # in the filesystem
    trained_return: float | None = None  # mean, that the results of its run record


class FoundStudent(NamedTuple):
    """A checkpoint as `open_source()` takes it, and the learning curve of its run if that is known."""

    source: str | Location
    curve: Curve
    is_named: bool = False  # by the user

    @property
    def checkpoint(self) -> str:
        """Return its path or URI."""
        return self.source.uri if isinstance(self.source, Location) else self.source


class _Named(NamedTuple):
    """A path as it was given, and without its rule."""

    given: str
    uri: str
    filesystem: pyarrow.fs.FileSystem
    path: str
    rule: str | None = None
    why: str = ""  # the rule applies


class _Return(NamedTuple):
    """A mean return, the number of the result that has it, and whether that is the newest one; −inf: there is none."""

    value: float = -math.inf
    result: int = 0
    is_newest: bool = True


class _Scored(NamedTuple):
    """A checkpoint, with the last return before it was written for each of `RETURNS`."""

    path: str
    returns: tuple[_Return, ...]


def resolve(path: str | os.PathLike[str], *, continues: bool = False) -> Location:
    """Return the checkpoint that a path means.

    A run folder is a trial of Tune, or an experiment with one. It means the checkpoint with the highest mean return in
    evaluation; its newest checkpoint if training did not evaluate. `RUN@newest` chooses the newest; `RUN@best` the
    best, by returns of training if there was no evaluation. An experiment with several trials means the best checkpoint
    of all of them. Half-written checkpoints are skipped with a warning. A folder that is no checkpoint and has a single
    zip means the zip (of Stable-Baselines3), unless it is Tune's. Any other path means itself, also if its name
    contains an `@`.

    Args:
        path: path or URI of a checkpoint, a run folder, or another library's file.
        continues: whether training continues from the checkpoint. A run folder then means its newest one, as in Tune.

    Raises:
        CheckpointError: there is nothing; a run has no checkpoint; an experiment has several trials, and none was
            evaluated, or training is to continue; a folder has several zips; or the results exceed the limits.
    """
    named = _find(os.fspath(path))
    reader = _TrialsReader(named.filesystem)
    trials = _trials_of(named, reader)
    if continues and named.rule is None:
        named = named._replace(rule=NEWEST, why="from which training continues")
    return _choose(named, trials, reader) if trials else _itself(named, reader)


def find_students(paths: Sequence[str | os.PathLike[str]], *, names: Sequence[str] = ()) -> dict[str, FoundStudent]:
    """Return the students that paths mean, by the names that they are given, else the shortest distinct ends of paths.

    Args:
        paths: each as in `resolve()`; but an experiment means all its trials. A path that is not a run means itself.
            `NAME=PATH` names a student, or is the first part of its trials' names; a path that exists is not split.
        names: names that are not paths.

    Raises:
        ValueError: as `resolve()`; the limits on results apply to all paths together. Two students have the same name.
    """
    readers: list[_TrialsReader] = []
    found = [_students_at(*_split_name(os.fspath(path), names), readers, names) for path in paths]
    unnamed = list(dict.fromkeys(each.path for several in found for each in several if each.name is None))
    short = dict(zip(unnamed, short_names(unnamed), strict=True))
    given = [each.name for several in found for each in several if each.name is not None]
    if twice := next((name for name in given if given.count(name) > 1), None):
        raise ValueError(f"Two students are named '{twice}'. Give each a name of its own: NAME=PATH.")

    students: dict[str, FoundStudent] = {}
    for each in (each for several in found for each in several):
        at = f"@{each.rule}" if each.rule else ""
        name = each.name or short[each.path] + at
        own = each.student
        is_other = name in students and students[name].checkpoint != own.checkpoint  # by a folder whose name has an @
        is_taken = each.name is None and (is_other or name in given)
        students[each.path + at if is_taken else name] = own._replace(is_named=each.name is not None)
    return students


def checkpoints_of(filesystem: pyarrow.fs.FileSystem, trial: str) -> list[str]:
    """Return the checkpoints in the folder of a trial, the newest first; empty if it has none.

    Args:
        filesystem: filesystem of the folder.
        trial: path of the folder, which need not exist.
    """
    folders = folders_among(list_folder(filesystem, trial, missing_ok=True))
    named = [folder for folder in folders if posixpath.basename(folder).startswith(CHECKPOINT)]
    return sorted(named, key=_place, reverse=True)


class _Found(NamedTuple):
    """A student, its name if that was given, the path that its name is else made of, and the rule that chose it."""

    name: str | None
    path: str
    rule: str | None
    student: FoundStudent


def _split_name(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """Split `NAME=PATH`, unless there is something of this very name, as of Tune's trials (`..._lr=0.1_...`)."""
    name, mark, path = text.partition("=")
    is_path = not mark or "/" in name or os.path.lexists(text) or os.path.lexists(text.rpartition("@")[0])
    if is_path or text in names:
        return None, text
    if not name.strip() or not path:
        raise ValueError(f"Expected NAME=PATH, such as small=/tmp/student, or a path. Got '{text}'.")
    return name.strip(), path


def _students_at(name: str | None, given: str, readers: list[_TrialsReader], names: Sequence[str]) -> list[_Found]:
    """Return the students at a path; `readers` are those of the paths before it, one for each filesystem."""
    try:
        named = None if given in names else _find(given)
    except NothingThereError:
        named = None  # opening it raises a clear error
    if named is None:
        return [_Found(name, given, None, FoundStudent(given, Curve()))]
    reader = next((each for each in readers if each.filesystem.equals(named.filesystem)), None)
    if reader is None:
        readers.append(reader := _TrialsReader(named.filesystem))
    trials = _trials_of(named, reader)
    if not trials:
        run = reader.run_of(named.path)
        curve = Curve() if run is None else reader.results(run).curve
        return [_Found(name, given, None, FoundStudent(_itself(named, reader), curve))]
    whole = name is None or len(trials) == 1
    found = []
    for trial, inner in zip(trials, trials if whole else short_names(trials), strict=True):
        own = named._replace(uri=uri_of(named.uri, named.path, trial), path=trial)
        student = FoundStudent(_choose(own, [trial], reader), reader.results(trial).curve)
        found.append(_Found(name if whole else f"{name}/{inner}", own.uri.partition("?")[0], named.rule, student))
    return found


def _find(given: str) -> _Named:
    """Open a path; without its rule, unless something of this very name is there."""
    uri = absolute_uri(given)
    before, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    folder, at, rule = before.rpartition("@")
    try:
        return _Named(given, uri, *open_uri(uri))
    except NothingThereError:
        if not at or "/" in rule:
            raise
        if rule in (BEST, NEWEST):
            why = f"as @{rule} requests"
            return _Named(given, folder + mark + options, *open_uri(folder + mark + options), rule, why)
        _check_rule(given, folder + mark + options, rule)
        raise


def _check_rule(given: str, folder: str, rule: str) -> None:
    try:
        open_uri(folder)
    except CheckpointError:
        return
    raise NothingThereError(f"There is nothing at '{given}'. After '@' expected {BEST} or {NEWEST}, got '{rule}'.")


def _trials_of(named: _Named, reader: _TrialsReader) -> list[str]:
    """Return the trial at a path, or those in it; empty if it is not a run."""
    trials = list(reader.trials(named.path))
    if not trials and named.rule is not None:
        raise CheckpointError(
            f"'{named.uri}' is not a run folder, so '@{named.rule}' has nothing to choose from. Leave it out, or "
            "name the folder of a Tune trial or experiment."
        )
    return trials


def _itself(named: _Named, reader: _TrialsReader) -> Location:
    """Return the location of a checkpoint or file, with its figures in the results of its run."""
    archive = only_zip(named.filesystem, named.path, named.uri)
    if archive is not None:
        uri = uri_of(named.uri, named.path, archive)
        logger.info("Using '%s', the only zip in '%s'.", printable(uri), printable(tidied(named.given)))
        return Location(uri, named.filesystem, archive)
    run = reader.run_of(named.path)
    scored = [] if run is None else reader.score(run, [named.path])
    return Location(named.uri, named.filesystem, named.path, next(map(_return_of, scored), None))


def _choose(named: _Named, trials: Sequence[str], reader: _TrialsReader) -> Location:
    is_evaluated = any(math.isfinite(reader.results(trial).last[EVALUATION].value) for trial in trials)
    asks_returns = named.rule == BEST or (named.rule is None and is_evaluated)
    found = [
        scored for trial in trials for scored in reader.score(trial, reader.folders(trial), reads_states=asks_returns)
    ]
    if not found:
        raise CheckpointError(
            f"The run '{named.uri}' has no checkpoint. If it was interrupted, continue it by the same command with "
            "--resume. Otherwise let Tune write some: --checkpoint-at-end or --checkpoint-freq on the command line, "
            "CheckpointConfig(checkpoint_at_end=True) in Python."
        )
    kind = _kind(named, found)
    if kind is None:
        _check_is_one_run(named, found)
    candidates = found[::-1] if kind is None else _best_first(found, kind)
    whole = first_whole(named.filesystem, (scored.path for scored in candidates))
    chosen = next((scored for scored in candidates if scored.path == whole), candidates[0])
    if not asks_returns:
        (chosen,) = reader.score(posixpath.dirname(chosen.path), [chosen.path])
    uri = uri_of(named.uri, named.path, chosen.path)
    why = _why(named.why, kind, chosen)
    taken = posixpath.basename(chosen.path) if len(trials) == 1 else posixpath.relpath(chosen.path, named.path)
    logger.info("Using '%s' of run '%s': %s.", printable(taken), printable(tidied(named.given)), why)
    return Location(uri, named.filesystem, chosen.path, _return_of(chosen))


def _best_first(found: Sequence[_Scored], kind: int) -> list[_Scored]:
    """Return checkpoints by their returns; of equal ones the newest result's, of one result the first after it."""
    trials = list(dict.fromkeys(posixpath.dirname(scored.path) for scored in found))

    def preference(place: int) -> tuple[float, int, int, int]:
        value, result, _ = found[place].returns[kind]
        is_evaluated = math.isfinite(value)  # or the newest is the best guess
        return value, trials.index(posixpath.dirname(found[place].path)), result, -place if is_evaluated else place

    return [found[place] for place in sorted(range(len(found)), key=preference, reverse=True)]


def _kind(named: _Named, found: Sequence[_Scored]) -> int | None:
    """Return by which of `RETURNS` the best is chosen; None: the newest is chosen."""
    if named.rule == NEWEST:
        return None
    for kind in (EVALUATION, TRAINING) if named.rule == BEST else (EVALUATION,):
        if any(math.isfinite(scored.returns[kind].value) for scored in found):
            return kind
    if named.rule == BEST:
        raise CheckpointError(
            f"The results of '{named.uri}' contain no return, so no checkpoint is the best. Leave out '@{BEST}', or "
            "name a checkpoint."
        )
    return None


def _check_is_one_run(named: _Named, found: Sequence[_Scored]) -> None:
    runs = list(dict.fromkeys(scored.path.rpartition("/")[0] for scored in found))
    if len(runs) > 1 and is_file(named.filesystem, posixpath.join(named.path, SWEEP)):
        raise CheckpointError(
            f"'{tidied(named.given)}' is a sweep of {len(runs)} settings, each with a student for each seed. Name one "
            f"student, such as '{uri_of(named.uri, named.path, posixpath.join(found[-1].path, 'seed_0'))}'. The sweep "
            "printed the path of the recommended one, and its page, report/index.html, links all."
        )
    if len(runs) > 1:
        names = ", ".join([*short_names(runs)[:_MAX_LISTED], *(["..."] if len(runs) > _MAX_LISTED else [])])
        one = uri_of(named.uri, named.path, runs[0])
        asked = named.rule if named.given.endswith(f"@{named.rule}") else None
        is_unevaluated = " by returns in training, since none was evaluated" if named.rule is None else ""
        raise CheckpointError(
            f"'{tidied(named.given)}' contains {len(runs)} runs: {names}. Name one of them, such as "
            f"'{_by_rule(one, asked)}', or '{_by_rule(named.uri, BEST)}', the best checkpoint of all{is_unevaluated}."
        )


def _by_rule(uri: str, rule: str | None) -> str:
    """Return the path or URI with a rule; before its options, if it has some."""
    before, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{before.rstrip('/')}{'' if rule is None else f'@{rule}'}{mark}{options}"


def _why(why: str, kind: int | None, chosen: _Scored) -> str:
    asked = f", {why}" if why else ""
    if kind is None:
        return f"it is the newest{asked or ', since training was not evaluated'}"
    value, _, is_newest = chosen.returns[kind]
    if not math.isfinite(value):
        return f"it is the newest complete one{asked}"
    if kind == EVALUATION:
        of_which = "" if is_newest else ", of the last one before it was saved"
        return f"it has the best mean return in evaluation ({number(value)}{of_which}){asked}"
    return f"it has the best mean return in training ({number(value)}){asked}; there was no evaluation"


def _return_of(scored: _Scored) -> float | None:
    return next((own.value for own in scored.returns if math.isfinite(own.value)), None)


class _Row(NamedTuple):
    """What is taken of a result."""

    point: CurvePoint
    checkpoint: str | None
    iteration: int | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Row:
        return cls(CurvePoint.of(row), _name(row.get("checkpoint_dir_name")), _number(row.get(ITERATION)))


class _Results:
    """The results of a trial: the returns of its checkpoints, and its learning curve."""

    def __init__(self, rows: Iterator[dict[str, Any]]):
        self.last = tuple(_Return() for _ in RETURNS)
        self.by_name: dict[str | None, tuple[_Return, ...]] = {}
        self.by_iteration: dict[int | None, tuple[_Return, ...]] = {}
        taken = of_rows_that_count(rows, _Row.of)
        for result, row in enumerate(taken):
            self.last = tuple(
                old._replace(is_newest=False) if new is None else _Return(new, result)
                for old, new in zip(self.last, row.point.returns, strict=True)
            )
            self.by_name[row.checkpoint] = self.by_iteration[row.iteration] = self.last
        self.curve = curve_of([row.point for row in taken])


class _TrialsReader(TrialReader):
    """Reads results and states within limits for all trials together, and the results of each trial once."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem):
        super().__init__(filesystem)
        self._budget = ReadBudget(_MAX_OPCODES, limits.MAX_FILE)
        self._results: dict[str, _Results] = {}

    def is_trial(self, folder: str) -> bool:
        """Return whether a folder is that of a trial."""
        return is_file(self.filesystem, posixpath.join(folder, RESULTS))

    def trials(self, path: str) -> Iterator[str]:
        """Yield the trial at a path, or those in its folder."""
        if file_types(self.filesystem, [path]) != [pyarrow.fs.FileType.Directory]:
            return
        if self.is_trial(path):
            yield path
            return
        is_local = self.filesystem.type_name == "local"  # where links may lead anywhere, and to the same trial often
        folders = [folder for folder in self.folders(path) if not (is_local and os.path.islink(folder))]
        kinds = file_types(self.filesystem, [posixpath.join(folder, RESULTS) for folder in folders])
        for folder, kind in zip(folders, kinds, strict=True):
            if kind == pyarrow.fs.FileType.File:
                yield folder

    def results(self, trial: str) -> _Results:
        """Return the results of a trial."""
        if trial not in self._results:
            self._results[trial] = _Results(self.rows(posixpath.join(trial, RESULTS)))
        return self._results[trial]

    def run_of(self, checkpoint: str) -> str | None:
        """Return the trial whose folder contains a checkpoint; None for any other path."""
        trial, _, name = checkpoint.rpartition("/")
        return trial if name.startswith(CHECKPOINT) and self.is_trial(trial) else None

    def score(self, trial: str, folders: Sequence[str], *, reads_states: bool = True) -> list[_Scored]:
        """Return the checkpoints among a trial's folders. Those without a number come first, then the others by age.

        Args:
            trial: folder of the trial.
            folders: folders in it.
            reads_states: whether to find returns also for checkpoints that no result names.
        """
        results, found = self.results(trial), []
        for folder in sorted(folders, key=_place):
            name = posixpath.basename(folder)
            if name in results.by_name:
                found.append(_Scored(folder, results.by_name[name]))
            elif name.startswith(CHECKPOINT):  # Tune names it in no result if it is an Algorithm's
                iteration = self._iteration(folder) if reads_states else None
                found.append(_Scored(folder, results.by_iteration.get(iteration, results.last)))
        return found

    def _iteration(self, checkpoint: str) -> int | None:
        """Return the iterations of training before a checkpoint was written; None if it has no number."""
        path = posixpath.join(checkpoint, ALGORITHM_FILE)
        try:
            metadata = parse_json(read_file(self.filesystem, path, max_bytes=_MAX_METADATA))
            if isinstance(metadata, dict) and (iteration := _number(metadata.get(ITERATION))) is not None:
                return iteration
        except (ValueError, OSError):
            pass
        return self._iteration_of_state(posixpath.join(checkpoint, _STATE))  # as RLlib's other algorithms have it

    def _iteration_of_state(self, path: str) -> int | None:
        if self._budget.is_used_up:
            raise CheckpointError(f"'{path}' was refused: these states are too many or too large. Name one checkpoint.")
        try:
            content = read_file(self.filesystem, path, max_bytes=limits.MAX_SMALL_FILE)
            self._budget.take(content, path)
            state = read_pickle(io.BytesIO(content), path, self._budget)
        except (CheckpointError, OSError):
            return None
        return _number(state.get(ITERATION)) if isinstance(state, dict) else None


def _place(folder: str) -> tuple[int, str]:
    """Return the key that sorts a trial's checkpoints; a copy of one, such as `checkpoint_best`, is not newer."""
    number = posixpath.basename(folder).removeprefix(CHECKPOINT)
    return (int(number) if re.fullmatch(r"[0-9]{1,18}", number) else -1), folder


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= _MAX_NAME else None


def _number(value: Any) -> int | None:
    return value if is_integer(value, 1 - 2**60, 2**60 - 1) else None  # many larger ones have the same hash
