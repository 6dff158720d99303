"""The states of several recurrent students: side by side in one array, or of one vector env."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_kd.networks.recurrent import STATE_PARTS, Memory


class StateLayout:
    """Where each student's units are in states of all students, `[..., layers, units of all]` for each part.

    The students are in the order of their names, whatever the order in which they were given. The states of one student
    are its own, unchanged.

    Args:
        students: recurrent RLModules by name.
    """

    def __init__(self, students: Mapping[str, Any]):
        self._places: dict[str, dict[str, slice]] = {}
        ends = dict.fromkeys(STATE_PARTS, 0)
        for name in sorted(students):
            starts = dict(ends)
            own = students[name].get_initial_state()
            ends |= {part: starts[part] + value.shape[-1] for part, value in own.items()}
            self._places[name] = {part: slice(starts[part], ends[part]) for part in own}

    def join(self, states: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the states of all students, given by name and part; a part that no student has is left out."""
        by_part = {part: [states[name][part] for name in self._places if part in states[name]] for part in STATE_PARTS}
        return {part: np.concatenate(values, axis=-1) for part, values in by_part.items() if values}

    def of(self, name: str, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parts of one student's state, `[..., layers, units]`, of those of all students."""
        return {part: states[part][..., place].contiguous() for part, place in self._places[name].items()}


class FamilyMemory:
    """The states of all students in one vector env. Each takes every step, whoever acts.

    So a student whose turn begins has the state of the whole episode, and each student can learn from every sequence
    from a state of its own.
    """

    def __init__(self) -> None:
        self._memories: dict[str, Memory] = {}

    def begin(self, students: Mapping[str, Any], first: np.ndarray, device: torch.device | str | None = None) -> None:
        """Begin episodes where `first` (`[N]`) is True, as `Memory.begin()`."""
        for name, module in students.items():
            self._memories.setdefault(name, Memory()).begin(module, first, device)

    def step(self, students: Mapping[str, Any], obs: Tensor) -> Tensor:
        """Return Q-values `[students, N, A]` of inputs `[N, ...]`, and take the step into all states."""
        return torch.stack([self._memories[name].step(module, obs) for name, module in students.items()])

    def state_of(self, name: str) -> dict[str, Tensor]:
        """Return a student's state, parts `[N, layers, units]`."""
        return self._memories[name].state

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Return copies of all states, by student and part."""
        return {name: memory.arrays() for name, memory in self._memories.items()}


class PlayingSideBySide:
    """The Q-values of recurrent students, each of which plays in some environments of one vector env.

    Args:
        students: recurrent RLModules.
        acting: place in `students` of the one that plays in each environment, `[N]`.
    """

    def __init__(self, students: Sequence[Any], acting: np.ndarray):
        self._players = [(students[i], Memory(), np.flatnonzero(acting == i)) for i in np.unique(acting)]

    def __call__(self, obs: Tensor, first: np.ndarray) -> Tensor:
        """Return Q-values `[N, A]` of inputs `[N, ...]`; episodes begin where `first` (`[N]`) is True."""
        q: Tensor | None = None
        for module, memory, envs in self._players:
            memory.begin(module, first[envs], obs.device)
            own = memory.step(module, obs[envs])
            q = own.new_empty(len(obs), own.shape[-1]) if q is None else q
            q[envs] = own
        assert q is not None  # there is at least one player
        return q
