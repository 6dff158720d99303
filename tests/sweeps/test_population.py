"""Who waits in a population, and when weights are exchanged. Tune's controller is a stand-in."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from rllib_kd.sweeps.population import WaitingPopulation


class Member:
    """A trial, with a return that never changes."""

    def __init__(self, name, return_ratio):
        self.trial_id = self.experiment_tag = name
        self.return_ratio = return_ratio
        self.config = {"lr": return_ratio}
        self.evaluated_params = {}
        self.status = Trial.PENDING
        self.checkpoint = f"weights of {name}"
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.run_metadata = MagicMock()
        self.run_metadata.checkpoint_manager.checkpoint_config.num_to_keep = 4
        self.run_metadata.checkpoint_manager.latest_checkpoint_result = None
        self.exchanges = []

    def is_finished(self):
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def set_experiment_tag(self, tag): ...

    def set_status(self, status):
        self.status = status

    def set_config(self, config):
        self.exchanges.append(config)


class Controller:
    def __init__(self, members):
        self.search_alg = None
        self.members = members
        self.pause_trial = MagicMock(side_effect=AssertionError("a member was stopped while it may save"))

    def get_trials(self):
        return self.members

    def get_live_trials(self):
        return {member for member in self.members if not member.is_finished()}


@pytest.fixture
def population():
    return WaitingPopulation(
        metric="return_ratio",
        mode="max",
        interval=2,
        hyperparam_mutations={"lr": tune.uniform(0.0, 1.0)},
        log_config=False,
    )


@pytest.fixture
def controller(population):
    controller = Controller([Member(name, i / 10) for i, name in enumerate("abcd")])
    for member in controller.members:
        population.on_trial_add(controller, member)
        member.status = Trial.RUNNING
    return controller


def report(population, controller, member, iteration):
    result = {"training_iteration": iteration, "return_ratio": member.return_ratio}
    return population.on_trial_result(controller, member, result)


def exchanges(controller):
    return [bool(member.exchanges) for member in controller.members]


def test_weights_are_exchanged_when_all_have_saved(population, controller):
    first, *others = controller.members
    for member in controller.members:
        assert report(population, controller, member, 1) == TrialScheduler.CONTINUE
        assert report(population, controller, member, 2) == TrialScheduler.PAUSE
    for member in others:
        member.status = Trial.PAUSED
    assert population.choose_trial_to_run(controller) is None  # the first one, with the lowest return, still saves
    assert not any(exchanges(controller))
    first.status = Trial.PAUSED
    assert population.choose_trial_to_run(controller) is first
    assert exchanges(controller) == [True, False, False, False]


def test_nobody_waits_for_a_member_that_has_failed(population, controller):
    *others, last = controller.members
    for member in others:
        report(population, controller, member, 2)
        member.status = Trial.PAUSED
    assert population.choose_trial_to_run(controller) is None
    last.status = Trial.ERROR
    assert population.choose_trial_to_run(controller) in others
    assert exchanges(controller) == [True, False, False, False]


def test_a_member_that_begins_anew_while_the_others_wait_is_run_and_waited_for(population, controller):
    for member in controller.members:
        report(population, controller, member, 2)
        member.status = Trial.PAUSED
    again = controller.members[1]
    again.status = Trial.PENDING  # its save has failed
    assert population.choose_trial_to_run(controller) is again
    again.status = Trial.RUNNING
    assert population.choose_trial_to_run(controller) is None
    report(population, controller, again, 2)
    again.status = Trial.PAUSED
    assert population.choose_trial_to_run(controller) is controller.members[0]
    assert any(exchanges(controller))


def test_later_exchanges_follow_the_same_way(population, controller):
    for iteration in (2, 4, 6):
        for member in controller.members:
            report(population, controller, member, iteration)
            member.status = Trial.PAUSED
        for member in controller.members:
            member.exchanges.clear()
        while (trial := population.choose_trial_to_run(controller)) is not None:
            trial.status = Trial.RUNNING
        assert [member.status for member in controller.members] == [Trial.RUNNING] * 4
        assert exchanges(controller) == [True, False, False, False]


def resumed(population, *num_reports):
    """Members as Tune adds them to a resumed population, with the reports of their last checkpoints."""
    controller = Controller([Member(name, i / 10) for i, name in enumerate("abcd"[: len(num_reports)])])
    for member, count in zip(controller.members, num_reports, strict=True):
        result = {"training_iteration": count, "return_ratio": member.return_ratio}
        if count:
            manager = member.run_metadata.checkpoint_manager
            manager.latest_checkpoint_result = SimpleNamespace(metrics=result)
        population.on_trial_add(controller, member)
    return controller


def begun(population, controller):
    """Begin all members that are to train now; return the names of all that do."""
    while (trial := population.choose_trial_to_run(controller)) is not None:
        trial.status = Trial.RUNNING
    return "".join(member.trial_id for member in controller.members if member.status == Trial.RUNNING)


def test_a_resumed_population_waits_for_its_slow_members(population):
    controller = resumed(population, 2, 1, 2, 0)
    assert begun(population, controller) == "bd"
    for name in "bd":
        member = controller.members["abcd".index(name)]
        assert not any(exchanges(controller))
        assert report(population, controller, member, 2) == TrialScheduler.PAUSE
        member.status = Trial.PAUSED
    assert begun(population, controller) == "abcd"
    assert exchanges(controller) == [True, False, False, False]


def test_a_resumed_population_exchanges_weights_that_it_had_not_exchanged(population):
    controller = resumed(population, 4, 4, 4, 4)
    assert [member.status for member in controller.members] == [Trial.PAUSED] * 4
    assert begun(population, controller) == "abcd"
    assert exchanges(controller) == [True, False, False, False]


def test_members_of_unequal_training_exchange_nothing(population):
    controller = resumed(population, 2, 4, 3, 4)
    assert begun(population, controller) == "ac"
    for name, num_reports in (("a", 3), ("c", 4), ("a", 4)):
        assert not any(exchanges(controller))
        member = controller.members["abcd".index(name)]
        if report(population, controller, member, num_reports) == TrialScheduler.PAUSE:
            member.status = Trial.PAUSED
    assert begun(population, controller) == "abcd"
    assert exchanges(controller) == [True, False, False, False]
