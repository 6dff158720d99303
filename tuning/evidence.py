"""The evidence in one page and one picture: docs/results/evidence.md, of the rows that other commands have measured.

    python tuning/evidence.py [--results docs/results]

`results.py`, `unseen.py`, `min_atar.py`, `language.py` and `tests/benchmarks/alternatives.py` measure the rows, and
`tests/benchmarks/atari.py` those with sticky actions. The other figures of Atari are those of docs/results/images.md.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from by_size import as_row, settings_of  # isort: skip
from measuring import read_rows  # isort: skip
from results_page import cell, interval  # isort: skip

#: Rusu et al. 2015 (arXiv 1511.06295), table 1: geometric means over ten games, in percent of the parameters.
RUSU = {25.3: 1.083, 6.7: 1.017, 3.7: 0.839}
#: Methods of `tests/benchmarks/alternatives.py`, and their names on the page.
METHODS = {
    "rllib_kd": "rllib_kd",
    "plain": "a script of 40 lines",
    "dagger": "`imitation`'s DAgger",
    "bc": "`imitation`'s BC",
    "rsl_rl": "recipe of `rsl_rl`",
}
_KINDS = ("vectors", "images", "language", "unseen vectors", "unseen images")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#999933")


@dataclass(frozen=True)
class Size:
    """What students of one size reach in a task.

    Args:
        name: of the size.
        num_parameters: of a student.
        row: as of `results.py`, with the runs of all seeds.
        student: their name in the row.
    """

    name: str
    num_parameters: int
    row: Mapping[str, Any]
    student: str

    @property
    def num_seeds(self) -> int:
        """Return the number of training seeds."""
        return len(self.row["seeds"])

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Return the interquartile mean of the return ratios, and its 95 % interval."""
        return interval([self.row], self.student)


@dataclass(frozen=True)
class Task:
    """A task with its sizes, from the largest."""

    name: str
    kind: str
    num_parameters: int  # of the teacher
    sizes: Sequence[Size]

    def share(self, size: Size) -> float:
        """Return the student's parameters in percent of the teacher's."""
        return 100 * size.num_parameters / self.num_parameters


# --- What was measured ------------------------------------------------------------------------------------------------


def tasks_of(results: Path) -> list[Task]:
    """Return all tasks of which there are rows."""
    vectors = [
        _of_families(json.loads(path.read_text())) for path in sorted((results / "sizes").glob("*-kl-mixture.json"))
    ]
    return [
        *vectors,
        *_of_lines(results / "minatar.jsonl", "images"),
        *_of_lines(results / "language.jsonl", "language"),
        *_unseen(results / "unseen"),
    ]


def _of_families(row: Mapping[str, Any], kind: str = "vectors") -> Task:
    """Return a task of `results.py`, all of whose students learned in one run."""
    first = next(iter(row["seeds"].values()))["students"]
    sizes = [Size(_size_name(name), run["student"]["num_parameters"], row, name) for name, run in first.items()]
    teacher = next(iter(first.values()))["teacher"]["num_parameters"]
    return Task(row["env"].rpartition(":")[2], kind, teacher, sizes)


def _size_name(student: str) -> str:
    return f"{student.removeprefix('percent_')} %" if student.startswith("percent_") else student


def _unseen(folder: Path) -> Iterable[Task]:
    """Return the tasks of `unseen.py`, without its students with restarts."""
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        if not row["settings"]:
            yield _of_families(row, f"unseen {'images' if _has_shares(row) else 'vectors'}")


def _has_shares(row: Mapping[str, Any]) -> bool:
    return all(name.startswith("percent_") for run in row["seeds"].values() for name in run["students"])


def _of_lines(path: Path, kind: str) -> Iterable[Task]:
    """Return the tasks of a file of `by_size.py`."""
    for name, own in _rows_of(path):
        sizes = []
        for compression in sorted({row["compression"] for row in own}, reverse=True):
            runs = [row for row in own if row["compression"] == compression]
            sizes.append(Size(f"{100 * compression:.3g} %", runs[0]["parameters"], as_row(runs), "one"))
        yield Task(name.removesuffix("-v0"), kind, own[0]["teacher_parameters"], sizes)


def _rows_of(path: Path) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """Return each task's rows in a file of `by_size.py`; those of another question are left out.

    These are runs of another length than the first one's, or without the defaults.
    """
    rows = read_rows(path)
    for name in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == name]
        own = [row for row in of_task if row["env_steps"] == of_task[0]["env_steps"] and not settings_of(row)]
        if own:
            yield name, own


def integers_of(results: Path) -> dict[str, list[float]]:
    """Return the return ratio that each exported file loses that computes in integers, by kind of task."""
    found = {}
    for kind, name in (("language", "language.jsonl"), ("MinAtar", "minatar.jsonl")):
        found[kind] = [row["int8_loses"] for _, own in _rows_of(results / name) for row in own if "int8_loses" in row]
    return found


def sticky_of(results: Path) -> dict[str, list[float]]:
    """Return the return ratios of the three sizes with sticky actions, at the end of each game's run."""
    rows = read_rows(results / "sticky.jsonl")
    found = {}
    for game in dict.fromkeys(row["game"] for row in rows):
        own = [row for row in rows if row["game"] == game and row["sticky"]]
        last = max(row["env_steps"] for row in own)
        found[game] = [row["return_ratio"] for row in own if row["env_steps"] == last]
    return found


def certificates_of(results: Path) -> list[tuple[str, int, int, int]]:
    """Return environment, median parameters, number of certificates and number of wrong ones."""
    with (results / "real_certificates.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["num_parameters"]]
    found = []
    for env in dict.fromkeys(row["env"] for row in rows):
        own = [row for row in rows if row["env"] == env]
        parameters = sorted(int(row["num_parameters"]) for row in own)
        found.append((env, parameters[len(own) // 2], len(own), sum(row["is_wrong"] == "True" for row in own)))
    return found


def alternatives_of(results: Path) -> list[tuple[str, dict[str, str]]]:
    """Return for each teacher its name and, by method, the return ratio and seconds with the most env steps."""
    rows = read_rows(results / "alternatives.jsonl")
    found = []
    for teacher, env in dict.fromkeys((row["teacher"], row["env"]) for row in rows if row["method"] == "rllib_kd"):
        of_teacher = [row for row in rows if row["teacher"] == teacher]
        most = {method: max(row["env_steps"] for row in of_teacher if row["method"] == method) for method in METHODS}
        cells = {}
        for method, env_steps in most.items():
            own = [row for row in of_teacher if (row["method"], row["env_steps"]) == (method, env_steps)]
            ratio, seconds = fmean(row["return_ratio"] for row in own), median(row["seconds"] for row in own)
            fewer = "" if env_steps == most["rllib_kd"] else f" (after {env_steps:,})"
            cells[method] = f"{ratio:.3f} in {seconds:.1f} s{fewer}"
        found.append((f"{env}, {teacher.partition('-')[0].upper()}, {most['rllib_kd']:,}", cells))
    return found


# --- The page ---------------------------------------------------------------------------------------------------------


def page(results: Path, made_on: str) -> str:
    """Return the text of the page, made of the rows in a folder."""
    tasks, integers, certificates = tasks_of(results), integers_of(results), certificates_of(results)
    sticky = sticky_of(results)
    images = _IMAGES.format(
        **{game: _series(ratios) for game, ratios in sticky.items()},
        means=_series([geometric_mean(ratios) for ratios in zip(*sticky.values(), strict=True)]),
    )
    parts = [_INTRODUCTION.format(date=made_on)]
    for kind, text in zip(_KINDS, (_VECTORS, images, _LANGUAGE, _UNSEEN, _UNSEEN_IMAGES), strict=True):
        if own := [task for task in tasks if task.kind == kind]:
            parts += [text, _table(own)]
    lost = [
        f"| {kind} | {len(own)} | {round(fmean(own), 3) + 0.0:.3f} | {max(own):.3f} |" for kind, own in integers.items()
    ]
    parts.append("\n".join([_INTEGERS, *lost]))
    lines = ["| environment | parameters (median) | certificates | wrong |", "|---|---|---|---|"]
    lines += [f"| {env} | {size} | {number} | {wrong} |" for env, size, number, wrong in certificates]
    parts += [_CERTIFIED, "\n".join(lines)]
    names = " | ".join(METHODS.values())
    lines = [f"| environment, teacher, env steps | {names} |", "|---" * (len(METHODS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.values())} |" for name, cells in alternatives_of(results)]
    parts += [_BESIDE, "\n".join(lines), _MISSING]
    return "\n\n".join(parts) + "\n"


def _series(figures: Sequence[float]) -> str:
    """Return figures with two decimals, as words: "1.46, 1.37 and 1.11"."""
    *first, last = (f"{figure:.2f}" for figure in figures)
    return f"{', '.join(first)} and {last}"


def _table(tasks: Sequence[Task]) -> str:
    """Return a line for each task, and one for all of them. The tasks must have the same sizes."""
    names = [size.name for size in tasks[0].sizes]
    if any([size.name for size in task.sizes] != names for task in tasks):
        raise ValueError(f"The tasks of one table need the same sizes: {names} of {tasks[0].name}.")
    lines = [f"| task | teacher | {' | '.join(names)} | seeds |", "|---" * (len(names) + 3) + "|"]
    for task in tasks:
        cells = [f"{cell(*size.ratio)} at {task.share(size):.2g} %" for size in task.sizes]
        seeds = "/".join(str(number) for number in dict.fromkeys(size.num_seeds for size in task.sizes))
        lines.append(f"| {task.name} | {task.num_parameters:,} | {' | '.join(cells)} | {seeds} |")
    if len(tasks) > 1:
        of_size = [[task.sizes[i] for task in tasks] for i in range(len(names))]
        cells = [cell(*interval([size.row for size in sizes], sizes[0].student)) for sizes in of_size]
        lines.append(f"| all {len(tasks)} | | {' | '.join(cells)} | |")
    return "\n".join(lines)


_INTRODUCTION = """# The evidence in three minutes

How much of a teacher's return does a student keep, and how small can it be? This page answers with what was measured.
`python tuning/evidence.py` made it on {date} from the rows that the linked pages describe, with their dates, machines
and commands. Return ratio = (student − random) / (teacher − random): 1 is the teacher, 0 a policy that acts at random.

![share of the teacher's parameters against return ratio](evidence.png)

Cells have the interquartile mean of the return ratios over training seeds, and a 95 % interval by a stratified
bootstrap over seeds and episodes; then the student's share of its teacher's parameters. The last student of each run
is judged, in fresh episodes, on the same seeds as its teacher. Only teacher, environment and size are set."""

_VECTORS = """## Vectors

Students of one hidden layer, or none, which learn in one run ([Size against return](sizes/README.md)). Highway is
sampled in envpool's environment, and judged in gymnasium's. In highway's row each student learned from its
own states, the default before 2026-12-01. Other teachers of the same tasks:
[LunarLander](studies.md#lunarlander-at-the-defaults-of-2026-11-28), [highway](studies.md#highway-with-envpool)."""

_IMAGES = """## Images

[MinAtar](minatar.md), games with chance: the last action is repeated with a probability of 0.1. Students learned for
200,000 env steps, where the teachers of Asterix and Seaquest had a million. [After a
million](minatar.md#more-env-steps) the four games without Freeway have 0.990 (0.960 to 1.042), 0.996 (0.959 to 1.042),
0.948 (0.903 to 0.991) and 0.816 (0.778 to 0.868), with two seeds of each game. Atari is on [Images](images.md):
students of 3.6 % have 1.03 on Breakout (one seed, 50 games, with random first weights, the default then), and 0.83 and
0.95 on SpaceInvaders (two seeds, 150 games), after 1.2 million env steps. With sticky actions (0.25), students of 25,
6.6 and 3.6 % have {Breakout} on [Breakout](images.md#breakout), {SpaceInvaders} on
[SpaceInvaders](images.md#spaceinvaders), and {Pong} on [Pong](images.md#pong), in one run each: geometric means of
{means}. The crosses in the picture are Rusu et al. (2015): geometric means over ten Atari games of the student's score
as a share of its teacher's, 1.083 at 25.3 %, 1.017 at 6.7 % and 0.839 at 3.7 %."""

_LANGUAGE = """## Language

[BabyAI](language.md): a sentence says to which of the objects in a room the player has to go."""

_UNSEEN = """## Tasks that were written later

[Environments that were written after the defaults had been chosen](unseen.md), to see whether these hold. Two defaults
have changed since: [whose states a family learns from](studies.md#whose-states-in-a-family), because of first runs of
merge_2048, rocks and swing_up, and [the limit of copies](studies.md#a-limit-for-copies), which concerns restarts and
trees alone. Inventory, ghosts and juggler had no part in either."""

_UNSEEN_IMAGES = """With images:"""

_INTEGERS = """## In integers

Students on this page that were exported to C with weights of 8 bits, too, and what these files lose of the return ratio
in the same 200 episodes (below 0: the file has the higher return, by chance). Those of the 32 students of MinAtar
after a million env steps lose 0.013 on average, and 0.160 at most. Vectors: [Exported C](c.md).

| task | students | mean | most |
|---|---|---|---|"""

_CERTIFIED = """## The smallest one, with a certificate

`rllib shrink` [certifies](certificates.md#real-certificates) that a student has at least 97 % of the return, with a
confidence of 95 %. Each certified student then played 5,000 further episodes. A certificate is wrong if these show
that the ratio is lower. Those of Acrobot and MountainCar had 30,000 env steps each; with ten minutes, `rllib shrink`
[certified](shrink.md) 23 to 29 parameters on Acrobot."""

_BESIDE = """## Beside what else there is

Students of 32 units of the same teachers, mean return ratio of three seeds, and the seconds of getting states and
learning ([other numbers of env steps, and the methods](studies.md#beside-other-libraries)). Trees stand beside VIPER's
recipe on [their own page](trees.md)."""

_MISSING = """## What this does not show

- Atari's SpaceInvaders at 3.6 % stays below its teacher ([why](images.md#spaceinvaders)), and so do, after 200,000 env
  steps, most students of MinAtar's other games than Breakout and Freeway; of 1 % also after a million; and those of 1
  % on BabyAI.
- Linear students fail on some tasks, and on rocks and merge_2048 students of 16 and 8 units stay below their teachers.
  [Restarts](studies.md#tiny-students) and [trees](trees.md) help on some of these.
- Atari has one seed for most sizes, and 20 to 50 games with sticky actions, in which scores are off by 10 to 30 %."""


# --- The picture ------------------------------------------------------------------------------------------------------


def draw(tasks: Sequence[Task], path: Path) -> None:
    """Plot the share of the teacher's parameters against the return ratio: a panel for each group of tasks."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    sides = dict(zip(_KINDS, (panels[0], panels[1], panels[1], panels[2], panels[2]), strict=True))
    drawn: dict[Any, int] = {}
    for task in tasks:
        axes = sides[task.kind]
        number = drawn[axes] = drawn.get(axes, -1) + 1
        ratios = [size.ratio for size in task.sizes]
        axes.errorbar(
            [task.share(size) for size in task.sizes],
            [middle for middle, _, _ in ratios],
            yerr=[[middle - low for middle, low, _ in ratios], [high - middle for middle, _, high in ratios]],
            color=_COLOURS[number % len(_COLOURS)],
            linestyle="--" if task.kind in ("language", "unseen images") else "-",
            marker="os^Dv<>p"[number % 8],
            markersize=4,
            linewidth=1.4,
            capsize=2,
            label=task.name if task.kind != "images" else f"MinAtar {task.name}",
        )
    panels[1].plot(
        RUSU.keys(), RUSU.values(), "x", color="#555555", label="Rusu et al. 2015, ten Atari games (score / score)"
    )
    for axes, title in zip(panels, ("vectors", "images and language", "tasks that were written later"), strict=True):
        axes.axhline(1.0, color="#8a8f98", linewidth=0.8)
        axes.set(title=title, xscale="log", xlabel="parameters, in percent of the teacher's", ylim=(0.25, 1.4))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(color="#d5d9de", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    panels[0].set_ylabel("return ratio")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "docs" / "results")
    results = parser.parse_args().results
    draw(tasks_of(results), results / "evidence.png")
    (results / "evidence.md").write_text(page(results, date.today().isoformat()))
    print(results / "evidence.md")


if __name__ == "__main__":
    main()
