"""Which environment policies play in: what was asked for, over what their checkpoints record."""

import enum
import json
import re
import sys
import time
from collections import OrderedDict
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

from rllib_kd import compare, compare_all, load_teacher
from rllib_kd.checkpoints.rllib import RLlibCheckpoint
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.evaluation.played_environment import PlayedEnvironment, resolve_environment
from rllib_kd.export.deployment import deploy, deployment_table
from tests.conftest import exit_code, make_q_module
from tests.rllib_checkpoints import Frames, write_checkpoint, write_frozen_lake

STILL, SLIPPERY = {"is_slippery": False}, {"is_slippery": True}


@pytest.fixture(scope="module")
def walker(tmp_path_factory):
    """It reaches the goal on the ice of its training alone."""
    return write_frozen_lake(tmp_path_factory.mktemp("checkpoints") / "walker", STILL)


# --- The recorded config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [None, "FrozenLake-v1", "gymnasium:FrozenLake-v1"])
def test_the_recorded_config_stays_as_long_as_the_id_is_the_same(walker, env):
    assert evaluate(walker, env, num_episodes=20).return_mean == 1.0
    assert evaluate(Path(walker).as_uri(), env, num_episodes=20).return_mean == 1.0
    assert evaluate(walker, env, num_episodes=20, env_config=SLIPPERY).return_mean < 0.5


def test_single_keys_are_changed(tmp_path):
    path = write_frozen_lake(tmp_path / "a", {**STILL, "map_name": "4x4", "success_rate": 0.5})
    resolved = resolve_environment({"a": path}, None, {"success_rate": 0.75, "max_episode_steps": 1000})
    expected = {**STILL, "map_name": "4x4", "success_rate": 0.75, "max_episode_steps": 1000}
    assert resolved == ("FrozenLake-v1", expected)


def test_of_another_environment_the_config_is_dropped(tmp_path):
    path = write_checkpoint(tmp_path / "a", "CartPole-v0", {"max_episode_steps": 3})
    assert evaluate(path, num_episodes=1).returns == [3.0]
    assert resolve_environment({"a": path}, "CartPole-v1") == ("CartPole-v1", {})
    assert evaluate(path, "CartPole-v1", num_episodes=1).returns[0] > 3
    asked = resolve_environment({"a": path}, "CartPole-v1", {"max_episode_steps": 9})
    assert asked == ("CartPole-v1", {"max_episode_steps": 9})


def test_the_teachers_config_counts_where_no_student_records_one(tmp_path, walker):
    slippery = write_frozen_lake(tmp_path / "slippery", SLIPPERY)
    silent = load_teacher(walker)
    assert compare(walker, silent, num_episodes=5).env_config == STILL
    assert compare(walker, silent, "FrozenLake-v1", num_episodes=5).env_config == STILL
    assert compare([silent, walker], silent, num_episodes=5).env_config == STILL  # an ensemble
    assert compare(walker, slippery, num_episodes=5).env_config == SLIPPERY
    assert compare(walker, slippery, "FrozenLake-v1", num_episodes=5).env_config == SLIPPERY


def test_students_of_several_environments_are_no_one_comparison(tmp_path, walker):
    students = {"still": walker, "slippery": write_frozen_lake(tmp_path / "slippery", SLIPPERY)}
    for env in (None, "FrozenLake-v1"):
        message = (
            "'still' and 'slippery' were trained in different environments: "
            'FrozenLake-v1 {"is_slippery": false} and FrozenLake-v1 {"is_slippery": true}. Choose one, with --env and'
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            compare_all(walker, students, env, num_episodes=1)
        for result in compare_all(walker, students, env, num_episodes=10, env_config=STILL):
            assert (result.env_config, result.student.return_mean) == (STILL, 1.0)
    other = {"a": write_checkpoint(tmp_path / "a", "CartPole-v0"), "b": write_checkpoint(tmp_path / "b", "CartPole-v1")}
    with pytest.raises(ValueError, match=r"'a' and 'b' .*: CartPole-v0 and CartPole-v1\."):
        compare_all("cartpole", other, num_episodes=1)
    assert compare_all("cartpole", other, "CartPole-v0", num_episodes=1)[1].env == "CartPole-v0"


def test_a_settled_environment_is_changed_by_no_checkpoint(walker):
    settled = PlayedEnvironment("FrozenLake-v1", {})
    assert resolve_environment({"a": walker}, settled) == settled
    assert compare(walker, walker, settled, num_episodes=5).env_config == {}


def test_what_only_ales_vector_env_reads_does_not_tell_students_apart(tmp_path):
    pytest.importorskip("ale_py")
    vector = {"num_threads": 1, "reward_clipping": False, "use_fire_reset": False, "noop_max": 5}
    students = {
        "distilled": write_checkpoint(tmp_path / "a", "ALE/Pong-v5", vector),
        "trained": write_checkpoint(tmp_path / "b", "ALE/Pong-v5", {"noop_max": np.int64(5)}),
    }
    assert resolve_environment(students) == ("ALE/Pong-v5", {"noop_max": 5})
    assert resolve_environment(students, "ale_py:ALE/Pong-v5").env_config == {"noop_max": 5}
    assert resolve_environment(students, None, {"reward_clipping": True}).env_config["reward_clipping"]


class Lengthy(Frames):
    """Its episodes are as long as its config says."""

    def __init__(self, config=None):
        super().__init__()
        self.t = 7 - (config or {}).get("length", 7)


def frames_module():
    return make_q_module(gym.spaces.Box(0, 1, (8, 8, 1)), gym.spaces.Discrete(3), conv_filters=[[2, 8, 8]])


@pytest.mark.parametrize("given", [Lengthy, f"{__name__}.Lengthy"])
def test_a_class_is_the_same_environment_however_it_is_named(tmp_path, given):
    """It records what is not known to be harmless, as any environment that is not of gymnasium or ALE does."""
    for own in (Lengthy, f"{__name__}.Lengthy"):
        path = write_checkpoint(tmp_path / str(own), own, {"length": 2}, frames_module())
        with pytest.raises(
            ValueError, match=r"its env_config has entries that are not known to be harmless: 'length'\. Set"
        ):
            evaluate(path, given, num_episodes=1)
        asked = resolve_environment({"a": path}, given, {"length": 3})
        assert (asked.name.rpartition(".")[2], asked.env_config) == ("Lengthy", {"length": 3})
        assert resolve_environment({"a": path}, given, trust_checkpoint=True).env_config == {"length": 2}
        assert resolve_environment({"a": path}, Frames) == (Frames, {})
    assert resolve_environment({"a": path}, None, trust_checkpoint=True) == (own, {"length": 2})


def test_two_functions_without_names_are_two_environments(tmp_path):
    one, other = (lambda config: gym.make("CartPole-v1")), (lambda config: gym.make("CartPole-v1"))
    assert one.__qualname__ == other.__qualname__
    path = write_checkpoint(tmp_path / "a", one, {"x": 1})
    assert resolve_environment({"a": path}, other) == (other, {})


# --- What is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_states_environment_and_config(walker, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = 'played in FrozenLake-v1 {"is_slippery": false}'
    assert not exit_code("evaluate", walker, "--env", "FrozenLake-v1", "--episodes", "5", "--out", "returns.json")
    assert capsys.readouterr().out == f"return 1.00 ± 0.00 (95 % CI, 5 episodes of FrozenLake-v1)\n{line}\n"
    returns = json.loads(Path("returns.json").read_text())
    assert (returns["env"], returns["env_config"]) == ("FrozenLake-v1", STILL)

    assert not exit_code("compare", "--teacher", walker, walker, "--episodes", "5", "--out", "report")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == line
    assert out[1].strip() == "5 episodes each, same seeds"
    assert max(map(len, out)) <= 80
    figures = json.loads(Path("report/figures.json").read_text())
    assert (figures["env"], figures["env_config"]) == ("FrozenLake-v1", STILL)
    assert "FrozenLake-v1 {&quot;is_slippery&quot;: false}, 5 episodes" in Path("report/index.html").read_text()

    words = ["--out", "a.safetensors", "--teacher", "TEACHER", "--episodes", "5"]
    other = write_frozen_lake(tmp_path / "other", SLIPPERY)
    assert not exit_code("export", walker, *(other if word == "TEACHER" else word for word in words))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == line
    assert sum("played in" in row for row in out) == 1  # the teacher plays there, too
    assert next(row for row in out if "return, mean" in row).count("1.00 ± 0.00") == 2
    assert not exit_code("export", "cartpole", "--out", "b.safetensors", "--episodes", "1")
    assert capsys.readouterr().out.splitlines()[0] == "played in CartPole-v1"


def test_python_states_it_too(walker, tmp_path):
    result = compare(walker, walker, num_episodes=2)
    assert result.to_dict()["env_config"] == STILL
    assert result.played_in == 'FrozenLake-v1 {"is_slippery": false}'
    deployments = [
        deploy(walker, tmp_path / "a.safetensors", env_config=config, format="safetensors", num_episodes=2)
        for config in (None, SLIPPERY)
    ]
    assert deployment_table(deployments).splitlines()[:2] == [
        'played in FrozenLake-v1 {"is_slippery": false}',
        'played in FrozenLake-v1 {"is_slippery": true}',
    ]


def test_a_config_of_objects_is_shown_by_their_names(tmp_path):
    class Colour(enum.Enum):
        RED = 1

    config = {"class": Frames, "enum": Colour.RED, "path": tmp_path, "array": np.arange(2), "n": np.float64(1.5)}
    config |= {
        "pair": (1, 2),
        "object": object(),
        "nested": {1: {"f": frames_module}},
        "text": "a\x7f\x1b\n\u202e",
    }
    played = PlayedEnvironment(Frames, config)
    shown = {"class": "Frames", "enum": "Colour.RED", "path": str(tmp_path), "array": [0, 1], "n": 1.5, "pair": [1, 2]}
    shown |= {"object": "object", "nested": {"1": {"f": "frames_module"}}, "text": config["text"]}
    assert played.config_as_json() == shown
    assert str(played).isprintable()
    name, _, text = str(played).partition(" ")
    assert (name, json.loads(text)) == ("Frames", shown)


# --- Untrusted checkpoints --------------------------------------------------------------------------------------------


def commands(path):
    """Each command with a checkpoint, as student and as teacher."""
    return {
        "evaluate": ["evaluate", path],
        "compare": ["compare", "--teacher", "cartpole", path],
        "compare, the teacher": ["compare", "--teacher", path, "SILENT"],
        "export": ["export", path, "--out", "out.safetensors"],
    }


def refused(path, silent, *words):
    """Have every command refuse a checkpoint before it plays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rllib_kd.evaluation.comparing.play", None)
        patch.setattr("rllib_kd.export.deployment.play", None)
        for name, arguments in commands(path).items():
            assert exit_code(*(silent if word == "SILENT" else word for word in arguments), *words) == 2, name


@pytest.fixture
def silent(tmp_path):
    """A checkpoint that records no environment."""
    return make_q_module().save_to_path(str(tmp_path / "silent"))


@pytest.mark.parametrize("words", [[], ["--env", "CartPole-v1"]], ids=["no flags", "its id"])
def test_what_is_not_known_to_be_harmless_is_refused_by_its_key(tmp_path, silent, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"max_episode_steps": 10**9, "xml_file": "/etc/passwd", "sutton_barto_reward": True, "cls": Frames}
    path = write_checkpoint(tmp_path / "a", "CartPole-v1", config)
    refused(path, silent, *words)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    for error in errors:
        assert error == (
            f"error: '{path}' was refused: its env_config has entries that are not known to be harmless: "
            "'max_episode_steps' (only an integer from 1 to 500, or none), 'xml_file', 'cls'. Set these keys yourself "
            "with --env-config (env_config=...), or pass "
            "--trust-checkpoint (trust_checkpoint=True) if you trust the checkpoint."
        )


def test_keys_that_the_user_sets_are_the_users(tmp_path):
    path = write_checkpoint(tmp_path / "a", "CartPole-v1", {"max_episode_steps": 10**9, "sutton_barto_reward": True})
    with pytest.raises(ValueError, match="'max_episode_steps'"):
        evaluate(path, num_episodes=1)
    asked = {"max_episode_steps": 600}  # more than the registered limit: the user's own
    assert resolve_environment({"a": path}, None, asked).env_config == {**asked, "sutton_barto_reward": True}
    assert evaluate(
        path, num_episodes=1, env_config={"sutton_barto_reward": False, "max_episode_steps": 5}
    ).returns == [5]
    trusted = resolve_environment({"a": path}, trust_checkpoint=True)
    assert trusted.env_config == {"max_episode_steps": 10**9, "sutton_barto_reward": True}


def test_longer_episodes_than_registered_need_trust(tmp_path):
    """A higher return than the task has is a wrong number."""
    module = load_teacher("cartpole").module
    path = write_checkpoint(tmp_path / "a", "CartPole-v1", {"max_episode_steps": 520}, module)
    with pytest.raises(ValueError, match="only an integer from 1 to 500"):
        compare(path, path, num_episodes=1)
    assert compare(path, path, num_episodes=1, trust_checkpoint=True).student.returns == [520.0]


@pytest.mark.parametrize(
    "env", ["antigravity:CartPole-v1", "antigravity:Env-v0", "antigravity.Env", "antigravity.a.Env"]
)
def test_a_module_to_import_is_refused(tmp_path, silent, env, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(tmp_path / "a", env)
    refused(path, silent)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    for error in errors:
        assert f"'{path}' was trained in '{env}', which names a module to import. Give it yourself with --env" in error
        assert "or pass --trust-checkpoint" in error
    assert "antigravity" not in sys.modules


@pytest.fixture
def third_party():
    """An environment that an installed package has registered, under a name like gymnasium's."""
    gym.register("Corridor-v0", f"{__name__}:Third", max_episode_steps=9)
    gym.register("Callable-v0", Third, max_episode_steps=9)
    register_env("tuned_cartpole", lambda config: Third(**config))
    yield
    for name in ("Corridor-v0", "Callable-v0"):
        del gym.registry[name]
    _global_registry.unregister(ENV_CREATOR, "tuned_cartpole")


class Third(gym.Wrapper):
    made = 0

    def __init__(self, x=0, **kwargs):
        super().__init__(gym.make("CartPole-v1"))
        type(self).made += 1
        self.x = x


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("env", ["Corridor-v0", "Callable-v0", "tuned_cartpole"])
def test_an_environment_of_another_package_must_be_given(tmp_path, env):
    path = write_checkpoint(tmp_path / "a", env)
    before = Third.made
    with pytest.raises(ValueError, match=rf"'{env}', which is not an environment of gymnasium or ALE\. Give"):
        evaluate(path, num_episodes=1)
    assert Third.made == before
    assert resolve_environment({"a": path}, env) == (env, {})
    assert resolve_environment({"a": path}, trust_checkpoint=True) == (env, {})
    path = write_checkpoint(tmp_path / "b", env, {"x": 1})
    with pytest.raises(ValueError, match=r"not known to be harmless: 'x'\. Set these keys yourself"):
        evaluate(path, env, num_episodes=1)
    assert Third.made == before
    assert resolve_environment({"a": path}, env, {"x": 2}) == (env, {"x": 2})
    assert resolve_environment({"a": path}, env, trust_checkpoint=True) == (env, {"x": 1})


def test_an_id_of_gymnasium_that_somebody_registered_anew_is_theirs(tmp_path, monkeypatch):
    spec = gym.registry["CartPole-v1"]
    path = write_checkpoint(tmp_path / "a", "CartPole-v1")
    monkeypatch.setitem(gym.registry, "CartPole-v1", gym.envs.registration.EnvSpec("CartPole-v1", f"{__name__}:Third"))
    with pytest.raises(ValueError, match="not an environment of gymnasium or ALE"):
        evaluate(path, num_episodes=1)
    monkeypatch.setitem(gym.registry, "CartPole-v1", spec)
    register_env("CartPole-v1", lambda config: Third(**config))  # RLlib, and so evaluate(), prefers this one
    try:
        with pytest.raises(ValueError, match="not an environment of gymnasium or ALE"):
            evaluate(path, num_episodes=1)
    finally:
        _global_registry.unregister(ENV_CREATOR, "CartPole-v1")


def test_an_environment_that_nobody_has_is_gymnasiums_error(tmp_path):
    for env in ("Nowhere-v0", "ALE/Nowhere-v5"):
        with pytest.raises(ValueError, match="registered neither with Ray nor with gymnasium"):
            evaluate(write_checkpoint(tmp_path / env, env), num_episodes=1)


def test_a_trusted_checkpoint_is_executed_and_else_read_as_data(tmp_path, monkeypatch):
    """Whatever objects its config holds; and where they are not importable here, their keys can be set."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_colours.py").write_text("class Red:\n    pass\n")
    import their_colours

    config = {"red": their_colours.Red(), "reds": [{"a": their_colours.Red}], "sutton_barto_reward": True}
    path = write_checkpoint(tmp_path / "a", "CartPole-v1", config)
    with pytest.raises(ValueError, match=r"not known to be harmless: 'red', 'reds'\. Set"):
        resolve_environment({"a": path})
    trusted = resolve_environment({"a": path}, trust_checkpoint=True)
    assert isinstance(trusted.env_config["red"], their_colours.Red)
    assert trusted.env_config["reds"] == [{"a": their_colours.Red}]
    monkeypatch.delitem(sys.modules, "their_colours")
    (tmp_path / "their_colours.py").unlink()
    with pytest.raises(ValueError, match=r"cannot be unpickled here: 'red', 'reds'\. Make .* or set these keys"):
        resolve_environment({"a": path}, trust_checkpoint=True)
    asked = {"red": 1, "reds": 2}
    expected = {**asked, "sutton_barto_reward": True}
    assert resolve_environment({"a": path}, None, asked, trust_checkpoint=True).env_config == expected


def test_other_kinds_of_configs(tmp_path):
    ordered = write_checkpoint(tmp_path / "a", "CartPole-v1", OrderedDict(max_episode_steps=3))
    assert resolve_environment({"a": ordered}).env_config == {"max_episode_steps": 3}
    whole = write_checkpoint(tmp_path / "b", "CartPole-v1", EnvContext({"max_episode_steps": 3}, worker_index=0))
    with pytest.raises(ValueError, match=r"not known to be harmless: 'all of it'\..*--trust-checkpoint"):
        resolve_environment({"a": whole}, "CartPole-v1")
    assert resolve_environment({"a": whole}, trust_checkpoint=True).env_config == {"max_episode_steps": 3}


def test_a_few_bytes_take_no_time(tmp_path):
    """Lists that share their parts hold more than there is memory; so do names that are compared with all others."""
    doubled = ["S"]
    for _ in range(60):
        doubled = [doubled, doubled]
    start = time.process_time()
    with pytest.raises(ValueError, match=r"'desc' \(only a map of S, F, H and G, at most 64 x 64, or none\)"):
        resolve_environment({"a": write_checkpoint(tmp_path / "a", "FrozenLake-v1", {"desc": doubled})})
    with pytest.raises(ValueError, match="does not record its environment"):
        resolve_environment({"a": write_checkpoint(tmp_path / "b", "CartPole" * 10**6)})
    many = {f"key {i}": 0 for i in range(30_000)}
    with pytest.raises(ValueError, match=r"'key 0', 'key 1', .*pass --trust-checkpoint") as caught:
        resolve_environment({"a": write_checkpoint(tmp_path / "c", "CartPole-v1", many)})
    assert len(str(caught.value)) <= 1_100
    assert time.process_time() - start < 20


def test_a_teacher_in_training_says_nothing_of_its_environment(tmp_path, monkeypatch):
    def never(self):
        raise AssertionError

    monkeypatch.setattr(RLlibCheckpoint, "environment", never)
    path = write_checkpoint(tmp_path / "a", "CartPole-v1", {"max_episode_steps": 10**9})
    assert load_teacher(path).num_parameters == 58
