"""What a user can get wrong, and what is said about it."""

import ast
import inspect
from pathlib import Path

import pytest

from rllib_kd import DistillDQN, DistillDQNConfig

OWN_FIELDS = set(vars(DistillDQNConfig())) - set(vars(DistillDQN.__mro__[1].get_default_config()))


def valid() -> DistillDQNConfig:
    return DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")


def test_the_defaults_are_valid():
    valid().validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": None}, "needs a teacher, got None"),
        ({"loss": "crossentropy"}, "Unknown loss 'crossentropy'. Known are: mse, huber, kl, nll"),
        ({"loss": "KL"}, "Did you mean 'kl'?"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"temperature": "warm"}, "`temperature` must be positive"),
        ({"student_temperature": -1.0}, "`student_temperature` must be positive"),
        ({"weight_averaging": 1.0}, r"`weight_averaging` must be in \[0, 1\)"),
        ({"huber_delta": 0}, "`huber_delta` must be positive"),
        ({"rollout_policy": "expert"}, "Unknown rollout_policy 'expert'. Known are: teacher, student, mixture"),
        ({"teacher_fraction": 1.5}, r"`teacher_fraction` must be in \[0, 1\], got 1.5"),
        ({"teacher_fraction": [[10, 1.0]]}, "`teacher_fraction` must be a number or a schedule"),
        ({"kd_coeff": -1.0}, "`kd_coeff` must be at least 0"),
        ({"td_coeff": "qdagger"}, "`td_coeff` must be a number or a schedule"),
        ({"kd_coeff": 0.0}, "there is nothing to learn"),
        ({"compression": 0.0}, r"`compression` must be in \(0, 1\]"),
        ({"compression": 4}, r"`compression` must be in \(0, 1\]"),
        ({"num_baseline_episodes": -1}, "`num_baseline_episodes` must be None or an integer"),
        ({"td_coeff": 1.0, "student_temperature": 1.0}, "the student's outputs must be Q-values"),
    ],
)
def test_bad_distillation_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        valid().distillation(**settings).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.training(epsilon=2.0), "`epsilon` must be in"),
        (lambda c: c.training(training_intensity=0), "`training_intensity` is the replay ratio"),
        (lambda c: c.training(replay_buffer_config={"type": "EpisodeReplayBuffer"}), "a replay of its own"),
        (lambda c: c.learners(num_learners=2).env_runners(num_envs_per_env_runner=1), "at least 2"),
        (lambda c: c.rl_module(model_config={"use_lstm": True}), "Recurrent students"),
        (lambda c: c.training(num_atoms=11).distillation(td_coeff=1.0), "distributional student"),
        (lambda c: c.rl_module(model_config={"fcnet_hiddens": [4]}).distillation(compression=0.1), "Set one of them"),
        (lambda c: c.multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda *_: "a"), "single-agent"),
        (
            lambda c: c.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False),
            "new API stack",
        ),
        (lambda c: setattr(c, "temprature", 1.0), "no config field 'temprature'. Did you mean 'temperature'?"),
        (lambda c: c.update_from_dict({"lerning_rate": 1.0}), "no config field 'lerning_rate'"),
    ],
)
def test_bad_settings_elsewhere_are_refused(change, message):
    config = valid()
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_validation_touches_no_file():
    DistillDQNConfig().environment("CartPole-v1").distillation(teacher="/does/not/exist").validate()


def test_a_path_becomes_absolute_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert DistillDQNConfig().distillation(teacher="here").teacher == str(tmp_path / "here")


def test_a_dict_makes_the_same_config():
    fluent = valid().distillation(loss="mse", compression=0.1).training(lr=0.01)
    plain = DistillDQNConfig().update_from_dict(
        {"env": "CartPole-v1", "teacher": "cartpole", "loss": "mse", "compression": 0.1, "lr": 0.01}
    )
    assert plain.to_dict() == fluent.to_dict()


def test_evaluation_is_greedy_and_never_the_behaviour_policy():
    evaluation = valid().get_evaluation_config_object()
    assert evaluation.explore is False
    assert evaluation.env_runner_cls is None  # RLlib's own
    overridden = valid().evaluation(evaluation_config={"num_envs_per_env_runner": 3, "explore": True})
    assert overridden.get_evaluation_config_object().num_envs_per_env_runner == 3
    assert overridden.get_evaluation_config_object().explore is True


def test_every_field_has_an_argument_a_description_and_a_reader():
    assert {"teacher", "loss", "temperature", "teacher_fraction", "compression"} <= OWN_FIELDS
    parameters = inspect.signature(DistillDQNConfig.distillation).parameters
    descriptions = inspect.getdoc(DistillDQNConfig.distillation)
    package = Path(inspect.getfile(DistillDQNConfig)).parent
    read = {
        node.attr
        for path in package.rglob("*.py")
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    for name in OWN_FIELDS:
        assert name in parameters
        assert f"{name}:" in descriptions
        assert name in read, f"nobody reads `{name}`"
