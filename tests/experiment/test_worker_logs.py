"""What an EnvRunner of RLlib has raised, from Ray's logs."""

import time
from types import SimpleNamespace

import pytest

from rllib_kd.environments.returned import NotFiniteError
from rllib_kd.experiment import worker_logs
from rllib_kd.experiment.outcome import hidden_reason
from rllib_kd.experiment.worker_logs import env_runner_failure

IN_WORK = """\
2026-01-01 12:00:00,000	WARNING deprecation.py:1 -- something old
2026-01-01 12:00:01,000	ERROR actor_manager.py:201 -- Worker exception caught during `apply()`:
Traceback (most recent call last):
  File "/x/site-packages/ray/rllib/env/env_runner.py", line 1, in _try_env_step
    results = self.env.step(actions)
  File "/home/me/env.py", line 7, in step
    raise RuntimeError("no map")
RuntimeError: no map

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/x/site-packages/ray/rllib/utils/actor_manager.py", line 195, in apply
    return func(self, *args, **kwargs)
RuntimeError
2026-01-01 12:00:02,000	INFO other.py:1 -- ValueError: of another record
"""
WHEN_MADE = """\
2026-01-01 12:00:00,000	ERROR group.py:1 -- Validation of EnvRunner failed! Error=The actor died because of an error \
raised in its creation task, \x1b[36mray::SingleAgentEnvRunner.__init__()\x1b[39m (pid=1)
  File "/x/site-packages/gymnasium/envs/registration.py", line 369, in _check_name_exists
    raise error.NameNotFound(
gymnasium.error.NameNotFound: Environment `X` doesn't exist.
Exception raised in creation task: The actor died because of an error raised in its creation task, ray::PPO.__init__()
IndexError: list index out of range
"""


@pytest.fixture
def write(monkeypatch, tmp_path):
    """Writes the log of a worker of a job; ours is 01000000."""
    context = SimpleNamespace(get_job_id=lambda: "01000000")
    monkeypatch.setattr(worker_logs.ray, "get_runtime_context", lambda: context)
    node = SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path), is_head=lambda: False)
    monkeypatch.setattr(worker_logs._rllib, "own_node", lambda: node)
    return lambda text, job="01000000": (tmp_path / f"worker-abc{len(text)}-{job}-17.err").write_text(text)


def failed(message):
    return [SimpleNamespace(error=RuntimeError(message))]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (IN_WORK, "RuntimeError: no map (/home/me/env.py:7, in step)"),
        (WHEN_MADE, "gymnasium.error.NameNotFound: Environment `X` doesn't exist."),
    ],
)
def test_the_reason_is_found_and_shown(write, log, reason):
    write("nothing of interest")
    write(log)
    failure = env_runner_failure(since=0.0)
    assert hidden_reason(failed("IndexError: list index out of range"), failure) == (
        f"an EnvRunner failed during training: {reason}"
    )
    assert hidden_reason([SimpleNamespace(error=None)], failure).endswith(reason)  # RLlib went on without it


def test_what_the_trial_says_itself_is_not_said_twice(write):
    write(IN_WORK)
    assert hidden_reason(failed(IN_WORK), env_runner_failure(since=0.0)) == ""
    own = f"{NotFiniteError.__module__}.NotFiniteError: The environment 'X' returned"
    assert hidden_reason(failed("IndexError"), own) == ""


@pytest.mark.parametrize("is_own_ray", [True, False])
def test_workers_started_ahead_are_those_of_this_process_in_its_own_ray(write, monkeypatch, is_own_ray):
    write(IN_WORK, job="ffffffff")
    monkeypatch.setattr(worker_logs._rllib.own_node(), "is_head", lambda: is_own_ray)
    assert (env_runner_failure(since=0.0) is not None) == is_own_ray


def test_without_a_failure_or_logs_there_is_nothing_to_say(write, monkeypatch):
    assert env_runner_failure(since=0.0) is None
    write("RuntimeError: of something else")
    write(IN_WORK, job="02000000")  # of another run on the same cluster
    assert env_runner_failure(since=0.0) is None
    write(IN_WORK)
    assert env_runner_failure(since=time.time() + 60.0) is None  # of an earlier run in this process
    monkeypatch.setattr(worker_logs._rllib, "own_node", lambda: None)
    assert env_runner_failure(since=0.0) is None
    assert hidden_reason(failed("x"), None) == ""
