"""Recording what EnvRunners visit: episodes, files, and a student that learns from them."""

import pickle

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rllib_kd import DistillDQN, load_teacher
from rllib_kd.offline.data import open_files
from rllib_kd.offline.labelled_files import LabelledFiles
from rllib_kd.offline.recording import Recorder
from rllib_kd.offline.rows import has_successor
from rllib_kd.offline.schema import to_columns
from tests.buckets import bucket_named
from tests.offline.labelled import recorded_config


def fragment(ends, *, first=0, labels=2, **changed):
    """Columns of two environments, of which each row's observation is its number."""
    ends = np.array(ends, dtype=bool)
    obs = (first + np.arange(ends.size).reshape(ends.shape)).astype(np.float32)
    columns = {
        "obs": np.repeat(obs[..., None], 4, -1),
        "teacher_q": np.zeros((*ends.shape, labels), np.float32),
        "actions": np.zeros(ends.shape, np.int64),
        "rewards": np.ones(ends.shape, np.float32),
        "terminateds": ends,
        "truncateds": np.zeros_like(ends),
    }
    resets = np.roll(ends, 1, axis=1)
    resets[:, 0] = changed.pop("ended_before", False)
    return columns | {"valid": ~resets} | changed


def recorded(folder):
    return to_columns(pq.read_table(folder))


def test_rows_of_an_episode_follow_each_other_over_fragments(tmp_path, teacher):
    recorder = Recorder(str(tmp_path), teacher, num_envs=2, env="CartPole-v1")
    first = fragment([[0, 1, 0, 0], [0, 0, 0, 0]])
    second = fragment([[0, 0, 0, 1], [1, 0, 0, 0]], first=8)
    recorder.add(first, np.zeros(2, bool), begins=True)
    recorder.add(second, np.zeros(2, bool), begins=False)
    recorder.write()
    (path,) = tmp_path.iterdir()
    found = recorded(path)
    assert found["obs"][:, 0].tolist() == [0, 1, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 14, 15]
    assert found["t"].tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    names = found["eps_id"].tolist()
    assert [len(set(names[:2])), len(set(names[2:7])), len(set(names[7:12])), len(set(names))] == [1, 1, 1, 4]
    assert has_successor(found).tolist() == [True] * 13 + [False]


def test_rows_that_are_unusable_are_left_out_and_break_no_episode(tmp_path, teacher):
    recorder = Recorder(str(tmp_path), teacher, num_envs=2)
    columns = fragment([[0, 0, 0], [0, 0, 0]])
    columns["valid"][0, 1] = False
    recorder.add(columns, np.zeros(2, bool), begins=True)
    recorder.write()
    found = recorded(tmp_path)
    assert found["t"].tolist() == [0, 2, 0, 1, 2]
    assert has_successor(found).tolist() == [False, False, True, True, False]


def test_new_episodes_after_a_reset_of_all_have_names_of_their_own(tmp_path, teacher):
    recorder = Recorder(str(tmp_path), teacher, num_envs=2)
    for begins in (True, True):
        recorder.add(fragment([[0, 0], [0, 0]]), np.zeros(2, bool), begins=begins)
    recorder.write()
    found = recorded(tmp_path)
    assert len(set(found["eps_id"])) == 4
    assert found["t"].tolist() == [0, 1, 0, 1] * 2


@pytest.mark.parametrize("limit", [{"max_rows": 8}, {"max_bytes": 100}])
def test_a_file_is_written_when_there_are_enough_rows(tmp_path, teacher, limit):
    recorder = Recorder(str(tmp_path), teacher, num_envs=2, **limit)
    for _ in range(3):
        recorder.add(fragment([[0] * 4, [0] * 4]), np.zeros(2, bool), begins=False)
    recorder.write()
    assert len(list(tmp_path.iterdir())) == 3


def test_rows_that_could_not_be_written_are_written_with_the_next_ones(tmp_path, teacher, monkeypatch):
    recorder = Recorder(str(tmp_path), teacher, num_envs=2, max_rows=4)

    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("rllib_kd.offline.recording.write_file", fail)
    with pytest.raises(OSError, match="No space left"):
        recorder.add(fragment([[0, 0], [0, 0]]), np.zeros(2, bool), begins=True)
    monkeypatch.undo()
    recorder.add(fragment([[0, 0], [0, 0]], first=4), np.zeros(2, bool), begins=False)
    assert recorded(tmp_path)["obs"][:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    recorder.add(fragment([[0], [0]], first=8), np.zeros(2, bool), begins=False)  # which is no file yet
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_of_no_rows(tmp_path, teacher):
    recorder = Recorder(str(tmp_path / "none"), teacher, num_envs=2)
    recorder.write()
    recorder.add(fragment([[0], [0]], ended_before=True), np.ones(2, bool), begins=False)
    recorder.write()
    assert not (tmp_path / "none").exists()


def test_a_resumed_recorder_overwrites_no_file(tmp_path, teacher):
    recorder = Recorder(str(tmp_path), teacher, num_envs=2)
    recorder.add(fragment([[0], [0]]), np.zeros(2, bool), begins=True)
    recorder.write()
    resumed = pickle.loads(pickle.dumps(recorder))
    for each in (recorder, resumed):
        each.add(fragment([[0], [0]]), np.zeros(2, bool), begins=False)
        each.write()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert sorted(t for file in files for t in recorded(file)["t"].tolist()) == [0, 0, 1, 1, 1, 1]


def test_the_schema_names_teacher_and_environment(tmp_path, teacher):
    recorder = Recorder(str(tmp_path), teacher, num_envs=2, env="CartPole-v1")
    mask = np.ones((2, 1, 2), bool)
    recorder.add(fragment([[0], [0]], action_mask=mask), np.zeros(2, bool), begins=True)
    recorder.write()
    schema = LabelledFiles(str(tmp_path)).schema
    assert schema.env == "CartPole-v1"
    assert schema.teacher == teacher.source
    assert len(schema.fingerprint) == 80
    assert schema.recorded == (
        "actions",
        "rewards",
        "terminateds",
        "truncateds",
        "eps_id",
        "t",
        "action_mask",
    )


def test_a_run_records_and_another_student_learns_from_it(build, cartpole_config, tmp_path):
    config = cartpole_config.distillation(teacher="cartpole").offline_data(output=str(tmp_path / "rows"))
    algo = build(config)
    for _ in range(2):
        algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    resumed = DistillDQN.from_checkpoint(path)
    for each in (algo, resumed):
        each.train()
        each.stop()
    files = LabelledFiles(str(tmp_path / "rows"))
    steps = algo.num_env_steps
    again = steps - 2 * 64  # of the iteration that both have made
    assert files.num_rows == steps + again
    found = recorded(tmp_path / "rows")
    own = load_teacher("cartpole").q_values(torch.tensor(found["obs"])).numpy()
    np.testing.assert_allclose(found["teacher_q"], own, rtol=1e-4, atol=1e-4)
    env = gym.make("CartPole-v1")
    follow = np.flatnonzero(has_successor(found) & ~found["terminateds"])[:20]
    for row in follow:  # the next row is where the recorded action leads
        env.reset()
        env.unwrapped.state = found["obs"][row].astype(np.float64)
        obs = env.step(int(found["actions"][row]))[0]
        np.testing.assert_allclose(obs, found["obs"][row + 1], atol=1e-4)
    student = build(recorded_config(str(tmp_path / "rows"), "cartpole", td_coeff=0.1))
    assert np.isfinite(student.train()["distillation"]["teacher_agreement"])


@pytest.mark.slow
def test_rows_travel_through_s3(teacher):
    with bucket_named("lake") as (_, options):
        uri = f"s3://lake/rows{options}"
        recorder = Recorder(uri, teacher, num_envs=2, max_rows=4)
        for _ in range(2):
            recorder.add(fragment([[0, 0], [0, 0]]), np.zeros(2, bool), begins=False)
        config = recorded_config(uri, teacher, held_out=0.0)
        assert config.input_ == uri
        files = open_files(config)
        assert (files.num_rows, len(files.chunks)) == (8, 2)
        assert sum(len(piece["obs"]) for chunk in files.chunks for piece in files.read(chunk, ("obs",))) == 8


@pytest.mark.slow
def test_remote_env_runners_write_what_they_have_at_the_end(build, cartpole_config, tmp_path):
    config = cartpole_config.env_runners(num_env_runners=2).offline_data(output=str(tmp_path / "rows"))
    algo = build(config)
    algo.train()
    algo.stop()
    assert LabelledFiles(str(tmp_path / "rows")).num_rows >= 64
    assert len({name.name.split("-")[0] for name in (tmp_path / "rows").iterdir()}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.distillation(teacher=None, td_coeff=1.0), "`teacher`=None is not supported with `output`"),
        (lambda c: c.offline_data(output_write_episodes=True), "`output_write_episodes`=True is not supported"),
        (lambda c: c.offline_data(output_max_rows_per_file=0), "`output_max_rows_per_file` must be an integer"),
        (lambda c: c.env_runners(env_to_module_connector=lambda **_: None), "`env_to_module_connector`"),
        (lambda c: c.offline_data(output=""), "`output` must be the path or URI"),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_once(cartpole_config, change, message):
    with pytest.raises(ValueError, match=message):
        change(cartpole_config.offline_data(output="/tmp/rows")).validate()
