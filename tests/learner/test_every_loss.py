"""What a Learner minimises, against RLlib's own and against the formulas."""

import numpy as np
import pytest
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import TD_ERROR_KEY

from rllib_kd import DistillDQNConfig
from rllib_kd.learner import losses
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from rllib_kd.learner.label_statistics import QStatistics
from tests.conftest import states
from tests.learner.learners import (
    MODEL,
    config_of,
    fragment,
    group_of,
    learnable,
    make_learner,
    nearest_atom,
    q_values,
    student_of,
    with_features,
)


def median_gap(teacher_q):
    """As a Learner measures it that has seen these labels."""
    statistics = QStatistics(teacher_q.shape[-1])
    statistics.update(teacher_q)
    return statistics.median_gap()


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("td_error_loss_fn", ["huber", "mse"])
def test_without_distillation_the_loss_is_rllibs_dqn(cluster, double_q, dueling, td_error_loss_fn):
    training = {"double_q": double_q, "dueling": dueling, "td_error_loss_fn": td_error_loss_fn, "gamma": 0.97}
    ours = make_learner(config_of(kd_coeff=0.0, td_coeff=1.0).training(**training))
    theirs = make_learner(
        DQNConfig().environment("CartPole-v1").rl_module(model_config=MODEL).training(**training), DQNTorchLearner
    )
    ours.module.set_state(theirs.module.get_state())
    for name, parameter in ours.module["default_policy"].named_parameters():  # targets of their own
        if name.startswith("_target"):
            parameter.data += 0.1
    theirs.module.set_state(ours.module.get_state())

    columns = fragment(64, names=DISTILLATION_COLUMNS + TD_COLUMNS)
    batch = {name: torch.as_tensor(column) for name, column in columns.items()}
    batch |= {
        Columns.NEXT_OBS: torch.as_tensor(states(64, seed=1)),
        "n_step": torch.randint(1, 4, (64,)).float(),
        "weights": torch.rand(64),  # of a prioritized replay
    }
    fwd_out = ours.module["default_policy"].forward_train(batch)
    errors = ours.objective("default_policy")(student_of(ours), batch, fwd_out).errors
    values, gradients = [], []
    for learner in (ours, theirs):
        module = learner.module["default_policy"]
        loss = learner.compute_loss_for_module(
            module_id="default_policy", config=learner.config, batch=batch, fwd_out=module.forward_train(batch)
        )
        module.zero_grad()
        loss.backward()
        values.append(loss.item())
        gradients.append([p.grad for n, p in module.named_parameters() if not n.startswith("_target")])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    their_errors = theirs.metrics.peek(("default_policy", TD_ERROR_KEY))
    np.testing.assert_allclose(errors.abs(), np.concatenate(their_errors), rtol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_every_loss_learns(cluster, loss):
    learner, columns = make_learner(config_of(loss)), learnable(512)
    if loss == "categorical":
        columns["teacher_probs"] = nearest_atom(columns["teacher_q"])
    first = learner.update([ray.put(columns)], num_gradient_steps=5)["default_policy"]["kd_loss"].peek()
    for _ in range(20):
        last = learner.update([], num_gradient_steps=10)["default_policy"]["kd_loss"].peek()
    assert last < 0.5 * first


@pytest.mark.parametrize("loss", [*losses.VALUE_LOSSES, *losses.POLICY_LOSSES])
@pytest.mark.parametrize("n_step", [1, 3])
def test_every_loss_goes_with_td(cluster, loss, n_step):
    learner = make_learner(config_of(loss, td_coeff=0.5).training(n_step=n_step))
    data = ray.put(fragment(names=DISTILLATION_COLUMNS + TD_COLUMNS))
    results = learner.update([data], num_gradient_steps=20)["default_policy"]
    terms = {name: results[name].peek() for name in ("kd_loss", "td_loss", "total_loss")}
    assert terms["total_loss"] == pytest.approx(terms["kd_loss"] + 0.5 * terms["td_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"loss": "mse", "normalize_q_values": False}, losses.mse),
        (
            {"loss": "huber", "normalize_q_values": False, "huber_delta": 0.3},
            lambda s, t: losses.huber(s, t, delta=0.3),
        ),
        (
            {"loss": "kl", "temperature": 0.5, "student_temperature": 2.0, "regret_coeff": 0.0},
            lambda s, t: losses.policy_kl(s, t, temperature=0.5, student_temperature=2.0),
        ),
        (
            {"loss": "kl", "temperature": 0.5, "student_temperature": 2.0},
            lambda s, t: losses.policy_kl(
                s, t, temperature=0.5, student_temperature=2.0, regret_coeff=1.0 / median_gap(t)
            ),
        ),
        (
            {"loss": "reverse_kl", "temperature": 0.5, "student_temperature": 2.0},
            lambda s, t: losses.reverse_kl(s, t, temperature=0.5, student_temperature=2.0),
        ),
        (
            {"loss": "jsd", "jsd_beta": 0.2, "temperature": 0.5, "student_temperature": 2.0},
            lambda s, t: losses.jsd(s, t, beta=0.2, temperature=0.5, student_temperature=2.0),
        ),
        ({"loss": "nll", "student_temperature": 2.0}, lambda s, t: losses.nll(s, t, student_temperature=2.0)),
        ({"loss": "margin", "margin": 0.3}, lambda s, t: losses.margin(s, t, margin=0.3)),
        (
            {"loss": "mse", "normalize_q_values": False, "gap_weighting": True},
            lambda s, t: losses.mse(s, t) * losses.gap_weights(t),
        ),
        (
            {"loss": "mse", "normalize_q_values": False, "td_coeff": [[0, 0.0], [1, 1.0]], "value_gate": True},
            lambda s, t: losses.mse(s, t) * losses.value_gate(s, t),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_setting_changes_the_loss_as_its_formula_says(cluster, settings, formula):
    learner, columns = make_learner(config_of(**settings)), fragment(64)
    columns["teacher_q"][::2] -= 200.0  # the student is above some of the values
    learner.update([ray.put(columns)])
    batch = {name: torch.as_tensor(column) for name, column in columns.items()}
    fwd_out = learner.module["default_policy"].compute_q_values(batch)
    loss = learner.compute_loss_for_module(
        module_id="default_policy", config=learner.config, batch=batch, fwd_out=fwd_out
    )
    torch.testing.assert_close(loss, formula(fwd_out["qf_preds"], batch["teacher_q"]).mean())


def test_a_value_loss_is_learned_in_normalised_coordinates_but_puts_out_q_values(cluster):
    learner = make_learner(config_of("mse"))
    columns = learnable(512)
    learner.update([ray.put(columns)])
    for _ in range(40):
        learner.update([], num_gradient_steps=25)
    error = q_values(learner, columns["obs"]).numpy() - columns["teacher_q"]
    deviation = error - error.mean(1, keepdims=True)
    # Both parts are small against their own scale (8 and 0.14), though these differ by a factor of 50.
    assert np.sqrt(np.mean(error.mean(1) ** 2)) < 0.2 * 8
    assert np.sqrt(np.mean(deviation**2)) < 0.2 * 0.14


def test_raw_values_are_learned_where_normalisation_is_off(cluster):
    learner = make_learner(config_of("mse", normalize_q_values=False))
    columns = fragment()
    before = q_values(learner, columns["obs"])
    results = learner.update([ray.put(columns)], num_gradient_steps=1)
    kd_loss = results["default_policy"]["kd_loss"].peek()
    assert kd_loss == pytest.approx(losses.mse(before, torch.as_tensor(columns["teacher_q"])).mean().item(), rel=0.1)


def test_coefficients_change_the_loss_as_the_formula_says(cluster):
    learner = make_learner(config_of("mse", normalize_q_values=False, td_coeff=1.0))
    columns = fragment(64, names=DISTILLATION_COLUMNS + TD_COLUMNS)
    batch = {name: torch.as_tensor(column) for name, column in columns.items()}
    batch |= {Columns.NEXT_OBS: batch["obs"], "n_step": torch.ones(64)}
    fwd_out = learner.module["default_policy"].forward_train(batch)

    def total(kd, td):
        learner.kd_coeff, learner.td_coeff = kd, td
        return learner.compute_loss_for_module(
            module_id="default_policy", config=learner.config, batch=batch, fwd_out=fwd_out
        ).item()

    assert total(2.0, 3.0) == pytest.approx(2 * total(1.0, 0.0) + 3 * total(0.0, 1.0), rel=1e-5)


@pytest.mark.parametrize("td_coeff", [0.0, 1.0])
def test_feature_matching_adds_the_distance_of_the_mapped_features(cluster, td_coeff):
    learner = make_learner(config_of("mse", normalize_q_values=False, feature_coeff=0.1, td_coeff=td_coeff))
    columns = with_features(64, names=DISTILLATION_COLUMNS + TD_COLUMNS)
    learner.update([ray.put(columns)])
    torch.nn.init.normal_(student_of(learner).feature_map.weight)
    module = learner.module["default_policy"]
    batch = {name: torch.as_tensor(column) for name, column in columns.items()}
    batch |= {Columns.NEXT_OBS: torch.as_tensor(states(64, seed=1)), "n_step": torch.ones(64)}
    learner.kd_coeff, learner.td_coeff = 1.0, 0.0
    fwd_out = module.forward_train(batch) if td_coeff else module.compute_q_values(batch)
    loss = learner.compute_loss_for_module(
        module_id="default_policy", config=learner.config, batch=batch, fwd_out=fwd_out
    )
    hidden = module.encoder({"obs": batch["obs"]})["encoder_out"]
    expected = losses.mse(fwd_out["qf_preds"], batch["teacher_q"]) + 0.1 * (
        student_of(learner).feature_map(hidden) - batch["teacher_features"]
    ).square().sum(-1)
    torch.testing.assert_close(loss, expected.mean())
    learned = [*module.encoder.parameters(), *student_of(learner).feature_map.parameters()]
    gradients = torch.autograd.grad(loss, learned, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.mean(), learned))


def test_the_map_learns_with_the_student_and_is_no_part_of_it(cluster):
    learner = make_learner(config_of("kl", feature_coeff=1.0))
    plain = make_learner(config_of("kl"))
    names = list(learner.get_state()["rl_module"]["default_policy"])
    learner.update([ray.put(with_features(512))], num_gradient_steps=1)
    first = learner.update([], num_gradient_steps=1)["default_policy"]["kd_loss"].peek()
    for _ in range(20):
        last = learner.update([], num_gradient_steps=10)["default_policy"]["kd_loss"].peek()
    assert last < 0.3 * first
    assert list(learner.get_state()["rl_module"]["default_policy"]) == names
    assert names == list(plain.get_state()["rl_module"]["default_policy"])

    copy = make_learner(config_of("kl", feature_coeff=1.0))
    copy.set_state(learner.get_state())
    torch.testing.assert_close(student_of(copy).feature_map.state_dict(), student_of(learner).feature_map.state_dict())
    torch.testing.assert_close(student_of(copy).training_weights, student_of(learner).training_weights)
    moments = [each.get_optimizer("default_policy").state_dict()["state"] for each in (learner, copy)]
    assert len(moments[0]) == len(moments[1]) == 6  # two layers and the map
    copy.update([ray.put(with_features(512))], num_gradient_steps=1)


@pytest.mark.parametrize("students", [{}, {"students": {"one": {"fcnet_hiddens": [8]}, "two": {"fcnet_hiddens": [4]}}}])
def test_a_run_that_matched_features_goes_on_without(students):
    learner = make_learner(config_of("kl", feature_coeff=1.0, **students))
    copy, unmapped = (make_learner(config_of("kl", **students)) for _ in range(2))
    learner.update([with_features(512)], num_gradient_steps=5)
    copy.set_state(learner.get_state())
    copy.update([fragment()], num_gradient_steps=1)
    (group,) = copy.groups.values()
    unmapped.update([fragment()], num_gradient_steps=1)
    for name in group.students:
        assert group.students[name].feature_map is None
    for own in group.learners:
        assert {float(state["step"]) for state in own.optimizer.state.values()} == {6.0}  # its moments were restored
    names = [list(each.get_state()["optimizer"]) for each in (copy, unmapped)]
    assert names[0] == names[1]
    saved = copy.get_state()["optimizer"].values()
    assert [len(state["state"]["param_groups"]) for state in saved] == [1]


def test_a_run_that_did_not_match_features_goes_on_with_them():
    learner, copy = make_learner(config_of("kl")), make_learner(config_of("kl", feature_coeff=1.0))
    learner.update([fragment()], num_gradient_steps=5)
    copy.set_state(learner.get_state())
    copy.update([with_features()], num_gradient_steps=1)
    assert student_of(copy).feature_map.weight.any()


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_every_loss_heeds_the_weights(cluster, loss):
    """Rows that weigh nothing might as well not be there."""
    learner = make_learner(config_of(loss))
    columns = fragment(64)
    if loss == "categorical":
        columns["teacher_probs"] = nearest_atom(columns["teacher_q"])
    learner.update([ray.put(columns)])
    batch = {name: torch.as_tensor(column) for name, column in columns.items()}

    def loss_of(batch):
        fwd_out = learner.module["default_policy"].compute_q_values(batch)
        return learner.compute_loss_for_module(
            module_id="default_policy", config=learner.config, batch=batch, fwd_out=fwd_out
        )

    half = {name: column[:32] for name, column in batch.items()}
    weights = (torch.arange(64) < 32).float()
    torch.testing.assert_close(loss_of({**batch, "weights": weights}), 0.5 * loss_of(half))


def test_the_automatic_temperature_is_a_share_of_the_median_gap(cluster):
    learner = make_learner(config_of("kl", temperature="auto"))
    columns = fragment(4_096)
    learner.update([ray.put(columns)])
    median_gap = np.median(np.abs(np.diff(columns["teacher_q"], axis=1)))
    assert group_of(learner).temperature == pytest.approx(DistillDQNConfig.AUTO_TEMPERATURE_GAPS * median_gap, rel=0.2)
    fixed = make_learner(config_of("kl", temperature=0.3))
    fixed.update([ray.put(columns)])
    assert group_of(fixed).temperature == 0.3


def test_outputs_count_in_median_gaps_unless_they_are_q_values(cluster):
    columns = ray.put(fragment(4_096, names=DISTILLATION_COLUMNS + TD_COLUMNS))
    for settings, expected in (
        ({"temperature": "auto"}, lambda learner: DistillDQNConfig.AUTO_TEMPERATURE_GAPS),
        ({"temperature": 0.5}, lambda learner: 0.5 / group_of(learner).statistics.median_gap()),
        ({"temperature": 0.5, "td_coeff": 1.0}, lambda learner: 0.5),
        ({"temperature": 0.5, "td_coeff": [[0, 0.0], [100, 1.0]]}, lambda learner: 0.5),  # all the time
        ({"temperature": 0.5, "loss": "mse"}, lambda learner: 0.5),
        ({"temperature": 0.5, "student_temperature": 1.0}, lambda learner: 1.0),
    ):
        learner = make_learner(config_of(**settings))
        learner.update([columns])
        assert group_of(learner).student_temperature == pytest.approx(expected(learner))
