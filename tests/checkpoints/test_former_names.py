"""RLModules that Ray 2.40 wrote: their classes, catalogs and parts had other names."""

import json

import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from tests.formats import CHECKPOINTS, q_values


@pytest.mark.parametrize("name", ["appo", "bc", "marwil", "ppo"])
def test_modules_that_ray_2_40_wrote(name):
    """Default policies for CartPole; that Ray itself computed their logits for some observations."""
    path = CHECKPOINTS / "ray-2.40-modules" / name
    expected = json.loads((path / "expected.json").read_text())
    log_probs = torch.log_softmax(torch.tensor(expected["logits"]), -1).numpy()
    teacher = load_teacher(path)
    assert q_values(teacher, np.array(expected["obs"], np.float32)) == pytest.approx(log_probs, abs=1e-6)
    assert teacher.model_config["fcnet_hiddens"] == [6]
