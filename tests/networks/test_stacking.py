"""Networks side by side against each by itself."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rllib_kd.env_runner.family import FamilyTurns
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.family import FamilyQValues
from rllib_kd.networks.stacking import PlainMLP, StackedMLPs, stacking_key
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states


def mlps(*widths, activation="relu"):
    return [make_q_module(fcnet_hiddens=list(own), fcnet_activation=activation, seed=i) for i, own in enumerate(widths)]


def linear(seed=0, *, dueling=False):
    torch.manual_seed(seed)
    config = {"dueling": dueling, "double_q": True, "num_atoms": 1, "epsilon": 0.0, "v_min": -10.0, "v_max": 10.0}
    spec = student_module_spec({"fcnet_hiddens": [], "head_fcnet_hiddens": [], **config})
    spec.observation_space, spec.action_space, spec.inference_only = CARTPOLE_OBS, CARTPOLE_ACTIONS, True
    return spec.build()


def alone(module, obs):
    return module.compute_q_values({"obs": obs})["qf_preds"]


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "elu"])
def test_stacked_networks_put_out_what_each_does_alone(activation):
    modules, obs = mlps((8, 4), (3, 16), (5, 5), activation=activation), torch.from_numpy(states(7))
    assert len({stacking_key(module) for module in modules}) == 1
    stack = StackedMLPs(modules)
    q = stack.q_values(stack.pack(stack.weights), obs)
    torch.testing.assert_close(q, torch.stack([alone(module, obs) for module in modules]))


def test_linear_networks_stack_too():
    modules, obs = [linear(0), linear(1)], torch.from_numpy(states(7))
    stack = StackedMLPs(modules)
    q = stack.q_values(stack.pack(stack.weights), obs)
    torch.testing.assert_close(q, torch.stack([alone(module, obs) for module in modules]))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_steps_in_a_stack_are_the_steps_of_each_and_the_filling_stays_zero(activation):
    modules = mlps((8,), (3,), (5,), activation=activation)
    apart = copy.deepcopy(modules)
    stack = StackedMLPs(modules)
    packed = [weight.requires_grad_() for weight in stack.pack(stack.weights)]
    optimizers = [torch.optim.Adam(packed, lr=1e-2)] + [torch.optim.Adam(m.parameters(), lr=1e-2) for m in apart]
    for step in range(20):
        obs = torch.from_numpy(states(16, seed=step))
        labels = obs[:, :2] * 3 - 1
        losses = [(stack.q_values(packed, obs) - labels).square().mean((1, 2)).sum()]
        losses += [(alone(module, obs) - labels).square().mean() for module in apart]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert not packed[0][1, :, 3:].any()
    assert not packed[2][2, 5:].any()
    stack.unpack(packed, stack.weights)
    for module, expected in zip(modules, apart, strict=True):
        torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)


def test_packing_and_unpacking_change_nothing():
    modules = mlps((8, 4), (3, 16))
    before = copy.deepcopy([module.state_dict() for module in modules])
    stack = StackedMLPs(modules)
    packed = stack.pack(stack.weights)
    for module in modules:
        for parameter in module.parameters():
            parameter.data.zero_()
    stack.unpack(packed, stack.weights)
    torch.testing.assert_close([module.state_dict() for module in modules], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"fcnet_hiddens": [8]}, {"fcnet_hiddens": [8, 8]}),
        ({"fcnet_activation": "relu"}, {"fcnet_activation": "tanh"}),
        ({}, {"head_fcnet_hiddens": [8]}),
    ],
)
def test_what_differs_is_not_stacked(one, other):
    assert stacking_key(make_q_module(**one)) != stacking_key(make_q_module(**other))


@pytest.mark.parametrize("config", [{"dueling": True}, {"num_atoms": 11}])
def test_what_cannot_be_stacked_has_no_key(config):
    assert stacking_key(make_q_module(**config)) is None


def test_each_row_of_a_family_is_answered_by_whose_turn_it_is():
    students = {f"s{i}": module for i, module in enumerate([*mlps((8,), (3,)), linear(), *mlps((4, 4), (6,))])}
    obs = torch.from_numpy(states(40))
    turns = FamilyTurns(len(students), 40, offset=3)
    q = FamilyQValues(students)(obs, turns.acting)
    for row, student in enumerate(turns.acting):
        torch.testing.assert_close(q[row], alone(list(students.values())[student], obs[row : row + 1])[0])


def test_hooks_of_a_familys_student_see_its_passes():
    students, seen = dict(enumerate(mlps((8,), (3,), (4,)))), []
    students[1].af.register_forward_hook(lambda *args: seen.append(args))
    FamilyQValues(students)(torch.from_numpy(states(6)), FamilyTurns(3, 6).acting)
    assert len(seen) == 1


def test_new_weights_count_after_a_refresh():
    students = dict(enumerate(mlps((8,), (3,))))
    obs, acting = torch.from_numpy(states(4)), FamilyTurns(2, 4).acting
    values = FamilyQValues(students)
    students[1].load_state_dict(mlps((3,))[0].state_dict())
    values.refresh()
    torch.testing.assert_close(values(obs, acting)[1], alone(students[1], obs[1:2])[0])


def test_turns_change_where_an_episode_ends():
    turns = FamilyTurns(3, 4, offset=4)
    assert turns.acting.tolist() == [1, 2, 0, 1]
    turns.step(np.ones(4), np.array([True, False, True, True]))
    assert turns.acting.tolist() == [2, 2, 1, 2]
    turns.step(np.ones(4), np.array([True, True, False, False]))
    assert turns.acting.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("num_copies", [1, 4])
def test_preferred_students_act_four_times_as_often_as_others(num_copies):
    turns, ends = FamilyTurns(5, 3, num_copies=num_copies, seed=0), np.full(3, True)
    turns.prefer([1, 3])
    counts = np.zeros(5)
    for _ in range(11 * 20):  # a rotation of four has 2 x 4 + 3 turns
        turns.step(np.ones(3), ends)
        turns.prefer([1, 3])  # as each request does
        counts += np.bincount(turns.students(), minlength=5)
    assert counts.tolist() == [60, 240, 60, 240, 60]
    resting = [*range(num_copies), *range(3 * num_copies, 4 * num_copies), *range(4 * num_copies + 1, 5 * num_copies)]
    turns.prefer([1, 3], resting)
    counts[:] = 0
    for _ in range(6 * 20):  # a rotation of four has 4 + 2 turns
        turns.step(np.ones(3), ends)
        counts += np.bincount(turns.students(), minlength=5)
        assert not set(turns.acting) & set(resting)
    assert counts.tolist() == [0, 240, 60, 0, 60]
    new = FamilyTurns(5, 3, num_copies=num_copies, seed=0)
    new.prefer((), [0, 1])
    new.begin_episodes()
    assert not set(new.acting) & {0, 1}
    turns.prefer((), range(2 * num_copies, 3 * num_copies))
    for _ in range(10):
        turns.step(np.ones(3), ends)
        assert 2 not in turns.students()
    turns.prefer(())
    counts[:] = 0
    for _ in range(50):
        turns.step(np.ones(3), ends)
        counts += np.bincount(turns.students(), minlength=5)
    assert counts.tolist() == [30] * 5


def test_turns_of_older_states_have_all_copies():
    """They are of a version in which none rested."""
    turns = FamilyTurns(2, 3, num_copies=4, seed=0)
    state = {name: value for name, value in vars(turns).items() if name not in ("_awake", "_resting")}
    again = FamilyTurns.__new__(FamilyTurns)
    again.__setstate__(state)
    for _ in range(50):
        again.step(np.ones(3), np.full(3, True))
        turns.step(np.ones(3), np.full(3, True))
        assert again.acting.tolist() == turns.acting.tolist()


def test_of_copies_the_better_ones_act_more_often():
    """Two students with eight copies each, whose returns are their numbers; episodes of three steps."""
    turns = FamilyTurns(2, 3, num_copies=8, seed=0)
    assert turns.acting.tolist() == [0, 1, 2]
    counts, before = np.zeros(16), turns.acting.copy()
    for step in range(3_000):
        ended = np.full(3, step % 3 == 2)
        turns.step(turns.acting / 3, ended)
        if ended.all():
            assert ((turns.acting // 8) != (before // 8)).all()  # the students take turns
            counts += np.bincount(turns.acting, minlength=16) * (step > 300)
            before = turns.acting.copy()
    for student in (counts[:8], counts[8:]):
        shares = student / student.sum()
        np.testing.assert_allclose(shares, (2 * np.arange(8) + 1) / 64, atol=0.03)


def test_returns_of_copies_are_their_own_and_numbers():
    """A copy with a return that is no number would win each draw."""
    turns, ends = FamilyTurns(1, 2, num_copies=2, seed=0), np.full(2, True)
    for acting, reward in ((0, 1.0), (1, np.nan), (1, 0.0)):
        turns.acting[:] = acting
        turns.step(np.full(2, 9.0), ~ends)
        turns.begin_episodes()  # after a restart
        turns.step(np.full(2, reward), ends)
    assert turns._returns.tolist() == [1.0, 0.0]


def test_turns_of_a_checkpoint_without_copies_go_on():
    turns = FamilyTurns(3, 4)
    state = {"_num_students": 3, "acting": np.array([1, 2, 0, 1])}
    turns.__setstate__(state)
    turns.step(np.ones(4), np.array([True, False, False, False]))
    assert turns.acting.tolist() == [2, 2, 0, 1]


@pytest.mark.parametrize(
    "make",
    [
        *(lambda a=a: make_q_module(fcnet_hiddens=[8, 5], fcnet_activation=a) for a in ("relu", "tanh")),
        *(lambda a=a: make_q_module(fcnet_hiddens=[8], fcnet_activation=a) for a in ("silu", "elu")),
        linear,
        *(lambda h=h: make_q_module(fcnet_hiddens=[8, 5], head_fcnet_hiddens=h, dueling=True) for h in ([], [6, 4])),
        lambda: linear(dueling=True),
    ],
)
def test_a_plain_mlp_puts_out_what_its_module_does(make):
    module, obs = make(), torch.from_numpy(states(20))
    mlp = PlainMLP.of(module)
    for are_replaced in (False, True, False):
        assert torch.equal(mlp.q_values(obs), module.compute_q_values({"obs": obs})["qf_preds"])
        drawn = {name: torch.randn_like(weight) for name, weight in module.state_dict().items()}
        module.load_state_dict(drawn, assign=are_replaced)  # the module's own are used, also if they are new ones


def test_hooks_see_every_pass():
    module, seen = make_q_module(fcnet_hiddens=[8]), []
    mlp = PlainMLP.of(module)
    assert not mlp.has_hooks
    handle = module.af.register_forward_hook(lambda *args: seen.append(args))
    assert mlp.has_hooks
    assert PlainMLP.of(module) is None
    handle.remove()
    assert PlainMLP.of(module) is not None


class Halving(nn.Sequential):
    """A chain of layers that does more than they do."""

    def forward(self, x):
        return super().forward(x / 2)


def with_another_chain(module):
    module.encoder.net.mlp = Halving(*module.encoder.net.mlp)


def with_a_patched_chain(module):
    chain = module.encoder.net.mlp
    chain.forward = lambda x, forward=chain.forward: forward(x / 2)


def with_another_elu(module):
    module.encoder.net.mlp[1] = nn.ELU(alpha=4.0)


@pytest.mark.parametrize("change", [with_another_chain, with_a_patched_chain, with_another_elu])
def test_a_module_that_does_more_than_its_layers_is_no_plain_mlp(change):
    module = make_q_module(fcnet_activation="elu")
    assert PlainMLP.of(module) is not None
    change(module)
    assert PlainMLP.of(module) is None
    assert stacking_key(module) is None


@pytest.mark.parametrize("config", [{"num_atoms": 5}, {"dueling": True, "num_atoms": 5}, {"fcnet_use_layernorm": True}])
def test_other_networks_are_no_plain_mlps(config):
    assert PlainMLP.of(make_q_module(**config)) is None
