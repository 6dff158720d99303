"""Schedulers by name, when results do not have the metric yet."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from rllib_kd.experiment.schedulers import scheduler_named

RETURN = "env_runners/episode_return_mean"


class OneTrial(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.mark.parametrize(("mode", "value"), [("max", -100.0), ("min", 100.0)])
def test_hyperband_first_stops_trials_without_a_return(mode, value):
    scheduler = scheduler_named("hyperband", {"metric": RETURN, "mode": mode, "max_t": 3})
    scheduler = cloudpickle.loads(cloudpickle.dumps(scheduler))  # as Tune saves it
    trials = [OneTrial(trial_id=str(index), status=Trial.RUNNING, is_saving=False) for index in range(5)]
    controller = MagicMock()
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    *_, without, good, better = trials  # of one bracket, which keeps one of them
    results = {without: {}, good: {RETURN: value}, better: {RETURN: value / 2}}
    for trial, result in results.items():
        action = scheduler.on_trial_result(controller, trial, {"training_iteration": 1, **result})
        trial.status = Trial.PAUSED if action == TrialScheduler.PAUSE else Trial.RUNNING
    assert [call.args[0] for call in controller.stop_trial.call_args_list] == [without, good]
    assert action == TrialScheduler.CONTINUE


def test_a_population_waits_for_a_return():
    scheduler = scheduler_named("pbt", {"metric": RETURN, "hyperparam_mutations": {"lr": [0.1]}})
    assert scheduler.on_trial_result(MagicMock(), OneTrial(), {"time_total_s": 1e6}) == TrialScheduler.CONTINUE


def test_hyperband_for_bohb_needs_a_searcher_that_cannot_be_set():
    with pytest.raises(ValueError, match="needs Tune's searcher BOHB"):
        scheduler_named("hb_bohb", {"metric": RETURN})
