"""Students that rest: they stay as they are, and the others learn what they would learn beside them."""

import pytest
import ray
import torch

from rllib_kd.learner.stack import StackedStudents
from rllib_kd.networks.weights import weights_of
from tests.learner.learners import config_of, fragment, make_learner

FAMILY = {
    "wide": {"fcnet_hiddens": [32]},
    "narrow": {"fcnet_hiddens": [4]},
    "smooth": {"fcnet_hiddens": [3], "fcnet_activation": "tanh"},
    "linear": {"fcnet_hiddens": []},
}


def learner_of(students=FAMILY, **training):
    config = config_of("kl").copy(copy_frozen=False).distillation(students=students, restarts=2)
    config.rl_module(model_config={"fcnet_activation": "relu"})
    return make_learner(config.training(**training))


def learn(learner, *seeds):
    for seed in seeds:
        learner.update([ray.put(fragment(seed=seed))], num_gradient_steps=10)


def weights(learner):
    return {name: weights_of(module) for name, module in learner.module.items()}


def assert_same(own, other, names):
    for name in names:
        for key, value in own[name].items():
            torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(other[name][key]), rtol=1e-3, atol=1e-4)


def names_of(*students):
    return [f"{student}{copy}" for student in students for copy in ("", "__restart_1")]


@pytest.mark.parametrize("training", [{}, {"grad_clip": 1e9}])  # side by side, and one after the other
def test_those_that_rest_stay_as_they_are_and_the_others_learn_on(cluster, training):
    all_learn, some = learner_of(**training), learner_of(**training)
    learn(all_learn, 0, 1)
    learn(some, 0, 1)
    before = weights(some)
    some.rest(names_of("wide", "smooth"))
    learn(all_learn, 2, 3)
    learn(some, 2, 3)
    after = weights(some)
    assert_same(after, weights(all_learn), names_of("narrow", "linear"))
    for name in names_of("wide", "smooth"):
        assert all((after[name][key] == value).all() for key, value in before[name].items())
    some.rest(["linear"])  # from now on
    learn(all_learn, 4)
    learn(some, 4)
    assert_same(weights(some), weights(all_learn), [*names_of("narrow"), "linear__restart_1"])
    changed = weights(some)
    assert any((changed["wide"][key] != value).any() for key, value in before["wide"].items())


@pytest.mark.parametrize("training", [{}, {"grad_clip": 1e9}])
def test_the_average_of_one_that_wakes_is_over_its_own_steps(cluster, training):
    learner = learner_of(**training)
    learn(learner, 0)
    learner.rest(["wide"])
    learn(learner, 1, 2)
    learner.rest([])
    learn(learner, 3)
    (group,) = learner.groups.values()
    assert (group.students["wide"].num_averaged, group.students["narrow"].num_averaged) == (20, 40)
    state = group.get_state()
    for own in state["students"].values():
        del own["num_averaged"]  # a version counted the steps of the group
    group.set_state(state)
    assert {student.num_averaged for student in group.students.values()} == {40}


def test_a_part_is_as_narrow_as_its_members(cluster):
    learner = learner_of()
    (group,) = learner.groups.values()
    learner.rest(names_of("wide"))
    (part,) = group.learners
    assert isinstance(part, StackedStudents)
    assert max(param.shape[-1] for param in part.params) == 4
    learner.rest(names_of(*FAMILY))
    learn(learner, 0)
    assert group.learners == []
    learner.rest([])
    assert group.learners == group.all_learners


def test_what_rests_is_saved_and_goes_on_as_it_would_have(cluster):
    own = learner_of()
    learn(own, 0)
    resting = ["wide", "narrow__restart_1"]
    own.rest(resting)
    learn(own, 1)
    state, replay = own.get_state(), own.replay_arrays()
    other = learner_of()
    other.set_state(state)
    other.rest(resting)  # the Algorithm knows who rests
    assert other.refill_replay([replay])
    for learner in (own, other):
        learn(learner, 2)
        learner.rest([])
        learn(learner, 3)
    first, second = weights(own), weights(other)
    assert all((second[name][key] == value).all() for name, values in first.items() for key, value in values.items())


def test_the_learning_rate_of_a_part_follows_its_schedule(cluster):
    learner = learner_of(lr=[[0, 1e-2], [1_000, 1e-4]])
    (group,) = learner.groups.values()
    learner.rest(["wide"])
    learner.update([ray.put(fragment())], num_gradient_steps=1, timesteps={"num_env_steps_sampled_lifetime": 1_000})
    learner.update([ray.put(fragment())], num_gradient_steps=1, timesteps={"num_env_steps_sampled_lifetime": 1_000})
    assert group.learners[0].optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_those_that_rest_from_the_start_can_be_saved_and_woken(cluster):
    learner = learner_of()
    before = weights(learner)
    learner.rest(names_of("wide", "smooth"))  # of the latter's depth and activation are no others
    learn(learner, 0)
    assert learner.get_state()
    learner.rest([])
    learn(learner, 1)
    assert any((weights(learner)["wide"][key] != value).any() for key, value in before["wide"].items())


def test_the_first_steps_after_a_rest_are_no_larger_than_before(cluster):
    """Adam's averages of few steps are small, and count as what they are."""
    learner = learner_of(lr=1e-3)
    learn(learner, 0)
    (group,) = learner.groups.values()
    (stack,) = group.learners
    before = stack._moments()["wide"]
    learner.rest(names_of("wide"))
    for seed in range(1, 9):
        learn(learner, seed)
    learner.rest([])
    after = stack._moments()["wide"]
    assert [float(after["step"][0]), float(before["step"][0])] == [90, 10]
    for kind, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
        for old, new in zip(before[kind], after[kind], strict=True):
            torch.testing.assert_close(new / (1 - beta**90), old / (1 - beta**10))


def test_a_part_has_the_settings_of_the_loaded_optimizer(cluster):
    learner = learner_of()
    (group,) = learner.groups.values()
    group.learners[0].optimizer.param_groups[0]["eps"] = 1e-2
    learner.rest(names_of("wide"))
    assert group.learners[0].optimizer.param_groups[0]["eps"] == 1e-2
