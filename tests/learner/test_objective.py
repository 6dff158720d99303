"""The loss as a value, and what a subclass may make of RLlib's hook `compute_loss_for_module`."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from rllib_kd import DistillDQNTorchLearner
from rllib_kd.learner import losses
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from rllib_kd.learner.label_statistics import QScale
from rllib_kd.learner.objective import Objective
from rllib_kd.learner.stack import StackedStudents
from rllib_kd.learner.student import Student
from tests.conftest import make_q_module, states
from tests.learner.learners import PRIORITIZED, config_of, fragment, group_of, make_learner, q_values

FAMILY = {name: {"fcnet_hiddens": [8], "fcnet_activation": "relu"} for name in ("a", "b")}


class OwnLossLearner(DistillDQNTorchLearner):
    """A squared error of its own, without super(), as users of RLlib write them."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = (fwd_out["qf_preds"] - batch["teacher_q"]).square().mean()
        self.metrics.log_value((module_id, "own_loss"), loss.item(), window=1)
        return loss


class PenaltyLearner(DistillDQNTorchLearner):
    """The package's loss, and a penalty."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        return loss + 0.5 * fwd_out["qf_preds"].square().mean()


def make_family(learner_class):
    return make_learner(config_of().distillation(students=FAMILY), learner_class)


def unit_fragment():
    columns = fragment(256, names=DISTILLATION_COLUMNS + TD_COLUMNS)
    return columns | {"teacher_q": columns["obs"][:, :2].copy()}  # near what a new student puts out


@pytest.mark.parametrize(
    ("distillation", "training"),
    [({}, {}), ({}, PRIORITIZED), ({"td_coeff": 1.0}, PRIORITIZED), ({"loss": "mse"}, PRIORITIZED)],
    ids=["uniform", "prioritized", "prioritized-td", "prioritized-mse"],
)
def test_a_loss_without_super_is_minimised(cluster, distillation, training):
    config = config_of(**{"normalize_q_values": False, **distillation}).training(**training)
    learner, columns = make_learner(config, OwnLossLearner), unit_fragment()
    first = learner.update([ray.put(columns)], num_gradient_steps=1)["default_policy"]
    for _ in range(10):
        last = learner.update([], num_gradient_steps=10)["default_policy"]
    assert last["own_loss"].peek() < 0.3 * first["own_loss"].peek()
    # What is minimised, and beside it the distillation loss that it is not.
    assert first["total_loss"].peek() == pytest.approx(first["own_loss"].peek(), rel=1e-5)
    assert np.isfinite(last["kd_loss"].peek())
    assert ("td_loss" in last) == ("td_coeff" in distillation)
    error = q_values(learner, columns["obs"]).numpy() - columns["teacher_q"]
    assert np.square(error).mean() < 0.3 * first["own_loss"].peek()


@pytest.mark.parametrize("td_coeff", [0.0, 1.0])
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_it_gets_q_values_beside_its_labels(loss, td_coeff):
    seen = []

    class Watching(OwnLossLearner):
        def compute_loss_for_module(self, *, batch, fwd_out, **kwargs):
            seen.append((batch, fwd_out))
            return super().compute_loss_for_module(batch=batch, fwd_out=fwd_out, **kwargs)

    learner = make_learner(config_of(loss, td_coeff=td_coeff).training(lr=0.0), Watching)
    learner.update([fragment(256, names=DISTILLATION_COLUMNS + TD_COLUMNS)], num_gradient_steps=1)
    ((batch, fwd_out),) = seen
    torch.testing.assert_close(fwd_out["qf_preds"].detach(), q_values(learner, batch["obs"]))
    if td_coeff:
        torch.testing.assert_close(fwd_out["qf_next_preds"], q_values(learner, batch["new_obs"]))


def test_its_priorities_are_the_objectives_errors(cluster):
    config = config_of("huber", normalize_q_values=False).training(**PRIORITIZED, train_batch_size_per_learner=2_048)
    learner = make_learner(config, OwnLossLearner)
    columns = unit_fragment()
    rows = torch.arange(256)[torch.as_tensor(columns["valid"])]
    expected = losses.huber(q_values(learner, columns["obs"]), torch.as_tensor(columns["teacher_q"]))[rows]
    learner.update([ray.put(columns)], num_gradient_steps=1)
    priorities = group_of(learner).replay.gather(rows, ("priority",))["priority"]
    is_drawn = priorities != 1.0
    assert is_drawn.float().mean() > 0.99
    torch.testing.assert_close(priorities[is_drawn], (expected**0.6)[is_drawn], rtol=1e-4, atol=1e-5)


def test_students_with_a_loss_of_their_own_are_not_stacked(cluster):
    own, ours = make_family(OwnLossLearner), make_family(DistillDQNTorchLearner)
    assert [type(each) for each in group_of(ours).learners] == [StackedStudents]
    assert [type(each) for each in group_of(own).learners] == [Student, Student]
    first = own.update([ray.put(unit_fragment())], num_gradient_steps=1)
    for _ in range(10):
        last = own.update([], num_gradient_steps=10)
    for name in FAMILY:
        assert last[name]["own_loss"].peek() < 0.3 * first[name]["own_loss"].peek()
        assert np.isfinite(last[name]["kd_loss"].peek())


def test_a_loss_with_super_adds_to_it(cluster):
    learner = make_learner(config_of("mse", normalize_q_values=False).training(lr=0.0), PenaltyLearner)
    columns = unit_fragment()
    results = learner.update([ray.put(columns)], num_gradient_steps=200)["default_policy"]
    valid = columns["valid"]
    q = q_values(learner, columns["obs"])[valid]
    kd_loss = losses.mse(q, torch.as_tensor(columns["teacher_q"])[valid]).mean().item()
    assert results["kd_loss"].peek() == pytest.approx(kd_loss, rel=0.05)
    penalty = 0.5 * q.square().mean().item()
    assert results["total_loss"].peek() - results["kd_loss"].peek() == pytest.approx(penalty, rel=0.05)


def test_an_algorithm_trains_with_it(build, cartpole_config):
    algo = build(cartpole_config.training(learner_class=OwnLossLearner, **PRIORITIZED))
    while "own_loss" not in (results := algo.train()["learners"]["default_policy"]):
        assert algo.num_env_steps < 2_000
    assert np.isfinite(results["total_loss"])


# --- The objective itself, without a Learner --------------------------------------------------------------------------


def student_and_batch():
    module = make_q_module(inference_only=False)
    module.make_target_networks()
    student = Student("s", module, None, normalizes=False, normalizes_obs=False, averages=False, regret_coeff=0.0)
    rng = np.random.default_rng(0)
    columns = fragment(32, names=DISTILLATION_COLUMNS + TD_COLUMNS)
    batch = {name: torch.as_tensor(column) for name, column in columns.items()}
    batch |= {"new_obs": torch.as_tensor(states(32, seed=1)), "n_step": torch.ones(32)}
    return student, batch | {"weights": torch.as_tensor(rng.random(32), dtype=torch.float32)}


@pytest.mark.parametrize(("kd_coeff", "td_coeff"), [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_the_total_is_the_weighted_sum_of_the_terms(kd_coeff, td_coeff):
    student, batch = student_and_batch()
    config = config_of("mse", td_coeff=1.0)
    fwd_out = student.td_outputs(batch, double_q=True)
    loss = Objective(config, kd_coeff, td_coeff, temperature=1.0, student_temperature=1.0, median_gap=1.0)(
        student, batch, fwd_out
    )
    weights, q = batch["weights"], fwd_out["qf_preds"]
    td_error = losses.td_error(
        batch, q, fwd_out["qf_target_next_preds"], next_q=fwd_out["qf_next_preds"], gamma=config.gamma
    )
    terms = {
        "kd_loss": (weights * losses.mse(q, batch["teacher_q"])).mean(),
        "td_loss": (weights * losses.td(td_error)).mean(),
    }
    torch.testing.assert_close(loss.total, kd_coeff * terms["kd_loss"] + td_coeff * terms["td_loss"])
    coefficients = {"kd_loss": kd_coeff, "td_loss": td_coeff}
    assert set(loss.terms) == {name for name, coefficient in coefficients.items() if coefficient}
    for name, term in loss.terms.items():
        torch.testing.assert_close(term, terms[name].detach())
    expected = td_error if td_coeff else losses.mse(q, batch["teacher_q"])
    torch.testing.assert_close(loss.errors, expected.detach())
    assert loss.total.requires_grad
    assert not loss.errors.requires_grad


def test_stacked_students_have_a_row_of_errors_and_a_term_each():
    student, batch = student_and_batch()
    q = torch.randn(3, 32, 2, requires_grad=True)
    loss = Objective(config_of("kl"), 1.0, 0.0, temperature=0.5, student_temperature=0.5, median_gap=1.0)(
        student, batch, {"qf_preds": q}
    )
    assert loss.errors.shape == (3, 32)
    assert loss.terms["kd_loss"].shape == (3,)
    torch.testing.assert_close(loss.total.detach(), loss.terms["kd_loss"].sum())


@pytest.mark.parametrize("loss", ["mse", "huber"])
@pytest.mark.parametrize("num_students", [None, 2])
def test_value_losses_are_zero_where_legal_q_values_are_equal(loss, num_students):
    """Whatever the student puts out for illegal actions."""
    scale = QScale(3.0, 5.0, np.array([0.2, -0.3, 0.1]), 0.1)
    torch.manual_seed(0)
    outputs, mask = torch.randn(20, 3), torch.rand(20, 3) < 0.6
    mask[:, 1] = True
    teacher_q = scale.denormalize(outputs).masked_fill(~mask, -torch.inf)
    student_q = (outputs if num_students is None else outputs.expand(num_students, 20, 3)).clone().requires_grad_()
    config = config_of(loss)
    config.gap_weighting = config.value_gate = False
    student = SimpleNamespace(scale=scale, feature_map=None, own_states=None, to_q=scale.denormalize)
    objective = Objective(config, 1.0, 0.0, temperature=1.0, student_temperature=1.0, median_gap=1.0)
    found = objective(student, {"teacher_q": teacher_q}, {"qf_preds": student_q})
    torch.testing.assert_close(found.errors, torch.zeros(student_q.shape[:-1]), atol=1e-5, rtol=0.0)
    moved = scale.normalize(scale.denormalize(student_q) + 0.5)  # of all actions, by as much
    moved_loss = objective(student, {"teacher_q": teacher_q}, {"qf_preds": moved})
    assert moved_loss.errors.min() > 1e-3
    (gradient,) = torch.autograd.grad(moved_loss.total, student_q)
    assert torch.isfinite(gradient).all()
