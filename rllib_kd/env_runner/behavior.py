"""The behaviour policy π, a mixture of teacher, student and random actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BehaviorPolicy:
    """π: the teacher with probability β, otherwise the student; a random legal action with probability ε.

    Args:
        teacher_fraction: β, per step and environment.
        epsilon: ε, per step and environment.
        rng: generator of all draws.
        teacher_explores: whether the teacher's actions are drawn from its policy; its outputs are log-probabilities
            then. Otherwise they are its best ones.
    """

    teacher_fraction: float
    epsilon: float
    rng: np.random.Generator
    teacher_explores: bool = False

    def act(self, student_q: np.ndarray | None, teacher_q: np.ndarray | None) -> np.ndarray:
        """Return actions `[N]` for outputs `[N, A]`: the student's may be None if β is 1, the teacher's if β is 0.

        Raises:
            ValueError: both are None.
        """
        guide = student_q if teacher_q is None else teacher_q  # also has the legal actions
        if guide is None:
            raise ValueError("There are no Q-values to act by: give the student's or the teacher's.")
        if self.teacher_explores and teacher_q is not None and self.teacher_fraction > 0.0:
            actions = (teacher_q + self.rng.gumbel(size=teacher_q.shape)).argmax(-1)  # a draw from the softmax
        else:
            actions = guide.argmax(-1)
        if student_q is not None and teacher_q is not None:
            teacher_acts = self.rng.random(len(actions)) < self.teacher_fraction
            legal_student_q = np.where(np.isneginf(teacher_q), -np.inf, student_q)
            actions = np.where(teacher_acts, actions, legal_student_q.argmax(-1))
        if self.epsilon > 0.0:
            explores = self.rng.random(len(actions)) < self.epsilon
            if explores.any():
                scores = np.where(np.isneginf(guide), -1.0, self.rng.random(guide.shape))
                actions = np.where(explores, scores.argmax(-1), actions)
        return actions
