"""One setting of a sweep: a student for each seed, trained side by side."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from rllib_kd.algorithm.algorithm import DistillDQNConfig
from rllib_kd.algorithm.student_config import student_config
from rllib_kd.algorithm.students import most_parameters
from rllib_kd.certificates.agreement import AGREEMENT
from rllib_kd.certificates.held_out import HeldOutStates
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.intervals import lower_bound
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.return_ratio import return_ratio
from rllib_kd.evaluation.seeds import ON_THE_WAY_SEED, SWEEP_SEED
from rllib_kd.evaluation.sources import open_source
from rllib_kd.export.costs import measure
from rllib_kd.students.sizes import WIDTH_KEYS, activation_for
from rllib_kd.teachers.base import Teacher

#: Losses that read `temperature`.
SOFTENED = ("kl", "reverse_kl", "jsd")

#: Metric that students are judged by, if they play.
RETURN = "return_ratio"
#: Metric with the lowest and the highest return of the episodes in which they were judged last.
EXTREME_RETURNS = "extreme_returns"
NUM_EPISODES = 100  # behind a final return: of the teacher, of the random policy, and of each seed
_NUM_EPISODES_ON_THE_WAY = 20  # of each seed, at every other report
NUM_REPORTS = 8  # of a trial: evaluation, checkpoint, and the scheduler's decision


@dataclass(frozen=True)
class Task:
    """Values that all trials of a sweep share, apart from the teacher.

    Args:
        env: environment of all students.
        config: settings of all students.
        env_steps: training length of each student.
        num_seeds: students of each setting.
        seed: seed of the first student.
        teacher_return: mean return of the greedy teacher.
        random_return: mean return of a random policy.
        minimize: what "smallest" means, one of `MINIMIZED` but "latency".
        states: held-out states of recorded rows, on which students are judged where there is no environment; else None.
        rounded: settings whose searched values are rounded, as in `settings_of()`.
    """

    env: Any
    config: Mapping[str, Any]
    env_steps: int
    num_seeds: int
    seed: int
    teacher_return: float
    random_return: float
    minimize: str = "parameters"
    states: HeldOutStates | None = None
    rounded: frozenset[str] = frozenset()

    @property
    def metric(self) -> str:
        """Return the name of what students are judged by."""
        return RETURN if self.states is None else AGREEMENT.name

    def return_ratio(self, student_return: float) -> float:
        """Return `return_ratio()` of a student's mean return."""
        return return_ratio(student_return, self.teacher_return, self.random_return)


class StudentTrial(tune.Trainable):
    """One setting: students that differ in their seeds only, trained side by side.

    Every step trains all of them for a share of the env steps, evaluates them, and reports their mean return ratio. A
    checkpoint has a folder for each (`seed_0` and so on), which is a checkpoint of `DistillDQN`.
    """

    def setup(self, config: dict[str, Any], *, teacher: Teacher, task: Task) -> None:
        """Build the students; `teacher` and `task` come through the object store."""
        self._teacher, self._task = teacher, task
        self._build(config)

    def _build(self, config: Mapping[str, Any]) -> None:
        task = self._task
        settings = {**task.config, **settings_of(config, task.config, task.minimize, rounded=task.rounded)}
        self._students = [
            student_config(task.env, self._teacher, settings, seed=task.seed + i).build_algo()
            for i in range(task.num_seeds)
        ]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Restart with other settings in the same process."""
        self.cleanup()
        self._build(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train all students until the next report, and evaluate them."""
        task = self._task
        goal = math.ceil(task.env_steps * (self.iteration + 1) / NUM_REPORTS)
        for student in self._students:
            # None, if a trial has ended and its driver died before it noted that.
            while student.num_env_steps < min(goal, task.env_steps):
                student.train()
        is_done = self.iteration + 1 >= NUM_REPORTS
        networks = [open_source(student).network() for student in self._students]
        ratios, more = self._on_rows(networks) if task.states else self._return_ratios(networks, is_done=is_done)
        metric, num_parameters = task.metric, most_parameters(networks[0].module)  # of any seed
        return {
            metric: float(np.mean(ratios)),
            **({f"{metric}_lower": lower_bound(ratios)} if len(ratios) > 1 else {}),
            f"{metric}s": ratios,
            **more,
            "student_params": num_parameters,
            "student_cost": student_cost(networks[0], task.minimize),
            "compression": num_parameters / self._teacher.num_parameters,
            # Those of the student with the fewest.
            "num_env_steps_sampled_lifetime": min(student.num_env_steps for student in self._students),
            "num_gradient_steps_lifetime": min(student.num_gradient_steps for student in self._students),
            "done": is_done,
        }

    def _return_ratios(self, networks: Sequence[Teacher], *, is_done: bool) -> tuple[list[float], dict[str, Any]]:
        """Let students play; return the return ratio of each, and the lowest and highest return of all episodes."""
        first, count = (SWEEP_SEED, NUM_EPISODES) if is_done else (ON_THE_WAY_SEED, _NUM_EPISODES_ON_THE_WAY)
        make_env = env_maker(self._task.env, self._students[0].config.env_config)
        returns = [play(make_env, GreedyQ(network), range(first, first + count))[0] for network in networks]
        ratios = [self._task.return_ratio(float(np.mean(values))) for values in returns]
        return ratios, {EXTREME_RETURNS: [float(np.min(returns)), float(np.max(returns))]}

    def _on_rows(self, networks: Sequence[Teacher]) -> tuple[list[float], dict[str, Any]]:
        """Return the agreement of each student with the teacher on held-out rows, and their mean Q-regret."""
        assert self._task.states is not None
        states = self._task.states
        agreements = [states.agreements(network.module, 0, states.num_units) for network in networks]
        regret = float(np.mean([states.regret(network.module) for network in networks]))
        return [float(each.mean()) for each in agreements], {"q_regret": regret}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save each student in a folder of its own."""
        for i, student in enumerate(self._students):
            student.save_to_path(str(Path(checkpoint_dir) / f"seed_{i}"))

    def load_checkpoint(self, checkpoint: str | None) -> None:
        """Restore the students from a checkpoint, possibly of another trial."""
        for i, student in enumerate(self._students):
            student.restore_from_path(str(Path(str(checkpoint)) / f"seed_{i}"))

    def cleanup(self) -> None:
        """Stop all students."""
        for student in self._students:
            student.stop()


def student_cost(student: Teacher, minimize: str) -> float:
    """Return what a student costs by one of `MINIMIZED` but "latency", which would be that of another machine.

    Raises:
        ValueError: it cannot be exported so.
    """
    if minimize == "parameters":
        return most_parameters(student.module)
    assert student.pipeline is not None  # the student of an Algorithm has one
    (cost,) = measure({"student": student.module}, student.pipeline, minimize).values()
    return float(cost.by(minimize))


def settings_of(
    sample: Mapping[str, Any],
    fixed: Mapping[str, Any],
    minimize: str = "parameters",
    *,
    rounded: Collection[str] = (),
) -> dict[str, Any]:
    """Convert a point of the space to settings of a student's config: under RLlib's names, only those its loss reads.

    Args:
        sample: the point.
        fixed: settings that are not searched.
        minimize: what "smallest" means, by which a network has its default activation.
        rounded: settings whose values are rounded to three digits, so that the command that trains such a student is
            readable.
    """
    settings = dict(sample) | {name: _three_digits(sample[name]) for name in rounded if name in sample}
    if settings.get("loss", fixed.get("loss", DistillDQNConfig().loss)) not in SOFTENED:
        settings.pop("temperature", None)
    widths = {name: settings.pop(name) for name in sorted(WIDTH_KEYS & set(settings))}
    if widths or ("compression" in settings and minimize == "int8_bytes"):  # which knows no `minimize`
        activation = activation_for(widths.get("fcnet_hiddens", ()), minimize)
        settings["model_config"] = {"fcnet_activation": activation, **fixed.get("model_config", {}), **widths}
    return settings


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
