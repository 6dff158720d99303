"""The costs of a size: parameters, bytes, multiply-adds and latency; and the smallest size by one of them."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd.export.artifact import latencies_ms
from rllib_kd.export.c.integers import check_integers
from rllib_kd.export.c.integers_c import integer_body
from rllib_kd.export.c.program import lower
from rllib_kd.export.c.reference import closest_integers
from rllib_kd.export.formats import describe, input_shape, write_safetensors
from rllib_kd.export.units import measured_cost
from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher

#: Two latencies are the same unless one is longer by this share, in the median of the repeats, ...
_RESOLUTION = 0.05
#: ... and longer at all in this share of the repeats.
_LONGER_IN = 0.75
#: Of a tree's test, numbers that a safetensors file lists in the description of the layers: the entry and two children;
#: and the bytes that each of its numbers counts as, as a weight does.
_LISTED, _BYTES_OF_NUMBER = 3, 4
#: Observations by which integers are scaled, to count their bytes.
_NUM_OBS = 4


@dataclass(frozen=True)
class Cost:
    """The cost of a size.

    Args:
        num_parameters: acting parameters.
        num_bytes: of the weights as float32 in an exported safetensors file, without its description of the layers;
            None if the student cannot be exported so.
        latencies_ms: time of one decision of that file in the numpy runner, on one thread, ms: a median for each
            repeat, in which all sizes took turns. Empty if it was not measured.
        multiply_adds: of one decision, in linear layers and convolutions; None if the student cannot be exported to C.
        num_int8_bytes: of all constants as C with weights of 8 bits; None if it was not measured.
    """

    num_parameters: int
    num_bytes: int | None = None
    latencies_ms: tuple[float, ...] = ()
    multiply_adds: int | None = None
    num_int8_bytes: int | None = None

    @property
    def latency_ms(self) -> float | None:
        """Return the median latency, ms; None if it was not measured."""
        return statistics.median(self.latencies_ms) if self.latencies_ms else None

    def by(self, minimize: str) -> float:
        """Return the cost that is minimized, one of `MINIMIZED` (latency in ms). `measure()` must have measured it."""
        cost = measured_cost(self, minimize)
        assert cost is not None, minimize  # None must not rank as the smallest
        return cost

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Cost:
        """Return the cost of which `asdict()` was written as JSON."""
        return cls(**{**content, "latencies_ms": tuple(content["latencies_ms"])})


def measure(modules: Mapping[str, Any], pipeline: ObservationPipeline, minimize: str) -> dict[str, Cost]:
    """Return the cost of each module, by name.

    Args:
        modules: a student of each size; weights do not matter.
        pipeline: from the environment's observations to their inputs.
        minimize: one of `MINIMIZED`; latencies and bytes of integers are measured only if they are to be minimized.

    Raises:
        ValueError: something else than parameters is to be minimized, but the students cannot be exported to the
            format that has it: safetensors, or C for multiply-adds and bytes of integers.
    """
    modules = {name: _full(module) for name, module in modules.items()}
    counts = {name: count_parameters(module) for name, module in modules.items()}
    students = {name: Teacher(module, pipeline=pipeline, source="student") for name, module in modules.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.safetensors" for number, name in enumerate(modules)}
        try:
            for name, student in students.items():
                write_safetensors(student, files[name])
            is_needed = minimize == "multiply_adds"
            work = {name: _multiply_adds(student, is_needed=is_needed) for name, student in students.items()}
            integers = {name: _int8_bytes(one) for name, one in students.items()} if minimize == "int8_bytes" else {}
        except ValueError as error:
            if minimize == "parameters":
                return {name: Cost(count) for name, count in counts.items()}
            kind = {"int8_bytes": "C with integers", "multiply_adds": "C"}.get(minimize, "safetensors")
            raise ValueError(f"To minimize {minimize}, students must be exportable to {kind}: {error}") from error
        sizes = {name: _num_bytes(files[name], module) for name, module in modules.items()}
        times = latencies_ms(list(files.values())) if minimize == "latency" else [[] for _ in files]
    return {
        name: Cost(counts[name], sizes[name], tuple(own), work[name], integers.get(name))
        for name, own in zip(modules, times, strict=True)
    }


def _full(module: Any) -> Any:
    """Return a module; of a tree, one with all leaves that it may have, since it may not have grown yet."""
    if not isinstance(module, TreeRLModule):
        return module
    full = copy.deepcopy(module)
    full.tree = Tree.full(module.shape.max_leaf_nodes, int(module.action_space.n), num_features=len(module.features))
    return full


def ranked(costs: Mapping[str, Cost], minimize: str) -> list[str]:
    """Return the sizes from the smallest to the largest.

    Latencies that differ by no more than the noise count as equal. Equal ones are in the order of their parameters.

    Args:
        costs: cost of each size, by name.
        minimize: one of `MINIMIZED`.
    """
    if minimize != "latency":
        return sorted(costs, key=lambda name: (costs[name].by(minimize), costs[name].num_parameters))
    left, order = sorted(costs, key=lambda name: costs[name].by(minimize)), list[str]()
    while left:
        fastest = costs[left[0]].latencies_ms
        same = [name for name in left if not _is_longer(costs[name].latencies_ms, fastest)]
        order += sorted(same, key=lambda name: costs[name].num_parameters)
        left = [name for name in left if name not in same]
    return order


def _is_longer(latencies: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether a latency is longer than another beyond the noise: repeats are compared in pairs."""
    ratios = [one / other for one, other in zip(latencies, others, strict=True)]
    in_share = sum(ratio > 1.0 for ratio in ratios) / len(ratios)
    return statistics.median(ratios) > 1.0 + _RESOLUTION and in_share >= _LONGER_IN


def _num_bytes(file: Path, module: Any) -> int:
    """Return the size of the tensors in a safetensors file: bytes. Of a tree, those of its tests' lists are added."""
    data = file.read_bytes()
    num_listed = _LISTED * module.tree.num_inner if isinstance(module, TreeRLModule) else 0
    return len(data) - 8 - int.from_bytes(data[:8], "little") + _BYTES_OF_NUMBER * num_listed


def _multiply_adds(student: Teacher, *, is_needed: bool) -> int | None:
    """Return the multiply-adds as C has them; None if C cannot hold the student, and they are not needed."""
    layers, tensors = describe(student)
    try:
        return lower(layers, tensors, input_shape(student)).multiply_adds
    except ValueError:
        if is_needed:
            raise
        return None


def _int8_bytes(student: Teacher) -> int:
    """Return the bytes of all constants in C with integers; they do not depend on the observations that set scales."""
    layers, tensors = describe(student)
    shape = input_shape(student)
    program = lower(layers, tensors, shape)
    check_integers(program)
    obs = np.random.default_rng(0).uniform(0.0, 1.0, (_NUM_OBS, *shape)).astype(np.float32)
    network = closest_integers(layers, program, tensors, obs)
    return integer_body(network, tensors).arrays.num_bytes
