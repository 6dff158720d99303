"""An algorithm restores only a checkpoint of its own networks; without Ray."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pyarrow.fs
import pytest

from rllib_kd.algorithm.restorable import check_networks
from rllib_kd.experiment import running
from tests.conftest import make_q_module

BOX = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)


class Learners:
    """A LearnerGroup with one local Learner."""

    is_local = True

    def __init__(self, **modules):
        self._learner = SimpleNamespace(module=modules)

    def foreach_learner(self, question, **_):
        result = question(self._learner)
        return [SimpleNamespace(ok=True, get=lambda: result)]


def student(*spaces, widths=(8,)):
    return make_q_module(*spaces, fcnet_hiddens=list(widths), inference_only=False)


def check(path, **modules):
    check_networks(Learners(**modules), str(path), pyarrow.fs.LocalFileSystem())


def write(path, **modules):
    for name, module in modules.items():
        module.save_to_path(str(path / "learner_group" / "learner" / "rl_module" / name))
    return path


def test_the_same_networks_are_restored(tmp_path):
    write(tmp_path, default_policy=student(), other=student(widths=(4, 4)))
    check(tmp_path, other=student(widths=(4, 4)), default_policy=student())


@pytest.mark.parametrize("widths", [(16,), (8, 8)])
def test_another_size_is_named_with_both_and_the_setting(tmp_path, widths):
    write(tmp_path, default_policy=student())
    with pytest.raises(ValueError, match="has other layers than this run's") as error:
        check(tmp_path, default_policy=student(widths=widths))
    text = str(error.value)
    assert f"model_config {{'fcnet_hiddens': [8]}}, here {{'fcnet_hiddens': {list(widths)}}}" in text
    assert """restore it with --config '{"model_config": {"fcnet_hiddens": [8]}}'""" in text


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ((BOX,), r"was trained with observations Box\(4,\), but this run's has Box\(6,\)"),
        (
            (gym.spaces.Box(-1.0, 1.0, (4,), np.float32), gym.spaces.Discrete(3)),
            r"was trained with actions Discrete\(2\), but this run's has Discrete\(3\)",
        ),
    ],
)
def test_other_spaces_are_named(tmp_path, spaces, message):
    write(tmp_path, default_policy=student())
    with pytest.raises(ValueError, match=f"'default_policy' in the checkpoint '.*' {message}"):
        check(tmp_path, default_policy=student(*spaces))


@pytest.mark.parametrize("names", ["a", "ac", "abc"])
def test_other_students_are_named_even_new_ones(tmp_path, names):
    """RLlib leaves a network that the checkpoint lacks as it is, without a word."""
    write(tmp_path, a=student(), b=student())
    with pytest.raises(ValueError, match=f"contains the networks a, b, but this run has {', '.join(names)}\\."):
        check(tmp_path, **{name: student() for name in names})


def test_a_student_of_a_family_is_not_sent_to_the_model_config(tmp_path):
    write(tmp_path, a=student())
    with pytest.raises(ValueError, match="restore it with these layers in its settings"):
        check(tmp_path, a=student(widths=(16,)))


def test_what_cannot_be_read_is_left_to_rllib(tmp_path):
    check(tmp_path, default_policy=student())
    write(tmp_path, default_policy=student())
    (tmp_path / "learner_group/learner/rl_module/default_policy/module_state.pkl").write_bytes(b"")
    check(tmp_path, default_policy=student(widths=(16,)))


def test_networks_of_rllibs_algorithms_are_checked_too(tmp_path):
    write(tmp_path, default_policy=student())
    algorithm = SimpleNamespace(
        learner_group=Learners(default_policy=student()), restore_from_path=lambda path, filesystem: None, _storage=None
    )
    running._restore(str(tmp_path), algorithm=algorithm)
    algorithm.learner_group = Learners(default_policy=student(widths=(16,)))
    with pytest.raises(ValueError, match="has other layers"):
        running._restore(str(tmp_path), algorithm=algorithm)
