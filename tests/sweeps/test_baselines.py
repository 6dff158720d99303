"""Teacher and random policy play before a sweep begins, and not again when it is resumed."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from ray import tune

from rllib_kd import Sweep
from rllib_kd.experiment.snapshots import SNAPSHOT
from rllib_kd.sweeps import sweep as module_of_sweep
from rllib_kd.sweeps.baselines import Baselines, keep_baselines, kept_baselines

BASELINES = Baselines([500.0, 499.9999999999999], [20.0, 22.0], 0.1234567890123456)


class FarEnoughError(Exception):
    pass


def stops(*args, **kwargs):
    raise FarEnoughError


def test_a_resumed_sweep_compares_with_the_episodes_that_it_began_with(monkeypatch, tmp_path):
    """Else the range of a temperature would be another one if no seed determines an episode."""
    sweep = Sweep(
        "cartpole",
        "CartPole-v1",
        search="random",
        space=lambda teacher, median_gap, **figures: {"temperature": tune.uniform(median_gap, 1.0)},
        storage_path=str(tmp_path),
    )
    judged = []
    monkeypatch.setattr(module_of_sweep, "connection", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(module_of_sweep.tune, "with_parameters", lambda trainable, task, **_: judged.append(task))
    monkeypatch.setattr(module_of_sweep.tune, "with_resources", lambda *args: None)
    monkeypatch.setattr(Sweep, "_tuner", stops)
    monkeypatch.setattr(module_of_sweep, "put_back", stops)
    monkeypatch.setattr(module_of_sweep, "baselines_of", lambda *args: BASELINES)
    with pytest.raises(FarEnoughError):
        sweep.run()
    (Path(sweep.path) / SNAPSHOT).touch()
    monkeypatch.setattr(module_of_sweep, "baselines_of", lambda *args: pytest.fail("played again"))
    with pytest.raises(FarEnoughError):
        sweep.run(resume=True)
    begun, resumed = judged
    assert (resumed.teacher_return, resumed.random_return) == (begun.teacher_return, begun.random_return)
    assert kept_baselines(sweep.path) == BASELINES


def test_a_sweep_of_a_version_that_kept_no_episodes_plays_them(tmp_path):
    assert kept_baselines(str(tmp_path)) is None


def test_a_damaged_file_is_named(tmp_path):
    keep_baselines(str(tmp_path), BASELINES)
    (tmp_path / "baselines.json").write_text("{}")
    with pytest.raises(ValueError, match=r"baselines.json' is damaged: .* Start a new sweep, with another name"):
        kept_baselines(str(tmp_path))
