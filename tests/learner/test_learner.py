"""The Learner against RLlib's own, and against a plain loop."""

import numpy as np
import pytest
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import TD_ERROR_KEY

from rllib_kd import DistillDQNConfig, DistillDQNTorchLearner
from rllib_kd.learner import losses
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from rllib_kd.learner.label_statistics import QStatistics
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, states

MODEL = {"fcnet_hiddens": [16], "fcnet_activation": "relu"}
C51 = {"num_atoms": 11, "v_min": 80.0, "v_max": 120.0}


#: No coordinates but those of the environment and of the teacher.
RAW = {"normalize_q_values": False, "normalize_observations": False}


def config_of(loss="kl", **distillation) -> DistillDQNConfig:
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .rl_module(model_config=MODEL)
        .training(train_batch_size_per_learner=32, lr=1e-2, **(C51 if loss == "categorical" else {}))
        .distillation(teacher="cartpole", loss=loss, **distillation)
        .debugging(seed=0)
    )


def group_of(learner):
    return learner.groups["default_policy"]


def student_of(learner):
    return group_of(learner).students["default_policy"]


def make_learner(config, learner_class=DistillDQNTorchLearner):
    config = config.copy(copy_frozen=False)
    config.validate()
    spec = config.get_multi_rl_module_spec(
        spaces={"default_policy": (CARTPOLE_OBS, CARTPOLE_ACTIONS)}, inference_only=False
    )
    learner = learner_class(config=config, module_spec=spec)
    learner.build()
    return learner


def fragment(count=256, seed=0, names=DISTILLATION_COLUMNS):
    rng = np.random.default_rng(seed)
    columns = {
        "obs": states(count, seed=seed),
        "teacher_q": (100 + rng.normal(size=(count, 1)) * 8 + rng.normal(size=(count, 2)) * 0.2).astype(np.float32),
        "actions": rng.integers(2, size=count),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminateds": rng.random(count) < 0.1,
        "truncateds": np.zeros(count, dtype=bool),
        "valid": np.arange(count) % 16 != 15,
    }
    return {name: columns[name] for name in names}


def median_gap(teacher_q):
    """As a Learner measures it that has seen these labels."""
    statistics = QStatistics(teacher_q.shape[-1])
    statistics.update(teacher_q)
    return statistics.gap_quantile(0.5)


def q_values(learner, obs):
    with torch.no_grad():
        return learner.module["default_policy"].compute_q_values({"obs": torch.as_tensor(obs)})["qf_preds"]


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


def learnable(count: int) -> dict:
    """Labels that a small network can represent: linear in the observation, with the scales of a good teacher."""
    columns = fragment(count)
    columns["teacher_q"] = 100 + 8 * columns["obs"][:, :1] + 0.2 * columns["obs"][:, 1:3]
    return columns


def nearest_atom(teacher_q: np.ndarray) -> np.ndarray:
    """Return distributions without any spread, on the support of `C51`."""
    atoms = np.linspace(C51["v_min"], C51["v_max"], C51["num_atoms"])
    nearest = np.abs(teacher_q[..., None] - atoms).argmin(-1)
    return np.eye(C51["num_atoms"], dtype=np.float32)[nearest]


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
            lambda s, t: losses.policy_kl_and_regret(
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


def test_an_update_without_steps_only_takes_in_data(cluster):
    learner = make_learner(config_of())
    before = q_values(learner, states(8))
    results = learner.update([ray.put(fragment())])
    assert torch.equal(q_values(learner, states(8)), before)
    assert len(group_of(learner).replay) == 256
    assert "kd_loss" not in results["default_policy"]
    assert 0 <= results["default_policy"]["teacher_agreement"].peek() <= 1


def test_metrics_are_those_of_states_not_yet_learned(cluster):
    learner = make_learner(config_of())
    columns = fragment()
    teacher_q = torch.as_tensor(columns["teacher_q"])
    chosen = q_values(learner, columns["obs"]).argmax(-1)
    results = learner.update([ray.put(columns)], num_gradient_steps=50)["default_policy"]
    agreement = (chosen == teacher_q.argmax(-1)).float().mean().item()
    regret = (teacher_q.max(-1).values - teacher_q[torch.arange(256), chosen]).mean().item()
    assert results["teacher_agreement"].peek() == pytest.approx(agreement)
    assert results["q_regret"].peek() == pytest.approx(regret, rel=1e-5)


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


# --- Feature matching -------------------------------------------------------------------------------------------------


def with_features(count: int = 256, names=DISTILLATION_COLUMNS) -> dict:
    """Features of which the student's 16 units can learn any three: linear in the observation."""
    columns = fragment(count, names=names)
    mixing = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    return columns | {"teacher_features": columns["obs"] @ mixing}


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


# --- Priorities -------------------------------------------------------------------------------------------------------

PRIORITIZED = {"replay_buffer_config": {"alpha": 0.6, "beta": 0.4}}


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


@pytest.mark.parametrize(("td_coeff", "by"), [(0.0, "loss"), (1.0, "td_error")])
def test_priorities_are_td_errors_or_losses(cluster, td_coeff, by):
    """After one step each row that was drawn has the error that it was learned from."""
    config = config_of("huber", **RAW, td_coeff=td_coeff).training(**PRIORITIZED)
    learner = make_learner(config.training(train_batch_size_per_learner=2_048))  # every row, nearly
    columns = fragment(names=DISTILLATION_COLUMNS + TD_COLUMNS)
    rows = torch.arange(256)[torch.as_tensor(columns["valid"])]
    module = learner.module["default_policy"]
    learner.update([ray.put(columns)])
    batch = group_of(learner).gather(rows, uses_td=True)
    with torch.no_grad():
        fwd_out = module.forward_train(batch)
        if by == "loss":
            expected = losses.huber(fwd_out["qf_preds"], batch["teacher_q"])
        else:
            expected = losses.td_error(
                batch,
                fwd_out["qf_preds"],
                fwd_out["qf_target_next_preds"],
                next_q=fwd_out["qf_next_preds"],
                gamma=learner.config.gamma,
            )
    learner.update([], num_gradient_steps=1)
    priorities = group_of(learner).replay.gather(rows, ("priority",))["priority"]
    is_drawn = priorities != 1.0
    assert is_drawn.float().mean() > 0.99
    torch.testing.assert_close(priorities[is_drawn], (expected.abs() ** 0.6)[is_drawn], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_learns_from_a_prioritized_replay(cluster, loss):
    learner = make_learner(config_of(loss).training(**PRIORITIZED))
    columns = learnable(512)
    learner.update([ray.put(columns)])
    before = learner.update([ray.put(columns)])["default_policy"]["kl_to_teacher"].peek()
    for _ in range(20):
        learner.update([], num_gradient_steps=10)
    assert learner.update([ray.put(columns)])["default_policy"]["kl_to_teacher"].peek() < 0.5 * before


def test_the_automatic_temperature_is_a_share_of_the_median_gap(cluster):
    learner = make_learner(config_of("kl", temperature="auto"))
    columns = fragment(4_096)
    learner.update([ray.put(columns)])
    median_gap = np.median(np.abs(np.diff(columns["teacher_q"], axis=1)))
    assert group_of(learner).temperature == pytest.approx(DistillDQNConfig.AUTO_TEMPERATURE_GAPS * median_gap, rel=0.2)
    fixed = make_learner(config_of("kl", temperature=0.3))
    fixed.update([ray.put(columns)])
    assert group_of(fixed).temperature == 0.3


def test_nothing_is_learned_while_a_schedule_says_so(cluster):
    learner = make_learner(config_of(kd_coeff=[[0, 1.0], [100, 0.0]]))
    before = q_values(learner, states(8))
    learner.update([ray.put(fragment())], num_gradient_steps=5, kd_coeff=0.0, td_coeff=0.0)
    assert torch.equal(q_values(learner, states(8)), before)


def test_outputs_count_in_median_gaps_unless_they_are_q_values(cluster):
    columns = ray.put(fragment(4_096, names=DISTILLATION_COLUMNS + TD_COLUMNS))
    for settings, expected in (
        ({"temperature": "auto"}, lambda learner: DistillDQNConfig.AUTO_TEMPERATURE_GAPS),
        ({"temperature": 0.5}, lambda learner: 0.5 / group_of(learner).statistics.gap_quantile(0.5)),
        ({"temperature": 0.5, "td_coeff": 1.0}, lambda learner: 0.5),
        ({"temperature": 0.5, "td_coeff": [[0, 0.0], [100, 1.0]]}, lambda learner: 0.5),  # all the time
        ({"temperature": 0.5, "loss": "mse"}, lambda learner: 0.5),
        ({"temperature": 0.5, "student_temperature": 1.0}, lambda learner: 1.0),
    ):
        learner = make_learner(config_of(**settings))
        learner.update([columns])
        assert group_of(learner).student_temperature == pytest.approx(expected(learner))


def test_the_student_is_the_average_of_the_weights(cluster, monkeypatch):
    """Against the definition: a_t = a_{t−1} + (w_t − a_{t−1}) / (1 + γ (t − 1)), over two updates."""
    learner = make_learner(config_of("kl", normalize_observations=False, weight_averaging=0.5))
    module = learner.module["default_policy"]
    params = [p for n, p in module.named_parameters() if not n.startswith("_target")]
    history = []
    step = torch.optim.Adam.step

    def recording(self, *args, **kwargs):
        step(self, *args, **kwargs)
        history.append([p.detach().clone() for p in params])

    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    learner.update([ray.put(fragment())], num_gradient_steps=4)
    learner.update([], num_gradient_steps=3)
    average = history[0]
    for t, weights in enumerate(history[1:], start=2):
        average = [a + (w - a) / (1 + 0.5 * (t - 1)) for a, w in zip(average, weights, strict=True)]
    torch.testing.assert_close([p.detach() for p in params], average)
    torch.testing.assert_close(student_of(learner).training_weights, history[-1])


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_without_averaging_the_student_is_the_last_weights(cluster, loss):
    learner = make_learner(config_of(loss, weight_averaging=0.0))
    learner.update([ray.put(fragment())], num_gradient_steps=4)
    assert student_of(learner).training_weights is None


@pytest.mark.parametrize("grad_clip_by", ["global_norm", "value", "norm"])
@pytest.mark.parametrize("grad_clip", [0.1, 1e6])
def test_gradients_are_clipped_as_configured(cluster, grad_clip_by, grad_clip):
    def gradients(**training):
        config = config_of("mse", normalize_q_values=False, weight_averaging=0.0).training(**training)
        learner = make_learner(config)
        torch.manual_seed(0)
        for parameter in learner.module["default_policy"].parameters():
            torch.nn.init.normal_(parameter)
        learner.update([ray.put(fragment())], num_gradient_steps=1)
        return [p.grad for p in learner.module["default_policy"].parameters() if p.grad is not None]

    raw, clipped = gradients(), gradients(grad_clip=grad_clip, grad_clip_by=grad_clip_by)
    total = torch.stack([grad.norm() for grad in raw]).norm()
    expected = {
        "value": lambda grad: grad.clamp(-grad_clip, grad_clip),
        "norm": lambda grad: grad * min(1.0, grad_clip / grad.norm()),
        "global_norm": lambda grad: grad * min(1.0, grad_clip / total),
    }[grad_clip_by]
    assert total > 0.1
    torch.testing.assert_close(clipped, [expected(grad) for grad in raw], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"td_coeff": 0.5}, {"loss": "mse"}, {"feature_coeff": 0.1}])
def test_bf16_computes_in_bfloat16_and_learns_in_float32(cluster, settings):
    learners = [make_learner(config_of(**settings, bf16=bf16)) for bf16 in (True, False)]
    for learner in learners:
        learner.set_state(learners[0].get_state())
    seen = []
    learners[0].module["default_policy"].af.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    columns = with_features(512, names=DISTILLATION_COLUMNS + (TD_COLUMNS if "td_coeff" in settings else ()))
    columns["teacher_q"] = learnable(512)["teacher_q"]
    if "feature_coeff" not in settings:
        del columns["teacher_features"]
    data = ray.put(columns)
    first = [learner.update([data], num_gradient_steps=1) for learner in learners]
    losses_of = [results["default_policy"]["total_loss"].peek() for results in first]
    assert torch.bfloat16 in seen
    assert losses_of[0] == pytest.approx(losses_of[1], rel=0.05)
    for _ in range(20):
        last = learners[0].update([], num_gradient_steps=10)["default_policy"]["total_loss"].peek()
    assert last < losses_of[0]
    params = list(learners[0].module["default_policy"].parameters())
    assert {param.dtype for param in params} == {torch.float32}


def test_a_loss_that_is_not_finite_is_an_error(cluster):
    learner = make_learner(config_of("mse", normalize_q_values=False).training(lr=1e30))
    with pytest.raises(FloatingPointError, match="learning rate that is too high"):
        learner.update([ray.put(fragment())], num_gradient_steps=20)


def test_without_a_single_label_there_is_nothing_to_learn_from(cluster):
    learner = make_learner(config_of(td_coeff=1.0))
    data = fragment(names=DISTILLATION_COLUMNS + TD_COLUMNS)
    data["valid"][:] = False
    with pytest.raises(
        ValueError, match="no state so far has finite observations, a finite reward and finite Q-values"
    ):
        learner.update([ray.put(data)], num_gradient_steps=1)


def test_target_networks_follow(cluster):
    learner = make_learner(config_of(td_coeff=1.0).training(target_network_update_freq=100))
    data = ray.put(fragment(names=DISTILLATION_COLUMNS + TD_COLUMNS))
    module = learner.module["default_policy"]

    def distance():
        pairs = module.get_target_network_pairs()
        return sum(
            (a - b).abs().sum().item() for m, t in pairs for a, b in zip(m.parameters(), t.parameters(), strict=True)
        )

    learner.update([data], num_gradient_steps=3, timesteps={"num_env_steps_sampled_lifetime": 50})
    assert distance() > 0
    learner.update([], num_gradient_steps=3, timesteps={"num_env_steps_sampled_lifetime": 150})
    assert distance() == 0


@pytest.mark.parametrize("loss", ["kl", "mse"])  # with mse the weights that learn are normalised, the targets not
@pytest.mark.parametrize(("freq", "updates"), [(0, 6), (50, 4), (30, 6), (150, 1), (300, 0)])
def test_target_networks_follow_between_the_gradient_steps(cluster, loss, freq, updates):
    tau = 0.1
    settings = {"target_network_update_freq": freq, "tau": tau, "lr": 0.0}
    learner = make_learner(config_of(loss, td_coeff=1.0).training(**settings))
    data = ray.put(fragment(names=DISTILLATION_COLUMNS + TD_COLUMNS))
    ((network, target), *_) = learner.module["default_policy"].get_target_network_pairs()
    with torch.no_grad():
        for weight in target.parameters():
            weight.zero_()
    learner.update([data], num_gradient_steps=6, timesteps={"num_env_steps_sampled_lifetime": 220})
    for weight, own in zip(target.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(weight, (1 - (1 - tau) ** updates) * own)


def test_what_was_lost_with_its_env_runner_is_left_out(cluster, monkeypatch):
    lost, kept = ray.put(fragment()), ray.put(fragment(seed=1))
    get = ray.get

    def get_or_fail(ref):
        if ref == lost:
            raise ray.exceptions.OwnerDiedError(ref.hex(), owner_address="", call_site="")
        return get(ref)

    monkeypatch.setattr(ray, "get", get_or_fail)
    learner = make_learner(config_of())
    learner.update([lost, kept])
    assert len(group_of(learner).replay) == 256
