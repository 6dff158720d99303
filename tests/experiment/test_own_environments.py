"""Experiments in environments of the user's own."""

import os
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from ray import cloudpickle
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_kd import DistillDQNConfig
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.familiar import is_familiar
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.played_environment import resolve_environment
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.files import read_experiment
from rllib_kd.experiment.running import _trial_name
from rllib_kd.observations.connectors import flatten_observations
from tests.environments.own_files import write_files
from tests.evaluation.test_recorded_environments import checkpoint

HEAD = "import gymnasium as gym\nfrom ray.tune.registry import register_env\nfrom rllib_kd import DistillDQNConfig\n"
TAIL = ".distillation(teacher=None, td_coeff=1.0)\n"
OWN = "import corridor\nclass Hall(corridor.Corridor): pass\n"
KINDS = {
    "a registered name": (
        "import corridor\nregister_env('mine', lambda c: corridor.Corridor(**c))\n",
        "'mine'",
        "mission.py:mine",
    ),
    "a registered function of the file": (
        f"{OWN}def make_hall(config): return Hall(**config)\nregister_env('hall', make_hall)\n",
        "'hall'",
        "mission.py:hall",
    ),
    "a registered lambda that uses a class of the file": (
        f"{OWN}register_env('hall', lambda config: Hall(**config))\n",
        "'hall'",
        "mission.py:hall",
    ),
    "a registered class of the file": (
        f"{OWN}class Mine(Hall):\n    def __init__(self, config): super().__init__(**config)\n"
        "register_env('hall', Mine)\n",
        "'hall'",
        "mission.py:hall",
    ),
    "a class of the file with keyword arguments": (OWN, "Hall", "mission.py:Hall"),
    "an id": ("gym.register('Mine-v0', 'corridor:Corridor')\n", "'Mine-v0'", "mission.py:Mine-v0"),
    "a class of the file": (
        "import corridor\nclass Mine(corridor.Corridor):\n    def __init__(self, config): super().__init__(**config)\n",
        "Mine",
        "mission.py:Mine",
    ),
    "a class beside it": ("from ways import Configured\n", "Configured", "ways.py:Configured"),
    "a file": ("", "'corridor.py:Corridor'", "corridor.py:Corridor"),
}


@pytest.fixture
def files(own_folder):
    return write_files(own_folder)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_experiment_file_names_other_commands_find(files, tmp_path, kind, monkeypatch):
    before, env, name = KINDS[kind]
    (files / "mission.py").write_text(f"{HEAD}{before}config = DistillDQNConfig().environment({env}){TAIL}")
    experiment = read_experiment("mission.py")
    named = f"{files}/{name}"
    assert (experiment.config.env, is_familiar(named)) == (named, True)
    assert experiment.checked().title == f"DistillDQN-{name.rpartition(':')[2]}"
    assert env_maker(named, {"size": 3})().unwrapped.size == 3
    path = checkpoint(tmp_path / "a", named)
    monkeypatch.chdir("/")
    assert resolve_environment({"a": path}) == (named, {})
    monkeypatch.setattr("rllib_kd.environments.own._defined", {})  # as in another process
    sys.modules.pop("mission", None)
    assert env_maker(named, {"size": 3})().unwrapped.size == 3


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("'CartPole-v1'", "CartPole-v1"),
        ("'gymnasium:CartPole-v1'", "gymnasium:CartPole-v1"),
        ("lambda config: None", "<lambda>"),
        ("local()", "Local"),
    ],
)
def test_other_environments_of_a_file_stay_as_they_are(files, env, name):
    text = "def local():\n    class Local(gym.Env): pass\n    return Local\n"
    (files / "mission.py").write_text(f"{HEAD}{text}config = DistillDQNConfig().environment({env}){TAIL}")
    given = read_experiment("mission.py").config.env
    assert getattr(given, "__name__", given) == name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "file" in kind])
def test_pickles_make_what_an_experiment_file_has_registered(files, kind):
    """A worker of Ray has not run the file: it has the creator's pickle, and nothing of the name "experiment"."""
    before, env, _ = KINDS[kind]
    (files / "mission.py").write_text(f"{HEAD}{before}config = DistillDQNConfig().environment({env}){TAIL}")
    own = read_experiment("mission.py").config.env
    names = {own, "hall"} if env == "'hall'" else {own}
    assert "experiment" not in sys.modules
    for each in names:
        pickled = cloudpickle.dumps(_global_registry.get(ENV_CREATOR, each))
        assert cloudpickle.loads(pickled)(EnvContext({"size": 3}, 0)).unwrapped.size == 3


def test_reading_an_experiment_leaves_no_module_of_its_name(files, monkeypatch):
    """Nor does a module of the user's own that has this name change."""
    (files / "mission.py").write_text(f"{HEAD}config = DistillDQNConfig().environment('CartPole-v1'){TAIL}")
    by_value = set(cloudpickle.list_registry_pickle_by_value())
    monkeypatch.delitem(sys.modules, "experiment", raising=False)
    read_experiment("mission.py")
    assert "experiment" not in sys.modules
    monkeypatch.setitem(sys.modules, "experiment", other := ModuleType("experiment"))
    read_experiment("mission.py")
    assert sys.modules["experiment"] is other
    (files / "mission.py").write_text("raise RuntimeError")
    with pytest.raises(ValueError, match="RuntimeError"):
        read_experiment("mission.py")
    assert sys.modules["experiment"] is other
    assert cloudpickle.list_registry_pickle_by_value() == by_value


def test_the_line_of_an_experiment_file_that_raises_is_named(files):
    (files / "raises.py").write_text("def fail():\n    raise RuntimeError('boom')\n\nfail()\n")
    message = f"'raises.py' cannot be run: RuntimeError: boom ({files}/raises.py:2, in fail)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_experiment("raises.py")


def test_imports_of_an_experiment_file(files):
    (files / "experiment.py").write_text(f"{HEAD}config = DistillDQNConfig().environment('corridor-of-rays'){TAIL}")
    experiment = read_experiment("experiment.py", imports=["ways.py"])
    assert experiment.config.env == f"{files}/ways.py,{files}/experiment.py:corridor-of-rays"
    (files / "experiment.yaml").write_text("x: {run: DQN, env: Corridor-v7}\n")
    experiment = read_experiment("experiment.yaml", imports=["ways.py"])
    assert experiment.settings["env"] == f"{files}/ways.py:Corridor-v7"


def test_files_beside_an_experiment_replace_no_installed_module(files):
    for name in ("tree", "random", "types"):
        (files / f"{name}.py").write_text("raise RuntimeError('mine')")
    (files / "experiment.py").write_text(
        f"import random, tree\n{HEAD}config = DistillDQNConfig().environment('CartPole-v1'){TAIL}"
    )
    read_experiment("experiment.py").checked()
    assert sys.path[-1] == str(files)
    assert str(files) not in os.environ["PYTHONPATH"].split(os.pathsep)


@pytest.mark.parametrize("algorithm", ["DQN", "DistillDQN"])
@pytest.mark.parametrize("config", [True, False])
def test_names_are_absolute_in_every_config(files, algorithm, config):
    settings = {"teacher": None, "td_coeff": 1.0} if algorithm == "DistillDQN" else {}
    base = DQNConfig().environment("corridor.py:Corridor") if config and algorithm == "DQN" else None
    settings |= {} if base else {"env": "corridor.py:Corridor"}
    checked = Experiment("x", algorithm, base, settings=settings).checked()
    assert checked.param_space.env == f"{files}/corridor.py:Corridor"
    assert checked.settings.get("env", checked.param_space.env) == checked.param_space.env  # of a resumed run


def test_several_environments(files):
    settings = {"env": {"grid_search": ["corridor.py:Corridor", "CartPole-v1"]}}
    space = Experiment("x", "DQN", settings=settings).checked().param_space
    assert space["env"] == {"grid_search": [f"{files}/corridor.py:Corridor", "CartPole-v1"]}


def test_an_environment_that_does_not_fit_is_refused_before_ray_starts(files):
    settings = {"env": "corridor.py:Corridor", "teacher": "cartpole"}
    with pytest.raises(ValueError, match=r"The teacher's observation space is Box\(4,\), but in '.*corridor\.py"):
        Experiment("x", "DistillDQN", settings=settings).checked()


@pytest.mark.parametrize("kind", ["discrete", "start", "multi", "grid", "binary"])
def test_rllibs_algorithms_take_discrete_observations(files, kind):
    settings = {"env": "cells.py:Cells", "env_config": {"kind": kind}}
    for algorithm in ("DQN", "PPO"):
        space = Experiment("x", algorithm, settings=settings).checked().param_space
        assert space._env_to_module_connector is flatten_observations
    own = DQNConfig().env_runners(env_to_module_connector=lambda env, spaces, device: [])
    space = Experiment("x", "DQN", own, settings=settings).checked().param_space
    assert space._env_to_module_connector is not flatten_observations
    space = Experiment("x", "DQN", settings={"env": "CartPole-v1"}).checked().param_space
    assert space._env_to_module_connector is None


def test_trials_are_named_without_the_path_of_a_file(files):
    """A long path would cut off the id that tells trials apart."""
    trial = SimpleNamespace(trainable_name="DQN", trial_id="ab_00001", config={"env": f"{files}/corridor.py:Corridor"})
    assert _trial_name(trial) == "DQN_Corridor_ab_00001"
    trial.config = {"env": "ALE/Pong-v5"}
    assert _trial_name(trial) == "DQN_ALE_Pong-v5_ab_00001"


def test_an_environment_is_tried_before_any_process_starts(tmp_path):
    env = tmp_path / "broken.py"
    env.write_text(
        "import gymnasium as gym\nimport numpy as np\nclass Broken(gym.Env):\n"
        "    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)\n"
        "    def reset(self): return np.zeros(2, np.float32), {}\n"
    )
    experiment = Experiment(None, "DistillDQN", settings={"env": f"{env}:Broken", "teacher": None, "td_coeff": 1.0})
    with pytest.raises(EnvFailedError, match=r"takes no seed in reset\(\) \(.*broken.py:5, in reset\)"):
        experiment.checked()


@pytest.mark.parametrize(("env_config", "is_noted"), [({"is_slippery": False}, False), ({}, True)])
def test_a_teacher_of_another_config_is_noted(tmp_path, capsys, env_config, is_noted):
    config = DistillDQNConfig().environment("FrozenLake-v1", env_config={"is_slippery": False})
    config.rl_module(model_config={"fcnet_hiddens": [4]}).distillation(teacher=None, td_coeff=1.0)
    algo = config.env_runners(num_env_runners=0).build_algo()
    teacher = algo.save_to_path(str(tmp_path / "teacher"))
    algo.stop()
    settings = {"env": "FrozenLake-v1", "env_config": env_config, "teacher": teacher, "compression": 0.5}
    Experiment(None, "DistillDQN", settings=settings).checked()
    said = 'the teacher was trained in FrozenLake-v1 {"is_slippery": false}, and this run is in FrozenLake-v1.'
    assert (said in capsys.readouterr().err) == is_noted
