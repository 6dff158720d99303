"""The public face is typed: what a user's type checker sees of it."""

import re
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api")

ROOT = Path(__file__).parents[1]
#: A user's program, and what mypy reveals in each line.
REVEALED = {
    "DistillDQNConfig()": "DistillDQNConfig",
    'DistillDQNConfig().distillation(teacher="cartpole")': "DistillDQNConfig",
    'compare("cartpole", "student")': "Comparison",
    'compare("cartpole", "student").return_ratio': "float",
    'compare_all("cartpole", {"small": "student"})': "list[Comparison]",
    'load_teacher("cartpole")': "Teacher",
    'load_teacher("cartpole").num_parameters': "float",
    'Sweep(teacher="cartpole", env="CartPole-v1").run()': "ReportedSweep",
    'Shrink("cartpole", "CartPole-v1").run()': "Shrunk",
    'read_curves("runs")': "dict[str, Curve]",
}


@pytest.mark.slow
def test_no_public_name_is_any(tmp_path):
    program = tmp_path / "program.py"
    names = "DistillDQN, DistillDQNConfig, Shrink, Sweep, compare, compare_all, load_teacher, read_curves, write_report"
    lines = [f"from rllib_kd import {names}", *(f"reveal_type({code})" for code in REVEALED)]
    lines += ["reveal_type(DistillDQN)", "reveal_type(write_report)"]
    program.write_text("\n".join(lines) + "\n")
    output, errors, status = api.run([str(program), "--config-file", str(ROOT / "pyproject.toml")])
    assert status == 0, output + errors
    revealed = re.findall(r'Revealed type is "(.*)"', output)
    assert len(revealed) == len(lines) - 1
    assert "Any" not in revealed
    for expected, found in zip(REVEALED.values(), revealed, strict=False):
        assert re.sub(r"\b(\w+\.)+", "", found) == expected
