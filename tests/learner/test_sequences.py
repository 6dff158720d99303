"""Recurrent students learn from sequences as a loop of plain PyTorch does."""

import copy

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from torch.nn import functional as F

from rllib_kd.learner.group import MAX_METRIC_STATES
from rllib_kd.learner.sequences import SequenceGroup
from rllib_kd.networks.memories import StateLayout
from rllib_kd.networks.recurrent import run_sequences
from tests.learner.learners import RAW, config_of, group_of, make_learner, student_of

LENGTH = 4
PLAIN = {**RAW, "weight_averaging": 0.0, "regret_coeff": 0.0, "temperature": 0.5, "student_temperature": 1.0}


def recurrent_config(*, batch_size=32, kind="lstm", **distillation):
    model = {"use_lstm": True, "lstm_cell_size": 5, "fcnet_hiddens": [6], "max_seq_len": LENGTH}
    config = config_of(**distillation).rl_module(model_config={**model, "recurrent_layer_type": kind})
    return config.training(train_batch_size_per_learner=batch_size)


def sequences(count, *, seed=0, kind="lstm"):
    rng = np.random.default_rng(seed)
    learned = rng.random((count, LENGTH)) < 0.7
    learned[:, -1] = True
    states = {
        f"state_{part}": rng.normal(size=(count, 1, 5)).astype(np.float32) for part in "hc"[: 1 + (kind == "lstm")]
    }
    obs = rng.normal(size=(count, LENGTH, 4)).astype(np.float32)
    labels = (obs[..., :2].cumsum(1) * 2).astype(np.float32)  # what only a memory can tell
    return {"obs": obs, "teacher_q": labels, "learned": learned, **states}


def by_hand(module, data, repeats, *, lr):
    """Weights after one step of Adam on the mean KL of the learned states."""
    module = copy.deepcopy(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, eps=1e-8)
    tensors = {name: torch.tensor(column).repeat_interleave(repeats, 0) for name, column in data.items()}
    state = {name[-1]: tensors[name] for name in tensors if name.startswith("state_")}
    q = module.compute_q_values({"obs": tensors["obs"], "state_in": state})["qf_preds"]
    teacher = F.softmax(tensors["teacher_q"] / 0.5, -1)
    kl = (teacher * (teacher.log() - F.log_softmax(q, -1))).sum(-1)
    loss = kl[tensors["learned"]].mean()
    loss.backward()
    optimizer.step()
    return {name: value.detach() for name, value in module.state_dict().items()}, loss.item()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_gradient_step_is_that_of_plain_torch(kind):
    learner = make_learner(recurrent_config(kind=kind, **PLAIN))
    module = learner.module["default_policy"]
    module = module.unwrapped()
    data = sequences(1, kind=kind)  # 8 sequences of 4 states are the same one 8 times
    before = copy.deepcopy(module)
    learner.update([data])
    config = group_of(learner).config
    expected, loss = by_hand(before, data, 8, lr=config.lr)
    results = learner.update([], num_gradient_steps=1)
    assert float(results["default_policy"]["kd_loss"].peek()) == pytest.approx(loss, rel=1e-5)
    for name, value in module.state_dict().items():
        if not name.startswith("_target"):
            torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-4, msg=name)


FAMILY = {"gru": {"recurrent_layer_type": "gru", "lstm_cell_size": 3}, "long": {}, "b": {"fcnet_hiddens": [2]}}
FAMILY = {name: {"lstm_cell_size": 5, **shape} for name, shape in FAMILY.items()}


@pytest.mark.parametrize(("grad_clip", "num_learners"), [(None, 1), (1e9, 3)])
def test_a_member_of_a_family_learns_what_it_would_learn_alone(grad_clip, num_learners):
    """From its own states, beside those of the others; at once, or one after the other."""
    config, data = recurrent_config(regret_coeff=1.0).training(grad_clip=grad_clip), sequences(20)
    family = make_learner(config.copy(copy_frozen=False).distillation(students=FAMILY))
    assert len(group_of(family).learners) == num_learners
    layout = StateLayout(dict(family.module.items()))
    rng = np.random.default_rng(1)
    states = {
        "h": rng.normal(size=(20, 1, 13)).astype(np.float32),
        "c": rng.normal(size=(20, 1, 10)).astype(np.float32),
    }
    drawn = group_of(family).replay._generator.get_state()
    first = {name: copy.deepcopy(module.state_dict()) for name, module in family.module.items()}
    results = family.update([data | {f"state_{part}": value for part, value in states.items()}], num_gradient_steps=5)
    for name, shape in FAMILY.items():
        own = config.copy(copy_frozen=False)
        alone = make_learner(own.rl_module(model_config={**own.given_model_config, **shape}))
        with student_of(alone).unnoticed():  # as they were drawn
            alone.module["default_policy"].load_state_dict(first[name])
        group_of(alone).replay._generator.set_state(drawn)
        of_student = layout.of(name, {part: torch.from_numpy(value) for part, value in states.items()})
        columns = {key: column for key, column in data.items() if not key.startswith("state_")}
        columns |= {f"state_{part}": value.numpy() for part, value in of_student.items()}
        expected = alone.update([columns], num_gradient_steps=5)["default_policy"]
        for metric in ("kd_loss", "teacher_agreement", "kl_to_teacher"):
            assert float(results[name][metric].peek()) == pytest.approx(float(expected[metric].peek()))
        assert family.q_regret()[name] == pytest.approx(alone.q_regret()["default_policy"])
        for key, value in alone.module["default_policy"].state_dict().items():
            torch.testing.assert_close(family.module[name].state_dict()[key], value, msg=f"{name} {key}")


def test_members_of_a_family_can_rest():
    config = recurrent_config(regret_coeff=1.0).distillation(students=FAMILY)
    all_learn, some = make_learner(config), make_learner(config)
    data = sequences(20) | {
        f"state_{part}": np.zeros((20, 1, size), dtype=np.float32) for part, size in (("h", 13), ("c", 10))
    }
    some.rest(["long"])
    for learner in (all_learn, some):
        learner.update([data], num_gradient_steps=3)
    some.rest(["b"])
    for learner in (all_learn, some):
        learner.update([], num_gradient_steps=3)
    some.rest([])
    for learner in (all_learn, some):
        learner.update([], num_gradient_steps=3)
    first, second = all_learn.module, some.module
    torch.testing.assert_close(second["gru"].state_dict(), first["gru"].state_dict())
    counts = {name: student.num_averaged for name, student in group_of(some).students.items()}
    assert counts == {"gru": 9, "long": 6, "b": 6}
    for name in ("long", "b"):
        assert any((second[name].state_dict()[key] != value).any() for key, value in first[name].state_dict().items())


def transitions(count, *, seed=0, kind="lstm"):
    """`sequences()` with what TD needs beside them."""
    rng = np.random.default_rng(seed + 1)
    columns, shape = sequences(count, seed=seed, kind=kind), (count, LENGTH)
    last = rng.normal(size=(count, 1, 4)).astype(np.float32)
    return {
        **columns,
        "obs": np.concatenate([columns["obs"], last], axis=1),
        "actions": rng.integers(2, size=shape),
        "rewards": rng.normal(size=shape).astype(np.float32),
        "terminateds": rng.random(shape) < 0.2,
        "truncateds": np.zeros(shape, dtype=bool),
        **{f"next_{name}": columns[name][::-1].copy() for name in columns if name.startswith("state_")},
    }


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("double_q", "dueling"), [(True, False), (False, True)])
def test_td_is_that_of_rllibs_dqn(kind, double_q, dueling):
    """Its module's `forward_train()`, and its Learner's loss over the states that its mask leaves."""
    settings = {"double_q": double_q, "dueling": dueling, "gamma": 0.9}
    config = recurrent_config(kind=kind, kd_coeff=0.0, td_coeff=1.0).training(**settings)
    ours = make_learner(config)
    model = {name: value for name, value in config.model_config.items() if name != "recurrent_layer_type"}
    theirs = make_learner(
        DQNConfig().environment("CartPole-v1").rl_module(model_config=model).training(**settings), DQNTorchLearner
    )
    for name, parameter in ours.module["default_policy"].named_parameters():  # targets of their own
        if name.startswith("_target"):
            parameter.data += 0.1
    data = transitions(8, kind=kind)
    tensors = {name: torch.from_numpy(column) for name, column in data.items()}
    batch = {
        "obs": tensors["obs"][:, :-1],
        "new_obs": tensors["obs"][:, 1:],
        "state_in": {name[-1]: tensors[name] for name in tensors if name.startswith("state_")},
        "next_state_in": {name[-1]: tensors[name] for name in tensors if name.startswith("next_state_")},
        "loss_mask": tensors["learned"],
        **{name: tensors[name] for name in ("actions", "rewards", "terminateds")},
        **dict.fromkeys(("n_step", "weights"), torch.ones(8, LENGTH)),
    }
    expected = theirs.compute_loss_for_module(
        module_id="default_policy",
        config=theirs.config,
        batch=batch,
        fwd_out=ours.module["default_policy"].forward_train(batch),
    ).item()
    ours.update([data])
    group = group_of(ours)
    got = group.gather(torch.arange(8), uses_td=True)
    outputs = student_of(ours).td_outputs(got, double_q=double_q)
    loss = ours.objective("default_policy")(student_of(ours), got, outputs)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert len(loss.errors) == data["learned"].sum() < 8 * LENGTH


def test_the_loss_beside_td_is_that_without():
    data = transitions(20)
    settings = {**PLAIN, "student_temperature": 0.5}
    learners = [make_learner(recurrent_config(td_coeff=coeff, **settings)) for coeff in (0.0, 0.5)]
    learners[1].module.set_state(learners[0].module.get_state())
    results = [
        learner.update([columns], num_gradient_steps=1)["default_policy"]
        for learner, columns in zip(learners, ({**data, "obs": data["obs"][:, :-1]}, data), strict=True)
    ]
    alone, both = (
        {name: float(value.peek()) for name, value in result.items() if "loss" in name} for result in results
    )
    assert both["kd_loss"] == pytest.approx(alone["kd_loss"], rel=1e-5)
    assert both["total_loss"] == pytest.approx(both["kd_loss"] + 0.5 * both["td_loss"], rel=1e-5)


def test_regret_is_that_of_the_states_to_learn_from():
    learner, data = make_learner(recurrent_config(restarts=2)), sequences(20)
    both = {key: np.tile(column, 2) if key.startswith("state_") else column for key, column in data.items()}
    assert all(np.isnan(regret) for regret in learner.q_regret().values())  # there are no states yet
    learner.update([both])
    q = {}
    for name, module in learner.module.items():
        state = {part: torch.from_numpy(data[f"state_{part}"]) for part in "hc"}
        with torch.no_grad():
            q[name] = run_sequences(module, torch.from_numpy(data["obs"]), state)[0].numpy()[data["learned"]]
    teacher_q = data["teacher_q"][data["learned"]]
    for name, regret in learner.q_regret().items():
        chosen = teacher_q[np.arange(len(teacher_q)), q[name].argmax(-1)]
        assert regret == pytest.approx((teacher_q.max(-1) - chosen).mean(), rel=1e-4)


def test_the_memory_is_learned():
    learner = make_learner(recurrent_config(batch_size=128))
    assert isinstance(group_of(learner), SequenceGroup)
    fresh = sequences(64, seed=1)
    results = [learner.update([sequences(200), fresh], num_gradient_steps=steps) for steps in (1, 300)]
    final = learner.update([fresh])
    first, last = (float(r["default_policy"]["teacher_agreement"].peek()) for r in (results[0], final))
    assert last > 0.9 > first


def test_padding_and_burn_in_have_no_effect_on_the_statistics():
    learner = make_learner(recurrent_config())
    data = sequences(20)
    learner.update([data])
    group = group_of(learner)
    assert group.statistics.count == int(data["learned"].sum())
    batch = group.gather(torch.arange(20), uses_td=False)
    assert batch["teacher_q"].numpy() == pytest.approx(data["teacher_q"][data["learned"]])
    student = student_of(learner)
    assert student.outputs(batch)["qf_preds"].shape == batch["teacher_q"].shape


def test_the_statistics_are_of_all_phases_where_environments_alternate():
    data = sequences(2 * MAX_METRIC_STATES // LENGTH)
    data["obs"][:, :, 0] = np.arange(len(data["obs"]))[:, None] % 2
    group = group_of(make_learner(recurrent_config()))
    assert len(group.take_in([data], reduce=None)["obs"]) == MAX_METRIC_STATES // LENGTH
    assert group.obs_statistics.scale().mean[0] == pytest.approx(0.5, abs=0.1)


def test_the_replay_counts_states_and_is_refilled():
    config = recurrent_config().training(replay_buffer_config={"capacity": 40})
    learner, other = make_learner(config), make_learner(config)
    learner.update([sequences(12)])
    assert len(group_of(learner).replay) == 40 // LENGTH
    saved = learner.replay_arrays()
    assert other.refill_replay([saved])
    for name, array in other.replay_arrays().items():
        np.testing.assert_array_equal(array, saved[name], err_msg=name)
    longer = make_learner(
        config.copy(copy_frozen=False).rl_module(model_config={**config.given_model_config, "max_seq_len": LENGTH + 1})
    )
    assert not longer.refill_replay([saved])


def test_default_capacity_counts_states():
    learner = make_learner(recurrent_config())
    learner.update([sequences(3)])
    assert group_of(learner).replay.capacity == 50_000 // LENGTH


def test_it_waits_for_the_first_sequence():
    """However many fragments have none: those of several EnvRunners are parts of different windows."""
    learner = make_learner(recurrent_config().env_runners(rollout_fragment_length=LENGTH - 1))
    none = {name: column[:0] for name, column in sequences(1).items()}
    for _ in range(3):
        results = learner.update([none, none], num_gradient_steps=1)["default_policy"]
        assert results["num_gradient_steps"].peek() == 0
    results = learner.update([none, sequences(2)], num_gradient_steps=1)["default_policy"]
    assert results["num_gradient_steps"].peek() == 1
