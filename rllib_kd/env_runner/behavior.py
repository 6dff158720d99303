"""The behaviour policy π, a mixture of teacher, student and random actions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from rllib_kd.learner.label_statistics import QStatistics
from rllib_kd.observations.masks import legal_only, random_actions


def draw_labelled(num_steps: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return which steps the teacher labels, `[T]`: one is drawn from each of about `share · T` equal parts.

    Every k-th one would not do: an environment may show another thing in each second step.

    Args:
        num_steps: T ≥ 1, the steps of a fragment.
        share: in (0, 1], at least 1 / T.
        rng: generator of the draws; not used if `share` is 1.
    """
    if share == 1.0:
        return np.ones(num_steps, dtype=bool)
    num_parts = int(share * num_steps + rng.random())
    is_labelled = np.zeros(num_steps, dtype=bool)
    is_labelled[((np.arange(num_parts) + rng.random(num_parts)) * num_steps / num_parts).astype(int)] = True
    return is_labelled


class ActionGaps:
    """The median action gap of the teacher on the states that one EnvRunner has visited."""

    def __init__(self) -> None:
        self._statistics: QStatistics | None = None

    def update(self, teacher_q: np.ndarray) -> None:
        """Add the finite labels of new states, `[N, A]`, return units; −inf marks illegal actions."""
        if self._statistics is None:
            self._statistics = QStatistics(teacher_q.shape[-1])
        self._statistics.update(torch.from_numpy(teacher_q))

    def in_return_units(self, gaps: float) -> float:
        """Return a number of median action gaps in return units; infinite before there are states."""
        if self._statistics is None or not self._statistics.count or math.isinf(gaps):
            return math.inf
        return gaps * self._statistics.median_gap()


@dataclass(frozen=True)
class BehaviorPolicy:
    """π: the teacher with probability β, otherwise the student; a random legal action with probability ε.

    The teacher also acts wherever the student's choice would cost too much: Zhang and Cho 2016 (SafeDAgger), arXiv
    1605.06450. There the student's distance from its teacher is learned; here the labels tell the cost.

    Args:
        teacher_fraction: β, per step and environment.
        epsilon: ε, per step and environment.
        rng: generator of all draws.
        max_regret: highest Q-regret of a student's action, max_a Q_teacher(s, a) − Q_teacher(s, action), return units;
            of a teacher with log-probabilities in nats.
        teacher_explores: whether the teacher's actions are drawn from its policy; its outputs are log-probabilities
            then. Otherwise they are its best ones.
    """

    teacher_fraction: float
    epsilon: float
    rng: np.random.Generator
    max_regret: float = math.inf
    teacher_explores: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Return whether the teacher's outputs decide who acts, or how."""
        return self.teacher_fraction > 0.0 or math.isfinite(self.max_regret)

    def act(self, student_q: np.ndarray | None, teacher_q: np.ndarray | None) -> np.ndarray:
        """Return the actions of `decide()`."""
        return self.decide(student_q, teacher_q)[0]

    def decide(self, student_q: np.ndarray | None, teacher_q: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return actions, and whether it is the teacher who acts, each `[N]`.

        Args:
            student_q: outputs `[N, A]`; None is possible if β is 1.
            teacher_q: likewise, if β is 0.

        Raises:
            ValueError: both are None.
        """
        guide = student_q if teacher_q is None else teacher_q  # also has the legal actions
        if guide is None:
            raise ValueError("There are no Q-values to act by: give the student's or the teacher's.")
        if self.teacher_explores and teacher_q is not None:
            actions = (teacher_q + self.rng.gumbel(size=teacher_q.shape)).argmax(-1)  # a draw from the softmax
        else:
            actions = guide.argmax(-1)
        teacher_acts = np.full(len(actions), teacher_q is not None)
        if student_q is not None and teacher_q is not None:
            teacher_acts = self.rng.random(len(actions)) < self.teacher_fraction
            chosen = legal_only(student_q, teacher_q != -np.inf).argmax(-1)
            if math.isfinite(self.max_regret):
                with np.errstate(invalid="ignore"):  # where no label is finite, the row is dropped anyway
                    regret = teacher_q.max(-1) - teacher_q[np.arange(len(chosen)), chosen]
                teacher_acts |= regret > self.max_regret
            actions = np.where(teacher_acts, actions, chosen)
        if self.epsilon > 0.0:
            explores = self.rng.random(len(actions)) < self.epsilon
            if explores.any():
                num_envs, num_actions = guide.shape
                drawn = random_actions(self.rng, num_actions, num_envs, guide != -np.inf)
                actions = np.where(explores, drawn, actions)
        return actions, teacher_acts
