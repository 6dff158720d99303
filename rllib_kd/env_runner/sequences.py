"""Fragments of several environments, cut into sequences of one length for recurrent students."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rllib_kd.observations.frames import OBS, VALID
from rllib_kd.observations.masks import MASK
from rllib_kd.wire import LEARNED, NEXT_STATE_COLUMNS, STATE_COLUMNS

#: A column of fragments: whether an episode begins in a state.
FIRST = "first"

#: What TD reads of the next state, too.
_OF_NEXT = (OBS, MASK)


class OpenSequences:
    """Cuts what environments go through into windows of one length, and these into sequences.

    Windows overlap by the burn-in, so that each state is learned from once. A sequence begins with its window, and
    where an episode begins; it ends where the next one begins, and is padded with zeros. So no sequence has states of
    two episodes. Windows are complete at the same time in all environments; the rest is kept for the next fragment.

    Args:
        length: states of a window, ≥ 1.
        burn_in: states at its beginning that are not learned from, in [0, length − 1]. The first window has none.
        with_next: whether TD learns from them, for which `obs` and `action_mask` have one step more, the next state of
            the last one. A state whose next one is unknown, since the environment was replaced, is not learned from.
    """

    def __init__(self, length: int, burn_in: int, with_next: bool = False):
        #: Length, burn-in, and whether the next states are there.
        self.setting = length, burn_in, with_next
        self._length, self._burn_in, self._with_next = length, burn_in, with_next
        self._rows: dict[str, np.ndarray] = {}  # `[N, t, ...]`, t < length
        self._num_learned = 0  # of these, which are in an earlier window

    def add(self, columns: Mapping[str, np.ndarray], num_shards: int) -> list[dict[str, np.ndarray]]:
        """Add a fragment, and return the sequences that are complete.

        Args:
            columns: `[N, t, ...]`, with `first` and `valid` `[N, t]`, and the student's state before each of these
                states, parts `[N, t, layers, units]`.
            num_shards: number of Learners, ≥ 1, each of which gets the sequences of different environments.

        Returns:
            For each Learner columns `[S, length, ...]`, with `learned` `[S, length]` instead of `valid` and `first`;
            and the student's state before each sequence, parts `[S, layers, units]`; for TD also that before its second
            step.
        """
        rows = dict(columns)
        if self._rows.keys() != rows.keys():
            self._rows, self._num_learned = {}, 0  # there are none yet, or an earlier version kept other columns
        else:
            rows = {name: np.concatenate([self._rows[name], column], axis=1) for name, column in rows.items()}
        parts = np.array_split(np.arange(len(rows[VALID])), num_shards)
        # The first of each is empty: it has the columns, also if no window is complete.
        found = [[self._cut(rows, envs, 0, num_learned=self._length)] for envs in parts]
        start, num_rows = 0, rows[VALID].shape[1]
        while start + self._length + self._with_next <= num_rows:
            for sequences, envs in zip(found, parts, strict=True):
                sequences.append(self._cut(rows, envs, start, self._num_learned))
            start += self._length - self._burn_in
            self._num_learned = self._burn_in
        self._rows = {name: column[:, start:].copy() for name, column in rows.items()}
        return [{name: np.concatenate([own[name] for own in parts]) for name in parts[0]} for parts in found]

    def _cut(
        self, rows: Mapping[str, np.ndarray], envs: np.ndarray, start: int, num_learned: int
    ) -> dict[str, np.ndarray]:
        """Return the sequences of the window of these environments at `start`."""
        window = {name: column[envs, start : start + self._length + self._with_next] for name, column in rows.items()}
        states = {part: window.pop(name) for part, name in STATE_COLUMNS.items() if name in window}
        valid, first = window.pop(VALID), window.pop(FIRST)
        begins = first[:, : self._length].copy()
        begins[:, :1] = True
        # What follows a state that was dropped has no known past, but a known state.
        begins[:, 1:] |= ~valid[:, : self._length][:, :-1]
        env, place = np.nonzero(begins)
        ends = np.append(place[1:], begins.shape[1])
        ends[:-1][env[1:] != env[:-1]] = begins.shape[1]
        steps = place[:, None] + np.arange(self._length + self._with_next)
        inside = steps[:, : self._length] < ends[:, None]
        steps = np.minimum(steps, max(0, valid.shape[1] - 1))
        is_state = inside & valid[env[:, None], steps[:, : self._length]]
        learned = is_state & (steps[:, : self._length] >= num_learned)
        if self._with_next:
            learned &= ~first[env[:, None], steps[:, 1:]]
        kept = learned.any(-1)
        env, place, steps, is_state, learned = (part[kept] for part in (env, place, steps, is_state, learned))
        has_next = np.pad(is_state, ((0, 0), (0, 1)))
        has_next[:, 1:] |= is_state  # these states, and the one after each
        sequences: dict[str, np.ndarray] = {LEARNED: learned}
        for name, column in window.items():
            shown = has_next if self._with_next and name in _OF_NEXT else is_state
            taken = column[env[:, None], steps[:, : shown.shape[1]]]
            taken[~shown] = 0  # padding; and dropped states, whose numbers may not be finite
            sequences[name] = taken
        for part, state in states.items():
            sequences[STATE_COLUMNS[part]] = state[env, place]
            if self._with_next:
                sequences[NEXT_STATE_COLUMNS[part]] = state[env, place + 1]
        return sequences
