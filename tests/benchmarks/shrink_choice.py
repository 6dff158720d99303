"""Which candidates does `rllib shrink` choose if its copies are worth what `shrink_copies.py` has measured?

    python tests/benchmarks/shrink_choice.py docs/results/shrink_copies.csv --seed 1 [--sizes 9] [--noise 0.335]
        [--runs 60] [--race 600000]

The tournament is played with made-up episodes: measured return ratios plus normal noise, half of whose variance is the
teacher's. Candidates are then tested as by the command. A line has how many runs certified which size, and how many
episodes all students played. `--race` limits the env steps of the race at the end, of 30 each episode; 0: no race.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.certificates.certification import MAX_EPISODES, certify
from rllib_kd.evaluation.validation import Validation
from rllib_kd.shrink.budget import PlayLimit
from rllib_kd.shrink.tournament import Tournament
from rllib_kd.students.restarts import names_of

KEEP, ALPHA = 0.97, 0.05
STEPS_OF_AN_EPISODE = 30


class Players:
    """Students are their return ratios; the teacher has 1, and the random policy 0.

    Args:
        noise: standard deviation of the difference to the teacher in an episode.
        seed: seed of the noise.
    """

    def __init__(self, noise: float, seed: int):
        self._noise, self._rng, self.num_episodes = noise / 2**0.5, np.random.default_rng(seed), 0

    def returns(self, ratio: float, count: int) -> np.ndarray:
        """Returns of a policy with this return ratio, `[count]`."""
        return ratio + self._noise * self._rng.normal(size=count)

    def play(self, modules: Mapping[str, Any], first: int, count: int) -> Validation:
        """Validation episodes."""
        self.num_episodes += count * len(modules)
        returns = {name: self.returns(ratio, count).tolist() for name, ratio in modules.items()}
        return Validation(returns, STEPS_OF_AN_EPISODE * count * len(modules), 0.0)

    def baselines(self, first: int, count: int) -> np.ndarray:
        """Returns of teacher and random policy, `[2, count]`."""
        return np.stack([self.returns(1.0, count), np.zeros(count)])


def chosen(rounds: Sequence[Mapping[str, float]], sizes: Sequence[str], players: Players, race: int) -> str:
    """The size that a run certifies, or "none"."""

    def new_test(seen: np.ndarray) -> RatioTest:
        return RatioTest(KEEP, ALPHA / 2, seen=seen, max_episodes=MAX_EPISODES)

    tournament = Tournament(sizes, players.play, players.baselines, new_test, keep=KEEP, scale=1.0)
    for number, copies in enumerate(rounds):
        tournament.round(number, copies, number + 1)
        if tournament.is_settled(number):
            break
    tournament.finish(number, copies, number + 1, limit=PlayLimit("env_steps", race) if race else None)
    candidates = tournament.candidates()
    if not candidates:
        return "none"

    def play(place: int, first: int, count: int) -> np.ndarray:
        own = players.returns(candidates[place].module, count)
        return np.concatenate([[own], players.baselines(first, count)])

    given: dict[str, Any] = {"keep": KEEP, "alpha": ALPHA, "max_episodes": MAX_EPISODES, "seen": tournament.returns}
    tests = certify(len(candidates), play, **given)
    return candidates[len(tests) - 1].size if tests[-1].is_certified else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the run whose copies were measured")
    parser.add_argument("--sizes", type=int, default=9, help="how many sizes it trained")
    parser.add_argument("--noise", type=float, default=0.335)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--race", type=int, default=600_000)
    args = parser.parse_args()
    with args.table.open() as file:
        rows = [row for row in csv.DictReader(file) if (row["seed"], row["sizes"]) == (str(args.seed), str(args.sizes))]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    rounds: dict[str, dict[str, float]] = {row["env_steps"]: {} for row in rows}
    for row in rows:
        ratios = list(map(float, row["ratios"].split()))
        rounds[row["env_steps"]] |= dict(zip(names_of(row["size"], len(ratios)), ratios, strict=True))
    found, played = Counter[str](), []
    for run in range(args.runs):
        players = Players(args.noise, run)
        found[chosen(list(rounds.values()), sizes, players, args.race)] += 1
        played.append(players.num_episodes)
    print(
        json.dumps(
            {
                "seed": args.seed,
                "race": args.race,
                **dict(found.most_common()),
                "episodes": round(float(np.mean(played))),
            }
        )
    )


if __name__ == "__main__":
    main()
