"""What a checkpoint records of an environment of the user's own, and when that is run."""

import re
import shutil

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_kd import compare, compare_all
from rllib_kd.environments import familiar
from rllib_kd.environments.making import env_maker
from rllib_kd.environments.own import given_environment, settled
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.evaluation.played_environment import record_config, resolve_environment
from rllib_kd.observations.pipeline import Flatten, ObservationPipeline
from rllib_kd.observations.spaces import input_space
from rllib_kd.teachers.base import Teacher
from tests.conftest import exit_code, make_q_module
from tests.environments.own_files import write_files
from tests.rllib_checkpoints import write_checkpoint


@pytest.fixture
def files(own_folder):
    return write_files(own_folder)


def checkpoint(folder, env, env_config=None):
    module = make_q_module(gym.spaces.Box(0.0, 1.0, (2,), np.float32), gym.spaces.Discrete(2))
    return write_checkpoint(folder, env, env_config or {}, module)


@pytest.mark.parametrize("env", ["corridor.py:Corridor", "corridor:Corridor", "ways.py:corridor-of-rays"])
def test_what_the_user_has_given_once_is_played_from_any_folder(files, tmp_path, env, monkeypatch, capsys):
    path = checkpoint(tmp_path / "a", given_environment(env))
    monkeypatch.chdir("/")
    assert exit_code("evaluate", path, "--episodes", "2") == 0
    assert f"2 episodes of {env.rpartition(':')[2]})" in capsys.readouterr().out
    assert compare(path, path, num_episodes=2).env == env.rpartition(":")[2]
    out = tmp_path / "student.safetensors"
    assert exit_code("export", path, "--out", str(out), "--episodes", "1") == 0
    assert out.is_file()


@pytest.mark.parametrize("ways", ["ways.py:corridor-of-rays", "ways.py,corridor.py:Corridor"])
def test_a_file_that_the_user_has_never_given_is_not_run(files, tmp_path, ways, capsys):
    (files / "ways.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n{(files / 'ways.py').read_text()}")
    env = ",".join(str(files / part) for part in ways.rpartition(":")[0].split(",")) + f":{ways.rpartition(':')[2]}"
    path = checkpoint(tmp_path / "a", env)
    given_environment("corridor.py:Corridor")  # another one
    for words in (["evaluate", path], ["compare", "--teacher", path, path], ["export", path, "--out", "x.onnx"]):
        assert exit_code(*words) == 2
        error = capsys.readouterr().err
        assert f"'{path}' was trained in '{env}', which names a file to run. Give it yourself with --env" in error
    assert not (tmp_path / "run").exists()
    assert evaluate(path, num_episodes=1, trust_checkpoint=True).returns
    assert (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="names a file to run"):  # trust once is no trust for later
        evaluate(path, num_episodes=1)
    assert exit_code("evaluate", path, "--env", ways, "--episodes", "1") == 0
    assert exit_code("evaluate", path, "--episodes", "1") == 0


def test_a_module_of_the_working_folder_is_none_that_a_checkpoint_names(files, tmp_path, capsys):
    """Somebody else's folder may hold a module of the same name: the record has the file."""
    settled("corridor:Corridor")
    for env, error in (("corridor:Corridor", "a module to import"), (f"{files}/corridor.py:Other", "a file to run")):
        path = checkpoint(tmp_path / error, env)
        assert exit_code("evaluate", path) == 2
        assert f"names {error}" in capsys.readouterr().err


@pytest.mark.parametrize("trust", [[], ["--trust-checkpoint"]])
def test_a_missing_file_is_named_with_the_remedy(files, tmp_path, trust, capsys):
    path = checkpoint(tmp_path / "a", settled("corridor.py:Corridor"))
    moved = tmp_path / "moved.py"
    shutil.move(files / "corridor.py", moved)
    assert exit_code("evaluate", path, *trust) == 2
    assert re.search(
        rf"there is no file '{files}/corridor\.py' here\. Name its new place with --env FILE\.py:Corridor",
        capsys.readouterr().err,
    )
    assert exit_code("evaluate", path, "--env", f"{moved}:Corridor", "--episodes", "1", *trust) == 0


def test_another_place_is_the_same_environment_with_its_config(files, tmp_path):
    path = checkpoint(tmp_path / "a", settled("corridor.py:Corridor"), {"size": 3})
    shutil.copy(files / "corridor.py", tmp_path / "moved.py")
    for env in (f"{tmp_path}/moved.py:Corridor", "corridor.Corridor"):
        assert resolve_environment({"a": path}, env, trust_checkpoint=True).env_config == {"size": 3}
        assert resolve_environment({"a": path}, env, {"size": 4}).env_config == {"size": 4}
        with pytest.raises(ValueError, match=r"not known to be harmless: 'size'\. Set these keys yourself"):
            resolve_environment({"a": path}, env)
    assert resolve_environment({"a": path}, "ways.py:Configured").env_config == {}


def test_configs_with_which_the_user_has_trained_are_familiar(files, tmp_path):
    env = settled("corridor.py:Corridor")
    record_config(env, {"size": np.int64(3)})
    record_config("FrozenLake-v1", {"desc": ["S"]})
    assert resolve_environment({"a": checkpoint(tmp_path / "a", env, {"size": 3})}) == (env, {"size": 3})
    for other in ({"size": 4}, {"size": 3, "render_mode": "human"}):
        with pytest.raises(ValueError, match="not known to be harmless"):
            resolve_environment({"b": checkpoint(tmp_path / str(len(other)), env, other)})
    assert "FrozenLake" not in familiar.record_path().read_text()


def test_students_of_one_file_are_compared_in_it(files, tmp_path):
    env = settled("corridor.py:Corridor")
    students = {name: checkpoint(tmp_path / name, env) for name in "ab"}
    assert [each.env for each in compare_all(students["a"], students, num_episodes=1)] == ["Corridor", "Corridor"]
    other = {"c": checkpoint(tmp_path / "c", settled("ways.py:Configured"))}
    with pytest.raises(ValueError, match="'a' and 'c' were trained in different environments: Corridor and Configured"):
        compare_all(students["a"], {"a": students["a"], **other}, num_episodes=1)


def test_a_class_without_a_file_is_named(tmp_path):
    path = write_checkpoint(tmp_path / "a", Local)
    with pytest.raises(ValueError, match=rf"trained in the class '{__name__}\.Local', .* --env path/to/file\.py:Local"):
        evaluate(path)


class Local(gym.Env):
    """An environment that a config has as a class."""


@pytest.mark.parametrize("kind", ["discrete", "start", "multi", "grid", "binary"])
def test_a_network_of_one_hot_vectors_plays_discrete_observations(files, tmp_path, kind):
    """One whose connectors are not recorded, as in a folder with an RLModule alone."""
    env = "cells.py:Cells"
    space = env_maker(settled(env), {"kind": kind})().observation_space
    module = make_q_module(input_space(space), gym.spaces.Discrete(2))
    path = module.save_to_path(str(tmp_path / "module"))
    encoding = ObservationPipeline(space, (Flatten(space),))
    known = Teacher(module, pipeline=encoding)
    done = compare(known, path, env, num_episodes=3, env_config={"kind": kind})
    assert done.student.returns == done.teacher.returns
    assert done.agreement_on_student_states == 1.0
    assert evaluate(path, env, num_episodes=3, env_config={"kind": kind}).returns == done.student.returns
    wrong = make_q_module(gym.spaces.Box(0, 1, (9,), np.float32), gym.spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"was made for observations Box\(9,\)"):
        evaluate(wrong, env, num_episodes=1, env_config={"kind": kind})


def test_an_actor_of_one_hot_vectors_plays_discrete_observations(files):
    space = gym.spaces.Discrete(4, start=3)
    spec = RLModuleSpec(
        module_class=DefaultPPOTorchRLModule,
        observation_space=input_space(space),
        action_space=gym.spaces.Discrete(2),
        model_config=DefaultModelConfig(fcnet_hiddens=[8]),
        catalog_class=PPOCatalog,
    )
    report = evaluate(spec.build(), "cells.py:Cells", num_episodes=2)
    assert len(report.returns) == 2
