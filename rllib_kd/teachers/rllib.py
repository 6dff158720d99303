"""Teachers from RLlib checkpoints of the new API stack: whole Algorithms, MultiRLModules and single RLModules."""

from __future__ import annotations

from ray.rllib.algorithms.sac.default_sac_rl_module import DefaultSACRLModule
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.teachers.base import Teacher


def load_rllib(uri: str, *, module_id: str = DEFAULT_MODULE_ID, trust_checkpoint: bool = False) -> Teacher:
    """Load the Q-network of an RLlib checkpoint, with the connectors through which it saw its environment.

    Args:
        uri: an absolute path, or a URI that pyarrow knows (`file://`, `s3://`, `gs://`), of an Algorithm's checkpoint
            directory or of its rl_module folder.
        module_id: which RLModule of the checkpoint.
        trust_checkpoint: whether its pickles may be executed. Otherwise it is read as data, which RLlib's own modules
            and connectors are.

    Raises:
        ValueError: there is nothing at `uri`, it is no RLlib checkpoint, its policy has no Q-values, or it holds more
            than data.
    """
    checkpoint = open_checkpoint(uri, module_id=module_id, trust_checkpoint=trust_checkpoint)
    module = checkpoint.load_module()
    if not is_q_network(module):
        raise CheckpointError(
            f"'{uri}' is a {type(module).__name__}, which has no Q-values. Expected the checkpoint of a DQN, or of "
            "another RLModule that implements compute_q_values()."
        )
    return Teacher(module, pipeline=checkpoint.load_observation_pipeline(module), source=uri)


def is_q_network(module: RLModule) -> bool:
    """Whether it has a Q-value for each of its actions. SAC's critics judge one action at a time."""
    return hasattr(module, "compute_q_values") and not isinstance(module, DefaultSACRLModule)
