"""Teachers from RLlib checkpoints of the new API stack: whole Algorithms, MultiRLModules and single RLModules."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.sac.default_sac_rl_module import DefaultSACRLModule
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.rllib import RLlibCheckpoint
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.actor_critic import policy_network
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import LOG_PROBS


def load_rllib(checkpoint: RLlibCheckpoint, module: RLModule) -> Teacher:
    """Return the Q-network or the policy of an RLlib checkpoint, with the connectors of its observations.

    Args:
        checkpoint: checkpoint of an Algorithm, or its rl_module folder.
        module: the module loaded from it.

    Raises:
        ValueError: it has neither Q-values nor a policy of discrete actions, or its connectors are more than data.
    """
    return teacher_of_module(module, pipeline=checkpoint.load_observation_pipeline(module), source=checkpoint.uri)


def teacher_of_module(module: Any, *, pipeline: ObservationPipeline | None, source: str) -> Teacher:
    """Return a frozen copy of an RLModule: of its Q-values, or else of its policy.

    Raises:
        ValueError: it has neither, or its actions are not discrete.
    """
    if is_q_network(module):
        return Teacher(module, pipeline=pipeline, source=source)
    try:
        network = policy_network(module)
    except ValueError as error:
        raise CheckpointError(
            f"'{source}' cannot teach: {error}. Expected a DQN, or the policy of a PPO, APPO, IMPALA, SAC or BC, of "
            "discrete actions."
        ) from error
    return Teacher(network, pipeline=pipeline, outputs=LOG_PROBS, source=source)


def is_q_network(module: RLModule) -> bool:
    """Return whether a module has a Q-value for each action. SAC's critics evaluate one action at a time."""
    return hasattr(module, "compute_q_values") and not isinstance(module, DefaultSACRLModule)
