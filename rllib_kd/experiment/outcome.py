"""What came of an experiment, in words."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ray import tune

from rllib_kd.evaluation.comparing import compare_all
from rllib_kd.evaluation.seeds import FRESH_SEED
from rllib_kd.experiment.experiment import CheckedExperiment
from rllib_kd.experiment.progress_line import describe
from rllib_kd.experiment.running import location
from rllib_kd.report.comparisons import summary_table
from rllib_kd.teachers.ensemble import as_configured
from rllib_kd.teachers.loading import load_teacher


def refusal(results: tune.ResultGrid) -> str | None:
    """Why no trial could begin, where each was refused by a ValueError, and so for its settings."""
    unbegun = [result for result in results if "training_iteration" not in (result.metrics or {})]
    reasons = [_reason(result.error) for result in unbegun if result.error is not None]
    if not reasons or len(reasons) < len(results) or not all(reason.startswith("ValueError: ") for reason in reasons):
        return None
    return reasons[0].removeprefix("ValueError: ")


def _reason(error: Exception) -> str:
    """The exception at the end of the traceback that an actor's error holds, in one line."""
    lines = str(error).strip().splitlines()
    begins = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b", line)]
    return " ".join(" ".join(lines[begins[-1] if begins else -1 :]).split())


def summary(result: tune.Result) -> str:
    """How far a trial came, and where its checkpoint lies; or why it failed, in one line."""
    if result.error is not None:
        return f"{Path(result.path).name} failed: {_reason(result.error)}"
    metrics = result.metrics or {}
    if "training_iteration" not in metrics:
        return f"{Path(result.path).name}: nothing was trained yet"
    where = result.path if result.checkpoint is None else location(result.checkpoint)
    return f"{describe([metrics])}\n{where}"


def comparison(experiment: CheckedExperiment, results: tune.ResultGrid) -> str:
    """The students beside their teacher, who play what was asked for; else the command that compares them.

    Empty where there is nothing to compare.
    """
    students = [r for r in results if r.checkpoint is not None and r.config and r.config.get("teacher")]
    if not students:
        return ""
    config = students[0].config
    if not experiment.compare_episodes:
        paths = [location(student.checkpoint) for student in students]
        teachers = config["teacher"] if isinstance(config["teacher"], list) else [config["teacher"]]
        named = [word for teacher in teachers for word in ("--teacher", str(teacher))]
        return "compare by: " + shlex.join(["rllib", "compare", *named, *paths])
    teacher = load_teacher(config["teacher"], trust_checkpoint=config["trust_checkpoint"])
    comparisons = compare_all(
        as_configured(teacher, config["ensemble"], config["temperature"]),
        {"student" if len(students) == 1 else Path(s.path).name: location(s.checkpoint) for s in students},
        config["env"],
        num_episodes=experiment.compare_episodes,
        seed=FRESH_SEED,
        env_config=config["env_config"],
        trust_checkpoint=config["trust_checkpoint"],
        progress=True,
    )
    return str(comparisons[0]) if len(comparisons) == 1 else summary_table(comparisons)
