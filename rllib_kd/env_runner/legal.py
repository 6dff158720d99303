"""Masks of legal actions in EnvRunners: put into infos; and RLlib's own loop, with modules that heed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_kd.env_runner.passes import replaced_passes
from rllib_kd.environments.making import env_maker
from rllib_kd.environments.masked import METHOD, has_mask_method, with_masks_in_infos
from rllib_kd.networks.dqn_module import QF_PREDS

_PASSES = ("forward_inference", "forward_exploration")


@contextmanager
def choosing_legally(module: Any, mask_of: Callable[[Mapping[str, Any]], np.ndarray | Tensor | None]) -> Iterator[None]:
    """In this context, a module's passes choose legal actions: the best legal one instead of an illegal one.

    Passes that are replaced already stay as they are: π chooses legally. So do those of modules without PyTorch.

    Args:
        module: an RLModule.
        mask_of: returns the legal actions `[N, A]` of a batch, or None if all are legal.
    """
    is_torch = isinstance(module, torch.nn.Module)
    names = [name for name in _PASSES if name not in vars(module)] if is_torch else []
    with replaced_passes(module, {name: _legally(module, getattr(module, name), mask_of) for name in names}):
        yield


def _legally(
    module: Any, forward: Callable[..., Any], mask_of: Callable[[Mapping[str, Any]], Any]
) -> Callable[..., Any]:
    def choose(batch: Mapping[str, Any], **kwargs: Any) -> Any:
        outputs, mask = forward(batch, **kwargs), mask_of(batch)
        return outputs if mask is None else with_legal_actions(module, batch, outputs, torch.as_tensor(mask).bool())

    return choose


@torch.no_grad()
def with_legal_actions(
    module: Any, batch: Mapping[str, Any], outputs: Mapping[str, Any], mask: Tensor
) -> dict[str, Any]:
    """Return the outputs of a module's pass with legal actions.

    Args:
        module: the module.
        batch: its inputs, N rows.
        outputs: actions `[N]`, or the logits `[N, A]` of their distribution.
        mask: `[N, A]`, the legal actions.
    """
    if Columns.ACTIONS not in outputs:
        logits = outputs[Columns.ACTION_DIST_INPUTS]
        mask = mask.to(logits.device).view_as(logits)
        return {**outputs, Columns.ACTION_DIST_INPUTS: logits.masked_fill(~mask, -torch.inf)}
    actions = outputs[Columns.ACTIONS]
    mask = mask.to(actions.device).view(*actions.shape, -1)  # recurrent modules have an axis of time, of one step
    is_legal = mask.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
    if is_legal.all():
        return dict(outputs)
    inputs = {name: batch[name] for name in (Columns.OBS, Columns.STATE_IN) if name in batch}
    q = module.compute_q_values(inputs)[QF_PREDS].masked_fill(~mask, -torch.inf)
    return {**outputs, Columns.ACTIONS: torch.where(is_legal, actions, q.argmax(-1).to(actions.dtype))}


def put_masks_in_infos(config: Any, envs: Any) -> None:
    """Wrap the sub-environments of a vector env as `with_masks_in_infos()` does.

    Args:
        config: config with the environment.
        envs: the vector env, or a wrapper of it.

    Raises:
        ValueError: they have such a method, but run in other processes.
    """
    base = envs.unwrapped
    if isinstance(base, gym.vector.SyncVectorEnv):
        base.envs[:] = map(with_masks_in_infos, base.envs)
    elif isinstance(base, gym.vector.AsyncVectorEnv):
        one = env_maker(config.env, config.env_config)()
        has_method = has_mask_method(one)
        one.close()
        if has_method:
            raise ValueError(
                f"The environment gives its masks of legal actions by a method, {METHOD}(), which vector envs in other "
                "processes do not pass on: got gym_env_vectorize_mode='async'. Set it to 'sync', or put the mask into "
                "info['action_mask']."
            )
