"""What it saves that freed memory is kept: CPU time of labels and of gradient steps on images, ms.

    python tests/benchmarks/allocator.py [--repetitions 40]

Each figure is measured in a process of its own, with and without `rllib_kd.allocator`, by turns: a plain PyTorch pass
of the teacher of Mnih et al. 2015 on 64 states, and a gradient step of Rusu's net3 on 128. For families of small
students, run `shrink_cost.py` once as it is, and once with GLIBC_TUNABLES=glibc.malloc.check=0, glibc's own default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from rllib_kd.allocator import keep_freed_memory
from tests.benchmarks.learner import atari_student


def milliseconds(run: Callable[[], object], repetitions: int) -> float:
    """Median CPU time: ms."""
    taken = []
    for _ in range(repetitions):
        began = time.process_time()
        run()
        taken.append(1e3 * (time.process_time() - began))
    return statistics.median(taken)


def measure(repetitions: int) -> dict[str, object]:
    """Measure in this process."""
    keeps = keep_freed_memory()
    torch.set_num_threads(1)
    teacher, student = atari_student((32, 64, 64), 512), atari_student((16, 16, 16), 64)
    optimizer = torch.optim.Adam(student.parameters(), fused=True)
    images = torch.randint(0, 255, (128, 4, 84, 84), dtype=torch.uint8)

    @torch.no_grad()
    def label() -> Tensor:
        return teacher(images[:64].float() / 255)

    def step() -> None:
        optimizer.zero_grad()
        student(images.float() / 255).square().mean().backward()
        optimizer.step()

    return {
        "keeps_freed_memory": keeps,
        "label_ms": round(milliseconds(label, repetitions), 1),
        "gradient_step_ms": round(milliseconds(step, repetitions), 1),
    }


def main() -> None:
    """Print two rows for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--here", action="store_true", help="in this process alone")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.repetitions)), flush=True)
        return
    command = [sys.executable, __file__, "--here", "--repetitions", str(args.repetitions)]
    for variables in ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, {}) * 2:
        subprocess.run(command, env=os.environ | variables, check=True)


if __name__ == "__main__":
    main()
