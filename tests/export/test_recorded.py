"""A student of recorded rows, which has no environment, is exported and compared with PyTorch on rows."""

import math
import re
import shutil

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from rllib_kd import load_teacher
from rllib_kd.cli.main import main
from rllib_kd.export.artifact import q_function
from rllib_kd.export.recorded import deploy_on_rows, recorded_states
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.spaces import input_space
from tests.export.students import network
from tests.offline.labelled import episodes, write


@pytest.fixture(scope="module")
def rows():
    return episodes(load_teacher("cartpole"), num_rows=3_000)


@pytest.fixture(scope="module")
def labelled(rows, tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows") / "labelled", rows)


def test_states_are_of_all_parts_of_the_files(rows, labelled, tmp_path):
    obs, masks = recorded_states([labelled], network())
    np.testing.assert_array_equal(obs, rows["obs"])
    assert masks is None
    copies = [str(tmp_path / str(number)) for number in range(4)]
    for copy in copies:
        shutil.copytree(labelled, copy)
    some, _ = recorded_states(copies, network())  # 24 row groups of 500 rows
    assert len(some) == 10_000
    assert {tuple(row) for row in some} >= {tuple(row) for row in rows["obs"][::500]}


def test_states_are_of_the_whole_of_a_long_file(tmp_path):
    rows = np.zeros((150_000, 4), np.float32)
    rows[:, 0] = np.arange(len(rows))
    np.savez(tmp_path / "a.npz", obs=rows)
    obs, _ = recorded_states([str(tmp_path)], network())
    assert len(obs) == 10_000
    np.testing.assert_allclose(np.diff(obs[:, 0]), 15, atol=1)
    assert obs[-1, 0] == len(rows) - 1


@pytest.mark.parametrize("int8", [False, True])
def test_the_file_is_compared_and_measured_and_plays_nothing(labelled, tmp_path, int8):
    student = network()
    done = deploy_on_rows(student, tmp_path / "s.h", [labelled], format="c", int8=int8)
    assert done.exported.num_observations == 3_000
    assert done.exported.agreement > 0.9 if int8 else done.exported.agreement == 1.0
    assert done.cost.flash_bytes > 0
    assert math.isnan(done.return_mean)
    assert math.isnan(done.torch_return)


def test_the_command_says_what_was_compared(labelled, tmp_path, capsys):
    out = tmp_path / "s.onnx"
    with pytest.raises(SystemExit) as exit_:
        main(["export", "cartpole", "--out", str(out), "--input", labelled])
    assert not exit_.value.code
    assert "3,000 recorded states of" in capsys.readouterr().out.replace("\n", " ")
    card = (tmp_path / "README.md").read_text()
    assert "No return was measured: there was no environment" in card
    assert "has played no episode" in card
    assert "nan" not in card
    assert q_function(out)(np.zeros((1, 4), np.float32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "s.html"], "--input is for students without an environment"),
        (["--out", "s.onnx", "--env", "CartPole-v1"], "leave out --env"),
        (["--out", "s.onnx", "--teacher", "cartpole"], "--episodes and --teacher"),
        (["--out", "s.onnx", "--env-config", '{"a": 1}'], "leave out --env, --env-config"),
        (["--out", "s.onnx", "--episodes", "20"], "--env-config, --episodes"),
        (["--out", "s.onnx", "--input", "nowhere"], "There is nothing at"),
    ],
)
def test_what_does_not_fit_is_one_line(labelled, flags, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["export", "cartpole", "--input", "nowhere" if "nowhere" in flags else labelled, *flags])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_student_without_an_environment_needs_one_or_rows(tmp_path, capsys):
    network().module.save_to_path(str(tmp_path / "student"))
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(tmp_path / "student"), "--out", str(tmp_path / "s.onnx")])
    assert exit_.value.code == 2
    assert re.search(r"--env on the command line\. To export .* --input\.$", capsys.readouterr().err.strip())


SPACES = [Discrete(16, start=2), MultiDiscrete([[3, 2], [2, 4]], start=[[0, 1], [-1, 0]]), MultiBinary((2, 3))]


@pytest.mark.parametrize("space", [*SPACES, Box(-9, 9, (5, 4)), Box(-9, 9, ())], ids=str)
def test_labelled_vectors_are_what_the_environment_shows_again(space, tmp_path):
    student = network(input_space(space))
    space.seed(0)
    obs = np.stack([space.sample() for _ in range(40)])
    vectors = Flattener(space)(obs, 40)
    np.savez(tmp_path / "vectors.npz", obs=vectors)
    shown = student.for_space(space)
    np.testing.assert_array_equal(recorded_states([str(tmp_path)], shown)[0], obs)
    deploy_on_rows(shown, tmp_path / "s.safetensors", [str(tmp_path / "vectors.npz")], format="safetensors")
    expected = student.q_values(torch.from_numpy(vectors)).numpy()
    assert q_function(tmp_path / "s.safetensors")(obs) == pytest.approx(expected, abs=1e-5)


def test_rows_with_more_axes_than_the_students_vectors_are_taken_as_they_are(tmp_path):
    student, obs = network(Box(-9, 9, (20,))), np.random.default_rng(0).normal(size=(40, 5, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", obs=obs)
    deploy_on_rows(student, tmp_path / "s.safetensors", [str(tmp_path / "a.npz")], format="safetensors")
    expected = student.q_values(torch.from_numpy(obs.reshape(40, 20))).numpy()
    assert q_function(tmp_path / "s.safetensors")(obs) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("vector", [[0, 0, 0], [1, 1, 0], [0, 0.5, 0]])
def test_vectors_that_are_not_one_hot_are_no_discrete_numbers(vector, tmp_path):
    np.savez(tmp_path / "a.npz", obs=np.array([[0, 0, 1], vector], np.float32))
    with pytest.raises(ValueError, match=r"column 'obs': has vectors that are not one-hot vectors of Discrete\(3\)"):
        recorded_states([str(tmp_path)], network(input_space(Discrete(3))).for_space(Discrete(3)))


def test_rows_of_another_shape_are_named(tmp_path):
    rows = {"obs": np.zeros((10, 6), np.float32)}
    np.savez(tmp_path / "a.npz", **rows)
    with pytest.raises(ValueError, match=r"a.npz', column 'obs': an observation is \[6\], but the student takes \[4\]"):
        recorded_states([str(tmp_path)], network())
