"""Gradients that are written out, against those of autograd."""

from types import SimpleNamespace

import pytest
import torch

from rllib_kd.learner.gradients import Autograd, WrittenOut, gradient_of
from rllib_kd.learner.label_statistics import QStatistics
from rllib_kd.learner.objective import Objective
from rllib_kd.learner.observation_scale import NORMALIZED_OBS, ObservationStatistics
from rllib_kd.learner.own_states import OwnStates
from rllib_kd.learner.stack import StackedStudents
from rllib_kd.learner.student import Student
from rllib_kd.networks.stacking import linears_of
from rllib_kd.wire import ACTING, TEACHER_Q
from tests.conftest import make_q_module, states
from tests.networks.test_stacking import linear

CONFIG = {"loss": "kl", "gap_weighting": False, "value_gate": False, "feature_coeff": 0.0, "bf16": False}
SHAPES = [([], "relu"), ([8], "relu"), ([3], "relu"), ([5], "tanh"), ([4, 6], "tanh"), ([9, 7, 5], "relu")]


def student(hidden, activation="relu", *, seed=0, regret_coeff=1.0, normalizes=False, normalizes_obs=False, **kwargs):
    names = {"fcnet_hiddens": hidden, "fcnet_activation": activation}
    module = make_q_module(**names, seed=seed) if hidden else linear(seed=seed)
    given = {"normalizes": normalizes, "normalizes_obs": normalizes_obs, "averages": True, **kwargs}
    return Student(f"s{seed}", module, torch.optim.Adam(module.parameters()), regret_coeff=regret_coeff, **given)


def objective(*, kd_coeff=1.0, td_coeff=0.0, student_temperature=1.0, **config):
    temperatures = {"temperature": 0.3, "student_temperature": student_temperature}
    return Objective(SimpleNamespace(**{**CONFIG, **config}), kd_coeff, td_coeff, **temperatures, median_gap=0.7)


def a_batch(num_rows=16):
    torch.manual_seed(1)
    obs = torch.from_numpy(states(num_rows))
    return {"obs": obs, NORMALIZED_OBS: obs / 2, TEACHER_Q: torch.randn(num_rows, 2) * 3}


def enter(learner):
    statistics = ObservationStatistics(4)
    statistics.update(torch.from_numpy(states(50)))
    labels = QStatistics(2)
    labels.update(torch.tensor([[3.0, 9.0], [8.0, 2.0], [5.0, 5.5]]))
    learner.enter(labels.scale(), statistics.scale())
    return learner


def both(learner, goal, batch):
    """The losses of both ways, and the gradients that they set."""
    enter(learner)
    ways = gradient_of(learner, goal, None, uses_td=False), Autograd(learner, goal, goal, uses_td=False)
    assert isinstance(ways[0], WrittenOut)
    found = []
    for way in ways:
        for param in learner.params:
            param.grad = torch.full_like(param, torch.nan)  # that of the last step must be forgotten
        loss = way({**batch, **goal.target_columns(batch)})
        found.append((loss.total, loss.terms, loss.errors, [param.grad for param in learner.params]))
    return found


@pytest.mark.parametrize(("hidden", "activation"), SHAPES)
@pytest.mark.parametrize("normalizes_obs", [False, True])
def test_of_one_student(hidden, activation, normalizes_obs):
    learner = student(hidden, activation, normalizes_obs=normalizes_obs)
    torch.testing.assert_close(*both(learner, objective(), a_batch()))


def stack(**kwargs):
    own = [student(*shape, seed=i, regret_coeff=float(i % 3), **kwargs) for i, shape in enumerate([*SHAPES, SHAPES[1]])]
    return StackedStudents(own)


def test_of_students_side_by_side_of_several_depths_and_activations():
    torch.testing.assert_close(*both(stack(), objective(), a_batch()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: student([8]), stack])
@pytest.mark.parametrize("what", ["kd_coeff", "student_temperature", "masks", "priorities", "states", "no regret"])
def test_with_all_that_the_loss_takes(make, what):
    learner, batch, goal = make(), a_batch(), objective()
    members = learner.members if isinstance(learner, StackedStudents) else [learner]
    if what in ("kd_coeff", "student_temperature"):
        goal = objective(**{what: 0.3})
    if what == "masks":
        batch[TEACHER_Q][::3, 1] = -torch.inf
    if what in ("priorities", "states"):
        batch["weights"] = torch.rand(16)
    if what == "states":
        batch[ACTING] = torch.arange(16) % 3
        for i, member in enumerate(members):
            member.own_states = OwnStates.of(i % 2, 2)
    if what == "no regret":
        for member in members:
            member.regret_coeff = None
    if isinstance(learner, StackedStudents):
        learner = StackedStudents(members)
    torch.testing.assert_close(*both(learner, goal, batch), rtol=1e-4, atol=1e-6)


def with_masks(batch):
    batch[TEACHER_Q][::3, 1] = -torch.inf
    return batch


@pytest.mark.parametrize("batch", [a_batch(), with_masks(a_batch())])
@pytest.mark.parametrize("loss", ["mse", "huber", "reverse_kl", "jsd", "nll", "margin", "kl"])
def test_of_all_losses_of_students_side_by_side(loss, batch):
    for gap_weighting in (False, True):
        goal = objective(loss=loss, gap_weighting=gap_weighting, huber_delta=0.5, jsd_beta=0.3, margin=0.2)
        found = both(stack(normalizes=loss in ("mse", "huber")), goal, batch)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [a_batch(), with_masks(a_batch())])
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_of_value_losses_of_one_student(loss, batch):
    batch = {**batch, "weights": torch.rand(16)}
    for normalizes in (False, True):
        own = student([8], normalizes=normalizes)
        torch.testing.assert_close(*both(own, objective(loss=loss, huber_delta=0.5), batch), rtol=1e-4, atol=1e-6)


def test_labels_may_be_of_another_precision():
    batch = a_batch()
    batch[TEACHER_Q] = batch[TEACHER_Q].double()
    for learner in (student([8]), stack()):
        ours, theirs = both(learner, objective(), batch)
        torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-4, atol=1e-6)


def way(learner, loss=None, *, uses_td=False, **kwargs):
    return type(gradient_of(enter(learner), objective(**kwargs), loss, uses_td=uses_td))


def test_autograd_makes_those_of_another_loss_or_network():
    assert way(student([8])) is WrittenOut
    assert way(student([8], "silu")) is Autograd
    assert way(StackedStudents([student([8]), student([8], "elu", seed=1)])) is Autograd
    assert way(student([8], rounds=True)) is Autograd
    assert way(student([8]), lambda *_: None) is Autograd
    assert way(student([8]), uses_td=True, td_coeff=1.0) is Autograd
    for other in ({"loss": "reverse_kl"}, {"gap_weighting": True}, {"bf16": True}, {"feature_coeff": 1.0}):
        assert way(student([8]), **other) is Autograd
    for hook in ("register_hook", "register_post_accumulate_grad_hook"):
        hooked = student([8])
        getattr(hooked.params[0], hook)(lambda _: None)
        assert way(hooked) is Autograd
    hooked = student([8])
    hooked.module.register_full_backward_hook(lambda *_: None)
    assert way(hooked) is Autograd


def frozen_later(own):
    own.module.af.requires_grad_(False)


def frozen_from_the_beginning(own):
    own.params.pop()


def column_major(own):
    """As weights are that come from a library with matrices `[inputs, units]`."""
    own.params[0].data = own.params[0].data.t().contiguous().t()


def tied(own):
    layers = linears_of(own.module)
    layers[1].weight = layers[0].weight
    own.params.remove(next(param for param in own.params if param.shape == (4, 4)))


def patched(own):
    layer = linears_of(own.module)[0]
    layer.forward = lambda x, forward=layer.forward: forward(x) * 0.25


@pytest.mark.parametrize("change", [frozen_later, frozen_from_the_beginning, column_major, tied, patched])
def test_autograd_makes_those_of_layers_that_are_not_as_they_were_made(change):
    own = student([4, 4])
    assert way(own) is WrittenOut
    own.leave()
    own.forget()  # weights of before, of other parameters
    change(own)
    assert way(own) is Autograd


def test_autograd_makes_those_in_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert way(student([8])) is Autograd


def test_weights_that_are_replaced_in_an_update_count_at_once():
    own, goal, batch = enter(student([8])), objective(), a_batch()
    written = gradient_of(own, goal, None, uses_td=False)
    for param in own.params:
        param.data = param.data + 0.1
    loss = written(batch)
    assert isinstance(written, WrittenOut)
    torch.testing.assert_close(loss.total, goal(own, batch, own.outputs(batch)).total)
