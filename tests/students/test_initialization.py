import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rllib_kd import load_teacher
from rllib_kd.networks.parts import last_linear
from rllib_kd.students.initialization import check, choose_units, fit, initialize
from tests.conftest import make_q_module, states

IMAGES, FOUR = gym.spaces.Box(0, 1, (20, 20, 3), np.float32), gym.spaces.Discrete(4)
CNN = {"conv_filters": [[8, 4, 2, "valid"], [6, 3, 1]], "head_fcnet_hiddens": [16], "fcnet_hiddens": []}
C51 = {"num_atoms": 7, "v_min": -1.0, "v_max": 1.0}


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, *IMAGES.shape), dtype=np.float32)


def outputs(module, obs):
    with torch.no_grad():
        return module.compute_q_values({"obs": torch.as_tensor(obs)})


def q_values(module, obs):
    return outputs(module, obs)["qf_preds"]


def started(student, teacher, obs, **kwargs):
    initialize(student, teacher, torch.as_tensor(obs), **kwargs)
    return student


# --- What is preserved ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"dueling": True},
        {"dueling": True, "head_fcnet_hiddens": [16, 8], "fcnet_activation": "tanh"},
        {"head_fcnet_hiddens": [16], "head_fcnet_activation": "silu"},
        C51,
        C51 | {"dueling": True},
    ],
    ids=str,
)
def test_a_student_as_wide_as_its_teacher_equals_it(architecture):
    """On other states than those it was fitted to, of which there are fewer than weights."""
    teacher, student = (make_q_module(seed=seed, **architecture) for seed in (1, 2))
    started(student, teacher, states(5))
    torch.testing.assert_close(q_values(student, states(100, seed=9)), q_values(teacher, states(100, seed=9)))


@pytest.mark.parametrize("architecture", [CNN, CNN | {"dueling": True}], ids=["plain", "dueling"])
def test_so_does_a_convolutional_one(architecture):
    teacher, student = (make_q_module(IMAGES, FOUR, seed=seed, **architecture) for seed in (1, 2))
    started(student, teacher, images(40))  # more than are looked at at once
    torch.testing.assert_close(q_values(student, images(50, seed=9)), q_values(teacher, images(50, seed=9)))


@pytest.mark.parametrize(
    ("own", "teachers"),
    [
        ({"dueling": True}, {}),
        ({}, {"dueling": True}),
        ({"head_fcnet_hiddens": [24]}, {"dueling": True, "head_fcnet_hiddens": [12]}),
        ({"dueling": True, "head_fcnet_hiddens": [12]}, {"head_fcnet_hiddens": [12]}),
        ({"head_fcnet_hiddens": [16], "fcnet_hiddens": [32]}, {"fcnet_hiddens": [32, 16]}),
    ],
    ids=str,
)
def test_heads_of_another_kind_say_the_same(own, teachers):
    teacher, student = make_q_module(seed=1, **teachers), make_q_module(seed=2, **own)
    started(student, teacher, states(200))
    torch.testing.assert_close(q_values(student, states(50, seed=9)), q_values(teacher, states(50, seed=9)))


@pytest.mark.parametrize("dueling", [False, True])
def test_outputs_that_rank_actions_count_differences_in_units(dueling):
    teacher, student = make_q_module(seed=1), make_q_module(seed=2, dueling=dueling)
    started(student, teacher, states(50), unit=0.05)
    q = q_values(teacher, states(20, seed=9))
    torch.testing.assert_close(q_values(student, states(20, seed=9)), (q - q.mean(-1, keepdim=True)) / 0.05)


def test_units_that_repeat_others_are_left_out():
    """A teacher of 32 × 32 units that has the same function as one of 16 × 16."""
    small, teacher = make_q_module(seed=1, fcnet_hiddens=[16, 16]), make_q_module(seed=2)
    own, wide = (dict(module.named_parameters()) for module in (small, teacher))
    with torch.no_grad():
        for name, weight in own.items():
            doubled = weight if name.startswith("af") else torch.cat([weight, weight])
            if name.endswith("weight") and not name.startswith("encoder.net.mlp.0"):
                doubled = torch.cat([doubled, doubled], dim=1) / 2
            wide[name].copy_(doubled)
    obs = states(300, seed=9)
    torch.testing.assert_close(q_values(teacher, obs), q_values(small, obs))
    student = started(make_q_module(seed=3, fcnet_hiddens=[16, 16]), teacher, states(300))
    # A unit that no state of the fit has woken is not worth more than one that repeats another.
    error = q_values(student, obs) - q_values(teacher, obs)
    assert (error.abs() > 1e-4).float().mean() < 0.02
    assert error.std() < 0.02 * q_values(teacher, obs).std(0).mean()


def test_channels_that_are_dark_are_left_out():
    teacher = make_q_module(IMAGES, FOUR, seed=1, **CNN)
    first, second = (layer for layer in teacher.encoder.modules() if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        for layer, dark in ((first, [0, 3, 5]), (second, [1, 4])):
            layer.weight[dark], layer.bias[dark] = 0.0, -1.0
    fewer = CNN | {"conv_filters": [[5, 4, 2, "valid"], [4, 3, 1]]}
    student = started(make_q_module(IMAGES, FOUR, seed=2, **fewer), teacher, images(20))
    obs = images(50, seed=9)
    torch.testing.assert_close(q_values(student, obs), q_values(teacher, obs))


def test_the_order_of_the_teachers_units_does_not_matter():
    teacher = make_q_module(seed=1, fcnet_hiddens=[32])
    shuffled, order = copy.deepcopy(teacher), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    hidden = next(layer for layer in shuffled.encoder.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        hidden.weight.copy_(hidden.weight[order])
        hidden.bias.copy_(hidden.bias[order])
        last_linear(shuffled.af).weight.copy_(last_linear(shuffled.af).weight[:, order])
    students = [
        started(make_q_module(seed=2, fcnet_hiddens=[8]), module, states(200)) for module in (teacher, shuffled)
    ]
    first, second = (q_values(student, states(50, seed=9)) for student in students)
    torch.testing.assert_close(first, second)


def test_nothing_is_drawn_and_the_teacher_stays_as_it_is():
    teacher = make_q_module(seed=1)
    before = copy.deepcopy(teacher.state_dict())
    first, second = (
        started(make_q_module(seed=seed, fcnet_hiddens=[8, 8]), teacher, states(100)).state_dict() for seed in (2, 3)
    )
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert torch.equal(before[name], teacher.state_dict()[name])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in make_q_module().parameters())


# --- How well it fits -------------------------------------------------------------------------------------------------


def test_a_linear_student_is_the_least_squares_fit():
    teacher, obs = make_q_module(seed=1), states(200)
    columns = np.concatenate([obs, np.ones((200, 1), np.float32)], axis=1)
    expected, *_ = np.linalg.lstsq(columns, q_values(teacher, obs).numpy(), rcond=None)
    student = nn_linear_student()
    started(student, teacher, obs)
    layer = last_linear(student.af)
    np.testing.assert_allclose(layer.weight.detach().T, expected[:-1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(layer.bias.detach(), expected[-1], rtol=1e-3, atol=1e-5)


def nn_linear_student():
    from rllib_kd.networks.dqn_module import student_module_spec
    from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS

    spec = student_module_spec(make_q_module().model_config | {"fcnet_hiddens": []})
    spec.observation_space, spec.action_space, spec.inference_only = CARTPOLE_OBS, CARTPOLE_ACTIONS, True
    return spec.build()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_last_layer_leaves_nothing_that_its_features_could_explain(activation):
    """A student with fewer layers and perhaps another activation than its teacher."""
    teacher, obs = make_q_module(seed=1), torch.as_tensor(states(400))
    student = started(make_q_module(seed=2, fcnet_hiddens=[8], fcnet_activation=activation), teacher, obs)
    error = (q_values(student, obs) - q_values(teacher, obs)).double()
    features = student.encoder({"obs": obs})["encoder_out"].detach().double()
    scale = error.norm(dim=0) * features.norm(dim=0).max()
    assert (features.T @ error / scale).abs().max() < 1e-3
    assert (error.mean(0) / error.std(0)).abs().max() < 1e-3
    assert error.square().mean() < 0.2 * q_values(teacher, obs).var(0).mean()


def test_it_knows_a_trained_teacher_before_it_has_learned():
    teacher = load_teacher("cartpole")
    obs = 0.2 * states(1_000)
    student = started(make_q_module(seed=2, fcnet_hiddens=[16, 16]), teacher.module, obs, unit=0.1)
    random = make_q_module(seed=2, fcnet_hiddens=[16, 16])
    fresh = torch.as_tensor(0.2 * states(1_000, seed=9))
    best = teacher.q_values(fresh).argmax(-1)
    agreements = [(q_values(module, fresh).argmax(-1) == best).float().mean() for module in (student, random)]
    assert agreements[0] > 0.9
    assert agreements[1] < 0.7


def test_units_are_chosen_as_by_trying_all():
    """Against numpy's least squares on each candidate, step by step."""
    rng = np.random.default_rng(0)
    columns, wanted = rng.normal(size=(200, 6, 2)) + 0.5, rng.normal(size=(200, 3))
    wanted += columns[:, 4] @ rng.normal(size=(2, 3)) + columns[:, 1] @ rng.normal(size=(2, 3)) + 3.0

    def error(units):
        x = np.concatenate([columns[:, units].reshape(200, -1), np.ones((200, 1))], axis=1)
        return np.square(wanted - x @ np.linalg.lstsq(x, wanted, rcond=None)[0]).sum()

    expected: list[int] = []
    for _ in range(3):
        rest = [unit for unit in range(6) if unit not in expected]
        expected.append(min(rest, key=lambda unit: error([*expected, unit])))
    x = torch.as_tensor(np.concatenate([columns.reshape(200, -1), np.ones((200, 1))], axis=1))
    gram, cross = x.T @ x, x.T @ torch.as_tensor(wanted)
    assert choose_units(gram, cross, 6, 3).tolist() == sorted(expected)
    assert {1, 4} <= set(expected)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_small_columns_beside_large_ones_count(scale, mean):
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double() + mean
    units = torch.tensor([scale, 0.03, 1.0]).double()
    truth = torch.tensor([[0.1], [1.0], [0.3]]).double() / units[:, None]
    columns = torch.cat([x * units, torch.ones(500, 1).double()], dim=1)
    wanted = (x * units) @ truth - 2.0
    gram, cross = columns.T @ columns, columns.T @ wanted
    solution = fit(gram, cross, torch.zeros(4, 1).double())
    torch.testing.assert_close(columns @ solution, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(solution[:3], truth, rtol=2e-3, atol=0.0)
    assert choose_units(gram, cross, 3, 2).tolist() == [1, 2]


@pytest.mark.parametrize("value", [0.0, 1e-3, 1.0, 1e4])
def test_constant_columns_say_nothing(value):
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    x[:, 1] = value
    columns = torch.cat([x, torch.ones(500, 1).double()], dim=1)
    wanted = x[:, :1] - 2.0 * x[:, 2:] + 3.0
    gram, cross = columns.T @ columns, columns.T @ wanted
    solution = fit(gram, cross, torch.zeros(4, 1).double())
    torch.testing.assert_close(columns @ solution, wanted, rtol=1e-3, atol=1e-3)
    assert abs(float(solution[1] * value)) < 0.1
    assert choose_units(gram, cross, 3, 2).tolist() == [0, 2]


def test_the_prior_fills_what_the_states_do_not_say():
    """Columns that never differ from zero keep the prior's weights; and what is seen wins over it."""
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    x[:, 1] = 0.0
    x = torch.cat([x, torch.ones(50, 1).double()], dim=1)
    truth, prior = torch.tensor([[1.0], [2.0], [3.0], [4.0]]).double(), torch.full((4, 1), 7.0).double()
    solution = fit(x.T @ x, x.T @ (x @ truth), prior)
    torch.testing.assert_close(solution, torch.tensor([[1.0], [7.0], [3.0], [4.0]]).double(), rtol=1e-3, atol=1e-3)


# --- What cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ({"fcnet_hiddens": [33]}, {}, r"number 1 of its hidden layers has 33 units, and the teacher's 32"),
        ({"fcnet_hiddens": [8, 8, 8]}, {}, r"at most as many hidden layers .* has 3, the teacher 2"),
        (C51, {}, r"its support is Support\(.*\) and the teacher's None"),
        (C51, C51 | {"v_max": 2.0}, r"its support is .* the teacher's Support\(v_min=-1.0, v_max=2.0"),
    ],
)
def test_errors_say_what_does_not_fit(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        check(make_q_module(**student), make_q_module(**teacher))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([[8, 3, 2, "valid"]], "with the teacher's kernels, strides and padding, but number 1"),
        ([[8, 4, 2, "valid"], [6, 3, 1], [4, 3, 1]], "at most as many convolutions .* has 3, the teacher 2"),
    ],
)
def test_errors_of_convolutions(filters, message):
    teacher = make_q_module(IMAGES, FOUR, **CNN)
    with pytest.raises(ValueError, match=message):
        check(make_q_module(IMAGES, FOUR, **CNN | {"conv_filters": filters}), teacher)


def test_networks_of_ones_own_are_refused():
    with pytest.raises(ValueError, match="a teacher with RLlib's DQN architecture, but it is a Linear"):
        check(make_q_module(), nn.Linear(4, 2))
    teacher = make_q_module()
    teacher.encoder.net.mlp.insert(1, nn.LayerNorm(32))
    with pytest.raises(ValueError, match="there is a LayerNorm"):
        check(make_q_module(), teacher)
