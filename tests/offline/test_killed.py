"""`rllib train --input ... --resume` after `kill -9`: the student is that of a run that nobody killed."""

import json
import sys

import pytest

from rllib_kd import load_teacher
from tests.algorithm.weights import assert_equal_weights
from tests.experiment.test_interrupts import FOREVER, Run
from tests.offline.labelled import write

KILLED_AFTER, SAVED_EVERY = 4, 3  # iterations
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def arguments(folder, storage, last, *flags):
    config = {
        "seed": 0,
        "min_sample_timesteps_per_iteration": 512,
        "replay_buffer_config": {"capacity": 700},  # of 2,850 rows, which pass by
    }
    words = ["train", "--algo", "DistillDQN", "--teacher", "cartpole", "--compression", "0.05", "--input", folder]
    words += ["--config", json.dumps(config), "--stop", json.dumps({"training_iteration": last})]
    return [*words, "--checkpoint-freq", str(SAVED_EVERY), "--storage-path", str(storage), "-n", "mine", *flags]


def last_result(storage):
    (file,) = storage.glob("mine/*/result.json")
    return json.loads(file.read_text().splitlines()[-1])


def last_weights(storage):
    folder = max(storage.glob("mine/*/checkpoint_*"))
    return load_teacher(str(folder)).module.state_dict()


@pytest.mark.slow
def test_a_run_on_rows_that_is_killed_and_resumed_ends_with_the_student_of_an_uninterrupted_one(rows, tmp_path, rllib):
    folder, storages = write(tmp_path / "rows", rows), [tmp_path / "whole", tmp_path / "killed"]
    command = [sys.executable, "-m", "rllib_kd", *arguments(folder, storages[1], FOREVER, "--ray-num-cpus", "2")]
    run = Run(command, storages[1])  # with a Ray of its own, which is killed, too
    try:
        run.wait_for_iteration(KILLED_AFTER)
    finally:
        run.kill()
    last = SAVED_EVERY * (run.rows[-1]["training_iteration"] // SAVED_EVERY + 2)
    for storage, flags in zip(storages, ([], ["--resume"]), strict=True):
        done = rllib(*arguments(folder, storage, last, *flags))
        assert done.returncode == 0, done.stderr
    whole, killed = map(last_result, storages)
    assert whole["training_iteration"] == killed["training_iteration"] == last
    assert 0 < killed["iterations_since_restore"] < last
    assert_equal_weights(*map(last_weights, storages))
    for name in ("teacher_agreement", "q_regret", "num_epochs", "temperature"):
        assert whole["distillation"][name] == killed["distillation"][name]
