"""What a command that resumes may change, and what becomes of it."""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem
from ray import cloudpickle, tune

from rllib_kd import DistillDQNConfig
from rllib_kd.experiment import experiment, resuming, running
from rllib_kd.experiment.experiment import CheckedExperiment, Experiment
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


def test_a_signal_after_the_last_trial_has_met_its_criteria_interrupts_nothing():
    done, short, failed = (
        {"error": error, "metrics": {"training_iteration": n}} for error, n in [(None, 3), (None, 2), (OSError(), 3)]
    )
    for trials, stopped in [([done], True), ([done, short], False), ([done, failed], False)]:
        assert resuming.have_stopped([SimpleNamespace(**trial) for trial in trials], STOP) == stopped
    assert not resuming.have_stopped([SimpleNamespace(**done)], {})


def test_a_run_that_comes_beside_an_earlier_one_says_so(tmp_path):
    mine, options = SimpleNamespace(name="mine"), RunOptions(storage_path=str(tmp_path))
    assert running.note_of_earlier_runs(mine, options) is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "snapshot.zip").touch()
    assert f"'{tmp_path}/mine' has an earlier run" in running.note_of_earlier_runs(mine, options)
    assert running.note_of_earlier_runs(mine, replace(options, resume=True)) is None


def test_a_run_that_is_killed_when_it_begins_is_not_resumed_as_an_earlier_one(tmp_path, monkeypatch):
    """Its flags would be those of the new run, and its trials those of the earlier one."""
    folder, trainable = tmp_path / "mine", SimpleNamespace(get_default_config=DistillDQNConfig)
    mine = SimpleNamespace(
        name="mine", trainable=trainable, num_samples=1, param_space={}, settings={}, stop={}, configured={}
    )
    folder.mkdir()
    (folder / "snapshot.zip").touch()
    (folder / "tuner.pkl").touch()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "record", killed)
    with pytest.raises(ValueError, match="Unknown scheduler"):  # before anything changes
        running.run(mine, RunOptions(storage_path=str(tmp_path), scheduler="none"))
    assert (folder / "snapshot.zip").exists()
    with pytest.raises(KeyboardInterrupt):
        running.run(mine, RunOptions(storage_path=str(tmp_path)))
    with pytest.raises(ValueError, match="There is no experiment to resume"):
        running.run(mine, RunOptions(storage_path=str(tmp_path), resume=True))


def test_flags_are_kept_in_the_folder_of_the_experiment(tmp_path):
    uri = str(tmp_path / "new" / "experiment")
    assert recorded(uri) == {}
    record(uri, {"lr": 0.1, "--restore": None, "callback": len})
    assert recorded(uri) == {"lr": 0.1, "--restore": None, "callback": "builtins.len"}
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


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((), None),
        (["storage_path", "resume"], None),
        (["checkpoint_freq"], "--checkpoint-freq was 2 and is 0"),
        (["num_samples"], "--num-samples was 3 and is 1"),
    ],
)
def test_a_flag_that_is_given_counts_even_if_it_has_the_default(monkeypatch, tmp_path, given, named):
    monkeypatch.setattr(running, "_check_resumable", lambda path: None)
    first = CheckedExperiment("x", object, {}, STOP, 3, 0, {}, "")
    record(f"{tmp_path}/x", running._flags(first, RunOptions(checkpoint_freq=2)))
    resumed = replace(first, num_samples=1), RunOptions(storage_path=str(tmp_path), resume=True), given
    if named is None:
        check_options(*resumed)
        return
    with pytest.raises(ValueError, match=named):
        check_options(*resumed)


def test_a_file_that_has_changed_is_no_longer_the_experiment(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "_check_resumable", lambda path: None)

    def written(lr, *, log_level="WARN", **training):
        config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")
        config.debugging(log_level=log_level)
        return Experiment("x", "DistillDQN", config=config.training(lr=lr, **training)).checked()

    first, options = written(0.25), RunOptions(storage_path=str(tmp_path), resume=True)
    assert first.configured["lr"] == 0.25
    assert first.configured.keys() >= {"env", "teacher"}
    assert "gamma" not in first.configured
    record(f"{tmp_path}/x", {**running._flags(first, options), running._CONFIG: first.configured})
    check_options(written(0.25), options)
    with pytest.raises(ValueError, match=r"has changed: gamma was not set and is 0\.9, lr was 0\.25 and is 0\.5\."):
        check_options(written(0.5, gamma=0.9), options)
    with pytest.raises(ValueError, match=r"config has changed: lr was 0\.25 and is not set\."):
        check_options(written(DistillDQNConfig().lr), options)
    loud = replace(first, configured=written(0.25, log_level="INFO").configured)
    check_options(loud, options)
    record(f"{tmp_path}/x", running._flags(first, options))  # by an older version
    check_options(written(0.5), options)


def spelled(place, folder):
    """The same file in other words; `folder` is the one in which the command runs."""
    return {
        "absolute": str(place),
        "slash": f"{place}/",
        "relative": place.name,
        "dot": f"./{place.name}/",
        "up": f"../{folder.name}/{place.name}",
        "home": f"~/{place.name}",
        "uri": f"file://{place}",
        "link": "link",
    }


WAYS = ["absolute", "slash", "relative", "dot", "up", "home", "uri", "link"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("t")
    return tmp_path / "t"


@pytest.mark.parametrize("began", WAYS)
@pytest.mark.parametrize("resumed", WAYS)
def test_a_path_that_is_spelled_otherwise_has_not_changed(tmp_path, place, began, resumed):
    began, resumed = (spelled(place, tmp_path)[way] for way in (began, resumed))
    for form in (lambda path: path, lambda path: [path, "cartpole"], lambda path: {"grid_search": [path, "s3://b/x"]}):
        flags = {"teacher": form(began), "--restore": began}
        record(str(tmp_path), flags)
        check_unchanged(recorded(str(tmp_path)), {"teacher": form(resumed), "--restore": resumed}, {})
        for name in flags:
            with pytest.raises(ValueError, match=f"{name} was .* and is .*other"):
                check_unchanged(recorded(str(tmp_path)), {**flags, name: form(f"{resumed.rstrip('/')}other")}, {})


def test_a_path_means_what_it_meant_where_the_experiment_began(tmp_path, place, monkeypatch):
    """In another folder, the same words are another file."""
    with patched_checks(monkeypatch):
        checked = Experiment("x", "DistillDQN", settings={"env": "CartPole-v1", "teacher": "t/"}).checked()
        first = RunOptions(storage_path=str(tmp_path), restore="./t")
        record(f"{tmp_path}/x", running._flags(checked, first))
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        resumed = replace(first, restore="../t", resume=True)
        check_unchanged(recorded(f"{tmp_path}/x"), running._flags(checked, resumed), {})
        again = Experiment("x", "DistillDQN", settings={"env": "CartPole-v1", "teacher": "t"}).checked()
        with pytest.raises(ValueError, match=r"teacher was '.*/t' and is '.*/other/t'"):
            check_unchanged(recorded(f"{tmp_path}/x"), running._flags(again, resumed), {})


@pytest.mark.parametrize(("given", "own"), [(None, []), (print, [print]), ([print, repr], [print, repr])])
@pytest.mark.parametrize("is_config", [True, False])
def test_algorithms_that_start_from_a_checkpoint_have_their_callbacks_too(given, own, is_config):
    name = "callbacks_on_algorithm_init"
    space = DistillDQNConfig().callbacks(on_algorithm_init=given) if is_config else {name: given}
    restored, *others = running._restoring(space, "/checkpoint")[name]
    assert restored.args == ("/checkpoint",)
    assert others == own


@pytest.mark.parametrize(("own", "restored"), [([], "/other"), ([0, 2, 10], "{}/checkpoint_000010")])
def test_a_trial_with_a_checkpoint_of_its_own_is_not_restored_from_the_first_one(tmp_path, own, restored):
    """Which may be gone; and Tune has no record of its own one if the run was killed just after it was saved."""
    for number in own:
        (tmp_path / f"checkpoint_{number:06}").mkdir()
        (tmp_path / f"checkpoint_{number:06}" / "file").touch()
    (tmp_path / "checkpoint_000011").mkdir()  # half written
    storage = SimpleNamespace(storage_filesystem=LocalFileSystem(), trial_fs_path=str(tmp_path))
    paths = []
    algorithm = SimpleNamespace(
        learner_group=None, restore_from_path=lambda path, filesystem: paths.append(path), _storage=storage
    )
    running._restore("/other", algorithm=algorithm)
    assert paths == [restored.format(tmp_path)]


@pytest.mark.parametrize("given", ["{}/gone", None])
def test_a_run_that_is_resumed_needs_the_checkpoint_it_began_from_only_without_its_own(tmp_path, monkeypatch, given):
    monkeypatch.setattr(running, "_check_resumable", lambda path: None)
    gone = f"{tmp_path}/gone"
    mine = CheckedExperiment("x", object, {}, STOP, 1, 0, {}, "")
    record(f"{tmp_path}/x", running._flags(mine, RunOptions(restore=gone)))
    options = RunOptions(storage_path=str(tmp_path), resume=True, restore=given and given.format(tmp_path))
    with pytest.raises(ValueError, match="Nothing can be restored from"):
        check_options(mine, options)
    (tmp_path / "x" / "trial" / "checkpoint_000000").mkdir(parents=True)
    check_options(mine, options)
    assert running._restored_checkpoint(mine, options) == gone
    with pytest.raises(ValueError, match="Nothing can be restored from"):
        check_options(mine, replace(options, resume=False, restore=gone))


@contextmanager
def patched_checks(monkeypatch):
    """Without teachers that are there."""
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "_checked_teachers", lambda configs: {})
        yield


class Thing:
    """An object whose repr has its address."""

    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (math.nan, 0.0),
        ([1.0, {"a": math.nan}], [1.0, {"a": 2.0}]),
        (math.inf, -math.inf),
        (np.array([0.5, math.nan]), np.array([0.5, 1.0])),
        (np.float64(0.5), np.float64(0.6)),
        (np.arange(2_000) == 1_000, np.arange(2_000) == 1_001),
        (slice(np.arange(2_000) == 1_000), slice(np.arange(2_000) == 1_001)),  # an object that shows it
        (1, 2.0),
        ({("a", 1): 2}, {("a", 2): 2}),
        (print, len),
        (partial(Thing, 1), partial(Thing, 2)),
        (Path("x"), Path("y")),
        ({"s", "t", "u"}, {"s", "t", "v"}),
    ],
)
def test_a_value_that_is_written_again_has_not_changed(tmp_path, value, other):
    record(str(tmp_path), {"a": value})
    check_unchanged(recorded(str(tmp_path)), {"a": copy.deepcopy(value)}, {})
    check_unchanged({"a": None}, {"a": copy.deepcopy(value)}, {"a": value})  # the default: it was left out
    with pytest.raises(ValueError, match="a was "):
        check_unchanged(recorded(str(tmp_path)), {"a": other}, {})


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: Thing(Thing(1)), Thing(Thing(2))),
        (lambda: tune.uniform(0, 1), tune.uniform(0, 2)),
        (lambda: tune.loguniform(1, 2), tune.uniform(1, 2)),
        (lambda: [tune.choice([1, 2])], [tune.choice([1, 3])]),
    ],
)
def test_an_object_that_is_made_again_has_not_changed(tmp_path, make, other):
    kept = make()  # so that the next one is at another address
    record(str(tmp_path), {"a": kept})
    check_unchanged(recorded(str(tmp_path)), {"a": make()}, {})
    with pytest.raises(ValueError, match="a was "):
        check_unchanged(recorded(str(tmp_path)), {"a": other}, {})


def test_an_object_in_circles_is_recorded(tmp_path):
    thing = Thing(1)
    thing.value = thing
    record(str(tmp_path), {"a": thing})
    check_unchanged(recorded(str(tmp_path)), {"a": thing}, {})


def trial(iterations, done, path="/checkpoint"):
    checkpoint = SimpleNamespace(path=path, filesystem=SimpleNamespace(type_name="local"))
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
    with pytest.raises(ValueError, match=r"--restore '/my runs/checkpoint' --experiment-name"):  # as a shell takes it
        check_unfinished([trial(3, True, "/my runs/checkpoint")], later)
