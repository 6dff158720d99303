"""`rllib train --input ... --resume` after `kill -9`: the student is that of a run that nobody killed."""

import json
import os
import signal
import sys

import pytest

from rllib_kd import load_teacher
from tests.algorithm.resumable import assert_equal
from tests.experiment.test_interrupts import Run
from tests.offline.labelled import write

LAST, KILLED_AFTER = 40, 12  # iterations
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def command(folder, storage, *flags):
    config = {
        "seed": 0,
        "min_sample_timesteps_per_iteration": 512,
        "training_intensity": 16,
        "replay_buffer_config": {"capacity": 700},  # of 2,850 rows, which pass by
    }
    words = ["train", "--algo", "DistillDQN", "--teacher", "cartpole", "--compression", "0.05", "--input", folder]
    words += ["--config", json.dumps(config), "--stop", json.dumps({"training_iteration": LAST})]
    words += ["--checkpoint-freq", "5", "--storage-path", str(storage), "-n", "mine", "--ray-num-cpus", "2", *flags]
    return [sys.executable, "-m", "rllib_kd", *words]


def kill(run):
    for pid in run.pids:  # with Ray's
        os.kill(pid, signal.SIGKILL)
    run.process.wait()


def last_weights(storage):
    (folder,) = storage.glob("mine/*/checkpoint_*7")
    return load_teacher(str(folder)).module.state_dict()


@pytest.mark.slow
def test_a_run_on_rows_that_is_killed_and_resumed_ends_with_the_student_of_an_uninterrupted_one(rows, tmp_path):
    folder, runs = write(tmp_path / "rows", rows), []
    try:
        for name in ("whole", "killed"):
            runs.append(Run(command(folder, tmp_path / name), tmp_path / name))
            if name == "killed":
                runs[-1].wait_for_iteration(KILLED_AFTER)
                kill(runs[-1])
                assert KILLED_AFTER <= runs[-1].rows[-1]["training_iteration"] < LAST
                runs.append(Run(command(folder, tmp_path / name, "--resume"), tmp_path / name))
            code, output = runs[-1].end()
            assert code == 0, output
            assert runs[-1].rows[-1]["training_iteration"] == LAST
        assert runs[-1].rows[-1]["iterations_since_restore"] < LAST
        assert_equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "killed"))
        whole, killed = (run.rows[-1]["distillation"] for run in (runs[0], runs[-1]))
        for name in ("teacher_agreement", "q_regret", "num_epochs", "temperature"):
            assert whole[name] == killed[name]
    finally:
        for run in runs:
            kill(run)
