"""Atari by ALE's names: one game for the vector env and single ones, and what the shared teachers make of it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import DistillDQNConfig, DistillEnvRunner, compare, load_teacher
from rllib_kd.environments import atari
from rllib_kd.environments.making import env_maker, time_limit_of
from rllib_kd.evaluation.playing import play
from rllib_kd.learner.group import DISTILLATION_COLUMNS
from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.observations.frames import observations
from rllib_kd.students.sizes import PRESETS
from rllib_kd.wire import receive
from tests.conftest import make_q_module, shared_teacher

FLOATS = gym.spaces.Box(0, 1, (84, 84, 4), np.float32)
TINY = {"conv_filters": [[2, 8, 4, "valid"], [2, 4, 2, "valid"], [2, 3, 1, "valid"]], "head_fcnet_hiddens": [4]}
#: Without chance, so that everyone sees the same; and short.
CONFIG = {"repeat_action_probability": 0.0, "noop_max": 0, "max_num_frames_per_episode": 160}


def vector_env(game, num_envs=1, **config):
    config = {**atari.VECTOR_DEFAULTS, **CONFIG, **config}
    return gym.make_vec(game, num_envs=num_envs, vectorization_mode="vector_entry_point", **config)


# --- The game ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("game", "points", "config"),
    [
        pytest.param("ALE/Breakout-v5", 1, {}, marks=pytest.mark.slow),
        ("ALE/MsPacman-v5", 10, {"reward_clipping": True, "frameskip": 3, "stack_num": 2}),
    ],
)
def test_single_environments_show_what_the_vector_env_shows(game, points, config):
    config = config | {"max_num_frames_per_episode": 800}
    vector, single = vector_env(game, **config), atari.make(game, **CONFIG | config, num_threads=1)
    assert single.observation_space == vector.single_observation_space
    assert single.action_space == vector.single_action_space
    rng, rewards, ended = np.random.default_rng(0), [], False
    expected, obs = vector.reset(seed=0)[0], single.reset(seed=0)[0]
    while not ended:
        np.testing.assert_array_equal(obs, expected[0])
        action = int(rng.integers(single.action_space.n))
        obs, reward, terminated, truncated, _ = single.step(action)
        expected, *outcome, _ = vector.step(np.array([action]))
        assert [reward, terminated, truncated] == [part[0] for part in outcome]
        rewards.append(reward)
        ended = terminated or truncated
    assert max(rewards) == (1 if config.get("reward_clipping") else points)


class ByWhatIsSeen:
    """Takes actions that depend on all that an episode has shown, and keeps what it has seen first."""

    def __init__(self):
        self.first = []

    def player(self):
        total = np.zeros(0, dtype=int)

        def act(shown):
            nonlocal total
            sums = shown.obs.reshape(len(shown.obs), -1).sum(axis=1, dtype=int)
            total = sums + np.where(shown.first, 0, np.resize(total, len(sums)))
            self.first += sums[shown.first].tolist()
            return total // 7 % 4

        return act


@pytest.mark.slow
def test_episodes_of_a_game_are_the_same_in_any_number_of_environments():
    make_env = env_maker("ALE/MsPacman-v5", {"repeat_action_probability": 0.25, "max_num_frames_per_episode": 400})
    seeds = [7, 2**40, 3]
    side_by_side, in_turn = ByWhatIsSeen(), ByWhatIsSeen()
    played = play(make_env, side_by_side, seeds)[0]
    assert play(make_env, in_turn, seeds, num_envs=2)[0] == played
    assert [play(make_env, ByWhatIsSeen(), [seed])[0][0] for seed in seeds] == played
    assert len(set(side_by_side.first[: len(seeds)])) > 1  # seeds start the game in other places
    assert len(set(played)) > 1


@pytest.mark.parametrize("frameskip", [None, 4.0, 4])
def test_an_environment_that_is_no_game_has_no_limit_in_frames(frameskip):
    spec = gym.envs.registration.EnvSpec("Skip-v0", entry_point="a:B", kwargs={"frameskip": frameskip})
    assert atari.time_limit(spec, []) is None


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, 27_000),
        ({"frameskip": 1}, 108_000),
        ({"frameskip": 3, "max_num_frames_per_episode": 800}, 267),
    ],
)
def test_a_game_has_a_limit_in_steps(config, limit):
    """ALE's is in frames, and gymnasium has none."""
    make_env = env_maker("ALE/Pong-v5", config)
    assert time_limit_of(make_env.vector(2)) == time_limit_of(make_env()) == limit
    assert time_limit_of(gym.make("ALE/Pong-v5", **config)) == limit


def test_a_game_that_is_shown_is_played_alone():
    assert env_maker("ALE/Breakout-v5", render_mode="rgb_array").vector(1) is None
    assert env_maker("CartPole-v1").vector(1) is None


def test_what_only_the_vector_env_can_do_is_refused():
    with pytest.raises(ValueError, match="needs use_fire_reset=False"):
        atari.make("ALE/Pong-v5", use_fire_reset=True)
    with pytest.raises(ValueError, match=r"does not accept this env_config: .*'sticky'"):
        atari.make("ALE/Pong-v5", sticky=True)


def test_names_of_games():
    assert atari.is_game("ALE/Pong-v5")
    assert not any(map(atari.is_game, ("CartPole-v1", "Pong-v4", "ALE/Pang-v5", env_maker, None)))


# --- Configs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(cluster, tmp_path):
    teacher = make_q_module(FLOATS, gym.spaces.Discrete(6), **TINY)
    return (
        DistillDQNConfig()
        .environment("ALE/Pong-v5", env_config=CONFIG)
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=16)
        .training(train_batch_size_per_learner=16, num_steps_sampled_before_learning_starts=16, training_intensity=1)
        .reporting(min_sample_timesteps_per_iteration=32)
        .evaluation(evaluation_duration=1)
        .distillation(teacher=teacher.save_to_path(str(tmp_path / "teacher")), num_baseline_episodes=1)
        .debugging(seed=0)
    )


def test_a_game_is_played_in_ales_own_vector_env(config):
    config.environment(env_config={"reward_clipping": True})
    config.settle_environment()
    assert config.gym_env_vectorize_mode == "vector_entry_point"
    assert config.env_config == {**atari.VECTOR_DEFAULTS, **CONFIG, "reward_clipping": True}


def test_with_connectors_of_ones_own_a_game_is_as_it_is(config):
    config.env_runners(env_to_module_connector=lambda *args, **kwargs: [])
    config.settle_environment()
    assert str(config.gym_env_vectorize_mode) != "vector_entry_point"
    assert config.env_config == CONFIG


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [("rusu-teacher", 1_693_362), ("rusu-net1", 427_874), ("rusu-net2", 113_346), ("rusu-net3", 61_954)],
)
def test_presets_have_the_parameters_of_the_paper(name, num_parameters):
    module = make_q_module(FLOATS, gym.spaces.Discrete(18), **PRESETS[name])
    assert count_parameters(module) == num_parameters
    assert all(activation == "relu" for key, activation in PRESETS[name].items() if key.endswith("activation"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"student": "rusu-net4"},
            r"Unknown student 'rusu-net4'. Did you mean 'rusu-net\d'\? Known are: linear, rusu-teacher",
        ),
        ({"student": "rusu-net3", "compression": 0.01}, "Both `student`='rusu-net3' and `compression`=0.01"),
    ],
)
def test_presets_that_cannot_be(config, change, message):
    with pytest.raises(ValueError, match=message):
        config.distillation(**change).validate()


def test_a_preset_and_widths_are_two_sizes(config):
    with pytest.raises(ValueError, match=r"Both `student`='rusu-net3' and \['fcnet_hiddens'\]"):
        config.rl_module(model_config={"fcnet_hiddens": [4]}).distillation(student="rusu-net3").validate()


# --- Distillation -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trains_evaluates_and_compares(config, build, tmp_path):
    algo = build(config.distillation(student="rusu-net3"))
    assert algo.config.gym_env_vectorize_mode == "vector_entry_point"
    assert algo.config.env_config == {**atari.VECTOR_DEFAULTS, **CONFIG}
    assert config.env_config == CONFIG  # the user's config stays as it was
    for _ in range(2):
        result = algo.train()
    assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])
    assert result["distillation"]["student_params"] == 61_954 - 12 * 65  # six actions instead of eighteen
    assert algo.evaluate()["env_runners"]["episode_len_mean"] == 40
    path = algo.save_to_path(str(tmp_path / "student"))
    comparison = compare(config.teacher, path, num_episodes=2)
    assert comparison.env == "ALE/Pong-v5"
    assert comparison.student.num_parameters == result["distillation"]["student_params"]
    again = compare(config.teacher, algo, num_episodes=2)
    assert comparison.student.returns == again.student.returns
    assert comparison.confusion_on_teacher_states == again.confusion_on_teacher_states


@pytest.mark.slow
def test_without_a_teacher_a_preset_is_dqn(config, build):
    algo = build(config.distillation(teacher=None, student="rusu-net3", td_coeff=1.0, num_baseline_episodes=0))
    algo.train()
    assert np.isfinite(algo.train()["learners"]["default_policy"]["td_loss"])


def columns_of(config, teacher, **kwargs):
    config = config.copy(copy_frozen=False)
    config.validate()
    config.settle_environment()
    runner = DistillEnvRunner(config=config, worker_index=0)
    runner.set_teacher(teacher)
    kwargs = {"teacher_fraction": 1.0, "epsilon": 0.0, "names": DISTILLATION_COLUMNS, "num_shards": 1} | kwargs
    (ref,), _ = runner.sample_columns(**kwargs)
    return receive(ref)


@pytest.mark.slow
@pytest.mark.parametrize("game", ["breakout", None], ids=str)
def test_vector_env_and_single_ones_give_the_same_labels(config, game):
    """The shared teachers, and a random one where they are not there."""
    name = f"ALE/{(game or 'pong').capitalize()}-v5"
    teacher = load_teacher(shared_teacher(f"atari/{game}") if game else config.teacher)
    config = config.environment(name).env_runners(rollout_fragment_length=30)
    vector = columns_of(config, teacher)
    single = columns_of(config.environment(env=lambda context: atari.make(name, **context)), teacher)
    assert set(vector) == set(single)
    for column in vector:
        np.testing.assert_array_equal(vector[column], single[column], err_msg=column)
    seen = observations(vector, np.flatnonzero(vector["valid"]))
    assert seen.shape == (60, 84, 84, 4)
    expected = teacher.module.compute_q_values({"obs": torch.tensor(seen.astype(np.float32) / 255)})["qf_preds"]
    np.testing.assert_allclose(vector["teacher_q"][vector["valid"]], expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_state_takes_less_than_8_kb(config, build):
    config.training(num_steps_sampled_before_learning_starts=10_000)  # it only samples
    algo = build(config.distillation(student="rusu-net3", td_coeff=0.5).env_runners(rollout_fragment_length=32))
    algo.train()
    replay = algo.learner_group._learner.groups["default_policy"].replay
    bytes_per_row = replay.nbytes / replay.capacity
    rows_per_state = (32 + 3 + 1) / 32  # a fragment's context and last state
    assert bytes_per_row * rows_per_state < 8_000
    assert len(replay) >= 2 * 30  # states of two environments
