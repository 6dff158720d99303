"""Labelling recorded files: rates beside a bare loop over the same files, and memory that does not grow with them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rllib_kd import load_teacher
from rllib_kd.offline.job import BATCH_SIZE, LabelFiles, LabelJob
from tests.benchmarks.harness import compare, row
from tests.benchmarks.memory import resident_mb

ROWS = 500_000  # of the files of a repetition
FILES = 8
ROW_GROUP = 2**16


def write(path: Path, count: int) -> None:
    """States of CartPole with actions and rewards, written row group by row group."""
    rng = np.random.default_rng(0)
    kinds = [("obs", pa.list_(pa.float32(), 4)), ("actions", pa.int64()), ("rewards", pa.float32())]
    with pq.ParquetWriter(path, pa.schema(kinds)) as writer:
        for start in range(0, count, ROW_GROUP):
            n = min(ROW_GROUP, count - start)
            obs = pa.array(rng.normal(size=n * 4).astype(np.float32))
            arrays = [pa.FixedSizeListArray.from_arrays(obs, 4), pa.array(rng.integers(0, 2, n)), np.ones(n, "f4")]
            writer.write_table(pa.table(arrays, schema=writer.schema))


@contextlib.contextmanager
def folder(files: int, rows: int) -> Iterator[tuple[Path, Path]]:
    """Recorded files, and a place for labelled ones."""
    with tempfile.TemporaryDirectory() as path:
        recorded, labelled = Path(path, "in"), Path(path, "out")
        recorded.mkdir()
        for i in range(files):
            write(recorded / f"{i:03}.parquet", rows // files)
        yield recorded, labelled


def label_here(recorded: Path, labelled: Path) -> None:
    """What one actor does, in this process."""
    shutil.rmtree(labelled, ignore_errors=True)
    job = LabelJob(load_teacher("cartpole"), str(recorded), str(labelled))
    actor = LabelFiles(job.plan)
    for file in job.remaining:
        assert actor({"path": np.array([file.path]), "name": np.array([file.name])})["error"] == [""]


@torch.inference_mode()
def bare(recorded: Path, labelled: Path, module: Any) -> None:
    """A loop over the same files that reads all columns, asks the network, and writes them with its outputs."""
    labelled.mkdir(exist_ok=True)
    for path in sorted(recorded.iterdir()):
        file, writer = pq.ParquetFile(path), None
        for batch in file.iter_batches(BATCH_SIZE, use_threads=False):
            obs = torch.from_numpy(batch.column("obs").flatten().to_numpy().reshape(-1, 4).copy())
            q = module.compute_q_values({"obs": obs})["qf_preds"].numpy()
            labels = pa.FixedSizeListArray.from_arrays(pa.array(q.reshape(-1)), q.shape[1])
            table = pa.table({**dict(zip(batch.schema.names, batch.columns, strict=True)), "teacher_q": labels})
            writer = writer or pq.ParquetWriter(labelled / path.name, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def per_core(run: Callable[[], None]) -> float:
    """Rows per second of CPU time, of all threads."""
    start = time.process_time()
    run()
    return ROWS / (time.process_time() - start)


def labelling_vs_torch(name: str) -> dict[str, Any]:
    """Rows/s of CPU time of one actor, all checks included."""
    module = load_teacher("cartpole").module
    with folder(2, ROWS) as (recorded, labelled):

        @contextlib.contextmanager
        def measured(run: Callable[[], None]) -> Iterator[Callable[[], float]]:
            yield lambda: per_core(run)

        return compare(
            name,
            "rows/s",
            lambda: measured(lambda: label_here(recorded, labelled)),
            lambda: measured(lambda: bare(recorded, labelled, module)),
        )


def labelling_2_vs_1(name: str) -> dict[str, Any]:
    """Rows/s of two actors beside those of one, from the first finished file on."""
    runs: dict[str, list[float]] = {"value": [], "baseline": []}
    with folder(2 * FILES, 8 * ROWS) as (recorded, labelled):
        for _ in range(2):
            for key, actors in (("value", 2), ("baseline", 1)):
                shutil.rmtree(labelled, ignore_errors=True)
                job = LabelJob(load_teacher("cartpole"), str(recorded), str(labelled), concurrency=actors)
                job.run()
                ends = sorted(path.stat().st_mtime for path in labelled.iterdir())
                runs[key].append((len(ends) - actors) / (ends[-1] - ends[actors - 1]) * 8 * ROWS / len(ends))
    return row(name, "rows/s", runs)


def labelling_memory(name: str) -> dict[str, Any]:
    """MB of an actor after one file of ten million rows, beside that after one of a million."""
    after = []
    for count in (1_000_000, 10_000_000):
        with folder(1, count) as (recorded, labelled):
            start = time.perf_counter()
            label_here(recorded, labelled)
            print(f"{count:,} rows: {time.perf_counter() - start:.0f} s, {resident_mb():.0f} MB")
        after.append(resident_mb())
    return row(name, "MB", {"value": after[1:], "baseline": after[:1]})


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "labelling_vs_torch": labelling_vs_torch,
    "labelling_2_vs_1": labelling_2_vs_1,
    "labelling_memory": labelling_memory,
}
