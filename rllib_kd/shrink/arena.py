"""How students are judged: by episodes of an environment, or by held-out rows if there is no environment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym

from rllib_kd.certificates.agreement import AGREEMENT
from rllib_kd.certificates.certificate import RETURN_RATIO, RatioTest
from rllib_kd.certificates.games import Games
from rllib_kd.certificates.held_out import HeldOut, RowGames
from rllib_kd.environments.making import EnvMaker
from rllib_kd.environments.pools import is_pool
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.shrink.pictures import Strip, strip_of
from rllib_kd.shrink.snapshots import EPISODES, Looks
from rllib_kd.shrink.spread import Crew, SpreadGames
from rllib_kd.teachers.base import Teacher

#: Units of held-out rows that snapshots are compared on: they cost less than episodes.
_LOOKS = Looks(first=64, second=192, last=256)


class InEnvironment:
    """Students play episodes.

    Args:
        played: the environment, with its config.
        make_env: makes one.
        observation_space: observation space of the environment, without a mask.
        in_pool: whether certificate episodes are played in envpool, too.
    """

    rows, looks, measured, new_test = None, EPISODES, RETURN_RATIO, RatioTest

    def __init__(
        self, played: PlayedEnvironment, make_env: EnvMaker, observation_space: gym.Space, *, in_pool: bool = False
    ):
        self.env, self.name, self.observation_space = played.env, played.name, observation_space
        self._played, self._make_env, self._in_pool = played, make_env, in_pool

    def new_games(self, teacher: Teacher, seed: int, crew: Crew | None, advance: Callable[[int], None]) -> Games:
        """Return `Games`, which call `advance`."""
        games = Games if crew is None else partial(SpreadGames, crew)
        return games(self._make_env, teacher, seed, in_pool=self._in_pool, advance=advance)

    @property
    def certifies_where_it_chooses(self) -> bool:
        """Return whether certificate episodes take as long as those that choose."""
        return self._in_pool or not is_pool(self.env)

    def most_episodes(self, asked: int | None) -> int | None:
        """Return as many as were asked for: there is no end of seeds."""
        return asked

    def strip_of(self, student: Teacher, seed: int) -> Strip:
        """Let a student play one episode, and return pictures of it."""
        return strip_of(student, self._played, seed)

    def config_as_json(self) -> dict[str, Any]:
        """Return the environment's config."""
        return self._played.config_as_json()


class OnRows:
    """Students are compared with their teacher on held-out rows.

    Args:
        rows: the rows.
        observation_space: observation space of the teacher, without a mask.
    """

    env, name, measured = None, "recorded rows", AGREEMENT
    certifies_where_it_chooses = True

    def __init__(self, rows: HeldOut, observation_space: gym.Space):
        self.rows, self.new_test, self.observation_space = rows, rows.new_test(), observation_space
        num_units = rows.choice.num_units
        first = min(_LOOKS.first, num_units)
        second = min(_LOOKS.second, num_units - first)
        self.looks = Looks(first, second, min(_LOOKS.last, num_units - first - second))

    def new_games(self, teacher: Teacher, seed: int, crew: Crew | None, advance: Callable[[int], None]) -> RowGames:
        """Return `RowGames`, in this process."""
        return RowGames(self.rows, advance=advance)

    def most_episodes(self, asked: int | None) -> int:
        """Return how many units certify: no more than there are."""
        return min(asked or self.rows.test.num_units, self.rows.test.num_units)

    def strip_of(self, student: Teacher, seed: int) -> None:
        """Return None: no episode is played."""

    def config_as_json(self) -> dict[str, Any]:
        """Return an empty config."""
        return {}


Arena = InEnvironment | OnRows
