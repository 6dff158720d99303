"""Candidates for the certificate: copies of students at several times of training, compared in validation episodes.

At each round some copies of each size play; a copy at a round is a *snapshot*. The best snapshot of a size, over copies
and rounds, is its candidate: what DAgger promises, it promises for the best student of the sequence (Ross et al. 2011,
arXiv 1011.0686). No validation episode is part of a certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.shrink.budget import NUM_TESTED, PlayLimit
from rllib_kd.shrink.snapshots import EPISODES, Looks, Snapshot, by_size, in_turn
from rllib_kd.shrink.spending import Spending
from rllib_kd.students.restarts import by_student, student_of

if TYPE_CHECKING:
    from rllib_kd.evaluation.validation import Validation

#: How many snapshots of a size play on in a round.
_NUM_SECOND = 2
#: Episodes that a snapshot plays at first, at least, where time is short: of one alone, the noise is not known.
_LEAST_FIRST = 2
#: From this round on, the better half of each size's copies play, by their best snapshots so far, and at least this
#: many.
_FIRST_OF_HALF, _LEAST_COPIES = 1, 3
#: Before that they play on, up to so many episodes each, while this share of the races' limit is enough.
_MOST_BEFORE_HALF, _SHARE_BEFORE_HALF = 32, 0.5
#: How many snapshots of a size play once more at the end.
_NUM_LAST = 2
#: A size plays in a round if its best return ratio so far is at least `keep` minus this, in the order of the rounds.
_SLACK = (math.inf, math.inf, 0.5, 0.25, 0.1)
#: While smaller sizes are below that, training does not end early before this round: they may learn later than others.
_FIRST_FINAL = 3
#: A size acts more often if it is above the worst one by this share of the distance from there to `keep`, or to the
#: best size. Before that round those that are below `keep` by more than `_FAR` do not count, and act more often, too.
_SHARE_ABOVE_WORST, _FAR = 0.75, 0.5
#: Larger sizes play on beside the smallest one that seems to be good enough, in case its certificate fails.
_NUM_LARGER = 1
#: Differences of return ratios that do not matter, if `keep` is so high that none would be left.
_LEAST_DIFFERENCE = 0.01
#: Plays validation episodes: modules by name, number of the first episode, number of episodes.
Play = Callable[[Mapping[str, Any], int, int], "Validation"]
#: Returns of teacher and random policy, `[2, n]`, in validation episodes: number of the first one, number of episodes.
Baselines = Callable[[int, int], np.ndarray]


class Tournament:
    """Chooses each size's candidate.

    Args:
        sizes: names of all sizes, smallest first.
        play: plays validation episodes with students.
        baselines: returns of teacher and random policy in the same episodes.
        new_test: makes a test of the return ratio for one candidate, from all returns that were seen so far.
        keep: return ratio that is asked for.
        scale: mean return of the teacher less that of the random policy, > 0.
        looks: how many episodes snapshots play.
        is_same: whether two modules of a copy have the same weights: it has rested, and there is a snapshot already.
    """

    def __init__(
        self,
        sizes: Sequence[str],
        play: Play,
        baselines: Baselines,
        new_test: Callable[[np.ndarray], RatioTest],
        *,
        keep: float,
        scale: float,
        looks: Looks = EPISODES,
        is_same: Callable[[Any, Any], bool] = lambda module, other: module is other,
    ):
        self.sizes = list(sizes)
        self.snapshots: list[Snapshot] = []
        self.num_episodes = 0  # validation episodes with seeds of their own, so far
        self._play, self._baselines, self._new_test = play, baselines, new_test
        self._keep, self._scale, self._looks, self._is_same = keep, scale, looks, is_same
        self._played = np.empty((2, 0))  # returns of teacher and random policy
        self._spending = Spending()

    def round(self, number: int, copies: Mapping[str, Any], env_steps: int, *, limit: PlayLimit | None = None) -> None:
        """Let the copies of promising sizes play, and then race: who acts next depends on what is known.

        Args:
            number: number of the round, from 0.
            copies: modules of all copies by ID, which do not change while a snapshot is in use.
            env_steps: env steps of training so far.
            limit: of all that is played up to this round's end; None: there is none.
        """
        self._spending.begin(limit)
        left = {name: copies[name] for name in self._copies_left(number, list(copies))}
        left = {name: module for name, module in left.items() if self._is_new(name, module)}
        seen = self._look_again(number, left, env_steps, limit)
        self._look(self.playing(number), left, env_steps, seen, limit=limit)
        if limit is not None and number < _FIRST_OF_HALF and len(self._copies_left(number + 1, list(left))) < len(left):
            self._look_longer(limit)
        while self._race(self.playing(number + 1), limit):
            pass

    def _is_new(self, copy: str, module: Any) -> bool:
        """Return whether a copy has changed since its last snapshot; trees that were not regrown have not, either."""
        last = next((one for one in reversed(self.snapshots) if one.copy == copy), None)
        return last is None or not self._is_same(last.module, module)

    def _copies_left(self, number: int, copies: Sequence[str]) -> list[str]:
        """Return the copies that may play in a round, in the order of `copies`."""
        if number < _FIRST_OF_HALF:
            return list(copies)
        left: set[str] = set()
        for size, names in by_student(copies).items():
            left.update(self._ranked(size, names)[: max(_LEAST_COPIES, math.ceil(len(names) / 2))])
        return [name for name in copies if name in left]

    def _ranked(self, size: str, names: Sequence[str]) -> list[str]:
        """Return copies of a size, the best first, by their best snapshots; those that have not played come last."""
        known = self._best_of(size, self.snapshots, len(self.snapshots))
        return [name for name in dict.fromkeys([*(one.copy for one in known), *names]) if name in names]

    def _look_again(
        self, number: int, copies: Mapping[str, Any], env_steps: int, limit: PlayLimit | None
    ) -> list[Snapshot]:
        """Let the best copies of smaller sizes that were far too bad play a few episodes: they may have learned since.

        The smallest students learn last, and how much a round's share of training teaches them is not known.
        """
        playing = self.playing(number)
        smaller = self.sizes[: self.sizes.index(playing[-1])] if playing else self.sizes
        new = [
            Snapshot(size, name, env_steps, copies[name])
            for size, names in by_student(copies).items()
            if size in smaller and size not in playing
            for name in self._ranked(size, names)[:_LEAST_COPIES]
        ]
        return self._first_look(new, limit)

    def _look(
        self,
        playing: Sequence[str],
        copies: Mapping[str, Any],
        env_steps: int,
        seen: Sequence[Snapshot] = (),
        *,
        limit: PlayLimit | None,
    ) -> None:
        names_seen = {one.copy for one in seen}
        new = [
            Snapshot(size, name, env_steps, copies[name])
            for size, names in by_student(copies).items()
            if size in playing
            for name in names
            if name not in names_seen
        ]
        now = [*seen, *self._first_look(new, limit)]
        best = [one for size in playing for one in self._best_of(size, now, _NUM_SECOND)]
        self._let_look(best, self._looks.second, limit)

    def _first_look(self, new: Sequence[Snapshot], limit: PlayLimit | None) -> list[Snapshot]:
        """Let new snapshots play, as many as a limit admits, and in any case one of a size that is new; return them."""
        by_rank, known = in_turn(by_size(new)), {one.size for one in self.snapshots}
        first = by_rank[: len(by_size(new))]
        if limit is not None and math.isfinite(limit.looks):  # how long their episodes are now must be seen
            unknown = [one for one in first if one.size not in known]
            self._let_look(unknown, 1, limit, least=1)
            self._let_look([one for one in first if one.size in known], 1, limit)
        most = int(min(self._spending.num_snapshots(_LEAST_FIRST, limit, is_race=False), len(new)))
        admitted = {id(one) for one in by_rank[:most]}
        playing = [one for one in new if id(one) in admitted or one.returns]
        self._let_look(playing, self._looks.first, limit)
        self.snapshots += (played := [one for one in playing if one.returns])
        return played

    def _let_look(self, snapshots: Sequence[Snapshot], most: int, limit: PlayLimit | None, *, least: int = 0) -> bool:
        """Let snapshots play as many episodes as a limit admits; return whether they have played."""
        num_episodes = int(min(max(self._spending.num_seeds(len(snapshots), limit), least), most))
        self._let_play(snapshots, num_episodes, limit)
        return bool(snapshots) and num_episodes > 0

    def _look_longer(self, limit: PlayLimit) -> None:
        """Let all copies play on, where episodes cost little: by what they play, the worse half of them is left out."""
        few = self._looks.first
        while min(len(one.returns) for one in self.snapshots) + few <= _MOST_BEFORE_HALF:
            half = limit._replace(races=_SHARE_BEFORE_HALF * limit.races)
            if self._spending.num_snapshots(few, half, is_race=True) < len(self.snapshots):
                return
            self._let_play(self.snapshots, few, limit, is_race=True)

    def playing(self, number: int) -> list[str]:
        """Return the sizes that play in a round: neither far too bad so far, nor larger than what is needed."""
        slack = _SLACK[min(number, len(_SLACK) - 1)]
        best = {size: self.best(size) for size in self.sizes}
        able = [size for size in self.sizes if best[size] is None or self.ratio(best[size]) >= self._keep - slack]
        enough = next((i for i, size in enumerate(able) if self.is_promising(best[size])), len(able))
        return able[: enough + 1 + _NUM_LARGER]

    def preferred(self, number: int) -> list[str]:
        """Return the sizes that act more often on the way to a round.

        They are those that will play in it and are clearly better than the worst one, or may be: on some tasks even a
        poor student has nine tenths of the return. Early, those that are far too bad act, too: they may learn late.
        """
        playing = self.playing(number)
        best = {one.size: self.ratio(one) for one in self.candidate_of_each_size()}
        if not playing or not best:
            return playing
        late = [size for size, ratio in best.items() if ratio < self._keep - _FAR] if number < _FIRST_FINAL else []
        ratios = [ratio for size, ratio in best.items() if size not in late] or list(best.values())
        needed = min(ratios) + _SHARE_ABOVE_WORST * (min(self._keep, max(ratios)) - min(ratios))
        able = [size for size in playing if self._bound(self.best(size)) >= needed]
        largest = self.sizes.index(playing[-1])
        return [size for size in self.sizes[: largest + 1] if size in able or size in late]

    def resting(self, number: int, copies: Sequence[str]) -> list[str]:
        """Return the copies that neither learn nor act on the way to a round, so that the others learn faster.

        They are those that will not play, and all of sizes that are larger than what is needed, if one is known to be
        good enough, and is likely to be certified.
        """
        is_enough = (self._is_good(size) and self.is_promising(self.best(size)) for size in self.sizes)
        enough = next((i for i, found in enumerate(is_enough) if found), len(self.sizes))
        needed = self.sizes[: enough + 1 + _NUM_LARGER]
        left = [name for name in self._copies_left(number, copies) if student_of(name) in needed]
        return [name for name in copies if name not in left]

    def is_settled(self, number: int, *, limit: PlayLimit | None = None) -> bool:
        """Return whether the smallest size that is left is good enough, also in further episodes: training may end.

        Args:
            number: number of the round that has been played.
            limit: as in `round()`; if it does not admit the episodes, nothing is settled.
        """
        smallest = self.playing(number)[:1]
        if smallest != self.sizes[:1] and number < _FIRST_FINAL:
            return False
        best = self.best(smallest[0]) if smallest else None
        if best is None or not self.is_promising(best):
            return False
        if self._spending.num_seeds(1, limit) < self._looks.last:
            return False
        self._let_play([best], self._looks.last, limit)
        return self.is_promising(self.best(smallest[0])) and self.best(smallest[0]) is best

    def finish(
        self,
        number: int,
        copies: Mapping[str, Any],
        env_steps: int,
        *,
        limit: PlayLimit | None = None,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """Let the best snapshots of each size that is left play further episodes, and larger ones if these fail.

        Larger sizes do not play in a round while a smaller one seems to be enough. If it is not enough after all, they
        play as they are now, unless they have rested. At the end those race that may be candidates: of many snapshots
        with few noisy episodes, the best one is mostly the luckiest.

        Args:
            number: number of the last round.
            copies: as in `round()`.
            env_steps: env steps of training.
            limit: of all that is played; None: there is none.
            save: called after episodes: the state may be saved.
        """
        self._spending.begin(limit)
        while True:
            playing = self.playing(number)
            needed = playing if any(self.is_promising(self.best(size)) for size in playing) else self.sizes
            seen = {one.size for one in self.snapshots if one.env_steps == env_steps}
            new = {name: module for name, module in copies.items() if self._is_new(name, module)}
            self._look([size for size in needed if size not in seen], new, env_steps, limit=limit)
            playing = self.playing(number)
            finalists = [one for size in playing for one in self._best_of(size, self.snapshots, _NUM_LAST)]
            short = [one for one in finalists if len(one.returns) < self._looks.last]
            if not self._let_look(short, self._looks.last, limit) and not self._race(playing, limit):
                return
            save()

    def best(self, size: str) -> Snapshot | None:
        """Return a size's candidate; None if it has not played."""
        return next(iter(self._best_of(size, self.snapshots, 1)), None)

    def candidate_of_each_size(self) -> list[Snapshot]:
        """Return `best()` of all sizes that have played, smallest first."""
        return [one for size in self.sizes if (one := self.best(size)) is not None]

    def ratio(self, snapshot: Snapshot | None) -> float:
        """Return the return ratio in validation episodes, by the difference to the teacher in the same ones."""
        if snapshot is None or not snapshot.returns:
            return -math.inf
        return 1.0 + float(np.mean(self._gains(snapshot)))

    def is_promising(self, snapshot: Snapshot | None) -> bool:
        """Return whether a certificate is likely to be reached with the episodes that a test may use.

        A hopeless candidate costs its share of the error probability and many episodes.
        """
        if snapshot is None or not snapshot.returns:
            return False
        episodes = list(snapshot.returns)
        test = self._new_test(self.returns)
        teacher, random = self._played[:, episodes]
        test.update(student=list(snapshot.returns.values()), teacher=teacher, random=random)
        needed = test.episodes_needed()
        if needed is None:
            return False
        return test.max_episodes is None or needed <= test.max_episodes

    def candidates(self) -> list[Snapshot]:
        """Return the snapshots to be tested, smallest size first: the smallest that are promising, and the safest one.

        The fewer there are, the more of the error probability and of the time each has. If none is promising, the best
        one of all is tested alone, unless its return ratio is clearly below what is asked for.
        """
        best = [one for one in map(self.best, self.sizes) if one is not None]
        promising = [one for one in best if self.is_promising(one)]
        if promising:
            smallest, others = promising[: NUM_TESTED - 1], promising[NUM_TESTED - 1 :]
            safest = sorted(others, key=lambda one: self._standard_error(one) - self.ratio(one))
            return smallest + safest[:1]
        if not best:
            return []
        last = max(best, key=self.ratio)
        return [last] if self.ratio(last) + 2 * self._standard_error(last) >= self._keep else []

    @property
    def returns(self) -> np.ndarray:
        """Return all returns of validation, of all policies."""
        own = [value for one in self.snapshots for value in one.returns.values()]
        return np.concatenate([self._played.ravel(), own])

    def get_state(self) -> dict[str, Any]:
        """Return everything but the modules, as JSON."""
        return {
            "num_episodes": self.num_episodes,
            "spending": self._spending.get_state(),
            "played": self._played.tolist(),
            "snapshots": [
                {"size": one.size, "copy": one.copy, "env_steps": one.env_steps, "returns": list(one.returns.items())}
                for one in self.snapshots
            ],
        }

    def set_state(self, state: Mapping[str, Any], copies_at: Callable[[int], Mapping[str, Any]]) -> None:
        """Restore a state of `get_state()`.

        Args:
            state: the state.
            copies_at: returns the modules of all copies by ID, as they were after so many env steps of training.
        """
        modules = {env_steps: copies_at(env_steps) for env_steps in {one["env_steps"] for one in state["snapshots"]}}
        self.num_episodes = state["num_episodes"]
        self._spending = Spending(**state["spending"])
        self._played = np.array(state["played"], dtype=float).reshape(2, -1)
        self.snapshots = [
            Snapshot(
                one["size"], one["copy"], one["env_steps"], modules[one["env_steps"]][one["copy"]], dict(one["returns"])
            )
            for one in state["snapshots"]
        ]

    def _let_play(
        self, snapshots: Sequence[Snapshot], num_episodes: int, limit: PlayLimit | None, *, is_race: bool = False
    ) -> None:
        """Play episodes that are new to all."""
        if not snapshots or not num_episodes:
            return
        first = self.num_episodes
        self.num_episodes += num_episodes
        self._played = np.concatenate([self._played, self._baselines(first, num_episodes)], axis=1)
        named = {f"{i}": one for i, one in enumerate(snapshots)}
        played = self._play({name: one.module for name, one in named.items()}, first, num_episodes)
        for name, one in named.items():
            own = map(float, played.returns[name])
            one.returns |= dict(zip(range(first, first + num_episodes), own, strict=True))
        self._spending.add(played, num_episodes, limit, is_race=is_race)

    def _best_of(self, size: str, snapshots: Sequence[Snapshot], count: int) -> list[Snapshot]:
        """Return the best snapshots of a size, by return ratio less one standard error: few episodes prove little."""
        own = [one for one in snapshots if one.size == size and one.returns]
        return sorted(own, key=lambda one: self._standard_error(one) - self.ratio(one))[:count]

    def _race(self, playing: Sequence[str], limit: PlayLimit | None) -> bool:
        """Let those that race play; return whether there are any."""
        racing = [] if limit is None else self._racing(playing, limit)
        if limit is not None and racing:
            self._let_play(racing, self._looks.last, limit, is_race=True)
        return bool(racing)

    def _racing(self, playing: Sequence[str], limit: PlayLimit) -> list[Snapshot]:
        """Return the snapshots that race now: as many as the limit admits, of each size those that may be its best.

        It is a race (Maron and Moore 1993, "Hoeffding races") by standard errors.
        """
        sizes = dict.fromkeys([*playing, *(one.size for one in self.candidates())])
        rivals = in_turn(list(map(self._unsettled, sizes)))
        return rivals[: int(min(self._spending.num_snapshots(self._looks.last, limit, is_race=True), len(rivals)))]

    def _unsettled(self, size: str) -> list[Snapshot]:
        """Return the snapshots of a size that may be its best one, and are not well known, the most promising first.

        They are none if the size cannot be good enough, by two standard errors, or is known to be. A return ratio is
        known if two standard errors are no more than what a student may lose.
        """
        best = self.best(size)
        if best is None or self._bound(best, errors=2.0) < self._keep or self._is_good(size):
            return []
        own = [one for one in self.snapshots if one.size == size and one.returns and not self._is_known(one)]
        return sorted((one for one in own if self._bound(one) >= self.ratio(best)), key=self._bound, reverse=True)

    def _is_known(self, snapshot: Snapshot) -> bool:
        """Return whether two standard errors of a return ratio are no more than what a student may lose."""
        return 2 * self._standard_error(snapshot) <= max(1 - self._keep, _LEAST_DIFFERENCE)

    def _is_good(self, size: str) -> bool:
        """Return whether a size is known to be good enough, by two standard errors: the best of many is often lucky."""
        best = self.best(size)
        return best is not None and self._is_known(best) and self._bound(best, errors=-2.0) >= self._keep

    def _bound(self, snapshot: Snapshot | None, errors: float = 1.0) -> float:
        """Return what is so many standard errors above the return ratio; ∞ if nothing is known."""
        if snapshot is None or not snapshot.returns:
            return math.inf
        return self.ratio(snapshot) + errors * self._standard_error(snapshot)

    def _gains(self, snapshot: Snapshot) -> np.ndarray:
        """Return (student − teacher) / (mean teacher − mean random) of each episode."""
        teacher = self._played[0, list(snapshot.returns)]
        return (np.array(list(snapshot.returns.values())) - teacher) / self._scale

    def _standard_error(self, snapshot: Snapshot) -> float:
        gains = self._gains(snapshot)
        spread = float(np.std(gains, ddof=1)) if len(gains) > 1 else 1.0
        return max(spread, 0.05) / math.sqrt(len(gains))  # a few equal episodes do not prove that all are
