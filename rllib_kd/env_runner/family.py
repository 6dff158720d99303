"""Students of a family act in turn, one episode each."""

from __future__ import annotations

import numpy as np


class FamilyTurns:
    """The student that acts in each environment: one for an episode, then the next.

    Args:
        num_students: number of students in the family.
        num_envs: number of environments of this EnvRunner.
        offset: index of the first environment's student, so that EnvRunners begin with different students.
    """

    def __init__(self, num_students: int, num_envs: int, *, offset: int = 0):
        self._num_students = num_students
        #: Index of the acting student in each environment, `[N]`.
        self.acting = (np.arange(num_envs) + offset) % num_students

    def end_episodes(self, ended: np.ndarray) -> None:
        """Let the next student act in environments with `ended` (`[N]`)."""
        self.acting = (self.acting + ended) % self._num_students
