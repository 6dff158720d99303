"""The page of results: tables and a figure, from the files that `results.py` writes.

Return ratios are (student − random) / (teacher − random), of mean returns over the same reset seeds. Over training
seeds they are summed up by their interquartile mean, with intervals from a stratified bootstrap (Agarwal et al. 2021,
arXiv 2108.13264).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import trim_mean

_BOOTSTRAPS = 2_000
_STATES = ("mixture", "student", "teacher")
_COLOURS = {"kl": "#0072b2", "mse": "#c44e00"}
_DASHES = {"mixture": "-", "student": "--", "teacher": ":"}

Row = Mapping[str, Any]


# --- Statistics -------------------------------------------------------------------------------------------------------


def iqm(ratios: np.ndarray) -> float:
    """Return the interquartile mean of return ratios: that of all between the quartiles."""
    return float(trim_mean(ratios, 0.25))


def resampled_ratios(row: Row, student: str) -> np.ndarray:
    """Return the ratios that other seeds and other episodes would have given.

    Both are drawn with replacement: seeds by themselves, and episodes for all policies at once, because all have played
    the same ones.

    Returns:
        `[bootstraps, seeds]`.
    """
    runs = [seed["students"][student] for seed in row["seeds"].values()]
    students = np.array([run["student"]["returns"] for run in runs])  # [S, episodes]
    teacher, random = (np.array(runs[0][who]["returns"]) for who in ("teacher", "random"))
    rng = np.random.default_rng(0)
    seeds, episodes = (rng.integers(size, size=(_BOOTSTRAPS, size)) for size in students.shape)
    means = students[seeds[:, :, None], episodes[:, None, :]].mean(-1)  # [bootstraps, S]
    teacher_means, random_means = (returns[episodes].mean(-1, keepdims=True) for returns in (teacher, random))
    return (means - random_means) / (teacher_means - random_means)


def interval(rows: Sequence[Row], student: str) -> tuple[float, float, float]:
    """Return the IQM over the seeds of all rows, and its 95 % interval: each row, an environment, is a stratum."""
    ratios = np.concatenate([own_ratios(row, student) for row in rows])
    resampled = np.concatenate([resampled_ratios(row, student) for row in rows], axis=1)
    low, high = np.percentile(trim_mean(resampled, 0.25, axis=1), [2.5, 97.5])
    return iqm(ratios), float(low), float(high)


def own_ratios(row: Row, student: str) -> np.ndarray:
    """`[seeds]`."""
    return np.array([seed["students"][student]["return_ratio"] for seed in row["seeds"].values()])


# --- Text -------------------------------------------------------------------------------------------------------------


def write_page(folder: Path) -> str:
    """Write README.md and its figure beside the rows; return the path of the page."""
    rows = {row["row"]: row for row in (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))}
    compared = {name: row for name, row in rows.items() if {"loss", "rollout_policy"} <= row["settings"].keys()}
    parts = [_INTRODUCTION, _environments(rows)]
    if compared:
        _figure(compared, folder / "sizes.png")
        parts += [_SIZES, *_size_tables(compared)]
        parts += [_AGREEMENT, _detail_table(compared)]
    if images := {name: row for name, row in rows.items() if row["env"].startswith("ALE/")}:
        parts += [_IMAGES, _image_table(images)]
    parts.append(_machines(rows))
    page = folder / "README.md"
    page.write_text("\n\n".join(parts) + "\n")
    return str(page)


_INTRODUCTION = """# Size against return

This page shows what students of several sizes reach on real environments. `python tuning/results.py --teachers FOLDER`
trains them, lets them play, and writes this page. A JSON file beside it has every figure of each row, with the return
of every episode.

The **last** student of each run is judged on reset seeds that no training used, and on the same seeds as its teacher
and a random policy. All act greedily. If the table of environments has an ε, teacher and student take random actions in
this share of steps. Return ratio = (student − random) / (teacher − random). Cells with several training seeds have the
interquartile mean of their ratios, with a 95 % interval by a stratified bootstrap over seeds and episodes (2,000
draws). With a single seed, the interval is over episodes alone."""

_SIZES = """## Students of five sizes

The students have one hidden layer of 64, 32, 16 or 8 units, or none (linear). The students of a row learn in one run,
as a family: they take turns in acting. Under `mixture` (the default) the teacher chooses all actions at first, half of
them at 10,000 env steps, and none from 60,000 on.
Nothing else is set. Highway is sampled in envpool's environment, and judged in gymnasium's.

The rows `kl`, mixture have the defaults of 0.2, without restarts: students of 8, 16 and 32 units have tanh, those of 64
relu. They were recorded 2026-12-01; that of highway 2026-11-30, when each student learned from its own states, and not
the linear ones alone. That of LunarLander's DQN has a teacher of its own, of 253 points; the others have one of 281,
which an earlier form of the command trained for 600,000 env steps. All other rows were
measured with relu, before `normalize_observations` and `regret_coeff` were defaults, and while the teacher kept half of
the actions to the end; all students of a family learned from the states of all. Where an environment has two lines in
the table above, the random policy of the older rows drew other actions, or the teacher is another.

![size against return ratio](sizes.png)"""

_AGREEMENT = """## What it took

The rows are `kl`, `mixture`. Share: parameters of the student over those of its teacher. Agreement: share of the
teacher's states (d^T) or of the student's own (d^S) in which both choose the same action. All are medians over seeds.
Seconds are of the whole family, by the clock, while the machine also did other work."""

_IMAGES = """## Images

These students were measured with version 0.1, whose `tuning/atari.py` set more than today's.
[Images](../images.md) has figures of newer ones. They have the settings that
[results.py](../../../tuning/results.py) gives a game. Students with the same seconds learned in one run. There is one
seed. Without sticky actions a game has hardly any randomness, so that many games of a student are identical. Other runs
therefore differ by more than these intervals, on Breakout [by 0.1](../images.md#breakout).

Agreement is low in part because of choices that cost nothing: any action is as good while the ball is far away, FIRE
has the effect of NOOP while it is in play, and the teacher may wait for hundreds of steps before it serves. Rusu et al.
(2015) report, as geometric means over ten games, 108.3 % of the teacher's score at 25.3 % of its parameters (net1),
101.7 % at 6.7 % (net2) and 83.9 % at 3.7 % (net3)."""


def _environments(rows: Mapping[str, Row]) -> str:
    lines = ["| environment | teacher | its return | random | episodes | ε |", "|---|---|---|---|---|---|"]
    for row in rows.values():
        one = next(iter(_first_run(row)["students"].values()))
        line = (
            f"| {row['env']} | {row['source']}, {one['teacher']['num_parameters']:,} parameters "
            f"| {one['teacher']['return_mean']:.1f} ± {one['teacher']['return_ci95']:.1f} "
            f"| {one['random']['return_mean']:.1f} ± {one['random']['return_ci95']:.1f} | {one['num_episodes']} "
            f"| {one.get('epsilon', 0.0):g} |"
        )
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)


def _size_tables(rows: Mapping[str, Row]) -> list[str]:
    """Return a table for each environment, and one of what was measured in all of them."""
    groups = _by_env(rows)
    tables = [_size_table(env, [[row] for row in sorted(group, key=_order)]) for env, group in groups.items()]
    if len(groups) > 1:
        kinds: dict[tuple[int, int], list[Row]] = {}
        for row in rows.values():
            kinds.setdefault(_order(row), []).append(row)
        everywhere = [kind for _, kind in sorted(kinds.items()) if len(kind) == len(groups)]
        tables += [_size_table("All environments", everywhere)] if everywhere else []
    return tables


def _size_table(title: str, groups: Sequence[Sequence[Row]]) -> str:
    """Return a table with a line for each group of rows, which have the same settings."""
    students = list(_first_run(groups[0][0])["students"])
    columns = ["loss, states", *students, "seeds"]
    lines = [f"### {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for group in groups:
        settings = group[0]["settings"]
        cells = [cell(*interval(group, student)) for student in students]
        num_seeds = sum(len(row["seeds"]) for row in group)
        lines.append(f"| `{settings['loss']}`, {settings['rollout_policy']} | {' | '.join(cells)} | {num_seeds} |")
    return "\n".join(lines)


_DETAILS = "| environment | student | parameters | share | agreement d^T | d^S | env steps | gradient steps | seconds |"


def _detail_table(rows: Mapping[str, Row]) -> str:
    lines = [_DETAILS, "|---" * 9 + "|"]
    for row in rows.values():
        if (row["settings"]["loss"], row["settings"]["rollout_policy"]) == ("kl", "mixture"):
            lines += [f"| {row['env']} | {student} {_details(row, student)}" for student in _first_run(row)["students"]]
    return "\n".join(lines)


def _image_table(rows: Mapping[str, Row]) -> str:
    lines = [f"{_DETAILS} return | return ratio |", "|---" * 11 + "|"]
    for row in rows.values():
        for student, run in _first_run(row)["students"].items():
            played = f"{run['student']['return_mean']:.1f} ± {run['student']['return_ci95']:.1f}"
            ratio = cell(*interval([row], student))
            lines.append(f"| {row['env']} | {student} {_details(row, student)} {played} | {ratio} |")
    return "\n".join(lines)


def _details(row: Row, student: str) -> str:
    """Return cells with a student's size, its agreement and the cost of its training."""
    seeds = list(row["seeds"].values())
    runs = [seed["students"][student] for seed in seeds]
    on_teacher, on_student = (
        np.median([run[f"agreement_on_{whose}_states"] for run in runs]) for whose in ("teacher", "student")
    )
    taken = {name: np.median([seed[name] for seed in seeds]) for name in ("env_steps", "gradient_steps", "seconds")}
    return (
        f"| {runs[0]['student']['num_parameters']:,} | {100 * runs[0]['compression']:.3g} % "
        f"| {100 * on_teacher:.1f} % | {100 * on_student:.1f} % "
        f"| {taken['env_steps']:,.0f} | {taken['gradient_steps']:,.0f} | {taken['seconds']:,.0f} |"
    )


def _machines(rows: Mapping[str, Row]) -> str:
    machines = {
        ", ".join(f"{name} {value}" for name, value in run["machine"].items())
        for row in rows.values()
        for run in row["seeds"].values()
    }
    return "## Machine\n\n" + "\n".join(f"- {line}" for line in sorted(machines))


def cell(middle: float, low: float, high: float) -> str:
    """Return a mean and its interval, as tables have them."""
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _order(row: Row) -> tuple[int, int]:
    settings = row["settings"]
    return list(_COLOURS).index(settings["loss"]), _STATES.index(settings["rollout_policy"])


def _by_env(rows: Mapping[str, Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows.values():
        groups.setdefault(row["env"], []).append(row)
    return groups


def _first_run(row: Row) -> Any:
    return next(iter(row["seeds"].values()))


# --- Figure -----------------------------------------------------------------------------------------------------------


def _figure(rows: Mapping[str, Row], path: Path) -> None:
    """Plot parameters against return ratio, with a panel for each environment."""
    groups = _by_env(rows)
    figure, panels = plt.subplots(
        1, len(groups), figsize=(3.1 * len(groups), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (env, group) in zip(panels[0], groups.items(), strict=True):
        for row in sorted(group, key=_order):
            students = _first_run(row)["students"]
            sizes = [run["student"]["num_parameters"] for run in students.values()]
            points = np.array([interval([row], student) for student in students])
            loss, states = row["settings"]["loss"], row["settings"]["rollout_policy"]
            errors = np.abs(points[:, 1:] - points[:, :1]).T if states == "mixture" else None
            axes.errorbar(
                sizes,
                points[:, 0],
                yerr=errors,
                color=_COLOURS[loss],
                linestyle=_DASHES[states],
                marker="o" if states == "mixture" else None,
                markersize=4,
                linewidth=1.6 if states == "mixture" else 1.0,
                capsize=2,
                label=f"{loss}, {states}",
            )
        axes.axhline(1.0, color="#8a8f98", linewidth=0.8)
        axes.set(title=env, xscale="log", xlabel="parameters", ylim=(-0.1, 1.15))
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(color="#d5d9de", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("return ratio")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, 2 * len(groups)), frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
