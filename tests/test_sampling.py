"""Requests that are under way, against EnvRunners that sample when they are told to."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.actor_manager import FaultAwareApply

from rllib_kd import DistillDQNConfig
from rllib_kd.sampling import Sample, SampleRequests

LIMIT = 2  # requests under way


@ray.remote(num_cpus=0, max_restarts=-1)
class Runner(FaultAwareApply):
    """Answers at once, or as soon as a file is there."""

    def __init__(self, worker_index: int, gate: str | None):
        self.config = SimpleNamespace(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0)
        self.worker_index = worker_index
        self.gate = gate
        self.count = 0

    def set_state_and_sample(self, state: dict, names: tuple) -> Sample:
        while self.gate is not None and not Path(self.gate).exists():
            time.sleep(0.01)
        self.count += 1
        return Sample(self.worker_index, [], {"names": names}, state["weights_seq_no"], {})


@pytest.fixture
def make_requests(cluster):
    groups = []

    def make(*gates: str | None, **settings) -> tuple[EnvRunnerGroup, SampleRequests]:
        """A group of one EnvRunner for each gate; None: always open."""
        config = DistillDQNConfig().environment("CartPole-v1")
        config.env_runners(max_requests_in_flight_per_env_runner=LIMIT)
        group = EnvRunnerGroup(config=config, local_env_runner=False, _setup=False)
        group._remote_config = config
        runners = [Runner.remote(index, gate and str(gate)) for index, gate in enumerate(gates, start=1)]
        group._worker_manager.add_actors(runners)
        groups.append(group)
        return group, SampleRequests(group, **({"max_staleness": None, "timeout_s": 60.0} | settings))

    yield make
    for group in groups:
        group._worker_manager.clear()


def send(requests, seq_no, **kwargs):
    requests.send({"state": {"weights_seq_no": seq_no}, "names": ("obs",)}, weights_seq_no=seq_no, **kwargs)


def of(samples):
    return [sample.worker_index for sample in samples]


def wait_for(what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.05)
    return value


def counts(group):
    """Samples made so far, by EnvRunner: asked after all that is under way."""
    return group.foreach_env_runner(lambda runner: runner.count, local_env_runner=False)


def test_never_more_than_the_limit_are_under_way(make_requests):
    group, requests = make_requests(None, None)
    for _ in range(5):
        send(requests, 0)
        assert len(requests) == 2 * LIMIT
    assert counts(group) == [LIMIT, LIMIT]  # done, but nobody has fetched them: sampling waits
    send(requests, 0)
    assert counts(group) == [LIMIT, LIMIT]
    assert of(requests.fetch(weights_seq_no=0)) == [1, 1, 2, 2]
    assert len(requests) == 0
    send(requests, 1)
    assert counts(group) == [2 * LIMIT, 2 * LIMIT]


def test_only_those_without_a_request_are_asked_when_told_so(make_requests, tmp_path):
    group, requests = make_requests(None, tmp_path / "gate")
    send(requests, 0, only_to_idle=True)
    assert len(requests) == 2
    assert of(requests.fetch(weights_seq_no=0)) == [1]
    send(requests, 1, only_to_idle=True)
    assert len(requests) == 2
    (tmp_path / "gate").touch()
    assert counts(group) == [2, 1]


def test_each_request_carries_what_it_was_sent_with(make_requests):
    _, requests = make_requests(None)
    send(requests, 7)
    (first, *_) = requests.fetch(weights_seq_no=7)
    assert first.metrics == {"names": ("obs",)}
    assert first.weights_seq_no == 7


def test_a_slow_env_runner_keeps_nobody_waiting(make_requests, tmp_path):
    group, requests = make_requests(None, tmp_path / "gate")
    for seq_no in range(20):
        send(requests, seq_no)
        assert set(of(requests.fetch(weights_seq_no=seq_no))) == {1}
    (tmp_path / "gate").touch()
    counts(group)
    late = [sample for sample in requests.fetch(weights_seq_no=20) if sample.worker_index == 2]
    assert [sample.weights_seq_no for sample in late] == [0, 0]  # two were under way all the time, and no more


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_whoever_would_be_too_stale_is_waited_for(make_requests, tmp_path, max_staleness):
    _, requests = make_requests(None, tmp_path / "gate", max_staleness=max_staleness)
    send(requests, 0)
    for seq_no in range(max_staleness):
        assert set(of(requests.fetch(weights_seq_no=seq_no))) == {1}
        send(requests, seq_no + 1)
    fetched = []
    thread = threading.Thread(target=lambda: fetched.append(requests.fetch(weights_seq_no=max_staleness)))
    thread.start()
    thread.join(timeout=1.0)
    assert thread.is_alive()
    (tmp_path / "gate").touch()
    thread.join()
    late = [sample for sample in fetched[0] if sample.worker_index == 2]
    assert late
    assert all(sample.weights_seq_no == 0 for sample in late[:LIMIT])


def test_one_that_hangs_is_waited_for_once_and_then_left_out(make_requests, tmp_path, caplog):
    group, requests = make_requests(None, tmp_path / "gate", max_staleness=0, timeout_s=5.0)
    assert counts(group) == [0, 0]  # they have started
    send(requests, 0, only_to_idle=True)
    assert of(requests.fetch(weights_seq_no=0)) == [1]
    assert "1 samples have not come within sample_timeout_s=5.0" in caplog.text
    caplog.clear()
    send(requests, 1, only_to_idle=True)
    assert of(requests.fetch(weights_seq_no=1)) == [1]
    assert not caplog.text
    (tmp_path / "gate").touch()
    send(requests, 2, only_to_idle=True)
    counts(group)
    assert of(requests.fetch(weights_seq_no=2)) == [1]  # the other's comes from a student of long ago
    send(requests, 3, only_to_idle=True)
    assert of(requests.fetch(weights_seq_no=3)) == [1, 2]


def pid_of(group, worker_index):
    (pid,) = group.foreach_env_runner(
        lambda runner: os.getpid(), remote_worker_ids=[worker_index], local_env_runner=False
    )
    return pid


def test_one_that_is_killed_in_mid_flight_comes_back(make_requests, tmp_path):
    group, requests = make_requests(None, tmp_path / "gate")
    pid = pid_of(group, 2)
    send(requests, 0)
    os.kill(pid, signal.SIGKILL)
    seq_no = 0

    def gone():
        nonlocal seq_no
        assert set(of(requests.fetch(weights_seq_no=seq_no))) <= {1}
        seq_no += 1
        send(requests, seq_no)
        return group.healthy_env_runner_ids() == [1]

    wait_for(gone)
    assert len(requests) <= LIMIT  # nothing is expected from the dead
    wait_for(requests.ping_the_dead)
    assert group.probe_unhealthy_env_runners() == [2]
    (tmp_path / "gate").touch()
    send(requests, 100)
    counts(group)
    late = [sample for sample in requests.fetch(weights_seq_no=100) if sample.worker_index == 2]
    assert [sample.weights_seq_no for sample in late] == [100, 100]


def test_when_nobody_is_left_there_are_no_samples(make_requests, tmp_path):
    group, requests = make_requests(tmp_path / "gate")
    pid = pid_of(group, 1)
    send(requests, 0)
    os.kill(pid, signal.SIGKILL)
    assert requests.fetch(weights_seq_no=0) == []
    send(requests, 0)
    assert len(requests) == 0


def test_what_is_forgotten_is_not_fetched(make_requests):
    group, requests = make_requests(None, None)
    send(requests, 0)
    requests.forget()
    assert len(requests) == 0
    send(requests, 1)
    counts(group)
    assert {sample.weights_seq_no for sample in requests.fetch(weights_seq_no=1)} == {1}
