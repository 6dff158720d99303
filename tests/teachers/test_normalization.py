"""Which file of VecNormalize a zip of Stable-Baselines3 takes, by what the zip records of its training."""

import logging
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rllib_kd import load_teacher
from rllib_kd.observations.pipeline import Shown
from rllib_kd.teachers.normalization import STATISTICS
from tests.formats import mlp, sb3_weights, sb3_zip
from tests.teachers.test_sb3 import Anything


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


def test_names_of_statistics_of_observations():
    suggest = """obs_rms ob_rms actor.obs_rms.mean obs_mean obs_std obs_var observation_mean observations_std
        state_mean input_mean running_mean running_mean_std.running_mean mean_std MeanStdFilter obs_normalizer._mean
        normalization normalise VecNormalize vec_normalize myVecNorm norm_obs norm_stats obs_norm_state_dict"""
    do_not = """reward_normalizer RewardNormalizer value_normalizer returns_normalizer reward_rms ret_rms critic_obs_rms
        value_mean_std.running_mean action_mean_std critic.bn1.running_mean bn1.running_mean features.1.running_var
        layer_normalization.weight batch_norm.running_mean GroupNormalization jobs_variant jobs_var obs_variant
        state_dict"""
    assert [name for name in suggest.split() if not STATISTICS.search(name)] == []
    assert [name for name in do_not.split() if STATISTICS.search(name)] == []


def test_files_with_a_name_of_statistics_beside_a_zip_are_named(tmp_path, zips, caplog):
    path = put(zips, tmp_path, "dqn.zip")
    for name in ("jobs_variant.json", "knobs_var.yaml", "secret_norm.json", "layer_normalization.json"):
        (tmp_path / name).touch()
    assert stages(path) == []
    assert not caplog.messages
    for name in ("ob_rms.npz", "ret_rms.npy", "state_mean.json"):
        (tmp_path / name).touch()
    assert stages(path) == []
    assert "Not used: 'ob_rms.npz', 'ret_rms.npy', 'state_mean.json'." in caplog.text


@pytest.mark.parametrize(
    ("space", "normalized", "match"),
    [
        (
            gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (3,)), b=gym.spaces.Box(-1, 1, (1,))),
            None,
            "normalises the parts of a Dict, .*each part in a wrapper",
        ),
        (
            gym.spaces.Box(-1, 1, (4,)),
            gym.spaces.Box(-1, 1, (2,)),
            r"the shape \(2,\), but .* \(4,\), as of VecNormalize beneath a VecFrameStack.*in a wrapper",
        ),
        (gym.spaces.Box(-1, 1, (4,)), gym.spaces.Box(-1, 1, (3,)), "belong to another zip"),
    ],
    ids=["a Dict", "a stack", "another length"],
)
def test_statistics_that_are_not_supported_are_named(tmp_path, space, normalized, match):
    path = sb3_zip(tmp_path / "a.zip", sb3_weights(mlp(4, 2)), space, 2)
    VecNormalize(DummyVecEnv([lambda: Anything(normalized or space)])).save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(ValueError, match=match):
        load_teacher(path)
    (tmp_path / "vecnormalize.pkl").unlink()
    assert stages(path) == (["Flatten"] if normalized is None else [])


@pytest.mark.parametrize(
    ("space", "policy", "policy_kwargs"),
    [
        (gym.spaces.Box(-9, 9, (3,), np.int64), "MlpPolicy", {}),
        (gym.spaces.Box(0, 9, (2, 3), np.int32), "MlpPolicy", {}),
        (gym.spaces.Box(0, 255, (5,), np.uint8), "MlpPolicy", {}),
        (gym.spaces.Box(0, 255, (1, 36, 36), np.uint8), "CnnPolicy", {"normalize_images": False}),
    ],
    ids=["integers", "a matrix of integers", "bytes", "an image"],
)
def test_integers_are_normalised_as_by_the_original(tmp_path, space, policy, policy_kwargs):
    envs = VecNormalize(DummyVecEnv([lambda: Anything(space)]))
    model = A2C(policy, envs, n_steps=8, device="cpu", seed=0, policy_kwargs={"net_arch": [4], **policy_kwargs})
    model.learn(16)
    model.save(tmp_path / "model.zip")
    envs.save(tmp_path / "model_vecnormalize.pkl")
    space.seed(0)
    obs = np.stack([space.sample() for _ in range(5)])
    with torch.no_grad():
        tensor, _ = model.policy.obs_to_tensor(envs.normalize_obs(obs))
        expected = model.policy.get_distribution(tensor).distribution.logits.numpy()
    teacher = load_teacher(tmp_path / "model.zip")
    assert teacher.takes(space)
    seen = teacher.start()(Shown(obs, np.ones(5, dtype=bool)))
    assert teacher.q_values(torch.from_numpy(seen)).numpy() == pytest.approx(expected, abs=1e-5)
