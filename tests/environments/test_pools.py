"""Environments that envpool samples, and gymnasium's own of the same name, in which everything else is played."""

import importlib.util
import pickle

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd import DistillDQN, DistillDQNConfig, compare, load_teacher
from rllib_kd.certificates.games import Games
from rllib_kd.environments import pools
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.validation import play_validation
from rllib_kd.observations.pipeline import ObservationPipeline

needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="needs envpool")


def config(env="envpool/CartPole-v1", **env_config):
    return (
        DistillDQNConfig()
        .environment(env, env_config=env_config)
        .env_runners(num_envs_per_env_runner=4)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .distillation(teacher="cartpole", num_baseline_episodes=4)
        .debugging(seed=3)
    )


def test_its_environment_is_gymnasiums():
    env = env_maker("envpool/CartPole-v1", {"num_threads": 2})()
    assert type(env.unwrapped) is type(gym.make("CartPole-v1").unwrapped)
    obs, _ = env.reset(seed=5)
    expected, _ = gym.make("CartPole-v1").reset(seed=5)
    np.testing.assert_array_equal(obs, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("envpool/NoSuch-v0", "evaluated in gymnasium's 'NoSuch-v0', but gymnasium has no 'NoSuch-v0'"),
        ("envpool/roundabout-v99", r"no 'roundabout-v99'\. Install it: pip install highway-env"),
        ("envpool/u-turn-v99", "pip install highway-env"),
        ("envpool/ALE/Pong-v5", "Use the name 'ALE/...' instead"),
        ("envpool/", "gymnasium has no"),
    ],
)
def test_names_that_gymnasium_does_not_know_are_refused(name, message):
    if "ALE" in name:
        pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=message):
        config(name).build_algo()


@pytest.mark.skipif(importlib.util.find_spec("envpool") is not None, reason="envpool is installed")
def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"'envpool/CartPole-v1' needs envpool.*pip install 'rllib-kd\[envpool\]'"):
        config().build_algo()


@needs_envpool
@pytest.mark.parametrize(
    ("name", "env_config", "message"),
    [
        ("envpool/CartPole-v1", {"sutton_barto_reward": True}, "takes no env_config but num_threads, got sutton_barto"),
        (
            "envpool/CartPole-v1",
            {"num_envs": 3, "name": "x"},
            "takes no env_config .*, got name, num_envs",
        ),
        ("envpool/CartPole-v1", {"num_threads": -1}, "num_threads=-1: expected an integer ≥ 1"),
        ("envpool/Blackjack-v1", {}, r"envpool's 'Blackjack-v1' shows Box.*gymnasium's shows Tuple"),
        ("envpool/Taxi-v3", {}, "does not show which actions are legal"),
    ],
)
def test_what_a_pool_cannot_do_is_refused(name, env_config, message):
    with pytest.raises(ValueError, match=message):
        pools.check(name, env_config)


@needs_envpool
def test_what_envpool_does_not_know_is_refused(monkeypatch):
    monkeypatch.setattr("envpool.list_all_envs", lambda: ["Acrobot-v1"])
    with pytest.raises(ValueError, match=r"envpool .* has no environment 'CartPole-v1'"):
        pools.check("envpool/CartPole-v1", {})


@needs_envpool
def test_a_seed_gives_the_same_episodes():
    def first(seed):
        pool = pools.Pool(3, name="CartPole-v1")
        obs, _ = pool.reset(seed=seed)
        pool.close()
        return obs

    np.testing.assert_array_equal(first(5), first([5, 6, 7]))
    assert not np.array_equal(first(5), first(6))
    np.testing.assert_array_equal(first(5)[1:], first(6)[:2])
    assert not np.array_equal(first(None), first(None))


@needs_envpool
def test_episodes_end_as_in_gymnasiums_vector_envs():
    """The last state of an episode is returned, and the next step begins another one, whatever the action."""
    pool = pools.Pool(2, name="CartPole-v1")
    assert pool.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP
    obs, _ = pool.reset(seed=0)
    while True:
        obs, rewards, terminateds, truncateds, infos = pool.step(np.ones(2, int))
        assert infos == {}
        assert (rewards.dtype, terminateds.dtype, truncateds.dtype) == (np.float64, bool, bool)
        if terminateds[0]:
            break
    assert abs(obs[0, 2]) > 0.2095  # it has fallen
    obs, rewards, terminateds, *_ = pool.step(np.ones(2, int))
    assert np.abs(obs[0]).max() < 0.05
    assert not terminateds[0]
    with pytest.raises(TypeError, match="cannot be saved"):
        pickle.dumps(pool)
    pool.close()


@needs_envpool
def test_students_are_chosen_in_it():
    make_env, ours = env_maker("envpool/CartPole-v1", {"num_threads": 1}), env_maker("CartPole-v1")
    teacher = load_teacher("cartpole")
    modules = {"one": teacher.module, "other": teacher.module}
    pipeline = teacher.pipeline or ObservationPipeline(gym.spaces.Box(-1.0, 1.0, (4,)))
    played = play_validation(make_env, modules, pipeline, num_episodes=40)  # 80 are more than are played at once
    assert played.returns == {"one": [500.0] * 40, "other": [500.0] * 40}
    games, others = (Games(make, teacher, 0) for make in (make_env, ours))
    chosen, random = games.validation_baselines(0, 30)
    assert chosen.tolist() == [500.0] * 30
    assert random.tolist() == games.validation_baselines(0, 30)[1].tolist()
    assert random.tolist() != others.validation_baselines(0, 30)[1].tolist()
    reported, own = (one.certificate_episodes(teacher, 0, 5) for one in (games, others))
    np.testing.assert_array_equal(reported, own)
    in_pool = Games(make_env, teacher, 0, in_pool=True)
    assert in_pool.certificate_episodes(teacher, 0, 5)[:2].tolist() == [[500.0] * 5] * 2
    assert in_pool.certificate_episodes(teacher, 0, 5)[2].tolist() != own[2].tolist()


@needs_envpool
def test_it_samples_and_gymnasium_judges(build, tmp_path):
    algo = build(config(num_threads=1))
    assert isinstance(algo.env_runner.env.unwrapped, pools.Pool)
    result = algo.train()
    assert result["distillation"]["teacher_return"] == 500.0
    algo.evaluate()
    assert isinstance(algo.eval_env_runner.env.unwrapped, gym.vector.SyncVectorEnv)
    path = algo.save_to_path(str(tmp_path / "student"))
    assert compare("cartpole", path, num_episodes=2).teacher.return_mean == 500.0  # in the recorded one's counterpart
    resumed = DistillDQN.from_checkpoint(path)  # with new episodes
    resumed.train()
    resumed.stop()
