"""Population Based Training whose members wait for each other until all of them have saved."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler


class WaitingPopulation(PopulationBasedTraining):
    """Population Based Training (Jaderberg et al. 2017, arXiv 1711.09846) after equal training of all members.

    Trials are compared after equal training. Otherwise the first to report would find none to copy, and the last would
    lead: if not all trials run at once, no weights would be exchanged.

    Tune's own way to wait, `synch=True`, exchanges weights when the last member reports. Others may still save then: a
    member that is to take the weights of another one is stopped permanently after its next save, and the rest of the
    population waits for it without end (ray 2.60). It also waits for members that have failed. Here all are paused
    first.

    Tune saves no state of a scheduler. A resumed member is paused, with as many reports as its last checkpoint has.

    Args:
        interval: reports between two exchanges, ≥ 1.
        kwargs: arguments of `PopulationBasedTraining`, whose `time_attr` is "training_iteration".
    """

    def __init__(self, *, interval: int, **kwargs: Any):
        super().__init__(time_attr="training_iteration", perturbation_interval=interval, synch=True, **kwargs)
        self._interval = interval
        self._waiting: dict[Trial, dict[str, Any]] = {}  # their results
        self._num_reports: dict[Trial, int] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Note how far a member of a resumed population is."""
        super().on_trial_add(tune_controller, trial)
        saved = trial.run_metadata.checkpoint_manager.latest_checkpoint_result
        num_reports = 0 if saved is None else saved.metrics.get("training_iteration", 0)
        self._num_reports[trial] = num_reports
        if num_reports and trial.status == Trial.PENDING:  # neither new, nor has it ended
            trial.set_status(Trial.PAUSED)  # Tune would start it without `choose_trial_to_run()` if it were pending
            if num_reports % self._interval == 0:
                self._waiting[trial] = saved.metrics

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let a member train on, or wait for the others."""
        self._num_reports[trial] = result["training_iteration"]
        if result["training_iteration"] % self._interval:
            return TrialScheduler.CONTINUE
        self._waiting[trial] = result
        return TrialScheduler.PAUSE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Exchange weights as soon as all members wait, and return the next one to train."""
        members = tune_controller.get_live_trials()
        farthest = max((self._num_reports[trial] for trial in members), default=0)
        for trial in [one for one in self._waiting if self._num_reports[one] < farthest]:
            del self._waiting[trial]  # of a resumed population, which exchanged weights before: it trains on
        if self._waiting and all(trial in self._waiting and trial.status == Trial.PAUSED for trial in members):
            for trial in members:  # with the last of them, weights are exchanged
                super().on_trial_result(tune_controller, trial, self._waiting[trial])
            self._waiting.clear()
        for trial in tune_controller.get_trials():
            begins_anew = trial.status == Trial.PENDING  # some after a failure while they waited
            if begins_anew or (trial.status == Trial.PAUSED and trial not in self._waiting):
                self._waiting.pop(trial, None)
                return trial
        return None
