"""Recurrent students from sampling to comparison, resumed, and with several processes; and what is refused."""

import numpy as np
import pytest
from ray.rllib.connectors.env_to_module import FlattenObservations

from rllib_kd import DistillDQN, DistillDQNConfig, compare, load_teacher
from rllib_kd.algorithm.restarts import KeptCopy
from rllib_kd.algorithm.students import new_student, shape_students
from rllib_kd.env_runner.recurrent import RecurrentEnvRunner
from rllib_kd.networks.dqn_module import count_parameters
from tests.algorithm.resumable import differ, resumable_config, weights
from tests.algorithm.small import small_config
from tests.algorithm.weights import assert_equal_weights
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS
from tests.env_runner.runners import Silent
from tests.observations.masked import InDict
from tests.observations.remembering import Cue, knowing_teacher

MEMORY = {"use_lstm": True, "lstm_cell_size": 8, "fcnet_hiddens": [8], "max_seq_len": 6}


def only_shown(env=None, spaces=None, device=None):
    """A connector that leaves out what the student does not see."""
    return FlattenObservations(input_observation_space=Cue().observation_space, keys_to_remove=["cue"])


def cue_config(**model):
    return (
        small_config(Cue)
        .env_runners(env_to_module_connector=only_shown)
        .training(lr=1e-2)
        .rl_module(model_config={**MEMORY, **model})
        .distillation(teacher=knowing_teacher(), num_baseline_episodes=4)
    )


def recurrent_resumable(**env_runners):
    return resumable_config(**env_runners).rl_module(model_config={**MEMORY, "max_seq_len": 5}).training(burn_in_len=2)


@pytest.fixture(scope="module")
def remembering(cluster, tmp_path_factory):
    """An algorithm that has learned to remember, its last result, and its checkpoint."""
    algo = cue_config().build_algo()
    while algo.num_env_steps < 2_500:
        result = algo.train()
    yield algo, result, algo.save_to_path(str(tmp_path_factory.mktemp("remembering") / "student"))
    algo.stop()


@pytest.mark.slow
def test_only_a_memory_can_remember(remembering):
    algo, result, path = remembering
    assert algo.env_runner._samples_directly
    assert result["distillation"]["teacher_return"] == 6.0
    assert result["learners"]["default_policy"]["teacher_agreement"] == 1.0
    assert algo.evaluate()["env_runners"]["episode_return_mean"] == 6.0  # by RLlib's own loop
    done = compare(knowing_teacher(), algo, Cue, num_episodes=30)
    assert done.student.return_mean == 6.0
    assert done.agreement_on_student_states == done.agreement_on_teacher_states == 1.0
    assert done.student.latency_ms > 0
    assert compare(knowing_teacher(), path, Cue, num_episodes=5).student.return_mean == 6.0


SIZES = {"lstm": {"lstm_cell_size": 6}, "gru": {"recurrent_layer_type": "gru", "fcnet_hiddens": []}}


@pytest.mark.slow
def test_a_family_remembers(build, tmp_path):
    """Students of other sizes and kinds, each of which is chosen among copies."""
    algo = build(cue_config().distillation(students=SIZES, restarts=2, num_validation_episodes=8))
    while algo.num_env_steps < 2_000:
        result = algo.train()
    assert result["distillation"]["students"].keys() == SIZES.keys()
    evaluations = algo.evaluate()["students"]
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    for name in SIZES:
        assert result["learners"][name]["teacher_agreement"] == 1.0
        assert evaluations[name]["env_runners"]["episode_return_mean"] == 6.0
        saved = f"{path}/learner_group/learner/rl_module/{name}"
        assert compare(knowing_teacher(), saved, Cue, num_episodes=5).student.return_mean == 6.0
    validation = algo.train()["distillation"]["validation"]
    assert validation["episode_return_mean"] == dict.fromkeys(SIZES, 6.0)


@pytest.mark.slow
def test_a_recurrent_student_teaches_another(build, remembering, tmp_path):
    *_, path = remembering
    second = build(cue_config().distillation(teacher=path))  # it sees what its student sees
    while second.num_env_steps < 2_500:
        result = second.train()
    assert result["distillation"]["teacher_return"] == 6.0
    assert compare(path, second, Cue, num_episodes=20).student.return_mean == 6.0
    resumed = DistillDQN.from_checkpoint(second.save_to_path(str(tmp_path / "second")))
    for algo in (second, resumed):
        algo.train()
    assert_equal_weights(weights(resumed), weights(second))  # the teacher's memory, too, is in the checkpoint
    resumed.stop()


@pytest.mark.slow
def test_masks(build, tmp_path):
    teacher = build(small_config(InDict).distillation(teacher=None, td_coeff=1.0))
    teacher.train()
    path = teacher.save_to_path(str(tmp_path / "teacher"))
    teacher.stop()
    config = small_config(InDict).rl_module(model_config=MEMORY)
    algo = build(config.distillation(teacher=path, td_coeff=0.5))
    algo.train()  # an illegal action raises
    algo.evaluate()
    compare(path, algo, InDict, num_episodes=3)


@pytest.mark.parametrize(
    ("students", "td_coeff"),
    [pytest.param({}, 0.5, id="one student, TD"), pytest.param(SIZES, 0.0, id="family", marks=pytest.mark.slow)],
)
def test_resumed_bit_by_bit(build, tmp_path, students, td_coeff):
    config = recurrent_resumable().distillation(students=students, restarts=2 if students else 1, td_coeff=td_coeff)
    algo = build(config.distillation(num_validation_episodes=0))
    for _ in range(3):
        algo.train()
    # In the checkpoint, and there alone, the second copy has its student's place.
    copies = algo.get_copies() if students else {}
    algo._restarts._chosen = {name: KeptCopy.of(name, copies[f"{name}__restart_1"], 0) for name in students}
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    before = weights(algo)
    for _ in range(3):
        algo.train()
    expected = weights(algo)
    assert differ(before, expected)
    resumed = DistillDQN.from_checkpoint(path)
    assert_equal_weights(weights(resumed), before)
    for _ in range(3):
        resumed.train()
    assert_equal_weights(weights(resumed), expected)
    resumed.stop()
    for name in students:
        saved = load_teacher(f"{path}/learner_group/learner/rl_module/{name}").module.state_dict()
        for key, value in saved.items():
            np.testing.assert_array_equal(value, before[f"{name}__restart_1/{key}"])


@pytest.mark.slow
@pytest.mark.parametrize("students", [{}, SIZES], ids=["Learners", "RLlib's episodes, family"])
def test_several_processes(build, students):
    config = recurrent_resumable(num_env_runners=1)
    config.distillation(students=students, td_coeff=0.0 if students else 0.5)
    if students:
        config.callbacks(Silent)
    else:
        config.learners(num_learners=2)
    algo = build(config)
    for _ in range(3):
        result = algo.train()
    for name in students or ["default_policy"]:
        for loss in ("kd_loss",) if students else ("kd_loss", "td_loss"):
            assert np.isfinite(result["learners"][name][loss])
    assert algo.num_gradient_steps


@pytest.mark.slow
def test_td_alone_learns_to_remember(build):
    config = cue_config().distillation(teacher=None, td_coeff=1.0)
    algo = build(config.training(gamma=0.9, lr=3e-3))
    while algo.num_env_steps < 4_000:
        result = algo.train()
    assert "kd_loss" not in result["learners"]["default_policy"]
    assert algo.evaluate()["env_runners"]["episode_return_mean"] == 6.0


@pytest.mark.parametrize("loss", ["mse", "reverse_kl", "margin"])
def test_every_loss(build, loss):
    config = recurrent_resumable().distillation(loss=loss, gap_weighting=True)
    algo = build(config)
    for _ in range(2):
        result = algo.train()
    assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])
    assert algo.num_gradient_steps


def of_family(config, shape):
    return config.distillation(students={"a": shape, "b": {"use_lstm": True, "fcnet_hiddens": [4]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.distillation(td_coeff=1.0).training(n_step=3), "`n_step`=3 is not supported for recurrent"),
        (lambda c: of_family(c, "linear"), r"`students\['a'\]`='linear' is not supported for recurrent"),
        (lambda c: of_family(c, {"tree": {"max_leaf_nodes": 4}}), r"`students\['a'\]`={'tree'"),
        (lambda c: of_family(c, {"use_lstm": False, "fcnet_hiddens": [4]}), r"`students\['a'\]`=.* has no memory"),
        (lambda c: of_family(c, {"lstm_cell_size": 0}), r"students\['a'\]\['lstm_cell_size'\] must be .* got 0"),
        (lambda c: of_family(c, {"lstm_cell_size": 4, "max_seq_len": 4}), "learn from the same sequences"),
        (lambda c: of_family(c, {"lstm_cell_size": 4, "recurrent_layer_type": "rnn"}), "'lstm' or 'gru', got 'rnn'"),
        (lambda c: of_family(c, {"use_lstm": True}), "must have either `compression`, `tree` or widths"),
        (
            lambda c: c.rl_module(model_config={}).distillation(students={"a": {"lstm_cell_size": 4}}),
            r"students\['a'\]\['lstm_cell_size'\]=4 has no effect without a recurrent layer",
        ),
        (lambda c: c.distillation(student={"fcnet_hiddens": [4]}), "Set one of them"),
        (lambda c: c.distillation(feature_coeff=0.1), "`feature_coeff`=0.1"),
        (lambda c: c.distillation(init="teacher"), "`init`='teacher'"),
        (lambda c: c.distillation(bf16=True), "`bf16`=True"),
        (lambda c: c.training(num_atoms=5, v_min=0.0, v_max=1.0), "`num_atoms`=5"),
        (lambda c: c.training(replay_buffer_config={"alpha": 0.6}), r"`replay_buffer_config\['alpha'\]`=0.6"),
        (lambda c: c.rl_module(model_config={**MEMORY, "lstm_cell_size": 0}), "at least 1, got 0"),
        (lambda c: c.rl_module(model_config={**MEMORY, "max_seq_len": 2.5}), "at least 1, got 2.5"),
        (
            lambda c: c.rl_module(model_config={**MEMORY, "max_seq_len": 10**8}),
            "at most 10,000 env steps, got 100,000,000",
        ),
        (lambda c: c.training(burn_in_len=6), "max_seq_len=6 env steps, and the first burn_in_len=6"),
        (lambda c: c.training(burn_in_len=-1), "`burn_in_len` must be an integer of at least 0"),
        (lambda c: c.rl_module(model_config={**MEMORY, "recurrent_layer_type": "GRU"}), "Did you mean 'gru'"),
        (lambda c: c.rl_module(model_config={**MEMORY, "lstm_use_prev_action": True}), "RLlib does not read it"),
        (lambda c: c.rl_module(model_config={"recurrent_layer_type": "gru"}), "without a recurrent layer"),
        (
            lambda c: c.rl_module(
                model_config={**MEMORY, "recurrent_layer_type": "gru", "lstm_kernel_initializer": "zeros_"}
            ),
            "cannot set the weights of a GRU",
        ),
        (
            lambda c: of_family(
                c.rl_module(model_config={**MEMORY, "lstm_kernel_initializer": "zeros_"}),
                {"fcnet_hiddens": [4], "recurrent_layer_type": "gru"},
            ),
            "cannot set the weights of a GRU",
        ),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    config = DistillDQNConfig().environment("CartPole-v1").rl_module(model_config=dict(MEMORY))
    config.distillation(teacher="cartpole")
    config.validate()
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_compression_scales_the_recurrent_layer():
    teacher = load_teacher("cartpole")
    for own in ({}, {"lstm_cell_size": 8}):
        config = DistillDQNConfig().environment("CartPole-v1").rl_module(model_config={"use_lstm": True, **own})
        config.distillation(teacher=teacher, compression=0.1).validate()
        shape_students(config, {"default_policy": teacher})
        spaces = {"default_policy": (CARTPOLE_OBS, CARTPOLE_ACTIONS)}
        size = count_parameters(new_student(config, spaces, "default_policy"))
        assert 0.08 < size / teacher.num_parameters <= 0.1
        assert (config.model_config["lstm_cell_size"] == 8) == bool(own)


@pytest.mark.parametrize(("length", "rows"), [(20, 40), (50, 50), (32, 32), (200, 200)])
def test_a_batch_has_whole_sequences(length, rows):
    config = DistillDQNConfig().training(train_batch_size_per_learner=32)
    assert config.learner_batch_size == 32
    assert config.rl_module(model_config={"use_lstm": True, "max_seq_len": length}).learner_batch_size == rows


def test_as_many_rows_are_learned_from_as_the_replay_ratio_says(build):
    config = cue_config(max_seq_len=32).training(train_batch_size_per_learner=8, training_intensity=2.0)
    algo = build(config.training(num_steps_sampled_before_learning_starts=0))
    while not algo.num_gradient_steps:
        algo.train()
    assert algo.num_gradient_steps * 32 <= 2 * algo.num_env_steps


def test_each_member_of_a_family_has_a_size_of_its_own():
    teacher = load_teacher("cartpole")
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher=teacher)
    students = {
        "large": {"use_lstm": True, "lstm_cell_size": 9},
        "scaled": {"use_lstm": True, "compression": 0.1},
        "scaled_around_8": {"use_lstm": True, "compression": 0.1, "lstm_cell_size": 8},
    }
    config.distillation(students=students).validate()
    shape_students(config, {"default_policy": teacher})
    spaces = {"default_policy": (CARTPOLE_OBS, CARTPOLE_ACTIONS)}
    built = {name: new_student(config, spaces, name) for name in students}
    units = {name: module.get_initial_state()["h"].shape[-1] for name, module in built.items()}
    assert units["large"] == 9
    assert units["scaled_around_8"] == 8 != units["scaled"]
    for name in ("scaled", "scaled_around_8"):
        assert 0.08 < count_parameters(built[name]) / teacher.num_parameters <= 0.1


def test_student_takes_what_students_take():
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")
    config.distillation(student={"use_lstm": True, "lstm_cell_size": 5, "fcnet_hiddens": [4]}).validate()
    shape_students(config, {"default_policy": load_teacher("cartpole")})
    config.validate()
    assert config.env_runner_cls is RecurrentEnvRunner
    student = new_student(config, {"default_policy": (CARTPOLE_OBS, CARTPOLE_ACTIONS)}, "default_policy")
    assert student.get_initial_state()["h"].shape == (1, 5)
