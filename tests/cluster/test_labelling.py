"""Labelling on two nodes that share no disk: files are in S3, and a node is lost in the middle."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow.fs import FileSystem

from rllib_kd import DistillDQNConfig
from rllib_kd.offline.job import LabelJob, count_tries
from rllib_kd.offline.schema import to_columns
from tests.background import in_background, wait_for
from tests.buckets import bucket_named
from tests.conftest import states
from tests.offline.recorded import rows, teacher, write_parquet

FILES, ROWS = 8, 30_000


@pytest.fixture
def lake(tmp_path):
    """A bucket of recorded files, which Ray's processes reach, too: the URI's options."""
    with bucket_named("lake") as (client, options):
        for i in range(FILES):
            file = write_parquet(tmp_path / f"{i}.parquet", rows(ROWS, seed=i))
            client.upload_file(str(file), "lake", f"raw/{i}.parquet")
        yield client, options


def finished(client) -> list[str]:
    found = client.list_objects_v2(Bucket="lake", Prefix="labelled/").get("Contents", [])
    keys = (item["Key"].removeprefix("labelled/") for item in found)
    return sorted(key for key in keys if key and not key.startswith("."))


def assert_tries_are_counted_beside_the_driver():
    counters = [count_tries() for _ in range(6)]  # by chance, all six would be here once in 64 times
    assert ray.get([counter.add.remote("a.npz") for counter in counters]) == [1] * 6
    nodes = [counter.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for counter in counters]
    assert set(ray.get(nodes)) == {ray.get_runtime_context().get_node_id()}


def assert_a_learner_reads_every_row(uri):
    config = DistillDQNConfig().learners(num_learners=1).rl_module(model_config={"fcnet_hiddens": [8]})
    algo = config.distillation(teacher=teacher()).offline_data(input_=uri).build_algo()
    result = algo.train()["distillation"]
    algo.stop()
    assert result["num_rows"] + result["num_rows_held_out"] == FILES * ROWS
    assert result["num_epochs"] > 0


@pytest.mark.slow(as_many=5)
def test_a_node_is_lost_in_the_middle_and_nothing_is_lost_or_there_twice(lake, nodes):
    client, options = lake
    other = nodes.add_node(num_cpus=1)
    assert_tries_are_counted_beside_the_driver()
    job = LabelJob(
        teacher(), f"s3://lake/raw{options}", f"s3://lake/labelled{options}", concurrency=3, batch_size=1_000
    )
    running = in_background(job.run)
    wait_for(lambda: finished(client) or running.done())
    assert 0 < len(finished(client)) < FILES
    nodes.remove_node(other, allow_graceful=False)
    assert running.result(timeout=400).num_files == FILES
    assert finished(client) == [f"{i}.parquet" for i in range(FILES)]
    for i in range(FILES):
        filesystem, path = FileSystem.from_uri(f"s3://lake/labelled/{i}.parquet{options}")
        labelled = to_columns(pq.read_table(path, filesystem=filesystem))
        np.testing.assert_array_equal(labelled["obs"], states(ROWS, seed=i))
        assert np.isfinite(labelled["teacher_q"]).all()
    assert_a_learner_reads_every_row(f"s3://lake/labelled{options}")
