"""What one call of sampling saw, as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns

from rllib_kd.environments.returned import NotFinite, find_not_finite
from rllib_kd.observations.frames import VALID
from rllib_kd.wire import TEACHER_Q


class Fragment:
    """What one call of sampling saw: columns `[N, ...]` for each step of the vector env.

    Gymnasium's vector envs reset in the step after an episode's end (NEXT_STEP), and ignore the action of that step.
    So an episode's last state is a row like the others, in which no action counts.

    Args:
        ended_before: `[N]`, whose last step before this fragment ended an episode.
    """

    def __init__(self, ended_before: np.ndarray):
        self.ended_before = ended_before
        self.steps: list[dict[str, np.ndarray]] = []
        self.final_obs: np.ndarray | None = None  # [N, ...], where sampling goes on
        self.restarted = False
        self.num_dropped = 0  # of the states in `columns()`: those that nothing can be learned from
        self.num_not_finite: dict[str, int] = {}  # of those by cause
        self._decision: dict[str, np.ndarray] = {}

    def decide(self, obs: np.ndarray, labels: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
        """What was seen, what the teacher says of it, and what was chosen, `[N, ...]`."""
        self._decision = {Columns.OBS: obs, **labels, Columns.ACTIONS: actions}

    def step(self, rewards: np.ndarray, terminateds: np.ndarray, truncateds: np.ndarray) -> None:
        """What came of it, each `[N]`."""
        # Copies: vector envs may write the next ones into the same arrays.
        outcome = {
            Columns.REWARDS: np.array(rewards),
            Columns.TERMINATEDS: np.array(terminateds),
            Columns.TRUNCATEDS: np.array(truncateds),
        }
        self.steps.append(self._decision | outcome)

    def restart(self) -> None:
        """Forget everything: the env has failed and was made anew."""
        self.ended_before = np.zeros_like(self.ended_before)
        self.restarted = True
        self.steps.clear()

    @property
    def ended_after(self) -> np.ndarray:
        """`[N]`, whose last step ended an episode."""
        return _ends(self.steps[-1])

    def transitions(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each step: where an action counted `[N]`, rewards `[N]`, and where an episode ended `[N]`."""
        ended = self.ended_before
        for step in self.steps:
            counts = ~ended
            ended = _ends(step)
            yield counts, step[Columns.REWARDS], ended

    def find_not_finite(self) -> tuple[NotFinite, str] | None:
        """Find the first environment with rewards or observations that are not finite; and the method they came from.

        Returns:
            None if all numbers are finite. Whether the first states came from a step or a reset is not known here.
        """
        rewards = as_rewards(np.stack([step[Columns.REWARDS] for step in self.steps], axis=1))
        if (found := find_not_finite(rewards, "reward")) is not None:
            at = np.flatnonzero(~np.isfinite(found.got))[0]
            return found._replace(got=found.got[at]), "step"
        states = self._states()
        if states.dtype == np.uint8 or (found := find_not_finite(states, "observation")) is None:
            return None
        at = np.argwhere(~np.isfinite(found.got))[0][0]
        acted = [counts[found.env_index] for counts, _, _ in self.transitions()]
        doing = "step() or reset" if at == 0 else "step" if acted[at - 1] else "reset"
        return found._replace(got=found.got[at]), doing

    def _states(self) -> np.ndarray:
        """`[N, T + 1, ...]`, with the state in which sampling goes on."""
        return np.stack([*(step[Columns.OBS] for step in self.steps), np.asarray(self.final_obs)], axis=1)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything as columns `[N, T, ...]`."""
        columns = {name: np.stack([step[name] for step in self.steps], axis=1) for name in self.steps[0]}
        columns[Columns.REWARDS] = as_rewards(columns[Columns.REWARDS])
        columns[VALID] = np.stack([counts for counts, _, _ in self.transitions()], axis=1)
        states = self._states()
        usable = is_usable(states, columns[Columns.REWARDS], columns.get(TEACHER_Q))
        self.num_dropped = int((columns[VALID] & ~usable).sum())
        if self.num_dropped:
            self.num_not_finite = count_not_finite(columns[VALID] & ~usable, states, columns[Columns.REWARDS])
        columns[VALID] &= usable
        return columns


def append_final_states(columns: Mapping[str, np.ndarray], final_obs: Any) -> dict[str, np.ndarray]:
    """Add to each trajectory the state that it leads to: a row that no action was taken in, yet."""
    extended = {}
    for name, column in columns.items():
        last = final_obs if name == Columns.OBS else np.zeros_like(column[:, 0])
        extended[name] = np.concatenate([column, last[:, None]], axis=1)
    return extended


def as_rewards(rewards: Any) -> np.ndarray:
    """Rewards of 32 bits; what is too large for them is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(rewards).astype(np.float32)


def is_usable(states: np.ndarray, rewards: np.ndarray, teacher_q: np.ndarray | None) -> np.ndarray:
    """Whether something can be learned from a row: its state, the next one and its reward are finite, and labelled.

    A teacher that does not know a state cannot label it. −inf marks illegal actions, and is fine.

    Args:
        states: `[..., T + 1, *obs]`, with the one that follows the last row.
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
    """How many of the dropped rows have observations, and how many rewards, that are not finite; else it is the labels.

    What a teacher says of an observation that is not finite, or after one, is no fault of its own.

    Args:
        dropped: `[..., T]`, which rows are unusable.
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
    """`[..., T]`, where a state `[..., T + 1, *obs]` and the next one are finite; `num_axes` of `[..., T]`."""
    finite = np.isfinite(states).reshape(*states.shape[:num_axes], -1).all(-1)
    return finite[..., :-1] & finite[..., 1:]


def _ends(step: Mapping[str, np.ndarray]) -> np.ndarray:
    """`[N]`, whose episode the step ends."""
    return step[Columns.TERMINATEDS] | step[Columns.TRUNCATEDS]
