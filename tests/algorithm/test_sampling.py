"""Requests that are under way, against EnvRunners that sample when they are told to."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.actor_manager import FaultAwareApply

from rllib_kd import DistillDQNConfig
from rllib_kd.algorithm import answers as answers_module
from rllib_kd.algorithm.answers import call_all
from rllib_kd.algorithm.sampling import SampleRequests
from rllib_kd.env_runner.explaining import ExplainsFailures
from rllib_kd.environments.failures import EnvFailedError, SamplingFailedError
from rllib_kd.wire import Sample, pack_weights
from tests.background import in_background, wait_for

LIMIT = 2  # requests under way


@ray.remote(num_cpus=0, max_restarts=-1)
class Runner(ExplainsFailures, FaultAwareApply):
    """Answers as soon as a file is there; `open_gate` always is. Its environment raises where the gate is "raise"."""

    def __init__(self, worker_index: int, open_gate: str):
        self.config = SimpleNamespace(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0)
        self.worker_index = worker_index
        self.start(open_gate)

    def start(self, gate: str) -> None:
        self.gate = Path(gate)
        self.count = 0

    def set_state_and_sample(self, state: dict, names: tuple) -> Sample:
        if self.gate.name == "raise":
            raise EnvFailedError("The environment 'X' raised in step(): no licence")
        while not self.gate.exists():
            time.sleep(0.01)
        self.count += 1
        return Sample(self.worker_index, [], {"names": names}, state["weights_seq_no"], {})


@pytest.fixture(scope="module")
def group(cluster):
    """Two EnvRunners."""
    config = DistillDQNConfig().environment("CartPole-v1")
    config.env_runners(max_requests_in_flight_per_env_runner=LIMIT)
    group = EnvRunnerGroup(config=config, local_env_runner=False, _setup=False)
    group._remote_config = config
    group._worker_manager.add_actors([Runner.remote(index, __file__) for index in (1, 2)])
    yield group
    group._worker_manager.clear()


@pytest.fixture
def make_requests(group, tmp_path):
    gate = tmp_path / "gate"

    def make(*, open_gates: int, **settings) -> SampleRequests:
        """Requests to both EnvRunners; the second answers when the gate is opened, unless that is open, too."""
        wait_until_all_are_back(group)
        for index in (1, 2):
            path = str(gate if index > open_gates else __file__)
            group.foreach_env_runner(
                lambda runner, path=path: runner.start(path), remote_worker_ids=[index], local_env_runner=False
            )
        return SampleRequests(group, **({"max_staleness": None, "timeout_s": 300.0} | settings))

    yield make
    gate.touch()
    SampleRequests(group, max_staleness=None, timeout_s=None).forget()


def send(requests, seq_no, **kwargs):
    requests.send({"state": {"weights_seq_no": seq_no}, "names": ("obs",)}, weights_seq_no=seq_no, **kwargs)


def of(samples):
    return [sample.worker_index for sample in samples]


def wait_until_all_are_back(group):
    """Until both answer. They restart one after the other, so that a probe may bring back one of them alone."""

    def are_back():
        group.probe_unhealthy_env_runners(10.0)
        return group.num_healthy_remote_workers() == 2

    wait_for(are_back)


def counts(group):
    """Samples made so far, by EnvRunner: asked after all that is under way."""
    return group.foreach_env_runner(lambda runner: runner.count, local_env_runner=False)


def test_never_more_than_the_limit_are_under_way(group, make_requests):
    requests = make_requests(open_gates=2)
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


def test_only_those_without_a_request_are_asked_when_told_so(group, make_requests, tmp_path):
    requests = make_requests(open_gates=1)
    send(requests, 0, only_to_idle=True)
    assert len(requests) == 2
    assert of(requests.fetch(weights_seq_no=0)) == [1]
    send(requests, 1, only_to_idle=True)
    assert len(requests) == 2
    (tmp_path / "gate").touch()
    assert counts(group) == [2, 1]


def test_each_request_carries_what_it_was_sent_with(group, make_requests):
    requests = make_requests(open_gates=2)
    send(requests, 7)
    (first, *_) = requests.fetch(weights_seq_no=7)
    assert first.metrics == {"names": ("obs",)}
    assert first.weights_seq_no == 7


def test_a_slow_env_runner_keeps_nobody_waiting(group, make_requests, tmp_path):
    requests = make_requests(open_gates=1)
    for seq_no in range(20):
        send(requests, seq_no)
        assert set(of(requests.fetch(weights_seq_no=seq_no))) == {1}
    (tmp_path / "gate").touch()
    counts(group)
    late = [sample for sample in requests.fetch(weights_seq_no=20) if sample.worker_index == 2]
    assert [sample.weights_seq_no for sample in late] == [0, 0]  # two were under way all the time, and no more


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_whoever_would_be_too_stale_is_waited_for(group, make_requests, tmp_path, max_staleness):
    requests = make_requests(open_gates=1, max_staleness=max_staleness)
    send(requests, 0)
    for seq_no in range(max_staleness):
        assert set(of(requests.fetch(weights_seq_no=seq_no))) == {1}
        send(requests, seq_no + 1)
    fetched = in_background(lambda: requests.fetch(weights_seq_no=max_staleness))
    time.sleep(0.5)
    assert not fetched.done()
    (tmp_path / "gate").touch()
    late = [sample for sample in fetched.result(timeout=300) if sample.worker_index == 2]
    assert late
    assert all(sample.weights_seq_no == 0 for sample in late[:LIMIT])


def answers(group, worker_index):
    """Until this one has made the samples that it was asked for."""
    group.foreach_env_runner(lambda runner: runner.count, remote_worker_ids=[worker_index], local_env_runner=False)


def test_one_that_hangs_is_waited_for_once_and_then_left_out(group, make_requests, tmp_path, caplog):
    requests = make_requests(open_gates=1, max_staleness=0, timeout_s=1.0)
    send(requests, 0, only_to_idle=True)
    answers(group, 1)
    assert of(requests.fetch(weights_seq_no=0)) == [1]
    assert "1 samples did not arrive within sample_timeout_s=1.0" in caplog.text
    caplog.clear()
    send(requests, 1, only_to_idle=True)
    answers(group, 1)
    assert of(requests.fetch(weights_seq_no=1)) == [1]
    assert not caplog.text
    (tmp_path / "gate").touch()
    send(requests, 2, only_to_idle=True)
    counts(group)
    assert of(requests.fetch(weights_seq_no=2)) == [1]  # the other's comes from a student of long ago
    send(requests, 3, only_to_idle=True)
    counts(group)
    assert of(requests.fetch(weights_seq_no=3)) == [1, 2]


def pid_of(group, worker_index):
    (pid,) = group.foreach_env_runner(
        lambda runner: os.getpid(), remote_worker_ids=[worker_index], local_env_runner=False
    )
    return pid


@pytest.mark.slow
def test_one_that_is_killed_in_mid_flight_comes_back(group, make_requests, tmp_path):
    requests = make_requests(open_gates=1)
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


@pytest.mark.slow
def test_when_nobody_is_left_there_are_no_samples(group, make_requests, tmp_path):
    requests = make_requests(open_gates=0)
    pids = [pid_of(group, index) for index in (1, 2)]
    send(requests, 0)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert requests.fetch(weights_seq_no=0) == []
    send(requests, 0)
    assert len(requests) == 0


def test_what_is_forgotten_is_not_fetched(group, make_requests):
    requests = make_requests(open_gates=2)
    send(requests, 0)
    requests.forget()
    assert len(requests) == 0
    send(requests, 1)
    counts(group)
    assert {sample.weights_seq_no for sample in requests.fetch(weights_seq_no=1)} == {1}


@pytest.mark.parametrize(("width", "is_stored"), [(100, False), (30_000, True)])
def test_large_weights_go_by_reference(cluster, width, is_stored):
    weights = {"default_policy": {"layer": np.ones(width, np.float32)}}
    packed = pack_weights(weights)
    assert isinstance(packed, ray.ObjectRef) == is_stored
    np.testing.assert_equal(ray.get(packed) if is_stored else packed, weights)


def let_raise(group, *indices):
    group.foreach_env_runner(
        lambda runner: runner.start("raise"), remote_worker_ids=list(indices), local_env_runner=False
    )


def test_an_environment_that_fails_everywhere_at_once_is_an_error_with_its_reason(group, make_requests):
    requests = make_requests(open_gates=2)
    let_raise(group, 1, 2)
    send(requests, 0)
    with pytest.raises(EnvFailedError, match="no licence"):
        wait_for(lambda: requests.fetch(weights_seq_no=0))


@pytest.mark.slow
def test_an_environment_that_fails_somewhere_is_a_warning_with_its_reason(group, make_requests, caplog):
    requests = make_requests(open_gates=2)
    let_raise(group, 1)
    send(requests, 0)
    assert set(of(requests.fetch(weights_seq_no=0))) <= {2}
    wait_for(lambda: (requests.fetch(weights_seq_no=0) and "EnvRunner 1 failed" in caplog.text) or send(requests, 0))
    assert (
        "EnvRunner 1 failed. It is restarted if fault_tolerance() allows: The environment 'X' raised in step()"
        in caplog.text
    )
    # It is RLlib that ends and restarts it.
    wait_until_all_are_back(group)


@pytest.mark.slow
def test_an_environment_that_fails_everywhere_again_and_again_is_an_error(group, make_requests):
    requests = make_requests(open_gates=2)
    send(requests, 0)
    while len(requests):  # all samples that are under way
        requests.fetch(weights_seq_no=0)
    failure = EnvFailedError("no licence")
    for index in (1, 2):
        requests._num_failures[index] = 1  # once each, and restarted since
        requests._failures[index] = failure
    let_raise(group, 1, 2)
    send(requests, 0)
    with pytest.raises(EnvFailedError, match="no licence"):
        wait_for(lambda: requests.fetch(weights_seq_no=0))


@pytest.mark.slow
def test_where_failures_are_not_to_be_tolerated_the_reason_is_an_error(group, make_requests, monkeypatch):
    requests = make_requests(open_gates=2)
    monkeypatch.setattr(group, "_ignore_ray_errors_on_env_runners", False)
    let_raise(group, 1)
    send(requests, 0)
    with pytest.raises(EnvFailedError, match="no licence"):
        wait_for(lambda: 1 in of(requests.fetch(weights_seq_no=0)))
    monkeypatch.undo()
    wait_until_all_are_back(group)


@pytest.mark.parametrize("reason", ["no licence", None])
def test_when_all_are_dead_and_none_is_restarted_it_is_an_error(cluster, monkeypatch, reason):
    monkeypatch.setattr(answers_module, "_SECONDS_LOST", 0.5)
    group = EnvRunnerGroup(config=DistillDQNConfig().environment("CartPole-v1"), local_env_runner=False, _setup=False)
    actors = [Runner.options(max_restarts=0).remote(index, __file__) for index in (1, 2)]
    group._worker_manager.add_actors(actors)
    requests = SampleRequests(group, max_staleness=None, timeout_s=300.0)
    send(requests, 0)
    requests.fetch(weights_seq_no=0)
    assert not requests.ping_the_dead()
    for actor in actors:
        ray.kill(actor)
    send(requests, 0)
    while requests.fetch(weights_seq_no=0):
        send(requests, 0)
    if reason:
        requests._failures[2] = EnvFailedError(reason)  # after all samples, which would show that it has recovered
    with pytest.raises(RuntimeError, match="All 2 EnvRunners have died, and Ray restarts none of them") as raised:
        wait_for(requests.ping_the_dead, seconds=30.0)
    assert isinstance(raised.value, SamplingFailedError) == bool(reason)
    assert str(reason or "sets how often") in str(raised.value)


def test_one_that_hangs_does_not_keep_calls_to_all_waiting(group, make_requests, monkeypatch, caplog):
    requests = make_requests(open_gates=1)
    send(requests, 0, only_to_idle=True)
    monkeypatch.setattr(group, "_ignore_ray_errors_on_env_runners", False)
    with pytest.raises(TimeoutError, match=r"EnvRunner 2 did not answer within 0\.5 s"):
        call_all(group, lambda runner: runner.count, seconds=0.5, local_env_runner=False)
    monkeypatch.undo()
    call_all(group, lambda runner: runner.count, seconds=0.5, local_env_runner=False)
    assert "EnvRunner 2 did not answer within 0.5 s, so it is killed" in caplog.text
    assert group.healthy_env_runner_ids() == [1]
    call_all(group, lambda runner: runner.count, local_env_runner=False)  # of those that are left
    wait_until_all_are_back(group)


def test_env_runners_that_came_back_have_their_time_again(monkeypatch):
    died = SimpleNamespace(get=lambda: ray.exceptions.ActorDiedError())
    now = iter([1.0, 1.0, 101.0, 101.0, 107.0])
    clock = SimpleNamespace(monotonic=lambda: next(now), sleep=lambda seconds: None)
    monkeypatch.setattr(answers_module, "time", clock)
    lost = answers_module.LostEnvRunners()
    lost.check([died], num_all=1, reasons=[])
    lost.forget()
    lost.check([died], num_all=1, reasons=[])
    with pytest.raises(RuntimeError, match="All 1 EnvRunners have died, and Ray restarts none"):
        lost.check([died], num_all=1, reasons=[])
