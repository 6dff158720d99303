"""Students that are trees: regrown from the replay, at times that become rarer as the stream grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from rllib_kd.numeric import is_integer
from rllib_kd.students.restarts import copy_number
from rllib_kd.students.trees.growing import Grower, numbers_read

#: Labelled states before the first tree, and by how many times more there are at each further one: with a growing
#: stream the share of its time that goes into growing falls.
_FIRST, _FACTOR = 1_000, 1.35
#: States that a tree is grown on.
MAX_STATES = 60_000
#: The cost of growing a tree, in states that could be sampled in this time, at 10,000 a second: for each tree, and for
#: each number that is read for it (measured: 10 ms and, in the mean of the variants, 0.13 µs with many features, and
#: 0.36 µs with few; a third less where trees share what is found once). The next regrowth waits for this many states.
_STATES_PER_TREE, _STATES_PER_NUMBER = 100, 0.002
#: How the copies of a tree are grown, in turn: what they weigh their states by, and whether their tests are refined by
#: regret. docs/pages/trees.md has what was measured: no variant is the best everywhere.
VARIANTS = (("uniform", True), ("gap", False), ("gap", True), ("uniform", False))
#: The copies are regrown in this many parts, one at a time: they come from different times of the stream, among which
#: validation episodes choose. Four copies at a time have one of each variant.
_PARTS = 3


class TreeStudent:
    """One tree. It has no gradient step, and no weights but those that act.

    Args:
        name: its module ID.
        module: its RLModule, a `TreeRLModule`.
    """

    feature_map = None
    first_layers: ClassVar[list[Any]] = []

    def __init__(self, name: str, module: Any):
        self.name, self.module = name, module
        number = copy_number(name)
        self.part = number % _PARTS
        weighting, self.refine = VARIANTS[number % len(VARIANTS)]
        self.weighting = module.shape.weighting or weighting

    @property
    def kind(self) -> tuple[Any, ...]:
        """Return what tells this tree from another one that is grown on the same states."""
        shape = self.module.shape
        return shape.max_leaf_nodes, self.module.features.added, self.weighting, self.refine

    def regrow(self, grower: Grower) -> None:
        """Grow the tree anew on the states of a `Grower`."""
        module = self.module
        module.tree = grower.grow(
            features=module.features,
            max_leaf_nodes=module.shape.max_leaf_nodes,
            weighting=self.weighting,
            refine=self.refine,
        )

    def forget(self) -> None:
        """Do nothing: there are no weights beside those in the module."""

    def unnoticed(self) -> AbstractContextManager[None]:
        """Do nothing, as `forget()`."""
        return nullcontext()

    def restore_feature_map(self, state: Mapping[str, Any]) -> None:
        """Do nothing: trees have no features that a teacher's could match."""

    def get_state(self) -> dict[str, Any]:
        """Return nothing: the module's state is all that there is."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing, as `get_state()`."""


class Trees:
    """The trees of one teacher, and when they are regrown.

    Args:
        students: the trees.
        seed: seed of the states that trees are grown on; None: a random one.
    """

    NOT_SAVED: ClassVar = frozenset({"students", "resting"})  # modules save their trees, and Sampling saves who rests

    def __init__(self, students: Sequence[TreeStudent], *, seed: int | None):
        self.students = list(students)
        self.resting: Collection[str] = ()  # those that are not regrown
        self._seed = int(np.random.default_rng(seed).integers(2**31))
        self._next = _FIRST  # labelled states at the next regrowth
        self._last = 0  # and at the last one
        self._num_regrowths = 0

    def is_due(self, num_states: int, *, are_all: bool = False) -> bool:
        """Return whether trees are to be regrown after so many labelled states, which may be all that there are."""
        return bool(self.students) and (num_states >= self._next or (are_all and num_states > self._last))

    def regrow(self, num_states: int, choose: Callable[[np.random.Generator, int], tuple[Tensor, Tensor]]) -> list[str]:
        """Regrow those trees that are due; at first all.

        Args:
            num_states: labelled states so far.
            choose: draws so many states, or fewer if there are no more: observations `[N, inputs]` and labels `[N, A]`.

        Returns:
            The names of the trees.
        """
        part, number = self._num_regrowths % _PARTS, self._num_regrowths
        self._num_regrowths += 1
        parts = {student.part for student in self.students}
        due = [s for s in self.students if number == 0 or len(parts) < _PARTS or s.part == part]
        cost, regrown = 0.0, []
        for draw, group in enumerate(_without_twins(due)):
            students = [s for s in group if number == 0 or s.name not in self.resting]  # at first none has a tree
            if not students:
                continue
            rng = np.random.default_rng([self._seed, number, draw])
            obs, labels = choose(rng, MAX_STATES)
            grower = Grower(obs.cpu().numpy(), labels.cpu().numpy(), seed=int(rng.integers(2**31)))
            for student in students:
                student.regrow(grower)
                cost += _STATES_PER_TREE + _STATES_PER_NUMBER * numbers_read(len(obs), len(student.module.features))
                regrown.append(student.name)
        self._next, self._last = num_states + max(int(cost), int((_FACTOR - 1) * num_states)), num_states
        return regrown

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the modules."""
        return {"seed": self._seed, "next": self._next, "last": self._last, "num_regrowths": self._num_regrowths}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`.

        Raises:
            ValueError: it holds something else than integers from 0 on.
        """
        state = {"last": state["next"], **state}  # not in states of earlier versions
        for name in ("seed", "next", "last", "num_regrowths"):
            if not is_integer(state[name], 0):
                raise ValueError(f"The checkpoint has {name}={state[name]!r} for its trees: expected an integer ≥ 0.")
        self._seed, self._next, self._last = state["seed"], state["next"], state["last"]
        self._num_regrowths = state["num_regrowths"]


def _without_twins(students: Sequence[TreeStudent]) -> list[list[TreeStudent]]:
    """Return groups of trees, of which no two would be the same on the same states."""
    groups: list[list[TreeStudent]] = []
    num_before: Counter[Any] = Counter()
    for student in students:
        if num_before[student.kind] == len(groups):
            groups.append([])
        groups[num_before[student.kind]].append(student)
        num_before[student.kind] += 1
    return groups
