"""First convolutions from a teacher's: what is taken over, what is not, and by default in a run on images."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import DistillDQN
from rllib_kd.students.convolutions import check_convolutions, initialize_convolutions
from tests.algorithm.weights import assert_equal_weights, student_weights
from tests.conftest import make_q_module
from tests.observations.test_images import CONV, config  # noqa: F401 (a fixture)
from tests.students.test_initialization import CNN, FOUR, IMAGES, images

FILTERS = "encoder.net.0.cnn.0.weight"
FEWER = CNN | {"conv_filters": [[5, 4, 2, "valid"], [4, 3, 1]], "head_fcnet_hiddens": [32, 32]}


def module(seed=1, **settings):
    return make_q_module(IMAGES, FOUR, seed=seed, **settings)


def convolved(network, obs):
    """What its dense layers see, with the channels last."""
    with torch.no_grad():
        return network.encoder({"obs": torch.as_tensor(obs)})["encoder_out"].unflatten(1, (-1, channels(network)))


def channels(network):
    return [part for part in network.encoder.modules() if isinstance(part, torch.nn.Conv2d)][-1].out_channels


def test_a_student_with_fewer_convolutions_gets_the_first_ones():
    teacher, student = module(1, **CNN), module(2, **CNN | {"conv_filters": CNN["conv_filters"][:1]})
    names = initialize_convolutions(student, teacher, torch.as_tensor(images(5)))
    assert names == [FILTERS, "encoder.net.0.cnn.0.bias"]
    first, teachers = (dict(own.named_parameters())[names[0]] for own in (student, teacher))
    torch.testing.assert_close(first, teachers)


@pytest.mark.parametrize("head", [{}, {"dueling": True}, {"head_fcnet_hiddens": [64, 8]}], ids=str)
def test_convolutions_as_wide_as_the_teachers_are_its_own_and_the_rest_stays(head):
    teacher, student = module(1, **CNN | {"dueling": True}), module(2, **CNN | head)
    dense = {name: value.clone() for name, value in student.af.state_dict().items()}
    initialize_convolutions(student, teacher, torch.as_tensor(images(5)))
    torch.testing.assert_close(convolved(student, images(9, seed=3)), convolved(teacher, images(9, seed=3)))
    for name, value in student.af.state_dict().items():
        assert torch.equal(value, dense[name])


def test_fewer_channels_are_among_the_teachers_as_closely_as_least_squares_makes_them():
    teacher, student, obs = module(1, **CNN), module(2, **FEWER), images(60, seed=3)
    drawn = convolved(student, obs)
    initialize_convolutions(student, teacher, torch.as_tensor(images(40)))

    def errors(own):
        """Of each channel beside the one of the teacher's that is most like it, as a share of that one's variance."""
        there = convolved(teacher, obs)
        each = ((own[..., :, None] - there[..., None, :]) ** 2).mean((0, 1)) / there.var((0, 1))
        return each.min(1)

    closest = errors(convolved(student, obs))
    assert closest.indices.unique().numel() == 4  # none is there twice
    assert closest.values.mean() < 0.5 * errors(drawn).values.mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"conv_filters": [[8, 3, 2, "valid"], [6, 3, 1]]},
            "with the teacher's kernels, strides and padding",
        ),
        ({"conv_filters": [[9, 4, 2, "valid"], [6, 3, 1]]}, "at most as wide as its teacher's"),
        ({"conv_filters": [[8, 4, 2, "valid"], [6, 3, 1], [4, 3, 1]]}, "at most as many convolutions"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_convolutions(module(**CNN | settings), module(**CNN))


def test_a_teacher_of_layers_that_would_take_gigabytes_is_refused():
    large = gym.spaces.Box(0, 1, (40, 40, 3), np.float32)
    teacher = make_q_module(large, FOUR, **CNN | {"conv_filters": [[8, 3, 1]]})
    student = make_q_module(large, FOUR, **CNN | {"conv_filters": [[4, 3, 1]]})
    with pytest.raises(ValueError, match="see at most 4,096 numbers, but there is one with 12,800"):
        check_convolutions(student, teacher)


def test_networks_without_convolutions_are_refused():
    with pytest.raises(ValueError, match=r"needs a student with convolutions and RLlib's DQN architecture.*without"):
        check_convolutions(make_q_module(), module(**CNN))
    with pytest.raises(ValueError, match=r"needs a teacher with .* but it is a Linear"):
        check_convolutions(module(**CNN), torch.nn.Linear(2, 2))


def begun(algo):
    while algo.num_gradient_steps == 0:
        result = algo.train()
    return result


@pytest.mark.parametrize(
    ("init", "filters", "is_teachers"),
    [
        (None, CONV["conv_filters"], True),
        ("convolutions", CONV["conv_filters"], True),
        ("random", CONV["conv_filters"], False),
        (None, [[4, 5, 2, "valid"], [4, 3, 1, "valid"]], False),  # other windows than the teacher's
    ],
)
def test_a_run_on_images_starts_with_them_where_they_fit(config, build, init, filters, is_teachers):  # noqa: F811
    algo = build(
        config.training(lr=1e-12)
        .debugging(seed=7)
        .rl_module(model_config={"conv_filters": filters, "head_fcnet_hiddens": [4]})
        .distillation(init=init, num_baseline_episodes=0)
    )
    begun(algo)
    teacher = algo._teachers["default_policy"].module.state_dict()
    student = student_weights(algo)[FILTERS]
    equal = student.shape == teacher[FILTERS].shape and np.allclose(student, teacher[FILTERS].numpy(), atol=1e-5)
    assert equal == is_teachers


def test_all_copies_have_them_and_dense_layers_of_their_own(config, build):  # noqa: F811
    algo = build(config.training(lr=1e-12).distillation(restarts=2, num_validation_episodes=0))
    begun(algo)
    states = [copy.state_dict() for copy in algo.get_copies().values()]
    filters, dense = ([state[name] for state in states] for name in (FILTERS, "af.net.mlp.0.weight"))
    assert len(states) == 2
    torch.testing.assert_close(*filters)
    assert not torch.allclose(*dense)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_the_dense_layers_start_as_they_were_drawn_in_their_coordinates(config, build, loss):  # noqa: F811
    losses = {}
    for init in ("random", None):
        algo = build(config.copy().training(lr=1e-12).distillation(init=init, loss=loss))
        losses[init] = begun(algo)["learners"]["default_policy"]["kd_loss"]
    assert losses[None] < 3 * losses["random"]


def test_a_run_that_is_saved_before_its_first_gradient_step_goes_on_alike(config, build, tmp_path):  # noqa: F811
    config.training(num_steps_sampled_before_learning_starts=96)
    algo = build(config)
    algo.train()
    assert algo.num_gradient_steps == 0
    path = algo.save_to_path(str(tmp_path / "early"))
    begun(algo)
    resumed = DistillDQN.from_checkpoint(path)
    begun(resumed)
    assert_equal_weights(student_weights(resumed), student_weights(algo))
    resumed.stop()


def test_explicit_ones_that_do_not_fit_are_refused_before_anything_is_sampled(config, build):  # noqa: F811
    other = config.rl_module(model_config={"conv_filters": [[4, 5, 2, "valid"]], "head_fcnet_hiddens": [4]})
    with pytest.raises(ValueError, match="convolutions with the teacher's kernels"):
        build(other.distillation(init="convolutions"))
