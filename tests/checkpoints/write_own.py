"""Writes the checkpoints of this version that later versions must read: python tests/checkpoints/write_own.py FOLDER.

Each is small, and was trained for two iterations. `KIND.npz` beside each has the weights of its students, and their
Q-values. Each kind is packed into `KIND.tar.xz`, a quarter of its size. Further arguments choose kinds.

The environments of `masks`, `agents` and `parts` are those of `tests/observations/masked.py` and `mixed.py`.
Checkpoints name their classes, so these must stay importable by their names. Do not use lambdas and classes that are
made in functions: they are pickled as code, which another version of Python cannot read.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from rllib_kd import DistillDQN, DistillDQNConfig, Teacher
from rllib_kd.algorithm.settings import apply_settings
from tests.conftest import make_q_module, states
from tests.observations.masked import NUMBERS, InDict, Payments, Two, own_policy
from tests.observations.mixed import Crossing

#: The teachers' spaces, by the names of their folders.
TEACHERS: dict[str, tuple[Any, ...]] = {"teacher": (), "masked_teacher": (NUMBERS, Payments.action_space)}
SMALL = {"model_config": {"fcnet_hiddens": [4]}}
#: Settings of each kind of checkpoint, beside the shared ones; a teacher is the name of its folder.
KINDS: dict[str, dict[str, Any]] = {
    "student": SMALL,
    "family": {"students": {"s4": {"fcnet_hiddens": [4]}, "linear": "linear"}},
    "td": {"td_coeff": 1.0, "teacher_fraction": 0.0, "replay_buffer_config": {"alpha": 0.6}, **SMALL},
    "recurrent": {
        "students": {"lstm": {"lstm_cell_size": 2}, "gru": {"lstm_cell_size": 2, "recurrent_layer_type": "gru"}},
        "model_config": {"use_lstm": True, "fcnet_hiddens": [2], "max_seq_len": 4},
        "burn_in_len": 1,
    },
    "tree": {
        "student": {"tree": {"max_leaf_nodes": 3}},
        "restarts": 1,
        "min_sample_timesteps_per_iteration": 512,  # the first one is grown after 1,000
    },
    "restarts": {"restarts": 2, "num_validation_episodes": 2, **SMALL},
    "int8": {"quantize": "int8", **SMALL},
    "ensemble": {"teacher": ["teacher", "teacher"], **SMALL},
    "masks": {"env": InDict, "teacher": "masked_teacher", **SMALL},
    "agents": {
        "env": Two,
        "disable_env_checking": True,  # RLlib's check takes any action
        "policies": {"a", "b"},
        "policy_mapping_fn": own_policy,
        "teacher": {"a": "masked_teacher", "b": "masked_teacher"},
        **SMALL,
    },
    "parts": {
        "env": Crossing,
        "teacher": None,
        "td_coeff": 1.0,
        "teacher_fraction": 0.0,
        "model_config": {"conv_filters": [[2, 8, 8]], "fcnet_hiddens": [2]},
        "replay_buffer_config": {"capacity": 32},
    },
}


def config_of(kind: str, folder: Path) -> DistillDQNConfig:
    """The config with which a checkpoint of this kind was written."""
    config = (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(
            train_batch_size_per_learner=16,
            num_steps_sampled_before_learning_starts=16,
            training_intensity=4,
            replay_buffer_config={"capacity": 64},
        )
        .reporting(min_sample_timesteps_per_iteration=16)
        .distillation(teacher=str(folder / "teacher"), num_baseline_episodes=0)
        .debugging(seed=0, log_sys_usage=False)
    )
    settings = dict(KINDS[kind])
    if "teacher" in settings:
        settings["teacher"] = _in_folder(folder, settings["teacher"])
    apply_settings(config, settings)
    return config


def _in_folder(folder: Path, teacher: Any) -> Any:
    if isinstance(teacher, list):
        return [_in_folder(folder, member) for member in teacher]
    if isinstance(teacher, dict):
        return {policy: _in_folder(folder, member) for policy, member in teacher.items()}
    return teacher and str(folder / teacher)


def names_of(algo: DistillDQN) -> list[str]:
    """The names of all students: of a family, and those of several agents."""
    return sorted(algo.config.students or (algo.config.policies if algo.config.is_multi_agent else ["default_policy"]))


def weights_of(algo: DistillDQN) -> dict[str, np.ndarray]:
    """The weights of all students, by name; with restarts also those of their copies."""
    modules = {name: algo.get_module(name) for name in names_of(algo)}
    if algo.config.num_copies > 1:
        modules = algo.get_copies() | modules
    return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.get_state().items()}


def q_values_of(students: dict[str, Teacher]) -> dict[str, np.ndarray]:
    """The Q-values of students in five states, by name."""
    inputs = {name: torch.as_tensor(states(5, student.input_space)) for name, student in students.items()}
    return {f"{name}/q_values": students[name].first_q_values(own).numpy() for name, own in inputs.items()}


def main(folder: Path, kinds: list[str]) -> None:
    """Write an archive for each kind, and what its students are."""
    for name, spaces in TEACHERS.items():
        make_q_module(*spaces, fcnet_hiddens=[8]).save_to_path(str(folder / name))
    for kind in kinds or KINDS:
        algo = config_of(kind, folder).build_algo()
        algo.train()
        algo.train()
        algo.save_to_path(str(folder / kind))
        students = {name: Teacher(algo.get_module(name)) for name in names_of(algo)}
        np.savez(folder / f"{kind}.npz", **weights_of(algo), **q_values_of(students))
        algo.stop()
        shutil.make_archive(str(folder / kind), "xztar", folder / kind)
        shutil.rmtree(folder / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
