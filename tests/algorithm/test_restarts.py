"""Restarts: copies of a student side by side, of which validation episodes choose the best."""

import numpy as np
import pytest
import ray
import torch

from rllib_kd import DistillDQN, DistillDQNConfig, load_teacher
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.validation import validate
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.students.restarts import by_student, is_named, names_of
from tests.conftest import CARTPOLE_OBS, make_q_module
from tests.learner.test_learner import RAW, config_of, fragment, make_learner

COPIES = names_of("default_policy", 3)


def test_names():
    assert names_of("s8", 3) == ["s8", "s8__restart_1", "s8__restart_2"]
    assert by_student([*names_of("a", 2), *names_of("b", 1)]) == {"a": ["a", "a__restart_1"], "b": ["b"]}
    assert [is_named(name) for name in names_of("s8", 3)] == [True, False, False]


@pytest.mark.parametrize(
    "settings",
    [{"loss": "kl"}, {"loss": "mse"}, {"loss": "mse", "td_coeff": 0.5}, {"loss": "kl", "feature_coeff": 0.1}],
    ids=["stacked", "stacked, on a scale", "with TD", "with features"],
)
def test_copies_that_change_places_learn_on_as_they_would_have(cluster, settings):
    """Two Learners see the same; in one of them two copies change places half way."""
    names = ("obs", "teacher_q", "actions", "rewards", "terminateds", "truncateds", "valid")
    columns = fragment(names=names)
    if "feature_coeff" in settings:
        columns["teacher_features"] = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    one, other = (make_learner(config_of(restarts=3, **settings)) for _ in range(2))
    for learner in (one, other):
        learner.update([ray.put(columns)], num_gradient_steps=5)
    other.exchange({"default_policy": "default_policy__restart_2"})
    for learner in (one, other):
        learner.update([], num_gradient_steps=5)
    expected = {name: module.state_dict() for name, module in one.module.items()}
    places = dict(zip(COPIES, reversed(COPIES), strict=True))
    for name, module in other.module.items():
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, expected[places[name]][key], rtol=0, atol=0)


def test_regret_ranks_copies_by_what_they_choose(cluster):
    learner = make_learner(config_of(restarts=3, **RAW))
    assert all(np.isnan(regret) for regret in learner.q_regret().values())  # there are no states yet
    columns = fragment()
    learner.update([ray.put(columns)], num_gradient_steps=1)
    valid = columns["valid"] if "valid" in columns else np.ones(256, dtype=bool)
    for name, regret in learner.q_regret().items():
        q = learner.module[name].compute_q_values({"obs": torch.as_tensor(columns["obs"])})["qf_preds"]
        chosen = columns["teacher_q"][np.arange(256), q.argmax(-1)]
        assert regret == pytest.approx((columns["teacher_q"].max(-1) - chosen)[valid].mean(), rel=1e-4)


class TestValidation:
    """Against one episode at a time."""

    def test_all_play_the_same_episodes(self):
        students = {name: make_q_module(seed=seed) for seed, name in enumerate(COPIES)}
        make_env = env_maker("CartPole-v1")
        played = validate(make_env, students, ObservationPipeline(CARTPOLE_OBS), 30)  # 90 are more than one vector env
        again = validate(make_env, {"alone": students[COPIES[1]]}, ObservationPipeline(CARTPOLE_OBS), 30)
        assert again.returns["alone"] == played.returns[COPIES[1]]
        assert played.env_steps == sum(map(sum, played.returns.values()))  # a reward of 1 each
        assert played.best(COPIES) == max(COPIES, key=lambda name: np.mean(played.returns[name]))

    def test_a_teacher_is_found_among_students_that_know_nothing(self):
        students = {name: make_q_module(seed=seed) for seed, name in enumerate(COPIES)}
        students[COPIES[2]] = load_teacher("cartpole").module
        played = validate(env_maker("CartPole-v1"), students, ObservationPipeline(CARTPOLE_OBS), 3)
        assert played.best(COPIES) == COPIES[2]
        assert played.returns[COPIES[2]] == [500.0] * 3


def small_config(**distillation) -> DistillDQNConfig:
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .training(num_steps_sampled_before_learning_starts=0)
        .reporting(min_sample_timesteps_per_iteration=1_000)
        .distillation(**{"teacher": "cartpole", "restarts": 5, "num_baseline_episodes": 2} | distillation)
        .evaluation(evaluation_duration=2)
        .debugging(seed=0)
    )


@pytest.fixture(scope="module")
def trained(cluster):
    algo = small_config().build_algo()
    algo.train()
    yield algo
    algo.stop()


def weights_of(algo):
    return algo.learner_group.get_state()["learner"]["rl_module"]


def test_the_best_copy_bears_the_name_and_training_goes_on(trained, tmp_path):
    before = weights_of(trained)
    result = trained.train()["distillation"]
    assert result["student_params"] == 30  # one copy's
    modules = {name: weights_of(trained)[name] for name in names_of("default_policy", 5)}
    assert before.keys() == modules.keys()

    path = trained.save_to_path(str(tmp_path / "saved"))
    chosen = trained.get_module().state_dict()["encoder.net.mlp.0.weight"].clone()
    validation = trained.train()["distillation"]["validation"]
    assert validation["env_steps_lifetime"] > 0
    students = {"alone": load_teacher(path).module}
    played = validate(env_maker("CartPole-v1"), students, ObservationPipeline(CARTPOLE_OBS), 24)
    assert np.mean(played.returns["alone"]) == validation["episode_return_mean"]["default_policy"]
    np.testing.assert_array_equal(chosen, students["alone"].state_dict()["encoder.net.mlp.0.weight"])

    restored = DistillDQN.from_checkpoint(path)
    try:
        again = restored.train()["distillation"]
        assert again["validation"]["env_steps_lifetime"] == validation["env_steps_lifetime"]
        for name, weights in weights_of(trained).items():
            for key, value in weights.items():
                np.testing.assert_array_equal(weights_of(restored)[name][key], value)
    finally:
        restored.stop()


def test_nothing_is_played_twice_without_learning(trained, monkeypatch):
    trained.get_module()
    monkeypatch.setattr("rllib_kd.algorithm.restarts.validate", pytest.fail)
    trained.get_module()
    assert "default_policy__restart_1" not in trained.evaluate()  # evaluation is of the student alone


def test_each_of_a_family_has_copies_of_its_own(cluster):
    algo = small_config(restarts=2, students={"s4": {"fcnet_hiddens": [4]}, "linear": "linear"}).build_algo()
    try:
        result = algo.train()["distillation"]
        assert set(result["students"]) == {"s4", "linear"}
        algo.get_module("s4")
        assert set(algo._restarts.results()["episode_return_mean"]) == {"s4", "linear"}
        with pytest.raises(ValueError, match="Name one of"):
            algo.get_module("s4__restart_1")
    finally:
        algo.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 0}, "restarts"),
        ({"restarts": 2.5}, "restarts"),
        ({"num_validation_episodes": 0}, "num_validation_episodes"),
        ({"init": "teacher"}, "would be equal"),
        ({"students": {"a__restart_1": {"fcnet_hiddens": [4]}}}, "name of a student"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_config(**settings).validate()


def test_copies_of_several_policies_are_refused():
    config = small_config(teacher={"a": "cartpole"}).multi_agent(policies={"a"}, policy_mapping_fn=lambda *_: "a")
    with pytest.raises(ValueError, match="single-agent"):
        config.validate()
