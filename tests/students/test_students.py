import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.models.utils import get_filter_config

from rllib_kd.algorithm.students import shape_students
from rllib_kd.learner.label_statistics import QStatistics
from rllib_kd.learner.scale import has_scalable_head, to_normalized, to_q_values
from rllib_kd.networks.dqn_module import count_parameters, student_module_spec
from rllib_kd.students.sizes import PRESETS, _nature_cnn, activation_for, compress
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states

ATARI_OBS = gym.spaces.Box(0, 1, (84, 84, 4), np.float32)
NATURE_CNN = {
    "conv_filters": [[32, 8, 4, "valid"], [64, 4, 2, "valid"], [64, 3, 1, "valid"]],
    "head_fcnet_hiddens": [512],
}
HEAD = {"dueling": False, "double_q": True, "num_atoms": 1, "epsilon": 0.0}


def q_values(module, obs):
    return module.compute_q_values({"obs": torch.as_tensor(obs)})["qf_preds"]


def test_counts_what_acts():
    expected = (4 * 8 + 8) + (8 * 2 + 2)
    module = make_q_module(fcnet_hiddens=[8], inference_only=False)
    assert count_parameters(module) == expected
    module.make_target_networks()
    assert count_parameters(module) == expected
    assert count_parameters(make_q_module(fcnet_hiddens=[8], dueling=True)) == expected + 8 * 1 + 1


def test_counts_the_atari_teacher_as_the_literature_does():
    """Mnih et al. 2015, with the four actions of Breakout and six of Pong: about 1.69 million."""
    module = make_q_module(ATARI_OBS, gym.spaces.Discrete(4), **NATURE_CNN)
    assert count_parameters(module) == 1_686_180


@pytest.mark.parametrize("compression", [1.0, 0.25, 0.04, 0.01])
@pytest.mark.parametrize(
    ("space", "model_config"),
    [
        (CARTPOLE_OBS, {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}),
        (CARTPOLE_OBS, {"fcnet_hiddens": [256], "head_fcnet_hiddens": [128], "dueling": True}),
        (ATARI_OBS, NATURE_CNN),
    ],
    ids=["mlp", "mlp-with-head", "cnn"],
)
def test_compression_comes_as_close_as_widths_allow(space, model_config, compression):
    teacher = make_q_module(space, **model_config)
    budget = compression * count_parameters(teacher)
    scaled = compress(
        teacher.model_config,
        head_config=HEAD,
        compression=compression,
        teacher_parameters=count_parameters(teacher),
        observation_space=space,
        action_space=CARTPOLE_ACTIONS,
    )
    student = make_q_module(space, **scaled)
    assert count_parameters(student) <= budget
    # The next larger network of this shape would be over the budget: a unit more in every layer certainly is.
    wider = {key: [w + 1 for w in scaled[key]] for key in ("fcnet_hiddens", "head_fcnet_hiddens")}
    if scaled["conv_filters"]:
        wider["conv_filters"] = [[f[0] + 1, *f[1:]] for f in scaled["conv_filters"]]
    if compression < 1:
        assert count_parameters(make_q_module(space, **scaled | wider)) > budget
    assert space is ATARI_OBS or scaled["fcnet_activation"] == ("tanh" if compression < 0.04 else "relu")


def test_what_one_factor_leaves_goes_to_the_narrowest_layer():
    """One factor for all layers allows a channel and 8 units, half of the parameters."""
    network = {"conv_filters": [[16, 3, 1, "valid"]], "head_fcnet_hiddens": [128]}
    space = gym.spaces.Box(0, 1, (10, 10, 10), np.float32)
    teacher = count_parameters(make_q_module(space, **network))
    scaled = compressed(network, 0.01, space=space, teacher_parameters=teacher)
    assert ([f[0] for f in scaled["conv_filters"]], scaled["head_fcnet_hiddens"]) == ([2], [8])
    assert 0.9 < count_parameters(make_q_module(space, **scaled)) / (0.01 * teacher) <= 1


def test_no_layer_is_narrower_than_need_be():
    """A hundredth of the network for MinAtar has two channels: one, with more units, would see too little."""
    network = {"conv_filters": [[16, 3, 1, "valid"]], "head_fcnet_hiddens": [128]}
    space = gym.spaces.Box(0, 1, (10, 10, 4), np.float32)
    teacher = count_parameters(make_q_module(space, **network))
    scaled = compressed(network, 0.01, space=space, teacher_parameters=teacher)
    assert [f[0] for f in scaled["conv_filters"]] == [2]
    assert scaled["head_fcnet_hiddens"] == [9]
    assert scaled["head_fcnet_activation"] == "relu"  # not tanh, as in an MLP
    assert 0.009 * teacher < count_parameters(make_q_module(space, **scaled)) <= 0.01 * teacher


def test_a_compression_that_no_widths_reach_says_what_is_possible():
    with pytest.raises(ValueError, match=r"one unit in each layer has 11 already \(compression=0.0086\)"):
        compress(
            {"fcnet_hiddens": [32, 32]},
            head_config=HEAD,
            compression=1e-4,
            teacher_parameters=1_282,
            observation_space=CARTPOLE_OBS,
            action_space=CARTPOLE_ACTIONS,
        )


@pytest.mark.parametrize("space", [CARTPOLE_OBS, gym.spaces.Box(0, 1, (6, 5, 2), np.float32)])
def test_the_linear_student_is_linear_in_the_observation(space):
    spec = student_module_spec(HEAD | {"fcnet_hiddens": []})
    spec.observation_space, spec.action_space = space, CARTPOLE_ACTIONS
    module = spec.build()
    assert count_parameters(module) == int(np.prod(space.shape)) * 2 + 2
    a, b = states(5, space, seed=1), states(5, space, seed=2)
    offset = q_values(module, np.zeros_like(a))
    torch.testing.assert_close(
        q_values(module, 2 * a - 3 * b) - offset,
        2 * (q_values(module, a) - offset) - 3 * (q_values(module, b) - offset),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_linear_member_of_a_family_is_linear_whatever_layers_others_share(cartpole_config):
    config = cartpole_config.rl_module(model_config={"head_fcnet_hiddens": [32]})
    config.distillation(student=None, students={"linear": "linear", "s4": {"fcnet_hiddens": [4]}})
    config.validate()
    shape_students(config, {})
    modules = config.get_multi_rl_module_spec(spaces={"default_policy": (CARTPOLE_OBS, CARTPOLE_ACTIONS)}).build()
    assert {name: count_parameters(modules[name]) for name in ("linear", "s4")} == {"linear": 10, "s4": 246}


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("num_actions", [2, 5])
def test_rescaling_the_last_layer_preserves_the_function(dueling, num_actions):
    module = make_q_module(action_space=gym.spaces.Discrete(num_actions), dueling=dueling)
    obs = states(64)
    rng = np.random.default_rng(0)
    scales = []
    for level in (100.0, 80.0):
        statistics = QStatistics(num_actions)
        statistics.update(torch.tensor(rng.normal(level, 10, (500, 1)) + rng.normal(0, 0.2, (500, num_actions))))
        scales.append(statistics.scale())
    normalized = q_values(module, obs).detach()
    to_q_values(module, scales[0])
    q = q_values(module, obs).detach()
    torch.testing.assert_close(q, scales[0].denormalize(normalized), rtol=1e-5, atol=1e-4)
    # The scale has moved on since: the function has not.
    to_normalized(module, scales[1])
    torch.testing.assert_close(q_values(module, obs).detach(), scales[1].normalize(q), rtol=1e-4, atol=1e-3)
    to_q_values(module, scales[1])
    torch.testing.assert_close(q_values(module, obs).detach(), q, rtol=1e-5, atol=1e-4)


def test_only_one_output_an_action_can_be_rescaled():
    assert has_scalable_head(make_q_module())
    assert not has_scalable_head(make_q_module(num_atoms=11))


@pytest.mark.parametrize("shape", [(84, 84, 4), (64, 64, 3)])
def test_what_moves_in_a_picture_reaches_the_outputs(shape):
    """A ball on a plain background, of which PyTorch's own weights leave less than a thousandth in the Q-values."""
    space = gym.spaces.Box(0, 1, shape, np.float32)
    pictures = np.full((64, *shape), 0.4, np.float32)
    for picture, (row, column) in zip(pictures, np.random.default_rng(0).integers(4, 58, (64, 2)), strict=True):
        picture[row : row + 4, column : column + 2] = 1.0
    config = compress(
        NATURE_CNN,
        head_config=HEAD,
        compression=0.05,
        teacher_parameters=1_686_180,
        observation_space=space,
        action_space=CARTPOLE_ACTIONS,
    )
    for model_config in (config, PRESETS["rusu-net3"]):
        spreads = [q_values(make_q_module(space, seed=s, **model_config), pictures).std(0).mean() for s in range(3)]
        assert min(spreads) > 5e-3
    plain = {key: value for key, value in config.items() if "initializer" not in key}
    assert q_values(make_q_module(space, **plain), pictures).std(0).mean() < 1e-3


def test_presets_are_the_networks_of_the_paper():
    for name, (channels, units) in {
        "rusu-teacher": ((32, 64, 64), 512),
        "rusu-net1": ((16, 32, 32), 256),
        "rusu-net2": ((16, 16, 16), 128),
        "rusu-net3": ((16, 16, 16), 64),
    }.items():
        first, second, third = channels
        expected = {
            "conv_filters": [[first, 8, 4, "valid"], [second, 4, 2, "valid"], [third, 3, 1, "valid"]],
            "conv_activation": "relu",
            "fcnet_hiddens": [],
            "head_fcnet_hiddens": [units],
            "head_fcnet_activation": "relu",
            "conv_kernel_initializer": "kaiming_uniform_",
            "conv_kernel_initializer_kwargs": {"nonlinearity": "relu"},
            "head_fcnet_kernel_initializer": "kaiming_uniform_",
            "head_fcnet_kernel_initializer_kwargs": {"nonlinearity": "relu"},
        }
        assert PRESETS[name] == _nature_cnn(channels, units) == expected


def compressed(model_config, compression, *, space=CARTPOLE_OBS, teacher_parameters, **settings):
    return compress(
        model_config,
        head_config=HEAD,
        compression=compression,
        teacher_parameters=teacher_parameters,
        observation_space=space,
        action_space=CARTPOLE_ACTIONS,
        **settings,
    )


def test_a_budget_may_be_spent_to_the_last_parameter():
    params = 4 * 5 + 5 + 5 * 2 + 2  # with 5 units
    assert compressed({"fcnet_hiddens": [10]}, 0.5, teacher_parameters=2 * params)["fcnet_hiddens"] == [5]
    smallest = 4 * 1 + 1 + 1 * 2 + 2
    assert compressed({"fcnet_hiddens": [10]}, 0.5, teacher_parameters=2 * smallest)["fcnet_hiddens"] == [1]
    with pytest.raises(ValueError, match=r"another network with rl_module\(.*\), or student='linear'\.$"):
        compressed({"fcnet_hiddens": [10]}, 0.5, teacher_parameters=2 * smallest - 1)


def test_a_teacher_of_images_without_filters_has_rllibs():
    """RLlib chooses convolutions by the shape of the images where the config names none."""
    scaled = compressed({"fcnet_hiddens": [64]}, 0.1, space=ATARI_OBS, teacher_parameters=1_000_000)
    assert [filters[1:] for filters in scaled["conv_filters"]] == [f[1:] for f in get_filter_config((84, 84, 4))]
    assert scaled["conv_kernel_initializer"] == "kaiming_uniform_"
    # Vectors keep the weights that RLlib begins with, and so does a teacher that chose its own.
    assert compressed({"fcnet_hiddens": [64]}, 0.5, teacher_parameters=450)["conv_kernel_initializer"] is None
    own = {"conv_filters": NATURE_CNN["conv_filters"], "conv_kernel_initializer": "xavier_uniform_"}
    scaled = compressed(own, 0.1, space=ATARI_OBS, teacher_parameters=1_000_000)
    assert scaled["conv_kernel_initializer"] == "xavier_uniform_"


def test_narrow_layers_have_no_relu_unless_it_is_wanted():
    network = {"fcnet_hiddens": [64, 64], "fcnet_activation": "relu"}
    teacher = count_parameters(make_q_module(**network))

    def activation(compression, **more):
        return compressed(network | more, compression, teacher_parameters=teacher)["fcnet_activation"]

    assert activation(0.5) == "relu"  # two layers of 43 units
    assert activation(0.1) == "tanh"  # two layers of 17 units
    assert activation(0.1, fcnet_activation="silu") == "silu"
    kept = compressed(network, 0.1, teacher_parameters=teacher, keeps={"fcnet_activation"})
    assert kept["fcnet_activation"] == "relu"


def test_only_wide_layers_have_relu():
    assert [activation_for(hiddens) for hiddens in ([], [8], [32], [33], [64, 4])] == [
        *("relu", "tanh", "tanh", "relu", "tanh")
    ]
