"""What is said of evaluations in which remote EnvRunners fail, against groups that only remember who has failed."""

from types import SimpleNamespace

import pytest

from rllib_kd.algorithm import evaluations
from rllib_kd.algorithm.evaluations import Evaluations
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.returned import NotFiniteError

NO_LICENCE = EnvFailedError("The environment 'X' raised in step(): no licence")


@pytest.fixture
def group(monkeypatch):
    """Two EnvRunners; `failed` maps those that have failed to their reasons."""
    failed = {}
    monkeypatch.setattr(evaluations, "reasons_of_the_failed", lambda group: dict(failed))
    return SimpleNamespace(
        failed=failed,
        num_remote_env_runners=lambda: 2,
        num_healthy_remote_workers=lambda: 2 - len(failed),
    )


def results(num_steps):
    return {"env_runners": {"num_env_steps_sampled_lifetime": num_steps}}


def test_an_evaluation_that_nobody_failed_in_is_returned_as_it_is(group, caplog):
    each = Evaluations()
    assert each.checked(results(1), group) == results(1)
    assert each.checked(results(2), None) == results(2)
    assert not caplog.text


def test_when_all_fail_in_the_first_evaluation_it_is_an_error(group):
    group.failed.update({1: None, 2: NO_LICENCE})
    with pytest.raises(EnvFailedError, match="no licence"):
        Evaluations().checked({}, group)


def test_when_all_fail_once_it_is_a_warning_and_no_old_results_are_reported(group, caplog):
    each = Evaluations()
    each.checked(results(1), group)
    group.failed.update({1: NO_LICENCE, 2: None})
    assert each.checked(results(1), group) == {}
    assert (
        "Evaluation EnvRunner 1 failed. It is restarted if fault_tolerance() allows: The environment 'X' raised"
        in caplog.text
    )
    assert "Evaluation EnvRunner 2 failed. It is restarted if fault_tolerance() allows: it has died." in caplog.text
    assert "All evaluation EnvRunners failed, so this iteration has no evaluation." in caplog.text
    with pytest.raises(EnvFailedError, match="no licence"):
        each.checked(results(1), group)


def test_when_some_fail_the_others_results_count(group, caplog):
    group.failed[1] = NO_LICENCE
    assert Evaluations().checked(results(1), group) == results(1)
    assert "Evaluation EnvRunner 1 failed" in caplog.text
    assert "All" not in caplog.text


def test_those_that_died_without_a_reason_are_no_error(group, caplog):
    group.failed.update({1: None, 2: None})
    assert Evaluations().checked({}, group) == {}
    assert "All evaluation EnvRunners failed" in caplog.text


def test_numbers_that_are_not_finite_are_always_an_error(group):
    group.failed[1] = NotFiniteError("nan")
    with pytest.raises(NotFiniteError):
        Evaluations().checked(results(1), group)
