"""docs/pages/c.md: its program compiles, its commands work as written, and it lists what there is."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.cli.main import main
from rllib_kd.export.c.header import _HEADER
from rllib_kd.export.c.integers import _MAX_NORM
from rllib_kd.export.c.program import STATE_PARTS
from rllib_kd.export.c.text import _MAX_PREFIX
from rllib_kd.export.export import export
from rllib_kd.export.runners import c_runner
from rllib_kd.networks import layers as layers_module
from rllib_kd.networks.layers import ELEMENTWISE
from rllib_kd.teachers.base import Teacher
from tests.conftest import states
from tests.export.students import ROOT, network
from tests.networks.test_recurrent import recurrent
from tests.tutorials import in_bash, lines_of

PAGE = (ROOT / "docs" / "pages" / "c.md").read_text()
PROGRAM, RECURRENT_PROGRAM = re.findall(r"```c\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["floats", "integers", "recurrent"])
def test_the_program_on_the_page_compiles(name, tmp_path):
    student, obs = (Teacher(recurrent()), states(3)[:, :2]) if name == "recurrent" else (network(), states(3))
    export(student, tmp_path / "student.h", format="c", obs=obs, int8=name == "integers")
    (tmp_path / "own.c").write_text(RECURRENT_PROGRAM if name == "recurrent" else PROGRAM)
    c_runner.build(tmp_path / "own.c", tmp_path / "own.o", "-c")


def test_the_page_lists_what_there_is():
    listed = set(re.findall(r"`(\w+)`", PAGE.split("are supported:")[1].split("`--int8`")[0]))
    assert listed == {*ELEMENTWISE, *layers_module._BUILDERS, *STATE_PARTS} - {"branches"}
    macros = set(re.findall(r"#define P_(\w+) ", _HEADER))
    assert macros == set(re.findall(r"\bSTUDENT_(\w+)", PAGE)) - {"Q_UNIT", "STATE_SIZE"}
    assert f"more than {_MAX_NORM:,} numbers" in PAGE
    assert f"up to {_MAX_PREFIX} characters" in PAGE


@pytest.mark.slow
def test_the_page_on_c_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    exports, others = COMMANDS
    for line in lines_of(exports):
        program, *arguments = shlex.split(line)
        assert program == "rllib"
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert not exit_.value.code
    printed = capsys.readouterr().out + in_bash(others)
    assert sorted(os.listdir(tmp_path / "policy")) == [
        "README.md",
        "observations",
        "small.h",
        "small_main.c",
        "student",
        "student.h",
        "student_main.c",
    ]
    assert printed.count("500.0 ± 0.0") == 2
    first, second, third, fourth = printed.splitlines()[-4:]
    expected = load_teacher("cartpole").q_values(torch.tensor([[0, 0, 0.05, 0], [0, 0, -0.05, 0]])).numpy()
    assert (first, second) == ("1", "0")
    for line, values in ((third, expected[0]), (fourth, expected[1])):
        action, *q_values = line.split()
        assert int(action) == values.argmax()
        assert np.array(q_values, float) == pytest.approx(values, abs=1e-4)
