"""Parts of a family."""

from itertools import pairwise

import pytest

from rllib_kd.shrink.candidates import mlp
from rllib_kd.shrink.parts import divide
from rllib_kd.students.restarts import REGRET_FACTORS, names_of, regret_factor

SIZES = [mlp(hidden) for hidden in ((), (2,), (2, 2), (4,), (4, 4), (8,), (16,), (32,), (64,))]


@pytest.mark.parametrize("restarts", [1, 4, 8, 10])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 9, 10, 18, 100])
def test_each_copy_is_in_one_part_under_its_own_name(num_parts, restarts):
    parts = divide(SIZES, restarts, num_parts, seed=3)
    names = [name for part in parts for name in part.renamed().values()]
    assert sorted(names) == sorted(name for size in SIZES for name in names_of(size.name, restarts))
    assert len(parts) <= num_parts
    assert len({part.seed for part in parts}) == len(parts)
    assert parts[0].seed == 3


@pytest.mark.parametrize("num_parts", [1, 5, 18])
def test_a_copy_weighs_the_regret_as_in_an_undivided_family(num_parts):
    for part in divide(SIZES, 10, num_parts, seed=0):
        assert all(regret_factor(own) == regret_factor(whole) for own, whole in part.renamed().items())


def test_sizes_are_divided_first_and_neighbours_stay_together():
    parts = divide(SIZES, 8, 4, seed=0)
    assert [len(part.sizes) for part in parts] == [2, 2, 2, 3]
    assert [size for part in parts for size in part.sizes] == SIZES
    assert {part.num_copies for part in parts} == {8}


def test_then_copies_are_divided_and_each_part_has_all_weights():
    parts = divide(SIZES, 8, 18, seed=0)
    assert len(parts) == 18
    assert {(part.first_copy, part.num_copies) for part in parts} == {(0, 4), (4, 4)}
    assert {len(REGRET_FACTORS)} == {part.num_copies for part in parts}


def test_more_actors_never_mean_fewer_parts():
    counts = [len(divide(SIZES, 16, num, seed=0)) for num in range(1, 60)]
    assert all(after >= before for before, after in pairwise(counts))
    assert counts[-1] == 36
