"""Several students that take turns: each acts in episodes of its own."""

from __future__ import annotations

import numpy as np


class FamilyTurns:
    """Whose turn it is to act in each environment: one student an episode, then the next.

    Args:
        num_students: in the family.
        num_envs: of this EnvRunner.
        offset: where the first environment begins, so that EnvRunners begin with different students.
    """

    def __init__(self, num_students: int, num_envs: int, *, offset: int = 0):
        self._num_students = num_students
        #: `[N]`, indices of students.
        self.acting = (np.arange(num_envs) + offset) % num_students

    def end_episodes(self, ended: np.ndarray) -> None:
        """Where an episode has ended (`[N]`), the next student acts."""
        self.acting = (self.acting + ended) % self._num_students
