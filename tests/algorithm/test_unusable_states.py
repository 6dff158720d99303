"""Who is named when numbers are not finite, and how often; and who answers with an error."""

import logging
from types import SimpleNamespace

import pytest

from rllib_kd import _rllib
from rllib_kd.algorithm.answers import answers
from rllib_kd.algorithm.unusable_states import UnusableStates
from rllib_kd.environments.returned import NotFiniteError
from rllib_kd.wire import LOG_PROBS, Q_VALUES

FOUND = "The environment 'X' returned numbers that are not finite from step(), as reward of sub-environment 0: nan."


class Metrics:
    """RLlib's, of counts by name."""

    def __init__(self, **counts):
        self._counts = counts

    def peek(self, key, default):
        return self._counts.get(key[1], default)


def counted(*, observations=0, rewards=0, labels=0):
    return Metrics(
        num_states_dropped_lifetime=observations + rewards + labels,
        num_observations_not_finite_lifetime=observations,
        num_rewards_not_finite_lifetime=rewards,
        num_labels_not_finite_lifetime=labels,
    )


def unusable_states(outputs):
    settings = {"env": "X", "is_multi_agent": False, "num_steps_sampled_before_learning_starts": 100}
    config = SimpleNamespace(**settings, outputs_of=lambda group_id: outputs)
    return UnusableStates(config, {"default_policy": SimpleNamespace(source="expert")})


@pytest.fixture
def states():
    return unusable_states(Q_VALUES)


def test_the_first_description_of_any_env_runner_is_the_only_warning(states, caplog):
    states.check(counted(rewards=1), 50, FOUND)
    states.check(counted(rewards=2), 150, FOUND.replace("sub-environment 0", "sub-environment 3"))
    states.check(counted(rewards=2, observations=9), 150, FOUND)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{FOUND} These states are not learned from; the results count them."


def test_environment_and_teacher_are_warned_of_each_for_its_own(states, caplog):
    states.check(counted(rewards=1), 50, FOUND)
    states.check(counted(rewards=1, labels=3), 50, FOUND)
    states.check(counted(rewards=1, labels=4), 50, FOUND)
    assert ["the teacher 'expert'" in record.getMessage() for record in caplog.records] == [False, True]


def test_an_environment_is_not_blamed_for_what_no_state_was_dropped_for(states, caplog):
    states.check(counted(labels=3), 50, FOUND)
    assert FOUND not in caplog.text
    with pytest.raises(
        ValueError, match="the teacher 'expert' returns NaN or infinite Q-values in 100 states"
    ) as raised:
        states.check(counted(labels=100), 100, FOUND)
    assert "environment" not in str(raised.value)
    with pytest.raises(ValueError, match="the teacher 'expert' returns NaN or infinite log-probabilities in 100"):
        unusable_states(LOG_PROBS).check(counted(labels=100), 100, FOUND)


def test_no_usable_state_is_an_error_once_there_must_be_one(states):
    states.check(counted(rewards=99), 99, FOUND)
    with pytest.raises(ValueError, match=r"^There is nothing to learn from: 100 states .* in 100 of them\. ") as raised:
        states.check(counted(rewards=100), 100, FOUND)
    assert str(raised.value).endswith(FOUND)
    assert "teacher" not in str(raised.value)


def test_numbers_that_are_not_finite_in_baselines_are_an_error_whatever_is_tolerated(monkeypatch):
    monkeypatch.setattr(_rllib, "ignores_errors", lambda group: True)
    reason = NotFiniteError(FOUND)
    failed = SimpleNamespace(ok=False, actor_id=1, get=lambda: SimpleNamespace(cause=reason))
    with pytest.raises(NotFiniteError, match="'X' returned"):
        answers(None, [failed])
