"""Gradient steps without a Learner and without Ray."""

from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rllib_kd.learner.optimizer_step import clip_gradients, step_with, take_step, target_updates

UNCLIPPED = SimpleNamespace(grad_clip=None, grad_clip_by="global_norm")


def test_a_step_is_along_the_gradients():
    param = torch.tensor([1.0, 2.0], requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=0.5)
    for _ in range(2):
        param.grad = torch.ones(2)
        take_step([param], optimizer, config=UNCLIPPED, num_learners=1)
    assert param.tolist() == [0.0, 1.0]
    assert param.grad.tolist() == [1.0, 1.0]


def adam_of(params):
    return torch.optim.Adam(params, lr=0.01, eps=1e-4, fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_without_pytorchs_overhead_is_adam(dtype):
    torch.manual_seed(0)
    ours = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True, dtype=dtype), torch.randn(1)]
    theirs = [param.detach().clone().requires_grad_(param.requires_grad) for param in ours]
    optimizers = adam_of(ours), adam_of(theirs)
    for optimizer in optimizers:
        optimizer.add_param_group({"params": [], "lr": 0.1})
    for step in range(5):
        if step == 3:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 0.1
                optimizer.load_state_dict(optimizer.state_dict())
        for params in (ours, theirs):
            loss = (params[0].sum().square() + params[1].exp().sum()) * (1 + step)
            for param in params:
                param.grad = None
            loss.backward()
        step_with(optimizers[0])
        optimizers[1].step()
        assert all(map(torch.equal, ours, theirs))
    assert [state["step"] for state in optimizers[0].state.values()] == [5.0, 5.0]


@pytest.mark.parametrize("option", ["amsgrad", "decoupled_weight_decay", "maximize"])
def test_options_of_adam_count(option):
    ours, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    options = {"fused": True, "weight_decay": 0.5, option: True}
    optimizers = torch.optim.Adam([ours], **options), torch.optim.Adam([theirs], **options)
    for step in range(4):
        for param in (ours, theirs):
            param.grad = torch.tensor([1.0, -2.0, 3.0]) / (1 + step)
        step_with(optimizers[0])
        optimizers[1].step()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("register", ["own", "global"])
def test_hooks_of_an_optimizer_are_called(register):
    param, called = torch.zeros(1, requires_grad=True), []
    optimizer = adam_of([param])
    register = optimizer.register_step_pre_hook if register == "own" else register_optimizer_step_pre_hook
    handle = register(lambda *_: called.append(1))
    for _ in range(3):
        param.grad = torch.ones(1)
        step_with(optimizer)
    handle.remove()
    step_with(optimizer)
    assert called == [1, 1, 1]


@pytest.mark.parametrize(
    ("by", "expected"),
    [("value", [[1.0, 1.0], [0.5]]), ("norm", [[0.6, 0.8], [0.5]]), ("global_norm", [[0.597, 0.796], [0.0995]])],
)
def test_clipping(by, expected):
    params = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True), torch.zeros(3)]
    params[0].grad, params[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.5])  # the last has none
    clip_gradients(params, SimpleNamespace(grad_clip=1.0, grad_clip_by=by))
    for param, gradient in zip(params[:2], expected, strict=True):
        torch.testing.assert_close(param.grad, torch.tensor(gradient), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("freq", "last", "env_steps", "moves", "new_last"),
    [
        (0, 0, 220, [True] * 6, 220),
        (50, 0, 220, [False, True, True, False, True, True], 200),
        (30, 0, 220, [True] * 6, 210),  # seven were due, and there are six steps
        (150, 0, 220, [False] * 5 + [True], 150),
        (300, 0, 220, [False] * 6, 0),
        (100, 100, 250, [False] * 5 + [True], 200),
    ],
)
def test_target_updates_are_spread_over_the_steps(freq, last, env_steps, moves, new_last):
    assert target_updates(6, freq=freq, last=last, env_steps=env_steps) == (moves, new_last)
