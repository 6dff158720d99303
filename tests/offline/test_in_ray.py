"""Labelling in Ray: pools of actors over files, and over the rows of a Dataset."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from pyarrow.fs import FileSystem
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_kd import load_teacher
from rllib_kd.offline.job import LabelJob, pool_of
from rllib_kd.offline.schema import DataError, LabelledSchema, to_columns
from rllib_kd.teachers.base import Teacher
from tests.buckets import bucket_named
from tests.conftest import ray_address, states
from tests.offline.recorded import label_here, read, rows, teacher, write_parquet


def of_function(q: Callable[[torch.Tensor], torch.Tensor]) -> Teacher:
    space = gym.spaces.Box(-np.inf, np.inf, (4,))
    return Teacher.from_callable(q, observation_space=space, action_space=gym.spaces.Discrete(2))


@pytest.mark.slow
def test_a_pool_labels_all_files_and_an_error_leaves_the_finished_ones(cluster, tmp_path):
    for i in range(4):
        write_parquet(tmp_path / "in" / f"{i}.parquet", rows(50, seed=i))
    obs = states(500)
    obs[-1] = np.nan
    bad = write_parquet(tmp_path / "in" / "4.parquet", rows(500), obs=obs)
    where = str(tmp_path / "in"), str(tmp_path / "out")

    with pytest.raises(DataError, match=r"4.parquet', column 'obs': row 499: has the number nan"):
        LabelJob(teacher(), *where, concurrency=1, num_cpus=0.5).run()
    bad.unlink()
    labelled = LabelJob(teacher(), *where, concurrency=(1, 2), num_cpus=0.5).run()

    assert labelled.num_files == 4
    assert sorted(os.listdir(tmp_path / "out")) == [f"{i}.parquet" for i in range(4)]
    for i in range(4):
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{i}.parquet")["obs"], states(50, seed=i))


@pytest.mark.slow
def test_a_pool_grows_while_its_actors_are_busy(cluster, tmp_path):
    for i in range(4):
        write_parquet(tmp_path / "in" / f"{i}.parquet", rows())
    actors = tmp_path / "actors"
    actors.mkdir()

    def q(obs: torch.Tensor) -> torch.Tensor:
        if ray.is_initialized() and (actor := ray.get_runtime_context().get_actor_id()):
            (actors / actor).touch()
            deadline = time.monotonic() + 120
            while len(list(actors.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        return obs[:, :2]

    LabelJob(of_function(q), tmp_path / "in", tmp_path / "out", concurrency=(1, 2), num_cpus=0.5).run()
    assert len(list(actors.iterdir())) == 2


@pytest.mark.parametrize(
    ("concurrency", "num_tasks", "sizes", "ahead"),
    [(2, 16, (2, 2), None), (2, 7, (2, 2), 1), (3, 2, (2, 2), 1), ((1, 3), 2, (1, 3), None), (1, None, (1, 1), None)],
)
def test_actors_have_their_next_file_unless_there_are_few(cluster, concurrency, num_tasks, sizes, ahead):
    pool = pool_of(concurrency, 1.0, 0.0, num_tasks=num_tasks)
    assert ((pool.min_size, pool.max_size), pool.max_tasks_in_flight_per_actor) == (sizes, ahead)


@pytest.mark.slow
def test_a_dataset_gets_labels_and_writes_labelled_files(cluster, tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", rows(30))
    dataset = ray.data.read_parquet(str(tmp_path / "in"))
    labelled = teacher().label(dataset, batch_size=8, concurrency=1, num_cpus=0.5, env="CartPole-v1")
    labelled.write_parquet(str(tmp_path / "out"))

    files = sorted((tmp_path / "out").rglob("*.parquet"))
    label_here(LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "other"), env="CartPole-v1"))
    other = tmp_path / "other" / "a.parquet"
    schemas = {LabelledSchema.from_arrow(pq.read_schema(file)) for file in [*files, other]}
    assert len(schemas) == 1
    found = {name: np.concatenate([read(file)[name] for file in files]) for name in read(other)}
    order = np.lexsort((found["t"], found["eps_id"]))  # Ray Data keeps none
    for name, values in read(other).items():
        if name == "teacher_q":  # of batches of another size
            np.testing.assert_allclose(found[name][order], values, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name][order], values)


@pytest.mark.slow
def test_rows_of_a_dataset_in_memory(cluster):
    obs = states(20)
    dataset = ray.data.from_numpy(obs)  # tensors of Ray Data, in the column "data"
    labelled = teacher().label(dataset, obs_column="data", concurrency=1, num_cpus=0.5).take_batch(20)
    np.testing.assert_array_equal(np.stack(labelled["obs"]), obs)
    assert np.stack(labelled["teacher_q"]).shape == (20, 2)
    with pytest.raises(ValueError, match="`batch_size`"):
        teacher().label(dataset, batch_size=0)


@pytest.mark.slow
def test_a_killed_job_goes_on_where_it_was(tmp_path, rllib):
    for i in range(4):
        write_parquet(tmp_path / "in" / f"{i}.parquet", rows(40_000, seed=i))
    out = tmp_path / "out"
    arguments = ["label", "--teacher", "cartpole", "--input", str(tmp_path / "in"), "--output", str(out)]
    arguments += ["--concurrency", "1", "--num-cpus", "0.5"]
    process = subprocess.Popen([sys.executable, "-m", "rllib_kd", *arguments, "--address", ray_address()])
    deadline = time.monotonic() + 240
    while not list(out.glob("[0-9]*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {file.name: file.stat().st_mtime_ns for file in out.glob("[0-9]*.parquet")}
    assert 0 < len(finished) < 4

    done = rllib(*arguments)
    assert done.returncode == 0, done.stderr
    assert "were there" in done.stdout
    assert sorted(file.name for file in out.glob("*.parquet")) == [f"{i}.parquet" for i in range(4)]
    assert finished == {name: (out / name).stat().st_mtime_ns for name in finished}
    for i in range(4):
        np.testing.assert_array_equal(read(out / f"{i}.parquet")["obs"], states(40_000, seed=i))


@pytest.mark.slow
def test_a_file_that_kills_each_actor_ends_the_job(cluster, tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", rows())

    def q(obs: torch.Tensor) -> torch.Tensor:
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
            os.kill(os.getpid(), signal.SIGKILL)
        return obs[:, :2]

    job = LabelJob(of_function(q), tmp_path / "in", tmp_path / "out", concurrency=1, num_cpus=0.5)
    with pytest.raises(DataError, match=r"a.parquet': The actors that read it died 3 times"):
        job.run()


@pytest.mark.slow
def test_what_rllib_records_itself(cluster, tmp_path):
    for is_packed in (False, True):
        config = (
            PPOConfig()
            .environment("CartPole-v1")
            .env_runners(num_env_runners=0, batch_mode="complete_episodes", rollout_fragment_length=50)
            .offline_data(
                output=str(tmp_path / f"in{is_packed}"),
                output_write_episodes=False,
                output_compress_columns=["obs", "new_obs"] if is_packed else [],
            )
        )
        algo = config.build_algo()
        algo.env_runner.sample(num_timesteps=50)
        algo.stop()
        where = str(tmp_path / f"in{is_packed}"), str(tmp_path / "out")
        if is_packed:
            with pytest.raises(DataError, match="column 'obs': has observations that RLlib packed"):
                LabelJob(load_teacher("cartpole"), *where)
        else:
            label_here(LabelJob(load_teacher("cartpole"), *where))
    labelled = [read(file) for file in (tmp_path / "out").rglob("*.parquet")]
    assert sum(len(columns["obs"]) for columns in labelled) >= 50
    assert {"actions", "rewards", "terminateds", "truncateds", "eps_id"} <= labelled[0].keys()


@pytest.fixture
def bucket():
    """Options of a URI that lead to a bucket of S3 in this process."""
    with bucket_named("lake") as found:
        yield found


def test_s3(tmp_path, bucket):
    client, options = bucket
    write_parquet(tmp_path / "a.parquet", rows(20))
    np.savez(tmp_path / "b.npz", obs=states(5))
    client.upload_file(str(tmp_path / "a.parquet"), "lake", "raw/day=1/a.parquet")
    client.upload_file(str(tmp_path / "b.npz"), "lake", "arrays/b.npz")
    for folder, count in (("raw", 20), ("arrays", 5)):
        where = f"s3://lake/{folder}{options}", f"s3://lake/out/{folder}{options}"
        assert label_here(LabelJob(teacher(), *where)) == [count]
        assert LabelJob(teacher(), *where).run().num_skipped == 1

    keys = [item["Key"] for item in client.list_objects_v2(Bucket="lake", Prefix="out/")["Contents"]]
    assert [key for key in keys if not key.endswith("/")] == ["out/arrays/b.npz.parquet", "out/raw/day=1/a.parquet"]
    filesystem, path = FileSystem.from_uri(f"s3://lake/out/raw/day=1/a.parquet{options}")
    np.testing.assert_array_equal(to_columns(pq.read_table(path, filesystem=filesystem))["obs"], states(20))
