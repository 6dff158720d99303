"""Students of several depths and activations that learn side by side, against each by itself."""

import copy
from types import SimpleNamespace

import pytest
import torch
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from rllib_kd import DistillDQNConfig
from rllib_kd.learner import losses
from rllib_kd.learner.label_statistics import QStatistics
from rllib_kd.learner.observation_scale import ObservationStatistics
from rllib_kd.learner.stack import StackedStudents, stackable
from rllib_kd.learner.student import Student
from rllib_kd.networks.stacking import linears_of
from tests.conftest import make_q_module, states
from tests.networks.test_stacking import linear

SHAPES = {
    "b": ([8], "relu"),
    "linear": ([], "relu"),
    "a": ([3], "relu"),
    "t": ([5], "tanh"),
    "deep": ([4, 6], "tanh"),
    "t__restart_1": ([5], "tanh"),
}


def modules():
    return {
        name: make_q_module(fcnet_hiddens=hidden, fcnet_activation=activation, seed=i) if hidden else linear(seed=i)
        for i, (name, (hidden, activation)) in enumerate(SHAPES.items())
    }


def students(own, *, averages=True):
    given = {"normalizes": False, "normalizes_obs": False, "averages": averages, "regret_coeff": 0.0}
    return [Student(name, module, None, **given) for name, module in own.items()]


def learn(learner, num_steps=15):
    optimizer = torch.optim.Adam(learner.params, lr=1e-2)
    learner.optimizer = optimizer
    learner.enter(QStatistics(2).scale(), ObservationStatistics(0).scale())
    for step in range(num_steps):
        obs = torch.from_numpy(states(16, seed=step))
        labels = obs[:, :2] * 3 - 1
        q = learner.outputs({"obs": obs})["qf_preds"]
        loss = losses.policy_kl(q, labels, temperature=0.5).mean(-1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.average(0.5)
    learner.leave()


@pytest.mark.parametrize("rested", [0, 7], ids=["all alike", "some have rested"])
def test_each_learns_as_by_itself(rested):
    own = modules()
    apart = copy.deepcopy(own)
    stack, alone = StackedStudents(students(own)), students(apart)
    for number, student in enumerate(alone):
        student.num_averaged = rested * number
        next(member for member in stack.members if member.name == student.name).num_averaged = rested * number
    learn(stack)
    for student in alone:
        learn(student)
        mine = next(member for member in stack.members if member.name == student.name)
        torch.testing.assert_close(own[student.name].state_dict(), student.module.state_dict(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.training_weights, student.training_weights, rtol=1e-4, atol=1e-5)


def test_rows_of_outputs_are_those_of_the_members():
    own = modules()
    stack, obs = StackedStudents(students(own)), torch.from_numpy(states(7))
    stack.enter(QStatistics(2).scale(), ObservationStatistics(0).scale())
    q = stack.outputs({"obs": obs})["qf_preds"]
    assert sorted(member.name for member in stack.members) == sorted(own)
    for row, member in zip(q, stack.members, strict=True):
        torch.testing.assert_close(row, member.module.compute_q_values({"obs": obs})["qf_preds"])


def test_students_with_frozen_or_shared_layers_or_hooks_learn_by_themselves():
    own = modules()
    own["b"].af.register_forward_hook(lambda *_: None)
    own["a"].encoder.requires_grad_(False)
    layers = linears_of(own["deep"])
    layers[1].weight = layers[0].weight
    config = SimpleNamespace(uses_td=False, feature_coeff=0.0, grad_clip=None)
    assert sorted(map(len, stackable(own, config, is_ours=True))) == [1, 1, 1, 3]


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("part", ["encoder", "af"])
def test_frozen_layers_stay_as_they_are(part, dueling):
    own = make_q_module(fcnet_hiddens=[8], dueling=dueling)
    frozen = getattr(own, part).requires_grad_(False)
    before = {name: weight.clone() for name, weight in frozen.state_dict().items()}
    given = {"normalizes": True, "normalizes_obs": True, "averages": True, "regret_coeff": 0.0}
    student = Student("s", own, torch.optim.Adam(own.parameters()), **given)
    statistics, labels = ObservationStatistics(4), QStatistics(2)
    statistics.update(torch.from_numpy(states(50)))
    labels.update(torch.tensor([[3.0, 9.0], [8.0, 2.0], [5.0, 5.5]]))
    for _ in range(3):
        student.enter(labels.scale(), statistics.scale())
        student.leave()
    torch.testing.assert_close(frozen.state_dict(), before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("is_ours", "expected"), [(True, [6]), (False, [1] * 6)])
def test_all_plain_students_of_a_teacher_are_one_learner(is_ours, expected):
    lists = stackable(modules(), DistillDQNConfig(), is_ours=is_ours)
    assert [len(names) for names in lists] == expected


def test_optimizers_of_each_shape_which_earlier_checkpoints_have_become_one():
    own = modules()
    whole = StackedStudents(students(own))
    shapes = [[student.name for student in stack._members] for stack in whole._stacks]
    apart = copy.deepcopy(own)
    learn(whole)
    saved = {}
    for names in shapes:
        part = StackedStudents(students({name: apart[name] for name in names}))
        learner = part if len(names) > 1 else students({names[0]: apart[names[0]]})[0]
        learn(learner)
        name = part.optimizer_name if len(names) > 1 else f"{names[0]}_{DEFAULT_OPTIMIZER}"
        saved[name] = {"module_id": names[0], "state": convert_to_numpy(learner.optimizer.state_dict())}
    joined = whole.optimizer_state(saved)
    expected = whole.optimizer.state_dict()
    assert joined["state"]["state"].keys() == expected["state"].keys()
    for place, state in expected["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(torch.as_tensor(joined["state"]["state"][place][key]), value)
    whole.optimizer.load_state_dict(convert_to_torch_tensor(joined["state"]))
    assert whole.optimizer_state({whole.optimizer_name: joined}) is None
    assert whole.optimizer_state({}) is None
