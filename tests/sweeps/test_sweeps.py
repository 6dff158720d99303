"""Sweeps: what is searched, what a trial does, what is left of it when the driver dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import tune
from ray.tune.search.sample import Categorical, Float

from rllib_kd import DistillDQN, Sweep, load_teacher, search_space, sweep_loggers
from rllib_kd.algorithm.student_config import student_config
from rllib_kd.experiment.snapshots import SNAPSHOT
from rllib_kd.locks import locked
from rllib_kd.offline.fingerprint import WEIGHTS
from rllib_kd.relay import printed_warnings
from rllib_kd.sweeps.report import summary
from rllib_kd.sweeps.space import POPULATION_SETTINGS, default_points, drawn_space, population_space, read_space
from rllib_kd.sweeps.spec import check_spec, write_spec
from rllib_kd.sweeps.trial import StudentTrial, Task, settings_of
from tests.background import in_background, wait_for
from tests.conftest import make_q_module, ray_address
from tests.shrink.test_shrink import SeededWhenMade

ROOT = Path(__file__).parents[2]
#: Little to sample, to learn and to play, so that a trial takes a second.
QUICK = {
    "env_config": {"max_episode_steps": 50},  # whole episodes of CartPole are most of what a trial costs
    "training_intensity": 4.0,
    "num_steps_sampled_before_learning_starts": 64,
    "min_sample_timesteps_per_iteration": 64,
    "num_envs_per_env_runner": 4,
}


def quick_sweep(tmp_path, **kwargs):
    defaults = {"teacher": "cartpole", "env": "CartPole-v1", "num_samples": 2, "num_seeds": 1, "env_steps": 1_600}
    return Sweep(**{**defaults, "config": QUICK, "storage_path": str(tmp_path), **kwargs})


def rows_of(trial):
    return [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]


def trials_in(sweep):
    return sorted(path.parent for path in Path(sweep.path).glob("*/result.json"))


# --- The space --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space():
    return search_space(load_teacher("cartpole"), median_gap=0.12, env_steps=10_000)


def test_every_point_of_the_space_is_a_config(space):
    teacher = load_teacher("cartpole")
    for seed in range(30):
        sample = {name: domain.sample(random_state=seed) for name, domain in space.items()}
        student_config("CartPole-v1", teacher, settings_of(sample, {}), seed=0).validate()


def test_image_teachers_are_compressed():
    import gymnasium as gym
    import numpy as np

    from rllib_kd import Teacher

    frames = gym.spaces.Box(-1.0, 1.0, (42, 42, 1), np.float32)
    teacher = Teacher(make_q_module(frames, conv_filters=[[8, 4, 2], [8, 4, 2]], fcnet_hiddens=[]))
    names = search_space(teacher, median_gap=1.0, env_steps=100)
    assert isinstance(names["compression"], Float)
    assert "fcnet_hiddens" not in names


def test_the_defaults_lie_in_the_space_at_every_size(space):
    points = default_points(space, median_gap=0.12, env_steps=10_000)
    assert [point["fcnet_hiddens"] for point in points] == space["fcnet_hiddens"].categories
    for point in points:
        assert point.keys() == space.keys()
        assert all(domain.is_valid(point[name]) for name, domain in space.items())
    assert default_points({**space, "gamma": tune.uniform(0.9, 1.0)}, median_gap=0.12, env_steps=10_000) == []
    elsewhere = {**space, "lr": tune.uniform(0.5, 1.0)}
    assert default_points(elsewhere, median_gap=0.12, env_steps=10_000) == []


def test_a_population_varies_nothing_that_shapes_the_student(space):
    assert set(population_space(space)) == set(POPULATION_SETTINGS)


@pytest.mark.parametrize("fixed", [{"compression": 0.1}, {"model_config": {"fcnet_hiddens": [8]}}])
def test_what_is_fixed_is_not_searched(tmp_path, fixed):
    sweep = quick_sweep(tmp_path, config={"lr": 0.01, **fixed})
    names = sweep._space(load_teacher("cartpole"), 0.12)
    assert {"lr", "fcnet_hiddens", "compression"}.isdisjoint(names)
    assert "loss" in names


@pytest.mark.parametrize("tree", [{"student": {"tree": {}}}, {"model_config": {"tree": {"max_leaf_nodes": 8}}}])
def test_of_trees_nothing_is_searched_that_they_do_not_have(tmp_path, tree):
    names = set(quick_sweep(tmp_path, config=tree, space=search_space)._space(load_teacher("cartpole"), 0.12))
    assert names == {"teacher_fraction"}


def test_the_space_of_the_file_in_tuning_is_one(tmp_path):
    space = read_space(str(ROOT / "tuning" / "search_space.py"))
    names = quick_sweep(tmp_path, space=space)._space(load_teacher("cartpole"), 0.12)
    assert isinstance(names["fcnet_hiddens"], Categorical)


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_seeds": 0}, "`num_seeds` must be an integer of at least 1, got 0"),
        ({"scheduler": "ashe"}, "Unknown scheduler 'ashe'. Did you mean 'asha'"),
        ({"search": "optima"}, "Unknown search 'optima'. Did you mean 'optuna'"),
        ({"search": "optuna", "scheduler": "asha"}, "needs the final values of two objectives"),
        ({"search": "optuna", "scheduler": "pbt"}, "values of other settings"),
        (
            {"minimize": "latency"},
            "minimize must be one of parameters, bytes, int8_bytes, multiply_adds, got 'latency'",
        ),
        ({"minimize": "int8_bytes", "config": {"student": {"tree": {}}}}, "'int8_bytes' does not compare trees"),
        ({"minimize": "int8_bytes", "config": {"model_config": {"tree": {}}}}, "'int8_bytes' does not compare trees"),
        ({"name": "../x"}, r"`name` must name a folder below --storage-path, got '../x'"),
        ({"name": "/tmp/x"}, "`name` must name a folder below --storage-path, got '/tmp/x'"),
        ({"name": " "}, "`name` is empty"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        ({"config": {"seed": 3}}, "'seed' cannot be in the config of a sweep: each student has its own. Set --seed"),
        ({"config": {"env": "Acrobot-v1"}}, "'env' cannot be in the config of a sweep"),
        ({"config": {"patience": 1_000}}, "'patience' cannot be in the config .* after the same number of env steps"),
        ({"config": {"students": {"a": "linear"}}}, "'students' cannot be in the config .* a setting is one student"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        quick_sweep(tmp_path, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config": {"learning_rate": 0.1}}, "has no setting 'learning_rate'"),
        ({"config": {"model_config": None}}, "'model_config' cannot be None"),
        ({"config": {"student": 5}}, "'student' cannot be 5: expected a string or an object"),
        ({"config": {"env_config": 5}}, "'env_config' cannot be 5: expected an object"),
        ({"teacher": "/does/not/exist"}, "There is no checkpoint at '/does/not/exist'"),
        ({"env": "Acrobot-v1"}, "The teacher .* was made for observations .* but the environment has"),
        ({"env": SeededWhenMade, "keep": 0.9, "num_seeds": 3}, "each new environment begins with the same episode"),
        pytest.param({"space": lambda teacher, **facts: {}}, "There is nothing to search", marks=pytest.mark.slow),
        pytest.param(
            {"config": {"model_config": {"use_lstm": True}}},
            r"Recurrent students \('use_lstm'\) are not supported here",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_no_trial_could_do_is_refused_before_the_first(cluster, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        quick_sweep(tmp_path, **values).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resume", [False, True])
def test_a_sweep_that_runs_is_left_alone(tmp_path, resume):
    sweep = quick_sweep(tmp_path / "results")
    Path(sweep.path).mkdir(parents=True)
    with (
        locked(Path(sweep.path), wait=False),
        pytest.raises(ValueError, match=rf"is in use by process {os.getpid()} on .* or give another name"),
    ):
        sweep.run(resume=resume)


def test_a_teacher_that_knows_nothing_has_nothing_to_give(cluster, tmp_path, small_teacher):
    with pytest.raises(ValueError, match="no better than a random policy"):
        quick_sweep(tmp_path, teacher=small_teacher).run()


def test_a_file_without_a_space_says_so():
    with pytest.raises(ValueError, match=r"there is no file 'nowhere.py'"):
        read_space("nowhere.py")
    with pytest.raises(ValueError, match=r"cartpole.py' defines no search_space\(\)"):
        read_space(str(ROOT / "tuning" / "cartpole.py"))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda teacher, **figures: None, r"search_space\(\) must return settings with domains: .* got None"),
        (lambda teacher: {}, r"search_space\(\) raised an error: TypeError: .* keyword argument 'median_gap'"),
        (
            lambda teacher, **figures: {"lr": 0.1},
            r"with Tune's domains, .* got 'lr': 0\.1\. Fix",
        ),
        (lambda teacher, **figures: {"lr": tune.grid_search([0.1])}, r"with Tune's domains"),
        (lambda teacher, **figures: {"env": tune.choice(["x"])}, "'env' cannot be in the search space of a sweep"),
    ],
)
def test_what_is_no_space_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        drawn_space(function, None, median_gap=0.1, env_steps=100)


def test_a_sweep_is_resumed_with_the_teacher_that_it_began_with(tmp_path, monkeypatch):
    sweep = quick_sweep(tmp_path, env=None, config={"input_": "rows"})
    write_spec(sweep.path, sweep._spec() | {WEIGHTS: "of another", "rows": "same"})
    (Path(sweep.path) / SNAPSHOT).touch()
    rows = SimpleNamespace(fingerprint="same")
    monkeypatch.setattr(Sweep, "_task_on_rows", lambda self, _: (setattr(self, "_rows", rows), 0.1))
    with pytest.raises(ValueError, match=r"weights of the teacher was 'of another' and is '.+'\. Resume it"):
        sweep.run(resume=True)
    spec = sweep._spec() | {"rows": "same"}
    write_spec(sweep.path, spec | {WEIGHTS: spec[WEIGHTS][:64]})  # as older fingerprints are
    check_spec(sweep.path, spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "contains another kind of run: a sweep keeps sweep.json there"),
        ("{", "sweep.json' is damaged: .* Start a new sweep, with another name"),
        ("[]", "sweep.json' is damaged: expected an object"),
    ],
)
def test_a_folder_that_is_not_a_sweeps_is_not_resumed(tmp_path, text, message):
    sweep = quick_sweep(tmp_path)
    Path(sweep.path).mkdir()
    (Path(sweep.path) / SNAPSHOT).touch()
    if text is not None:
        (Path(sweep.path) / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        sweep.run(resume=True)


def test_loggers_that_are_not_installed_say_so(monkeypatch):
    for wing in ("sweeps", "experiment"):
        monkeypatch.setattr(f"rllib_kd.{wing}.loggers.find_spec", lambda name: None)
    for flag, library in (("wandb_project", "wandb"), ("mlflow_uri", "mlflow")):
        with pytest.raises(ValueError, match=f"pip install {library}"):
            sweep_loggers(**{flag: "somewhere"})


@pytest.mark.slow
def test_mlflow_gets_every_setting_and_this_process_the_warnings_once(cluster, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="MLflow rejects the URI 'nonsense://'"):
        sweep_loggers(mlflow_uri="nonsense://")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # out of fashion, but needs neither server nor database
    loggers = sweep_loggers(mlflow_uri=str(tmp_path / "mlflow"))
    large = {**QUICK, "model_config": {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}}
    with printed_warnings():
        assert len(quick_sweep(tmp_path, search="random", callbacks=loggers, config=large).run().students) == 2
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "nearly as many as its teacher" in warning
    assert len(list(tmp_path.glob("mlflow/*/*/metrics/return_ratio"))) == 2


# --- A trial ----------------------------------------------------------------------------------------------------------


def trial_of(teacher, num_seeds=2, minimize="multiply_adds", **config):
    returns = {"teacher_return": 500.0, "random_return": 20.0}
    task = Task("CartPole-v1", QUICK, 1_600, num_seeds, 0, **returns, minimize=minimize)
    made = tune.with_parameters(StudentTrial, teacher=teacher, task=task)
    return made({"fcnet_hiddens": [4], **config})


@pytest.fixture
def teacher():
    return load_teacher("cartpole")


@pytest.mark.slow
def test_a_trial_reports_the_mean_of_its_seeds(cluster, teacher):
    trial = trial_of(teacher)
    result = trial.train()
    assert len(result["return_ratios"]) == 2
    assert result["return_ratios"][0] != result["return_ratios"][1]
    assert result["return_ratio"] == pytest.approx(sum(result["return_ratios"]) / 2)
    assert result["return_ratio_lower"] < result["return_ratio"]
    assert result["student_params"] == 4 * 4 + 4 + 4 * 2 + 2
    assert result["student_cost"] == 4 * 4 + 4 * 2
    assert 200 <= result["num_env_steps_sampled_lifetime"] < 400
    assert not result["done"]
    for _ in range(7):
        result = trial.train()
    assert result["done"]
    assert 1_600 <= result["num_env_steps_sampled_lifetime"] < 1_900
    trial.stop()


@pytest.mark.slow
def test_a_restored_trial_goes_on_with_its_counters(cluster, teacher, tmp_path):
    trial, restored = trial_of(teacher), trial_of(teacher)
    for _ in range(3):
        before = trial.train()
    restored.restore(trial.save(str(tmp_path)))
    after = restored.train()
    assert after["training_iteration"] == 4
    for counter in ("num_env_steps_sampled_lifetime", "num_gradient_steps_lifetime"):
        assert before[counter] < after[counter] < 2 * before[counter]
    trial.stop(), restored.stop()


@pytest.mark.slow
def test_what_pbt_exchanges_is_the_students_and_not_the_settings(cluster, teacher, tmp_path):
    donor, taker = trial_of(teacher, lr=0.01, temperature=0.2, kd_coeff=1.0), trial_of(teacher, lr=0.01)
    donor.train()
    path = donor.save(str(tmp_path))
    assert taker.reset({"fcnet_hiddens": [4], "lr": 0.002, "temperature": 0.5, "kd_coeff": 3.0})
    taker.restore(path)
    for student, other in zip(taker._students, donor._students, strict=True):
        learner = student.learner_group._learner
        assert {group["lr"] for group in learner.get_optimizer("default_policy").param_groups} == {0.002}
        ours, theirs = (algo.learner_group.get_weights()["default_policy"] for algo in (student, other))
        assert all((ours[name] == theirs[name]).all() for name in ours)
    taker.train()
    for student in taker._students:
        learner = student.learner_group._learner
        assert (learner.groups["default_policy"].temperature, learner.kd_coeff) == (0.5, 3.0)
        assert {group["lr"] for group in learner.get_optimizer("default_policy").param_groups} == {0.002}
    donor.stop(), taker.stop()


# --- A sweep ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_teacher_is_read_once_and_travels_through_ray(cluster, tmp_path):
    gone = tmp_path / "gone"
    path = Path(load_teacher("cartpole").module.save_to_path(str(tmp_path / "teacher")))

    def moves_it(teacher, **facts):  # called when the driver has read it
        path.rename(gone)
        return {"fcnet_hiddens": tune.choice([[4]])}

    sweep = quick_sweep(tmp_path / "results", teacher=str(path), space=moves_it, search="random", num_samples=1)
    result = sweep.run()
    assert not result.failed
    assert str(result) == summary(result)  # print(result)
    (student,) = result.students
    assert (student.num_parameters, student.finished) == (30, True)
    restored = DistillDQN.from_checkpoint(f"{student.checkpoint}/seed_0")  # in need of nothing but itself
    assert restored.train()["num_env_steps_sampled_lifetime"] > student.env_steps
    restored.stop()
    assert "ObjectRef" not in (trials_in(sweep)[0] / "params.json").read_text()
    assert list(trials_in(sweep)[0].glob("events.out.tfevents.*"))
    assert {file.name for file in Path(sweep.path, "report").iterdir()} == {
        "index.html",
        "pareto.png",
        "sweep.csv",
        "sweep.json",
    }
    with pytest.raises(ValueError, match=r"already contains a sweep\. Continue it with --resume"):
        sweep.run()
    with pytest.raises(ValueError, match="was started with other options: num_seeds was 1 and is 2"):
        quick_sweep(tmp_path / "results", search="random", num_samples=1, num_seeds=2).run(resume=True)


@pytest.mark.slow
def test_optuna_seeks_both_objectives(cluster, tmp_path):
    sweep = quick_sweep(tmp_path)
    result = sweep.run(resume=True)  # there is nothing yet: it starts
    assert len(result.students) == 2
    sizes = {student.num_parameters for student in result.students}
    assert 10 in sizes  # the linear one is among the first points
    assert len({student.name for student in result.students}) == 2


@pytest.mark.slow
def test_asha_stops_settings_early(cluster, tmp_path):
    space = {"lr": tune.choice([1e-6, 3e-3]), "fcnet_hiddens": tune.choice([[16]])}
    sweep = quick_sweep(
        tmp_path,
        scheduler="asha",
        num_samples=6,
        env_steps=4_000,
        config={**QUICK, "training_intensity": 32.0},
        space=lambda teacher, **facts: space,
    )
    result = sweep.run()
    early = [student for student in result.students if not student.finished]
    assert early
    assert all(student.settings["lr"] == 1e-6 for student in early)
    assert all(student.finished for student in result.front)


@pytest.mark.slow(as_many=10)
def test_pbt_exchanges_students(cluster, tmp_path):
    sweep = quick_sweep(tmp_path, scheduler="pbt", num_samples=2, config={**QUICK, "compression": 0.01})
    result = sweep.run()
    assert not result.failed
    assert len({student.num_parameters for student in result.students}) == 1
    assert {name for student in result.students for name in student.settings} == set(POPULATION_SETTINGS)
    exchanges = Path(sweep.path, "pbt_global.txt").read_text().splitlines()
    assert all(json.loads(line)[0] != json.loads(line)[1] for line in exchanges)  # the numbers of taker and donor


# --- Interrupted and killed -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_saves_the_trials_and_says_how_to_go_on(cluster, tmp_path):
    sweep = quick_sweep(tmp_path, search="random", num_samples=1, env_steps=8_000)

    def interrupt():
        wait_for(lambda: any(map(rows_of, trials_in(sweep))))
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = in_background(interrupt)
    result = sweep.run()
    interrupting.result(timeout=60)
    assert not result.is_complete
    assert "interrupted. Continue with the same command and --resume." in " ".join(str(result).split())
    (trial,) = trials_in(sweep)
    num_iterations = len(rows_of(trial))
    assert max(trial.glob("checkpoint_*")).name == f"checkpoint_{num_iterations - 1:06}"
    assert num_iterations < 8


@pytest.mark.slow
def test_a_killed_sweep_resumes_where_it_was(tmp_path, rllib):
    steps, before_learning = 4_800, 256
    config = {
        **QUICK,
        "training_intensity": 32.0,
        "num_steps_sampled_before_learning_starts": before_learning,
        "min_sample_timesteps_per_iteration": 256,
    }
    arguments = ["--teacher", "cartpole", "--env", "CartPole-v1", "--config", json.dumps(config), "--num-samples", "2"]
    arguments += ["--num-seeds", "1", "--env-steps", str(steps), "--storage-path", str(tmp_path), "--name", "killed"]
    command = [sys.executable, str(ROOT / "tuning" / "sweep.py"), *arguments, "--address", ray_address()]
    folder = tmp_path / "killed"

    def saved():
        """Trial → iterations that it has saved."""
        found = {}
        for checkpoint in folder.glob("*/checkpoint_*"):
            found.setdefault(checkpoint.parent, []).append(int(checkpoint.name.split("_")[1]) + 1)
        return {trial: max(iterations) for trial, iterations in found.items()}

    driver = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    deadline = time.monotonic() + 600

    def wait_for(what):
        while not what():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_for(lambda: max(saved().values(), default=0) >= 3)
    known, seen_at = saved(), time.time()
    wait_for(lambda: (folder / SNAPSHOT).stat().st_mtime > seen_at)  # from then on the sweep knows of them
    driver.kill()
    driver.wait()
    before = saved()
    assert any(iteration < 8 for iteration in before.values())
    time.sleep(3)  # its trials see that their driver is gone
    for state in folder.glob("*state-*"):  # as if it had died while it wrote them
        os.truncate(state, state.stat().st_size // 2)

    done = rllib("sweep", *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert "2 settings" in done.stdout
    trials = sorted(path.parent for path in folder.glob("*/result.json"))
    assert len(trials) == 2
    for trial in trials:
        rows = rows_of(trial)
        assert rows[-1]["training_iteration"] == 8
        resumed = next((row for row in rows if row["iterations_since_restore"] != row["training_iteration"]), None)
        if trial in known and before[trial] < 8:
            assert resumed is not None, "it began anew"
            assert resumed["training_iteration"] > known[trial] - 1  # a checkpoint is there before it is known
        for row in rows:
            goal = steps * row["training_iteration"] / 8
            sampled = row["num_env_steps_sampled_lifetime"]
            assert goal <= sampled < goal + 520  # an iteration has 504
            # The replay ratio, but for what was sampled before learning started, here and after the restart.
            unused = 3 * before_learning
            assert 32 * (sampled - unused) / 256 < row["num_gradient_steps_lifetime"] <= 32 * sampled / 256
