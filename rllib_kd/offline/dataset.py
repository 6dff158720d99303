"""Label the rows of a Ray Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rllib_kd.offline.arrays import check_type, to_array
from rllib_kd.offline.job import Concurrency, check_arguments, pool_of
from rllib_kd.offline.labelling import Labeller
from rllib_kd.offline.parquet import check_is_not_packed
from rllib_kd.offline.reading import used_columns
from rllib_kd.offline.schema import to_table

if TYPE_CHECKING:
    from ray.data import Dataset

    from rllib_kd.teachers.base import Teacher

_WHERE = "the Dataset"


def label_dataset(
    teacher: Teacher,
    dataset: Dataset,
    *,
    obs_column: str,
    also: Sequence[str],
    env: str | None,
    batch_size: int,
    concurrency: Concurrency,
    num_cpus: float,
    num_gpus: float,
) -> Dataset:
    """Return a Dataset with a teacher's labels, as `Teacher.label()` describes it."""
    check_arguments(batch_size, concurrency, num_cpus, num_gpus)
    Labeller(teacher, also=also)  # whatever is wrong with them, here and now
    return dataset.map_batches(
        _LabelRows,
        fn_constructor_kwargs={
            "teacher": teacher,
            "also": tuple(also),
            "obs_column": obs_column,
            "env": env,
            "device": "cuda" if num_gpus else "cpu",
        },
        batch_size=int(batch_size),
        batch_format="pyarrow",
        compute=pool_of(concurrency, num_cpus, num_gpus),
        num_cpus=num_cpus,
        **({"num_gpus": num_gpus} if num_gpus else {}),
    )


class _LabelRows:
    """An actor's part: label batches."""

    def __init__(self, teacher: Teacher, also: Sequence[str], obs_column: str, env: str | None, device: str):
        self._labeller = Labeller(teacher, also=also, device=device)
        self._obs_column, self._env = obs_column, env

    def __call__(self, table: pa.Table) -> pa.Table:
        check_is_not_packed(table.schema, self._obs_column, _WHERE)
        columns: dict[str, Any] = {}
        for name, own in used_columns(table.column_names, self._obs_column, _WHERE).items():
            check_type(table.schema.field(own).type, file=_WHERE, column=own)
            columns[name] = to_array(table.column(own), file=_WHERE, column=own)
        labelled = self._labeller(columns, file=_WHERE)
        return to_table(labelled, self._labeller.schema_of(labelled, self._env))
