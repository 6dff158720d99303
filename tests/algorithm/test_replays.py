"""The replay in checkpoints: a file for each Learner, in as many Learners as there are when it is restored."""

from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from ray.rllib.algorithms.dqn import DQN

from rllib_kd import DistillDQN
from tests.algorithm.resumable import resumable_config, td_config
from tests.algorithm.weights import assert_equal_weights


def rows_by_learner(algo):
    """The observations in the replay of each Learner."""
    results = algo.learner_group.foreach_learner(lambda own: own.replay_arrays()["default_policy/columns/obs"])
    return [result.get() for result in results]


def as_set(obs):
    return {row.tobytes() for row in obs}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2)])
def test_each_learner_has_a_file_and_their_number_may_change(build, tmp_path, before, after, caplog):
    algo = build(resumable_config().learners(num_learners=before).training(replay_buffer_config={"capacity": 1_000}))
    algo.train()
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    shards = rows_by_learner(algo)
    files = sorted(file.name for file in (tmp_path / "checkpoint" / "replay").iterdir())
    assert files == [f"{index}.npz" for index in range(max(1, before))]
    other = build(resumable_config().learners(num_learners=after).training(replay_buffer_config={"capacity": 1_000}))
    other.restore_from_path(path)
    restored = rows_by_learner(other)
    if before == after:
        assert not as_set(shards[0]) & as_set(shards[1])
        for ours, theirs in zip(shards, restored, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    elif after == 0:
        assert as_set(restored[0]) == as_set(shards[0]) | as_set(shards[1])
    else:
        assert as_set(restored[0]) == as_set(restored[1]) == as_set(shards[0])
    assert ("rows are redistributed" in caplog.text) == (before != after)
    steps = other.num_gradient_steps
    other.train()
    assert other.num_gradient_steps > steps


def test_a_flag_leaves_the_replay_out(build, tmp_path):
    algo = build(resumable_config().training(store_buffer_in_checkpoints=False))
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint" / "replay").exists()
    resumed = DistillDQN.from_checkpoint(path)
    assert len(resumed.learner_group._learner.groups["default_policy"].replay) == 0
    assert resumed._replay_ratio.get_state()["steps_since_start"] == 0  # it is filled first, as at the start
    resumed.train()
    resumed.stop()


def test_a_replay_without_what_is_learned_now_is_left_out_with_a_word(build, tmp_path, caplog):
    path = build(resumable_config())
    path.train()
    path = path.save_to_path(str(tmp_path / "checkpoint"))
    other = build(resumable_config().distillation(td_coeff=1.0))
    other.restore_from_path(path)
    assert "lacks columns that are needed now" in caplog.text
    assert len(other.learner_group._learner.groups["default_policy"].replay) == 0
    other.train()


def test_a_replay_with_more_than_is_learned_now_is_taken(build, tmp_path):
    algo = build(td_config())
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    other = build(resumable_config())
    other.restore_from_path(path)
    replay = other.learner_group._learner.groups["default_policy"].replay
    assert set(replay._columns) == {"obs", "teacher_q", "valid"}
    other.train()


def test_a_checkpoint_may_lie_on_another_filesystem(build, tmp_path, monkeypatch):
    """It is written and read on this machine, where RLlib looks for what it has copied from a Learner's node."""
    folders = []

    def on_this_machine(method):
        def noted(self, path, **kwargs):
            folders.append(Path(path))
            assert "filesystem" not in kwargs
            return method(self, path, **kwargs)

        return noted

    for name in ("save_to_path", "restore_from_path"):
        monkeypatch.setattr(DQN, name, on_this_machine(getattr(DQN, name)))
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    algo = build(resumable_config())
    algo.train()
    (tmp_path / "bucket/checkpoint/replay").mkdir(parents=True)
    for file in ("class_and_ctor_args.pkl", "replay/0.npz", "replay/1.npz"):  # of an older run with two Learners
        (tmp_path / "bucket/checkpoint" / file).write_bytes(b"older")
    assert algo.save_to_path("bucket/checkpoint", filesystem=filesystem) == "bucket/checkpoint"
    assert [file.name for file in (tmp_path / "bucket/checkpoint/replay").iterdir()] == ["0.npz"]
    assert algo.save_to_path("mock:///bucket/checkpoint") == "mock:///bucket/checkpoint"
    resumed = build(resumable_config())
    resumed.restore_from_path("bucket/checkpoint", filesystem=filesystem)
    assert [(folder.is_absolute(), folder.exists()) for folder in folders] == [(True, False)] * 3
    replays = [each.learner_group._learner.replay_arrays() for each in (algo, resumed)]
    assert_equal_weights(*replays)
