"""Every setting of `DistillDQNConfig`, by the fluent API, `--config` and a YAML file: set, and read back equal."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_kd import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm.settings import _fluent_arguments, _types_in, _value_in, apply_settings, as_meant, gone_settings
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.files import parse_settings, read_experiment
from rllib_kd.experiment.variants import variants
from tests.observations.test_images import Screens

ROOT = Path(__file__).parents[2]
#: Settings that no file can hold: functions, classes, spaces and objects of Python; and what ends the new API stack.
PYTHON_ALONE = {
    *("env_runner_cls", "env_to_module_connector", "module_to_env_connector", "sample_collector", "learner_class"),
    *("learner_connector", "before_learn_on_batch", "observation_space", "action_space", "rl_module_spec"),
    *("custom_evaluation_function", "offline_evaluation_type", "offline_eval_runner_class"),
    *("offline_loss_for_module_fn", "custom_stats_cls_lookup"),
    *("enable_rl_module_and_learner", "enable_env_runner_and_connector_v2", "framework", "model"),
}
#: RLlib keeps it under another name.
KEPT_ELSEWHERE = {"dataset_num_iters_per_offline_eval_runner"}
METHODS = ("distillation", "training", "env_runners", "learners", "rl_module", "evaluation", "environment", "reporting")
METHODS += ("fault_tolerance", "debugging", "resources", "checkpointing")
#: What a setting is set to: values where any of its kind would not do. Others get one by their type.
EXAMPLES: dict[str, list[Any]] = {
    "env": ["Acrobot-v1"],
    "env_config": [{"sutton_barto_reward": True}],
    "teacher": ["cartpole", ["cartpole", "cartpole"]],
    "ensemble": ["policy"],
    "loss": ["mse", "huber", "reverse_kl", "jsd", "nll", "margin"],
    "temperature": ["auto", 0.5, 2],
    "rollout_policy": ["student", "teacher"],
    "teacher_fraction": [None, 0.5, 1, [[0, 1.0], [10_000, 0.5]], [[0, 1], [1e4, 0]]],
    "kd_coeff": ["qdagger", 0.5, [[0, 1.0], [50_000, 0.0]]],
    "td_coeff": [1, 0.5, [[0, 0.0], [50_000, 1.0]]],
    "compression": [None, 0.1, 1],
    "student": [None, "linear"],
    "students": [{"s4": {"fcnet_hiddens": [4]}, "tiny": {"compression": 0.01}, "linear": "linear"}],
    "init": ["teacher"],
    "num_baseline_episodes": [None, 0, 5],
    "max_staleness": [None, 0, 1],
    "jsd_beta": [0, 1, 0.25],
    "weight_averaging": [0, 0.5],
    "epsilon": [0.1, 0, [[0, 1.0], [10_000, 0.05]]],
    "lr": [1e-4, [[0, 1e-3], [100_000, 1e-4]]],
    "replay_buffer_config": [
        {"capacity": 5_000},
        {"alpha": 0.6, "beta": 0.4},
        {"type": "ColumnarReplay", "capacity": 10, "alpha": 0, "beta": 1},
    ],
    "model_config": [
        {"fcnet_hiddens": [32], "fcnet_activation": "relu"},
        {"fcnet_hiddens": []},
        {"conv_filters": [[16, 8, 4], [32, [4, 4], 2, "valid"]], "head_fcnet_hiddens": [64]},
        {"fcnet_kernel_initializer": "xavier_uniform_", "fcnet_kernel_initializer_kwargs": {"gain": 1.0}},
    ],
    "gym_env_vectorize_mode": ["async"],
    "merge_env_runner_states": [True, "training_only"],
    "rollout_fragment_length": [8, "auto"],
    "batch_mode": ["complete_episodes"],
    "num_cpus_per_learner": ["auto", 0.5, 2],
    "evaluation_config": [{"num_envs_per_env_runner": 3, "env_config": {"x": 1}}],
    "evaluation_duration": ["auto", 20],
    "evaluation_duration_unit": ["timesteps"],
    "evaluation_interval": [None, 5],
    "grad_clip_by": ["value"],
    "grad_clip": [None, 40, 0.5],
    "clip_rewards": [True, 1.0],
    "td_error_loss_fn": ["mse"],
    "n_step": [3],
    "gamma": [0.9, 1],
    "tau": [0.005],
    "log_level": ["ERROR"],
    "seed": [None, 7],
    "placement_strategy": ["SPREAD"],
    "is_atari": [True],
    "optimizer": [{"eps": 1e-5}],
    "algorithm_config_overrides_per_module": [{}],
}


def names() -> list[str]:
    known = _fluent_arguments(DistillDQNConfig)
    left_out = {*PYTHON_ALONE, *KEPT_ELSEWHERE, *gone_settings(DistillDQNConfig)}
    return [name for name, (method, _) in known.items() if method in METHODS and name not in left_out]


def examples(name: str) -> list[Any]:
    if name in EXAMPLES:
        return EXAMPLES[name]
    default, types = _value_in(DistillDQNConfig(), name), _types_in(_fluent_arguments(DistillDQNConfig)[name][1])
    if isinstance(default, dict):
        return [{"some": 1.0}]
    if bool in types:
        return [not default]
    if float in types:
        return [0.25, 1]
    if int in types:
        return [2]
    if str in types:
        return ["word"]
    return []


def settings() -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value}") for name in names() for value in examples(name)]


def fluent(name: str, value: Any) -> DistillDQNConfig:
    method = _fluent_arguments(DistillDQNConfig)[name][0]
    return getattr(DistillDQNConfig(), method)(**{name: value})


def by_json(name: str, value: Any) -> dict[str, Any]:
    return parse_settings(json.dumps({name: value}), "--config")


def by_yaml(name: str, value: Any, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"x": {"run": "DistillDQN", "config": {name: value}}}))
    return {key: entry for key, entry in read_experiment(path).settings.items() if key == name}


def with_floats(value: Any) -> Any:
    """As other programs write JSON: 50000 as 50000.0."""
    if isinstance(value, dict):
        return {key: with_floats(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_floats(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def applied(given: dict[str, Any]) -> DistillDQNConfig:
    return apply_settings(DistillDQNConfig(), given)


def kinds(value: Any) -> Any:
    """The types in a value: 5.0 equals 5, but is no capacity."""
    if isinstance(value, dict):
        return {key: kinds(part) for key, part in value.items()}
    return [kinds(part) for part in value] if isinstance(value, list | tuple) else type(value)


def test_every_setting_has_an_example_or_can_be_given_in_python_alone():
    assert not [name for name in names() if not examples(name)]
    assert set(_fluent_arguments(DistillDQNConfig)) >= PYTHON_ALONE
    own = set(inspect.signature(DistillDQNConfig.distillation).parameters) - {"self"}
    assert own <= set(names())
    assert set(EXAMPLES) <= set(names())
    assert {*DistillDQNConfig().replay_buffer_config} - {"no_local_replay_buffer"} <= {
        key for example in EXAMPLES["replay_buffer_config"] for key in example
    }


@pytest.mark.parametrize(("name", "value"), settings())
def test_three_ways_set_the_same(name, value, tmp_path):
    expected = _value_in(fluent(name, value), name)
    if not isinstance(value, dict) and name not in ("teacher", "env"):
        assert expected == value
    for given in (by_json(name, value), by_yaml(name, value, tmp_path)):
        assert _value_in(applied(given), name) == expected
        # One variant of a grid, as Tune hands it to each trial.
        grid = {key: {"grid_search": [entry]} for key, entry in given.items()}
        (variant,) = variants(as_meant(DistillDQNConfig, grid))
        assert _value_in(applied(variant), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_envs_per_env_runner", 4),
        ("train_batch_size_per_learner", 64),
        ("num_steps_sampled_before_learning_starts", 1_000),
        ("rollout_fragment_length", 8),
        ("n_step", 3),
        ("num_baseline_episodes", 5),
        ("max_staleness", 1),
        ("evaluation_duration", 20),
        ("evaluation_interval", 5),
        ("seed", 7),
        ("replay_buffer_config", {"capacity": 100_000, "alpha": 0.5}),
        ("model_config", {"fcnet_hiddens": [16, 8], "conv_filters": [[16, [8, 8], 4]]}),
        ("students", {"a": {"fcnet_hiddens": [4]}}),
        ("evaluation_config", {"num_envs_per_env_runner": 2}),
    ],
)
def test_integers_may_be_written_as_floats(name, value):
    config = applied(parse_settings(json.dumps({name: with_floats(value)}), "--config"))
    expected = _value_in(fluent(name, value), name)
    assert _value_in(config, name) == expected
    assert kinds(_value_in(config, name)) == kinds(expected)
    grid = as_meant(DistillDQNConfig, {name: {"grid_search": [with_floats(value)]}})
    assert kinds(grid) == kinds({name: {"grid_search": [value]}})


def test_numbers_of_yaml_that_pyyaml_alone_takes_for_words(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "x:\n  run: DistillDQN\n  env: CartPole-v1\n  config:\n    lr: 1e-3\n    teacher: cartpole\n"
        "    replay_buffer_config: {capacity: 1e5}\n    td_coeff: [[0, 0], [5e4, 1E0]]\n"
    )
    config = read_experiment(path).checked().param_space
    assert config.lr == 0.001
    assert config.replay_buffer_config["capacity"] == 100_000
    assert config.td_coeff == [[0, 0], [50_000, 1.0]]


def test_infinity_is_no_number_of_json():
    with pytest.raises(ValueError, match="1e999 is too large a number"):
        parse_settings('{"lr": 1e999}', "--config")


def test_a_replay_keeps_what_is_not_set():
    config = applied({"replay_buffer_config": {"type": "ColumnarReplay", "alpha": 0.6}})
    assert config.replay_buffer_config == {**DistillDQNConfig().replay_buffer_config, "alpha": 0.6}
    config.environment("CartPole-v1").distillation(teacher="cartpole").validate()


def test_model_configs_have_every_key_of_rllib():
    hints = get_type_hints(DefaultModelConfig)
    default = DefaultModelConfig()
    given = {key: getattr(default, key) for key in hints}
    assert applied({"model_config": given})._model_config == given


# --- What the documents show ------------------------------------------------------------------------------------------


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs" / "pages").glob("*.md")),
        ROOT / "rllib_kd" / "algorithm" / "config.py",
    ]


def shown_calls() -> list[Any]:
    """Fluent calls with values, such as `.env_runners(num_env_runners=8)`, of the documents."""
    calls = []
    for path in documents():
        text = path.read_text()
        for match in re.finditer(rf"\b({'|'.join(METHODS)})(\((?:[^()]|\([^()]*\))*\))", text):
            try:
                call = ast.parse("f" + match[2], mode="eval").body
            except SyntaxError:
                continue
            for keyword in getattr(call, "keywords", []):
                try:
                    value = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
                if value is not ... and keyword.arg is not None and "..." not in ast.unparse(keyword.value):
                    calls.append(pytest.param(match[1], keyword.arg, value, id=f"{path.name}-{keyword.arg}={value}"))
    return calls


def shown_json() -> list[Any]:
    """What `--config` is given in the documents."""
    found = []
    for path in documents():
        for match in re.finditer(r"(?:--config|-c) '(\{[^']*\})'", path.read_text()):
            if "…" not in match[1] and "..." not in match[1]:
                found.append(pytest.param(match[1], id=f"{path.name}-{match[1][:40]}"))
    return found


def test_the_documents_show_settings():
    assert len(shown_calls()) > 10
    assert len(shown_json()) > 3


@pytest.mark.parametrize(("method", "name", "value"), shown_calls())
def test_what_documents_show_in_python_is_a_setting_in_files_too(method, name, value, tmp_path):
    known = _fluent_arguments(DistillDQNConfig)
    assert known[name][0] == method
    if name not in PYTHON_ALONE:
        expected = _value_in(fluent(name, value), name)
        for given in (by_json(name, value), by_yaml(name, value, tmp_path)):
            assert _value_in(applied(given), name) == expected


@pytest.mark.parametrize("text", shown_json())
def test_what_documents_show_on_the_command_line_is_valid(text):
    of_images = {"env": Screens, "teacher": None, "td_coeff": 1.0}
    given = of_images if "conv_filters" in text else {"env": "CartPole-v1", "teacher": "cartpole"}
    given |= parse_settings(text, "--config")
    assert Experiment("x", DistillDQN, settings=given).checked()
