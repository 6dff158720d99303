"""docs/pages/combinations.md is what the checks say."""

import pytest

from tests.algorithm.combinations import FEATURES, PAGE, page, refusal


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_each_feature_alone_is_accepted(feature):
    assert refusal(feature) is None


@pytest.mark.slow
def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "Run `python -m tests.algorithm.combinations`, and look at what has changed."


def test_refusals_are_first_sentences():
    by_name = {feature.name: feature for feature in FEATURES}
    assert refusal(by_name["several agents"], by_name["restarts"]) == (
        "`restarts`=2 is supported in single-agent settings only."
    )
    assert refusal(by_name["no teacher"], by_name["ensemble of Q-values"]) == "Both set `teacher`, to different values."
    assert "td_coeff" in refusal(by_name["C51"], by_name["TD beside distillation"])
    assert refusal(by_name["restarts"], by_name["several Learners"]) is None
