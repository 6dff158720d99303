"""Run experiments by Ray Tune: options, resuming, restoring, schedulers."""

from __future__ import annotations

import dataclasses
import errno
import os
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow.fs import FileType
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_kd import _rllib
from rllib_kd.algorithm.algorithm import DistillDQN
from rllib_kd.algorithm.restorable import check_networks
from rllib_kd.algorithm.settings import check_names
from rllib_kd.checkpoints.manifest import MARKS
from rllib_kd.checkpoints.replay_files import local_folder, resolve_filesystem
from rllib_kd.checkpoints.results import folders_among
from rllib_kd.checkpoints.tune import checkpoints_of
from rllib_kd.checkpoints.uris import (
    NothingThereError,
    absolute_uri,
    check_storage,
    child_of,
    file_types,
    list_folder,
    open_uri,
)
from rllib_kd.checkpoints.whole import first_whole, lacking
from rllib_kd.environments.own import short_name
from rllib_kd.experiment.experiment import LOG_LEVEL, CheckedExperiment
from rllib_kd.experiment.interrupts import SaveOnInterrupt, saving_on_interrupt
from rllib_kd.experiment.locations import remember
from rllib_kd.experiment.metrics import MissingMetrics, checked_metric
from rllib_kd.experiment.names import check_not_empty, newest, own_folder
from rllib_kd.experiment.resuming import (
    StopAt,
    begin_with,
    check_same_config,
    check_unchanged,
    check_unfinished,
    have_stopped,
    record,
    recorded,
)
from rllib_kd.experiment.schedulers import scheduler_named
from rllib_kd.experiment.snapshots import Snapshots, forget, has_snapshot, put_back, snapshot_often
from rllib_kd.locks import LockedError, locked
from rllib_kd.numeric import check_integer
from rllib_kd.relay import listening
from rllib_kd.teachers.loading import OpenedCheckpoint
from rllib_kd.terminal import say

_STOP, _CONFIG = "--stop", "config"

#: The options that Tune keeps from the start of an experiment.
_KEPT = (
    "checkpoint_freq",
    "checkpoint_at_end",
    "keep_checkpoints_num",
    "checkpoint_score_attr",
    "max_failures",
    "restore",
    "scheduler",
    "scheduler_config",
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota used up, file too large


@dataclass(frozen=True)
class RunOptions:
    """How an experiment is run: the flags of `rllib train` that do not concern the algorithm and its settings."""

    checkpoint_freq: int = 0  # training iterations; 0: never
    checkpoint_at_end: bool = True
    keep_checkpoints_num: int | None = None
    checkpoint_score_attr: str | None = None  # "min-..." where low is good
    max_failures: int = 0  # of a trial, that send it back to its last checkpoint, or to its start; -1: no limit
    storage_path: str = "~/ray_results"
    restore: str | None = None
    resume: bool = False
    scheduler: str | None = None
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[tune.Callback] = ()

    def __post_init__(self) -> None:
        check_integer("checkpoint_freq", self.checkpoint_freq, low=0)
        if self.keep_checkpoints_num is not None:
            check_integer("keep_checkpoints_num", self.keep_checkpoints_num, low=1)
        check_integer("max_failures", self.max_failures, low=-1)
        check_not_empty(
            storage_path=self.storage_path,
            checkpoint_score_attr=self.checkpoint_score_attr,
            restore=self.restore,
            scheduler=self.scheduler,
        )
        for path in (self.storage_path, self.restore):
            if path is not None:
                local_folder(path, None)  # before Ray starts
        check_storage(self.storage_path)


def check_options(experiment: CheckedExperiment, options: RunOptions, given: Collection[str] = ()) -> None:
    """Check the options as far as that is possible before Ray starts.

    Args:
        experiment: the experiment.
        options: its options.
        given: names of options that were written out, so that a resumed run is asked for them even if they are the
            defaults.

    Raises:
        ValueError: the same as `run()` would raise after the start of Ray.
    """
    if options.resume:
        _check_resumable(folder := folder_of(experiment, options))
        defaults = _flags(dataclasses.replace(experiment, settings={}, num_samples=1), RunOptions())
        for name in map(_flag, given):
            defaults.pop(name, None)
        began_with = recorded(folder)
        check_unchanged(began_with, _flags(experiment, options), defaults)
        check_same_config(began_with.get(_CONFIG, experiment.configured), experiment.configured)
        _restored_checkpoint(experiment, options)
        return
    _restored_checkpoint(experiment, options)
    _scheduler(experiment, options)
    _checkpoint_config(options)
    _check_writable(absolute_uri(options.storage_path))


#: Folders that this thread has locked.
_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())


@contextmanager
def alone_in(uri: str, *, remedy: str) -> Iterator[None]:
    """Lock an experiment's folder while this run lasts, since the files of two runs would mix.

    Only local folders are locked, not those at a URI (S3, ...). The same thread may enter again.

    Args:
        uri: path or URI of the folder, which need not exist.
        remedy: an alternative to waiting, for the message.

    Raises:
        ValueError: another run uses the folder, and the message names its process; or it cannot be written to.
    """
    folder = local_folder(uri, None)
    if folder is None or folder in _held.get():
        yield
        return
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, wait=False))
        except LockedError as error:
            raise ValueError(f"'{uri}' is in use by {error}. Wait until it ends, or {remedy}.") from error
        except OSError as error:
            raise ValueError(f"'{uri}' cannot be written to: {error.strerror}. Name another folder.") from error
        stack.callback(_held.reset, _held.set(_held.get() | {folder}))
        yield


def folder_of(experiment: CheckedExperiment, options: RunOptions) -> str:
    """Return path or URI of the experiment's folder."""
    return child_of(absolute_uri(options.storage_path), experiment.name)


def alone(experiment: CheckedExperiment, options: RunOptions) -> AbstractContextManager[None]:
    """Lock the experiment's folder.

    Raises:
        ValueError: another run uses it.
    """
    return alone_in(folder_of(experiment, options), remedy="choose another --experiment-name")


def note_of_earlier_runs(experiment: CheckedExperiment, options: RunOptions) -> str | None:
    """Return a note if a new run will be added beside an earlier one; None if there is no earlier one."""
    folder = folder_of(experiment, options)
    if options.resume or not has_snapshot(folder):
        return None
    return (
        f"'{folder}' has an earlier run, and this one is added beside it. The earlier one can no longer be resumed; "
        "its checkpoints stay. Give another --experiment-name to keep them apart."
    )


@contextmanager
def named(experiment: CheckedExperiment, options: RunOptions) -> Iterator[CheckedExperiment]:
    """Make a folder for an experiment without a given name, and yield the experiment with the folder's name.

    Raises:
        ValueError: a resumed run needs a name; or the folder cannot be made.
    """
    storage = absolute_uri(options.storage_path)
    if options.resume:
        last = newest(storage, experiment.subject)
        hint = "" if last is None else f" The newest one here is '{last}'."
        raise ValueError(
            f"--resume needs the name of the run, which was printed when it began: --experiment-name NAME.{hint}"
        )
    with own_folder(storage, experiment.name) as name:
        yield dataclasses.replace(experiment, name=name)


def run(experiment: CheckedExperiment, options: RunOptions) -> tuple[tune.ResultGrid, bool]:
    """Train by Ray Tune.

    Ctrl-C, SIGTERM or SIGHUP lets every trial end its iteration and save a checkpoint. A second Ctrl-C or SIGTERM ends
    at once.

    Returns:
        The results, and whether training was interrupted (it can then be resumed).

    Raises:
        ValueError: the scheduler is unknown, there is nothing to resume or to restore, the results cannot be written,
            or another run uses their folder.
        OSError: the disk of the results is full.
    """
    if options.resume:
        _check_resumable(folder_of(experiment, options))
    else:
        _check_writable(absolute_uri(options.storage_path))
    with alone(experiment, options):
        return _run(experiment, options)


def _run(experiment: CheckedExperiment, options: RunOptions) -> tuple[tune.ResultGrid, bool]:
    snapshot_often(experiment.num_samples, seconds=1.0)
    storage, folder = absolute_uri(options.storage_path), folder_of(experiment, options)
    remember(folder)
    space = experiment.param_space
    if (restored := _restored_checkpoint(experiment, options)) is not None:
        space = _restoring(space, restored)
    if options.resume:
        tuner = _resumed(experiment, space, folder)
    else:
        begin_with({})
        scheduler, checkpoints = _scheduler(experiment, options), _checkpoint_config(options)
        forget(folder)  # or --resume would continue an earlier run, as this one, until Tune has written a state
        record(folder, {**_flags(experiment, options), _STOP: experiment.stop, _CONFIG: experiment.configured})
        metrics = [*experiment.stop, getattr(scheduler, "metric", None), checkpoints.checkpoint_score_attribute]
        tuner = tune.Tuner(
            experiment.trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=experiment.num_samples, scheduler=scheduler, trial_name_creator=_trial_name
            ),
            run_config=tune.RunConfig(
                name=experiment.name,
                storage_path=storage,
                stop=StopAt(experiment.stop),
                verbose=0,
                callbacks=[
                    *options.callbacks,
                    SaveOnInterrupt(),
                    MissingMetrics([m for m in metrics if m]),
                    Snapshots(),
                ],
                checkpoint_config=checkpoints,
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
            ),
        )
        if options.max_failures and not options.checkpoint_freq:
            say("note: without --checkpoint-freq, a trial that fails restarts from its beginning.")
        if not experiment.stop and not space.get("patience"):
            say("note: without --stop, training runs until Ctrl-C.")
    with _rllib.callbacks_uncounted(), listening(), saving_on_interrupt() as interrupted:
        try:
            results = tuner.fit()
            return results, interrupted.is_set() and not have_stopped(results, experiment.stop)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise OSError(
                f"The disk of the results, '{storage}', is full: {error}. Free some space, and continue with --resume."
            ) from error


def _trial_name(trial: Any) -> str:
    """Return Tune's name of a trial, without the path of an environment's file, which would cut off its id."""
    name = f"{trial.trainable_name}_{short_name(trial.config.get('env'))}_{trial.trial_id}"
    return name.replace("/", "_")


def _resumed(experiment: CheckedExperiment, space: AlgorithmConfig | dict[str, Any], path: str) -> tune.Tuner:
    began_with = recorded(path)
    if has_snapshot(path):
        put_back(path)
    tuner = tune.Tuner.restore(
        path, trainable=experiment.trainable, param_space=space, resume_unfinished=True, resume_errored=True
    )
    begin_with(experiment.stop)
    if experiment.stop and _STOP in began_with and experiment.stop != began_with[_STOP]:
        check_unfinished(tuner.get_results(), experiment.stop)
    return tuner


def _flags(experiment: CheckedExperiment, options: RunOptions) -> dict[str, Any]:
    """Return the options that Tune keeps from the start of an experiment, by flag; settings by their own names."""
    kept = {_flag(name): getattr(options, name) for name in _KEPT}
    if options.restore is not None:
        kept["--restore"] = absolute_uri(options.restore)
    settings = {name: value for name, value in experiment.settings.items() if name != LOG_LEVEL}
    return {**settings, "--num-samples": experiment.num_samples, **kept}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_resumable(path: str) -> None:
    if not tune.Tuner.can_restore(path):
        raise ValueError(
            f"There is no experiment to resume at '{path}'. Give the --experiment-name and --storage-path with which "
            "it began."
        )


def _checkpoint_config(options: RunOptions) -> tune.CheckpointConfig:
    attribute, order = options.checkpoint_score_attr, "max"
    if attribute is not None and attribute.startswith("min-"):
        attribute, order = attribute.removeprefix("min-"), "min"
    return tune.CheckpointConfig(
        checkpoint_frequency=options.checkpoint_freq,
        checkpoint_at_end=options.checkpoint_at_end,
        num_to_keep=options.keep_checkpoints_num,
        checkpoint_score_attribute=None if attribute is None else checked_metric(attribute),
        checkpoint_score_order=order,
    )


def _check_writable(storage: str) -> None:
    if "://" in storage:
        return
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
        writable = os.access(storage, os.W_OK)
    except OSError as error:
        raise ValueError(f"Results cannot be written to '{storage}': {error.strerror}. Set --storage-path.") from error
    if not writable:
        raise ValueError(f"Results cannot be written to '{storage}': permission denied. Set --storage-path.")


def _checkpoint_uri(path: str, trainable: type[Algorithm]) -> str:
    missing = f"There is no checkpoint of an Algorithm at '{path}' to restore. Name one, or a run folder."
    try:
        opened = OpenedCheckpoint(path, continues=True)
    except NothingThereError as error:
        raise ValueError(f"Nothing can be restored from '{path}': {error}") from error
    checkpoint = opened.location
    files = [posixpath.join(checkpoint.path, name) for name in MARKS]
    if any(kind != FileType.File for kind in file_types(checkpoint.filesystem, files)):
        raise ValueError(missing)
    if (lack := lacking(checkpoint.filesystem, checkpoint.path)) is not None:
        raise ValueError(f"The checkpoint '{path}' is incomplete: {lack}. Restore another one.")
    trained_by = opened.algorithm()
    if trained_by is not None and trained_by not in {cls.__name__ for cls in trainable.__mro__}:
        raise ValueError(
            f"The checkpoint '{path}' was saved by {trained_by}, which {trainable.__name__} cannot restore. Set --algo "
            f"{trained_by}, or another checkpoint."
        )
    return checkpoint.uri


def _restored_checkpoint(experiment: CheckedExperiment, options: RunOptions) -> str | None:
    """Return the checkpoint from which trials start that have none of their own; None: they start from nothing.

    Raises:
        ValueError: it cannot be restored, and no trial of a resumed run has a checkpoint of its own.
    """
    path, folder = options.restore, folder_of(experiment, options)
    if options.resume:  # with or without --restore
        path = recorded(folder).get("--restore", path)
    try:
        return None if path is None else _checkpoint_uri(path, experiment.trainable)
    except ValueError:
        if options.resume and _has_checkpoints(folder):
            return path
        raise


def _has_checkpoints(folder: str) -> bool:
    filesystem, path = open_uri(folder)
    trials = folders_among(list_folder(filesystem, path))
    return any(checkpoints_of(filesystem, trial) for trial in trials)


def _restoring(space: AlgorithmConfig | dict[str, Any], checkpoint: str) -> AlgorithmConfig | dict[str, Any]:
    """Return the search space, in which algorithms start from a checkpoint."""
    name = "callbacks_on_algorithm_init"
    own = getattr(space, name) if isinstance(space, AlgorithmConfig) else space.get(name)
    # The user's own functions find the restored student.
    restoring = [partial(_restore, checkpoint), *(own if isinstance(own, list | tuple) else [own] if own else [])]
    if isinstance(space, AlgorithmConfig):
        return space.copy(copy_frozen=False).callbacks(on_algorithm_init=restoring)
    return {**space, name: restoring}


def _restore(path: str, *, algorithm: Any, **kwargs: Any) -> None:
    """Restore an algorithm from a checkpoint; if its trial continues, from the newest one of its own.

    Tune then restores the trial, too, if its state has that checkpoint, which it lacks if the run was killed just then.
    """
    filesystem = None
    if (storage := _rllib.trial_storage(algorithm)) is not None:
        own = first_whole(storage.storage_filesystem, checkpoints_of(storage.storage_filesystem, storage.trial_fs_path))
        path, filesystem = (path, None) if own is None else (own, storage.storage_filesystem)
    if not isinstance(algorithm, DistillDQN) and algorithm.learner_group is not None:  # the first checks it itself
        check_networks(algorithm.learner_group, *resolve_filesystem(path, filesystem))
    algorithm.restore_from_path(path, filesystem=filesystem)


def _scheduler(experiment: CheckedExperiment, options: RunOptions) -> Any:
    name, arguments = options.scheduler, options.scheduler_config
    check_names(type(experiment.trainable.get_default_config()), arguments.get("hyperparam_mutations", ()))
    if name is None:
        if arguments:
            raise ValueError("--scheduler-config needs a --scheduler. Name one, or leave it out.")
        return None
    return scheduler_named(name, arguments)
