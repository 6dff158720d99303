"""What an update does: data, metrics, priorities, averages, clipping, targets."""

import copy

import numpy as np
import pytest
import ray
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rllib_kd.learner import losses
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from tests.conftest import states
from tests.learner.learners import (
    PRIORITIZED,
    RAW,
    config_of,
    fragment,
    group_of,
    learnable,
    make_learner,
    q_values,
    student_of,
    with_features,
)


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
    assert "regret_nats" not in results
    results = learner.update([ray.put(columns | {"teacher_q": np.full_like(teacher_q, 3.0)})])["default_policy"]
    assert results["teacher_agreement"].peek() == 1.0


def test_labels_of_actor_critics_have_temperature_1_and_a_regret_in_nats():
    config = config_of()
    config.set_outputs({"default_policy": "log_probs"})
    learner, columns = make_learner(config), fragment()
    log_probs = torch.log_softmax(torch.as_tensor(columns["teacher_q"]), -1)
    chosen = q_values(learner, columns["obs"]).argmax(-1)
    regret = (log_probs.max(-1).values - log_probs[torch.arange(256), chosen]).mean().item()
    results = learner.update([columns | {"teacher_q": log_probs.numpy()}], num_gradient_steps=5)["default_policy"]
    assert results["temperature"].peek() == 1.0
    assert results["regret_nats"].peek() == pytest.approx(regret, rel=1e-5)
    assert "q_regret" not in results


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


@pytest.mark.parametrize("own_loss", [True, False])
def test_minibatches_are_gathered_together_as_if_each_were_alone(monkeypatch, own_loss):
    learners = [make_learner(config_of("kl")) for _ in range(2)]
    for learner, most in zip(learners, (0, 2**20), strict=True):
        monkeypatch.setattr("rllib_kd.learner.group._MOST_BYTES_AT_ONCE", most)
        if own_loss:  # which gets labels that nobody has made anything of yet
            loss = type(learner).compute_loss_for_module
            same = {"compute_loss_for_module": lambda self, loss=loss, **kwargs: loss(self, **kwargs)}
            learner.__class__ = type("Own", (type(learner),), same)
        learner.update([fragment()], num_gradient_steps=37)
    assert torch.equal(*(q_values(learner, states(8)) for learner in learners))


def test_nothing_is_learned_while_a_schedule_says_so(cluster):
    learner = make_learner(config_of(kd_coeff=[[0, 1.0], [100, 0.0]]))
    before = q_values(learner, states(8))
    learner.update([ray.put(fragment())], num_gradient_steps=5, kd_coeff=0.0, td_coeff=0.0)
    assert torch.equal(q_values(learner, states(8)), before)


def test_the_student_is_the_average_of_the_weights(cluster, request):
    """Against the definition: a_t = a_{t−1} + (w_t − a_{t−1}) / (1 + γ (t − 1)), over two updates."""
    learner = make_learner(config_of("kl", normalize_observations=False, weight_averaging=0.5))
    module = learner.module["default_policy"]
    params = [p for n, p in module.named_parameters() if not n.startswith("_target")]
    history = []
    hook = register_optimizer_step_post_hook(lambda *_: history.append([p.detach().clone() for p in params]))
    request.addfinalizer(hook.remove)
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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="learning rate that is too high"):
        learner.update([ray.put(fragment())], num_gradient_steps=20)


@pytest.mark.parametrize("students", [None, {"one": {"fcnet_hiddens": [16]}, "two": {"fcnet_hiddens": [4]}}])
def test_an_update_that_is_interrupted_leaves_the_students_as_they_act(monkeypatch, students):
    learner = make_learner(config_of("mse", **({"students": students} if students else {})))
    columns = learnable(512)
    learner.update([columns], num_gradient_steps=50)
    before = {name: copy.deepcopy(module.state_dict()) for name, module in learner.module.items()}
    before_kl = learner.update([columns])

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt  # by no signal: in the background, shells have these ignored

    monkeypatch.setattr("rllib_kd.learner.learner.take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.update([], num_gradient_steps=10)
    monkeypatch.undo()
    for name, module in learner.module.items():
        torch.testing.assert_close(dict(module.state_dict()), dict(before[name]), rtol=1e-4, atol=1e-4)
    learner.update([], num_gradient_steps=100)
    after_kl = learner.update([columns])
    for name in before:
        assert after_kl[name]["kl_to_teacher"].peek() < before_kl[name]["kl_to_teacher"].peek()


def test_without_a_single_label_there_is_nothing_to_learn_from(cluster):
    learner = make_learner(config_of(td_coeff=1.0))
    data = fragment(names=DISTILLATION_COLUMNS + TD_COLUMNS)
    data["valid"][:] = False
    with pytest.raises(
        ValueError, match="no state so far has finite observations, a finite reward and finite Q-values"
    ):
        learner.update([ray.put(data)], num_gradient_steps=1)


@pytest.mark.parametrize("teacher", ["cartpole", None])
def test_a_replay_that_keeps_no_row_with_its_next_state_is_an_error(teacher):
    config = config_of(td_coeff=1.0).distillation(teacher=teacher)
    learner = make_learner(config.training(replay_buffer_config={"capacity": 1}))
    data = fragment(names=DISTILLATION_COLUMNS + TD_COLUMNS)
    if teacher is None:
        del data["teacher_q"]
    with pytest.raises(ValueError, match=r"None of the 1 rows in the replay .* Set replay_buffer_config\['capacity'\]"):
        learner.update([data], num_gradient_steps=1)


def test_an_agent_that_has_not_acted_yet_makes_no_steps_and_does_not_end_the_run():
    teachers = {"early": "cartpole", "late": "cartpole"}
    config = config_of().multi_agent(policies={*teachers}, policy_mapping_fn=lambda *_: "early")
    learner = make_learner(config.distillation(teacher=teachers), policies=teachers)
    results = learner.update([{"early": fragment()}], num_gradient_steps=2)
    assert [results[name]["num_gradient_steps"].peek() for name in teachers] == [2, 0]
    results = learner.update([{"late": fragment()}], num_gradient_steps=2)
    assert [results[name]["num_gradient_steps"].peek() for name in teachers] == [2, 2]


def test_a_group_without_the_columns_keeps_no_other_from_its_replay():
    teachers = {"first": "cartpole", "second": "cartpole"}
    config = config_of().multi_agent(policies={*teachers}, policy_mapping_fn=lambda *_: "first")
    learner, copy = (make_learner(config.distillation(teacher=teachers), policies=teachers) for _ in range(2))
    learner.update([dict.fromkeys(teachers, fragment())])
    shard = learner.replay_arrays()
    del shard["first/columns/teacher_q"]
    assert not copy.refill_replay([shard])
    assert [len(copy.groups[name].replay) for name in teachers] == [0, 256]


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
