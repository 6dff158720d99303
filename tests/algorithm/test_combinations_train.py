"""Pairs of features that combine really train, save and resume."""

import pytest

from tests.algorithm.combinations import FEATURES, settings_of
from tests.algorithm.trained_pairs import REMOTE, cover, train

PAIRS = cover()


def test_each_local_feature_is_in_two_pairs():
    names = [feature.name for pair in PAIRS for feature in pair]
    local = [feature.name for feature in FEATURES if not REMOTE & settings_of(feature).keys()]
    assert all(names.count(name) >= 2 for name in local)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " + ".join(feature.name for feature in pair))
def test_a_pair_trains_saves_and_resumes(cluster, tmp_path, pair):
    train(pair, tmp_path)
