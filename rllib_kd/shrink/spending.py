"""What validation has taken so far, and how much more a limit admits."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rllib_kd.shrink.budget import PlayLimit

if TYPE_CHECKING:
    from rllib_kd.evaluation.validation import Validation


@dataclass
class Spending:
    """What snapshots have played.

    Args:
        episodes: number of their episodes.
        env_steps: env steps of these.
        seconds: duration of these, s.
        raced: what races have taken, with teacher and random policy, in the unit of the limit.
        looked: the same of all other episodes.
    """

    episodes: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    raced: float = 0.0
    looked: float = 0.0

    def add(self, played: Validation, num_seeds: int, limit: PlayLimit | None, *, is_race: bool) -> None:
        """Note what was played.

        Args:
            played: what snapshots have played.
            num_seeds: number of episodes of each, and of teacher and random policy.
            limit: what limits it; None: nothing does.
            is_race: whether it was a race.
        """
        self.episodes += num_seeds * len(played.returns)
        self.env_steps += played.env_steps
        self.seconds += played.seconds
        if limit is not None:
            own = played.seconds if limit.unit == "seconds" else played.env_steps
            taken = own + num_seeds * limit.baselines
            self.raced, self.looked = self.raced + taken * is_race, self.looked + taken * (not is_race)

    def num_seeds(self, num_snapshots: int, limit: PlayLimit | None) -> float:
        """Return how many episodes each of so many snapshots can play beside races; ∞ if nothing limits them."""
        if limit is None or not (episode := self._episode(limit)):
            return math.inf
        return max(0.0, limit.looks - self.looked) / (num_snapshots * episode + self._baselines(limit))

    def num_snapshots(self, num_seeds: int, limit: PlayLimit | None, *, is_race: bool) -> float:
        """Return how many snapshots can play so many episodes; ∞ if nothing limits them, or is known of episodes."""
        if limit is None or not (episode := self._episode(limit)):
            return math.inf
        left = limit.races - self.raced if is_race else limit.looks - self.looked
        return max(0.0, (left / num_seeds - self._baselines(limit)) / episode)

    def _episode(self, limit: PlayLimit) -> float:
        """Return what an episode of a snapshot takes, in the unit of a limit; 0 if that is not known."""
        spent = self.seconds if limit.unit == "seconds" else self.env_steps
        return spent / self.episodes if self.episodes else 0.0

    def _baselines(self, limit: PlayLimit) -> float:
        """Return what an episode of both teacher and random policy takes."""
        return limit.baselines or 2 * self._episode(limit)

    def get_state(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)
