"""Distilling from recorded rows: whole runs of every kind, small."""

import math
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.rllib.core.columns import Columns

from rllib_kd import DistillDQN, Teacher
from rllib_kd.algorithm.recorded import check_before
from rllib_kd.evaluation.sources import open_source
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.offline.data import LabelledData, open_files
from rllib_kd.offline.job import LabelJob
from rllib_kd.offline.schema import DataError
from tests.algorithm.resumable import differ, weights
from tests.algorithm.weights import assert_equal_weights
from tests.conftest import make_q_module
from tests.offline.labelled import episodes, recorded_config, write
from tests.offline.recorded import label_here


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows"), rows)


def trained(algo, iterations=2):
    return [algo.train() for _ in range(iterations)][-1]


def test_a_student_without_an_environment_learns_resumes_and_is_loaded(build, folder, tmp_path):
    algo = build(recorded_config(folder, "cartpole"))
    first, last = algo.train()["distillation"], trained(algo, 20)["distillation"]
    assert last["teacher_agreement"] > max(0.8, first["teacher_agreement"])
    assert last["q_regret"] < first["q_regret"]
    assert (last["num_rows"], last["num_rows_held_out"]) == (2_850, 150)
    assert last["num_epochs"] == pytest.approx(last["num_gradient_steps_lifetime"] * 32 / 2_850)
    assert last["temperature"] > 0
    with pytest.raises(ValueError, match="learns from recorded rows without an environment"):
        algo.evaluate()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    resumed = DistillDQN.from_checkpoint(path)
    assert trained(algo)["distillation"]["temperature"] == trained(resumed)["distillation"]["temperature"]
    assert_equal_weights(weights(algo), weights(resumed))
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint" / "replay").iterdir())
    assert size < 20_000  # bytes: the files have the rows
    obs = torch.zeros(1, 4)
    student = open_source(algo.save_to_path(str(tmp_path / "student"))).network()
    torch.testing.assert_close(student.q_values(obs), algo.get_module().compute_q_values({"obs": obs})["qf_preds"])
    resumed.stop()


def test_rows_that_pass_by_continue_bit_by_bit_and_without_the_replay_are_read_again(build, folder, tmp_path):
    config = recorded_config(folder, "cartpole").training(replay_buffer_config={"capacity": 700, "alpha": 0.6})
    algo = build(config)
    trained(algo, 5)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    resumed = DistillDQN.from_checkpoint(path)
    trained(algo, 5)  # 640 rows
    trained(resumed, 5)
    assert_equal_weights(weights(algo), weights(resumed))
    shutil.rmtree(tmp_path / "checkpoint" / "replay")
    without = DistillDQN.from_checkpoint(path)
    trained(without)
    assert len(without.learner_group._learner.groups["default_policy"].replay) == 700
    resumed.stop()
    without.stop()


def test_a_gradient_step_is_that_of_an_online_run(build, folder, rows):
    """The same rows in the same order in the replay, and the same update."""
    algo = build(recorded_config(folder, "cartpole", held_out=0.0))
    list_of_updates = []
    learner = algo.learner_group._learner
    update = learner.update
    learner.update = lambda *args, **kwargs: list_of_updates.append(kwargs) or update(*args, **kwargs)
    algo.train()
    *fills, step = list_of_updates
    assert all(fill["num_gradient_steps"] == 0 and fill["kd_coeff"] == 0.0 for fill in fills)
    assert step["num_gradient_steps"] == 16  # 128 rows passed by, of which each is learned from 4 times
    replay = learner.groups["default_policy"].replay
    found = replay.gather(torch.arange(len(replay)), (Columns.OBS, "teacher_q"))
    order = np.lexsort(found["obs"].numpy().T), np.lexsort(rows["obs"].T)
    for name in found:
        np.testing.assert_array_equal(found[name].numpy()[order[0]], rows[name][order[1]])


def test_with_an_environment_it_is_evaluated_as_always(build, folder):
    config = recorded_config(folder, "cartpole").environment("CartPole-v1")
    config.evaluation(evaluation_interval=1, evaluation_duration=2).distillation(num_baseline_episodes=2)
    result = build(config).train()
    assert result["evaluation"]["env_runners"]["episode_return_mean"] > 0
    assert result["distillation"]["teacher_return"] > 100
    assert np.isfinite(result["distillation"]["return_ratio"])
    assert 0 < result["distillation"]["teacher_agreement"] <= 1


def test_td_learns_from_the_transitions_of_whole_episodes(build, folder):
    algo = build(recorded_config(folder, "cartpole", td_coeff=0.5).training(n_step=3))
    result = trained(algo)
    assert np.isfinite(result["learners"]["default_policy"]["td_loss"])


def test_families_restarts_and_trees(build, folder):
    students = {"small": {"fcnet_hiddens": [8]}, "tree": {"tree": {"max_leaf_nodes": 8}}}
    config = recorded_config(folder, "cartpole", students=students, restarts=3)
    config.rl_module(model_config={"fcnet_activation": "relu"})
    algo = build(config)
    found = trained(algo, 3)["distillation"]["students"]
    assert {"teacher_agreement", "q_regret"} <= found["small"].keys()
    assert found["tree"]["num_leaves"] > 1
    assert algo.get_module("tree") is not None  # of the copies the one with the least regret


def test_a_tree_grows_from_few_rows_and_from_all_of_them(build, rows, tmp_path):
    np.savez(tmp_path / "0.npz", **{name: column[:600] for name, column in rows.items()})
    config = recorded_config(str(tmp_path), "cartpole", student={"tree": {"max_leaf_nodes": 4}})
    algo = build(config.rl_module(model_config={}))
    assert trained(algo)["learners"]["default_policy"]["num_leaves"] > 1
    group = algo.learner_group._learner.groups["default_policy"]
    assert not group.trees.is_due(group.statistics.count, are_all=True)


def test_of_trees_alone_those_rows_are_learned_from_that_have_passed(build, folder):
    config = recorded_config(folder, "cartpole", student={"tree": {"max_leaf_nodes": 4}}).rl_module(model_config={})
    result = trained(build(config), 3)
    assert result["distillation"]["num_epochs"] == result["num_env_steps_sampled_lifetime"] / 2_850 > 0


def test_rows_without_labels_are_labelled_as_they_come(build, rows, tmp_path):
    np.savez(tmp_path / "0.npz", **{name: rows[name] for name in ("obs", "actions")})
    algo = build(recorded_config(str(tmp_path), "cartpole", feature_coeff=0.01))
    result = trained(algo)
    assert 0 < result["distillation"]["teacher_agreement"] <= 1
    replay = algo.learner_group._learner.groups["default_policy"].replay
    found = replay.gather(torch.arange(len(replay)), ("teacher_q", "teacher_features"))
    np.testing.assert_allclose(
        np.sort(found["teacher_q"].numpy()[:, 0]), np.sort(rows["teacher_q"][:2_850, 0]), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("shape", [(5, 5), (6, 7, 2), ()])
def test_boxes_that_become_vectors_are_vectors_in_replays_whether_labelled_or_not(tmp_path, shape):
    space = gym.spaces.Box(-99, 99, shape, np.int8)
    vectors = gym.spaces.Box(-np.inf, np.inf, (math.prod(shape),), np.float32)
    takes = Teacher(make_q_module(vectors)).for_space(space)
    obs = np.random.default_rng(0).integers(-99, 99, size=(20, *shape), dtype=np.int8)
    (tmp_path / "raw").mkdir()
    np.savez(tmp_path / "raw" / "0.npz", obs=obs)
    for before, after in (("raw", "labelled"), ("labelled", "again")):
        label_here(LabelJob(takes, str(tmp_path / before), str(tmp_path / after)))
    for name in ("raw", "labelled", "again"):
        config = recorded_config(str(tmp_path / name), takes).training(replay_buffer_config={"capacity": 99})
        check_before(config, {"default_policy": takes}, None)
        data = LabelledData(config)
        data.open(open_files(config), ("obs", "teacher_q"))
        data.meet(takes)
        columns = next(data.fill())[0]
        recorded = obs.reshape(20, -1).astype(np.float32)
        learned = np.concatenate([columns["obs"], data.held_out["obs"]])
        np.testing.assert_array_equal(np.unique(learned, axis=0), np.unique(recorded, axis=0))
        own = takes.q_values(torch.from_numpy(columns["obs"])).numpy()
        np.testing.assert_allclose(columns["teacher_q"], own, rtol=1e-4, atol=1e-4)


def test_first_weights_come_from_the_teacher(build, tmp_path):
    own = Teacher(make_q_module())
    algo = build(recorded_config(write(tmp_path, episodes(own, num_rows=600)), own, init="teacher"))
    assert algo.train()["distillation"]["teacher_agreement"] > 0.8


def test_steps_of_a_training_step_are_rllibs_setting(build, folder):
    config = recorded_config(folder, "cartpole").offline_data(dataset_num_iters_per_learner=5)
    config.reporting(min_sample_timesteps_per_iteration=0)
    assert build(config).train()["distillation"]["num_gradient_steps_lifetime"] == 5


@pytest.mark.slow
def test_several_learners_share_the_rows_and_stay_equal(build, folder, tmp_path):
    algo = build(recorded_config(folder, "cartpole").learners(num_learners=2))
    trained(algo)
    sizes = algo.learner_group.foreach_learner(lambda own: len(own.groups["default_policy"].replay))
    assert sum(size.get() for size in sizes) == 2_850
    modules = [each.get() for each in algo.learner_group.foreach_learner(lambda own: own.get_state("rl_module"))]
    one, other = (state["rl_module"]["default_policy"] for state in modules)
    assert_equal_weights(one, other)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    resumed = DistillDQN.from_checkpoint(path)
    before = weights(resumed)
    trained(resumed)
    assert differ(before, weights(resumed))
    resumed.stop()


@pytest.mark.slow
def test_images_whose_channels_come_first_and_parts_of_a_dict(build, tmp_path):
    images = gym.spaces.Box(0.0, 1.0, (16, 16, 2), np.float32)
    sees = Teacher(make_q_module(images, conv_filters=[[4, 4, 2], [8, 8, 1]], head_fcnet_hiddens=[16]))
    obs = np.random.default_rng(0).integers(256, size=(400, 2, 16, 16), dtype=np.uint8)
    labels = sees.q_values(torch.tensor(np.moveaxis(obs, 1, -1) / 255.0, dtype=torch.float32)).numpy()
    config = recorded_config(write(tmp_path / "images", {"obs": obs, "teacher_q": labels}), sees)
    config.rl_module(model_config={"conv_filters": [[2, 4, 2], [4, 8, 1]], "head_fcnet_hiddens": [8]})
    assert np.isfinite(trained(build(config))["distillation"]["q_regret"])

    space = gym.spaces.Dict({"a": gym.spaces.Discrete(2), "b": gym.spaces.Box(-1.0, 1.0, (2,), np.float32)})
    vectors = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    takes = Teacher(make_q_module(vectors)).for_space(space)
    obs = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    labels = takes.q_values(torch.tensor(obs)).numpy()
    config = recorded_config(write(tmp_path / "parts", {"obs": obs, "teacher_q": labels}), takes)
    assert np.isfinite(trained(build(config))["distillation"]["q_regret"])


# --- Refused before the work starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.env_runners(num_env_runners=2), "`num_env_runners`=2 is not supported with `input_`"),
        (lambda c: c.distillation(teacher=None), "`teacher` is None"),
        (lambda c: c.distillation(teacher_fraction=0.5), "`teacher_fraction`=0.5 is not supported with `input_`"),
        (lambda c: c.distillation(held_out=0.9), r"`held_out` must be in \[0, 0.5\]"),
        (lambda c: c.offline_data(output="/tmp/there"), "`output`='/tmp/there' is not supported"),
        (lambda c: c.offline_data(input_read_episodes=True), "`input_read_episodes`=True is not supported"),
        (lambda c: c.offline_data(dataset_num_iters_per_learner=0), "`dataset_num_iters_per_learner` must be"),
        (lambda c: c.offline_data(input_=[]), "`input_` must be a path or URI"),
        (lambda c: c.offline_data(input_=5), "'input_' cannot be 5: expected a list or a string"),
        (lambda c: c.evaluation(evaluation_interval=1), "Evaluations need an environment"),
        (lambda c: c.distillation(num_baseline_episodes=3), "Episodes need an environment"),
    ],
)
def test_what_cannot_be_combined_is_refused_at_once(folder, change, message):
    config = recorded_config(folder, "cartpole")
    with pytest.raises(ValueError, match=message):
        change(config).validate()


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = recorded_config("rows", "cartpole")
    assert config.input_ == str(tmp_path / "rows")
    assert config.offline_data(input_=["a", "s3://b/c"]).input_ == [str(tmp_path / "a"), "s3://b/c"]


def test_paths_of_a_filesystem_of_the_users_stay_as_they_are(rows, tmp_path):
    write(tmp_path / "bucket" / "rows", rows)
    files = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    config = recorded_config("bucket/rows", "cartpole").offline_data(input_="bucket/rows", input_filesystem=files)
    assert config.offline_data(input_="bucket/rows").validate() is None
    assert open_files(config).num_rows == len(rows["obs"])
    settings = {"input_": "bucket/rows", "input_filesystem": files, "teacher": "cartpole"}
    assert Experiment("x", "DistillDQN", settings=settings).checked().param_space.input_ == "bucket/rows"
    with pytest.raises(ValueError, match="`input_` must be a path like 'bucket/folder' with `input_filesystem` of S3"):
        recorded_config("bucket/rows", "cartpole").offline_data(input_filesystem="s3").validate()


def test_td_without_the_columns_of_episodes_names_the_first_that_is_missing(rows, teacher, tmp_path):
    folder = write(tmp_path, {name: rows[name] for name in ("obs", "teacher_q", "actions", "rewards")})
    with pytest.raises(DataError, match=r"0\.parquet', column 'eps_id': is missing, but `td_coeff`=1.0"):
        check_before(recorded_config(folder, teacher, td_coeff=1.0), {"default_policy": teacher}, None)


def test_columns_that_are_not_read_are_named_once_before_training(rows, teacher, tmp_path, capsys):
    np.savez(tmp_path / "0.npz", obs=rows["obs"], episode=rows["eps_id"].astype(str))
    for aside in (0.0, 0.0, 0.3):
        config = recorded_config(str(tmp_path), teacher)
        config.set_aside = aside
        check_before(config, {"default_policy": teacher}, None)
    assert capsys.readouterr().err.splitlines() == ["note: columns left out: episode."]


def test_rows_of_another_environment_are_refused(rows, teacher, folder):
    config = recorded_config(folder, teacher).environment("Acrobot-v1")
    spaces = make_q_module().observation_space, make_q_module().action_space
    check_before(config, {"default_policy": teacher}, spaces)
    env = gym.make("Acrobot-v1")
    with pytest.raises(DataError, match=r"column 'obs': has observations of the shape \[4\], but the environment"):
        check_before(config, {"default_policy": teacher}, (env.observation_space, env.action_space))


def test_bytes_where_the_environment_shows_floats_up_to_255_are_refused(rows, teacher, tmp_path):
    folder = write(tmp_path, {"obs": np.zeros((len(rows["obs"]), 16, 16, 3), np.uint8), "teacher_q": rows["teacher_q"]})
    spaces = (gym.spaces.Box(0, high, (16, 16, 3), dtype) for high, dtype in ((255, np.uint8), (255, np.float32)))
    same, other = ((space, make_q_module().action_space) for space in spaces)
    check_before(recorded_config(folder, teacher).environment("CartPole-v1"), {}, same)
    with pytest.raises(DataError, match=r"column 'obs': has images of bytes, which students take divided by 255, but"):
        check_before(recorded_config(folder, teacher).environment("CartPole-v1"), {}, other)


def test_labels_of_another_teacher_are_refused_by_their_fingerprint(rows, teacher, tmp_path):
    folder = write(tmp_path, rows, fingerprint="0" * 64, teacher="another.zip")
    with pytest.raises(DataError, match=r"'teacher_q': has labels of another teacher, 'another.zip' with the finger"):
        check_before(recorded_config(folder, teacher), {"default_policy": teacher}, None)
