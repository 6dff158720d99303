"""What is said of an environment that has raised: its error and the user's line."""

import re
import signal
import sys
import traceback
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import rllib_kd
from rllib_kd.cli.app import fail
from rllib_kd.environments import making
from rllib_kd.environments.failures import (
    EnvFailedError,
    ExitedError,
    Frame,
    described,
    exits_are_errors,
    failure,
    frames_in,
    is_users_exit,
    users_line,
)
from rllib_kd.environments.making import env_maker
from rllib_kd.environments.returned import NotFiniteError
from rllib_kd.environments.run_files import run_file
from rllib_kd.evaluation.playing import RandomActions, play
from rllib_kd.experiment.outcome import _reason

OWN = Path(rllib_kd.__file__).parent


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def broken():
    np.zeros(2) + np.zeros(3)


def test_the_line_is_the_users_and_not_that_of_a_library():
    assert described(raised(broken)).startswith("ValueError: operands could not be broadcast")
    assert described(raised(broken)).endswith(f"({__file__}:{broken.__code__.co_firstlineno + 1}, in broken)")


def test_no_line_of_a_compiled_module_is_the_users():
    error = raised(lambda: np.random.default_rng().integers({}))  # which Cython calls numpy/random/_generator.pyx
    assert described(error).endswith(f"({__file__}:{error.__traceback__.tb_next.tb_lineno}, in <lambda>)")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["/x/site-packages/ray/a.py", "/home/me/env.py", "/x/site-packages/numpy/b.py"], "/home/me/env.py"),
        (["/home/me/main.py", "/x/site-packages/highway_env/c.py"], "/home/me/main.py"),
        (["/x/site-packages/ray/a.py", "/x/site-packages/highway_env/c.py"], "/x/site-packages/highway_env/c.py"),
        (["/x/site-packages/ray/a.py", "/x/site-packages/gymnasium/c.py"], None),
        (["/home/me/env.py", f"{OWN}/evaluation/playing.py"], "/home/me/env.py"),
        ([f"{OWN}/evaluation/playing.py", f"{OWN}/algorithm/restarts.py", f"{OWN}/env_runner/family.py"], None),
        (["/x/site-packages/rllib_kd/evaluation/playing.py"], None),  # on another machine
        (["/home/me/rllib_kd/env.py", f"{OWN}/evaluation/playing.py"], "/home/me/rllib_kd/env.py"),
        ([f"{OWN}_envs/env.py", f"{OWN}/evaluation/playing.py"], f"{OWN}_envs/env.py"),
    ],
)
def test_which_line_is_the_users(files, expected):
    line = users_line([Frame(file, 1, "f") for file in files])
    assert (None if line is None else line.file) == expected


def test_an_environment_that_returns_too_few_values_is_named_without_a_line_of_this_package():
    class Old(gym.Wrapper):
        def step(self, action):
            return super().step(action)[:4]

    with pytest.raises(EnvFailedError) as caught:
        play(lambda: Old(gym.make("CartPole-v1")), RandomActions(2, seed=0), [0])
    said = (
        r"The environment 'CartPole-v1' returned 4 values from step\(\) \((\S+):\d+, in step\)\. Expected: return obs"
    )
    (file,) = re.match(said, str(caught.value)).groups()
    assert file == __file__


def test_an_environment_that_raises_while_it_is_played_is_named_with_its_line():
    class Broken(gym.Wrapper):
        def step(self, action):
            raise KeyError("map")

    with pytest.raises(EnvFailedError, match=rf"raised in step\(\): KeyError: 'map' \({__file__}:\d+, in step\)$"):
        play(lambda: Broken(gym.make("CartPole-v1")), RandomActions(2, seed=0), [0])


class Closes(gym.Env):
    """A game whose window is closed."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, config):
        self.where = config["where"]
        self._end_in("__init__")

    def reset(self, *, seed=None, options=None):
        self._end_in("reset")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._end_in("step")

    def close(self):
        self._end_in("close")

    def _end_in(self, where):
        if where == self.where:
            exit()


@pytest.mark.parametrize("where", ["reset", "step"])
def test_a_game_that_ends_the_process_is_named_with_its_line(where):
    said = rf"'Closes' raised in {where}\(\): SystemExit: None \({__file__}:\d+, in _end_in\)\. It must"
    with pytest.raises(EnvFailedError, match=said):
        play(env_maker(Closes, {"where": where}), RandomActions(2, seed=0), [0])


def test_a_game_that_ends_the_process_when_it_is_made_or_closed(caplog):
    with pytest.raises(ValueError, match="'Closes' cannot be made: SystemExit"):
        env_maker(Closes, {"where": "__init__"})()
    making.close(env_maker(Closes, {"where": "close"})())
    assert "raised in close(): SystemExit" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_process_in_the_users_code_too(tmp_path, number):
    file = tmp_path / "signals.py"
    file.write_text(f"import signal; signal.raise_signal({int(number)})")

    def end(signum, frame):
        sys.exit(3)

    previous = signal.signal(number, end)
    try:
        with pytest.raises(SystemExit):
            exits_are_errors(signal.raise_signal)(number)
        with pytest.raises(SystemExit):
            run_file(file)
    finally:
        signal.signal(number, previous)


def test_an_exit_of_code_of_ones_own_is_an_error_and_that_of_a_command_is_none():
    with pytest.raises(ExitedError, match=rf"ended the process: SystemExit: 4 \({__file__}:\d+, in <lambda>\)"):
        exits_are_errors(lambda: sys.exit(4))()
    with pytest.raises(SystemExit):
        exits_are_errors(fail)("no", code=2)


def test_a_printed_traceback_has_the_same_lines():
    error = raised(broken)
    text = "".join(traceback.format_exception(error))
    assert str(users_line(frames_in(text))) in described(error)


def test_an_error_without_a_message_is_named_by_its_kind():
    said = str(failure("X", AssertionError(), doing="step"))
    assert said == "The environment 'X' raised in step(): AssertionError"


RLLIBS = """\
ray.exceptions.RayTaskError(RuntimeError): ray::PPO.train() (pid=1, ip=127.0.0.1)
  File "/x/site-packages/ray/rllib/env/env_runner.py", line 1, in _try_env_step
    results = self.env.step(actions)
  File "/home/me/env.py", line 7, in step
    raise KeyError("no map")
KeyError: 'no map'

The above exception was the direct cause of the following exception:

ray::PPO.train() (pid=1, ip=127.0.0.1)
  File "/x/site-packages/ray/tune/trainable/trainable.py", line 331, in train
    result = self.step()
{last}"""


@pytest.mark.parametrize("last", ["RuntimeError", "RuntimeError: ", "RuntimeError\n"])
def test_the_reason_of_a_trial_is_what_rllibs_empty_error_was_raised_from(last):
    assert _reason(RuntimeError(RLLIBS.format(last=last))) == "KeyError: 'no map' (/home/me/env.py:7, in step)"


def test_the_reason_of_a_trial_is_its_last_error_otherwise():
    assert _reason(RuntimeError(RLLIBS.format(last="ValueError: two\nlines"))) == "ValueError: two lines"
    explained = "The environment 'X' raised in step(): no (a.py:1, in b)"
    for kind in (EnvFailedError, NotFiniteError):
        last = f"{kind.__module__}.{kind.__name__}: {explained}"
        assert _reason(RuntimeError(RLLIBS.format(last=last))) == explained
    assert _reason(RuntimeError("nothing known")) == "nothing known"


@pytest.mark.parametrize(("file", "is_users"), [("python/ray/_raylet.pyx", False), ("game.py", True)])
def test_the_exit_of_rays_workers_is_not_the_users(file, is_users):
    with pytest.raises(SystemExit) as caught:
        exec(compile("raise SystemExit", file, "exec"))
    assert is_users_exit(caught.value) == is_users
