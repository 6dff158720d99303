"""Warnings of any process of a run reach who has started it."""

import logging
import subprocess
import sys

import pytest
import ray
from ray.experimental import internal_kv

from rllib_kd import relay
from rllib_kd._rllib import KeyValueStore
from rllib_kd.relay import listening, printed_warnings

LOGGER = logging.getLogger("rllib_kd.somewhere")


@ray.remote(num_cpus=0)
class Worker:
    """Any process of a run: the trial, an EnvRunner, a Learner."""

    def warn(self, *messages):
        import rllib_kd  # noqa: F401

        for message in messages:
            logging.getLogger("rllib_kd.somewhere").warning("%s", message)
        logging.getLogger("rllib_kd.somewhere").info("no warning")

    def fail(self, message):
        self.warn(message)
        raise RuntimeError


def test_warnings_of_other_processes_are_printed_once_while_they_run(cluster, capsys, monkeypatch):
    monkeypatch.setattr(relay, "_SECONDS_BETWEEN_LOOKS", 0.01)
    workers = [Worker.remote() for _ in range(2)]
    with printed_warnings(), listening():
        ray.get([worker.warn.remote("first", "second \x1b[31m") for worker in workers])
        with pytest.raises(ray.exceptions.RayTaskError):
            ray.get(workers[0].fail.remote("third"))
        LOGGER.warning("of this process, %d", 1)
        LOGGER.warning("of this process, %d", 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines.index("warning: first") < lines.index("warning: third")
    expected = ["first", "of this process, 1", "second \N{REPLACEMENT CHARACTER}[31m", "third"]
    assert sorted(lines) == [f"warning: {text}" for text in expected]
    assert not internal_kv._internal_kv_list("", namespace=KeyValueStore.NAMESPACE)  # nothing is left in Ray


def test_where_nobody_listens_nothing_is_sent(cluster, capsys):
    ray.get(Worker.remote().warn.remote("unheard"))
    with printed_warnings(), listening():
        pass
    assert capsys.readouterr().err == ""
    assert not internal_kv._internal_kv_list("", namespace=KeyValueStore.NAMESPACE)


def test_without_ray_there_is_nothing_to_listen_to(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", pytest.fail)
    with listening():
        pass


def test_an_emulated_cluster_that_has_ended_leaves_no_store_to_look_at(cluster, monkeypatch):
    monkeypatch.setattr(internal_kv, "global_gcs_client", None)
    with listening():
        pass


@pytest.mark.slow
def test_a_driver_logs_as_python_does_unless_it_asks_for_more(capsys):
    code = "import ray, rllib_kd, logging; logging.getLogger('rllib_kd.x').warning('plain')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr == "plain\n"
    handlers = list(logging.getLogger("rllib_kd").handlers)
    with printed_warnings():
        LOGGER.info("not shown")
    assert logging.getLogger("rllib_kd").handlers == handlers
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("has_handler", [False, True])
def test_what_cannot_be_sent_is_printed_where_it_was_said(monkeypatch, capsys, has_handler):
    def fails(record):
        raise ConnectionError("Ray is gone")

    monkeypatch.setattr(relay, "_send", fails)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()] if has_handler else [])
    sender = relay._Sender(logging.WARNING)
    monkeypatch.setattr(logging.getLogger("rllib_kd"), "handlers", [sender])
    sender.emit(LOGGER.makeRecord("rllib_kd.x", logging.WARNING, "x.py", 1, "lost?", (), None))
    assert capsys.readouterr().err == ("" if has_handler else "lost?\n")  # a handler of the user's prints it
