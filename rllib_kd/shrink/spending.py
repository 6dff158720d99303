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
        seconds_each: duration of one of late, s.
        raced: what races have taken, with teacher and random policy, in the unit of the limit.
        looked: the same of all other episodes.
        most_looks: how much the latter may be at the end of this round.
    """

    episodes: int = 0
    env_steps: int = 0
    seconds_each: float = 0.0
    raced: float = 0.0
    looked: float = 0.0
    most_looks: float = math.inf

    def begin(self, limit: PlayLimit | None) -> None:
        """Begin a round, in which something may be played also if earlier ones took more than was planned."""
        if limit is not None:
            self.most_looks = max(limit.looks, self.looked + limit.least_looks)

    def add(self, played: Validation, num_seeds: int, limit: PlayLimit | None, *, is_race: bool) -> None:
        """Note what was played.

        Args:
            played: what snapshots have played.
            num_seeds: number of episodes of each, and of teacher and random policy.
            limit: what limits it; None: nothing does.
            is_race: whether it was a race.
        """
        num_episodes = num_seeds * len(played.returns)
        each = played.seconds / num_episodes
        # Students that have just learned to play, or to survive, play for longer or shorter than before.
        self.seconds_each = (self.seconds_each + each) / 2 if self.episodes else each
        self.episodes += num_episodes
        self.env_steps += played.env_steps
        if limit is not None:
            own = played.seconds if limit.unit == "seconds" else played.env_steps
            taken = own + num_seeds * limit.baselines
            self.raced, self.looked = self.raced + taken * is_race, self.looked + taken * (not is_race)

    def num_seeds(self, num_snapshots: int, limit: PlayLimit | None) -> float:
        """Return how many episodes each of so many snapshots can play beside races; ∞ if nothing limits them."""
        if limit is None or not (episode := self._episode(limit)):
            return math.inf
        return max(0.0, self.most_looks - self.looked) / (num_snapshots * episode + self._baselines(limit))

    def num_snapshots(self, num_seeds: int, limit: PlayLimit | None, *, is_race: bool) -> float:
        """Return how many snapshots can play so many episodes; ∞ if nothing limits them, or is known of episodes."""
        if limit is None or not (episode := self._episode(limit)):
            return math.inf
        left = limit.races - self.raced if is_race else self.most_looks - self.looked
        return max(0.0, (left / num_seeds - self._baselines(limit)) / episode)

    def _episode(self, limit: PlayLimit) -> float:
        """Return what an episode of a snapshot takes, in the unit of a limit; 0 if that is not known."""
        if limit.unit == "seconds":
            return self.seconds_each
        return self.env_steps / self.episodes if self.episodes else 0.0

    def _baselines(self, limit: PlayLimit) -> float:
        """Return what an episode of both teacher and random policy takes."""
        return limit.baselines or 2 * self._episode(limit)

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON: arguments of this class."""
        return {name: value for name, value in asdict(self).items() if name != "most_looks"}
