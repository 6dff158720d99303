"""The objects that a run consists of, by themselves: what they count, and what a checkpoint holds of them."""

import ast
import inspect
import json
import math
import pickle
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pyarrow.fs
import pytest
import ray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

from rllib_kd import DistillDQN, DistillDQNConfig, DistillEnvRunner, load_teacher
from rllib_kd.algorithm import algorithm, recorded
from rllib_kd.algorithm.concrete import concrete_config
from rllib_kd.algorithm.first_weights import FirstWeights
from rllib_kd.algorithm.format_version import FORMAT_VERSION, check_format, check_format_at
from rllib_kd.algorithm.gradient_steps import ReplayRatio
from rllib_kd.algorithm.patience import Patience
from rllib_kd.algorithm.recorded import RecordedSampling
from rllib_kd.algorithm.restarts import Restarts
from rllib_kd.algorithm.results import distillation_results
from rllib_kd.algorithm.returns import StudentReturns
from rllib_kd.algorithm.sampling import Sampling, StudentState
from rllib_kd.algorithm.students import Students, StudentSize, shape_students, warn_of_large_students
from rllib_kd.algorithm.teachers import Teachers, _load_from_trial, without_networks
from rllib_kd.checkpoints.replay_files import read_replays, write_replay
from rllib_kd.env_runner import multi_agent, recurrent, single_agent
from rllib_kd.evaluation.sources import open_source
from rllib_kd.experiment.snapshots import has_snapshot, put_back
from rllib_kd.learner.trees import Trees
from rllib_kd.observations.pipeline import Function, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states
from tests.observations.test_connectors import Reading


def ratio(**settings) -> ReplayRatio:
    return ReplayRatio(**{"rows_per_env_step": 2.0, "batch_size": 32, "learning_starts": 64} | settings)


# --- What a checkpoint holds ------------------------------------------------------------------------------------------


#: By attribute of the Algorithm.
PARTS = {
    "_replay_ratio": ratio(),
    "_returns": StudentReturns(["a"]),
    "_first_weights": FirstWeights(["a"]),
    "_restarts": Restarts(2, num_episodes=10),
    "_patience": Patience(1_000, 0.5),
}


@pytest.mark.parametrize("part", [*PARTS.values(), Trees([], seed=0)], ids=lambda part: type(part).__name__)
def test_every_attribute_is_saved_or_named_as_not_saved(part):
    saved = set(part.get_state())
    assert {name.lstrip("_") for name in set(vars(part)) - part.NOT_SAVED} == saved
    assert set(vars(part)) >= part.NOT_SAVED


def attributes_set_in(module, cls: str, method: str) -> set[str]:
    """`self.x = ...` in a method, read from the source of its module."""
    (node,) = (each for each in ast.parse(inspect.getsource(module)).body if getattr(each, "name", None) == cls)
    (function,) = (each for each in node.body if getattr(each, "name", None) == method)
    return {
        each.attr
        for each in ast.walk(function)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and each.value.id == "self"
    }


def test_every_attribute_of_the_algorithm_is_saved_or_named_as_not_saved():
    cls = algorithm.DistillDQN
    # The teachers are components of the Algorithm.
    assert attributes_set_in(algorithm, "DistillDQN", "_set_up") == {*cls.SAVED, *cls.NOT_SAVED, "_teachers"}
    assert {*cls.SAVED} == {*PARTS, "_sampling"}  # which is tested below


@pytest.mark.parametrize(
    ("module", "cls"), [(single_agent, "DistillEnvRunner"), (multi_agent, "DistillMultiAgentEnvRunner")]
)
def test_every_attribute_of_an_env_runner_is_saved_or_named_as_not_saved(module, cls):
    env_runner = getattr(module, cls)
    own = attributes_set_in(module, cls, "__init__")
    assert own == {*env_runner.SAMPLING_STATE, *env_runner.NOT_SAVED} & own
    assert own >= env_runner.NOT_SAVED
    assert not {*env_runner.SAMPLING_STATE} & env_runner.NOT_SAVED
    assert set(env_runner.LASTING_STATE) <= set(env_runner.SAMPLING_STATE)


def test_teachers_are_saved_as_components():
    teachers = Teachers({"even": Teacher(make_q_module()), "default_policy": Teacher()}, by_module=True)
    assert set(vars(teachers)) - teachers.NOT_SAVED == {"_teachers"}
    assert [name for name, _ in teachers.components()] == ["teacher_even", "teacher"]
    assert not teachers.are_loaded
    state = teachers.get_state(lambda name: name == "teacher_even")
    assert not teachers.set_state({})
    assert teachers.set_state({"teacher": state["teacher_even"]})
    assert teachers.are_loaded


def test_all_of_sampling_is_named():
    own = attributes_set_in(inspect.getmodule(Sampling), "Sampling", "__init__")
    assert own == Sampling.NOT_SAVED | {"preferred", "resting"}  # which it saves
    own = attributes_set_in(recorded, "RecordedSampling", "__init__") - {"_data"}  # whose state it saves
    assert own == RecordedSampling.NOT_SAVED - Sampling.NOT_SAVED


def test_all_of_a_recurrent_env_runner_is_named():
    own, cls = DistillEnvRunner, recurrent.RecurrentEnvRunner
    assert attributes_set_in(recurrent, "RecurrentEnvRunner", "__init__") == {*cls.SAMPLING_STATE} - {
        *own.SAMPLING_STATE
    }
    assert attributes_set_in(recurrent, "RecurrentEnvRunner", "make_module") == cls.NOT_SAVED - own.NOT_SAVED


# --- The format of checkpoints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (FORMAT_VERSION + 1, "reads format version 1. Install the newer rllib-kd that wrote it"),
        (None, "has format version 0, .* Train again, or install the rllib-kd that wrote it"),
    ],
)
def test_a_checkpoint_of_another_version_says_so(tmp_path, version, message):
    state = {} if version is None else {"format_version": version}
    with pytest.raises(ValueError, match=message):
        check_format(state)
    file = tmp_path / "algorithm_state.pkl"
    file.write_bytes(pickle.dumps({"distillation": state}))
    with pytest.raises(ValueError, match=message):
        check_format_at(str(file), pyarrow.fs.LocalFileSystem())


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1])])
def test_a_broken_state_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "state.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"state.pkl' cannot be read \(\w+: .*\). Is the checkpoint complete\?$"):
        check_format_at(str(tmp_path / "state.pkl"), pyarrow.fs.LocalFileSystem())


def unreachable():
    """A filesystem that answers as a cloud's does without permission."""

    def deny(*_):
        raise OSError(13, "Access Denied")

    handler = pyarrow.fs.FileSystemHandler
    methods = dict.fromkeys(handler.__abstractmethods__, deny)
    methods |= {"get_type_name": lambda self: "cloud", "normalize_path": lambda self, path: path}
    return pyarrow.fs.PyFileSystem(type("Unreachable", (handler,), methods)())


@pytest.mark.parametrize(
    "read",
    [
        lambda filesystem: check_format_at("bucket/state.pkl", filesystem),
        lambda filesystem: read_replays("bucket/checkpoint", filesystem),
        lambda filesystem: _load_from_trial(
            SimpleNamespace(storage_filesystem=filesystem, trial_fs_path="bucket"), "t"
        ),
        lambda filesystem: has_snapshot("s3://bucket/a"),
        lambda filesystem: put_back("s3://bucket/a"),
        lambda filesystem: open_source("s3://bucket/a").environment(),
    ],
)
def test_a_cloud_that_denies_access_is_an_error_of_one_line(monkeypatch, read):
    filesystem = unreachable()
    clouds = SimpleNamespace(from_uri=lambda uri: (filesystem, uri.partition("://")[2]))
    monkeypatch.setattr(pyarrow.fs, "FileSystem", clouds)
    with pytest.raises(ValueError, match="Access Denied") as caught:
        read(filesystem)
    assert str(caught.value).isprintable()


def test_replays_that_are_broken_are_refused_in_a_line(tmp_path):
    filesystem = pyarrow.fs.LocalFileSystem()
    write_replay(str(tmp_path), 0, {"a": np.ones(3)}, filesystem)
    (tmp_path / "replay" / "mine.npz").write_bytes(b"of the user")
    assert len(read_replays(str(tmp_path), filesystem)) == 1
    whole = (tmp_path / "replay" / "0.npz").read_bytes()
    for content in (b"", whole[:-9], whole[:60] + bytes(10) + whole[70:]):
        (tmp_path / "replay" / "0.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"0.npz' cannot be read: .* Is the checkpoint complete\?"):
            read_replays(str(tmp_path), filesystem)


def test_a_checkpoint_of_this_version_is_read(tmp_path):
    check_format(None)
    check_format({"format_version": FORMAT_VERSION})
    check_format_at(str(tmp_path / "is missing"), pyarrow.fs.LocalFileSystem())


def test_a_newer_checkpoint_is_refused_before_anything_is_restored(cartpole_config, build, tmp_path):
    algo = build(cartpole_config)
    algo.train()
    path = tmp_path / "checkpoint"
    algo.save_to_path(str(path))
    state = pickle.loads((path / "algorithm_state.pkl").read_bytes())
    assert state["distillation"]["format_version"] == FORMAT_VERSION
    state["distillation"]["format_version"] += 1
    (path / "algorithm_state.pkl").write_bytes(pickle.dumps(state))
    algo.train()
    before = algo.num_gradient_steps, algo.learner_group.get_weights()
    with pytest.raises(ValueError, match="Install the newer rllib-kd"):
        algo.restore_from_path(str(path))
    assert algo.num_gradient_steps == before[0]
    np.testing.assert_equal(algo.learner_group.get_weights(), before[1])


# --- The replay ratio -------------------------------------------------------------------------------------------------


def test_nothing_is_due_before_learning_starts():
    own = ratio()
    own.sampled(63)
    assert own.steps_due() == 0
    own.sampled(16)
    assert own.steps_due() == 1
    assert own.steps_due() == 0
    own.replay_is_empty()
    own.sampled(16)
    assert own.steps_due() == 0


def test_what_is_left_of_a_batch_waits():
    own, made = ratio(learning_starts=0, rows_per_env_step=5), 0
    for count in (3, 7, 11, 2, 30):
        own.sampled(count)
        made += own.steps_due()
    assert made == 5 * 53 // 32
    own.learned(made)
    assert own.num_gradient_steps == made
    other = ratio(learning_starts=0, rows_per_env_step=5)
    other.set_state(own.get_state())
    for each in (own, other):
        each.sampled(5)
    assert own.steps_due() == other.steps_due() == 1
    assert own.get_state() == other.get_state()


# --- Returns and results ----------------------------------------------------------------------------------------------


def evaluation(mean, **by_module):
    return {"env_runners": {"episode_return_mean": mean, "module_episode_returns_mean": by_module}}


def test_the_return_ratio_is_that_of_the_student_furthest_from_its_teacher():
    returns = StudentReturns(["a", "b"])
    assert math.isnan(returns.ratio)
    returns.take_baselines(["a", "b"], {"teacher": [90.0, 110.0], "random": [0.0, 20.0]})
    returns.take_evaluation(evaluation(100.0), of="a")
    assert math.isnan(returns.ratio)
    returns.take_evaluation(evaluation(55.0), of="b")
    assert returns.ratio == 0.5
    assert returns["a"].ratio == 1.0
    other = StudentReturns(["a", "b"])
    other.set_state(returns.get_state())
    assert other.get_state() == returns.get_state()


def test_an_evaluation_may_be_of_one_student_or_of_all():
    returns = StudentReturns(["a", "b"])
    returns.take_evaluation(evaluation(9.0, a=4.0, b=5.0))
    assert [returns[name].student for name in returns] == [4.0, 5.0]
    returns.take_evaluation(evaluation(3.0), of="b")
    assert [returns[name].student for name in returns] == [4.0, 3.0]


def test_an_evaluation_without_a_return_leaves_that_of_the_last_one(caplog):
    returns = StudentReturns(["a", "b"])
    returns.take_baselines(["a", "b"], {"teacher": [100.0], "random": [0.0]})
    for nothing in ({}, {"env_runners": {}}):
        returns.take_evaluation(nothing)
        assert math.isnan(returns.ratio)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "No episode of the student 'a' ended in its first evaluation"
    ]
    returns.take_evaluation(evaluation(9.0, a=40.0, b=50.0))
    for nothing in ({}, {"env_runners": {}}, evaluation(math.nan, a=math.nan, b=90.0)):
        returns.take_evaluation(nothing)
        assert returns.ratio == 0.4
    assert returns["b"].student == 90.0
    assert len(caplog.records) == 1


def result_of(config, sizes, teachers):
    students = Students(sizes)
    returns = StudentReturns(students.names)
    return distillation_results(
        config,
        teachers=teachers,
        students=students,
        returns=returns,
        env_steps=5_000,
        num_gradient_steps=7,
        num_regrowths=0,
        staleness=[0, 1, 2],
        learner_results={"default_policy": {"temperature": 0.5}},
        held_out={},
    )


def test_the_result_of_one_student_is_flat():
    teachers = {"default_policy": Teacher(make_q_module())}
    config = DistillDQNConfig().distillation(teacher="cartpole")
    result = result_of(config, {"default_policy": {"default_policy": StudentSize(641, None)}}, teachers)
    assert result.pop("compression") == pytest.approx(641 / 1_282)
    for name in ("return_ratio", "teacher_return", "random_return"):
        assert math.isnan(result.pop(name))
    assert result == {
        "td_coeff": 0.0,
        "num_gradient_steps_lifetime": 7,
        "staleness_mean": 1.0,
        "staleness_max": 2,
        "kd_coeff": 1.0,
        "teacher_fraction": 0.75,
        "student_params": 641,
        "teacher_params": 1_282,
        "temperature": 0.5,
    }


def test_the_result_of_a_family_has_an_entry_for_each():
    config = DistillDQNConfig().distillation(teacher="cartpole", students={"a": "linear", "b": "linear"})
    sizes = {"default_policy": {name: StudentSize(10, None) for name in "ab"}}
    result = result_of(config, sizes, {"default_policy": Teacher(make_q_module())})
    assert set(result["students"]) == {"a", "b"}


def test_the_result_without_a_teacher_has_nothing_of_one():
    config = DistillDQNConfig().distillation(teacher=None, td_coeff=1.0)
    result = result_of(config, {"default_policy": {"default_policy": StudentSize(10, None)}}, {})
    assert set(result) == {
        "student_params",
        "td_coeff",
        "num_gradient_steps_lifetime",
        "staleness_mean",
        "staleness_max",
    }


# --- Students and teachers --------------------------------------------------------------------------------------------


def test_students_are_shaped_by_their_teachers():
    teachers = {"default_policy": Teacher(make_q_module(fcnet_hiddens=[64, 64]))}
    config = DistillDQNConfig().distillation(compression=0.1)
    shape_students(config, teachers)
    assert config.given_model_config["fcnet_hiddens"] == [17, 17]
    assert config.compression is None
    shape_students(config, teachers)  # widths are there already
    assert config.given_model_config["fcnet_hiddens"] == [17, 17]


@pytest.mark.parametrize("own", [{}, {"fcnet_activation": "relu"}, {"fcnet_hiddens": np.array([8])}])
def test_defaults_of_rllibs_model_config_are_not_settings(own):
    teachers = {"default_policy": Teacher(make_q_module(fcnet_hiddens=[64, 64]))}
    shapes = []
    for model_config in (own, DefaultModelConfig(**own)):
        config = DistillDQNConfig().rl_module(model_config=model_config)
        shape_students(config, teachers)
        shapes.append(config.model_config)
    assert shapes[0] == shapes[1]
    assert shapes[0]["fcnet_hiddens"] == ([8] if "fcnet_hiddens" in own else [10, 10])


@pytest.mark.parametrize("widths", [[np.int64(4)], np.array([4])], ids=["list", "array"])
def test_widths_of_numpy_become_integers_once(widths):
    config = DistillDQNConfig().rl_module(model_config={"fcnet_hiddens": widths})
    config.distillation(students={"a": {"fcnet_hiddens": widths}, "b": {"head_fcnet_hiddens": widths}})
    shape_students(config, {})
    shapes = [config.given_model_config, *config.students.values()]
    assert json.dumps(shapes) == '[{"fcnet_hiddens": [4]}, {"fcnet_hiddens": [4]}, {"head_fcnet_hiddens": [4]}]'


def test_students_behind_connectors_are_sized_for_their_own_inputs():
    """Not for those of a teacher that sees something else."""
    views = gym.spaces.Dict(state=CARTPOLE_OBS, read=gym.spaces.Dict(word=gym.spaces.Text(9), n=gym.spaces.Discrete(9)))
    module = make_q_module(fcnet_hiddens=[64, 64])
    knows_views = Teacher(module, pipeline=ObservationPipeline(views, (Function(lambda obs: obs["state"]),)))
    spaces = (views, CARTPOLE_ACTIONS)
    for teacher, known in ((knows_views, None), (Teacher(module), spaces), (Teacher(module), None)):
        config = DistillDQNConfig().env_runners(env_to_module_connector=lambda env, spaces, device: Reading())
        shape_students(config.distillation(compression=0.1), {"default_policy": teacher}, known)
        # 73 inputs, of which a text has 64; if nothing but the teacher is known, they are taken to be its 4.
        expected = [17, 17] if teacher.pipeline is None and known is None else [5, 5]
        assert config.given_model_config["fcnet_hiddens"] == expected


def test_a_large_student_is_a_warning(caplog):
    teachers = {"default_policy": Teacher(make_q_module())}
    for size, warns in ((1_000, False), (1_200, True)):
        caplog.clear()
        warn_of_large_students(Students({"default_policy": {"default_policy": StudentSize(size, None)}}), teachers)
        assert bool(caplog.text) == warns


def test_a_config_names_a_loaded_teacher_by_its_source():
    loaded = Teacher(make_q_module(), source="here")
    assert without_networks([loaded, "cartpole", (loaded,)]) == ["here", "cartpole", ["here"]]


def test_an_algorithms_config_without_its_loaded_teacher_is_refused():
    """Its source is no path, or lacks the pipeline."""
    given = DistillDQNConfig().environment("CartPole-v1").distillation(teacher=load_teacher("cartpole"))
    teachers = Teachers.load(given, None)
    config = concrete_config(given, None, teachers, None)
    again = config.copy(copy_frozen=False)
    for stripped in (again, DistillDQNConfig.from_state(config.get_state())):
        assert isinstance(stripped.teacher, str)
        with pytest.raises(
            ValueError, match=r"loaded in Python, and has only its source. Set the teacher again: \.dist"
        ):
            Teachers.load(stripped, None)
    assert Teachers.load(again.distillation(teacher="cartpole"), None).are_loaded
    of_path = given.copy().distillation(teacher=("cartpole", "cartpole"))
    assert Teachers.load(concrete_config(of_path, None, teachers, None), None).are_loaded


# --- The way of the weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "is_stored"), [(100, False), (30_000, True)])
def test_a_student_travels_packed_and_under_rllibs_names(cluster, width, is_stored):
    weights = {"default_policy": {"layer": np.ones(width, np.float32)}}
    student = StudentState.of({COMPONENT_RL_MODULE: weights, WEIGHTS_SEQ_NO: 3, "more": None}, 640)
    state = student.packed().for_env_runners()
    assert set(state) == {COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO, NUM_ENV_STEPS_SAMPLED_LIFETIME}
    assert (state[WEIGHTS_SEQ_NO], state[NUM_ENV_STEPS_SAMPLED_LIFETIME]) == (3, 640)
    packed = state[COMPONENT_RL_MODULE]
    assert isinstance(packed, ray.ObjectRef) == is_stored
    np.testing.assert_equal(ray.get(packed) if is_stored else packed, weights)


def test_first_states_go_on_from_a_checkpoint():
    first, again = FirstWeights(["default_policy"]), FirstWeights(["default_policy"])
    first.keep([{"default_policy": {"obs": states(8), "teacher_q": states(8)[:, :2]}}])
    again.set_state(first.get_state())
    np.testing.assert_equal(again.get_state(), first.get_state())
    assert len(again.get_state()["waiting"]["default_policy"][0][0]) == 8


@pytest.mark.parametrize("has_learned", [False, True])
def test_first_states_go_on_from_a_checkpoint_of_a_version_in_which_no_group_waited(has_learned):
    first, again = FirstWeights(["default_policy"]), FirstWeights(["default_policy"])
    first.keep([{"default_policy": {"obs": states(8), "teacher_q": states(8)[:, :2]}}])
    saved = [] if has_learned else first.get_state()["waiting"]["default_policy"]
    again.set_state({"states": {"default_policy": saved}})
    assert again.is_done == has_learned


def test_an_algorithm_of_another_version_is_refused_before_it_is_built(tmp_path):
    (tmp_path / "algorithm_state.pkl").write_bytes(pickle.dumps({"distillation": {}}))
    with pytest.raises(ValueError, match="has format version 0"):
        DistillDQN.from_checkpoint(str(tmp_path))
