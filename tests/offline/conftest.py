"""What whole runs on recorded rows share: a teacher of CartPole, and episodes with its labels."""

from __future__ import annotations

import pytest

from rllib_kd import load_teacher
from tests.offline.labelled import episodes


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("cartpole")


@pytest.fixture(scope="module")
def rows(teacher):
    return episodes(teacher)
