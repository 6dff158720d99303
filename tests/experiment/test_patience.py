"""A run that is to end, while an iteration does not end."""

import signal
import time
from types import SimpleNamespace

import pytest

from rllib_kd.experiment.interrupts import SaveOnInterrupt, saving_on_interrupt


def trials(*, checkpoint=None):
    place = None
    if checkpoint is not None:
        place = SimpleNamespace(path=checkpoint, filesystem=SimpleNamespace(type_name="local"))
    return [SimpleNamespace(trial_id="a", status="RUNNING", checkpoint=place)]


@pytest.mark.parametrize("checkpoint", [None, "/results/checkpoint_000004"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_iteration_that_does_not_end_is_waited_for_only_so_long(monkeypatch, capsys, number, checkpoint):
    monkeypatch.setattr("rllib_kd.experiment.interrupts._PATIENCE", 0.2)
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    callback, running = SaveOnInterrupt(), trials(checkpoint=checkpoint)
    callback.on_trial_result(1, running, running[0], {})
    last = f"the last checkpoint is {checkpoint}" if checkpoint else "there is no earlier checkpoint"
    try:
        with saving_on_interrupt():
            callback.on_step_end(1, running)
            signal.raise_signal(number)
            callback.on_step_end(1, running)
            said = capsys.readouterr().err
            assert "stopping: a checkpoint will be saved after this iteration, if it ends within 0.2 s; " in said
            assert last in said
            time.sleep(0.3)
            with pytest.raises(SystemExit) as exit_:
                callback.on_step_end(1, running)
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert exit_.value.code == 1
    assert "the iteration did not end within 0.2 s of the signal, so nothing more is saved: " in (
        said := capsys.readouterr().err
    )
    assert last in said


def test_after_ctrl_c_an_iteration_is_waited_for_without_limit(monkeypatch, capsys):
    monkeypatch.setattr("rllib_kd.experiment.interrupts._PATIENCE", 0.0)
    callback, running = SaveOnInterrupt(), trials()
    callback.on_trial_result(1, running, running[0], {})
    with saving_on_interrupt():
        signal.raise_signal(signal.SIGINT)
        for _ in range(3):
            callback.on_step_end(1, running)
    said = "stopping: a checkpoint will be saved after this iteration. Ctrl-C again ends at once.\n"
    assert capsys.readouterr().err == said
