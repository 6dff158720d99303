"""Students as C: from a checkpoint to files that were compiled, checked and played."""

import os
import re
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.cli.main import main
from rllib_kd.evaluation.playing import play
from rllib_kd.export.artifact import DeviceCost, artifact_format_of, deployment_cost, q_function
from rllib_kd.export.c.text import Arrays, checked_prefix, literal
from rllib_kd.export.c.write import main_path, main_program_of
from rllib_kd.export.deployment import deploy, deployment_table
from rllib_kd.export.export import TOLERANCE, artifact_view, export
from rllib_kd.export.runners import c_runner
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import Reflex, states
from tests.export.c.networks import HOSTILE
from tests.export.students import FILTER, linear_student, network


@pytest.fixture(scope="module")
def cartpole_student() -> Teacher:
    """A linear student that has learned to act as the packaged teacher does, with half of the actions disturbed."""
    teacher, rng = load_teacher("cartpole"), np.random.default_rng(0)

    def disturbed(obs):
        greedy = teacher.q_values(torch.as_tensor(obs)).argmax(-1).numpy()
        return np.where(rng.random(len(obs)) < 0.5, 1 - greedy, greedy)

    view = artifact_view(teacher)
    seen = torch.as_tensor(play(lambda: gym.make("CartPole-v1"), Reflex(disturbed), range(20), views=[view])[1][0])
    actions = teacher.q_values(seen).argmax(-1)
    student = linear_student()
    linear = next(part for part in student.module.af.modules() if isinstance(part, torch.nn.Linear))
    scale = seen.std(0)
    weights = torch.zeros(2, 5, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(seen / scale @ weights[:, :4].T + weights[:, 4], actions)
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        linear.weight.copy_(weights[:, :4] / scale)
        linear.bias.copy_(weights[:, 4])
    return student


def test_a_linear_student_of_cartpole_plays_500_in_less_than_a_kilobyte(cartpole_student, tmp_path):
    done = deploy(cartpole_student, tmp_path / "student.h", "CartPole-v1", format="c", num_episodes=20)
    assert sorted(os.listdir(tmp_path)) == ["student.h", "student_main.c"]
    assert done.return_mean == done.torch_return == 500.0
    assert done.exported.max_difference <= TOLERANCE
    assert done.exported.agreement == 1.0
    assert done.exported.num_observations == 10_000
    assert isinstance(done.cost, DeviceCost)
    assert 40 <= done.cost.flash_bytes < 1024  # ten weights at least
    assert done.cost.ram_bytes == 0
    assert done.cost.multiply_adds == 8
    assert 0 < done.cost.latency_ms < 0.01
    table = deployment_table([done])
    for row in (
        "flash (code, weights)",
        "static RAM",
        "multiply-adds",
        "latency, batch of 1",
        "agreement with PyTorch",
    ):
        assert row in table
    assert max(map(len, table.splitlines())) <= 80


def test_the_linear_student_in_integers(cartpole_student, tmp_path):
    done = deploy(cartpole_student, tmp_path / "student.h", "CartPole-v1", format="c", int8=True, num_episodes=20)
    assert done.return_mean == 500.0
    assert done.exported.agreement > 0.95
    assert done.exported.max_difference_allowed is None
    assert done.cost.flash_bytes < 1024
    assert done.cost.ram_bytes == 8  # four inputs of 16 bits
    assert "c, int8" in deployment_table([done])


def test_the_program_beside_the_header(tmp_path):
    student, obs = network(fcnet_hiddens=[4], fcnet_activation="tanh"), states(5)
    obs[3, 1] = np.nan
    header = tmp_path / "net.h"
    export(student, header, format="c", obs=states(9), prefix="my_net")
    assert artifact_format_of(header) == "c"
    expected = student.q_values(torch.as_tensor(obs)).numpy()
    with main_program_of(header) as printed:
        lines = printed("-q", records=obs)
        masks = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0.6, 0.5, np.nan]], np.float32)
        with_masks = printed("-m", records=np.concatenate([obs, masks], -1))
    assert lines[3] == "-1"
    for i in (0, 1, 2, 4):
        action, *q_values = lines[i].split()
        assert int(action) == expected[i].argmax()
        assert np.array(q_values, float) == pytest.approx(expected[i], abs=1e-5)
    assert with_masks == [str(expected[0].argmax()), "2", "-3", "-1", "0"]
    # Compiled as its first lines say; its other ways to end.
    command = re.search(r"^ +(cc .*)$", main_path(header).read_text(), re.MULTILINE)[1]
    assert command == "cc -std=c99 -O2 -o my_net net_main.c -lm"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    for arguments, stdin, code, stdout, stderr in (
        ([], obs[:1].tobytes(), 0, f"{expected[0].argmax()}\n", ""),
        ([], b"", 0, "", ""),
        (["-m"], obs[:1].tobytes() + np.eye(3, dtype=np.float32)[1].tobytes(), 0, "1\n", ""),
        ([], obs[:1].tobytes()[:-3], 1, "", "The last observation has 13 bytes, expected 16.\n"),
        (["-m"], obs[:1].tobytes(), 1, "", "The last observation has 16 bytes, expected 28.\n"),
        (["-x"], b"", 2, "", "usage: "),
        (["-q", "-qq"], b"", 2, "", "usage: "),
    ):
        done = subprocess.run([tmp_path / "my_net", *arguments], input=stdin, capture_output=True)
        assert (done.returncode, done.stdout.decode()) == (code, stdout)
        assert done.stderr.decode().startswith(stderr)


def test_the_header_states_what_it_takes(tmp_path):
    pipeline = ObservationPipeline(network().observation_space, (FILTER,))
    student = Teacher(network(fcnet_hiddens=[16, 8]).module, pipeline=pipeline)
    export(student, tmp_path / "s.h", format="c", obs=states(9))
    text = (tmp_path / "s.h").read_text()
    cost = deployment_cost(tmp_path / "s.h")
    assert "#define STUDENT_OBSERVATION_SIZE 4\n" in text
    assert "#define STUDENT_NUM_ACTIONS 3\n" in text
    assert f"#define STUDENT_RAM_BYTES {cost.ram_bytes}\n" in text
    assert cost.ram_bytes == 4 * (16 + 8)
    weights = 4 * (student.num_parameters + 8)
    assert f"#define STUDENT_WEIGHT_BYTES {weights}\n" in text
    assert weights < cost.flash_bytes < weights + 1000
    assert cost.multiply_adds == 4 * 16 + 16 * 8 + 8 * 3
    assert not re.search(r"malloc|calloc|free\(|#include <(?!stdint|math)|math\.h", text)


def test_two_policies_in_one_program(tmp_path):
    for name in ("first", "second"):
        export(network(fcnet_hiddens=[4]), tmp_path / f"{name}.h", format="c", obs=states(3), prefix=name)
    (tmp_path / "both.c").write_text(
        '#include "first.h"\n#include "second.h"\n'
        "int main(void) { float x[4] = {0}; return first_act(x) - second_act(x); }\n"
    )
    c_runner.build(tmp_path / "both.c", tmp_path / "both", "-O0")
    subprocess.run([tmp_path / "both"], check=True)


@pytest.mark.parametrize(
    "prefix", ["", "1a", "a b", "a-b", "a\n", "a;", "*/", '"', "é", "a" * 41, "_a", "a_", "a/**/b"]
)
def test_prefixes_that_are_no_names(prefix, tmp_path):
    with pytest.raises(
        ValueError, match=r"is not a C identifier that names can begin with\. Expected a letter"
    ) as caught:
        export(network(), tmp_path / "s.h", format="c", obs=states(3), prefix=prefix)
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("prefix", ["a", "P", "p", "int", "HEADER", "PREFIX", "a_1", "p_x", "X" * 40])
def test_prefixes_that_are_names(prefix, tmp_path):
    assert checked_prefix(prefix) == prefix
    if prefix in ("P", "PREFIX", "p_x"):
        export(network(fcnet_hiddens=[2]), tmp_path / "s.h", format="c", obs=states(3), prefix=prefix)
        assert f"static inline int {prefix}_act(const float *observation)" in (tmp_path / "s.h").read_text()


@pytest.mark.parametrize(
    "name", ['a".h', "a\n.h", "a*.h", "a\\b.h", "é.h", "-a.h", "a b.h", "??/.h", HOSTILE.replace("/", "") + ".h"]
)
def test_file_names_that_c_cannot_include(name, tmp_path):
    with pytest.raises(ValueError, match="cannot be included by every C compiler") as caught:
        export(network(), tmp_path / name, format="c", obs=states(3))
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


def test_folders_may_have_any_name(tmp_path):
    folder = tmp_path / 'a "b" */ $(c) é'
    export(network(fcnet_hiddens=[2]), folder / "s.h", format="c", obs=states(3))
    assert q_function(folder / "s.h")(states(2)).shape == (2, 3)
    for path in (folder / "s.h", folder / "s_main.c"):
        assert "*/ $" not in path.read_text()


def test_without_a_compiler_the_files_are_written_unchecked(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    line = "There is no C compiler, so the C was written unchecked: neither compared with PyTorch"
    result = export(network(), tmp_path / "s.h", format="c", obs=states(3))
    assert not result.is_checked
    assert (result.max_difference, result.max_difference_allowed, result.agreement) == (None, None, None)
    assert [record.getMessage().startswith(line) for record in caplog.records] == [True]
    assert sorted(os.listdir(tmp_path)) == ["s.h", "s_main.c"]
    for function in (q_function, deployment_cost):
        with pytest.raises(ValueError, match="There is no C compiler"):
            function(tmp_path / "s.h")
    with pytest.raises(SystemExit) as exit_:
        main(["export", "cartpole", "--out", str(tmp_path / "s.h"), "--episodes", "1", "--teacher", "cartpole"])
    assert not exit_.value.code
    card = tmp_path / "README.md"
    assert capsys.readouterr().out == f"written unchecked: {tmp_path / 's.h'}\n{card}\n"


def test_a_compiler_that_fails_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no space' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(ValueError, match=r"The C compiler '.*cc' failed for 'library.c':\nno space"):
        export(network(), tmp_path / "new" / "s.h", format="c", obs=states(3))
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/* rllib_kd C export", "its first line has no 'Prefix'"),
        ("/* rllib_kd C export. Prefix: a; */ \n", "its first line has no 'Prefix'"),
        ("/* rllib_kd C export. Prefix: a. */ \n", "it does not define A_NUM_ACTIONS"),
        ("/* rllib_kd C export. Prefix: a. */ \n#define A_NUM_ACTIONS x\n", "it does not define A_NUM_ACTIONS"),
    ],
)
@pytest.mark.parametrize("function", [q_function, deployment_cost])
def test_headers_of_others_are_refused(function, text, message, tmp_path):
    (tmp_path / "s.h").write_text(text)
    with pytest.raises(ValueError, match=rf"This is not a C header that export\(\) wrote: {message}"):
        function(tmp_path / "s.h")


def test_without_binutils_flash_and_ram_are_unknown(tmp_path, monkeypatch):
    which = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == "size" else which(name))
    done = deploy(linear_student(), tmp_path / "s.h", "CartPole-v1", format="c", num_episodes=1)
    assert (done.cost.flash_bytes, done.cost.ram_bytes) == (None, None)
    assert re.search(r"static RAM +│ +– │", deployment_table([done]))


def test_the_compiler_of_cc_is_taken(monkeypatch):
    monkeypatch.setenv("CC", f"{sys.executable} -m ziglang cc")
    assert c_runner.compiler() == [sys.executable, "-m", "ziglang", "cc"]
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr("shutil.which", lambda name: name if name == "clang" else None)
    assert c_runner.compiler() == ["clang"]
    for wrong, message in (
        ("nowhere-gcc -O2", r"\$CC names 'nowhere-gcc', but there is no such"),
        ('"gcc', "no command"),
    ):
        monkeypatch.setenv("CC", wrong)
        with pytest.raises(ValueError, match=message):
            c_runner.compiler()


@pytest.mark.parametrize("wrong", ["0.25f", "-0.25f"])
def test_a_program_that_plays_otherwise_is_noticed(wrong, tmp_path, monkeypatch):
    from rllib_kd.export.c import write

    real = write.main_program
    monkeypatch.setattr(
        write,
        "main_program",
        lambda **kwargs: real(**kwargs).replace("(double)q_values[i]", f"(double)q_values[i] + (double){wrong}"),
    )
    with pytest.raises(ValueError, match=r"The C program prints '.*', expected .* Nothing was written"):
        export(network(), tmp_path / "s.h", format="c", obs=states(3))
    assert os.listdir(tmp_path) == []


def test_weights_that_are_not_finite_are_refused(tmp_path):
    student = network()
    with torch.no_grad():
        next(student.module.parameters())[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights that are NaN or infinite"):
        export(student, tmp_path / "s.h", format="c", obs=states(3))
    with pytest.raises(ValueError, match="weights that are NaN or infinite"):
        Arrays().add(np.array([np.inf], np.float32))


def test_numbers_are_read_back_as_they_are():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=2000, dtype=np.uint32).view(np.float32)
    numbers = [number for number in bits if np.isfinite(number)]
    for number in [*numbers, np.float32(1e-45), np.float32(3.4028235e38), np.float32(-0.0), np.float32(16777216)]:
        text = literal(number)
        assert re.fullmatch(r"-?(\d+\.\d*(e[+-]?\d+)?|\d+e[+-]?\d+)f", text)  # an integer with an f is no number in C
        assert np.float32(text[:-1]).tobytes() == number.tobytes()


def test_a_temporary_folder_without_programs_is_named(tmp_path, monkeypatch):
    export(network(fcnet_hiddens=[2]), tmp_path / "s.h", format="c", obs=states(3))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with main_program_of(tmp_path / "s.h") as printed:
        monkeypatch.setattr(subprocess, "run", refuse)
        with pytest.raises(ValueError, match=r"Programs cannot be run from '/.*Set TMPDIR to another folder"):
            printed(records=states(3))
    monkeypatch.undo()
    monkeypatch.setattr(c_runner.ctypes, "CDLL", refuse)
    with pytest.raises(ValueError, match="Set TMPDIR to another folder"):
        c_runner.CNetwork(str(tmp_path / "s.h"))
