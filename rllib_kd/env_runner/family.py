"""Students of a family act in turn, one episode each; of the copies of a student, the better ones more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rllib_kd.random_state import policy_generator

_MEMORY = 0.2  # weight of a new return in a copy's average
_RARELY = 4  # students that are not preferred act in one of so many rotations


class FamilyTurns:
    """The student that acts in each environment: one for an episode, then the next.

    Of a student with restarts, two copies are drawn for each turn, and the one with the higher returns so far acts
    (binary tournament selection): of 16 copies the best one in an eighth of the turns, the worst hardly ever. All
    copies learn from these states, which are then those of copies that may be chosen.

    Args:
        num_students: number of students in the family.
        num_envs: number of environments of this EnvRunner.
        num_copies: copies of each student, which follow each other in the family.
        offset: index of the first environment's student, so that EnvRunners begin with different students.
        seed: seed of the draws; None: a random one.
    """

    def __init__(
        self, num_students: int, num_envs: int, *, num_copies: int = 1, offset: int = 0, seed: int | None = None
    ):
        self._num_students, self._num_copies = num_students, num_copies
        #: Index of the acting copy in each environment, `[N]`.
        self.acting = (np.arange(num_envs) + offset) % (num_students * num_copies)
        self._preferred: tuple[int, ...] = ()
        self._resting: tuple[int, ...] = ()
        self._awake = np.arange(num_students * num_copies).reshape(num_students, -1).tolist()  # copies of each student
        self._order = np.arange(num_students)  # in which students act
        self._places = self.students()  # there, of each environment
        self._running = np.zeros(num_envs)  # returns of the running episodes
        #: Averages of each copy's returns. Those of a time when the teacher still acted are high, so that each has its
        #: turn again.
        self._returns = np.full(num_students * num_copies, np.inf)
        self._rng = policy_generator(seed)

    def __setstate__(self, state: dict[str, Any]) -> None:
        num_copies = state.get("_num_copies", 1)  # older versions had none
        self.__init__(state["_num_students"], len(state["acting"]), num_copies=num_copies)  # type: ignore[misc]
        vars(self).update(state)
        if "_places" not in state:  # nor preferred students
            self._places = self.students()

    def students(self) -> np.ndarray:
        """Return which student acts in each environment, `[N]`."""
        return self.acting // self._num_copies

    def prefer(self, students: Sequence[int], resting: Sequence[int] = ()) -> None:
        """Let some students act in each rotation from now on, and the others in one of four; () prefers none.

        Args:
            students: those that are preferred.
            resting: copies that act in none.
        """
        if (tuple(students), tuple(resting)) == (self._preferred, self._resting):  # each request names them
            return
        self._preferred, self._resting = tuple(students), tuple(resting)
        copies = np.arange(self._num_students * self._num_copies).reshape(self._num_students, -1)
        self._awake = [[copy for copy in own if copy not in resting] for own in copies.tolist()]
        awake = [student for student, own in enumerate(self._awake) if own]
        often = [student for student in awake if student in students]
        others = [student for student in awake if student not in students]
        rotations = [sorted({*often, *others[place::_RARELY]}) for place in range(_RARELY)]
        self._order = np.concatenate(rotations) if often else np.array(awake)
        num_envs = len(self.acting)
        self._places = np.arange(num_envs) * len(self._order) // num_envs  # all over the order

    def step(self, rewards: np.ndarray, ended: np.ndarray) -> None:
        """Add the rewards `[N]` of a step, and let the next students act in environments with `ended` (`[N]`)."""
        self._places = (self._places + ended) % len(self._order)
        if self._num_copies == 1:
            self.acting = np.where(ended, self._order[self._places], self.acting)
            return
        self._running += rewards
        for env in np.flatnonzero(ended):
            self._take_in(self.acting[env], self._running[env])
            self.acting[env] = self._draw(self._order[self._places[env]])
            self._running[env] = 0.0

    def _draw(self, student: int) -> int:
        """Return the better one of two copies of a student."""
        awake = np.array(self._awake[student])
        pair = awake[self._rng.integers(len(awake), size=2)]
        return int(pair[np.argmax(self._returns[pair])])

    def begin_episodes(self) -> None:
        """Begin all episodes anew: those that are running do not count, and those that rest do not act in new ones."""
        self._running[:] = 0.0
        for env in np.flatnonzero(np.isin(self.acting, self._resting)):
            self.acting[env] = self._draw(self._order[self._places[env]])

    def _take_in(self, copy: int, episode_return: float) -> None:
        if not np.isfinite(episode_return):  # of an environment's reward that is not
            return
        before = self._returns[copy]
        self._returns[copy] = episode_return if np.isinf(before) else before + _MEMORY * (episode_return - before)
