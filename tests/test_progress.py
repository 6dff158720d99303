"""Bars, seen in terminals of several widths."""

import os
import pty
import re
import subprocess
import sys

import pytest

SHOW = """
from rllib_kd.terminal import bar
with bar("teacher", total=50) as advance:
    for _ in range(5):
        advance(10)
print("done")
"""


def test_without_stderr_nothing_is_shown():
    code = "from rllib_kd.terminal import say; say('lost')" + SHOW
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    assert subprocess.run(command, capture_output=True, check=True, timeout=300).stdout == b"done\n"


def shown_on_a_terminal(code, columns):
    """What a script writes to a terminal of so many columns: raw, and the lines without control sequences."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment, timeout=300)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    return text, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("columns", [40, 80])
def test_a_bar_fills_its_terminal_and_vanishes(columns):
    text, lines = shown_on_a_terminal(SHOW, columns)
    assert any(line.startswith("teacher") and "50/50" in line for line in lines)
    assert max(map(len, lines)) <= columns
    assert text.rstrip().endswith("\x1b[2Kdone")  # the bar's line is erased before it


def test_no_bar_in_a_file_even_where_colours_are_forced():
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.stdout, done.stderr) == ("done\n", "")


SHOW_LINE = """
from rllib_kd.terminal import line
with line() as show:
    for i in range(3):
        show(f"training · {i} env steps · " + 200 * "x")
print("done")
"""


def test_a_line_stays_one_line_and_vanishes():
    text, lines = shown_on_a_terminal(SHOW_LINE, 60)
    assert any(line.startswith("training · 2 env steps") and line.endswith("…") for line in lines)
    assert max(map(len, lines)) <= 60
    assert text.rstrip().endswith("\x1b[2Kdone")


def test_no_line_in_a_file():
    done = subprocess.run([sys.executable, "-c", SHOW_LINE], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("done\n", "")
