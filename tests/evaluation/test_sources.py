"""A path is opened once, and what lies there is recognised, read and built once, whatever is asked of it."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.checkpoints.rllib import RLlibCheckpoint
from rllib_kd.evaluation.sources import open_sources
from tests.conftest import CARTPOLE_OBS, exit_code, states
from tests.formats import mlp, sb3_weights, sb3_zip

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


class Counted(pyarrow.fs.FileSystemHandler):
    """This machine's files, and how often each is read."""

    local = pyarrow.fs.LocalFileSystem()

    def __init__(self):
        self.opened, self.read = [], Counter()

    def filesystem(self, uri):
        self.opened.append(uri)
        return pyarrow.fs.PyFileSystem(self), uri.removeprefix("file://")

    def open_input_file(self, path):
        self.read[path] += 1
        return self.local.open_input_file(path)

    def get_type_name(self):
        return "counted"

    def normalize_path(self, path):
        return path

    def get_file_info_selector(self, selector):
        return self.local.get_file_info(selector)

    def get_file_info(self, paths):
        return self.local.get_file_info(paths)

    def open_input_stream(self, path):
        raise NotImplementedError

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = move = None
    open_append_stream = open_output_stream = None


@pytest.fixture
def counted(monkeypatch):
    handler = Counted()
    monkeypatch.setattr(pyarrow.fs, "FileSystem", SimpleNamespace(from_uri=handler.filesystem))
    return handler


@pytest.fixture
def built(monkeypatch):
    """The checkpoints whose networks were built."""
    paths, load_module = [], RLlibCheckpoint.load_module

    def load(checkpoint):
        paths.append(checkpoint.module_path)
        return load_module(checkpoint)

    monkeypatch.setattr(RLlibCheckpoint, "load_module", load)
    return paths


@pytest.fixture
def rllib(monkeypatch, capsys):
    def run(*line):
        code = exit_code(*line)
        output, error = capsys.readouterr()
        assert not code, error
        return output

    return run


@pytest.fixture
def student(tmp_path):
    return shutil.copytree(CHECKPOINTS / "rllib_kd-0.2" / "student", tmp_path / "run" / "checkpoint_000000")


@pytest.fixture
def run(student):
    row = {"evaluation": {"env_runners": {"episode_return_mean": 9.0}}, "checkpoint_dir_name": student.name}
    (student.parent / "result.json").write_text(json.dumps({"num_env_steps_sampled_lifetime": 1, **row}))
    return student.parent


@pytest.fixture
def zipped(tmp_path):
    return sb3_zip(tmp_path / "teacher.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)


def test_evaluate_opens_a_checkpoint_once(rllib, counted, built, student):
    assert "of CartPole-v1" in rllib("evaluate", student, "--algo", "DistillDQN", "--episodes", "1")
    assert counted.opened == [str(student)]
    assert set(counted.read.values()) == {1}
    assert len(built) == 1


def test_evaluate_opens_a_run_once(rllib, counted, built, run):
    rllib("evaluate", run, "--algo", "DistillDQN", "--episodes", "1")
    assert counted.opened == [str(run)]
    assert counted.read[f"{run}/result.json"] == 1
    assert len(built) == 1


def test_evaluate_reads_a_file_once(rllib, counted, zipped):
    rllib("evaluate", zipped, "--algo", "DQN", "--env", "CartPole-v1", "--episodes", "1")
    assert counted.opened == [str(zipped)]
    assert counted.read[str(zipped)] == 1


def test_compare_opens_each_path_once(rllib, counted, built, student, zipped):
    rllib("compare", student, "--teacher", zipped, "--episodes", "1")
    assert sorted(counted.opened) == [str(student), str(zipped)]
    assert set(counted.read.values()) == {1}
    assert len(built) == 1


def test_compare_reads_results_once_for_checkpoint_and_curve(rllib, counted, built, run, tmp_path):
    rllib("compare", run, "--teacher", "cartpole", "--episodes", "1", "--out", tmp_path / "report")
    assert counted.read[f"{run}/result.json"] == 1
    assert len(counted.opened) == len(built) == 2


def test_a_run_as_teacher_and_student_is_built_once(rllib, counted, built, run):
    rllib("compare", run, "--teacher", run, "--episodes", "1")
    assert len(built) == 1
    assert counted.opened == [str(run)] * 2  # as a student it may be an experiment with several trials


def test_export_opens_each_path_once(rllib, counted, built, student, zipped, tmp_path):
    rllib("export", student, "--teacher", zipped, "--out", tmp_path / "x.safetensors", "--episodes", "1")
    assert sorted(counted.opened) == [str(student), str(zipped)]
    assert set(counted.read.values()) == {1}
    assert len(built) == 1


def test_two_networks_of_a_file_are_two_sources(tmp_path):
    weights = {f"{name}.{key}": value for name in "ab" for key, value in mlp(4, 8, 2).state_dict().items()}
    torch.save(weights, tmp_path / "two.pth")
    first, second = ({"path": tmp_path / "two.pth", "network": {"activation": "relu", "prefix": f"{x}."}} for x in "ab")
    obs = torch.from_numpy(states(9))
    one, other = load_teacher(first).q_values(obs), load_teacher(second).q_values(obs)
    a, b, both = (source.network().q_values(obs) for source in open_sources([first, second, [first, second]]))
    assert torch.equal(a, one)
    assert torch.equal(b, other)
    assert not torch.equal(a, b)
    torch.testing.assert_close(both, (one + other) / 2)
