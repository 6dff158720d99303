"""Images that are too small for a network's convolutions, and observations that are no images."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.mixed_space import MixedBox
from rllib_kd.networks.windows import check_windows
from rllib_kd.students.sizes import PRESETS
from tests.conftest import make_q_module

TWO = gym.spaces.Discrete(2)
FILTERS = {
    "rusu-net3": (PRESETS["rusu-net3"]["conv_filters"], (36, 36)),
    "padded": ([[4, 8, 4], [4, 4, 2]], (1, 1)),
    "padded, then not": ([[4, 8, 4], [4, 3, 2, "valid"]], (9, 9)),
    "not padded, then padded": ([[4, 5, 3, "valid"], [4, 3, 2, "same"]], (5, 5)),
    "other windows along each side": ([[4, [5, 3], [2, 1], "valid"], [4, (2, 4), 2, "valid"]], (7, 6)),
}


@pytest.mark.parametrize("name", FILTERS)
def test_the_least_side_is_the_least_that_pytorch_takes(name):
    filters, (height, width) = FILTERS[name]
    for shape in ((height, width, 1), (height, width + 3, 1)):
        space = gym.spaces.Box(0, 1, shape, np.float32)
        check_windows("The network", filters, space)
        module = make_q_module(space, TWO, conv_filters=filters, head_fcnet_hiddens=[3])
        module.compute_q_values({Columns.OBS: torch.zeros(1, *shape)})
    for less in (0, 1):
        shape = tuple(side - (axis == less) for axis, side in enumerate((height, width, 1)))
        if min(shape) > 0:
            with pytest.raises(ValueError, match=f"images of at least {height} × {width} pixels"):
                student_module_spec({"conv_filters": filters}, gym.spaces.Box(0, 1, shape, np.float32), TWO)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Box(0, 1, (4,)), r"36 × 36 pixels, but the observations have the shape \[4\]\. .*student='linear'"),
        (MixedBox(3 * 40 * 20, [(0, 40, 20, 3)]), "36 × 36 pixels, but the images have 40 × 20"),
    ],
)
@pytest.mark.parametrize("config", [{}, {"fcnet_hiddens": [8]}])
def test_other_observations_than_such_images_are_refused(space, message, config):
    with pytest.raises(ValueError, match=message):
        student_module_spec({**PRESETS["rusu-net3"], **config}, space, TWO)
