"""Settings by name: what is refused, and what becomes of search spaces."""

import numpy as np
import pytest
from ray import tune
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_kd import DistillDQNConfig
from rllib_kd.algorithm.settings import apply_settings, check_settings, validate
from rllib_kd.experiment.variants import has_space, param_space, variants

CONFIGS = [BCConfig, DQNConfig, DistillDQNConfig, IMPALAConfig, PPOConfig]
#: Whose type hints in RLlib do not admit RLlib's own defaults: the old API stack's.
MISTYPED = {"hiddens", "offline_sampling"}


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_default_is_in_the_range_of_its_setting(cls):
    from rllib_kd.algorithm.settings import _check_range, _fluent_arguments

    config = cls()
    for name in set(_fluent_arguments(cls)) & set(vars(config)):
        _check_range(name, vars(config)[name])


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_default_is_a_value_that_its_setting_takes(cls):
    from rllib_kd.algorithm.settings import _fits, _fluent_arguments

    config = cls()
    known = _fluent_arguments(cls)
    fields = [name for name in known if name in vars(config)]
    assert len(fields) > 100
    refused = {name for name in fields if not _fits(getattr(config, name), known[name][1])}
    assert refused <= MISTYPED


def test_settings_go_through_the_fluent_api():
    config = apply_settings(DQNConfig(), {"replay_buffer_config": {"capacity": 7}, "env": "CartPole-v1"})
    assert config.replay_buffer_config["capacity"] == 7
    assert config.replay_buffer_config["type"] == DQNConfig().replay_buffer_config["type"]
    assert config.env == "CartPole-v1"


def test_names_of_the_old_api_stack_still_mean_what_they_meant():
    old = {"num_workers": 3, "num_sgd_iter": 6, "sgd_minibatch_size": 32, "model": {"fcnet_hiddens": [8]}}
    config = apply_settings(PPOConfig(), old | {"framework": "torch"})
    assert (config.num_env_runners, config.num_epochs, config.minibatch_size) == (3, 6, 32)
    assert config.model_config["fcnet_hiddens"] == [8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gama": 0.9}, r"DQNConfig has no setting 'gama'. Did you mean 'gamma'\?"),
        ({"train_batch_size_per_learner": 0}, "expected an integer of at least 1"),
        ({"num_gpus_per_learner": 0.5, "num_cpus_per_env_runner": 0.5, "min_time_s_per_iteration": 0.1}, None),
        ({"seed": 1.5}, "expected an integer of at least 0"),
        ({"epsilon": 1.1}, "expected a number between 0 and 1"),
        ({"epsilon": [[0, 1.0], [10, 0.1]], "n_step": [1, 5]}, None),
        ({"v_min": float("nan")}, "'v_min' cannot be nan: expected a number"),
        ({"num_gpus": 1}, "no longer exists: set num_gpus_per_learner"),
        ({"lr": "high"}, "'lr' cannot be 'high': expected a list or a number"),
        ({"double_q": 1}, "expected true or false"),
        ({"env": {"grid": 1}}, "'env' cannot be .*expected a string"),
        ({"env_config": {"anything": 1}}, None),
        ({"model_config": {"fcnet_hiddens": [8], "epsilon": 0.1}}, None),
        (
            {"model_config": {"fcnet_hidens": [8]}},
            r"no key 'fcnet_hidens'. Did you mean 'fcnet_hiddens'\?",
        ),
        ({"replay_buffer_config": {"type": "EpisodeReplayBuffer", "batch_size_B": 4}}, None),
        ({"replay_buffer_config": {"kapacity": 4}}, r"Did you mean 'capacity'\?"),
        ({"evaluation_config": {"explore": False, "env_config": {"x": 1}}}, None),
        ({"evaluation_config": {"explroe": False}}, r"Did you mean 'explore'\?"),
        ({"num_env_runners": None}, None),
        ({"model_config": None}, "'model_config' cannot be None. Leave it out."),
        ({"model_config": {"fcnet_hiddens": None}}, r"model_config\['fcnet_hiddens'\] cannot be None: expected a list"),
        ({"model_config": {"conv_filters": [[16, 8, 4], [32, [4, 4], 2, "valid"]]}}, None),
        ({"model_config": {"conv_filters": [[16, 0, 1]]}}, r"expected a list of \[channels, kernel, stride\]"),
        ({"model_config": {"conv_filters": [[16, np.int64(8), 4]]}}, r"least 1 \(Python's, not numpy's\)"),
        ({"model_config": {"conv_filters": [[16, 8]]}}, r"expected a list of \[channels, kernel, stride\]"),
        ({"placement_strategy": "SPRED"}, r"'placement_strategy' cannot be 'SPRED'. Did you mean 'SPREAD'\?"),
        ({"custom_resources_per_env_runner": {"runner": -1}}, "an amount of at least 0 of 'runner', got -1"),
        ({"delay_between_env_runner_restarts_s": -1}, "expected a number of at least 0"),
        ({"model_config": {"fcnet_kernel_initializer_kwargs": {"a": float("nan")}}}, "expected finite numbers"),
        ({"env_config": {"limit": float("inf")}}, None),
        ({"observation_space": 5}, "'observation_space' cannot be 5: expected Space, in Python"),
        ({"evaluation_duration_unit": "episode"}, "Did you mean 'episodes'"),
        ({"lr": float("inf")}, "'lr' cannot be inf: expected a finite number of at least 0"),
    ],
)
def test_what_is_refused_and_what_is_not(settings, message):
    if message is None:
        apply_settings(DQNConfig(), settings)
    else:
        with pytest.raises(ValueError, match=message):
            apply_settings(DQNConfig(), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_staleness": 0.5}, "expected an integer of at least 0"),
        ({"patience": 0}, "expected an integer of at least 1"),
        ({"max_requests_in_flight_per_env_runner": 0.5}, "expected an integer of at least 1"),
        ({"jsd_beta": 1.5}, "expected a number between 0 and 1"),
    ],
)
def test_numbers_of_distillation_are_refused_as_they_are_set(settings, message):
    with pytest.raises(ValueError, match=message):
        apply_settings(DistillDQNConfig(), settings)


@pytest.mark.parametrize("cls", [DQNConfig, DistillDQNConfig, IMPALAConfig, PPOConfig])
@pytest.mark.parametrize(("value", "message"), [(-1, "at least 0"), ("x", "a number"), ([[0, 1.0], [9, "x"]], "`lr`")])
def test_python_and_files_have_one_validator(cls, value, message):
    config = cls().environment("CartPole-v1").training(lr=value)
    if cls is DistillDQNConfig:
        config.distillation(teacher="cartpole")
    with pytest.raises(ValueError, match=message) as in_python:
        check_settings(config)
    with pytest.raises(ValueError, match=message) as in_files:
        apply_settings(cls(), {"lr": value})
    assert str(in_python.value) == str(in_files.value)
    with pytest.raises(ValueError, match="lr"):
        validate(config)


@pytest.mark.parametrize(
    ("method", "setting", "value", "message"),
    [
        ("distillation", "students", "linear", "`students` must be an object with keys, .* got 'linear'"),
        ("training", "n_step", (1, 3), r"`n_step` must be an integer of at least 1, got \(1, 3\)"),
        ("training", "num_atoms", "51", "'num_atoms' cannot be '51': expected a number"),
        ("training", "replay_buffer_config", 50_000, r"Set only its size and priorities: .* Got 50000\."),
        ("training", "learner_class", "Learner", "`learner_class` must be a DistillDQNTorchLearner, got 'Learner'"),
        ("rl_module", "model_config", [8], r"`model_config` must be an object with keys, .* got \[8\]"),
        ("rl_module", "model_config", {"fcnet_hidden": [4]}, "'model_config' has no key 'fcnet_hidden'. Did you mean"),
        ("rl_module", "model_config", None, "`model_config` must be an object with keys, .* got None"),
        ("learners", "num_learners", "2", "`num_learners` must be an integer of at least 0, got '2'"),
        ("training", "train_batch_size", "64", "`train_batch_size` must be an integer of at least 1, got '64'"),
        ("training", "num_atoms", max, "'num_atoms' cannot be <built-in function max>: expected a number"),
        ("debugging", "seed", 10**400, "'seed' cannot be 1000*: expected an integer of at least 0"),
        ("evaluation", "evaluation_config", {1: 2}, "keys of `evaluation_config` must be names of settings"),
        ("offline_data", "prelearner_class", "Mine", "`prelearner_class` must be a class, got 'Mine'"),
    ],
)
def test_values_of_another_type_are_named_in_python_too(method, setting, value, message):
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")
    getattr(config, method)(**{setting: value})
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_a_module_of_the_users_may_have_keys_of_its_own():
    config = DQNConfig().environment("CartPole-v1").rl_module(model_config={"my_width": 4})
    with pytest.raises(ValueError, match="no key 'my_width'"):
        check_settings(config)
    check_settings(config.rl_module(rl_module_spec=RLModuleSpec()))


def test_rllibs_own_checks_are_one_line():
    with pytest.raises(ValueError, match="evaluation_duration") as error:
        validate(DQNConfig().environment("CartPole-v1").evaluation(evaluation_duration=-1))
    assert "\n" not in str(error.value)


def test_search_spaces_lie_where_tune_finds_them_beside_what_was_set():
    settings = {
        "lr": {"grid_search": [1e-3, 1e-4]},
        "model_config": {"fcnet_hiddens": {"grid_search": [[8], [16]]}, "fcnet_activation": "relu"},
        "gamma": tune.uniform(0.9, 0.99),
        "replay_buffer_config": {"capacity": {"grid_search": [10, 20]}},
    }
    assert has_space(settings)
    assert not has_space({"model_config": {"fcnet_hiddens": [8]}})
    first, *others = variants(settings)
    assert len(others) == 7
    space = param_space(apply_settings(DQNConfig(), first), settings)
    for variant in variants(space):
        config = DQNConfig().update_from_dict(variant)
        assert config.lr in (1e-3, 1e-4)
        assert config.model_config["fcnet_hiddens"] in ([8], [16])
        assert config.model_config["fcnet_activation"] == "relu"
        assert 0.9 <= config.gamma <= 0.99
        assert config.replay_buffer_config["capacity"] in (10, 20)
        assert config.replay_buffer_config["type"] == DQNConfig().replay_buffer_config["type"]
