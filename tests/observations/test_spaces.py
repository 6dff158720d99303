"""Which axis of an image, or of a grid of numbers, has the channels."""

import logging

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd.observations.connectors import connectors_for
from rllib_kd.observations.images import as_input
from rllib_kd.observations.spaces import channels_last, image_shape, input_space

FIRST = [(3, 7, 7), (4, 10, 10), (4, 84, 84), (3, 36, 48), (1, 60, 160), (4, 6, 7), (12, 84, 84), (17, 64, 64)]
FIRST += [(3, 10, 60), (1, 5, 40), (2, 4, 12)]
LAST = [(10, 10, 4), (7, 7, 3), (84, 84, 4), (48, 36, 3), (6, 7, 2), (5, 5, 5)]
MORE_CHANNELS_THAN_ROWS = [(8, 8, 111), (5, 4, 26), (8, 8, 20), (6, 7, 20), (16, 16, 29), (5, 6, 26), (20, 16, 64)]


@pytest.mark.parametrize("shape", FIRST + LAST + MORE_CHANNELS_THAN_ROWS)
def test_channels_become_the_last_axis(shape):
    first, middle, last = shape
    expected = (middle, last, first) if shape in FIRST else shape
    assert channels_last(shape) == expected
    space = gym.spaces.Box(0, 1, shape, np.bool_)
    assert input_space(space).shape == expected
    obs = torch.arange(first * middle * last).reshape(1, *shape)
    seen = as_input(obs, expected)
    assert torch.equal(seen, (obs.movedim(1, -1) if shape in FIRST else obs).float())
    (connector,) = connectors_for(space)
    assert connector.recompute_output_observation_space(space, None).shape == expected
    if sorted(shape)[1] >= 16:
        assert image_shape(space) == expected


def test_a_doubtful_guess_is_logged_once(caplog):
    channels_last.cache_clear()
    with caplog.at_level(logging.INFO, "rllib_kd"):
        for shape in ((4, 84, 84), (84, 84, 4), (3, 7, 7)):
            channels_last(shape)
        assert not caplog.messages
        for _ in range(2):
            channels_last((8, 8, 111))
            channels_last((4, 6, 7))
    assert [message.partition(". ")[0] for message in caplog.messages] == [
        "Observations of the shape [8, 8, 111] are taken to have their channels last",
        "Observations of the shape [4, 6, 7] are taken to have their channels first",
    ]
