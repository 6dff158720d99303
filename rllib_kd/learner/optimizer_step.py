"""One step along gradients: all-reduce over Learners, clipping, optimizer; and when target networks update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


def take_step(params: Sequence[Tensor], optimizer: torch.optim.Optimizer, *, config: Any, num_learners: int) -> None:
    """Step along the gradients that parameters have.

    Args:
        params: all parameters of the optimizer.
        optimizer: optimizer of `params`.
        config: config with `grad_clip` and `grad_clip_by`.
        num_learners: ≥ 1. If there are several, all must call this, and step along the mean of their gradients.
    """
    if num_learners > 1:
        average_gradients(params, num_learners)
    clip_gradients(params, config)
    step_with(optimizer)


@torch.no_grad()
def step_with(optimizer: torch.optim.Optimizer) -> None:
    """Do what `optimizer.step()` does. Of a fused Adam without hooks, the arithmetic alone: a fifth of the time.

    The rest is what PyTorch does around each step: hooks, profiling, checks and sorting of the parameters. For small
    networks, it takes as long as their backward pass.
    """
    groups = optimizer.param_groups
    is_adam = type(optimizer) is torch.optim.Adam and all(_is_usual(group) for group in groups)
    params = [[param for param in group["params"] if param.grad is not None] for group in groups]
    kinds = {(param.device, param.dtype) for own in params for param in own}
    is_first = any(param not in optimizer.state for own in params for param in own)
    if not is_adam or _has_hooks(optimizer) or is_first or len(kinds) > 1:
        optimizer.step()
        return
    for group, own in zip(groups, params, strict=True):
        if not own:
            continue
        states = [optimizer.state[param] for param in own]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            own,
            [param.grad for param in own],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


def _is_usual(group: Mapping[str, Any]) -> bool:
    return group["fused"] and not group["amsgrad"] and not group.get("decoupled_weight_decay")


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    own = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return any(len(hooks) for hooks in (*own, _global_optimizer_pre_hooks, _global_optimizer_post_hooks))


def average_gradients(params: Sequence[Tensor], num_learners: int) -> None:
    """Replace the gradients by their means over all Learners: one all-reduce of one flat buffer."""
    grads = [param.grad for param in params if param.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(flat)
    flat /= num_learners
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def clip_gradients(params: Sequence[Tensor], config: Any) -> None:
    """Clip in place, without a Python loop over the parameters, and without waiting for the device."""
    if config.grad_clip is None:
        return
    if config.grad_clip_by == "value":
        torch.nn.utils.clip_grad_value_(params, config.grad_clip)
    elif config.grad_clip_by == "norm":  # of each tensor
        grads = [param.grad for param in params if param.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads))
        torch._foreach_mul_(grads, (config.grad_clip / (norms + 1e-6)).clamp(max=1.0).unbind())
    else:
        torch.nn.utils.clip_grad_norm_(params, config.grad_clip)


def target_updates(num_steps: int, *, freq: int, last: int, env_steps: int) -> tuple[list[bool], int]:
    """Spread the target updates that are due evenly over the gradient steps of one call.

    RLlib makes one gradient step in each call, and checks `target_network_update_freq` after each.

    Args:
        num_steps: gradient steps of this call.
        freq: env steps between two updates; 0 updates after each gradient step.
        last: env steps at the last update.
        env_steps: sampled so far.

    Returns:
        Whether the targets are updated after each of the steps, and the env steps at which the last update was due.
    """
    since = env_steps - last
    due = min(num_steps, since // freq) if freq else num_steps
    moves = [(step + 1) * due // num_steps > step * due // num_steps for step in range(num_steps)]
    return moves, env_steps - since % freq if freq else env_steps
