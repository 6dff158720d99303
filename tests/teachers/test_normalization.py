"""Which file of VecNormalize a zip of Stable-Baselines3 takes, by what the zip records of its training."""

import logging
import shutil

import gymnasium as gym
import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rllib_kd import load_teacher


def cartpoles(**kwargs):
    return VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), **kwargs)


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    """A folder with zips, trained with and without VecNormalize, and its statistics."""
    folder = tmp_path_factory.mktemp("zips")
    small = {"policy_kwargs": {"net_arch": [4]}, "device": "cpu", "seed": 0}
    A2C("MlpPolicy", "CartPole-v1", n_steps=2, **small).learn(2).save(folder / "plain.zip")
    A2C("MlpPolicy", cartpoles(), n_steps=2, **small).save(folder / "new.zip")
    A2C("MlpPolicy", cartpoles(norm_obs=False), n_steps=2, **small).learn(2).save(folder / "rewards.zip")
    DQN("MlpPolicy", "CartPole-v1", buffer_size=8, **small).learn(2).save(folder / "dqn.zip")
    envs = cartpoles()
    PPO("MlpPolicy", envs, n_steps=4, batch_size=4, n_epochs=1, **small).learn(4).save(folder / "normalized.zip")
    envs.save(folder / "statistics.pkl")
    load_teacher(folder / "normalized.zip")  # so that RLlib has warned of what it warns of once
    return folder


def put(zips, folder, *names, **statistics):
    for name in names:
        shutil.copy(zips / name, folder / name)
    for name in statistics.values():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(zips / "statistics.pkl", folder / name)
    return folder / names[0]


def stages(path):
    pipeline = load_teacher(path).pipeline
    return [] if pipeline is None else [type(stage).__name__ for stage in pipeline.stages]


@pytest.mark.parametrize("name", ["normalized.zip", "rewards.zip"])
def test_a_policy_trained_with_statistics_that_are_missing_is_reported(tmp_path, zips, caplog, name):
    path = put(zips, tmp_path, name)
    assert stages(path) == []
    own = name.replace(".zip", "_vecnormalize.pkl")
    (message,) = caplog.messages
    assert "was trained with VecNormalize, but no file of its statistics was found" in message
    assert f"VecNormalize.save('{own}')" in message
    caplog.clear()
    put(zips, tmp_path, name, own=own)
    assert stages(path) == ["Normalize"]
    assert not caplog.messages


@pytest.mark.parametrize("name", ["plain.zip", "new.zip", "dqn.zip"])
def test_without_a_sign_of_statistics_nothing_is_reported(tmp_path, zips, caplog, name):
    assert stages(put(zips, tmp_path, name)) == []
    assert not caplog.messages


@pytest.mark.parametrize("shared", ["vecnormalize.pkl", "vec_normalize.pkl"])
def test_a_policy_trained_without_statistics_takes_none_that_are_not_its_own(tmp_path, zips, caplog, shared):
    path = put(zips, tmp_path, "plain.zip", shared=shared)
    assert stages(path) == []
    (message,) = caplog.messages
    assert f"was trained without VecNormalize, so '{shared}' is not used" in message
    (tmp_path / shared).rename(tmp_path / "plain_vecnormalize.pkl")  # as the warning says
    caplog.clear()
    assert stages(path) == ["Normalize"]
    assert not caplog.messages


@pytest.mark.parametrize("name", ["normalized.zip", "dqn.zip"])
def test_shared_statistics_beside_several_zips_are_reported(tmp_path, zips, caplog, name):
    path = put(zips, tmp_path, name, shared="vecnormalize.pkl")
    with caplog.at_level(logging.INFO, "rllib_kd"):
        assert stages(path) == ["Normalize"]
    (record,) = [record for record in caplog.records if record.name.startswith("rllib_kd")]
    assert record.levelno == logging.INFO
    assert "takes its normalisation from 'vecnormalize.pkl'." in record.getMessage()
    caplog.clear()
    put(zips, tmp_path, "plain.zip")
    assert stages(path) == ["Normalize"]
    (message,) = caplog.messages
    assert "from 'vecnormalize.pkl', which may belong to another zip beside it: 'plain.zip'." in message
    own = name.replace(".zip", "_vecnormalize.pkl")
    (tmp_path / "vecnormalize.pkl").rename(tmp_path / own)
    caplog.clear()
    assert stages(path) == ["Normalize"]
    assert not caplog.messages


def test_a_folder_with_the_name_of_the_zip_has_its_own_statistics(tmp_path, zips, caplog):
    path = put(zips, tmp_path, "dqn.zip", "plain.zip", own="dqn/vecnormalize.pkl")
    assert stages(path) == ["Normalize"]
    assert not caplog.messages
