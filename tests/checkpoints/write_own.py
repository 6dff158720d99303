"""Writes the checkpoints of this version that later versions must read: python tests/checkpoints/write_own.py FOLDER.

Each is small, and was trained for two iterations. `weights.npz` beside each has the weights that its student had.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from rllib_kd import DistillDQN, DistillDQNConfig

#: Settings of each kind of checkpoint, beside the shared ones.
KINDS: dict[str, dict[str, Any]] = {
    "student": {},
    "family": {"students": {"s4": {"fcnet_hiddens": [4]}, "linear": "linear"}},
    "td": {"td_coeff": 1.0, "teacher_fraction": 0.0},
}


def config_of(kind: str, teacher: str) -> DistillDQNConfig:
    """The config with which a checkpoint of this kind was written."""
    config = (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(
            train_batch_size_per_learner=16,
            num_steps_sampled_before_learning_starts=16,
            training_intensity=4,
            replay_buffer_config={"capacity": 64} | ({"alpha": 0.6} if kind == "td" else {}),
        )
        .reporting(min_sample_timesteps_per_iteration=16)
        .distillation(teacher=teacher, num_baseline_episodes=0, **KINDS[kind])
        .debugging(seed=0, log_sys_usage=False)
    )
    return config if kind == "family" else config.rl_module(model_config={"fcnet_hiddens": [4]})


def weights_of(algo: DistillDQN) -> dict[str, np.ndarray]:
    """The weights of all students, by name."""
    names = list(algo.config.students) or ["default_policy"]
    return {f"{name}/{key}": value for name in names for key, value in algo.get_module(name).get_state().items()}


def main() -> None:
    """Write a folder for each kind."""
    from tests.conftest import make_q_module

    folder = Path(sys.argv[1])
    teacher = make_q_module(fcnet_hiddens=[8]).save_to_path(str(folder / "teacher"))
    for kind in KINDS:
        algo = config_of(kind, teacher).build_algo()
        algo.train()
        algo.train()
        algo.save_to_path(str(folder / kind))
        np.savez(folder / f"{kind}.npz", **weights_of(algo))
        algo.stop()


if __name__ == "__main__":
    main()
