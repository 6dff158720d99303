"""Fragments of several environments, cut into sequences of one length for recurrent students."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rllib_kd.observations.frames import VALID
from rllib_kd.wire import LEARNED, STATE_COLUMNS

#: A column of fragments: whether an episode begins in a state.
FIRST = "first"


class OpenSequences:
    """Cuts what environments go through into windows of one length, and these into sequences.

    Windows overlap by the burn-in, so that each state is learned from once. A sequence begins with its window, and
    where an episode begins; it ends where the next one begins, and is padded with zeros. So no sequence has states of
    two episodes. Windows are complete at the same time in all environments; the rest is kept for the next fragment.

    Args:
        length: states of a window, ≥ 1.
        burn_in: states at its beginning that are not learned from, in [0, length − 1]. The first window has none.
    """

    def __init__(self, length: int, burn_in: int):
        #: Length and burn-in.
        self.setting = length, burn_in
        self._length, self._burn_in = length, burn_in
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
            and the state before each sequence, parts `[S, layers, units]`.
        """
        rows = dict(columns)
        if self._rows:
            rows = {name: np.concatenate([self._rows[name], column], axis=1) for name, column in rows.items()}
        parts = np.array_split(np.arange(len(rows[VALID])), num_shards)
        # The first of each is empty: it has the columns, also if no window is complete.
        found = [[self._cut(rows, envs, 0, num_learned=self._length)] for envs in parts]
        start, num_rows = 0, rows[VALID].shape[1]
        while start + self._length <= num_rows:
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
        window = {name: column[envs, start : start + self._length] for name, column in rows.items()}
        states = {name: window.pop(name) for name in STATE_COLUMNS.values() if name in window}
        valid, begins = window.pop(VALID), window.pop(FIRST).copy()
        length = valid.shape[1]
        begins[:, :1] = True
        begins[:, 1:] |= ~valid[:, :-1]  # what follows a state that was dropped has no known past, but a known state
        env, place = np.nonzero(begins)
        ends = np.append(place[1:], length)
        ends[:-1][env[1:] != env[:-1]] = length
        steps = place[:, None] + np.arange(self._length)
        inside = steps < ends[:, None]
        steps = np.minimum(steps, max(0, length - 1))
        is_state = inside & valid[env[:, None], steps]
        learned = is_state & (steps >= num_learned)
        kept = learned.any(-1)
        env, place, steps, is_state, learned = (part[kept] for part in (env, place, steps, is_state, learned))
        sequences: dict[str, np.ndarray] = {LEARNED: learned}
        for name, column in window.items():
            taken = column[env[:, None], steps]
            taken[~is_state] = 0  # padding; and dropped states, whose numbers may not be finite
            sequences[name] = taken
        return sequences | {name: column[env, place] for name, column in states.items()}
