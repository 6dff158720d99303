"""The model card of an exported file: README.md, which states what it is, how well it plays, and how to load it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rllib_kd.evaluation.seeds import FRESH_SEED
from rllib_kd.export.artifact import DeviceCost
from rllib_kd.export.c.write import main_path
from rllib_kd.export.card_files import write_card
from rllib_kd.export.deployment import Deployment
from rllib_kd.export.formats import input_shape, observation_parts, outside_stages, state_of
from rllib_kd.export.loading_code import loading_code
from rllib_kd.export.markdown import code, code_block
from rllib_kd.export.origin import Origin
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import count_of_episodes, mean_and_interval, percent

#: Formats as people write them.
_FORMATS = {
    "c": "C99",
    "onnx": "ONNX",
    "pt2": "a program of torch.export",
    "python": "Python",
    "safetensors": "safetensors",
    "torchscript": "TorchScript",
    "web": "a web page in one file",
}

#: What is printed if none can be written.
NO_CARD = "no model card: README.md and NAME.md beside the file were written by others"


@dataclass(frozen=True)
class Card:
    """What a model card states of an exported network.

    Args:
        deployment: the exported file, with its measurements.
        origin: where the network comes from.
        num_episodes: episodes of each return.
        teacher: name of the teacher that played the same episodes; None if none did.
        teacher_deployment: its measurements; likewise.
    """

    deployment: Deployment
    origin: Origin
    num_episodes: int
    teacher: str | None = None
    teacher_deployment: Deployment | None = None

    def write(self) -> Path | None:
        """Write it to README.md beside the file, as `write_card()` does; return its path."""
        return write_card(Path(self.deployment.exported.path), str(self))

    def __str__(self) -> str:
        """Return it as Markdown."""
        exported, shape = self.deployment.exported, input_shape(self.deployment.network)
        blocks = [
            f"# {code(os.path.basename(exported.path))}",
            _summary(
                self.deployment.network,
                f"{_FORMATS[exported.format]}{' with weights of 8 bits' if exported.int8 else ''}",
            ),
            bullets(self._facts()),
            *how_trained(self.origin),
            "## Limits",
            bullets(self._limits()),
            *_parts(self.deployment.network),
            "## How to load it",
            "The code runs in the folder of the file. It takes an observation of zeros.",
            *(code_block(*block) for block in self._loading_code(shape)),
        ]
        return "\n\n".join(blocks) + "\n"

    def _loading_code(self, shape: Sequence[int]) -> list[tuple[str, str]]:
        exported, actions = self.deployment.exported, int(self.deployment.network.action_space.n)
        num_masked = actions if exported.takes_mask else None
        state = state_of(self.deployment.network)
        return loading_code(exported.path, exported.format, shape, num_masked=num_masked, state=state)

    def _facts(self) -> Iterator[str]:
        yield f"Environment: {code(self.deployment.played_in)}"
        yield from origin_facts(self.origin, self.teacher)
        yield from self._returns()
        exported, teacher = self.deployment.exported, self.teacher_deployment
        if exported.agreement is not None:
            yield (
                f"Agreement with PyTorch: {percent(exported.agreement)} % of {exported.num_observations:,} "
                f"observations. The largest difference in a Q-value is {exported.max_difference:.1e}"
            )
        of = f" (the teacher: {teacher.network.num_parameters:,})" if teacher is not None else ""
        yield f"Parameters: {self.deployment.network.num_parameters:,}{of}"
        yield f"Bytes of {self._files()}"
        cost = self.deployment.cost
        with_state = " with the state" if state_of(self.deployment.network) else ""
        if isinstance(cost, DeviceCost) and cost.flash_bytes is not None:
            yield (
                f"Compiled with `-Os` on the machine of the export: {cost.flash_bytes:,} bytes of code and constants, "
                f"{cost.ram_bytes:,} bytes of static RAM{with_state}; {cost.multiply_adds:,} multiply-adds an "
                "observation"
            )
        if cost is not None:
            yield f"Latency there, batch of 1, on one thread: {1e3 * cost.latency_ms:.3g} µs" + (
                f"; the teacher's in this format: {1e3 * teacher.cost.latency_ms:.3g} µs"
                if teacher is not None and teacher.cost is not None
                else ""
            )

    def _returns(self) -> Iterator[str]:
        mine, teacher = self.deployment, self.teacher_deployment
        if math.isnan(mine.torch_return):
            yield "No return was measured: there was no environment"
            return
        if math.isnan(mine.return_mean):
            of = "mean of " if self.num_episodes > 1 else ""
            yield f"Return in PyTorch, {of}{count_of_episodes(self.num_episodes)}: {mine.torch_return:g}"
            return
        interval = ("mean ± 95 % CI of " if self.num_episodes > 1 else "") + count_of_episodes(self.num_episodes)
        yield (
            f"Return of the file ({interval}): {mean_and_interval(mine.return_mean, mine.return_ci95)}; "
            f"in PyTorch: {mean_and_interval(mine.torch_return)}"
        )
        if teacher is not None and not math.isnan(teacher.return_mean):
            yield f"Return of the teacher, same episodes: {mean_and_interval(teacher.return_mean, teacher.return_ci95)}"

    def _files(self) -> str:
        file = Path(self.deployment.exported.path)
        files = [file, main_path(file)] if self.deployment.exported.format == "c" else [file]
        return ", ".join(f"{code(each.name)}: {each.stat().st_size:,}" for each in files)

    def _limits(self) -> Iterator[str]:
        exported = self.deployment.exported
        yield from self._limits_of_certificate()
        yield (
            "It was compared with PyTorch on recorded states, and has played no episode."
            if math.isnan(self.deployment.torch_return)
            else f"Returns are of episodes whose seeds begin at {FRESH_SEED:,}, in this environment and config alone. "
            "In others nothing was measured."
        )
        if exported.format == "web" and math.isnan(self.deployment.return_mean):
            yield "Node.js is missing, so its JavaScript was not run: only its weights were compared with PyTorch."
        if not exported.is_checked:
            yield "There was no C compiler, so the file was neither compared with PyTorch nor played."
        elif exported.int8:
            yield "The difference of its Q-values has no bound: judge it by agreement and return."
            if exported.format == "onnx":
                yield "Its runtime must support opset 21 (onnxruntime from 1.18 on) if activations have 16 bits."
                yield "If they have 8 bits, give it one observation at a time: those of a batch would share scales."
        else:
            yield (
                f"A Q-value may differ from PyTorch by up to {exported.max_difference_allowed:.1e}, so that "
                "the actions of two nearly equal Q-values may differ, too."
            )
        if state_of(self.deployment.network):
            yield "It is recurrent: give it every observation of an episode, in their order, and begin each with zeros."
        if exported.takes_mask:
            yield "Not every action is always legal: give the file the legal ones, and take no other."
        if exported.format == "c":
            kept = ", and leave the state as it was" if state_of(self.deployment.network) else ""
            yield f"Observations with NaN or infinity return a negative code{kept}. Only one thread may call at a time."
        yield from input_limits(self.deployment.network)

    def _limits_of_certificate(self) -> Iterator[str]:
        if self.origin.verdict is None:
            return
        if self.deployment.exported.int8:
            yield "This file rounds weights or activations of the student to integers, and is not certified."
        certified_in, has_played = self.origin.certified_in, not math.isnan(self.deployment.torch_return)
        if certified_in is not None and has_played and certified_in != self.deployment.played_in:
            yield f"The certificate is about another environment or config: {code(certified_in)}"


def _summary(student: Teacher, format: str) -> str:
    shape, actions = list(input_shape(student)), int(student.action_space.n)
    return (
        f"A greedy policy as {format}, exported by rllib_kd: a function from observations of the shape {shape}, "
        f"float32, to the Q-values of {actions} actions. Its action is the legal one with the largest Q-value."
    )


def input_limits(student: Teacher) -> Iterator[str]:
    """Yield what happens to an observation before the exported file takes it."""
    if observation_parts(student) is not None:
        yield (
            "The environment's observations have several parts. `rllib_kd/export/runners/flatten.py` makes the vector "
            "of them, by the description below."
        )
    elif outside_stages(student):
        yield "The file takes stacks of frames, which are made outside of it."


def _parts(student: Teacher) -> list[str]:
    """Return in a block how a vector is made of an observation's parts; nothing if an observation is one array."""
    if (parts := observation_parts(student)) is None:
        return []
    lines = ",\n ".join(map(json.dumps, parts))
    return [code_block("json", f"[{lines}]")]


def origin_facts(origin: Origin, teacher: str | None) -> Iterator[str]:
    """Yield what is known of a network's training, as facts of a list; `teacher` takes the place of the recorded."""
    teacher = teacher if teacher is not None else origin.settings.get("teacher")
    if teacher is not None:
        yield f"Teacher: {code(teacher)}"
    if origin.checkpoint is not None:
        yield f"Checkpoint: {code(origin.checkpoint)}"
    if origin.algorithm is not None:
        yield f"Algorithm: {code(origin.algorithm)}"
    settings = ((name, value) for name, value in origin.settings.items() if name != "teacher")
    words = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings]
    if words:
        yield f"Settings: {code(', '.join(words))}"
    if origin.verdict is not None:
        yield f"Certificate beside the checkpoint: {code(origin.verdict, limit=1_000)}"


def how_trained(origin: Origin) -> list[str]:
    """Return the command that trained a network, as blocks; none if it is not recorded."""
    return [] if origin.command is None else ["Trained by:", code_block("bash", origin.command)]


def bullets(facts: Iterator[str]) -> str:
    """Return a list in Markdown."""
    return "\n".join(f"- {fact}" for fact in facts)
