"""Which checkpoint a run's folder means: the same for students, teachers, --restore and every command."""

import json
import logging
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from rllib_kd.checkpoints import tune
from rllib_kd.checkpoints.tune import find_students, resolve
from rllib_kd.checkpoints.uris import child_of
from rllib_kd.evaluation.comparing import compare, evaluate
from rllib_kd.experiment import running
from rllib_kd.teachers.loading import OpenedCheckpoint, load_teacher
from tests.conftest import exit_code, make_q_module


def write_trial(folder: Path, *, evaluation=(), training=()) -> Path:
    """A trial with a checkpoint for each return; each has one unit more than the one before."""
    rows = []
    for i, value in enumerate(evaluation or training):
        name = f"checkpoint_{i:06d}"
        make_q_module(seed=i, fcnet_hiddens=[4 + i]).save_to_path(str(folder / name))
        returns = {"env_runners": {"episode_return_mean": value}}
        row = {"evaluation": returns, "env_runners": {"episode_return_mean": 1e6}} if evaluation else returns
        rows.append({"num_env_steps_sampled_lifetime": i, "checkpoint_dir_name": name, **row})
    (folder / "result.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def evaluated(tmp_path):
    return write_trial(tmp_path / "experiment" / "evaluated", evaluation=[10.0, 30.0, 20.0])


@pytest.fixture
def trained(tmp_path):
    return write_trial(tmp_path / "other" / "trained", training=[10.0, 30.0, 20.0])


def name_of(path: str) -> str:
    return resolve(path).path.rpartition("/")[2]


def test_the_best_by_evaluation_else_the_newest(evaluated, trained):
    for run in (evaluated, evaluated.parent, f"file://{evaluated}", f"file://{evaluated.parent}"):
        assert name_of(run) == name_of(f"{run}@best") == "checkpoint_000001"
        assert name_of(f"{run}@newest") == "checkpoint_000002"
    for run in (trained, trained.parent, f"file://{trained}"):
        assert name_of(run) == name_of(f"{run}@newest") == "checkpoint_000002"
        assert name_of(f"{run}@best") == "checkpoint_000001"
    assert resolve(f"file://{evaluated}").uri == f"file://{evaluated}/checkpoint_000001"
    assert [resolve(run).trained_return for run in (evaluated, trained)] == [30.0, 20.0]


@pytest.mark.parametrize("rule", ["", "@best", "@newest"])
@pytest.mark.parametrize("kind", ["evaluated", "trained"])
def test_students_and_teachers_take_the_same(request, kind, rule):
    run = f"{request.getfixturevalue(kind)}{rule}"
    (student,) = find_students([run]).values()
    assert student.checkpoint == load_teacher(run).source == resolve(run).uri


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(("rule", "number"), [("", 2), ("@newest", 2), ("@best", 1)])
def test_training_goes_on_from_the_newest(evaluated, monkeypatch, caplog, scheme, rule, number):
    """As from `Tuner.restore()`, and from `Result.checkpoint`."""
    expected = f"{evaluated}/checkpoint_00000{number}"
    (Path(expected) / "rllib_checkpoint.json").write_text("{}")
    monkeypatch.setattr(OpenedCheckpoint, "algorithm", lambda self: None)
    with caplog.at_level(logging.INFO, logger="rllib_kd"):
        assert running._checkpoint_uri(f"{scheme}{evaluated}{rule}", SimpleNamespace) == scheme + expected
    if not rule:
        assert caplog.messages[-1].endswith(": it is the newest, from which training continues.")


def test_of_several_runs_training_goes_on_from_the_one_that_is_named(evaluated):
    write_trial(evaluated.parent / "other", evaluation=[50.0])
    experiment = str(evaluated.parent)
    assert resolve(experiment).path.endswith("other/checkpoint_000000")
    with pytest.raises(ValueError, match="contains 2 runs") as caught:
        resolve(experiment, continues=True)
    assert str(caught.value) == (
        f"'{experiment}' contains 2 runs: evaluated, other. Name one of them, such as '{evaluated}', or "
        f"'{experiment}@best', the best checkpoint of all."
    )
    assert resolve(f"{experiment}@best", continues=True).path.endswith("other/checkpoint_000000")


@pytest.mark.parametrize("kind", ["evaluated", "trained"])
def test_a_run_is_compared_with_itself(request, kind):
    run = str(request.getfixturevalue(kind))
    comparison = compare(run, run, "CartPole-v1", num_episodes=2)
    assert comparison.agreement_on_student_states == comparison.agreement_on_teacher_states == 1.0
    assert comparison.compression == 1.0
    assert comparison.student.returns == evaluate(run, "CartPole-v1", num_episodes=2).returns


def test_a_checkpoint_means_itself(evaluated):
    for checkpoint in (evaluated / "checkpoint_000000", f"file://{evaluated}/checkpoint_000000"):
        assert name_of(checkpoint) == "checkpoint_000000"
        assert load_teacher(checkpoint).trained_return == 10.0
        with pytest.raises(ValueError, match=r"000000' is not a run folder, so '@best' has nothing to choose from"):
            resolve(f"{checkpoint}@best")


def test_an_existing_path_with_an_at_wins(tmp_path, evaluated):
    write_trial(evaluated.parent / "evaluated@best", evaluation=[1.0])
    assert resolve(f"{evaluated}@best").path == f"{evaluated}@best/checkpoint_000000"
    assert name_of(f"{evaluated}@newest") == "checkpoint_000002"
    assert name_of(f"{evaluated}@best@newest") == "checkpoint_000000"
    write_trial(tmp_path / "me@home" / "run", evaluation=[1.0])
    assert name_of(tmp_path / "me@home" / "run") == "checkpoint_000000"


def test_an_unknown_rule_is_named(evaluated):
    with pytest.raises(ValueError, match=r"nothing at '.*@newst'\. After '@' expected best or newest, got 'newst'\."):
        resolve(f"{evaluated}@newst")
    for missing in ("/none@best", "/none@x", "/a@b/none"):
        with pytest.raises(ValueError, match="There is no checkpoint at '/"):
            resolve(missing)


def test_of_several_trials_the_best_if_any_was_evaluated(tmp_path, evaluated, trained):
    both = tmp_path / "both"
    write_trial(both / "a", training=[50.0, 40.0])
    write_trial(both / "b", training=[45.0])
    assert resolve(f"{both}@best").path == str(both / "a" / "checkpoint_000000")
    for rule, why in ("", " by returns in training, since none was evaluated"), ("@newest", ""):
        with pytest.raises(ValueError, match="contains 2 runs") as caught:
            resolve(f"{both}{rule}")
        assert str(caught.value) == (
            f"'{both}{rule}' contains 2 runs: a, b. Name one of them, such as '{both}/a{rule}', or '{both}@best', the "
            f"best checkpoint of all{why}."
        )
        assert resolve(f"{both}/a{rule}").path == str(both / "a" / "checkpoint_000001")
    assert tune._by_rule("s3://b/run?region=eu-west-1", "best") == "s3://b/run@best?region=eu-west-1"
    write_trial(both / "c", evaluation=[5.0])
    assert resolve(both).path == resolve(f"{both}@best").path == str(both / "c" / "checkpoint_000000")


def test_the_best_checkpoint_is_the_one_that_was_evaluated(tmp_path, caplog):
    write_trial(tmp_path / "run", evaluation=[10.0, 50.0, None, 50.0, None, None])
    with caplog.at_level(logging.INFO, logger="rllib_kd"):
        assert name_of(tmp_path / "run") == "checkpoint_000003"  # of equal evaluations the newest
        for checkpoint in ("checkpoint_000001", "checkpoint_000003"):
            shutil.rmtree(tmp_path / "run" / checkpoint)
        assert name_of(tmp_path / "run") == "checkpoint_000004"
    write_trial(tmp_path / "late", evaluation=[None, None, None, 50.0])
    shutil.rmtree(tmp_path / "late" / "checkpoint_000003")
    (tmp_path / "late" / "checkpoint_000003").mkdir()  # half-written
    assert name_of(tmp_path / "late") == "checkpoint_000002"
    assert ": it has the best mean return in evaluation (50.0)" in caplog.messages[0]
    assert "in evaluation (50.0, of the last one before it was saved)" in caplog.messages[1]


def test_without_any_return_nothing_is_the_best(tmp_path):
    write_trial(tmp_path, training=[None, None])
    assert name_of(tmp_path) == "checkpoint_000001"
    with pytest.raises(ValueError, match=r"contain no return, so no checkpoint is the best\. Leave out '@best'"):
        resolve(f"{tmp_path}@best")


@pytest.mark.parametrize(
    ("kind", "rule", "why"),
    [
        ("evaluated", "", "it has the best mean return in evaluation (30.0)"),
        ("evaluated", "@best", "it has the best mean return in evaluation (30.0), as @best requests"),
        ("evaluated", "@newest", "it is the newest, as @newest requests"),
        ("trained", "", "it is the newest, since training was not evaluated"),
        (
            "trained",
            "@best",
            "it has the best mean return in training (30.0), as @best requests; there was no evaluation",
        ),
    ],
)
def test_the_log_says_which_and_why(request, caplog, kind, rule, why):
    run = f"{request.getfixturevalue(kind)}{rule}"
    with caplog.at_level(logging.INFO, logger="rllib_kd"):
        uri = resolve(run).uri
        resolve(uri)  # a checkpoint: nothing was chosen
    own = [record.getMessage() for record in caplog.records if record.name.startswith("rllib_kd")]
    assert own == [f"Using '{Path(uri).name}' of run '{run}': {why}."]


def test_a_checkpoint_that_no_evaluation_came_before_is_taken_if_no_other_is_whole(evaluated, caplog):
    (evaluated / "checkpoint_000003").mkdir()
    rows = (evaluated / "result.json").read_text().splitlines()
    (evaluated / "result.json").write_text("\n".join([json.dumps({"checkpoint_dir_name": "checkpoint_000003"}), *rows]))
    for i in range(3):
        for file in (evaluated / f"checkpoint_{i:06d}").iterdir():
            file.unlink()
    (evaluated / "checkpoint_000003" / "model.pt").write_bytes(b"whole")
    with caplog.at_level(logging.INFO, logger="rllib_kd"):
        assert name_of(evaluated) == "checkpoint_000003"
    assert caplog.messages[-1].endswith(": it is the newest complete one.")
    assert sum("is incomplete, and is skipped" in message for message in caplog.messages) == 3


def test_a_report_lists_all_trials_of_an_experiment_by_path_or_uri(tmp_path):
    write_trial(tmp_path / "a", evaluation=[3.0, 1.0])
    write_trial(tmp_path / "b", evaluation=[1.0, 2.0])
    chosen = {"a": "checkpoint_000000", "b": "checkpoint_000001"}
    for given in (str(tmp_path), f"file://{tmp_path}"):
        students = find_students([given])
        assert {name: student.checkpoint for name, student in students.items()} == {
            name: f"{given}/{name}/{checkpoint}" for name, checkpoint in chosen.items()
        }
        assert students["a"].curve == [(0.0, 3.0), (1.0, 1.0)]
    assert find_students([f"file://{tmp_path}/a/checkpoint_000001"])["a"].curve == [(0.0, 3.0), (1.0, 1.0)]


def test_two_checkpoints_of_a_run_have_two_names(evaluated):
    students = find_students([evaluated, f"{evaluated}@newest", f"{evaluated}@best"])
    assert {name: Path(student.checkpoint).name for name, student in students.items()} == {
        "evaluated": "checkpoint_000001",
        "evaluated@newest": "checkpoint_000002",
        "evaluated@best": "checkpoint_000001",
    }


def test_a_name_with_an_at_and_a_rule_are_told_apart(tmp_path):
    write_trial(tmp_path / "x" / "a@best", evaluation=[1.0])
    write_trial(tmp_path / "y" / "a", evaluation=[1.0])
    given = [str(tmp_path / "x" / "a@best"), str(tmp_path / "y" / "a@best")]
    students = find_students([*given, given[0]])
    assert {student.checkpoint for student in students.values()} == {
        f"{tmp_path}/x/a@best/checkpoint_000000",
        f"{tmp_path}/y/a/checkpoint_000000",
    }
    assert list(students) == ["a@best", given[1]]


@pytest.mark.parametrize("name", ["a b", "a%41", "a?b#c", "ü–日", "a\nb", "lr=0.1,x@y", "[a]", "..."])
def test_the_uri_of_a_trial_leads_to_it_whatever_its_name(tmp_path, name):
    write_trial(tmp_path / "runs" / name, evaluation=[1.0])
    for given in (tmp_path / "runs", f"file://{tmp_path}/runs"):
        found = resolve(given)
        assert found.path == str(tmp_path / "runs" / name / "checkpoint_000000")
        assert resolve(found.uri).path == found.path
        (student,) = find_students([given]).values()
        assert resolve(student.checkpoint).path == found.path


def test_what_tune_has_not_numbered_is_not_the_newest(evaluated, trained):
    for run in (evaluated, trained):
        (run / "checkpoint_best").symlink_to("checkpoint_000000")
        (run / "checkpoint_\n").mkdir()
        (run / "checkpoint_1000000").symlink_to("checkpoint_000000")
        assert name_of(f"{run}@newest") == "checkpoint_1000000"
        (run / "checkpoint_1000000").unlink()
        assert name_of(f"{run}@newest") == "checkpoint_000002"
        assert name_of(f"{run}@best") == "checkpoint_000001"


@pytest.mark.parametrize("evaluation", [True, False])
def test_of_an_algorithms_checkpoints_any_number_can_be_told_apart(tmp_path, monkeypatch, evaluation):
    """By their metadata; RLlib's own algorithms have the iteration in their states alone, which take time to read."""
    monkeypatch.setattr(tune, "_MAX_OPCODES", 20)
    rows = []
    for i in range(1, 30):
        folder = tmp_path / "run" / f"checkpoint_{i:06d}"
        folder.mkdir(parents=True)
        (folder / "algorithm_state.pkl").write_bytes(pickle.dumps({"training_iteration": 2 * i}))
        (folder / "rllib_checkpoint.json").write_text(json.dumps({"training_iteration": 2 * i}))
        returns = {"env_runners": {"episode_return_mean": -abs(7.0 - i)}}
        rows += [{"training_iteration": 2 * i, **({"evaluation": returns} if evaluation else returns)}]
        rows += [{"training_iteration": 2 * i + 1}]
    (tmp_path / "run" / "result.json").write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    assert name_of(run) == ("checkpoint_000007" if evaluation else "checkpoint_000029")
    assert (name_of(f"{run}@best"), name_of(f"{run}@newest")) == ("checkpoint_000007", "checkpoint_000029")
    for folder in run.glob("checkpoint_*"):
        (folder / "rllib_checkpoint.json").write_text('{"training_iteration": null}')
    assert name_of(f"{run}@newest") == "checkpoint_000029"
    assert resolve(f"{run}@newest").trained_return == -22.0
    if not evaluation:
        assert name_of(run) == "checkpoint_000029"
    with pytest.raises(ValueError, match="these states are too many or too large"):
        name_of(f"{run}@best")


def test_names_that_are_no_paths_stand_for_themselves(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert find_students(["trained"], names=["trained"])["trained"].checkpoint == "trained"
    assert find_students(["./trained"], names=["trained"])["trained"].checkpoint == str(trained / "checkpoint_000002")


def test_a_folder_with_the_name_of_a_packaged_teacher_is_named(tmp_path, monkeypatch, caplog):
    def warnings():
        return [record.getMessage() for record in caplog.records if record.name.startswith("rllib_kd")]

    monkeypatch.chdir(tmp_path)
    packaged = load_teacher("cartpole").source
    assert warnings() == []
    write_trial(tmp_path / "cartpole", evaluation=[1.0])
    assert load_teacher("cartpole").source == packaged
    (message,) = warnings()
    assert message == "'cartpole' means the teacher that comes with rllib_kd. Write './cartpole' for the folder here."
    assert load_teacher("./cartpole").source == str(tmp_path / "cartpole" / "checkpoint_000000")


@pytest.mark.slow
def test_commands_print_which_checkpoint_they_take_once(evaluated, trained, monkeypatch, capsys):
    def run(*line):
        code = exit_code(*line, "--env", "CartPole-v1", "--episodes", "2")
        output, error = capsys.readouterr()
        assert not code, error
        assert "checkpoint_0" not in output
        return [line for line in error.splitlines() if not line.startswith("warning: The teacher")]

    (note,) = run("compare", evaluated, "--teacher", evaluated)
    assert re.fullmatch(r"note: Using 'checkpoint_000001' of run '.*': it has the best .*\.", note)
    assert len(run("compare", evaluated, "--teacher", trained)) == 2
    (note,) = run("evaluate", f"{evaluated}@newest")
    assert note.endswith("/evaluated@newest': it is the newest, as @newest requests.")
    (note,) = run("export", trained, "--out", trained / "x.safetensors")
    assert note.endswith("/trained': it is the newest, since training was not evaluated.")
    assert run("evaluate", trained / "checkpoint_000000") == run("evaluate", "cartpole") == []
    assert logging.getLogger("rllib_kd.checkpoints.tune").level == logging.NOTSET


def test_the_checkpoint_of_a_sweep_names_its_students(tmp_path):
    trial = write_trial(tmp_path / "trial", training=[None])
    (trial / "checkpoint_000000").rename(trial / "seed_0")
    (trial / "checkpoint_000000").mkdir()
    (trial / "seed_0").rename(trial / "checkpoint_000000" / "seed_0")
    with pytest.raises(ValueError, match=r"with a student for each seed\. Name one .*/checkpoint_000000/seed_0'\."):
        load_teacher(trial)
    assert load_teacher(trial / "checkpoint_000000" / "seed_0").num_parameters > 0


def test_a_sweep_names_a_student(tmp_path):
    for name in ("a", "b"):
        write_trial(tmp_path / name, training=[None])
    (tmp_path / "sweep.json").write_text("{}")
    message = (
        r"is a sweep of 2 settings, .*Name one student, such as '.*/b/checkpoint_000000/seed_0'\. The sweep printed"
    )
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path)


# --- Folders of a zip -------------------------------------------------------------------------------------------------

ZIPPED = Path(__file__).parent / "sb3-2.9"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_with_one_zip_is_that_zip(caplog, scheme):
    folder = f"{scheme}{ZIPPED}"
    with caplog.at_level(logging.INFO, logger="rllib_kd"):
        assert resolve(folder).uri == f"{folder}/dqn.zip"
    assert f"Using '{folder}/dqn.zip', the only zip in '{folder}'." in caplog.messages
    (student,) = find_students([folder]).values()
    assert student.checkpoint == f"{folder}/dqn.zip"
    by_folder, by_name = load_teacher(folder), load_teacher(f"{folder}/dqn.zip")
    assert by_folder.source == by_name.source
    assert by_folder.pipeline is not None  # vecnormalize.pkl beside the zip
    assert len(by_folder.pipeline.stages) == len(by_name.pipeline.stages) > 0


def test_of_several_zips_one_must_be_named(tmp_path):
    for name in ("best_model.zip", "CartPole-v1.zip"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"contains 2 zips: 'CartPole-v1.zip', 'best_model.zip'. Name one of them."):
        resolve(tmp_path)


def test_a_checkpoint_with_a_zip_in_it_means_itself(evaluated):
    checkpoint = evaluated / "checkpoint_000000"
    (checkpoint / "films.zip").write_bytes(b"PK")
    assert resolve(checkpoint).path == str(checkpoint)
    assert resolve(evaluated).path == str(evaluated / "checkpoint_000001")


@pytest.mark.parametrize("own", ["tuner.pkl", "experiment_state-2026-11-26_16-19-05.json", "trial/params.json"])
def test_a_zip_of_tune_is_no_teacher(tmp_path, own):
    run = tmp_path / "run"
    (run / own).parent.mkdir(parents=True)
    for path in (run / own, run / own.rpartition("/")[0] / "snapshot.zip"):
        path.write_bytes(b"PK")
    for command in (resolve, load_teacher):
        with pytest.raises(ValueError, match=r"' has no checkpoint yet\..* --experiment-name run --resume") as error:
            command(run) if "/" not in own else command(run / "trial")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/results", "/results/a run"),
        ("s3://bucket/x", "s3://bucket/x/a%20run"),
        ("s3://bucket/x?region=eu-west-1", "s3://bucket/x/a%20run?region=eu-west-1"),
    ],
)
def test_options_of_a_uri_stay_behind_a_name_in_it(uri, expected):
    assert child_of(uri, "a run") == expected


# --- Families ---------------------------------------------------------------------------------------------------------


def test_the_checkpoint_of_a_family_names_each_student():
    family = Path(__file__).parent / "rllib_kd-0.2" / "family"
    paths = [str(family / "learner_group" / "learner" / "rl_module" / name) for name in ("linear", "s4")]
    for command in (load_teacher, lambda path: evaluate(path, num_episodes=1)):
        with pytest.raises(ValueError, match=r"contains the RLModules \['linear', 's4'\]") as error:
            command(family)
        assert str(error.value).endswith(f"Name the folder of one of them: '{paths[0]}', '{paths[1]}'.")
    assert all(load_teacher(path).num_parameters > 0 for path in paths)
