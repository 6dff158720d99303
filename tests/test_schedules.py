import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_kd.schedules import check_schedule, qdagger, value_at, values_of

schedules = st.lists(
    st.tuples(st.integers(1, 10_000), st.floats(0, 1)), min_size=1, max_size=5, unique_by=lambda pair: pair[0]
).map(lambda pairs: [[0, 0.5], *map(list, sorted(pairs))])


def test_a_number_is_constant():
    assert value_at(0.3, 0) == value_at(0.3, 10**9) == 0.3


def test_linear_between_the_points_and_constant_after_the_last():
    schedule = [[0, 1.0], [100, 0.0], [200, 0.5]]
    assert [value_at(schedule, t) for t in (0, 25, 100, 150, 200, 10**9)] == [1.0, 0.75, 0.0, 0.25, 0.5, 0.5]


@given(schedule=schedules, time=st.integers(0, 20_000))
def test_passes_through_its_points_and_stays_between_them(schedule, time):
    check_schedule("x", schedule, high=1.0)
    assert all(value_at(schedule, t) == pytest.approx(value) for t, value in schedule)
    assert min(values_of(schedule)) <= value_at(schedule, time) <= max(values_of(schedule))


@pytest.mark.parametrize(
    "schedule",
    [
        "qdagger",
        None,
        True,
        float("nan"),
        [],
        [[0, 1.0], [0, 0.5]],
        [[0, 1.0], [10, 0.5], [5, 0.1]],
        [[5, 1.0], [10, 0.5]],
        [[0, 1.0, 2.0]],
        [[0, "a"]],
        [0, 1],
        1.5,
        -0.1,
        [[0, 1.0], [10, 1.5]],
    ],
)
def test_nonsense_is_refused_by_name(schedule):
    with pytest.raises(ValueError, match="`teacher_fraction` must be"):
        check_schedule("teacher_fraction", schedule, high=1.0)


def test_words_that_a_field_understands_are_named():
    with pytest.raises(ValueError, match=r"increasing env_steps, or 'auto', or 'qdagger', got 'x'\.$"):
        check_schedule("kd_coeff", "x", words=("auto", "qdagger"))


@pytest.mark.parametrize(
    ("return_ratio", "weight"), [(math.nan, 1.0), (-0.5, 1.0), (0.0, 1.0), (0.75, 0.25), (1.0, 0.0), (1.3, 0.0)]
)
def test_qdagger_is_what_the_student_still_lacks(return_ratio, weight):
    assert qdagger(return_ratio) == pytest.approx(weight)
