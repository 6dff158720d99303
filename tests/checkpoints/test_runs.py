"""Runs on disk, as Ray Tune writes them."""

import json
import math

import pytest

from rllib_kd.checkpoints.run_names import short_names
from rllib_kd.checkpoints.runs import read_curves
from rllib_kd.checkpoints.tune import find_students, resolve


def row(steps, training=None, evaluation=None):
    result = {"num_env_steps_sampled_lifetime": steps, "env_runners": {"episode_return_mean": training}}
    return result | ({"evaluation": {"env_runners": {"episode_return_mean": evaluation}}} if evaluation else {})


def write_results(folder, *rows, end=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text("".join(json.dumps(r) + "\n" for r in rows) + end)


def found(paths):
    """Checkpoints and curves, by name."""
    return {name: (student.checkpoint, student.curve) for name, student in find_students(paths).items()}


def test_curves_are_evaluations_where_there_are_some(tmp_path):
    write_results(tmp_path / "trial_a", row(10, 1.0), row(20, 2.0, 50.0), row(30, 3.0), row(40, 4.0, 60.0))
    write_results(tmp_path / "deep" / "trial_b", row(10, math.nan), row(20, None), row(30, 3.0), row(40, 4.0))
    write_results(tmp_path / "no_episode_yet", row(10), end='{"num_env_steps_sampled_lif')
    assert read_curves(tmp_path) == {
        "trial_a": [(20.0, 50.0), (40.0, 60.0)],
        "deep/trial_b": [(30.0, 3.0), (40.0, 4.0)],
    }
    assert read_curves(tmp_path / "trial_a") == {"trial_a": [(20.0, 50.0), (40.0, 60.0)]}


def test_a_resumed_trial_counts_its_later_rows_and_a_torn_line_none(tmp_path):
    write_results(tmp_path, row(10, 1.0), row(20, 2.0), row(30, 3.0), row(20, 5.0), row(31, 6.0), [1], end='{"num_')
    assert read_curves(tmp_path) == {tmp_path.name: [(10.0, 1.0), (20.0, 5.0), (31.0, 6.0)]}


def test_a_trial_that_begins_again_has_the_evaluations_of_its_last_attempt_alone(tmp_path):
    def attempt(*returns):
        return [{**row(10 * i, 1.0, value), "training_iteration": i} for i, value in enumerate(returns, 1)]

    (tmp_path / "checkpoint_000000").mkdir()
    (tmp_path / "checkpoint_000000" / "rllib_checkpoint.json").write_text('{"training_iteration": 2}')
    for last, curve, trained_return in (
        (attempt(None, None), [(10.0, 1.0), (20.0, 1.0)], 1.0),
        (attempt(None, 7.0), [(20.0, 7.0)], 7.0),
        (attempt(None, None, 8.0)[2:], [(20.0, 400.0), (30.0, 8.0)], 400.0),  # from a checkpoint of its second row
    ):
        write_results(tmp_path, *attempt(None, 400.0, None, 500.0), *last)
        assert read_curves(tmp_path) == {tmp_path.name: curve}
        (student,) = find_students([tmp_path]).values()
        assert (student.curve, student.source.trained_return) == (curve, trained_return)


def test_a_curve_knows_whose_returns_it_shows(tmp_path):
    def with_teacher(row, fraction):
        return {**row, "distillation": {"teacher_fraction": fraction}}

    write_results(tmp_path / "dqn", row(10, 1.0))
    write_results(tmp_path / "alone", with_teacher(row(10, 1.0), 0.0))
    write_results(tmp_path / "mixture", with_teacher(row(10, 1.0), 1.0), with_teacher(row(20, 1.0), 0.0))
    write_results(tmp_path / "evaluated", with_teacher(row(10, 1.0, 5.0), 1.0))
    write_results(tmp_path / "odd", {**row(10, 1.0), "distillation": [1]})
    of = {name: curve.of for name, curve in read_curves(tmp_path).items()}
    assert of == {
        "dqn": "exploring",
        "alone": "exploring",
        "mixture": "behavior",
        "evaluated": "greedy",
        "odd": "exploring",
    }
    (tmp_path / "mixture" / "checkpoint_000000").mkdir()
    assert find_students([tmp_path / "mixture"])["mixture"].curve.of == "behavior"


@pytest.mark.parametrize("folder", [".", "absent"])
def test_a_folder_without_runs(tmp_path, folder):
    with pytest.raises(ValueError, match=r"no result\.json in"):
        read_curves(tmp_path / folder)


@pytest.mark.slow
def test_reads_what_tune_writes(cluster, cartpole_config, tmp_path):
    from ray import tune

    cartpole_config.evaluation(evaluation_interval=1, evaluation_duration=1)
    results = tune.Tuner(
        "DistillDQN",
        param_space=cartpole_config,
        run_config=tune.RunConfig(name="runs", storage_path=str(tmp_path), stop={"training_iteration": 2}, verbose=0),
    ).fit()
    last = results[0].metrics
    ((name, curve),) = read_curves(tmp_path / "runs").items()
    assert name.startswith("DistillDQN_")
    expected = last["num_env_steps_sampled_lifetime"], last["evaluation"]["env_runners"]["episode_return_mean"]
    assert len(curve) == 2
    assert curve[-1] == pytest.approx(expected)


def test_students_are_checkpoints_trials_and_experiments(tmp_path):
    for trial, num_checkpoints in {"one/a": 2, "one/b": 1, "two/a": 1}.items():
        write_results(tmp_path / trial, row(10, 1.0), row(20, 2.0))
        for number in range(num_checkpoints):
            (tmp_path / trial / f"checkpoint_{number:06}").mkdir()
    students = find_students([tmp_path / "one", tmp_path / "two" / "a"])
    assert {name: student.checkpoint for name, student in students.items()} == {
        "one/a": f"{tmp_path}/one/a/checkpoint_000001",  # the newest: none was evaluated
        "one/b": f"{tmp_path}/one/b/checkpoint_000000",
        "two/a": f"{tmp_path}/two/a/checkpoint_000000",
    }
    assert all(student.curve == [(10.0, 1.0), (20.0, 2.0)] for student in students.values())
    assert resolve(tmp_path / "two").uri == f"{tmp_path}/two/a/checkpoint_000000"
    with pytest.raises(
        ValueError, match=r"contains 2 runs: a, b\. Name one.*/one/a', or '.*/one@best', the best.* none was evaluated"
    ):
        resolve(tmp_path / "one")
    old = tmp_path / "one" / "a" / "checkpoint_000000"
    assert found([old]) == {"a": (str(old), [(10.0, 1.0), (20.0, 2.0)])}
    both = [old, tmp_path / "one" / "a" / "checkpoint_000001"]
    assert set(find_students(both)) == {"checkpoint_000000", "checkpoint_000001"}
    others = ["file:///none/x", "cartpole"]
    assert found(others) == {"x": ("file:///none/x", []), "cartpole": ("cartpole", [])}


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    write_results(tmp_path / "one" / "a", row(10, 1.0))
    with pytest.raises(ValueError, match="one/a' has no checkpoint"):
        find_students([tmp_path / "one"])


def test_names_of_tunes_trials_are_what_they_vary(tmp_path):
    date = "2026-11-24_03-58-14"
    trials = [f"DistillDQN_CartPole-v1_45b79_0000{i}_{i}_compression=0.0{i}_{date}" for i in range(2)]
    for trial in [*trials, f"DQN_env_12345_00000_0_{date}", f"DQN_env_12345_00001_1_{date}"]:
        write_results(tmp_path / trial, row(10, 1.0))
        (tmp_path / trial / "checkpoint_000000").mkdir()
    assert set(find_students([tmp_path])) == {"compression=0.00", "compression=0.01", "00000", "00001"}
    checkpoints = [tmp_path / trial / "checkpoint_000000" for trial in trials]
    assert set(find_students(checkpoints)) == {"compression=0.00", "compression=0.01"}
    only = tmp_path / "sizes" / f"DQN_env_12345_00000_0_{date}"
    write_results(only, row(10, 1.0))
    (only / "checkpoint_000000").mkdir()
    assert set(find_students([*checkpoints, tmp_path / "sizes"])) == {"compression=0.00", "compression=0.01", "sizes"}


def test_the_folder_one_stands_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    here = str(tmp_path / "here" / "below")
    assert found([".", ".."]) == {"below": (here, []), "here": (str(tmp_path / "here"), [])}
    assert resolve(".").uri == here
    write_results(tmp_path / "here" / "below", row(10, 1.0))
    (tmp_path / "here" / "below" / "checkpoint_000000").mkdir()
    assert found(["."]) == {"below": (f"{here}/checkpoint_000000", [(10.0, 1.0)])}


def test_a_path_that_means_nothing_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="A path is empty"):
        resolve("")
    with pytest.raises(ValueError, match=r"'~nosuchuser/x' begins with a home folder that is not known"):
        resolve("~nosuchuser/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_results(tmp_path / "run", row(10, 1.0))
    (tmp_path / "run" / "checkpoint_000000").mkdir()
    assert resolve("~/run").uri == f"{tmp_path}/run/checkpoint_000000"


@pytest.mark.parametrize("number", [10**400, -(10**400), math.inf, math.nan, True, "1", [1], {}])
def test_a_number_that_is_none_is_left_out(tmp_path, number):
    write_results(tmp_path, row(10, 1.0), row(20, number), row(number, 2.0), row(30, 3.0))
    assert read_curves(tmp_path) == {tmp_path.name: [(10.0, 1.0), (30.0, 3.0)]}
    (tmp_path / "checkpoint_000000").mkdir()
    assert resolve(tmp_path).trained_return == 3.0


# --- Names ------------------------------------------------------------------------------------------------------------

TRIAL = "DistillDQN_CartPole-v1_%s_0000%d_%d%s_2026-11-26_%s"


def trial(experiment="default", began="16-19-05", index=0, varied="", id="abc12"):
    return f"/home/me/{experiment}/{TRIAL % (id, index, index, varied, began)}"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (  # begun again under one name
            [trial(), trial(began="17-20-06", id="def34")],
            ["2026-11-26_16-19-05", "2026-11-26_17-20-06"],
        ),
        (
            [trial(varied="_lr=0.1"), trial(began="17-20-06", varied="_lr=0.1"), trial(index=1, varied="_lr=0.2")],
            ["lr=0.1_2026-11-26_16-19-05", "lr=0.1_2026-11-26_17-20-06", "lr=0.2_2026-11-26_16-19-05"],
        ),
        ([trial("a/runs"), trial("b/runs")], ["a/runs", "b/runs"]),
        (["/a/of/mine/student", "/b/of/mine/student"], ["a/…/student", "b/…/student"]),
        (  # of nobody's naming
            [
                trial("DistillDQN_CartPole-v1_2026-11-26_16-19-05"),
                trial("DistillDQN_CartPole-v1_2026-11-26_16-19-05_2"),
            ],
            ["2026-11-26_16-19-05", "2026-11-26_16-19-05_2"],
        ),
        (
            [trial("DQN_CartPole-v1_2026-11-26_16-19-05"), trial("DistillDQN_CartPole-v1_2026-11-26_16-19-05")],
            ["DQN_CartPole-v1_2026-11-26_16-19-05", "DistillDQN_CartPole-v1_2026-11-26_16-19-05"],
        ),
        ([trial("DQN_CartPole-v1_2026-11-26_16-19-05")], ["DQN_CartPole-v1_2026-11-26_16-19-05"]),
        (
            [f"/tmp/{name}/learner_group/learner/rl_module/default_policy" for name in ("small", "tiny")],
            ["small", "tiny"],
        ),
        (["/tmp/small/learner_group/learner/rl_module", "/tmp/default_policy"], ["small", "default_policy"]),
    ],
)
def test_runs_of_one_name_are_told_apart(paths, names):
    assert short_names(paths) == names


def test_a_student_has_the_name_that_it_is_given(tmp_path, monkeypatch):
    for name in ("one/a", "one/b", "two/a", "three/lr=0.1"):
        write_results(tmp_path / name, row(10, 1.0))
        (tmp_path / name / "checkpoint_000000").mkdir()
    students = find_students(
        [f"big={tmp_path}/one", f"x y={tmp_path}/two@newest", tmp_path / "three", "own=cartpole"], names=["cartpole"]
    )
    assert {name: student.checkpoint for name, student in students.items()} == {
        "big/a": f"{tmp_path}/one/a/checkpoint_000000",
        "big/b": f"{tmp_path}/one/b/checkpoint_000000",
        "x y": f"{tmp_path}/two/a/checkpoint_000000",
        "lr=0.1": f"{tmp_path}/three/lr=0.1/checkpoint_000000",
        "own": "cartpole",
    }
    assert [student.is_named for student in students.values()] == [True, True, True, False, True]
    assert students["big/a"].curve == [(10.0, 1.0)]
    monkeypatch.chdir(tmp_path / "three")
    for path in ("lr=0.1", "lr=0.1@newest", f"file://{tmp_path}/three/lr=0.1"):
        ((_, student),) = find_students([path]).items()  # a path that exists is not split
        assert student.checkpoint.endswith("/three/lr=0.1/checkpoint_000000")
        assert not student.is_named


def test_a_given_name_is_no_one_elses(tmp_path):
    for name in ("one/a", "two/a"):
        (tmp_path / name).mkdir(parents=True)
    first, second = tmp_path / "one" / "a", tmp_path / "two" / "a"
    assert list(find_students([f"a={first}", second])) == ["a", str(second)]
    assert list(find_students([second, f"a={first}"])) == [str(second), "a"]
    with pytest.raises(ValueError, match=r"Two students are named 'a'\. Give each a name of its own: NAME=PATH"):
        find_students([f"a={first}", f"a={second}"])


@pytest.mark.parametrize("text", ["=x", "a=", " =x", "="])
def test_half_a_name_is_refused(text):
    with pytest.raises(ValueError, match=rf"Expected NAME=PATH, .* Got '{text}'"):
        find_students([text])
