"""What a user can get wrong, and what is said about it."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from torch.optim.lr_scheduler import StepLR

import rllib_kd
from rllib_kd import DistillDQN, DistillDQNConfig, load_teacher
from rllib_kd.algorithm import config as config_module
from rllib_kd.algorithm.settings import apply_settings
from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner
from rllib_kd.env_runner.single_agent import DistillEnvRunner, StudentsEnvRunner
from rllib_kd.environments import atari
from rllib_kd.learner.learner import DistillDQNTorchLearner
from tests.conftest import make_q_module


class ClipsGradients(DistillDQNTorchLearner):
    def postprocess_gradients(self, gradients_dict):
        return gradients_dict


#: Those with an underscore are behind a property of RLlib's name.
OWN_FIELDS = {name for name in vars(DistillDQNConfig()) if not name.startswith("_")} - set(
    vars(DistillDQN.__mro__[1].get_default_config())
)


def valid() -> DistillDQNConfig:
    return DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")


def test_the_defaults_are_valid():
    valid().validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": None}, "needs a teacher, got None.*To learn without one, as DQN does: --no-teacher"),
        ({"teacher": None, "td_coeff": 1.0, "rollout_policy": "teacher"}, "`rollout_policy`='teacher' needs a teacher"),
        ({"teacher": None, "td_coeff": 1.0, "compression": 0.1}, "`compression`=0.1 needs a teacher"),
        ({"kd_coeff": "qdager"}, r"`kd_coeff` must be a number or a schedule .*, or 'qdagger', got 'qdager'"),
        ({"kd_coeff": "qdagger"}, "`td_coeff` is 0, so nothing would be left"),
        ({"kd_coeff": "qdagger", "td_coeff": 1.0}, "there are no evaluations. Set .evaluation"),
        ({"loss": "crossentropy"}, "Unknown loss 'crossentropy'. Known are: mse, huber, kl, nll"),
        ({"loss": "KL"}, "Did you mean 'kl'?"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"temperature": "warm"}, "`temperature` must be positive"),
        ({"student_temperature": -1.0}, "`student_temperature` must be positive"),
        ({"weight_averaging": 1.0}, r"`weight_averaging` must be in \[0, 1\)"),
        ({"huber_delta": 0}, "`huber_delta` must be positive"),
        ({"jsd_beta": 1.5}, "'jsd_beta' cannot be 1.5: expected a number between 0 and 1"),
        ({"margin": 0.0}, "`margin` must be positive"),
        ({"feature_coeff": -0.1}, "`feature_coeff` must be positive"),
        ({"value_gate": True}, "`value_gate` compares .* a value above the teacher's would never be corrected"),
        ({"teacher": None, "td_coeff": 1.0, "feature_coeff": 0.1}, "`feature_coeff`=0.1 needs a teacher"),
        ({"teacher": None, "td_coeff": 1.0, "gap_weighting": True}, "`gap_weighting`=True needs a teacher"),
        ({"loss": "categorical"}, r"needs a C51 student.*training\(num_atoms=51"),
        ({"rollout_policy": "expert"}, "Unknown rollout_policy 'expert'. Known are: teacher, student, mixture"),
        ({"teacher_fraction": 1.5}, r"`teacher_fraction` must be in \[0, 1\], got 1.5"),
        ({"teacher_fraction": [[10, 1.0]]}, "`teacher_fraction` must be a number or a schedule"),
        ({"kd_coeff": -1.0}, "`kd_coeff` must be at least 0"),
        ({"td_coeff": "qdagger"}, "`td_coeff` must be a number or a schedule"),
        ({"kd_coeff": 0.0}, "there is nothing to learn"),
        ({"compression": 0.0}, r"`compression` must be in \(0, 1\]"),
        ({"compression": 4}, r"`compression` must be in \(0, 1\]"),
        ({"num_baseline_episodes": -1}, "'num_baseline_episodes' cannot be -1: expected an integer of at least 0"),
        ({"max_staleness": -1}, "'max_staleness' cannot be -1: expected an integer of at least 0"),
        ({"max_staleness": 0.5}, "'max_staleness' cannot be 0.5: expected an integer of at least 0"),
        ({"td_coeff": 1.0, "student_temperature": 1.0}, "the student's outputs must be Q-values"),
        ({"restarts": 2.0}, "`restarts` must be an integer"),
        ({"td_coeff": 1.0, "student_temperature": 1.0, "temperature": 0.5}, "with temperature=0.5"),
    ],
)
def test_bad_distillation_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        valid().distillation(**settings).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.distillation(kd_coeff="qdagger", td_coeff=1.0, num_baseline_episodes=0).evaluation(
                evaluation_interval=1
            ),
            "`num_baseline_episodes` is 0, so it cannot be computed",
        ),
        (
            lambda c: c.distillation(teacher=None, kd_coeff="qdagger", td_coeff=1.0).evaluation(evaluation_interval=1),
            "`kd_coeff`='qdagger' needs a teacher",
        ),
        (lambda c: c.training(epsilon=2.0), "`epsilon` must be in"),
        (lambda c: c.distillation(init="svd"), "Unknown init 'svd'. Known are: random, teacher"),
        (lambda c: c.distillation(teacher=None, td_coeff=1.0, init="teacher"), "`init`='teacher' needs a teacher"),
        (lambda c: c.training(training_intensity=0), "`training_intensity` must be positive"),
        (lambda c: c.training(training_intensity="x"), "`training_intensity` must be positive"),
        (lambda c: c.training(train_batch_size_per_learner=0), "`train_batch_size_per_learner` must be an integer"),
        (lambda c: c.training(replay_buffer_config={"capacity": 1e4}), "capacity.* must be an integer"),
        (lambda c: c.training(replay_buffer_config={"alpha": 1.5}), r"replay_buffer_config\['alpha'\]` must be in"),
        (lambda c: c.training(replay_buffer_config={"beta": "x"}), r"replay_buffer_config\['beta'\]` must be in"),
        (lambda c: c.training(num_steps_sampled_before_learning_starts=-1), "must be an integer of at least 0"),
        (lambda c: setattr(c, "num_envs_per_env_runner", 0), "`num_envs_per_env_runner` must be an integer"),
        (lambda c: c.training(n_step=0).distillation(td_coeff=1.0), "`n_step` must be an integer of at least 1"),
        (lambda c: c.training(gamma=2.0).distillation(td_coeff=1.0), "'gamma' cannot be 2.0: expected a number"),
        (lambda c: c.training(learner_connector=lambda *_: None), "`learner_connector` is not supported"),
        (lambda c: c.training(learner_class=DQNTorchLearner), "must be a DistillDQNTorchLearner"),
        (lambda c: c.training(learner_class=ClipsGradients), r"overrides postprocess_gradients\(\), which .* not call"),
        (lambda c: c.env_runners(env_runner_cls=SingleAgentEnvRunner), "must be a DistillEnvRunner"),
        (lambda c: c.env_runners(batch_mode="complete_episodes"), "`batch_mode` must be"),
        (lambda c: c.training(replay_buffer_config={"type": "EpisodeReplayBuffer"}), "a replay of its own"),
        (lambda c: c.learners(num_learners=2).env_runners(num_envs_per_env_runner=1), "at least 2"),
        (
            lambda c: c.rl_module(model_config={"use_lstm": True}).distillation(feature_coeff=0.1),
            "for recurrent students",
        ),
        (lambda c: c.training(num_atoms=11).distillation(td_coeff=1.0), "distributional student"),
        (lambda c: c.rl_module(model_config={"fcnet_hiddens": [4]}).distillation(compression=0.1), "Set one of them"),
        (
            lambda c: c.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False),
            "new API stack",
        ),
        (lambda c: c.training(lr=-1), r"The setting 'lr' cannot be -1: expected a number of at least 0\."),
        (lambda c: c.training(lr=float("inf")), "'lr' cannot be inf: expected a finite number"),
        (lambda c: c.training(lr=float("nan")), "'lr' cannot be nan"),
        (lambda c: c.training(lr="fast"), "'lr' cannot be 'fast': expected a list or a number"),
        (lambda c: c.training(lr=[[0, 0.1], [10, "low"]]), "`lr` must be a number or a schedule .* got .*'low'"),
        (lambda c: c.training(lr=[[0, 0.1], [10, -0.1]]), "`lr` must be at least 0, got -0.1"),
        (lambda c: c.training(lr=[[0, 0.1], [10, float("inf")]]), "`lr` must be a number or a schedule"),
        (lambda c: c.training(epsilon=[[0, 1.0], [10, "x"]]), "`epsilon` must be a number or a schedule"),
        (lambda c: c.training(num_atoms=11, v_min=5.0, v_max=1.0), "need v_min < v_max, got 5.0 and 1.0"),
        (lambda c: c.training(tau=1.5), "'tau' cannot be 1.5: expected a number between 0 and 1"),
        (lambda c: c.training(gamma=None), "'gamma' cannot be None. Leave it out: its default is 0.99"),
        (lambda c: c.distillation(own_states=True), "`own_states` is for several `students`, but there is one"),
        (lambda c: c.distillation(own_states=3), "'own_states' cannot be 3"),
        (lambda c: c.distillation(own_states="false"), "`own_states` must be True, False or 'linear', got 'false'"),
        (lambda c: c.training(gamma=[[0, 0.9]]), "'gamma' cannot be .*: expected a number"),
        (lambda c: c.training(v_max=float("inf")), "'v_max' cannot be inf: expected a finite number"),
        (lambda c: c.training(replay_buffer_config=None), r"a replay of its own.*Got None\."),
        (lambda c: c.training(replay_buffer_config={"kapacity": 5}), r"no key 'kapacity'. Did you mean 'capacity'\?"),
        (lambda c: c.learners(num_learners=None), "`num_learners` must be an integer of at least 0, got None"),
        (lambda c: c.evaluation(evaluation_num_env_runners=-1), "expected an integer of at least 0"),
        (lambda c: c.evaluation(evaluation_config={"lr": -1}), "'lr' cannot be -1"),
        (
            lambda c: c.evaluation(evaluation_config=DistillDQNConfig.overrides(num_cpus_per_env_runner=-1)),
            "'num_cpus_per_env_runner' cannot be -1",
        ),
        (lambda c: c.rl_module(model_config={"fcnet_hiddens": [0]}), r"model_config\['fcnet_hiddens'\] cannot be .0."),
        (lambda c: c.rl_module(model_config={"fcnet_hiddens": [8.5]}), "expected a list of integers of at least 1"),
        (
            lambda c: c.rl_module(model_config={"fcnet_kernel_initializer_kwargs": {"gain": float("inf")}}),
            r"model_config\['fcnet_kernel_initializer_kwargs'\] cannot be .*: expected finite numbers",
        ),
        (
            lambda c: c.distillation(students={"a": {"fcnet_hiddens": [-4]}}),
            r"students\['a'\]\['fcnet_hiddens'\] cannot be",
        ),
        (lambda c: c.distillation(value_gate="false", td_coeff=1.0), "'value_gate' cannot be .*expected true or false"),
        (
            lambda c: c.framework(torch_skip_nan_gradients=True),
            r"does not read `torch_skip_nan_gradients`=True\. .* Lower lr, or leave it out\.",
        ),
        (lambda c: c.reporting(log_gradients=True), "does not read `log_gradients`=True"),
        (lambda c: c.experimental(_torch_lr_scheduler_classes=[StepLR]), "does not read .* Set lr to a schedule"),
        (lambda c: c.experimental(_torch_grad_scaler_class=int), r"does not read .* Set distillation\(bf16=True\)"),
        (lambda c: c.training(adam_epsilon=-1.0), "'adam_epsilon' cannot be -1.0: expected a number of at least 0"),
        (lambda c: c.training(noisy=True), "does not read `noisy`=True. Students explore by epsilon"),
        (lambda c: c.training(hiddens=[5]), r"does not read `hiddens`=\[5\]\. Set rl_module\(.*'head_fcnet_hiddens'"),
        (lambda c: c.training(sigma0=0.1), r"does not read `sigma0`=0\.1\. Students explore by epsilon"),
        (lambda c: c.training(categorical_distribution_temperature=0.5), "does not read .* explore by epsilon"),
        (lambda c: c.training(optimizer={"weight_decay": 0.1}), r"does not read `optimizer`=.* Set adam_epsilon, or"),
        (lambda c: c.training(num_epochs=5), "does not read `num_epochs`=5. Set training_intensity, or leave it out"),
        (lambda c: c.training(minibatch_size=64), "does not read .* Set train_batch_size_per_learner"),
        (lambda c: c.training(shuffle_batch_per_epoch=True), r"`shuffle_batch_per_epoch`=True\. Leave it out\."),
        (lambda c: c.framework(torch_compile_learner=True), "does not read `torch_compile_learner`=True. Leave it out"),
        (lambda c: c.learners(num_aggregator_actors_per_learner=1), "does not read `num_aggregator_actors"),
        (lambda c: c.multi_agent(count_steps_by="agent_steps"), "does not read .*'agent_steps'. Env steps are counted"),
        (lambda c: setattr(c, "temprature", 1.0), "no config field 'temprature'. Did you mean 'temperature'?"),
        (lambda c: c.update_from_dict({"lerning_rate": 1.0}), "no config field 'lerning_rate'"),
    ],
)
def test_bad_settings_elsewhere_are_refused(change, message):
    config = valid()
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize("teacher", [3, b"x", {"left": 3}])
def test_a_teacher_is_a_path(teacher):
    with pytest.raises(ValueError, match="A teacher must be the path or URI of a checkpoint"):
        DistillDQNConfig().distillation(teacher=teacher)


def test_a_module_as_a_teacher_is_shown_in_one_line():
    with pytest.raises(
        ValueError, match=r"or a Teacher, as of load_teacher\(\) .* Got DefaultDQNTorchRLModule"
    ) as error:
        DistillDQNConfig().distillation(teacher=make_q_module())
    assert len(str(error.value)) < 350


def test_integers_may_be_numpys():
    valid().distillation(num_baseline_episodes=np.int64(3), restarts=np.int64(2), patience=np.int64(4)).validate()


def test_minus_one_is_a_value_like_any_other():
    config = valid().training(v_min=-1.0, v_max=1.0, num_atoms=11)
    assert DistillDQNConfig.from_state(config.get_state()).v_min == -1.0
    assert vars(DistillDQNConfig.from_state(config.get_state())).keys() - {"class"} == vars(config).keys()


def test_infinity_is_a_limit_that_there_is_not():
    config = valid().training(grad_clip=float("inf")).env_runners(sample_timeout_s=float("inf"))
    config.environment(env_config={"far": float("inf")}).validate()


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("student", {"student": {"tree": {"max_leaf_nodes": 8}}}),
        ("compression", {"compression": 0.1}),
        (r"model_config\['tree'\]", {"model_config": {"tree": {"max_leaf_nodes": 8}}}),
        (r"model_config\['use_lstm'\]", {"model_config": {"use_lstm": True}}),
    ],
    ids=str,
)
def test_a_module_of_the_users_has_its_own_shape(setting, settings):
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")
    config.rl_module(rl_module_spec=RLModuleSpec()).validate()
    config.rl_module(model_config={"fcnet_hiddens": [4], "use_lstm": False}).validate()  # the module may read it
    with pytest.raises(ValueError, match=f"Both `rl_module_spec` and `{setting}` set what is trained. Set one of them"):
        apply_settings(config, settings).validate()


@pytest.mark.parametrize("student", ["linear", {"fcnet_hiddens": [4]}])
def test_a_student_shapes_a_module_of_the_users_whose_spec_does_not(student):
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole", student=student)
    config.rl_module(rl_module_spec=RLModuleSpec()).validate()
    with pytest.raises(ValueError, match="Both `rl_module_spec` and `student` set what is trained"):
        config.rl_module(rl_module_spec=RLModuleSpec(model_config={"fcnet_hiddens": [8]})).validate()


def test_with_td_the_students_temperature_may_be_the_teachers():
    valid().distillation(td_coeff=1.0, temperature=0.5, student_temperature=0.5).validate()


def test_td_alone_needs_no_teacher():
    config = valid().distillation(teacher=None, td_coeff=1.0)
    config.validate()
    assert config.kd_coeff_at(0) == 0.0
    assert config.label_columns == ()


def test_qdagger_is_a_weight_by_the_return_ratio():
    config = valid().distillation(kd_coeff="qdagger", td_coeff=1.0).evaluation(evaluation_interval=5)
    config.validate()
    assert config.kd_coeff_at(1_000) == 1.0
    assert config.kd_coeff_at(1_000, 0.9) == pytest.approx(0.1)


def evaluated_beside_training(config: DistillDQNConfig, num_learners: int = 1) -> DistillDQNConfig:
    config.learners(num_learners=num_learners)
    return config.evaluation(evaluation_parallel_to_training=True, evaluation_num_env_runners=1, evaluation_interval=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: evaluated_beside_training(valid(), 0), "`num_learners`=0: .* middle of an update. Set num_learners=1"),
        (
            lambda: evaluated_beside_training(valid().distillation(students={"a": "linear"})),
            "`students`=.*: they are evaluated one after the other",
        ),
        (lambda: evaluated_beside_training(valid().distillation(restarts=2)), "`restarts`=2: copies are compared"),
        (lambda: evaluated_beside_training(valid()), None),
        (lambda: evaluated_beside_training(for_two_agents()), None),
    ],
)
def test_evaluations_beside_training_need_a_remote_learner_and_one_student(config, message):
    if message is None:
        config().validate()
    else:
        with pytest.raises(ValueError, match=f"^evaluation_parallel_to_training=True is not supported with {message}"):
            config().validate()


def on_atari() -> DistillDQNConfig:
    return valid().environment("ALE/Pong-v5", env_config={"frameskip": 3})


def for_two_agents() -> DistillDQNConfig:
    policies = {"even": "cartpole", "odd": "cartpole"}
    return valid().multi_agent(policies=set(policies), policy_mapping_fn=len).distillation(teacher=policies)


@pytest.mark.parametrize("make", [valid, on_atari, for_two_agents])
def test_validation_changes_nothing(make):
    config = make()
    before, fields = config.to_dict(), vars(config).copy()
    config.validate()
    assert config.to_dict() == before
    assert vars(config) == fields


@pytest.mark.parametrize(
    "make",
    [
        on_atari,
        lambda: (
            DistillDQNConfig()
            .env_runners(num_env_runners=1)
            .environment("ALE/Pong-v5")
            .environment(env_config={"frameskip": 3})
        ),
        lambda: DistillDQNConfig().update_from_dict({"env_config": {"frameskip": 3}, "env": "ALE/Pong-v5"}),
        lambda: DistillDQNConfig.from_dict({"env": "ALE/Pong-v5", "env_config": {"frameskip": 3}}),
        lambda: DistillDQNConfig.from_dict(on_atari().to_dict()),
        lambda: DistillDQNConfig.from_state(on_atari().get_state()),
        lambda: on_atari().copy(),
    ],
)
def test_a_game_of_ale_is_settled_however_it_was_named(make):
    config = make()
    for _ in range(2):
        config.settle_environment()
        assert config.gym_env_vectorize_mode == "vector_entry_point"
        assert config.env_config == {**atari.VECTOR_DEFAULTS, "frameskip": 3}


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config,
        lambda config: config.copy(),
        lambda config: DistillDQNConfig.from_dict(config.to_dict()),
        lambda config: DistillDQNConfig.from_state(config.get_state()),
        lambda config: DistillDQNConfig().update_from_dict({"policies": {"even", "odd"}}),
    ],
)
def test_several_agents_have_an_env_runner_of_their_own(change):
    assert change(for_two_agents()).env_runner_cls is DistillMultiAgentEnvRunner


def test_an_env_runner_class_that_was_set_stays():
    class Mine(DistillEnvRunner):
        pass

    config = valid().env_runners(env_runner_cls=Mine)
    for same in (config, config.copy(), DistillDQNConfig.from_dict(config.to_dict())):
        same.validate()
        assert same.env_runner_cls is Mine
    assert valid().update_from_dict({"env_runner_cls": Mine}).env_runner_cls is Mine
    assert valid().env_runner_cls is DistillEnvRunner
    evaluation = config.evaluation(evaluation_config={"env_runner_cls": SingleAgentEnvRunner})
    assert evaluation.get_evaluation_config_object().env_runner_cls is SingleAgentEnvRunner


def test_rllibs_auto_fragments_have_a_length():
    config = valid().env_runners(rollout_fragment_length="auto")
    config.validate()
    assert config.get_rollout_fragment_length() == 32


def test_subclasses_may_have_fields_of_their_own():
    class Mine(DistillDQNConfig):
        def __init__(self, algo_class=None):
            super().__init__(algo_class)
            self.mine = 1

    Mine().environment("CartPole-v1").distillation(teacher="cartpole").validate()


def test_an_activation_alone_leaves_the_widths_to_compression():
    valid().rl_module(model_config={"fcnet_activation": "tanh"}).distillation(compression=0.1).validate()


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
    assert evaluation.env_runner_cls is StudentsEnvRunner  # RLlib's own, but for its errors
    overridden = valid().evaluation(evaluation_config={"num_envs_per_env_runner": 3, "explore": True})
    assert overridden.get_evaluation_config_object().num_envs_per_env_runner == 3
    assert overridden.get_evaluation_config_object().explore is True


def test_every_field_has_an_argument_a_description_and_a_reader():
    assert {"teacher", "loss", "temperature", "teacher_fraction", "compression"} <= OWN_FIELDS
    parameters = inspect.signature(DistillDQNConfig.distillation).parameters
    descriptions = inspect.getdoc(DistillDQNConfig.distillation)
    package, wing = Path(rllib_kd.__file__).parent, Path(config_module.__file__).parent
    # A check alone is no use of it.
    no_readers = {wing / "config.py", wing / "checks.py"}
    readers = [ast.parse(path.read_text()) for path in package.rglob("*.py") if path not in no_readers]
    own = ast.walk(ast.parse((wing / "config.py").read_text()))
    readers += [node for node in own if isinstance(node, ast.FunctionDef) and node.name.endswith("_at")]
    read = {node.attr for reader in readers for node in ast.walk(reader) if isinstance(node, ast.Attribute)}
    for name in OWN_FIELDS:
        assert name in parameters
        assert f"{name}:" in descriptions
        assert name in read, f"nobody reads `{name}`"


def test_a_loaded_teacher_is_a_teacher(cartpole_config):
    teacher = load_teacher("cartpole")
    config = cartpole_config.distillation(teacher=teacher)
    config.validate()
    assert config.teacher is teacher
