"""What is said while training goes on."""

import json
import math
import threading
from importlib import import_module
from types import SimpleNamespace

import pytest
from ray import tune
from ray.air._internal import usage

from rllib_kd import _rllib
from rllib_kd.experiment.interrupts import saving_on_interrupt
from rllib_kd.experiment.loggers import wandb_callback
from rllib_kd.experiment.metrics import MissingMetrics, metric_at
from rllib_kd.experiment.outcome import summary
from rllib_kd.experiment.progress_line import ProgressLine, progress_words, share_done

RESULT = {
    "num_env_steps_sampled_lifetime": 5_000,
    "time_total_s": 10.0,
    "training_iteration": 3,
    "env_runners": {"episode_return_mean": 80.0},
    "evaluation": {"env_runners": {"episode_return_mean": 123.45}},
    "distillation": {"num_gradient_steps_lifetime": 20_000, "return_ratio": 0.2346},
}


def test_the_line_says_what_one_wants_to_know():
    line = progress_words([RESULT], seconds_left=30.0)
    assert line == "5,000 env steps · 2,000 gradient steps/s · return 123.5 · ratio 0.235 · 30s left"
    assert progress_words([{"num_env_steps_sampled_lifetime": 10, "env_runners": {}}]) == "10 env steps"


def test_steps_of_another_run_have_no_rate():
    """A run that began by --restore has the steps of the other one, and its own time alone."""
    resumed = {**RESULT, "iterations_since_restore": 1, "time_since_restore": 4.0}
    assert "2,000 gradient steps/s" in progress_words([resumed])
    restored = {**resumed, "time_since_restore": 10.0}
    assert progress_words([restored]) == "5,000 env steps · return 123.5 · ratio 0.235"


def test_a_return_that_is_not_the_students_alone_says_whose_it_is():
    untested = {name: value for name, value in RESULT.items() if name != "evaluation"}
    line = progress_words([untested])
    assert "· exploring return 80.0 ·" in line  # RLlib's own algorithms: the policy acts, and explores
    own = {**untested, "distillation": {"teacher_fraction": 0.5, "return_ratio": math.nan}}
    assert progress_words([own]).endswith(" · behaviour return 80.0")
    tested = {**own, "evaluation": {"env_runners": {"episode_return_mean": 60.0}}}
    assert progress_words([tested]).endswith(" · return 60.0")
    assert progress_words([own, tested]).endswith(" · best return 60.0")  # of those that have been evaluated
    unfinished = {**own, "evaluation": {"env_runners": {"episode_return_mean": math.nan}}}
    assert progress_words([unfinished]).endswith(" · behaviour return 80.0")


def test_of_a_family_the_best_student_is_shown():
    students = {"a": {"env_runners": {"episode_return_mean": 60.0}}, "b": {"env_runners": {"episode_return_mean": 9.5}}}
    ratios = {"a": {"return_ratio": 0.9}, "b": {"return_ratio": 0.1}}
    own = {"teacher_fraction": 0.5, "return_ratio": 0.1, "students": ratios}
    family = {**RESULT, "evaluation": {**students["b"], "students": students}, "distillation": own}
    assert "best return 60.0 · best ratio 0.900" in progress_words([family])


def test_an_evaluation_holds_until_the_next(monkeypatch):
    shown = []
    line = ProgressLine({})
    line._live = SimpleNamespace(update=lambda text: shown.append(str(text)), console=SimpleNamespace(width=200))
    rest = {**RESULT, "distillation": {"teacher_fraction": 0.5}}
    del rest["evaluation"]
    for result in (rest, {**rest, "evaluation": RESULT["evaluation"]}, rest, {**rest, "evaluation": {}}):
        line.on_trial_result(1, ["trial"], SimpleNamespace(trial_id="a"), result)
    assert ["behaviour return 80.0" in text for text in shown] == [True, False, False, False]
    assert all("return 123.5" in text or "return 123.4" in text for text in shown[1:])


@pytest.mark.parametrize("unknown", [{}, {"episode_return_mean": None}, {"episode_return_mean": math.nan}, None])
def test_a_return_holds_until_the_next_episode_ends(unknown):
    shown = []
    line = ProgressLine({})
    line._live = SimpleNamespace(update=lambda text: shown.append(str(text)), console=SimpleNamespace(width=200))
    rest = {**RESULT, "distillation": {"teacher_fraction": 0.5}, "evaluation": {}}
    for result in (rest, {**rest, "env_runners": unknown}, {**rest, "env_runners": {"episode_return_mean": 90.0}}):
        line.on_trial_result(1, ["trial"], SimpleNamespace(trial_id="a"), result)
    assert ["behaviour return 80.0" in text for text in shown] == [True, True, False]


@pytest.mark.parametrize(
    ("own", "said"),
    [({"distillation": {"teacher_fraction": 0.5}}, "behaviour return 80.0"), ({}, "exploring return 80.0")],
)
def test_at_the_end_the_last_known_return_is_shown(tmp_path, own, said):
    rows = [
        {"num_env_steps_sampled_lifetime": 1_000, "env_runners": {"episode_return_mean": 80.0}, **own},
        {"num_env_steps_sampled_lifetime": 2_000, "env_runners": {}, "training_iteration": 2, **own},
    ]
    (tmp_path / "result.json").write_text("\n".join(map(json.dumps, rows)))
    result = tune.Result(error=None, metrics=rows[-1], path=str(tmp_path), checkpoint=None)
    assert summary(result).splitlines()[0] == f"2,000 env steps · {said}"


def test_of_several_trials_it_says_how_many_are_done_and_the_best():
    better = {**RESULT, "done": True, "evaluation": {"env_runners": {"episode_return_mean": 400.0}}}
    line = progress_words([RESULT, better], num_trials=4, seconds_left=7_500.0)
    assert line.startswith("1 of 4 trials done · 10,000 env steps · 4,000 gradient steps/s · ")
    assert line.endswith(" · best return 400.0 · best ratio 0.235 · 2h left")


@pytest.mark.parametrize("width", [10, 40, 60, 80, 200])
def test_what_does_not_fit_is_left_out_least_important_first(width):
    line = progress_words([RESULT, RESULT], num_trials=4, seconds_left=30.0, width=width)
    assert len(line) <= max(width, len("0 of 4 trials done"))
    assert line.startswith("0 of 4 trials done")
    assert ("gradient" in line) <= ("ratio" in line) <= ("return" in line)


def test_the_share_that_is_done_counts_what_counts_up():
    stop = {"num_env_steps_sampled_lifetime": 10_000, "training_iteration": 4, "env_runners/episode_return_mean": 80.0}
    assert share_done(RESULT, stop) == 0.75
    assert share_done(RESULT, {"env_runners/episode_return_mean": 80.0}) == 0.0
    assert share_done({**RESULT, "done": True}, {}) == 1.0
    assert share_done({}, stop) == 0.0
    assert metric_at(RESULT, "evaluation/env_runners/episode_return_mean") == 123.45
    assert metric_at(RESULT, "evaluation/none") == -math.inf
    assert metric_at(RESULT, "evaluation") == -math.inf  # other metrics
    assert metric_at({"hostname": "a"}, "hostname") == -math.inf


def test_a_metric_that_no_result_holds_is_named_once(capsys):
    watch = MissingMetrics(["env_runners/episode_return_mean", "env_runners/episode_retrun_mean"])
    for iteration in range(1, 6):
        result = {**RESULT, "training_iteration": iteration}
        watch.on_trial_result(iteration, [], SimpleNamespace(trial_id="a"), result)
    (line,) = capsys.readouterr().err.splitlines()
    assert "'env_runners/episode_retrun_mean'" in line
    assert "Did you mean 'env_runners/episode_return_mean'?" in line


def test_outside_the_main_thread_there_are_no_handlers_and_no_error():
    seen = []

    def enter():
        with saving_on_interrupt() as interrupted:
            seen.append(interrupted.is_set())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


def test_without_wandb_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("rllib_kd.experiment.loggers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        wandb_callback(project="p")


def test_recorded_rows_show_epochs_and_agreement_instead_of_steps_and_returns():
    own = {
        "num_epochs": 12.34,
        "teacher_agreement": 0.951,
        "return_ratio": math.nan,
        "num_gradient_steps_lifetime": 500,
    }
    result = {"num_env_steps_sampled_lifetime": 4_000, "time_total_s": 5.0, "distillation": own}
    assert progress_words([result]) == "12.3 epochs · 100 gradient steps/s · agreement 95.1 %"
    family = {"num_epochs": 2.0, "students": {"a": {"teacher_agreement": 0.9}, "b": {"teacher_agreement": 0.8}}}
    assert progress_words([{"distillation": family}]) == "2.0 epochs · best agreement 90.0 %"


def test_tune_does_not_count_its_callbacks(monkeypatch):
    """To count them it imports MLflow, Weights & Biases and Comet."""
    counted = []
    monkeypatch.setattr(usage, "_count_callbacks", counted.append)
    air_usage = import_module("ray.tune.tune").air_usage  # as Tune's own code names it
    with _rllib.callbacks_uncounted():
        air_usage.tag_callbacks(["ours"])
    assert counted == []
    air_usage.tag_callbacks(["theirs"])
    assert counted == [["theirs"]]
