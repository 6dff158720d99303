"""The front, the recommended student, and what they look like."""

import csv
import json
import math
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from rllib_kd.evaluation.intervals import lower_bound
from rllib_kd.sweeps.report import ReportedSweep, setting_in_a_line
from rllib_kd.sweeps.result import SweptStudent, pareto_front, recommend


def student(num_parameters, *ratios, finished=True, **settings):
    return SweptStudent(
        name=f"s{num_parameters}",
        settings=settings or {"lr": 0.003},
        num_parameters=num_parameters,
        cost=num_parameters,
        compression=num_parameters / 10_000,
        return_ratios=ratios,
        env_steps=1_000,
        finished=finished,
    )


def result(*students, **kwargs):
    defaults = {"env": "CartPole-v1", "teacher": "my teacher", "teacher_parameters": 10_000, "teacher_return": 500.0}
    defaults |= {"random_return": 20.0, "num_episodes": 100, "env_steps": 1_000, "fixed": {}}
    return ReportedSweep(**{**defaults, **kwargs}, students=list(students))


def test_the_front_has_no_student_that_a_smaller_or_equal_one_reaches():
    small, equal, worse, better = student(10, 0.5), student(20, 0.5), student(30, 0.4), student(30, 0.9)
    assert pareto_front([better, worse, equal, small]) == [small, better]


@pytest.mark.slow
def test_the_front_is_that_of_what_is_minimized(tmp_path):
    """Fewer parameters, but a table of tanh: not the smallest as integers."""
    table = replace(student(30, 0.99, 0.99, 0.99, model_config={"fcnet_hiddens": [4]}), cost=600.0)
    plain = replace(student(58, 0.99, 0.99, 0.99, model_config={"fcnet_hiddens": [8]}), cost=120.0)
    large = replace(student(114, 1.0, 1.0, 1.0, model_config={"fcnet_hiddens": [16]}), cost=240.0)
    swept = result(large, plain, table, minimize="int8_bytes")
    assert swept.front == [plain, large]
    assert swept.recommended is plain
    assert "58 parameters and 120 bytes as integers (0.58 % of the teacher's)" in swept.verdict()
    assert [row["int8_bytes"] for row in swept.rows()] == [120.0, 240.0, 600.0]
    assert swept.to_dict()["minimize"] == "int8_bytes"
    assert "120" in str(swept)
    assert max(map(len, str(swept).splitlines()[:12])) <= 80
    swept.write(tmp_path)
    assert "bytes as integers" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("name", ["sweep.csv", "sweep.json", "pareto.png", "index.html"])
def test_a_full_disk_leaves_the_older_files_of_a_sweep(tmp_path, fill_disk, name):
    swept = result(student(58, 0.9))
    (tmp_path / name).write_bytes(b"old")
    fill_disk(name)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/{name}'"):
        swept.write(tmp_path)
    assert (tmp_path / name).read_bytes() == b"old"


def test_of_one_size_the_best_is_on_the_front():
    assert [s.return_ratio for s in pareto_front([student(10, 0.2), student(10, 0.6), student(10, 0.4)])] == [0.6]


def test_students_that_were_stopped_early_are_out_of_the_running():
    early, late = student(10, 1.0, 1.0, 1.0, finished=False), student(20, 0.99, 0.99, 0.99)
    assert pareto_front([early, late]) == [late]
    assert recommend([early, late]) is late


def test_the_recommended_is_the_smallest_with_98_percent_over_three_seeds():
    too_small = student(10, 0.9, 1.0, 1.0)
    lucky = student(20, 1.0, 1.0)
    right = student(30, 0.97, 0.98, 0.99)
    large = student(40, 1.0, 1.0, 1.0)
    assert recommend([large, lucky, right, too_small]) is right
    assert recommend([too_small, lucky]) is None


def test_the_lower_bound_is_that_of_a_one_sided_t_test():
    values = [0.9, 1.0, 0.8, 0.95]
    bound = lower_bound(values)
    assert scipy.stats.ttest_1samp(values, bound, alternative="greater").pvalue == pytest.approx(0.05)
    assert lower_bound([1.0, 1.0, 1.0]) == 1.0
    assert lower_bound([1.0]) == -math.inf


def test_the_verdict_names_the_recommended_or_the_best():
    assert (
        "Recommended: 16 units, 30 parameters"
        in result(student(30, 1.0, 1.0, 1.0, model_config={"fcnet_hiddens": [16]})).verdict()
    )
    weak = result(student(30, 0.5, 0.5, 0.5, model_config={"fcnet_hiddens": []})).verdict()
    assert "No student reached at least 98 %" in weak
    assert "The best was linear, 30 parameters, with 0.500" in weak
    assert "on at least 3 seeds, but there were 1" in result(student(30, 1.0)).verdict()
    assert "No student has finished" in result(student(30, 1.0, finished=False)).verdict()


def test_the_table_has_80_columns_and_the_command_is_one_line():
    settings = {
        "loss": "kl",
        "temperature": 0.0115,
        "lr": 0.00312,
        "teacher_fraction": [[0, 1.0], [10_000, 0.0]],
        "td_coeff": 0.1,
        "model_config": {"fcnet_hiddens": [16, 16]},
    }
    found = result(student(123_456_789, 0.981, 0.984, 0.999, **settings), student(10, -0.2, 0.1, 0.3))
    *text, empty, command = str(found).splitlines()
    assert max(map(len, text)) <= 80
    assert empty == ""
    assert any(line.strip().startswith("→ 123,456,789") for line in text)
    words = shlex.split(command)
    assert " ".join(words[:8]) == "rllib train --algo DistillDQN --env CartPole-v1 --teacher my teacher"
    assert json.loads(words[words.index("--config") + 1]) == settings


@pytest.mark.parametrize(
    ("fraction", "words"),
    [([[0, 1.0], [10_000, 0.5]], "1→0.5 by 10,000"), ([[0, 0.3]], "0.3→0.3 by 0"), (0.25, "0.25")],
)
def test_a_schedule_is_described_by_its_ends(fraction, words):
    assert setting_in_a_line(student(10, 1.0, teacher_fraction=fraction)).endswith(f", teacher_fraction {words}")


def test_the_command_has_what_all_students_share():
    words = shlex.split(result(fixed={"gamma": 0.9}).command(student(10, 1.0, lr=0.1)))
    assert json.loads(words[words.index("--config") + 1]) == {"gamma": 0.9, "lr": 0.1}


class Mine:
    """Callbacks, of which only the name can be written."""


def test_settings_that_json_lacks_are_written_too(tmp_path):
    fixed = {"env_config": {"size": np.int64(5)}, "callbacks_class": Mine, "input_": tmp_path / "rows"}
    found = result(student(10, 1.0, 1.0, 1.0, lr=np.float32(0.5), widths=(np.int64(4),)), fixed=fixed)
    found.write(tmp_path)
    (row,) = csv.DictReader((tmp_path / "sweep.csv").open())
    assert (row["lr"], row["widths"]) == ("0.5", "[4]")
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["fixed"] == {
        "env_config": {"size": 5},
        "callbacks_class": f"{__name__}.Mine",
        "input_": str(tmp_path / "rows"),
    }
    words = shlex.split(content["command"])
    assert words[words.index("--input") + 1] == str(tmp_path / "rows")
    assert json.loads(words[words.index("--config") + 1])["env_config"] == {"size": 5}


def test_what_is_written(tmp_path):
    found = result(
        student(10, 0.4, 0.5, 0.6),
        student(20, 1.0, 1.0, 1.0, loss="<b>", model_config={"fcnet_hiddens": [4]}),
        student(30, 0.2, finished=False),
        failed={"bad": "ValueError: <no>"},
        note="Mind this.",
    )
    found.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["parameters"] for row in rows] == ["10", "20", "30"]
    assert [row["on_front"] for row in rows] == ["True", "True", "False"]
    assert [row["recommended"] for row in rows] == ["False", "True", "False"]
    assert json.loads(rows[0]["return_ratios"]) == [0.4, 0.5, 0.6]
    assert json.loads(rows[1]["model_config"]) == {"fcnet_hiddens": [4]}
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["students"][2]["return_ratio_lower"] is None
    assert content["command"] == found.command(found.recommended)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<b>" not in page
    for text in ("★ recommended", "● front", "stopped early", "Mind this.", "1 of 4 settings failed", "&lt;no&gt;"):
        assert text in page


@pytest.mark.slow
def test_what_is_written_executes_nothing_and_steers_nothing(tmp_path):
    odd = "=cmd|' /C calc'!A0"
    escapes = "\x1b]0;title\x07\u202e[red]"
    settings = {"loss": odd, "@lr": f"+{escapes}", "kd_coeff": -0.5}
    found = result(student(20, 1.0, 1.0, 1.0, **settings), env=escapes, teacher=escapes, failed={"bad": escapes})
    found.write(tmp_path)
    (row,) = csv.DictReader((tmp_path / "sweep.csv").open())
    assert row["loss"] == f"'{odd}"
    assert row["'@lr"].startswith("'+\N{REPLACEMENT CHARACTER}]0;title")
    assert row["kd_coeff"] == "-0.5"  # a number
    for text in (str(found), (tmp_path / "index.html").read_text(), (tmp_path / "sweep.csv").read_text()):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert "[red]" in text
    assert json.loads((tmp_path / "sweep.json").read_text())["env"] == escapes  # JSON escapes by itself


def test_a_sweep_in_which_everything_failed_is_written_too(tmp_path):
    found = result(failed={"bad": "ValueError: no"})
    found.write(tmp_path)
    assert "1 of 1 settings failed: ValueError: no" in str(found)
    assert not (tmp_path / "pareto.png").exists()
