"""Recorded files of CartPole, and jobs that label them in this process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rllib_kd.offline.job import LabelFiles, LabelJob
from rllib_kd.offline.schema import to_columns
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states

BOX4 = json.dumps({"type": "Box", "dtype": "float32", "shape": [4], "low": [-9.0] * 4, "high": [9.0] * 4})
DISCRETE2 = json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 2})


def teacher(**kwargs) -> Teacher:
    return Teacher(make_q_module(**kwargs), source="the teacher")


def rows(count: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Two episodes."""
    t = np.arange(count) % max(1, count // 2)
    return {
        "obs": states(count, seed=seed),
        "actions": np.arange(count) % 2,
        "rewards": np.ones(count),
        "terminateds": np.append(t[1:] == 0, True)[:count],
        "eps_id": np.array([f"e{i // max(1, count // 2)}" for i in range(count)], dtype=object),
        "t": t,
    }


def lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)


def write_parquet(path: Path, columns: dict, **changes: object) -> Path:
    """Observations as lists of a fixed size, other arrays as they are; None leaves a column out."""
    columns = {name: values for name, values in (columns | changes).items() if values is not None}
    arrays = {n: lists(v) if isinstance(v, np.ndarray) and v.ndim > 1 else pa.array(v) for n, v in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path)
    return path


def write_minari(folder: Path, episodes: int = 2, steps: int = 5, **metadata: object) -> Path:
    """A dataset of HDF5 as Minari 0.5 writes it, without its package."""
    data = folder / "data"
    data.mkdir(parents=True)
    content = {"data_format": "hdf5", "observation_space": BOX4, "action_space": DISCRETE2} | metadata
    (data / "metadata.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    import h5py  # of the extra minari

    with h5py.File(data / "main_data.hdf5", "w") as file:
        for i in range(episodes):
            group = file.create_group(f"episode_{i}")
            group["observations"] = states(steps + 1, seed=i)
            group["actions"] = np.arange(steps) % 2
            group["rewards"] = np.ones(steps)
            group["terminations"] = np.arange(steps) == steps - 1
            group["truncations"] = np.zeros(steps, bool)
    return folder


def label_here(job: LabelJob) -> list[int]:
    """Label the remaining files in this process; return their numbers of rows."""
    done = [LabelFiles(job.plan)({"path": [file.path], "name": [file.name]}) for file in job.remaining]
    assert [error for own in done for error in own["error"]] == [""] * len(done)
    return [count for own in done for count in own["rows"]]


def read(path: Path) -> dict[str, np.ndarray]:
    return to_columns(pq.read_table(path))
