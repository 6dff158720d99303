"""Label files: one labelled file for each recorded one, by a pool of actors of Ray Data.

Ray Data maps over the paths, and each actor streams its file: reads, labels and writes it batch by batch. Rows pass
neither the object store nor other processes, so that memory stays the same at any size; files stay one to one and in
their order, so that a killed job skips the finished ones; Ray Data places the actors, and gives the files of a lost
node to others. Ray Data's own way over rows (`read_parquet`, `map_batches`, `write_parquet`) has none of these:
`Teacher.label()` is for those who want rows in a Dataset.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from pyarrow.fs import FileSystem
from ray.data import ActorPoolStrategy
from ray.rllib.core.columns import Columns
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.numeric import is_finite, is_integer
from rllib_kd.observations.masks import MASK
from rllib_kd.offline.files import InputFile, Inputs, check_apart, find_inputs, labelled_files
from rllib_kd.offline.labelling import Labeller
from rllib_kd.offline.listing import digest_of, filesystem_of
from rllib_kd.offline.reading import Contents, Reader, note_left_out, num_rows, part_of
from rllib_kd.offline.schema import DataError, LabelledSchema, open_parquet
from rllib_kd.offline.writing import remove_parts, write_file
from rllib_kd.terminal import bar, say

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher

#: Rows that the teacher labels at once.
BATCH_SIZE = 4096
#: Actors: how many, or at least and at most how many, as in `ray.data.Dataset.map_batches()`.
Concurrency = int | tuple[int, int] | None
_SAMPLE = 32  # rows that are labelled before the job starts, to find out what is in the files
_AT_ONCE = 16  # footers that are read at the same time
_PART = 256  # of them, before their contents are compared
_MAX_TRIES = 3  # of a file whose actor dies
_MAX_BLOCKS = 1_000  # of the Dataset of paths
_FEW_TASKS = 4  # for each actor


@dataclass(frozen=True)
class Labelled:
    """The result of a job.

    Args:
        output: URI of the folder.
        schema: schema of its files.
        num_files: number of files, with those that were there before.
        num_skipped: number of files that were there before.
        num_rows: number of rows that were labelled.
        seconds: time that it took, without the checks before it.
    """

    output: str
    schema: LabelledSchema
    num_files: int
    num_skipped: int
    num_rows: int
    seconds: float

    def __str__(self) -> str:
        rate = f", {self.num_rows / self.seconds:,.0f} rows/s" if self.num_rows else ""
        files = f"files: {self.num_files:,}, of which {self.num_skipped:,} were there already"
        return f"{self.output}\n{self.num_rows:,} rows labelled{rate}; {files}"


@dataclass(frozen=True)
class _Plan:
    """The settings of each actor."""

    teacher: Teacher
    also: tuple[str, ...]
    schema: LabelledSchema
    reader: Reader
    input: str
    obs_column: str
    output: str
    batch_size: int
    device: str


class LabelJob:
    """Labels recorded files with a teacher. Finished files are skipped: a killed job continues where it stopped.

    When the job is made, the footers and headers of all files are checked, and some rows of the first are labelled:
    neither Ray nor a GPU is needed before `run()`.

    Args:
        teacher: the teacher.
        input: path or URI of a file or folder: Parquet, `.npz`, `.npy`, or the folder of a dataset of Minari.
        output: path or URI of the folder for the labelled files. It is made if it is missing.
        obs_column: name of the column of observations.
        also: names of further labels: `teacher_probs`, `teacher_features`.
        env: id of the environment, which the files record; None if it is unknown.
        batch_size: rows that the teacher labels at once, ≥ 1; fewer if they would take more than 64 MiB.
        concurrency: number of actors, or the least and the most; None: one for each CPU or GPU that Ray has.
        num_cpus: CPUs of each actor.
        num_gpus: GPUs of each actor; with a part of one, the teacher is on it, too.

    Raises:
        DataError: the files cannot be labelled; the message names file and column.
        ValueError: an argument is out of its range, or the teacher does not have the labels.
    """

    def __init__(
        self,
        teacher: Teacher,
        input: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        obs_column: str = Columns.OBS,
        also: Sequence[str] = (),
        env: str | None = None,
        batch_size: int = BATCH_SIZE,
        concurrency: Concurrency = None,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
    ):
        check_arguments(batch_size, concurrency, num_cpus, num_gpus)
        input, output = os.fspath(input), os.fspath(output)
        self._concurrency, self._num_cpus, self._num_gpus = concurrency, num_cpus, num_gpus
        output = absolute_uri(output)
        check_apart(input, output)
        labeller = Labeller(teacher, also=also)
        inputs = find_inputs(input, obs_column=obs_column)
        self._files = inputs.files
        schema, self.remaining = _checked(inputs, obs_column, output, labeller, env)
        device = "cuda" if num_gpus else "cpu"
        self.plan = _Plan(
            teacher, tuple(also), schema, inputs.reader, inputs.uri, obs_column, output, int(batch_size), device
        )

    def run(self, *, progress: bool = False) -> Labelled:
        """Label the remaining files, in Ray.

        Args:
            progress: whether a bar is shown on a terminal.

        Raises:
            DataError: rows cannot be labelled; the message names file, column and row. Finished files stay.
            OSError: a file cannot be written.
        """
        start, count, total = time.perf_counter(), 0, len(self.remaining)
        remove_parts(*filesystem_of(self.plan.output), {file.name for file in self._files})
        if self.remaining:
            pool = pool_of(self._concurrency, self._num_cpus, self._num_gpus, num_tasks=total)
            with bar("files", total=total, shown=progress) as advance:
                for rows in _labelled(self.remaining, self.plan, pool, self._num_cpus, self._num_gpus):
                    count += rows
                    advance(1)
        seconds, num_files = time.perf_counter() - start, len(self._files)
        return Labelled(self.plan.output, self.plan.schema, num_files, num_files - total, count, seconds)


def _checked(
    inputs: Inputs, obs_column: str, output: str, labeller: Labeller, env: str | None
) -> tuple[LabelledSchema, list[InputFile]]:
    """Return the schema of the labelled files, and the files that are not labelled yet, once all have been checked."""
    source, _ = filesystem_of(inputs.uri)
    first, counts = _inspected(inputs, source, labeller)
    schema = labeller.schema_of(_sample(inputs, source, counts, labeller), env)
    target, folder = filesystem_of(output)
    there = labelled_files(target, folder)
    done = {file: rows for file, rows in zip(inputs.files, counts, strict=True) if f"{folder}/{file.name}" in there}

    def check(file: InputFile) -> None:
        own = replace(schema, input_digest=digest_of(source, file.path, obs_column))
        _rows_of_finished(target, f"{folder}/{file.name}", own, done[file])

    for _ in _mapped(check, list(done)):
        pass
    _note_what_is_left_out(inputs, first, output, len(there) - len(done))
    return schema, [file for file in inputs.files if file not in done]


def _mapped(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yield a function's results for items, in their order, of several at once: most of the time is a store's."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for start in range(0, len(items), _PART):  # so that an error ends it soon
            yield from threads.map(function, items[start : start + _PART])


def _note_what_is_left_out(inputs: Inputs, first: Contents, output: str, num_others: int) -> None:
    """Note which files and columns are not read, and which labelled files belong to no recorded one."""
    if inputs.ignored:
        say(f"note: {inputs.ignored:,} other files in '{inputs.uri}' are not read.")
    note_left_out(first.left_out)
    if num_others:
        say(f"note: {num_others:,} files in '{output}' belong to no file of the input. They are kept.")


def pool_of(
    concurrency: Concurrency, num_cpus: float, num_gpus: float, *, num_tasks: int | None = None
) -> ActorPoolStrategy:
    """Return the pool of actors for `concurrency`.

    Each actor has its next task beside the one it works on: Ray Data looks for finished ones only every 0.1 s if there
    are several actors, and a pool grows only if each actor has two. If there are few tasks, the actors that start first
    would take all of them: then each gets its next task when it is done.

    Args:
        concurrency: number of actors, or the least and the most; None: as many as Ray has room for.
        num_cpus: CPUs of each actor.
        num_gpus: GPUs of each actor.
        num_tasks: number of tasks, and so the most actors that are of use; None: unknown.
    """
    if isinstance(concurrency, tuple):
        least, size = concurrency
    else:
        if not ray.is_initialized():
            ray.init()  # as Ray Data does
        there = ray.cluster_resources()
        counts = [int(there.get(kind, 0) / each) for kind, each in (("CPU", num_cpus), ("GPU", num_gpus)) if each > 0]
        room = max(1, min(counts, default=1))
        size = room if concurrency is None else concurrency
        size = size if num_tasks is None else min(size, num_tasks)
        least = min(size, room)  # Ray Data would wait for all of them: the others may come when the cluster grows
    is_few = least == size and num_tasks is not None and num_tasks < _FEW_TASKS * size
    return ActorPoolStrategy(min_size=least, max_size=size, max_tasks_in_flight_per_actor=1 if is_few else None)


def check_arguments(batch_size: Any, concurrency: Any, num_cpus: float, num_gpus: float) -> None:
    """Check the arguments that are named as Ray Data names them.

    Raises:
        ValueError: one is out of its range.
    """
    sizes = concurrency if isinstance(concurrency, tuple) else (1,) if concurrency is None else (concurrency,)
    for name, is_right, got, expected in (
        ("batch_size", is_integer(batch_size, 1), batch_size, "an integer ≥ 1"),
        (
            "concurrency",
            all(is_integer(size, 1) for size in sizes) and len(sizes) in (1, 2) and sizes[0] <= sizes[-1],
            concurrency,
            "a number of actors ≥ 1, or (least, most)",
        ),
        ("num_cpus", is_finite(num_cpus, 0), num_cpus, "a number ≥ 0"),
        ("num_gpus", is_finite(num_gpus, 0), num_gpus, "a number ≥ 0"),
    ):
        if not is_right:
            raise ValueError(f"`{name}` must be {expected}, got {got!r:.100}.")


def _inspected(inputs: Inputs, filesystem: FileSystem, labeller: Labeller) -> tuple[Contents, list[int | None]]:
    """Return the first file's contents and the rows of each, once all have its columns, and the teacher's actions."""

    def inspect(file: InputFile) -> Contents:
        contents = inputs.reader.inspect(filesystem, file.path)
        labeller.check_columns(contents.ranges.get(Columns.ACTIONS), contents.sizes.get(MASK), file.path)
        return contents

    first = inspect(inputs.files[0])
    counts = [first.num_rows]
    for file, contents in zip(inputs.files[1:], _mapped(inspect, inputs.files[1:]), strict=True):
        first.check_same(contents, file.path)
        counts.append(contents.num_rows)
    return first, counts


def _sample(
    inputs: Inputs, filesystem: FileSystem, counts: Sequence[int | None], labeller: Labeller
) -> dict[str, np.ndarray]:
    """Return some labelled rows of the first file that has any."""
    for file, count in zip(inputs.files, counts, strict=True):
        batch = None if count == 0 else next(inputs.reader.batches(filesystem, file.path, _SAMPLE), None)
        if batch is not None and num_rows(batch):
            return labeller(part_of(batch, 0, _SAMPLE), file=file.path)
    raise DataError(f"The {len(inputs.files)} files of '{inputs.uri}' have no rows.")


def _rows_of_finished(filesystem: FileSystem, path: str, schema: LabelledSchema, rows: int | None = None) -> int:
    """Return the number of rows of a labelled file that is there already, if it is what this job would write.

    Args:
        filesystem: filesystem of the path.
        path: path of the file.
        schema: the schema that this job would write, with the digest of the recorded file.
        rows: number of rows of the recorded file; None if it is unknown.

    Raises:
        DataError: it is not; the message has the remedy.
    """
    remedy = "Name another --output, or remove this file."
    with open_parquet(filesystem, path) as file:
        try:
            found = LabelledSchema.from_arrow(file.schema_arrow, path)
            schema.check_same(found, path)
        except DataError as error:
            raise DataError(f"{error} It is in the output already. {remedy}") from error
        there: int = file.metadata.num_rows
    if rows is not None and there != rows:
        message = f"has {there:,} rows, but its recorded file {rows:,}: that one has changed. {remedy}"
        raise DataError(message, file=path)
    if found.input_digest not in ("", schema.input_digest):  # files of earlier versions have none
        raise DataError(
            "has labels of another recorded file of this name, of the file before it changed, or of another "
            f"--obs-column. {remedy}",
            file=path,
        )
    return there


def _labelled(
    files: Sequence[InputFile], plan: _Plan, pool: ActorPoolStrategy, num_cpus: float, num_gpus: float
) -> Iterator[int]:
    """Label files in Ray; yield the number of rows of each, as it is finished."""
    tries = count_tries()
    paths = [{"path": file.path, "name": file.name} for file in files]
    dataset = ray.data.from_items(paths, override_num_blocks=min(len(paths), _MAX_BLOCKS))
    dataset.context.enable_progress_bars = False
    dataset = dataset.map_batches(
        LabelFiles,
        fn_constructor_kwargs={"plan": plan, "tries": tries},
        batch_size=1,
        batch_format="numpy",
        compute=pool,
        num_cpus=num_cpus,
        **({"num_gpus": num_gpus} if num_gpus else {}),
    )
    for row in dataset.iter_rows():
        if row["error"]:
            raise DataError(row["error"]) if row["is_data"] else OSError(row["error"])
        yield int(row["rows"])


class _Tries:
    """Counts how often each file was begun: if reading it kills the process, Ray Data restarts it without limit."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, path: str) -> int:
        self._counts[path] += 1
        return self._counts[path]


def count_tries() -> Any:
    """Start the actor that counts tries, beside the driver: the loss of a node must not end it.

    `soft=True` would also admit other nodes: Ray then places an actor without CPUs anywhere.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(_Tries).options(**options).remote()


class LabelFiles:
    """Labels whole files: what an actor does. Errors are returned as rows: Ray Data would add its own traceback.

    Args:
        plan: the job.
        tries: the actor that counts how often each file is begun; None: tries are not counted.
    """

    def __init__(self, plan: _Plan, tries: Any = None):
        self._plan, self._tries = plan, tries
        self._labeller = Labeller(plan.teacher, also=plan.also, device=plan.device)
        self._source, _ = filesystem_of(plan.input)
        self._target, self._folder = filesystem_of(plan.output)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Label files; return their rows, and the errors of those that cannot be labelled.

        Args:
            batch: "path" and "name" of each file.
        """
        done: dict[str, list[Any]] = {"rows": [], "error": [], "is_data": []}
        for path, name in zip(batch["path"], batch["name"], strict=True):
            rows, error, is_data = 0, "", False
            try:
                rows = self._label(str(path), f"{self._folder}/{name}")
            except DataError as problem:
                error, is_data = str(problem), True
            except (OSError, pa.ArrowException) as problem:
                error = f"'{self._folder}/{name}' cannot be written: {problem}"
            for key, value in (("rows", rows), ("error", error), ("is_data", is_data)):
                done[key].append(value)
        return done

    def _check_tries(self, path: str) -> None:
        if self._tries is not None and ray.get(self._tries.add.remote(path)) > _MAX_TRIES:
            raise DataError(
                f"The actors that read it died {_MAX_TRIES} times. Is it broken, or is there too little memory? Lower "
                "--batch-size, or move it away: the same command continues with the others.",
                file=path,
            )

    def _label(self, path: str, target: str) -> int:
        digest = digest_of(self._source, path, self._plan.obs_column)
        schema = replace(self._plan.schema, input_digest=digest)
        if self._target.get_file_info(target).is_file:  # by an actor that was lost after it, or by another job
            return _rows_of_finished(self._target, target, schema)
        self._check_tries(path)
        return write_file(self._target, target, self._batches(path), schema)

    def _batches(self, path: str) -> Iterator[dict[str, np.ndarray]]:
        start = 0
        for batch in self._plan.reader.batches(self._source, path, self._plan.batch_size):
            labelled = self._labeller(batch, file=path, start=start)
            _check_fits(labelled, self._plan.schema, path)
            yield labelled
            start += len(labelled[Columns.OBS])


def _check_fits(columns: dict[str, np.ndarray], schema: LabelledSchema, file: str) -> None:
    """Check that observations in the middle of a file are like those of the first."""
    obs = columns[Columns.OBS]
    if obs.shape[1:] != schema.obs_shape or obs.dtype != schema.obs_dtype:
        raise DataError(
            f"has observations of the shape {list(obs.shape[1:])} and type {obs.dtype}; those before it have "
            f"{list(schema.obs_shape)} and {schema.obs_dtype}",
            file=file,
            column=Columns.OBS,
        )
