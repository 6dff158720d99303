"""The states and steps of one call of sampling, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns

from rllib_kd.environments.returned import NotFinite, find_not_finite
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.masks import MASK
from rllib_kd.wire import TEACHER_Q


class Fragment:
    """The states and steps of one call of sampling: columns `[N, ...]` for each step of the vector env.

    Gymnasium's vector envs reset in the step after an episode's end (NEXT_STEP), and ignore the action of that step.
    So an episode's last state is a row like the others, in which no action counts.

    Args:
        ended_before: `[N]`, whether the environment's last step before this fragment ended an episode.
        begins: whether all environments begin new episodes with it.
        is_labelled: `[T]`, whether the teacher labels each step in turn, over and over; None: all.
    """

    def __init__(self, ended_before: np.ndarray, *, begins: bool = False, is_labelled: np.ndarray | None = None):
        self.ended_before = ended_before
        self.begins = begins
        self._is_labelled = np.ones(1, dtype=bool) if is_labelled is None else is_labelled
        self.steps: list[dict[str, np.ndarray]] = []
        self.final_obs: np.ndarray | None = None  # [N, ...], from which sampling continues
        self.final_mask: np.ndarray | None = None  # [N, A], the legal actions there, if the environments have masks
        self.restarted = False
        self.num_dropped = 0  # of the states in `columns()`: those that nothing can be learned from
        self.num_not_finite: dict[str, int] = {}  # of those by cause
        self._decision: dict[str, np.ndarray] = {}

    def decide(self, obs: np.ndarray, labels: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
        """Add observations, their labels and the chosen actions, `[N, ...]`."""
        self._decision = {Columns.OBS: obs, **labels, Columns.ACTIONS: actions}

    def step(self, rewards: np.ndarray, terminateds: np.ndarray, truncateds: np.ndarray) -> None:
        """Add the results of the actions, each `[N]`."""
        # Copies: vector envs may write the next ones into the same arrays.
        outcome = {
            Columns.REWARDS: np.array(rewards),
            Columns.TERMINATEDS: np.array(terminateds),
            Columns.TRUNCATEDS: np.array(truncateds),
        }
        self.steps.append(self._decision | outcome)

    def restart(self) -> None:
        """Drop everything: the env has failed and was replaced."""
        self.ended_before = np.zeros_like(self.ended_before)
        self.restarted = self.begins = True
        self.steps.clear()

    @property
    def labels_next(self) -> bool:
        """Return whether the teacher labels the states of the step that comes."""
        return bool(self._is_labelled[len(self.steps) % len(self._is_labelled)])

    @property
    def ended_after(self) -> np.ndarray:
        """Return `[N]`, whether the environment's last step ended an episode."""
        return self.steps[-1][Columns.TERMINATEDS] | self.steps[-1][Columns.TRUNCATEDS]

    def transitions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return step by step, `[T, N]`: whether the action counted, the reward, and whether an episode ended."""
        ended = self._stacked(Columns.TERMINATEDS) | self._stacked(Columns.TRUNCATEDS)
        counts = ~np.concatenate([self.ended_before[np.newaxis], ended[:-1]])
        return counts, self._stacked(Columns.REWARDS), ended

    def end_episodes(self, lengths: np.ndarray, returns: np.ndarray) -> tuple[int, list[int], list[float]]:
        """Add the steps to the running episodes, `[N]`.

        Args:
            lengths: lengths of the running episodes, which change in place; a new episode begins at 0.
            returns: their returns, likewise.

        Returns:
            The number of steps whose action counted, and the lengths and returns of the ended episodes in order.
        """
        ended_lengths: list[int] = []
        ended_returns: list[float] = []
        counts, rewards, ended = self.transitions()
        for counted, gained, ends in zip(counts, rewards * counts, ended, strict=True):
            lengths += counted
            returns += gained
            if ends.any():
                ended_lengths += lengths[ends].tolist()
                ended_returns += returns[ends].tolist()
                lengths[ends], returns[ends] = 0, 0.0
        return int(counts.sum()), ended_lengths, ended_returns

    def find_not_finite(self) -> tuple[NotFinite, str] | None:
        """Return the first environment with rewards or observations that are not finite, and the method they come from.

        Returns:
            None if all numbers are finite. For the first states it is unknown whether they come from step() or reset().
        """
        rewards = as_rewards(self._stacked(Columns.REWARDS)).swapaxes(0, 1)
        if (found := find_not_finite(rewards, "reward")) is not None:
            at = np.flatnonzero(~np.isfinite(found.got))[0]
            return found._replace(got=found.got[at]), "step"
        states = self._states()
        if states.dtype == np.uint8 or (found := find_not_finite(states, "observation")) is None:
            return None
        at = np.argwhere(~np.isfinite(found.got))[0][0]
        counts, _, _ = self.transitions()
        doing = "step() or reset" if at == 0 else "step" if counts[at - 1, found.env_index] else "reset"
        return found._replace(got=found.got[at]), doing

    def _states(self) -> np.ndarray:
        """Return the states `[N, T + 1, ...]`, including the one from which sampling continues."""
        return _stack([*(step[Columns.OBS] for step in self.steps), np.asarray(self.final_obs)]).swapaxes(0, 1)

    def _stacked(self, name: str) -> np.ndarray:
        """Return a column step by step, `[T, N, ...]`; zeros where a step lacks it."""
        rows = [step[name] for step in self.steps if name in step]
        if len(rows) < len(self.steps):
            blank = np.zeros_like(rows[0])
            rows = [step.get(name, blank) for step in self.steps]
        return _stack(rows)

    def columns(self) -> dict[str, np.ndarray]:
        """Return everything as columns `[N, T, ...]`; rows of steps without labels are not valid."""
        states = self._states()
        counts, rewards, _ = self.transitions()
        made = {Columns.OBS: states[:, :-1], Columns.REWARDS: as_rewards(rewards).swapaxes(0, 1)}
        whole = max(self.steps, key=len)  # a step with labels, if there is one
        columns = {name: made[name] if name in made else self._stacked(name).swapaxes(0, 1) for name in whole}
        has_labels = np.array([len(step) == len(whole) for step in self.steps])
        columns[VALID] = counts.swapaxes(0, 1)
        usable = is_usable(states, columns[Columns.REWARDS], columns.get(TEACHER_Q))
        self.num_dropped = int((columns[VALID] & ~usable).sum())
        if self.num_dropped:
            self.num_not_finite = count_not_finite(columns[VALID] & ~usable, states, columns[Columns.REWARDS])
        columns[VALID] &= usable & has_labels
        return columns


def append_final_states(
    columns: Mapping[str, np.ndarray], final_obs: Any, final_mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Append to each trajectory its final state, a row in which no action was taken yet."""
    extended, final = {}, {Columns.OBS: final_obs, MASK: final_mask}
    for name, column in columns.items():
        last = final[name] if name in final else np.zeros_like(column[:, 0])
        extended[name] = np.concatenate([column, last[:, None]], axis=1)
    return extended


def as_rewards(rewards: Any) -> np.ndarray:
    """Return rewards as 32-bit floats; larger ones become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(rewards).astype(np.float32)


def is_usable(states: np.ndarray, rewards: np.ndarray, teacher_q: np.ndarray | None) -> np.ndarray:
    """Return whether a row can be learned from: its state, the next one, its reward and its label are finite.

    In labels, −inf marks illegal actions and is valid.

    Args:
        states: `[..., T + 1, *obs]`, including the one after the last row.
        rewards: `[..., T]`.
        teacher_q: `[..., T, A]`; None without a teacher.

    Returns:
        `[..., T]`.
    """
    usable = np.isfinite(rewards)
    if states.dtype != np.uint8:
        usable &= _shows_finite(states, rewards.ndim)
    if teacher_q is not None:
        usable &= np.isfinite(teacher_q).any(-1) & ~(np.isnan(teacher_q) | np.isposinf(teacher_q)).any(-1)
    return usable


def count_not_finite(dropped: np.ndarray, states: np.ndarray, rewards: np.ndarray) -> dict[str, int]:
    """Count the dropped rows by cause: observations, rewards or labels that are not finite.

    Labels count only if the state, the next one and the reward are finite: otherwise the teacher is not the cause.

    Args:
        dropped: `[..., T]`, whether a row is unusable.
        states: `[..., T + 1, *obs]`.
        rewards: `[..., T]`.
    """
    not_shown = dropped & ~_shows_finite(states, rewards.ndim)
    not_rewarded = dropped & ~np.isfinite(rewards)
    return {
        "observations": int(not_shown.sum()),
        "rewards": int(not_rewarded.sum()),
        "labels": int((dropped & ~not_shown & ~not_rewarded).sum()),
    }


def _shows_finite(states: np.ndarray, num_axes: int) -> np.ndarray:
    """Return `[..., T]`, whether a state in `[..., T + 1, *obs]` and the next are finite; `num_axes` of `[..., T]`."""
    finite = np.isfinite(states).reshape(*states.shape[:num_axes], -1).all(-1)
    return finite[..., :-1] & finite[..., 1:]


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Return rows `[N, ...]` of T steps as `[T, N, ...]`: `np.stack()` takes four times as long for many small ones."""
    return np.concatenate(rows).reshape(len(rows), *rows[0].shape)
