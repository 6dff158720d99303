"""A tutorial as its reader does it: every step as written, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rllib_kd
from rllib_kd import DistillDQNConfig

ROOT = Path(__file__).parents[1]

#: A block of code; with the name of a file if the reader is to save it.
STEP = re.compile(r"(?:[Ss]ave\s+(?:this|it)\s+as\s+`([\w.]+)`:\s+)?```(python|bash)\n(.*?)```", re.DOTALL)


def steps_of(name: str) -> Iterator[tuple[str, str, str]]:
    """Yield file, if any, language and code of all steps of a page but the installation."""
    for file, language, code in STEP.findall((ROOT / "docs" / "pages" / name).read_text()):
        if "pip install" not in code:
            yield file, language, code


def tutorial(name: str) -> str:
    """Return everything that a reader does as one script."""
    script = ""
    for file, language, code in steps_of(name):
        if file:
            script += f"cat > {file} <<'END'\n{code}END\n"
        elif language == "python":
            script += f"python - <<'END'\n{code}END\n"
        else:
            script += code
    return script


def lines_of(block: str) -> list[str]:
    """Return the lines of a shell block. JSON in quotes may have several."""
    return re.findall(r"(?:'[^']*'|[^'\n])+", block.replace("\\\n", " "))


def followed(name: str, rllib: Callable[..., subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture) -> str:
    """Do everything that a reader does in the working folder, until a step fails; return what is printed.

    The command and Python run in this process, on the Ray that tests share: several times cheaper than processes of
    their own. Bash does the rest, and expands the command's arguments.
    """
    printed, variables = "", ""
    for file, language, code in steps_of(name):
        if file:
            Path(file).write_text(code)
        elif language == "python":
            capsys.readouterr()
            run_python(code.replace("20_000", "2_000"), name)  # the same as the first two commands do
            printed += capsys.readouterr().out
        else:
            for line in lines_of(code):
                if line.startswith("rllib "):
                    words = in_bash(f"{variables}printf '%s\\0' {line}").split("\0")[1:-1]
                    done = rllib(*words)
                    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                    printed += done.stdout
                elif re.match(r"\w+=", line):
                    variables += line + "\n"
                else:
                    printed += in_bash(variables + line)
    return printed


def in_bash(script: str) -> str:
    """Run commands until one fails, with this Python; return what they print."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    done = subprocess.run(["bash", "-c", f"set -e\n{script}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(code: str, where: str) -> None:
    """Run Python of a page. The public names, and a config, may have been made in the text around it."""
    names = {name: getattr(rllib_kd, name) for name in rllib_kd.__all__}
    names["config"] = DistillDQNConfig().environment("CartPole-v1")
    try:
        exec(compile(code, where, "exec"), names)
    finally:
        if "algo" in names:
            names["algo"].stop()
