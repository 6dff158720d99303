"""Checkpoints of earlier versions are read, from 0.2 on."""

from pathlib import Path

import numpy as np
import pytest

from rllib_kd import DistillDQN, load_teacher
from tests.checkpoints.write_own import weights_of

WRITTEN = [
    path for version in sorted(Path(__file__).parent.glob("rllib_kd-*")) for path in sorted(version.glob("*.npz"))
]


@pytest.mark.parametrize("weights", WRITTEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_checkpoint_of_an_earlier_version_resumes(cluster, weights):
    algo = DistillDQN.from_checkpoint(str(weights.with_suffix("")))
    try:
        restored = weights_of(algo)
        with np.load(weights) as written:
            assert set(written) == set(restored)
            for name, expected in written.items():
                np.testing.assert_array_equal(restored[name], expected)
        before = algo.num_env_steps
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] > before > 0
        assert result["distillation"]["num_gradient_steps_lifetime"] > 0
    finally:
        algo.stop()


def test_students_of_earlier_versions_are_teachers():
    for weights in WRITTEN:
        if weights.stem != "family":
            assert load_teacher(weights.with_suffix("")).action_space.n == 2
