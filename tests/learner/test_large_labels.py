"""Which labels look as if they marked illegal actions by a large negative number."""

import logging

import pytest
import torch

from rllib_kd.learner.large_labels import LargeLabels
from tests.learner.learners import config_of, fragment, make_learner

MASKS = [-1e8, -1e9, -1e10, torch.finfo(torch.float32).min]


def warnings_of(caplog, *all_labels):
    large = LargeLabels()
    caplog.clear()
    for labels in all_labels:
        large.check(labels)
    return [record.message for record in caplog.records]


def usual(count=200, scale=100.0):
    return scale * torch.randn((count, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_by_large_numbers_is_warned_of_once(caplog, mask):
    labels = usual()
    labels[7, 1] = mask
    (message,) = warnings_of(caplog, usual(), labels, labels)
    assert f"go down to {mask:.3g}," in message
    assert "masks.md" in message


def test_a_mask_beside_best_values_of_0_is_warned_of(caplog):
    assert len(warnings_of(caplog, torch.tensor([[0.0, -1e9, 0.0]] * 200))) == 1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e9])
def test_q_values_of_any_size_are_none(caplog, scale):
    labels = usual(scale=scale)
    labels[7, 1] -= 1_000 * scale  # a mistake that costs much
    labels[8, 1] = -torch.inf  # illegal
    assert warnings_of(caplog, labels, labels[:0], labels[:1]) == []


@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_it_does_not_depend_on_the_unit_of_rewards(caplog, scale):
    labels = usual(scale=100 * scale)
    labels[7, 1] = -1e8 * scale
    assert len(warnings_of(caplog, labels)) == 1


def test_best_values_that_are_usually_or_always_zero_are_none(caplog):
    labels = torch.tensor([[0.0, -1.0, -200.0]]).repeat(200, 1)
    sometimes = labels.clone()
    sometimes[:30, 0] = -0.01
    assert warnings_of(caplog, labels, sometimes) == []


@pytest.mark.parametrize("outputs", ["q_values", "log_probs"])
def test_the_learner_looks_at_q_values(caplog, outputs):
    config = config_of()
    config.set_outputs({"default_policy": outputs})
    columns = fragment()
    columns["teacher_q"][::3, 0] = -1e9
    with caplog.at_level(logging.WARNING, logger="rllib_kd.learner.large_labels"):
        make_learner(config).update([columns])
    assert any("go down to -1e+09" in record.message for record in caplog.records) == (outputs == "q_values")
