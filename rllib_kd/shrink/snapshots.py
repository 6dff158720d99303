"""Snapshots: copies of students at a time of training, with what they have returned in validation episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple


class Looks(NamedTuple):
    """Numbers of episodes that snapshots play, as far as there is time.

    Args:
        first: of each copy in a round.
        second: further ones in a round, of its size's best few.
        last: further ones at the end, of the best of each size; as many again while noise hides which one is the best.
    """

    first: int = 4
    second: int = 12
    last: int = 64


#: Looks at episodes of an environment.
EPISODES = Looks()


@dataclass
class Snapshot:
    """A copy of a student at a time of training.

    Args:
        size: name of its size.
        copy: ID of its module in training.
        env_steps: env steps of training before.
        module: RLModule, which no longer changes.
        returns: undiscounted return by number of the validation episode.
    """

    size: str
    copy: str
    env_steps: int
    module: Any = field(repr=False)
    returns: dict[int, float] = field(default_factory=dict, repr=False)


def by_size(snapshots: Sequence[Snapshot]) -> list[list[Snapshot]]:
    """Return the snapshots of each size."""
    sizes = dict.fromkeys(one.size for one in snapshots)
    return [[one for one in snapshots if one.size == size] for size in sizes]


def in_turn(groups: Sequence[Sequence[Snapshot]]) -> list[Snapshot]:
    """Return the first of all groups, then the second ones, and so on."""
    return [one for rank in zip_longest(*groups) for one in rank if one is not None]
