"""Does another optimizer, or another learning rate, help a student of images? On recorded states, by a plain loop.

    python tests/benchmarks/optimizers.py TEACHER FOLDER --rows rows.csv [--optimizer adam muon soap]
        [--lr 1e-3 3e-3] [--steps 3000] [--states 112000] [--seed 0]

FOLDER is recorded by `images.py record`. `rusu-net3` learns from random first weights as in `regularising.py`, with a
learning rate that falls to a tenth. Muon (Jordan et al. 2024) and SOAP (Vyas et al. 2024, arXiv 2409.11321) learn all
matrices but the last, Adam the rest at 1e-3. Muon's steps have 0.2 of `--lr` as root mean square (Liu et al. 2025,
arXiv 2502.16982). A row has Q-regret and agreement on states that were learned from, and on states of other games,
every 1,000 steps, and the CPU seconds of all gradient steps so far.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import numpy as np
import torch
from torch import Tensor, nn

from rllib_kd import Teacher, load_teacher
from rllib_kd.learner.losses import policy_kl
from rllib_kd.observations.frames import observations
from tests.benchmarks.regularising import (
    AVERAGED,
    BATCH_SIZE,
    LOSS,
    SHOWN_EVERY,
    as_images,
    look,
    parser_of,
    player,
    recorded,
    seen_and_new,
    student,
)

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al.


class Muon(torch.optim.Optimizer):
    """Steps along the nearest orthogonal matrix of the momentum."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Step along the gradients."""
        for group in self.param_groups:
            for param in group["params"]:
                momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                momentum.lerp_(param.grad, 1 - group["momentum"])
                step = orthogonal(param.grad.lerp(momentum, group["momentum"]).flatten(1))
                param.add_(step.view_as(param), alpha=-0.2 * max(step.shape) ** 0.5 * group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix, by five steps of Newton and Schulz."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix) / (matrix.norm() + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        squared = x @ x.T
        x = a * x + (b * squared + c * squared @ squared) @ x
    return x.T if is_tall else x


class Soap(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioners, which are renewed every ten steps."""

    def __init__(self, params: Iterable[Tensor], lr: float, beta: float = 0.95):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Step along the gradients."""
        for group in self.param_groups:
            for param in group["params"]:
                step = self._step(self.state[param], param.grad.flatten(1), group["beta"])
                param.add_(step.view_as(param), alpha=-group["lr"])

    def _step(self, state: dict[str, Any], gradient: Tensor, beta: float) -> Tensor:
        sides = [gradient @ gradient.T, gradient.T @ gradient]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
            state |= {"sides": sides, "bases": [torch.linalg.eigh(side)[1].flip(1) for side in sides]}
            return torch.zeros_like(gradient)
        state["step"] += 1
        left, right = state["bases"]
        state["mean"].lerp_(gradient, 1 - beta)
        state["square"].lerp_((left.T @ gradient @ right).square(), 1 - beta)
        correction = 1 - beta ** state["step"]
        scaled = (left.T @ state["mean"] @ right / correction) / ((state["square"] / correction).sqrt() + 1e-8)
        for known, side in zip(state["sides"], sides, strict=True):
            known.lerp_(side, 1 - beta)
        if state["step"] % 10 == 0:
            for i, (side, basis) in enumerate(zip(state["sides"], state["bases"], strict=True)):
                order = (basis.T @ side @ basis).diagonal().argsort(descending=True)
                state["square"] = state["square"].index_select(i, order)
                state["bases"][i] = torch.linalg.qr(side @ basis[:, order])[0]
        return left @ scaled @ right.T


def optimizers(network: nn.Module, name: str, lr: float) -> list[torch.optim.Optimizer]:
    """Return what learns a network's parameters."""
    if name == "adam":
        return [torch.optim.Adam(network.parameters(), lr=lr, fused=True)]
    of_matrices: Callable[..., torch.optim.Optimizer] = {"muon": Muon, "soap": Soap}[name]
    *matrices, last = [param for param in network.parameters() if param.ndim > 1]
    others = [last, *(param for param in network.parameters() if param.ndim == 1)]
    return [of_matrices(matrices, lr=lr), torch.optim.Adam(others, lr=1e-3, fused=True)]


def train(
    name: str, lr: float, teacher: Teacher, folder: Path, *, steps: int, states: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of one student, as it learns."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    columns, rows = recorded(folder, states)
    network = student(0.0, columns["teacher_q"].shape[1])
    average = {key: value.clone() for key, value in network.state_dict().items()}
    learning = optimizers(network, name, lr)
    groups = [(group, group["lr"]) for optimizer in learning for group in optimizer.param_groups]
    seen = seen_and_new(folder, states)
    seconds = 0.0
    for step in range(1, steps + 1):
        for group, first in groups:
            group["lr"] = first * (1 - 0.9 * step / steps)
        drawn = rng.choice(rows, BATCH_SIZE)
        images, labels = as_images(observations(columns, drawn)), torch.from_numpy(columns["teacher_q"][drawn])
        began = time.process_time()
        loss = policy_kl(network(images), labels, **LOSS).mean()
        network.zero_grad()
        loss.backward()
        for optimizer in learning:
            optimizer.step()
        seconds += time.process_time() - began
        for key, value in network.state_dict().items():
            average[key].lerp_(value, AVERAGED)
        if step % SHOWN_EVERY == 0:
            looked = look(player(network, average, teacher), teacher, seen)
            rounded = {name: round(value, 4) for name, value in looked.items()}
            yield {"step": step, "cpu_seconds": round(seconds, 1)} | rounded


def main() -> None:
    parser = parser_of(__doc__, "CSV, a line for each look at a student", steps=3_000)
    parser.add_argument("--optimizer", nargs="+", choices=("adam", "muon", "soap"), default=["adam", "muon", "soap"])
    parser.add_argument("--lr", nargs="+", type=float, default=[1e-3, 3e-3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher(args.teacher)
    limits = {"steps": args.steps, "states": args.states, "seed": args.seed}
    for name in args.optimizer:
        for lr in args.lr:
            for found in train(name, lr, teacher, args.folder, **limits):
                row = {"optimizer": name, "lr": lr, **limits, **found}
                print(row, flush=True)
                is_new = not args.rows.exists()
                with args.rows.open("a", newline="") as file:
                    writer = csv.DictWriter(file, row, lineterminator="\n")
                    if is_new:
                        writer.writeheader()
                    writer.writerow(row)


if __name__ == "__main__":
    main()
