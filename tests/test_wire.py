"""What is sent between processes."""

from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import OutOfDiskError

from rllib_kd import wire

ENV_RUNNER = SimpleNamespace(worker_index=1, config=SimpleNamespace(num_learners=0))


@pytest.mark.parametrize("num_failures", [0, 2])
def test_a_sample_waits_for_room_where_ray_does_not_spill(monkeypatch, num_failures):
    failures = [OutOfDiskError("full")] * num_failures

    def put(columns):
        if failures:
            raise failures.pop()
        return f"reference to {columns}"

    monkeypatch.setattr(ray, "put", put)
    assert wire.hand_over(ENV_RUNNER, {"obs": 1}) == "reference to {'obs': 1}"
    assert not failures


def test_it_does_not_wait_for_ever(monkeypatch):
    def put(columns):
        raise OutOfDiskError("full")

    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(wire, "_SECONDS_FOR_ROOM", 0.2)
    with pytest.raises(OutOfDiskError):
        wire.hand_over(ENV_RUNNER, {"obs": 1})


def test_an_env_runner_in_the_drivers_process_does_not_wait(monkeypatch):
    def put(columns):
        tries.append(columns)
        raise OutOfDiskError("full")

    tries: list[object] = []
    monkeypatch.setattr(ray, "put", put)
    here = SimpleNamespace(worker_index=0, config=SimpleNamespace(num_learners=1))
    with pytest.raises(OutOfDiskError):
        wire.hand_over(here, {"obs": 1})
    assert len(tries) == 1
