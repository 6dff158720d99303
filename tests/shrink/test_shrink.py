"""`rllib shrink`, and `Shrink` in Python."""

import json
import signal
import sys
from importlib import import_module
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import ray

from rllib_kd import DistillDQN, Shrink
from rllib_kd.cli.main import main
from rllib_kd.locks import locked
from rllib_kd.shrink.progress import Progress, check_unchanged, options_of
from rllib_kd.shrink.run import Run
from rllib_kd.shrink.shrink import _check_machine, _free_parts
from rllib_kd.shrink.spread import Crew
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.environments.own_files import CORRIDOR
from tests.shrink.killed import content, run_killed

SHRINK = ["shrink", "--teacher", "cartpole", "--env", "CartPole-v1"]
WRONG = {
    "keep above 1": (["--keep", "1.2"], "keep must be in (0, 1], got 1.2"),
    "keep of nothing": (["--keep", "0"], "keep must be in (0, 1], got 0"),
    "keep of NaN": (["--keep", "nan"], "keep must be in (0, 1], got nan"),
    "certainty": (["--confidence", "1"], "confidence must be in (0.5, 1), got 1.0"),
    "confidence in percent": (["--confidence", "95"], "confidence must be in (0.5, 1), got 95.0"),
    "no time": (["--minutes", "0.1"], "minutes must be at least 0.5, got 0.1"),
    "endless": (["--minutes", "inf"], "minutes must be at least 0.5, got inf"),
    "two limits": (["--minutes", "1", "--env-steps", "10"], "Set one of them"),
    "no env steps": (["--env-steps", "0"], "`env_steps` must be an integer of at least 1"),
    "few episodes": (["--episodes", "20"], "`episodes` must be an integer of at least 100"),
    "no copies": (["--restarts", "0"], "`restarts` must be an integer of at least 1"),
    "no parts": (["--parts", "0"], "`parts` must be an integer of at least 1"),
    "parts without a cluster": (["--parts", "1000"], "24 parts need 24 CPUs, but Ray has"),
    "parts that are not made": (
        ["--parts", "20", "--config", '{"num_env_runners": 3}'],
        "12 parts need 48 CPUs, but Ray has",
    ),
    "seed": (["--seed", "-1"], "`seed` must be an integer of at least 0"),
    "bounds in the wrong order": (["--bounds", "5", "1"], "the lowest first"),
    "unknown cost": (["--minimize", "byte"], "Did you mean 'bytes'?"),
    "a pool that is none": (["--certify-in-pool"], "needs an environment of envpool, such as 'envpool/LunarLander-v3'"),
    "trees in integers": (
        ["--trees", "--minimize", "int8_bytes"],
        "does not compare trees, which have no weights of 8",
    ),
    "unknown environment": (["--env", "CartPool-v1"], "Did you mean: `CartPole`?"),
    "teacher of another environment": (["--env", "Acrobot-v1"], "The teacher '"),
    "teacher that is not there": (["--teacher", "/does/not/exist"], "no checkpoint at '/does/not/exist'"),
    "several agents": (["--env", "ray.rllib.examples.envs.classes.multi_agent.MultiAgentCartPole"], "several agents"),
    "an end of its own": (["--config", '{"patience": 1000}'], "'patience' cannot be in the config"),
    "a setting of its own": (["--config", '{"restarts": 3}'], "'restarts' cannot be in the config"),
    "unknown setting": (["--config", '{"temprature": 1}'], "Did you mean 'temperature'?"),
}


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a command that is refused before Ray starts; returns its error."""
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(refused, name, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    flags, message = WRONG[name]
    given = [flag for pair in zip(SHRINK[1::2], SHRINK[2::2], strict=True) if pair[0] not in flags for flag in pair]
    error = refused("shrink", *given, *flags, "--out", str(tmp_path / "new"))
    assert message in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": "0.9"}, "keep must be a number, got '0.9'"),
        ({"confidence": None}, "confidence must be a number, got None"),
        ({"minutes": True}, "minutes must be a number, got True"),
        ({"seed": None}, "`seed` must be an integer of at least 0, got None"),
        ({"episodes": 99}, "`episodes` must be an integer of at least 100, got 99"),
        ({"episodes": 100_001}, "episodes must be at most 100,000, got 100,001"),
        ({"bounds": 5}, "bounds must be two finite returns, the lowest first, got 5"),
        ({"bounds": ("low", "high")}, "bounds must be two finite returns"),
        ({"sizes": ["linear"]}, r"sizes must be a dict such as {'small': .*got \['linear'\]"),
        ({"config": None}, r"config must be a dict such as {'lr': 0\.001}, got None"),
        ({"sizes": {"a": {"tree": {}}}, "minimize": "int8_bytes"}, "'int8_bytes' does not compare trees"),
        ({"trees": "yes"}, "trees must be True or False, got 'yes'"),
        ({"certify_in_pool": 1}, "certify_in_pool must be True or False, got 1"),
        ({"certify_in_pool": True}, "certify_in_pool=True needs an environment of envpool, .*, got env='CartPole-v1'"),
        ({"out": 5}, "out must be the path of a folder, got 5"),
        ({"env": ["CartPole-v1"]}, r"is named, or made by a class or function, got \['CartPole-v1'\]"),
        ({"teacher": {}}, "A teacher's description needs a path"),
    ],
)
def test_values_of_other_types(values, message, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match=message):
        Shrink(**{"teacher": "cartpole", "env": "CartPole-v1", **values}).run()


def test_numbers_of_numpy_are_numbers():
    asked = Shrink("cartpole", "CartPole-v1", keep=np.float32(0.5), env_steps=np.int64(7), seed=np.arange(3)[2])
    assert json.loads(json.dumps([asked.keep, asked.env_steps, asked.seed])) == [0.5, 7, 2]
    assert type(Shrink("cartpole", "CartPole-v1", minutes=5).minutes) is int  # as it was given


def test_a_folder_with_files_is_left_alone(refused, tmp_path):
    (tmp_path / "mine").write_text("")
    assert f"'{tmp_path}' is not empty" in refused(*SHRINK, "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_flags_it_is_that_of_python(monkeypatch, capsys):
    ran = []

    def run(self, **kwargs):
        ran.append((self, kwargs))
        raise ValueError("enough")

    monkeypatch.setattr(Shrink, "run", run)
    with pytest.raises(SystemExit):
        main(SHRINK)
    ((shrink, kwargs),) = ran
    assert shrink == Shrink("cartpole", "CartPole-v1")
    assert shrink.minutes == 10.0
    assert kwargs.keys() == {"resume", "address", "command", "progress"}


@pytest.fixture
def ran(monkeypatch):
    """Runs commands without running them; returns what was asked for."""
    asked = []

    def run(self, **kwargs):
        asked.append((self, kwargs))
        raise ValueError("enough")

    monkeypatch.setattr(Shrink, "run", run)

    def call(*arguments):
        with pytest.raises(SystemExit):
            main([*arguments])
        return asked.pop()

    return call


def test_a_resumed_run_has_the_options_that_it_began_with(ran, refused, tmp_path):
    flags = ["--keep", "0.9", "--bounds", "0", "500", "--config", '{"lr": 0.01}', "--minimize", "bytes"]
    began, _ = ran(*SHRINK, *flags, "--out", str(tmp_path))
    Progress(tmp_path).write({"options": options_of(began)})
    resumed, kwargs = ran("shrink", "--resume", "--out", str(tmp_path))
    assert kwargs["resume"]
    assert options_of(resumed) == options_of(began)
    assert (resumed.keep, resumed.minutes, resumed.minimize) == (0.9, 10.0, "bytes")
    resumed, _ = ran(*SHRINK, "--keep", "0.97", "--env-steps", "7", "--resume", "--out", str(tmp_path))
    assert (resumed.keep, resumed.minutes, resumed.env_steps) == (0.97, None, 7)  # given, though one is a default


def test_trust_is_a_setting_of_training(ran, tmp_path):
    began, _ = ran(*SHRINK, "--config", '{"lr": 0.01}', "--out", str(tmp_path))
    assert began.config == {"lr": 0.01}
    Progress(tmp_path).write({"options": options_of(began)})
    trusted = {"lr": 0.01, "trust_checkpoint": True}
    assert ran(*SHRINK, "--config", '{"lr": 0.01}', "--trust-checkpoint")[0].config == trusted
    assert ran("shrink", "--resume", "--out", str(tmp_path), "--trust-checkpoint")[0].config == trusted


def test_other_options_are_refused_before_the_teacher_is_loaded(refused, tmp_path):
    Progress(tmp_path).write({"options": options_of(Shrink("cartpole", "CartPole-v1", keep=0.9, minutes=5))})
    resume = ["shrink", "--resume", "--out", str(tmp_path)]
    assert "keep was 0.9 and is 0.97" in refused(*resume, "--keep", "0.97")
    error = refused(*resume, "--env-steps", "7", "--teacher", "/gone")
    for words in ("minutes was 5 and is None", "env_steps was None and is 7", "'cartpole' and is '/gone'"):
        assert words in error
    assert "already contains a run. Continue it with --resume" in refused(*SHRINK, "--out", str(tmp_path))


def test_an_environment_whose_file_has_changed_is_refused(refused, tmp_path):
    """Otherwise some episodes of a certificate would be of one environment, and some of another."""
    (tmp_path / "lane.py").write_text(f"import lane_rules\n{CORRIDOR}")
    (tmp_path / "lane_rules.py").write_text("PRICE = 1.0")
    shrink = Shrink("cartpole", f"{tmp_path}/lane.py:Corridor")
    Progress(tmp_path).write({"options": options_of(shrink)})
    check_unchanged(tmp_path, options_of(shrink), Progress(tmp_path).read()["options"])
    (tmp_path / "lane_rules.py").write_text("PRICE = 2.0")
    error = refused("shrink", "--resume", "--out", str(tmp_path))
    assert f"source of {tmp_path}/lane_rules.py was " in error
    assert "lane.py" not in error


def test_modules_that_another_process_has_loaded_beside_the_environment_are_no_part_of_it(own_folder):
    for name, text in (("lane.py", CORRIDOR), ("plots.py", ""), ("tables.py", "")):
        (own_folder / name).write_text(text)
    shrink = Shrink("cartpole", f"{own_folder}/lane.py:Corridor")
    import_module("plots")
    began_with = options_of(shrink)
    del sys.modules["plots"]
    import_module("tables")
    check_unchanged(own_folder, began_with, options_of(shrink))
    (own_folder / "lane.py").write_text(f"{CORRIDOR}\n")
    with pytest.raises(ValueError, match=r"source of .*lane\.py was '"):
        check_unchanged(own_folder, began_with, options_of(shrink))


def test_a_run_with_the_default_networks_of_another_version_is_refused(tmp_path):
    """Weights that were trained with one activation would be those of another network."""
    asked = Shrink("cartpole", "CartPole-v1", minutes=5, out=tmp_path)
    Progress(tmp_path).write({"options": {**options_of(asked), "networks": [["linear", {"fcnet_hiddens": []}]]}})
    with pytest.raises(ValueError, match=r"networks was \[\['linear', .* and is \[.*'units-16'"):
        asked.run(resume=True)


def test_what_is_needed_to_resume(refused, tmp_path):
    assert "give its folder, which was printed when it began" in refused(*SHRINK, "--resume")
    assert "no run was begun there" in refused("shrink", "--resume", "--out", str(tmp_path / "none"))
    assert "--teacher is missing" in refused("shrink", "--env", "CartPole-v1")
    assert "Neither an environment nor recorded rows are given" in refused("shrink", "--teacher", "cartpole")


def test_two_runs_do_not_mix_in_one_folder(refused, tmp_path):
    with locked(tmp_path / "new", wait=False):
        assert "is in use by process" in refused(*SHRINK, "--out", str(tmp_path / "new"))


def test_a_teacher_may_be_an_object(tmp_path):
    teacher = Teacher(make_q_module())
    with locked(tmp_path / "new", wait=False), pytest.raises(ValueError, match="is in use by"):  # nothing else is wrong
        Shrink(teacher, "CartPole-v1", out=tmp_path / "new").run()


class Seedless(gym.Env):
    """CartPole that cannot be seeded."""

    def __init__(self, config=None):
        self.env = gym.make("CartPole-v1")
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(self):
        return self.env.reset()

    def step(self, action):
        return self.env.step(action)


class Forgetful(Seedless):
    def reset(self, *, seed=None, options=None):
        return self.env.reset()


class SeededWhenMade(Forgetful):
    def __init__(self, config=None):
        super().__init__(config)
        self.env.reset(seed=0)


class Old(Seedless):
    def reset(self, *, seed=None, options=None):
        return self.env.reset()[0]


@pytest.mark.parametrize(
    ("env", "error"),
    [
        (Seedless, r"takes no seed in reset\(\)"),
        (Old, "'Old' did not return 2 values"),
        (SeededWhenMade, "'SeededWhenMade' each new environment begins with the same episode"),
    ],
)
def test_an_environment_without_seeds_is_refused_before_ray_starts(monkeypatch, tmp_path, env, error):
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    with pytest.raises((ValueError, RuntimeError), match=error):
        Shrink("cartpole", env, out=tmp_path / "new").run()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("env", "is_noted"), [(Forgetful, True), ("CartPole-v1", False)])
def test_seeds_that_determine_nothing_are_noted(capsys, tmp_path, env, is_noted):
    with locked(tmp_path / "new", wait=False), pytest.raises(ValueError, match="is in use by"):  # nothing else is wrong
        Shrink("cartpole", env, out=tmp_path / "new").run()
    assert ("equal seeds give different episodes" in capsys.readouterr().err) == is_noted


def test_on_a_cluster_without_free_resources_a_run_says_that_it_trains_here(monkeypatch, caplog, capsys, tmp_path):
    def run(self, **kwargs):
        raise ValueError(f"far enough, with {len(self.parts)} parts")

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "available_resources", dict)
    monkeypatch.setattr(Run, "__call__", run)
    for parts, is_here in ((None, True), (1, False), (2, False)):
        caplog.clear()
        with pytest.raises(ValueError, match=f"far enough, with {parts or 1} parts"):
            Shrink("cartpole", "CartPole-v1", out=tmp_path / str(parts), parts=parts).run(address="auto")
        assert ("this process trains all sizes, on this machine. To train" in caplog.text) == is_here
        assert ("Training waits until the cluster grows" in capsys.readouterr().err) == (parts == 2)


@pytest.mark.parametrize("address", [None, ""])
def test_more_parts_than_a_machine_has_cpus_are_refused_before_ray_starts(monkeypatch, address):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match="10000 parts need 10000 CPUs, but Ray has"):
        _check_machine(10_000, {"CPU": 1.0}, None)


def test_a_part_without_cpus_has_room_on_any_cluster(monkeypatch):
    monkeypatch.setattr(ray, "available_resources", dict)
    assert _free_parts({"CPU": 0.0}, "auto") == 1


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Shrink, "run", lambda self, **kwargs: SimpleNamespace(is_complete=False, folder=str(self.out)))
    with pytest.raises(SystemExit) as exit_:
        main([*SHRINK, "--out", str(tmp_path / "my run")])
    assert exit_.value.code == 1
    assert capsys.readouterr() == ("", f"interrupted; continue with: rllib shrink --resume --out '{tmp_path}/my run'\n")


# --- Whole runs; test_docs.py has one that certifies a student --------------------------------------------------------

SIZES = {"linear": "linear", "small": {"fcnet_hiddens": [4], "fcnet_activation": "tanh"}}
SMALL = {"sizes": SIZES, "env_steps": 2_000, "restarts": 2, "episodes": 200}


@pytest.mark.slow
def test_a_run_that_waits_for_the_resources_of_its_parts_can_be_interrupted_and_resumed(cluster, tmp_path, monkeypatch):
    def wait(self, look):
        signal.raise_signal(signal.SIGINT)
        look()

    monkeypatch.setattr(Crew, "wait_for_resources", wait)
    interrupted = Shrink("cartpole", "CartPole-v1", out=tmp_path / "run", parts=2, **SMALL).run()
    assert not interrupted.is_complete
    assert interrupted.reason.startswith("The run was interrupted.")
    assert Progress(tmp_path / "run").exists


@pytest.mark.slow
def test_a_teacher_like_a_random_policy_is_no_teacher(cluster, tmp_path):
    module = make_q_module(fcnet_hiddens=[32, 32])
    module.save_to_path(tmp_path / "teacher")
    result = Shrink(str(tmp_path / "teacher"), "CartPole-v1", out=tmp_path / "out", **SMALL).run()
    assert result.certified is None
    assert "not clearly better than a random policy" in str(result).replace("\n", " ")
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["certified"] is None


class Short(gym.Wrapper):
    """CartPole whose episodes soon end."""

    def __init__(self, config=None):
        super().__init__(gym.make("CartPole-v1", max_episode_steps=50))


class Uncapturable(Short):
    """As an environment in C++ often is: it cannot be pickled, and begins new episodes at every save."""

    def __reduce__(self):
        raise TypeError("cannot pickle")


@pytest.mark.slow
@pytest.mark.parametrize("env", [Short, Uncapturable])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_certificate(cluster, tmp_path, monkeypatch, env):
    def shrink(name):
        return Shrink("cartpole", env, out=tmp_path / name, seed=3, **SMALL | {"restarts": 6})

    rest, rested = DistillDQN.rest_copies, []
    monkeypatch.setattr(DistillDQN, "rest_copies", lambda self, names: rested.append(names) or rest(self, names))
    shrink("whole").run()
    assert any(rested)
    num_kills = run_killed(lambda: shrink("killed"), tmp_path / "killed", monkeypatch, after_writes=4)
    assert num_kills >= 2
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not (tmp_path / "killed" / "progress").exists()
