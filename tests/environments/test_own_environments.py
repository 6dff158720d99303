"""Environments of the user's own, by file or module."""

import importlib
import os
import shutil
import stat
import sys

import gymnasium as gym
import pytest
import ray
from ray import cloudpickle
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import ENV_CREATOR, register_env

from rllib_kd import DistillDQNConfig, Sweep, _rllib
from rllib_kd.algorithm.fit import explain_failed_env_runners
from rllib_kd.algorithm.preflight import known_spaces
from rllib_kd.environments import familiar, imports
from rllib_kd.environments.making import check_gymnasium_id, env_maker
from rllib_kd.environments.own import OwnEnvironment, given_environment, parsed, settled, short_name
from rllib_kd.evaluation.comparing import check_players_fit
from tests.environments.own_files import write_files

WAYS = [
    ("corridor.py:Corridor", "{}/corridor.py:Corridor"),
    ("./mine/../corridor.py:Corridor", "{}/corridor.py:Corridor"),
    ("corridor:Corridor", "{}/corridor.py:Corridor"),
    ("ways.py:Configured", "{}/ways.py:Configured"),
    ("ways.py:Corridor-v7", "{}/ways.py:Corridor-v7"),
    ("ways:Corridor-v7", "{}/ways.py:Corridor-v7"),
    ("ways.py:corridor-of-rays", "{}/ways.py:corridor-of-rays"),
    ("mine.worlds:Walk", "{}/mine/worlds/__init__.py:Walk"),
    ("mine/worlds/walk.py:Walk", "{}/mine/worlds/walk.py:Walk"),
    ("ways,corridor.py:Corridor", "{0}/ways.py,{0}/corridor.py:Corridor"),
]


@pytest.fixture
def files(own_folder):
    return write_files(own_folder)


@pytest.mark.parametrize(("env", "name"), WAYS)
def test_one_name_in_every_place(files, env, name, monkeypatch):
    name = name.format(files)
    assert settled(env) == name
    assert env_maker(env, {"size": 3})().unwrapped.size == 3
    monkeypatch.chdir("/")
    assert env_maker(name, {"size": 4})().unwrapped.size == 4
    assert type(env_maker(name)().unwrapped).__module__ in ("corridor", "ways", "mine.worlds.walk")
    assert DistillDQNConfig().environment(name).env == settled(name) == name
    assert short_name(name) == name.rpartition(":")[2]


def test_a_function_makes_an_environment(files):
    assert type(env_maker("ways.py:wrapped", {"size": 3})()) is gym.wrappers.TimeLimit
    with pytest.raises(ValueError, match=r"cannot be made: .*'nothing' returned NoneType, expected a gymnasium\.Env"):
        env_maker("ways.py:nothing")()


def test_the_class_is_the_one_that_other_files_import(files):
    made = env_maker("corridor.py:Corridor")()
    assert type(made) is importlib.import_module("ways").Corridor is sys.modules["corridor"].Corridor


@pytest.mark.parametrize("env", ["gymnasium:CartPole-v1", "CartPole-v1", None, gym.Env])
def test_other_names_stay_as_they_are(own_folder, env):
    assert settled(env) is env
    assert os.environ["PYTHONPATH"] in ("", str(own_folder))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("no.py:X", r"The file '{}/no.py' does not exist\. Expected a Python file\."),
        ("mine.py:X", r"The file '{}/mine.py' is a folder"),
        ("corridor.py:Coridor", r"no environment 'Coridor' in '{}/corridor.py'\. Did you mean 'Corridor'\?"),
        ("empty.py:X", r"no environment 'X' in '{}/empty.py'\. It has no environment\."),
        ("ways.py:NoEnvironment", r"is the class NoEnvironment, expected a subclass of gymnasium\.Env, or a function"),
        ("corridor.py:np", r"is of type module, expected"),
        ("broken.py:X", r"'{0}/broken.py' cannot be imported: ZeroDivisionError: .* \({0}/broken.py:2, in <module>\)"),
        ("ends.py:X", r"'{0}/ends.py' cannot be imported: SystemExit: 3"),
        ("lacking.py:X", r"cannot be imported: ModuleNotFoundError: No module named 'no_such_package'.* Install it"),
        ("nowhere:X", r"There is no module 'nowhere': .* or name its file: path/to/nowhere\.py\."),
        ("corridor.py", r"'corridor.py' is a file\. Name the environment in it, too: corridor\.py:Name\."),
        ("corridor.py:", "lacks a part"),
        (":X", "lacks a part"),
    ],
)
def test_errors_name_the_remedy(files, env, message):
    (files / "empty.py").write_text("")
    (files / "mine.py").mkdir()
    (files / "broken.py").write_text("\n1 / 0\n")
    (files / "ends.py").write_text("raise SystemExit(3)")
    (files / "lacking.py").write_text("import no_such_package")
    for command in (settled, env_maker, DistillDQNConfig().environment, given_environment):
        with pytest.raises(ValueError, match=message.format(files)):
            command(env)
    assert not familiar.record_path().exists()


@pytest.mark.parametrize("env", ["{}/corridor.py:Corridor", "corridor.py:Corridor", "corridor:Corridor"])
def test_a_folder_with_a_comma_is_refused(files, monkeypatch, env):
    """A checkpoint would name two other files."""
    folder = files.with_name("gates, corridors")
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    for command in (settled, DistillDQNConfig().environment, given_environment):
        with pytest.raises(ValueError, match=r"'.*/gates, corridors/corridor\.py' has a comma, .* Move or rename"):
            command(env.format(folder))


# --- --import ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ("corridor-of-rays", "{0}/ways.py:corridor-of-rays"),
        ("Corridor-v7", "{0}/ways.py:Corridor-v7"),
        ("corridor.py:Corridor", "{0}/ways.py,{0}/corridor.py:Corridor"),
        ("CartPole-v1", "CartPole-v1"),
        (None, None),
    ],
)
def test_imports_are_part_of_the_name_if_they_are_needed(files, env, named):
    assert given_environment(env, ["ways.py"]) == (named and named.format(files))
    assert "ways" in sys.modules


def test_what_the_user_gives_is_recorded(files, monkeypatch):
    given_environment("corridor.py:Corridor", ["ways"])
    given_environment("gymnasium:CartPole-v1")
    recorded = familiar.record_path().read_text().splitlines()
    assert recorded == [f"{files}/ways.py,{files}/corridor.py:Corridor", "gymnasium:CartPole-v1"]
    assert stat.S_IMODE(familiar.record_path().stat().st_mode) == 0o600
    assert familiar.is_familiar("gymnasium:CartPole-v1")
    env_maker("cells.py:Cells")  # as a checkpoint may name it
    assert not familiar.is_familiar(f"{files}/cells.py:Cells")
    monkeypatch.setattr("os.getuid", lambda: -1)
    assert not familiar.is_familiar("gymnasium:CartPole-v1")  # a record of somebody else's


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_a_record_that_cannot_be_written_is_left_out(files, monkeypatch, home):
    monkeypatch.setenv("XDG_STATE_HOME", home)
    assert settled("corridor.py:Corridor") == f"{files}/corridor.py:Corridor"
    assert not familiar.is_familiar(f"{files}/corridor.py:Corridor")


def test_without_a_home_nothing_is_recorded_in_the_working_folder(files, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert settled("corridor.py:Corridor") == f"{files}/corridor.py:Corridor"
    assert not (files / "~").exists()
    record = files / familiar.record_path()
    record.parent.mkdir(parents=True)
    record.write_text("CartPole-v1")  # which may have come with the folder
    assert not familiar.is_familiar("CartPole-v1")


def test_a_sweep_is_named_after_the_class(files):
    sweep = Sweep("cartpole", "corridor.py:Corridor", search="random")
    assert (sweep.env, sweep.name) == (f"{files}/corridor.py:Corridor", "sweep-Corridor")


# --- The path ---------------------------------------------------------------------------------------------------------


def test_own_folders_come_last(own_folder):
    (own_folder / "tree.py").write_text("raise RuntimeError('mine')")
    (own_folder / "random.py").write_text("raise RuntimeError('mine')")
    imports.make_importable(str(own_folder))
    assert sys.path[-1] == str(own_folder)
    assert imports.shadowing(str(own_folder)) == ["random", "tree"]
    assert os.environ["PYTHONPATH"] == ""  # it stands before installed modules
    assert imports.setup_hook() is not None


def test_a_folder_of_other_names_is_on_pythonpath(files, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    imports.make_importable(str(files))
    assert os.environ["PYTHONPATH"] == f"/elsewhere{os.pathsep}{files}"
    assert imports.setup_hook() is None


def test_rays_processes_prefer_installed_modules(own_folder, monkeypatch):
    (own_folder / "tree.py").write_text("MINE = True")
    (own_folder / "branch.py").write_text("MINE = True")
    monkeypatch.delitem(sys.modules, "tree")
    monkeypatch.setattr(sys, "path", [str(own_folder), *sys.path])  # as Ray does
    imports.InstalledFirst.install(["tree"], [str(own_folder)], [str(own_folder)])
    assert not hasattr(importlib.import_module("tree"), "MINE")
    assert importlib.import_module("branch").MINE
    assert sys.path.count(str(own_folder)) == 1


def test_a_file_with_the_name_of_an_installed_module(own_folder):
    installed = importlib.import_module("tree")
    shutil.copy(write_files(own_folder) / "corridor.py", own_folder / "tree.py")
    name = settled("tree.py:Corridor")
    assert type(env_maker(name)()).__module__.startswith("tree_")
    assert type(env_maker(name)()) is type(env_maker("tree.py:Corridor")())
    assert importlib.import_module("tree") is installed


# --- On another machine -----------------------------------------------------------------------------------------------


def forget(folder):
    """As a process on a machine without these files."""
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]
    for env_id in [env_id for env_id in gym.registry if env_id.startswith("Corridor-v7")]:
        del gym.registry[env_id]
    imports._imported.clear()
    sys.path[:] = [path for path in sys.path if path != str(folder)]
    importlib.invalidate_caches()


@pytest.mark.parametrize("env", ["ways.py:Configured", "ways.py:Corridor-v7", "mine.worlds:Walk", "tree.py:Corridor"])
@pytest.mark.parametrize("disk", ["empty", "old"])
def test_the_files_travel(files, env, disk):
    shutil.copy(files / "corridor.py", files / "tree.py")
    own = parsed(settled(env))
    made = type(OwnEnvironment(own)({"size": 3}).unwrapped)
    pickled = cloudpickle.dumps(OwnEnvironment(own))
    shutil.rmtree(files)
    forget(files)
    if disk == "old":
        files.mkdir()
        (files / "ways.py").write_text("raise RuntimeError('old')")
        (files / "corridor.py").write_text("raise RuntimeError('old')")
        (files / "tree.py").write_text("raise RuntimeError('old')")
    elsewhere = cloudpickle.loads(pickled)
    there = elsewhere({"size": 3}).unwrapped
    assert (there.size, type(there).__module__, type(there).__name__) == (3, made.__module__, made.__name__)
    assert type(cloudpickle.loads(cloudpickle.dumps(elsewhere))({"size": 3}).unwrapped) is type(there)


def test_installed_modules_do_not_travel(own_folder):
    (own_folder / "site-packages").mkdir()
    (own_folder / "site-packages" / "big.py").write_text("x = 1")
    sys.path.append(str(own_folder / "site-packages"))
    (own_folder / "small.py").write_text("import big, gymnasium, rllib_kd\nclass E(gymnasium.Env): pass\n")
    state = OwnEnvironment(parsed(settled("small.py:E"))).__getstate__()
    assert {name for files in state["_sources"].files.values() for name in files} == {"small.py"}


def test_too_much_source_is_refused(files, monkeypatch):
    monkeypatch.setattr("rllib_kd.environments.sources._MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"bytes of source, expected at most 100\. Install them"):
        settled("corridor.py:Corridor")


@pytest.mark.parametrize("file", ["ways.py", "größe-路.py"])
def test_processes_of_ray_make_it_without_the_file(files, file, cluster):
    (files / "ways.py").rename(files / file)
    name = settled(f"{file}:Corridor-v7")
    shutil.rmtree(files)

    @ray.remote
    def make():
        from rllib_kd.environments.making import env_maker

        env = env_maker(name, {"size": 3})()
        return env.reset()[0].shape, DistillDQNConfig().environment(name).env

    assert ray.get(make.remote()) == ((2,), name)


@pytest.mark.parametrize("name", ["Corridor", "highway-v0"])
def test_an_unknown_name_says_how_to_name_a_file_or_package(own_folder, name):
    with pytest.raises(ValueError, match=rf"name that first: path/to/file\.py:{name} or module:{name}\.$"):
        env_maker(name)
    with pytest.raises(ValueError, match="nor with gymnasium") as error:
        check_gymnasium_id("gymnasium:Nowhere-v0")
    assert "name that first" not in str(error.value)


# --- Spaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("set_first", "message"),
    [
        ("", r"has no observation_space\. Set it in __init__: self\.observation_space = "),
        ("self.observation_space = gym.spaces.Box(0, 1, (2,))", r"has no action_space\. Set it in __init__"),
        ("self.observation_space = 4", r"has a builtins\.int as observation_space\. Set it in __init__"),
    ],
)
def test_an_environment_without_a_space_says_which(own_folder, set_first, message):
    path = own_folder / "env.py"
    path.write_text(
        f"import gymnasium as gym\n\nclass Good(gym.Env):\n    def __init__(self):\n        {set_first or 'pass'}\n"
    )
    name = settled(f"{path}:Good")
    config = DistillDQNConfig().environment(name)
    for use in (
        env_maker(name),
        lambda: known_spaces(config),
        lambda: check_players_fit(env_maker(name), {}),
        lambda: explain_failed_env_runners(config, OwnEnvironment(parsed(name))),
    ):
        with pytest.raises(ValueError, match=f"env.py:Good' {message}") as error:
            use()
        assert "\n" not in str(error.value)


def test_environments_of_several_agents_may_lack_spaces():
    class Several(MultiAgentEnv):
        pass

    assert isinstance(env_maker(lambda config: Several())(), Several)


def with_parameters(parameters):
    """Return a class of an environment whose constructor has these parameters."""
    names = {"gym": gym}
    exec(f"class Own(gym.Env):\n    def __init__(self{parameters}):\n        pass\n", names)
    return names["Own"]


@pytest.mark.parametrize(
    ("parameters", "takes"),
    [
        ("", "no argument"),
        (", length=6", "`length=6` first"),
        (", render_mode=None, size=5", "`render_mode=None` first"),
    ],
)
def test_a_class_gets_no_config_in_place_of_another_argument(parameters, takes):
    """A config as a length was an error in reset(), and as a flag an environment with other settings."""
    env = with_parameters(parameters)
    register_env("own-without-config", env)
    config = DistillDQNConfig().environment(env).distillation(teacher="cartpole", compression=0.1)
    registered = config.copy(copy_frozen=False).environment("own-without-config")
    for use in (config.validate, registered.validate, lambda: env_maker(env)):
        with pytest.raises(ValueError, match=rf"Own\(\) takes {takes}\. Register it .*Own\(\*\*config\)"):
            use()


@pytest.mark.parametrize(
    "parameters", [", config", ", config={}", ", given=None", ", anything", ", config: dict = None, **others"]
)
def test_a_class_that_takes_a_config_gets_it(parameters):
    env_maker(with_parameters(parameters))


TAKEN_OUT = """
import gymnasium as gym

class Own(gym.Env):
    observation_space, action_space = gym.spaces.Box(0.0, 1.0, (2,)), gym.spaces.Discrete(2)

    def __init__(self, config):
        self.size, self.place = config.pop("size"), config.worker_index
"""


def test_an_environment_may_take_entries_out_of_its_config(own_folder):
    """The environments of a vector env are made with one config."""
    (own_folder / "taking.py").write_text(TAKEN_OUT)
    make, context = env_maker("taking.py:Own", {"size": 3}), EnvContext({"size": 4}, worker_index=2)
    name = settled("taking.py:Own")
    made = [make(), make(), *(_rllib.registered(ENV_CREATOR, name)(context) for _ in range(2))]
    assert [(env.size, env.place) for env in made] == [(3, 0), (3, 0), (4, 2), (4, 2)]
    make = env_maker(type(made[0].unwrapped), {"size": 5})
    assert [make().size for _ in range(2)] == [5, 5]
