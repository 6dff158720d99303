"""Validation follows the time, in a world where an episode takes a second."""

import math

import numpy as np
import pytest

from rllib_kd.shrink.budget import PlayLimit
from rllib_kd.students.restarts import by_student, names_of
from tests.shrink.test_tournament import ALL_GOOD, SIZES, Players, copies, tournament


class Slow(Players):
    """An episode takes a second."""

    def play(self, modules, first, count):
        found = super().play(modules, first, count)
        return found._replace(seconds=float(count * len(modules)))


def looking(seconds, *rounds, baselines=2.0, least=0.0):
    """Play these rounds in slow episodes, eight copies of each size; return the tournament, and what it has looked."""
    names, found = [name for size in SIZES for name in names_of(size, 8)], tournament(Slow(), keep=0.9)
    limit, looked = PlayLimit("seconds", 0.0, seconds, least, baselines), []
    for number in rounds:
        found.round(number, dict.fromkeys(names, 0.5 + 0.01 * number), number + 1, limit=limit)
        looked.append(found.get_state()["spending"]["looked"])
    return found, looked


@pytest.mark.parametrize(
    ("seconds", "num_copies", "first", "all_"),
    [
        (math.inf, 32, 4, 4 * 32 + 12 * 8),
        (1_000, 32, 4, 4 * 32 + 12 * 8 + 4),
        (200, 32, 4, 4 * 32 + 5 * 8 + 4),
        (100, 32, 2, 2 * 32 + 2 * 8 + 4),
        (44, 17, 2, 2 * 17 + 4),  # of one episode, the noise is not known
        (30, 10, 2, 2 * 10 + 4),
        (0, 4, 0, 4),  # one of each size in any case
    ],
)
def test_validation_follows_the_time(seconds, num_copies, first, all_):
    """With a limit, one of each size plays an episode first: these are the four that are added."""
    found, (looked,) = looking(seconds, 0)
    returns = [len(one.returns) for one in found.snapshots]
    assert (len(returns), sum(returns)) == (num_copies, all_)
    assert looked <= max(seconds, 6)
    counts = [len(of_size) for of_size in by_student([one.copy for one in found.snapshots]).values()]
    assert max(counts) - min(counts) <= 1
    assert min(returns) == max(first, 1)


def test_where_students_take_longer_than_their_teacher_few_of_them_play():
    """Episodes of teacher and random policy say little about those of students, so that these are measured first."""
    _, (looked,) = looking(60, 0, baselines=0.01)
    assert looked <= 60


def test_where_teachers_take_longer_than_students_few_of_them_play():
    found, (looked,) = looking(100, 0, baselines=10.0)
    assert 60 < looked <= 100
    assert found.num_episodes < 10


def test_what_was_spent_in_earlier_rounds_counts_and_then_nobody_plays():
    found, looked = looking(400, 0, 1, 2, 3)
    assert looked[0] < looked[1] <= looked[-1] <= 400
    assert looking(0, 0, 1, 2, 3)[1] == [6.0] * 4
    assert np.diff(looking(0, 0, 1, 2, 3, least=20.0)[1]).min() > 10  # but if a round may have some in any case
    state = found.get_state()
    again = tournament(Slow(), keep=0.9)
    again.set_state(state, lambda env_steps: {one.copy: one.module for one in found.snapshots})
    assert again.get_state()["spending"] == state["spending"]


def test_without_time_for_further_episodes_nothing_is_settled_and_the_end_comes():
    for most, is_settled in ((math.inf, True), (60.0, False)):
        found, limit = tournament(Slow()), PlayLimit("seconds", 0.0, most)
        found.round(0, copies(**ALL_GOOD), 1_000, limit=limit)
        assert found.is_settled(3, limit=limit) == is_settled
        found.finish(3, copies(**ALL_GOOD), 1_000, limit=limit)
        assert (sum(len(one.returns) for one in found.snapshots) <= 60) != is_settled
