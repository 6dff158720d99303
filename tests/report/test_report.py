import json
import math
import re
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.cells import cell_len

from rllib_kd.checkpoints.runs import Curve
from rllib_kd.evaluation.result import Comparison, PolicyReport
from rllib_kd.report.comparisons import summary_table, write_report
from rllib_kd.report.confusion import drawn_actions

HOSTILE = (
    "</text></svg><script>alert(1)</script><img src=\"http://evil.example/x\" onerror='x'> & $\\frac{ \x1b[31m\udc80 學"
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


def policy(name, *returns, parameters=None, latency=None):
    return PolicyReport(name, list(returns), sum(returns) / len(returns), 1.5, parameters, latency)


def comparison(name="small", *, teacher_confusion=((6, 2), (0, 2)), **changes):
    """A student with 1/40 of the parameters; its agreement is 8 of 10 states."""
    result = Comparison(
        env="Somewhere-v0",
        num_episodes=2,
        epsilon=0.0,
        teacher=policy("teacher", 10.0, 30.0, parameters=40_000, latency=0.05),
        student=policy(name, 10.0, 25.0, parameters=1_000, latency=0.025),
        random=policy("random", 0.0, 0.0),
        return_ratio=0.875,
        compression=0.025,
        agreement_on_teacher_states=0.8,
        agreement_on_student_states=0.75,
        q_regret_on_teacher_states=0.125,
        q_regret_on_student_states=0.5,
        confusion_on_teacher_states=[list(row) for row in teacher_confusion],
        confusion_on_student_states=[[3, 1], [0, 0]],
    )
    return replace(result, **changes)


class Page(HTMLParser):
    """What is in a page, and whether each element is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], Counter(), [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def page(comparisons, tmp_path, **kwargs):
    return Page(write_report(comparisons, tmp_path / "new" / "folder", **kwargs).read_text(encoding="utf-8"))


CURVES = {"small": [(0, 1.0), (100, 20.0)], "another run": [(0, 2.0), (50, math.nan)]}
PLAYED_IN = {"env_config": {"map": ["S" * 40, "G" * 40], "wind": 1.5}}
BOTH = [comparison(**PLAYED_IN), comparison("tiny", **PLAYED_IN)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of a report on two students."""
    folder = tmp_path_factory.mktemp("both") / "new" / "folder"
    write_report(BOTH, folder, curves=CURVES)
    return folder


def page_in(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_the_table_has_a_row_for_each_policy():
    lines = summary_table([comparison(), comparison("tiny")]).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    # parameters, % of teacher, mean ± interval, ratio, agreements, latency
    assert rows["teacher"] == ["40,000", "100.00", "20.0", "±", "1.5", "1.000", "50"]
    assert rows["random"] == ["0.0", "±", "1.5", "0.000"]
    expected = ["1,000", "2.50", "17.5", "±", "1.5", "0.875", "80.0", "/", "75.0", "25"]
    assert rows["small"] == rows["tiny"] == expected
    assert "Somewhere-v0, 2 episodes each, same seeds" in lines[0]
    assert "the same action, or an equally good one" in lines[-1]


@pytest.mark.parametrize(
    "name",
    ["small", "學" * 60, "a/long/path/of/a/checkpoint/" * 5, HOSTILE, "[red]bold[/]"],
    ids=["short", "wide", "long", "hostile", "markup"],
)
def test_the_table_has_at_most_80_columns_and_all_of_each_figure(name):
    large = comparison(
        name,
        teacher=replace(comparison().teacher, return_mean=-98765.4, return_ci95=12345.6, num_parameters=123_456_789),
        return_ratio=-123.456,
        agreement_on_teacher_states=1.0,
        agreement_on_student_states=1.0,
    )
    table = summary_table([large])
    assert max(map(cell_len, table.splitlines())) <= 80
    for figure in ("123,456,789", "-98,765 ± 12,346", "-123 ", "100.0 / 100.0", "latency", "µs"):
        assert figure in table
    assert "\x1b" not in table
    assert name[:4] in table


def test_one_episode_has_no_interval(tmp_path):
    alone = replace(comparison().student, returns=[25.0], return_mean=25.0, return_ci95=math.inf)
    one = comparison(student=alone, num_episodes=1, return_ratio=math.nan)
    assert "inf" not in summary_table([one])
    assert "1 episode each" in summary_table([one])
    assert "inf" not in page([one], tmp_path).text
    (student,) = json.loads((tmp_path / "new/folder/figures.json").read_text())["students"]
    assert student["return_ci95"] is student["return_ratio"] is None


def test_the_page_is_one_file_that_asks_for_nothing(both):
    assert sorted(path.name for path in both.iterdir()) == ["figures.json", "index.html"]
    seen, text = page_in(both), (both / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|<script", text)
    links = [value for name, value in seen.attributes if name in ("src", "href", "srcset", "data", "xlink:href")]
    assert "figures.json" in links
    assert "the same action, or the student an equally good one" in " ".join(text.split())
    assert all(link.startswith("#") or link in ("figures.json", "data:,") for link in links)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert {target for _, value in seen.attributes for target in re.findall(r"url\(#(.+?)\)", value or "")} <= set(ids)
    # size, latency, agreement, returns, curves for wide and narrow windows, confusion of two students
    assert seen.tags["svg"] == 8
    assert seen.tags["style"] == 1  # matplotlib's own would rule the whole page
    assert seen.tags["title"] == seen.tags["h1"] == 1
    assert seen.tags["h2"] == seen.tags["figcaption"] == 6
    assert seen.tags["tr"] == 2 + 4
    assert 'id="trees"' not in text


def test_the_plots_say_what_they_show(both):
    seen = page_in(both)
    for label in (
        "parameters",
        "latency of one observation (µs)",
        "return, mean of episodes",
        "states with the teacher's action (%)",
        "return of an episode",
        "env steps",
        "student's action",
        "on the student's states",
        "0.125",  # regret
        "2.00",  # times as fast
    ):
        assert label in seen.text
    assert "75.0 % (6)" in seen.text  # of the 8 states in which the teacher chooses action 0
    assert "25.0 % (2)" in seen.text
    assert "100.0 % (2)" in seen.text
    assert seen.text.count("–") >= 2  # the student's states have none in which the teacher chooses action 1
    assert not re.search("behaviour|exploring", seen.text)  # the curves are of greedy policies


@pytest.mark.parametrize(
    ("kinds", "title", "in_plot", "absent"),
    [
        pytest.param(["exploring"], "Learning curves", [], ["behaviour", "(exploring)"], marks=pytest.mark.slow),
        pytest.param(
            ["behavior"],
            "Learning curves of the behaviour policy",
            ["return of the behaviour policy", "r0 (behaviour policy)"],
            ["fewer steps its student"],
            marks=pytest.mark.slow,
        ),
        (
            ["behavior", "greedy", "exploring"],
            "Learning curves",
            ["r0 (behaviour policy)", "r1", "r2 (exploring)"],
            ["return of the behaviour policy"],
        ),
    ],
)
def test_curves_say_whose_returns_they_show(tmp_path, kinds, title, in_plot, absent):
    curves = {f"r{i}": Curve([(0, 1.0), (100, 20.0)], of=kind) for i, kind in enumerate(kinds)}
    seen = page([comparison()], tmp_path, curves=curves)
    words = [word.strip() for word in seen.words]
    assert title in words
    assert set(in_plot) <= set(words)
    assert not any(text in seen.text for text in absent)
    assert ("not the student alone" in seen.text) == ("behavior" in kinds)
    figures = json.loads((tmp_path / "new/folder/figures.json").read_text())
    assert figures["curves_of"] == dict(zip(curves, kinds, strict=True))


@pytest.mark.slow
def test_small_returns_have_the_digits_of_their_interval(tmp_path):
    blackjack = comparison(
        teacher=replace(policy("teacher", -0.0624, parameters=10, latency=1.0), return_ci95=0.0431),
        random=replace(policy("random", -0.394), return_ci95=0.0918),
        student=replace(policy("small", -0.071, parameters=5, latency=1.0), return_ci95=0.0437),
    )
    shown = page([blackjack], tmp_path).text
    assert "Learning curves" not in shown  # there are none
    for text in (summary_table([blackjack]), shown):
        assert "-0.062 ± 0.043" in text
        assert "-0.394 ± 0.092" in text
        assert "-0.071 ± 0.044" in text
    assert "-0.062 ± 0.043" in str(blackjack)
    assert "a random policy (-0.394)" in str(blackjack)


NAMES = ["$\\frac{$", "a_b^c$x$", "學生 😀", "_hidden", "", "&lt;"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The page of nine students, six with curves, in an environment with one action."""
    students = [comparison(name, confusion_on_teacher_states=[[8]]) for name in (*NAMES, "s6", "s7", "s8")]
    curves = {f"{name}{end}": [(0, 1.0), (1, 2.0)] for name in NAMES for end in ("", " of a trial with a long name")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return write_report(students, tmp_path_factory.mktemp("many"), curves=curves).read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_colour_of_the_plots_follows_the_theme(many):
    styles = [value for name, value in Page(many).attributes if name in ("style", "fill", "stroke")]
    assert any("var(--c5)" in style for style in styles)
    assert not any(re.search(r"#[0-9a-fA-F]{3}|rgb", style) for style in styles)
    assert "prefers-color-scheme: dark" in many
    for variable in set(re.findall(r"var\((--\w+)\)", many)):
        assert many.count(f"{variable}: #") == 2  # light and dark


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_stand_in_the_plots_as_they_are(many, name):
    seen = Page(many)
    # the table and a heading; a mark, an axis or a legend in six plots
    assert sum(word.strip() == name for word in seen.words) >= 8
    assert seen.text.count(f"{name} of a trial with a long name".strip()) >= 2


@pytest.mark.slow
def test_each_of_many_students_has_its_plot(many):
    assert Page(many).tags["svg"] == 6 + len(NAMES) + 3


@pytest.mark.slow
def test_a_matplotlibrc_changes_nothing(both, tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"axes.facecolor": "yellow", "lines.linewidth": 30, "svg.fonttype": "path"}):
        write_report(BOTH, tmp_path, curves=CURVES)
        assert mpl.rcParams["lines.linewidth"] == 30
    assert (tmp_path / "index.html").read_bytes() == (both / "index.html").read_bytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["figures.json", "index.html"])
def test_a_full_disk_leaves_the_older_report(tmp_path, fill_disk, name):
    (tmp_path / name).write_bytes(b"old")
    fill_disk(name)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/{name}'"):
        write_report(BOTH, tmp_path)
    assert (tmp_path / name).read_bytes() == b"old"


def test_hostile_names_are_text(both, tmp_path):
    plain = page_in(both)
    curves = {HOSTILE: [(0, 1.0), (1, 2.0)], "another run": [(0, 1.0)]}
    seen = page([comparison(HOSTILE, env=HOSTILE), comparison("tiny", env=HOSTILE)], tmp_path, curves=curves)
    assert {tag: seen.tags[tag] for tag in ("script", "img", "svg", "section")} == {
        "script": 0,
        "img": 0,
        "svg": plain.tags["svg"],
        "section": plain.tags["section"],
    }
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert "<script>alert(1)</script>" in seen.text
    assert "& $\\frac{ �[31m� 學" in seen.text
    assert json.loads((tmp_path / "new/folder/figures.json").read_text())["students"][0]["name"] == HOSTILE


SHARED = ("env", "env_config", "num_episodes", "epsilon", "teacher", "random", "regret_unit")


def test_figures_json_has_everything(both):
    figures = json.loads((both / "figures.json").read_text())
    assert figures["curves"] == {"small": [[0, 1.0], [100, 20.0]], "another run": [[0, 2.0], [50, None]]}
    for result, student in zip(BOTH, figures["students"], strict=True):
        expected = result.to_dict()
        shared = {key: expected.pop(key) for key in SHARED}
        assert shared == {key: figures[key] for key in shared}
        assert student == expected.pop("student") | expected


def test_tables_and_page_state_environment_and_config(both):
    line = f'played in Somewhere-v0 {{"map": ["{"S" * 40}", "{"G" * 40}"], "wind": 1.5}}'
    assert summary_table(BOTH).splitlines()[0] == line  # whole, to be given again
    assert str(BOTH[0]).splitlines()[0] == line
    assert max(map(len, str(BOTH[0]).splitlines()[1:])) <= 80
    assert line.removeprefix("played in ") in page_in(both).text
    for text in (str(comparison()), summary_table([comparison()])):
        assert text.splitlines()[0].strip() == "Somewhere-v0, 2 episodes each, same seeds"


@pytest.mark.slow
def test_many_actions_and_students(tmp_path):
    matrix = [[row * column for column in range(18)] for row in range(18)]
    students = [comparison("s", confusion_on_teacher_states=matrix), *(comparison(f"s{i}") for i in range(8))]
    assert page(students, tmp_path).tags["svg"] == 4 + 9


def test_reports_of_hundreds_of_actions_are_bounded(tmp_path):
    matrix = np.zeros((700, 700), int)
    matrix[7, 7], matrix[650, 3] = 5, 4
    matrix += np.diag(np.arange(700) % 2)
    shown = page([comparison(confusion_on_teacher_states=matrix.tolist())], tmp_path)
    assert "Of the 700 actions, the 100 that are chosen most often are drawn" in shown.text
    file = tmp_path / "new" / "folder" / "figures.json"
    assert file.stat().st_size < 50_000
    (student,) = json.loads(file.read_text(encoding="utf-8"))["students"]
    found = student["confusion_on_teacher_states"]
    assert (found["num_actions"], found["num_pairs"]) == (700, 351)
    assert found["most_frequent"][:2] == [[7, 7, 6], [650, 3, 4]]
    assert student["confusion_on_student_states"] == [[3, 1], [0, 0]]
    drawn = drawn_actions(matrix)
    assert len(drawn) == 100
    assert {3, 7, 650} <= set(drawn.tolist())


def test_what_cannot_stand_in_one_table(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        summary_table([])
    others = {
        "Write one report for each environment": comparison("other", env="Elsewhere-v0"),
        "'Somewhere-v0' and 'Somewhere-v0 {\"wind\": 1}'": comparison("other", env_config={"wind": 1}),
        "different teachers": comparison("other", teacher=policy("teacher", 1.0, 2.0, parameters=1, latency=1.0)),
        "on different episodes": comparison("other", random=policy("random", 1.0, 2.0)),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=f"'small' and 'other' .*{message}"):
            write_report([comparison(), other], tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_takes_long_to_import_is_not_imported_for_numbers_and_tables():
    modules = "{'ray', 'torch', 'matplotlib', 'rich', 'scipy.stats'}"
    code = (
        f"import sys, rllib_kd.evaluation.intervals, rllib_kd.report.comparisons; print({modules} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.parametrize(("largest", "who"), [(1.7e308, "teacher"), (math.inf, "student"), (math.nan, "random")])
def test_returns_that_overflow_are_drawn_at_the_edge(tmp_path, largest, who):
    steps = largest if math.isfinite(largest) else 9.0
    curves = {"small": [(0.0, -largest), (steps, largest)], "other": [(1.0, 2.0), (2.0, 3.0)]}
    own = policy(who, largest, -largest, parameters=10, latency=1.0)
    assert page([comparison(**{who: own})], tmp_path, curves=curves).tags["svg"] == 7


def tree(num_leaves=3, name="speed"):
    leaves = [{"action": i % 2, "share": 1 / num_leaves, "regret": None if i else 0.25} for i in range(num_leaves)]
    inner = num_leaves - 1
    nodes = [
        {"compared": name, "threshold": "0.123456", "left": inner + i, "right": i + 1 if i + 1 < inner else 2 * inner}
        for i in range(inner)
    ]
    return {
        "num_leaves": num_leaves,
        "depth": inner,
        "nodes": nodes,
        "leaves": leaves,
        "rules": f"if {name} <= 0.123456:\n    action 0",
    }


def test_a_teacher_whose_parameters_are_not_known_is_left_out_of_the_plot_of_sizes(tmp_path):
    unknown = comparison(teacher=policy("f", 10.0, 30.0, parameters=math.nan, latency=0.05), compression=math.nan)
    assert "NaN" not in write_report([unknown], tmp_path).read_text()
    assert ">nan<" not in (tmp_path / "index.html").read_text()
    for table in (summary_table([unknown]), str(unknown)):
        assert "nan" not in table.split()


@pytest.mark.slow
def test_trees_are_drawn_with_their_rules_shares_and_regrets(tmp_path):
    trees = {"net": None, "tree": tree(), "stump": tree(1), "big": tree(65), "hostile": tree(3, HOSTILE)}
    students = [comparison(name, tree=grown) for name, grown in trees.items()]
    text = write_report(students, tmp_path).read_text()
    shown = Page(text)
    assert shown.text.count("speed ≤ 0.1235") == 2
    assert "<pre>if speed &lt;= 0.123456:\n    action 0</pre>" in text
    assert "33.3 %, regret 0.25" in shown.text
    assert "tree: 3 leaves, depth 2" in shown.text
    assert 'aria-label="Tree of stump"' in text
    assert "100.0 %, regret 0.25" in shown.text  # the stump's leaf
    assert 'aria-label="Tree of big"' not in text  # its rules alone
    assert "script" not in shown.tags
    assert all(name != "onerror" for name, _ in shown.attributes)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [student["tree"] is None for student in figures["students"]] == [True, False, False, False, False]
    assert "leaves, depth" in str(students[1])
    assert "leaves, depth" not in str(students[0])
