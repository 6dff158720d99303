"""Baselines are measured once for a teacher and an environment, and again where either differs."""

import math
import os
import time
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.algorithm import baselines
from rllib_kd.algorithm.baselines import baseline_key, cached, check_baselines, play_baselines
from rllib_kd.algorithm.returns import StudentReturns
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import receive
from tests.conftest import make_q_module

PLAYED = {"teacher": [1.0, 2.0], "random": [0.0, 0]}


def test_the_second_algorithm_plays_no_baselines(build, cartpole_config, monkeypatch):
    config = cartpole_config.distillation(teacher="cartpole", num_baseline_episodes=3)
    first = build(config.copy(copy_frozen=False)).train()["distillation"]
    monkeypatch.setattr(
        "rllib_kd.env_runner.single_agent.DistillEnvRunner.play_episodes",
        lambda *args, **kwargs: {"default_policy": [1.0]},
    )
    second = build(config.copy(copy_frozen=False)).train()["distillation"]
    assert second["teacher_return"] == first["teacher_return"] == 500.0
    assert second["random_return"] == first["random_return"]
    other = build(config.copy(copy_frozen=False).environment(env_config={"sutton_barto_reward": True}))
    assert other.train()["distillation"]["teacher_return"] == 1.0


def test_episodes_are_the_same_in_every_run_and_training_is_not(build, cartpole_config, monkeypatch):
    monkeypatch.setattr("rllib_kd.algorithm.baselines.baseline_key", lambda *args: None)  # nothing is kept
    config = cartpole_config.distillation(num_baseline_episodes=9).debugging(seed=None)
    runs = [build(config.copy(copy_frozen=False)) for _ in range(2)]
    returns = [run._returns["default_policy"] for run in runs]
    assert returns[0].teacher == returns[1].teacher
    assert returns[0].random == returns[1].random
    shown = [
        run.env_runner.sample_columns(teacher_fraction=1.0, epsilon=0.0, names=["obs"], num_shards=1) for run in runs
    ]
    first, second = (receive(shards[0])["obs"] for shards, _ in shown)
    assert not np.array_equal(first[:4], second[:4])


def test_keys():
    teacher = Teacher(make_q_module())
    key = baseline_key(teacher, "CartPole-v1", {}, (5, 0))
    assert key == baseline_key(Teacher(make_q_module(), source="elsewhere"), "CartPole-v1", {}, (5, 0))
    others = [
        baseline_key(Teacher(make_q_module(seed=1)), "CartPole-v1", {}, (5, 0)),
        baseline_key(teacher, "CartPole-v0", {}, (5, 0)),
        baseline_key(teacher, "CartPole-v1", {"render_mode": "rgb_array"}, (5, 0)),
        baseline_key(teacher, "CartPole-v1", {}, (6, 0)),
    ]
    assert len({key, *others}) == 5
    assert None not in (key, *others)


@pytest.mark.parametrize(
    "change",
    [
        {"max_episode_steps": 100},
        {"kwargs": {"sutton_barto_reward": True}},
        {"entry_point": "gymnasium.envs.classic_control.cartpole:CartPoleEnv"},
        {"additional_wrappers": (gym.wrappers.ClipReward.wrapper_spec(min_reward=0.0),)},
        {"order_enforce": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_name_that_is_registered_otherwise_is_another_environment(monkeypatch, change):
    def key(**change):
        settings = {"entry_point": "gymnasium.envs.classic_control:CartPoleEnv", "max_episode_steps": 1_000, **change}
        monkeypatch.setitem(gym.registry, "Cart-v9", gym.envs.registration.EnvSpec("Cart-v9", **settings))
        return baseline_key(teacher, "Cart-v9", {}, ())

    teacher = Teacher(make_q_module())
    assert key() == key() != key(**change)
    assert key(**change) is not None


def test_environments_that_may_be_edited_are_not_kept(monkeypatch):
    teacher = Teacher(make_q_module())
    own_wrapper = gym.envs.registration.WrapperSpec("Own", "own:Wrapper", kwargs={})
    wrapped = {"entry_point": "gymnasium.envs.classic_control:CartPoleEnv", "additional_wrappers": (own_wrapper,)}
    monkeypatch.setitem(gym.registry, "Wrapped-v0", gym.envs.registration.EnvSpec("Wrapped-v0", **wrapped))
    monkeypatch.setitem(gym.registry, "Own-v0", gym.envs.registration.EnvSpec("Own-v0", entry_point="own:Env"))
    for env in (lambda config: None, "registered with Tune", "Own-v0", "Wrapped-v0"):
        assert baseline_key(teacher, env, {}, ()) is None
    assert baseline_key(teacher, "CartPole-v1", {"f": (i for i in ())}, ()) is None  # does not pickle


def test_a_broken_or_missing_cache_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cached("k", lambda: PLAYED) == PLAYED
    assert cached("k", pytest.fail) == PLAYED
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    assert cached("k", lambda: PLAYED | {"teacher": [2.0]}) == PLAYED | {"teacher": [2.0]}
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached("k", lambda: {"teacher": [3.0]}) == {"teacher": [3.0]}


ODD = {
    "a list": "[[1.0], [2.0]]",
    "a number": "3",
    "nobody": "{}",
    "one alone": '{"teacher": [1.0]}',
    "somebody else": '{"teacher": [1.0], "random": [0.0], "student": [1.0]}',
    "no list": '{"teacher": 1.0, "random": [0.0]}',
    "an object": '{"teacher": {"0": 1.0}, "random": [0.0]}',
    "no returns": '{"teacher": [], "random": [0.0]}',
    "a text": '{"teacher": ["1.0"], "random": [0.0]}',
    "text for a list": '{"teacher": "11", "random": "00"}',
    "a truth": '{"teacher": [true], "random": [0.0]}',
    "nothing": '{"teacher": [null], "random": [0.0]}',
    "lists in lists": '{"teacher": [[1.0]], "random": [0.0]}',
    "NaN": '{"teacher": [NaN], "random": [0.0]}',
    "infinity": '{"teacher": [1.0], "random": [-Infinity]}',
    "too large for a float": '{"teacher": [1' + 400 * "0" + '], "random": [0.0]}',
    "too long for an integer": '{"teacher": [1' + 9000 * "0" + '], "random": [0.0]}',
    "deep": 100_000 * "[",
    "bytes": "\x00\xff",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_an_odd_cache_is_measured_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "rllib_kd" / "baselines-k.json"
    file.parent.mkdir()
    file.write_bytes(content.encode("latin-1"))
    assert cached("k", lambda: PLAYED) == PLAYED
    assert cached("k", pytest.fail) == PLAYED


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_no_cache(tmp_path, monkeypatch, make):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "rllib_kd").mkdir()
    make(tmp_path / "rllib_kd" / "baselines-k.json")
    assert cached("k", lambda: PLAYED) == PLAYED


def test_without_a_home_nothing_is_kept(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", nowhere)
    assert cached("k", lambda: PLAYED) == PLAYED


@pytest.mark.parametrize(
    ("duration", "unit", "expected"),
    [(3, "episodes", 3), (10_000, "timesteps", 10), ("auto", "episodes", 10), ("auto", "timesteps", 10)],
)
def test_by_default_they_are_as_many_episodes_as_an_evaluation_has(monkeypatch, duration, unit, expected):
    monkeypatch.setattr(baselines, "check_baselines", lambda *args, **kwargs: None)
    monkeypatch.setattr(baselines, "_play_episodes", lambda group, ids, count, *, teacher: {"left": [1.0] * count})
    config = SimpleNamespace(num_baseline_episodes=None, env="X", is_multi_agent=True, kd_coeff=1.0)
    config.evaluation_duration, config.evaluation_duration_unit = duration, unit
    assert len(play_baselines(config, {"left": Teacher()}, None)["left"]["teacher"]) == expected


# --- What is said of a teacher ----------------------------------------------------------------------------------------


class Corridor(gym.Env):
    """An environment that is given as a class."""


@pytest.mark.parametrize(
    ("teacher", "said", "unsaid"),
    [
        (
            [10.0, 40.0],
            "2 episodes are too few to tell whether it is better. Set `num_baseline_episodes`",
            "frame stack",
        ),
        ([10.0, 30.0], "no better than a random policy: mean returns of", "too few"),
    ],
    ids=["higher", "not higher"],
)
def test_of_a_doubtful_teacher_only_what_its_episodes_support_is_said(caplog, teacher, said, unsaid):
    check_baselines(
        {"teacher": teacher, "random": [20.0, 21.0]}, Teacher(make_q_module()), env=Corridor, must_gain=False
    )
    (message,) = [record.getMessage() for record in caplog.records if record.name == "rllib_kd.algorithm.baselines"]
    assert said in message
    assert "plays 'Corridor'" in message
    assert unsaid not in message


def test_qdagger_refuses_a_teacher_whose_mean_return_is_not_higher(caplog):
    teacher = Teacher(make_q_module())
    check_baselines({"teacher": [10.0, 40.0], "random": [20.0, 21.0]}, teacher, env="E", must_gain=True)
    with pytest.raises(ValueError, match="needs a teacher that is better than a random policy"):
        check_baselines({"teacher": [10.0, 31.0], "random": [20.0, 21.0]}, teacher, env="E", must_gain=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("empty", [["teacher"], ["random"], ["teacher", "random"]])
def test_a_policy_whose_agents_never_acted_is_not_judged(caplog, empty):
    teacher, played = Teacher(make_q_module()), {"teacher": [1.0], "random": [0.0]} | {who: [] for who in empty}
    check_baselines(played, teacher, env="E", must_gain=False)
    assert "No agent of the teacher" in caplog.text
    assert "no better" not in caplog.text
    with pytest.raises(ValueError, match=r"No agent of the teacher .* Set `num_baseline_episodes` to more"):
        check_baselines(played, teacher, env="E", must_gain=True)
    returns = StudentReturns(["student"])
    returns.take_baselines(["student"], played)
    assert math.isnan(returns.ratio)


@pytest.mark.parametrize("is_long", [False, True])
def test_baselines_that_take_long_are_a_warning_with_the_way_to_leave_them_out(monkeypatch, caplog, is_long):
    monkeypatch.setattr(baselines, "_LONG_PLAY", 0.05 if is_long else 60.0)
    monkeypatch.setattr(baselines, "check_baselines", lambda *args, **kwargs: None)

    def play(*args, **kwargs):
        deadline = time.monotonic() + 20
        while is_long and not caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        return {"left": [1.0]}

    monkeypatch.setattr(baselines, "_play_episodes", play)
    config = SimpleNamespace(num_baseline_episodes=4, env="X", is_multi_agent=True, kd_coeff=1.0)
    assert play_baselines(config, {"left": Teacher()}, None) == {"left": {"teacher": [1.0], "random": [1.0]}}
    assert ("4 episodes of the teacher" in caplog.text) == is_long
    assert ("Set num_baseline_episodes=0" in caplog.text) == is_long
