"""The outcome of an experiment as text: results, failures, and how to continue."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from rllib_kd.algorithm.dead_learners import LearnerDiedError
from rllib_kd.algorithm.teachers import has_networks
from rllib_kd.checkpoints.manifest import MODULES
from rllib_kd.checkpoints.run_names import RESULTS, short_names
from rllib_kd.checkpoints.runs import GREEDY, Curve, read_curve
from rllib_kd.checkpoints.uris import child_of
from rllib_kd.environments.failures import EnvFailedError, ExitedError, SamplingFailedError, frames_in, users_line
from rllib_kd.environments.returned import NotFiniteError
from rllib_kd.evaluation.comparing import compare_all
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.evaluation.seeds import FRESH_SEED
from rllib_kd.experiment.experiment import CheckedExperiment
from rllib_kd.experiment.locations import location
from rllib_kd.experiment.progress_line import progress_words, with_last_returns
from rllib_kd.report.comparisons import summary_table
from rllib_kd.teachers.ensemble import as_configured
from rllib_kd.teachers.loading import load_members
from rllib_kd.teachers.names import path_of

#: Errors whose messages are complete without the traceback, by the names that a traceback gives them.
_EXPLAINED = re.compile(
    "|".join(
        rf"{re.escape(f'{e.__module__}.{e.__name__}')}: "
        for e in (SamplingFailedError, EnvFailedError, NotFiniteError, ExitedError, LearnerDiedError)
    )
)


def refusal(results: tune.ResultGrid) -> str | None:
    """Return why no trial could begin if each raised a ValueError, which means its settings were refused; else None."""
    unbegun = [result for result in results if "training_iteration" not in (result.metrics or {})]
    reasons = [_reason(result.error) for result in unbegun if result.error is not None]
    if not reasons or len(reasons) < len(results) or not all(reason.startswith("ValueError: ") for reason in reasons):
        return None
    return reasons[0].removeprefix("ValueError: ")


def hidden_reason(results: tune.ResultGrid, failure: str | None) -> str:
    """Return why an EnvRunner has failed, in one line; empty if that is printed already, or unknown.

    Args:
        results: results of the trials.
        failure: return value of `env_runner_failure()`.
    """
    if failure is None or _EXPLAINED.search(failure):  # EnvRunners of this package warn of it themselves
        return ""
    reason = _reason_in(failure)
    is_known = any(reason in _reason(result.error) for result in results if result.error is not None)
    return "" if is_known else f"an EnvRunner failed during training: {reason}"


def _reason(error: Exception) -> str:
    """Return the exception inside an actor's error, in one line, with the user's line of code."""
    return _reason_in(str(error))


def _reason_in(traceback: str) -> str:
    """Return the exception at the end of a traceback, in one line, with the user's line of code.

    If it has no message, like RLlib's when an environment raises, return the exception that it was raised from.
    """
    lines = traceback.strip().splitlines()
    begins = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b", line)]
    while len(begins) > 1 and re.fullmatch(r"[\w.]+:?\s*", lines[begins[-1]]):
        lines = lines[: begins.pop()]
    if not begins:
        return " ".join(lines[-1:])
    ends = [
        i for i, line in enumerate(lines) if i > begins[-1] and re.match(r"The above exception|During handling", line)
    ]
    text = " ".join(" ".join(lines[begins[-1] : min(ends, default=None)]).split())
    if explained := _EXPLAINED.match(text):
        return text[explained.end() :]
    line = users_line(frames_in("\n".join(lines[begins[-2] if len(begins) > 1 else 0 : begins[-1]])))
    return text if line is None or str(line) in text else f"{text} ({line})"


def summary(result: tune.Result) -> str:
    """Return a trial's progress and the path of its checkpoint; or why it failed, in one line."""
    if result.error is not None:
        return f"{Path(result.path).name} failed: {_reason(result.error)}"
    metrics = result.metrics or {}
    if "training_iteration" not in metrics:
        return f"{Path(result.path).name}: not trained yet"
    where = location(result if result.checkpoint is None else result.checkpoint)
    return f"{progress_words([_with_last_returns(metrics, Path(result.path))])}\n{where}"


def _with_last_returns(metrics: Mapping[str, Any], trial: Path) -> Mapping[str, Any]:
    """Return the last result; if it lacks returns, add the trial's last ones from its files, if they are local."""
    file = trial / RESULTS
    curve = read_curve(file) if file.is_file() else Curve()
    if not curve:
        return metrics
    last = {"env_runners": {"episode_return_mean": curve[-1][1]}}
    return with_last_returns(metrics, {"evaluation": last} if curve.of == GREEDY else last)


def remedy(results: tune.ResultGrid, resuming_command: str) -> str:
    """Return how to continue after trials failed during training, in one line; empty if none did."""
    failed = [
        result for result in results if result.error is not None and "training_iteration" in (result.metrics or {})
    ]
    if any(result.checkpoint is not None for result in failed):
        return f"continue from the last checkpoint with: {resuming_command}"
    if failed:
        return (
            "there is no checkpoint to continue from. Next time, save some with --checkpoint-freq N, and retry from "
            "them with --max-failures N."
        )
    return ""


def comparison(experiment: CheckedExperiment, results: tune.ResultGrid) -> str:
    """Play `compare_episodes` and return a table of students and teacher; if it is 0, return the command to compare.

    Empty if there is no student to compare.
    """
    students = [r for r in results if r.checkpoint is not None and r.config and r.config.get("teacher")]
    if not students:
        return ""
    config = students[0].config
    rows = config.get("input_", config.get("input"))  # RLlib's dicts of configs rename it
    if config.get("env") is None and rows not in (None, "sampler"):
        return ""  # there is nowhere to play
    given = experiment.param_space.get("teacher")
    is_loaded = has_networks(given)
    if not experiment.compare_episodes:
        family = [f"{MODULES}/{name}" for name in config.get("students") or ()]
        places = [location(student.checkpoint) for student in students]
        paths = [child_of(place, inner) for place in places for inner in family] if family else places
        if is_loaded:
            return f"compare in Python with: rllib_kd.compare(teacher, {paths[0]!r})"
        teachers = config["teacher"] if isinstance(config["teacher"], list) else [config["teacher"]]
        named = [word for teacher in teachers for word in ("--teacher", path_of(teacher))]
        return "compare with: " + shlex.join(["rllib", "compare", *named, *paths])
    names = short_names([student.path for student in students])
    members = load_members(given if is_loaded else config["teacher"], trust_checkpoint=config["trust_checkpoint"])
    comparisons = compare_all(
        as_configured(members, config["ensemble"], config["temperature"]),
        {
            "student" if len(students) == 1 else name: location(student.checkpoint)
            for name, student in zip(names, students, strict=True)
        },
        PlayedEnvironment(config["env"], config["env_config"]),
        num_episodes=experiment.compare_episodes,
        seed=FRESH_SEED,
        trust_checkpoint=config["trust_checkpoint"],
        progress=True,
    )
    return str(comparisons[0]) if len(comparisons) == 1 else summary_table(comparisons)
