"""Do the usual remedies for too few states help a student of images? On recorded states, by a plain loop.

    python tests/benchmarks/regularising.py TEACHER FOLDER --rows rows.jsonl [--remedy none mixed ...] [--steps 5000]
        [--states 112000] [--seed 0]

FOLDER is recorded by `images.py record`. `rusu-net3` learns by `kl` at a temperature of 0.01 with the regret in the
loss, in batches of 128. Remedies: `weight_decay`, and `dropout` before the head; `pasted`, a box of another state in
half of each batch; `mixed`, weighted means of two states; `shifted`, by up to four pixels. The teacher labels what is
changed. `jacobian`: the gradient of a random mixture of the Q-values in the pixels is turned towards the teacher's, for
half of each batch (Sobolev training, Czarnecki et al. 2017, arXiv 1706.04859). A row has Q-regret and agreement on
states that were learned from, and on states of other games, every 1,000 steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import numpy as np
import torch
import torch.nn.functional as F
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from rllib_kd import Teacher, load_teacher
from rllib_kd.learner.losses import policy_kl
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.observations.frames import observations
from tests.benchmarks.images import judged, measure, parts

BATCH_SIZE = 128
LOSS = {"temperature": 0.01, "student_temperature": 1.0, "regret_coeff": 20.0}  # return units, -, nats / return unit
AVERAGED = 0.005  # share of the newest weights in the ones that are judged
SHOWN_EVERY = 1_000
MOST_SHIFT = 4  # pixels
JACOBIAN_POOLED = 4  # pixels of a side, over which slopes are averaged
REMEDIES = ("none", "weight_decay", "dropout", "pasted", "mixed", "shifted", "jacobian")


def student(dropout: float, num_actions: int) -> nn.Sequential:
    """Return Rusu's net3, for images `[B, 4, 84, 84]`."""
    convolutions = nn.Conv2d(4, 16, 8, 4), nn.Conv2d(16, 16, 4, 2), nn.Conv2d(16, 16, 3, 1)
    layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())]
    head = nn.Dropout(dropout), nn.Linear(64, num_actions)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), *head)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


def changed(images: Tensor, remedy: str, rng: np.random.Generator) -> Tensor:
    """Return a batch after a remedy that changes states."""
    others = images[torch.from_numpy(rng.permutation(len(images)))]
    if remedy == "mixed":
        weights = torch.from_numpy(rng.random((len(images), 1, 1, 1), dtype=np.float32))
        return weights * images + (1 - weights) * others
    images = images.clone()
    if remedy == "pasted":
        for i in range(len(images) // 2):
            height, width = rng.integers(20, 64, 2)
            top, left = rng.integers(84 - height), rng.integers(84 - width)
            down, along = slice(top, top + height), slice(left, left + width)
            images[i, :, down, along] = others[i, :, down, along]
    if remedy == "shifted":
        wide = F.pad(images, (MOST_SHIFT,) * 4, mode="replicate")
        for i, (top, left) in enumerate(rng.integers(2 * MOST_SHIFT + 1, size=(len(images), 2))):
            images[i] = wide[i, :, top : top + 84, left : left + 84]
    return images


def train(
    remedy: str, teacher: Teacher, folder: Path, *, steps: int, states: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of one student, as it learns."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    columns, rows = recorded(folder, states)
    network = student(0.1 if remedy == "dropout" else 0.0, columns["teacher_q"].shape[1])
    average = {name: value.clone() for name, value in network.state_dict().items()}
    decay = 0.3 if remedy == "weight_decay" else 0.0
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=decay)
    seen = seen_and_new(folder, states)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - 0.9 * step / steps)
        drawn = rng.choice(rows, BATCH_SIZE)
        images, labels = as_images(observations(columns, drawn)), torch.from_numpy(columns["teacher_q"][drawn])
        if remedy in ("pasted", "mixed", "shifted"):
            images = changed(images, remedy, rng)
            labels = labelled(teacher, images)
        loss = policy_kl(network(images), labels, **LOSS).mean()
        if remedy == "jacobian":
            loss = loss + turned_away(network, teacher, images[: BATCH_SIZE // 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in network.state_dict().items():
            average[name].lerp_(value, AVERAGED)
        if step % SHOWN_EVERY == 0:
            looked = look(player(network, average, teacher), teacher, seen)
            yield {"step": step, "seconds": time.perf_counter() - began} | looked


def turned_away(network: nn.Module, teacher: Teacher, images: Tensor) -> Tensor:
    """Mean of 1 − the cosine between the student's and the teacher's slopes in the pixels, of a mixture of Q-values."""
    images = images.clone().requires_grad_()
    own = network(images)
    target = teacher.module.compute_q_values({Columns.OBS: images.permute(0, 2, 3, 1)})[QF_PREDS]
    mixture = torch.randn_like(own)
    mixture -= mixture.mean(dim=1, keepdim=True)
    slopes = [torch.autograd.grad((q * mixture).sum(), images, create_graph=q is own)[0] for q in (own, target)]
    pooled = [F.avg_pool2d(slope, JACOBIAN_POOLED).flatten(1) for slope in slopes]
    return (1 - F.cosine_similarity(*pooled)).mean()


def seen_and_new(folder: Path, states: int) -> dict[str, np.ndarray]:
    """States of the first ones, which are learned from, and of other games, which are not."""
    kinds = {"trained_on": False, "of_other_games": True}
    return {kind: judged(folder, held_out=held_out, num_states=states) for kind, held_out in kinds.items()}


def look(student: Teacher, teacher: Teacher, seen: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Agreement and Q-regret of a student on each kind of states."""
    return {
        f"{name}_{kind}": value
        for kind, stacks in seen.items()
        for name, value in measure(student, teacher, stacks).items()
    }


def parser_of(description: str | None, rows: str, steps: int) -> argparse.ArgumentParser:
    """The arguments of a command that trains on recorded states: help of --rows, and default of --steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help=rows)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--states", type=int, default=112_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def recorded(folder: Path, states: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Packed columns of the first games, and the rows of at least so many states."""
    found: list[dict[str, np.ndarray]] = []
    for columns in parts(folder, held_out=False):
        if sum(int((~part["context"]).sum()) for part in found) >= states:
            break
        found.append(columns)
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return joined, np.flatnonzero(~joined["context"])


def as_images(stacks: np.ndarray) -> Tensor:
    """Bytes `[B, 84, 84, 4]` as numbers in [0, 1], `[B, 4, 84, 84]`."""
    return torch.from_numpy(stacks).permute(0, 3, 1, 2).float() / 255.0


@torch.no_grad()
def labelled(teacher: Teacher, images: Tensor) -> Tensor:
    """The teacher's Q-values `[B, A]`."""
    return teacher.q_values(images.permute(0, 2, 3, 1).contiguous())


def player(network: nn.Module, weights: dict[str, Tensor], teacher: Teacher) -> Teacher:
    """A student with these weights, as what `images.measure()` takes; it sees what its teacher does."""
    network = copy.deepcopy(network).eval()
    network.load_state_dict(weights)
    return Teacher.from_callable(
        lambda stacks: network(stacks.permute(0, 3, 1, 2)),
        observation_space=teacher.input_space,
        action_space=teacher.action_space,
    )


def main() -> None:
    parser = parser_of(__doc__, "JSON, a line for each look at a student", steps=5_000)
    parser.add_argument("--remedy", nargs="+", choices=REMEDIES, default=list(REMEDIES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher(args.teacher)
    limits = {"steps": args.steps, "states": args.states, "seed": args.seed}
    for remedy in args.remedy:
        for row in train(remedy, teacher, args.folder, **limits):
            print(remedy, {name: round(value, 4) for name, value in row.items()}, flush=True)
            with args.rows.open("a") as file:
                file.write(json.dumps({"remedy": remedy, **limits, **row}) + "\n")


if __name__ == "__main__":
    main()
