"""Command lines that work, and what is looked for after them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAST = {"num_envs_per_env_runner": 4, "num_baseline_episodes": 0, "min_sample_timesteps_per_iteration": 64}
DISTIL = ["train", "--algo", "DistillDQN", "--env", "CartPole-v1", "--teacher", "cartpole"]
ESCAPES = "\x1b]0;title\x07\x1b[31m\x9b1m\u202e[red]"
IN_YAML = "\\e]0;title\\a\\e[31m\\x9b1m\\u202e[red]"  # between double quotes


def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rllib_kd", *arguments], capture_output=True, text=True, timeout=timeout
    )


def assert_harmless(text: str) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text), ascii(text)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/checkpoint_*"))
