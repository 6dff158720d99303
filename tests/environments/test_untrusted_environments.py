"""The list of environments and configs that untrusted checkpoints may choose."""

import ast
import inspect
import math
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.environments import atari
from rllib_kd.environments.making import env_maker
from rllib_kd.environments.untrusted import _HARMLESS, is_harmless, refusals

MAP = ["SFFF", "FHFH", "FFFH", "HFFG"]
LARGEST = ["S" + "F" * 63, *["F" * 64] * 62, "F" * 63 + "G"]

#: Environment, key, and values that may and may not be.
VALUES = [
    ("FrozenLake-v1", "is_slippery", [True, False, np.bool_(True)], [1, 0.0, "no", None, [True]]),
    ("FrozenLake-v1", "success_rate", [0, 1, 0.5, np.float32(0.25)], [-0.1, 1.1, math.nan, math.inf, True, "1"]),
    ("FrozenLake-v1", "map_name", ["4x4", "8x8", None], ["5x5", 4, ["4x4"], "__class__"]),
    ("FrozenLake-v1", "desc", [MAP, tuple(MAP), LARGEST, None], [["S" * 65], [*LARGEST, "F" * 64], ["F"], [], [""]]),
    ("FrozenLake-v1", "desc", [["S"], ["SG"]], ["SFFG", ["S", "FF"], ["SX"], [b"SG"], [["S", "G"]], 3, {"S": 1}]),
    ("FrozenLake-v1", "reward_schedule", [(1, 0, 0), [1.5, -2, 0]], [(1, 0), (1, 0, math.nan), (1, 0, 1e9), "abc", 1]),
    ("FrozenLake-v1", "max_episode_steps", [1, 100, np.int64(9), None], [0, -1, 101, 10**9, 5.0, True, "9"]),
    ("FrozenLake8x8-v1", "max_episode_steps", [200], [201]),
    ("CartPole-v1", "max_episode_steps", [500], [501]),
    ("Blackjack-v1", "max_episode_steps", [1, 10**9], [-1, 0, 10**5000]),  # registered without a limit
    ("CartPole-v1", "sutton_barto_reward", [True], [1]),
    ("CartPole-v1", "render_mode", [None, "rgb_array", "ansi"], ["human", "rgb_array_list", "human_list", 1]),
    ("CartPole-v1", "disable_env_checker", [True, None], ["yes"]),
    ("Pendulum-v1", "g", [9.81, 0, -100], [101, -math.inf, None]),
    ("LunarLander-v3", "gravity", [-10.0, -12], [1, -13]),
    ("LunarLander-v3", "wind_power", [0, 20.0], [21, -1]),
    ("LunarLander-v3", "turbulence_power", [1.5], [3]),
    ("Ant-v5", "healthy_z_range", [(0.2, 1.0)], [(0.2,), (0, 10**7), "ab"]),
    ("Ant-v5", "frame_skip", [1, 20], [0, 21, 10**9]),
    ("ALE/Pong-v5", "frameskip", [1, 20, (2, 5), [2, 5]], [0, 21, (5, 2), (2, 2), (0, 5), (2, 10**9), (1, 2, 3), 4.0]),
    ("ALE/Pong-v5", "repeat_action_probability", [0, 0.25, 1], [2, -1]),
    ("ALE/Pong-v5", "max_num_frames_per_episode", [1, 108_000], [0, 108_001, None]),
    ("ALE/Pong-v5", "mode", [None, 0, 255], [-1, 256, "0"]),
    ("ALE/Pong-v5", "obs_type", ["rgb", "grayscale", "ram"], ["rom", None]),
    ("ALE/Pong-v5", "img_width", [84, 256], [0, 257, 10**6]),
    ("ALE/Pong-v5", "stack_num", [4, 16], [0, 17]),
    ("ALE/Pong-v5", "noop_max", [0, 30], [101, -1]),
]
#: Keys with which something is opened, imported, printed or shown; another task; and what nobody knows.
NEVER = ["xml_file", "default_camera_config", "width", "height", "max_geom", "visual_options", "verbose", "game", "id"]
NEVER += [
    "entry_point",
    "kwargs",
    "vector_kwargs",
    "additional_wrappers",
    "wrappers",
    "env_id",
    "env",
    "sound_obs",
    "x",
]


@pytest.mark.parametrize(("env", "key", "good", "bad"), VALUES, ids=[f"{env} {key}" for env, key, *_ in VALUES])
def test_values(env, key, good, bad):
    if env not in gym.registry:
        pytest.skip("ALE is not here")
    for value in good:
        assert refusals(env, {key: value}) == [], value
    for value in bad:
        (refusal,) = refusals(env, {key: value})
        assert refusal.startswith(f"'{key}' (only "), value


@pytest.mark.parametrize("env", ["CartPole-v1", "Ant-v5", "ALE/Pong-v5", "GymV26Environment-v0"])
def test_keys_that_are_not_on_the_list(env):
    for key in NEVER:
        assert refusals(env, {key: None}) == [f"'{key}'"]
    assert refusals(env, dict.fromkeys(NEVER, 0)) == [f"'{key}'" for key in NEVER]  # all are named
    assert refusals(env, {1: 2}) == ["'1'"]


def test_every_key_on_the_list_is_an_argument_of_an_environment():
    pytest.importorskip("ale_py")
    import ale_py

    files = [*(Path(gym.__file__).parent / "envs").rglob("*.py"), *Path(ale_py.__file__).parent.glob("*env.py")]
    arguments = set(inspect.signature(gym.make).parameters)
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    arguments |= {"render_mode"}
    assert set(_HARMLESS) <= arguments
    assert not set(_HARMLESS) & set(NEVER)


@pytest.mark.parametrize("env", ["CartPole-v1", "CartPole-v0", "FrozenLake-v1", "Ant-v5", "phys2d/CartPole-v1"])
def test_environments_of_gymnasium(env):
    assert is_harmless(env)


@pytest.mark.parametrize("env", ["Nowhere-v0", "", "gymnasium", "gymnasium:CartPole-v1", "gymnasium.envs.x.Env"])
def test_what_is_no_id(env):
    assert not is_harmless(env)


@pytest.mark.parametrize("entry_point", ["gymnasium_x.envs:Env", "my.gymnasium:Env", "ale_py2:Env", lambda: None, None])
def test_environments_of_other_packages(entry_point, monkeypatch):
    spec = gym.envs.registration.EnvSpec("Other-v0", entry_point)
    monkeypatch.setitem(gym.registry, "Other-v0", spec)
    assert not is_harmless("Other-v0")
    assert refusals("Other-v0", {"is_slippery": True}) == ["'is_slippery'"]
    assert refusals("Other-v0", {}) == []


def test_games_of_ale():
    pytest.importorskip("ale_py")
    assert is_harmless("ALE/Pong-v5")
    assert refusals("ALE/Pong-v5", atari.VECTOR_DEFAULTS) == ["'num_threads'"]  # which a single environment never sees
    assert atari.single_config({**atari.VECTOR_DEFAULTS, "noop_max": 3, "batch_size": 9}) == {"noop_max": 3}


def test_what_is_admitted_takes_little():
    """The largest values that FrozenLake may have; 1,500 rows and columns take gigabytes."""
    start = time.process_time()
    env = env_maker("FrozenLake-v1", {"desc": LARGEST, "map_name": None, "success_rate": 1, "max_episode_steps": 100})()
    assert env.reset(seed=0)[0] == 0
    assert time.process_time() - start < 10
    assert env.observation_space.n == 64 * 64
