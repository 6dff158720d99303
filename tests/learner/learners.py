"""Learners of a small network, and data for them."""

import numpy as np
import torch

from rllib_kd import DistillDQNConfig, DistillDQNTorchLearner
from rllib_kd.learner.group import DISTILLATION_COLUMNS
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, states

MODEL = {"fcnet_hiddens": [16], "fcnet_activation": "relu"}
C51 = {"num_atoms": 11, "v_min": 80.0, "v_max": 120.0}
#: No coordinates but those of the environment and of the teacher.
RAW = {"normalize_q_values": False, "normalize_observations": False}


def config_of(loss="kl", **distillation) -> DistillDQNConfig:
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .rl_module(model_config=MODEL)
        .training(train_batch_size_per_learner=32, lr=1e-2, **(C51 if loss == "categorical" else {}))
        .distillation(teacher="cartpole", loss=loss, **distillation)
        .debugging(seed=0)
    )


def group_of(learner):
    return learner.groups["default_policy"]


def student_of(learner):
    return group_of(learner).students["default_policy"]


def make_learner(config, learner_class=DistillDQNTorchLearner, policies=("default_policy",)):
    config = config.copy(copy_frozen=False)
    config.validate()
    spec = config.get_multi_rl_module_spec(
        spaces=dict.fromkeys(policies, (CARTPOLE_OBS, CARTPOLE_ACTIONS)), inference_only=False
    )
    learner = learner_class(config=config, module_spec=spec)
    learner.build()
    return learner


def fragment(count=256, seed=0, names=DISTILLATION_COLUMNS):
    rng = np.random.default_rng(seed)
    columns = {
        "obs": states(count, seed=seed),
        "teacher_q": (100 + rng.normal(size=(count, 1)) * 8 + rng.normal(size=(count, 2)) * 0.2).astype(np.float32),
        "actions": rng.integers(2, size=count),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminateds": rng.random(count) < 0.1,
        "truncateds": np.zeros(count, dtype=bool),
        "valid": np.arange(count) % 16 != 15,
    }
    return {name: columns[name] for name in names}


def q_values(learner, obs):
    with torch.no_grad():
        return learner.module["default_policy"].compute_q_values({"obs": torch.as_tensor(obs)})["qf_preds"]


def learnable(count: int) -> dict:
    """Labels that a small network can represent: linear in the observation, with the scales of a good teacher."""
    columns = fragment(count)
    columns["teacher_q"] = 100 + 8 * columns["obs"][:, :1] + 0.2 * columns["obs"][:, 1:3]
    return columns


def nearest_atom(teacher_q: np.ndarray) -> np.ndarray:
    """Return distributions without any spread, on the support of `C51`."""
    atoms = np.linspace(C51["v_min"], C51["v_max"], C51["num_atoms"])
    nearest = np.abs(teacher_q[..., None] - atoms).argmin(-1)
    return np.eye(C51["num_atoms"], dtype=np.float32)[nearest]


def with_features(count: int = 256, names=DISTILLATION_COLUMNS) -> dict:
    """Features of which the student's 16 units can learn any three: linear in the observation."""
    columns = fragment(count, names=names)
    mixing = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    return columns | {"teacher_features": columns["obs"] @ mixing}


PRIORITIZED = {"replay_buffer_config": {"alpha": 0.6, "beta": 0.4}}
