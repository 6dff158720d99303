"""Teachers from RLlib checkpoints of the new API stack: whole Algorithms, MultiRLModules and single RLModules."""

from __future__ import annotations

from ray.rllib.algorithms.sac.default_sac_rl_module import DefaultSACRLModule
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.rllib import RLlibCheckpoint
from rllib_kd.teachers.base import Teacher


def load_rllib(checkpoint: RLlibCheckpoint, module: RLModule) -> Teacher:
    """Return the Q-network of an RLlib checkpoint, with the connectors through which it saw its environment.

    Args:
        checkpoint: checkpoint of an Algorithm, or its rl_module folder.
        module: the module loaded from it.

    Raises:
        ValueError: its policy has no Q-values, or its connectors are more than data.
    """
    if not is_q_network(module):
        raise CheckpointError(
            f"'{checkpoint.uri}' is a {type(module).__name__}, which has no Q-values. Expected the checkpoint of a "
            "DQN, or of another RLModule with compute_q_values()."
        )
    return Teacher(module, pipeline=checkpoint.load_observation_pipeline(module), source=checkpoint.uri)


def is_q_network(module: RLModule) -> bool:
    """Return whether a module has a Q-value for each action. SAC's critics evaluate one action at a time."""
    return hasattr(module, "compute_q_values") and not isinstance(module, DefaultSACRLModule)
