"""The same as in test_layers.py and test_integers.py, for more networks, and for one that sees Atari's images."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.export.artifact import deployment_cost
from rllib_kd.export.export import TOLERANCE, export
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states
from tests.export.c.networks import SANITIZERS, Together, has_sanitizers, random_networks, written

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("int8", [False, True])
def test_many_networks(int8, tmp_path):
    networks = [each for each in random_networks(40, seed=1) if not int8 or "expectation" not in each.ops()]
    texts = written(networks, int8=int8)
    options = SANITIZERS if has_sanitizers(tmp_path) else ()
    obs = [np.concatenate([each.obs, 1e3 * each.obs]) if int8 else each.obs for each in networks]
    played = Together(tmp_path, [text.header for text in texts], *options).run(obs)
    for each, text, seen, (actions, codes, q_values) in zip(networks, texts, obs, played, strict=True):
        expected = text.integers(seen) if int8 else each.q_values(seen)
        allowed = max(2.5e-5, 16 * np.spacing(np.abs(expected).max()))  # rounding of large Q-values, as in export()
        assert np.abs(q_values - expected).max() <= (0.0 if int8 else allowed)
        assert (actions == q_values.argmax(-1)).all()
        assert not codes.any()


def test_a_network_for_atari(tmp_path):
    space = gym.spaces.Box(0.0, 1.0, (84, 84, 4))
    filters = [[16, 8, 4, "valid"], [32, 4, 2, "valid"]]
    student = Teacher(
        make_q_module(
            space, gym.spaces.Discrete(6), conv_filters=filters, conv_activation="relu", head_fcnet_hiddens=[64]
        )
    )
    obs = np.clip(np.abs(states(40, space)), 0, 1)
    result = export(student, tmp_path / "s.h", format="c", obs=obs)
    assert result.max_difference <= TOLERANCE / 10
    small = export(student, tmp_path / "small.h", format="c", obs=obs, int8=True)
    assert small.agreement >= 0.9
    costs = [deployment_cost(tmp_path / name) for name in ("s.h", "small.h")]
    assert costs[0].flash_bytes > 4 * student.num_parameters
    assert student.num_parameters < costs[1].flash_bytes < 1.02 * student.num_parameters + 5_000
    assert costs[0].multiply_adds == costs[1].multiply_adds
