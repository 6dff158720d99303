"""What a command that resumes may change, and what becomes of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from rllib_kd.experiment import resuming, running
from rllib_kd.experiment.experiment import CheckedExperiment
from rllib_kd.experiment.resuming import StopAt, begin_with, check_unchanged, check_unfinished, record, recorded
from rllib_kd.experiment.running import RunOptions, check_options

STOP = {"training_iteration": 3.0}


@pytest.fixture(autouse=True)
def no_other_criteria(monkeypatch):
    monkeypatch.setattr(resuming, "_resumed_with", {})


def test_other_criteria_take_effect_in_what_tune_restores():
    stop = cloudpickle.loads(cloudpickle.dumps(StopAt(STOP)))
    assert not stop("a", {"training_iteration": 2})
    assert stop("a", {"training_iteration": 3})
    assert not stop("a", {})
    begin_with({"training_iteration": 5.0})
    assert not stop("a", {"training_iteration": 4})
    assert stop("a", {"training_iteration": 5})
    begin_with({})
    assert stop("a", {"training_iteration": 3})


def test_flags_are_kept_in_the_folder_of_the_experiment(tmp_path):
    uri = str(tmp_path / "new" / "experiment")
    assert recorded(uri) == {}
    record(uri, {"lr": 0.1, "--restore": None, "callback": print})
    assert recorded(uri) == {"lr": 0.1, "--restore": None, "callback": repr(print)}
    for broken in ("{", "[]", ""):
        (tmp_path / "new" / "experiment" / "flags.json").write_text(broken)
        assert recorded(uri) == {}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, None),
        ({"lr": 0.1}, None),
        ({"--checkpoint-freq": 5}, None),
        ({"--checkpoint-freq": 0}, None),  # the default: the flag was left out
        ({"--unknown-then": 1}, None),  # an older version kept no such flag
        ({"lr": 0.2}, "lr was 0.1 and is 0.2"),
        ({"--checkpoint-freq": 1, "lr": 0.2}, "--checkpoint-freq was 5 and is 1, lr was 0.1 and is 0.2"),
        ({"--scheduler-config": {"a": [1]}}, "--scheduler-config was {} and is {'a': [1]}"),
    ],
)
def test_what_cannot_change_is_refused_by_name(given, named):
    began_with = {"lr": 0.1, "--checkpoint-freq": 5, "--scheduler-config": {}}
    defaults = {"--checkpoint-freq": 0, "--scheduler-config": {}}
    if named is None:
        check_unchanged(began_with, given, defaults)
        return
    with pytest.raises(ValueError, match="--restore CHECKPOINT") as raised:
        check_unchanged(began_with, given, defaults)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "options", "named"),
    [
        ({"lr": 0.1}, {"checkpoint_freq": 2}, None),
        ({}, {}, None),
        ({"lr": 0.2}, {}, "lr was 0.1"),
        ({"lr": 0.1, "gamma": 0.5}, {}, "gamma was not set and is 0.5"),
        ({}, {"checkpoint_freq": 3}, "--checkpoint-freq was 2 and is 3"),
        ({}, {"checkpoint_at_end": False}, "--checkpoint-at-end was True and is False"),
        ({}, {"max_failures": 1}, "--max-failures was 0 and is 1"),
        ({}, {"scheduler": "asha"}, "--scheduler was None and is 'asha'"),
    ],
)
def test_before_ray_starts_a_command_is_compared_with_the_first_one(monkeypatch, tmp_path, settings, options, named):
    monkeypatch.setattr(running, "_check_resumable", lambda path: None)
    first = CheckedExperiment("x", object, {}, STOP, 1, 0, {}, "", settings={"lr": 0.1})
    record(f"{tmp_path}/x", running._flags(first, RunOptions(checkpoint_freq=2)))
    resumed = RunOptions(storage_path=str(tmp_path), resume=True, **options)
    if named is None:
        check_options(replace(first, settings=settings), resumed)
        return
    with pytest.raises(ValueError, match=named):
        check_options(replace(first, settings=settings), resumed)


def trial(iterations, done):
    checkpoint = SimpleNamespace(path="/checkpoint", filesystem=SimpleNamespace(type_name="local"))
    return SimpleNamespace(error=None, metrics={"training_iteration": iterations, "done": done}, checkpoint=checkpoint)


def test_trials_that_have_finished_are_not_resumed_by_tune(capsys):
    later = {"training_iteration": 5}
    check_unfinished([trial(2, False)], later)
    check_unfinished([trial(5, True)], later)
    assert not capsys.readouterr().err
    check_unfinished([trial(3, True), trial(2, False)], later)
    assert "note: 1 of 2 trials have finished by an earlier --stop" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"1 of 1 trials have finished .* --restore /checkpoint --experiment-name NAME"
    ):
        check_unfinished([trial(3, True)], later)
