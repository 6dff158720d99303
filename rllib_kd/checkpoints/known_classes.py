"""RLlib's classes that are built without trust: RLModules and catalogs, under their current and former names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from rllib_kd.checkpoints.pickles import CheckpointError, Name

_APPO = "ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module.DefaultAPPOTorchRLModule"
_BC = "ray.rllib.algorithms.bc.torch.default_bc_torch_rl_module.DefaultBCTorchRLModule"
_DQN = "ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module.DefaultDQNTorchRLModule"
_PPO = "ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module.DefaultPPOTorchRLModule"
_SAC = "ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module.DefaultSACTorchRLModule"
_PPO_CATALOG = "ray.rllib.algorithms.ppo.ppo_catalog.PPOCatalog"

#: RLModules that may be built from their model config: their current and former names, with their locations.
MODULE_CLASSES = {
    "DefaultAPPOTorchRLModule": _APPO,
    "APPOTorchRLModule": _APPO,
    "DefaultBCTorchRLModule": _BC,
    "BCTorchRLModule": _BC,
    "DefaultDQNTorchRLModule": _DQN,
    "DQNRainbowTorchRLModule": _DQN,
    "DQNTorchRLModule": _DQN,
    "DefaultPPOTorchRLModule": _PPO,
    "PPOTorchRLModule": _PPO,
    "MARWILTorchRLModule": _PPO,  # today's MARWIL has PPO's module
    "DefaultSACTorchRLModule": _SAC,
    "SACTorchRLModule": _SAC,
    "TreeRLModule": "rllib_kd.networks.trees.module.TreeRLModule",
}

#: Catalogs, which build the parts of these modules.
CATALOG_CLASSES = {
    "BCCatalog": "ray.rllib.algorithms.bc.bc_catalog.BCCatalog",
    "DQNCatalog": "ray.rllib.algorithms.dqn.dqn_catalog.DQNCatalog",
    "DQNRainbowCatalog": "ray.rllib.algorithms.dqn.dqn_catalog.DQNCatalog",
    "EncoderFreeDQNCatalog": "rllib_kd.networks.dqn_module.EncoderFreeDQNCatalog",
    "MARWILCatalog": _PPO_CATALOG,
    "MixedDQNCatalog": "rllib_kd.networks.mixed.MixedDQNCatalog",
    "PPOCatalog": _PPO_CATALOG,
    "RecurrentDQNCatalog": "rllib_kd.networks.recurrent.RecurrentDQNCatalog",
    "SACCatalog": "ray.rllib.algorithms.sac.sac_catalog.SACCatalog",
}


def known_class(name: Any, known: Mapping[str, str], what: str, where: str) -> Any:
    """Return the class of a name in a checkpoint.

    Args:
        name: the name, as `read_pickle()` reads it.
        known: classes that may be built, by name.
        what: "RLModule" or "catalog", for messages.
        where: path of the file, for messages.

    Raises:
        CheckpointError: the name is not known.
    """
    if not isinstance(name, Name) or name.name not in known or name.module.split(".")[0] not in ("ray", "rllib_kd"):
        raise CheckpointError(
            f"'{where}' was refused: its {what} '{name}' is a custom class; loading it runs its code. Pass "
            "trust_checkpoint=True (--trust-checkpoint) if you trust the checkpoint. Without trust, these can be "
            f"loaded: {', '.join(sorted(known))}."
        )
    module, _, attribute = known[name.name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
