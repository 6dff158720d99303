"""A ring buffer of labelled transitions, one tensor for each column, on the Learner's device.

Rows are *states*, in the order in which one environment visited them, so that the successor of row i is row i + 1: a
next observation is an index, never a copy. States in which no action was taken (the last one of an episode, and the
last one of a fragment) are stored for their predecessor only; the column `valid` marks them False, and they are never
drawn.

Stacks of frames come packed (frames.py) and stay so: one frame a row, and a stack is gathered from a row and those
before it. A state of 4 × 84 × 84 bytes takes 7 KB instead of 28.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rllib_kd.observations.frames import CONTEXT, OBS, VALID, num_frames_of, pack, unpack
from rllib_kd.observations.masks import MASK, NEXT_MASK

logger = logging.getLogger(__name__)

#: Drawn and gathered at once where that is cheaper, as sums over all priorities are.
BATCHES_AT_ONCE = 16

_PRIORITY = "priority"
#: Importance weights treat lower priorities as this share of the mean.
_LEAST_PRIORITY = 1e-4

_MOST_VECTORS = 50_000  # rows
_MOST_IMAGES = 400_000  # rows
_MOST_BYTES = 4 * 2**30


def spread_over(count: int, most: int) -> np.ndarray:
    """Return at most `most` of `count` rows, spread evenly over all, in rising order: `[M]`.

    If not all fit, each of `most` equal parts has one, at random: every second row would be of one phase wherever
    environments or fragments alternate. Equal counts have equal rows, so that equal and resumed runs are the same.

    Args:
        count: number of rows, ≥ 0.
        most: the most to return, ≥ 1.
    """
    if count <= most:
        return np.arange(count)
    ends = np.arange(most + 1) * count // most
    return np.random.default_rng(count).integers(ends[:-1], ends[1:])


class ColumnarReplay:
    """Ring buffer of columns with uniform sampling.

    Attributes:
        OWN_COLUMNS: columns that only the replay reads.

    The first `add` sets the columns, their dtypes and shapes, and whether stacks are packed. Memory is `capacity`
    times the bytes of one row.

    Args:
        capacity: rows kept, ≥ 1, including those that are never drawn. Low: recent states only; high: more diverse
            batches, more memory. Usually 50,000 to 1,000,000. None: set by the first `add`, see `default_capacity()`.
        device: device of the columns and batches.
        seed: seed of the sampling order; None: a random one.
    """

    OWN_COLUMNS: ClassVar[tuple[str, ...]] = (VALID, CONTEXT)

    def __init__(self, capacity: int | None, *, device: torch.device | str = "cpu", seed: int | None = None):
        if capacity is not None and capacity < 1:
            raise ValueError(f"The replay capacity must be at least 1 row, got {capacity}.")
        self.capacity = capacity or 0  # 0: the first `add` chooses it
        self.device = torch.device(device)
        self._columns: dict[str, Tensor] = {}
        self._head = 0  # the row that is written next
        self._size = 0
        self._num_frames = 1  # in a stack, of which a row has the newest
        self._drawable = torch.empty(0, dtype=torch.long, device=self.device)
        self._generator = torch.Generator(self.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of rows that can be drawn."""
        return len(self._drawable)

    @property
    def is_full(self) -> bool:
        """Return whether the next row overwrites the oldest one."""
        return 0 < self.capacity == self._size

    def add(self, columns: Mapping[str, Any]) -> None:
        """Append rows, overwriting the oldest ones.

        Args:
            columns: arrays `[R, ...]`, packed or not; a fragment with more than `capacity` rows keeps its last ones.
                Without the column `valid`, every row can be drawn. If some have `action_mask` and others have not, as
                replays of a version without masks, all actions of the others are legal.

        Raises:
            ValueError: the columns differ in length, or from those added before.
        """
        if not self._columns:
            self._num_frames = num_frames_of(columns)
        self._append(self._in_own_form(columns))

    def add_contents(self, state: Mapping[str, Any]) -> None:
        """Append the contents of another replay's `get_state()`.

        Its ring may begin within a stack of frames. The rest of the first stacks is overwritten, so that these rows
        cannot be drawn here either: the rows before them are others.
        """
        columns, num_frames = dict(state["columns"]), int(state["num_frames"])
        if not columns:
            return
        columns[VALID] = np.array(columns[VALID])
        columns[VALID][: num_frames - 1] = False
        if not self._columns:
            self._num_frames = num_frames
        self._append(self._in_own_form(columns, num_frames))

    def _in_own_form(self, columns: Mapping[str, Any], num_frames: int | None = None) -> dict[str, Any]:
        """Pack or unpack the columns like those in the replay: one env may have stacks, and another none."""
        is_packed = CONTEXT in columns
        if is_packed and self._num_frames == 1:
            columns = unpack(columns, num_frames)
            shape = self._columns[OBS].shape[1:]
            if columns[OBS].shape[1:] != shape:
                columns = {**columns, OBS: np.moveaxis(columns[OBS], -1, 1)}
        elif not is_packed and self._num_frames > 1:
            columns = pack(columns, (*self._columns[OBS].shape[1:], self._num_frames), always=True)
        columns = dict(columns)
        if self._columns and MASK in self._columns and MASK not in columns:
            columns[MASK] = np.ones((len(columns[OBS]), *self._columns[MASK].shape[1:]), dtype=bool)
        elif self._columns and MASK in columns and MASK not in self._columns:
            all_shape = (self.capacity, *columns[MASK].shape[1:])
            self._columns[MASK] = torch.ones(all_shape, dtype=torch.bool, device=self.device)
        return columns

    def _append(self, columns: Mapping[str, np.ndarray | Tensor]) -> None:
        # Copies: arrays from the object store are read-only, which torch does not support.
        rows = {name: torch.tensor(column) for name, column in columns.items()}
        rows.setdefault(VALID, torch.ones(len(next(iter(rows.values()))), dtype=torch.bool))
        count = len(rows[VALID])
        if not any(map(len, rows.values())):
            return
        self._check(rows, count)
        if not self._columns:
            self.capacity = self.capacity or self.default_capacity(rows)
            self._columns = {
                name: torch.zeros((self.capacity, *row.shape[1:]), dtype=row.dtype, device=self.device)
                for name, row in rows.items()
            }
        written = min(count, self.capacity)
        first = min(written, self.capacity - self._head)  # rows before the ring wraps around
        for name, row in rows.items():
            newest = row[count - written :].to(self.device, non_blocking=True)
            self._columns[name][self._head : self._head + first] = newest[:first]
            self._columns[name][: written - first] = newest[first:]
        self._head = (self._head + written) % self.capacity
        self._size = min(self._size + written, self.capacity)
        drawable = self._columns[VALID][: self._size].clone()
        drawable[self._oldest(self._num_frames - 1)] = False  # the rest of their stacks is overwritten
        self._drawable = drawable.nonzero().squeeze(-1)

    def _oldest(self, count: int) -> Tensor:
        """Return the oldest rows, oldest first."""
        ages = torch.arange(min(count, self._size), device=self.device)  # none before the first `add`
        return (ages + self._head - self._size) % max(1, self.capacity)

    def default_capacity(self, rows: Mapping[str, np.ndarray | Tensor]) -> int:
        """Return how many rows are kept if that is not set, by some of them: columns `[R, ...]`."""
        return default_capacity(rows)

    def sample_indices(self, num_batches: int, batch_size: int) -> Tensor:
        """Draw rows uniformly with replacement, `[num_batches, batch_size]`."""
        draws = torch.randint(
            len(self._drawable), (num_batches, batch_size), generator=self._generator, device=self.device
        )
        return self._drawable[draws]

    def draw(self, num_batches: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield for each batch its rows `[batch_size]` and their importance weights: None, since all are 1."""
        for rows in self.sample_indices(num_batches, batch_size):
            yield rows, None

    def choose(self, count: int, rng: np.random.Generator) -> Tensor:
        """Return rows drawn without repetition, in rising order, by a generator of the caller's: `[M]`, M ≤ `count`."""
        if len(self._drawable) <= count:
            return self._drawable
        chosen = rng.choice(len(self._drawable), count, replace=False, shuffle=False)
        return self._drawable[torch.from_numpy(np.sort(chosen)).to(self.device)]

    def spread(self, count: int) -> Tensor:
        """Return rows spread evenly over all that can be drawn, the same at each call: `[M]`, M ≤ `count`."""
        return self._drawable[torch.from_numpy(spread_over(len(self._drawable), count)).to(self.device)]

    def gather(self, rows: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the named columns at `rows` (`[B]`), each `[B, ...]`; `obs` of packed stacks is `[B, H, W, k]`."""
        return {
            name: self._observations(rows) if name == OBS else self._columns[name].index_select(0, rows)
            for name in names
        }

    def _observations(self, rows: Tensor) -> Tensor:
        if self._num_frames == 1:
            return self._columns[OBS].index_select(0, rows)
        ages = torch.arange(1 - self._num_frames, 1, device=self.device)
        stacks = ((rows.unsqueeze(-1) + ages) % self.capacity).flatten()
        return self._columns[OBS].index_select(0, stacks).unflatten(0, (len(rows), -1)).movedim(1, -1)

    def gather_transitions(self, rows: Tensor, *, n_step: int, gamma: float) -> dict[str, Tensor]:
        """Return TD columns at `rows`, looking `n_step` states ahead, or fewer if episode or fragment end earlier.

        Needs the columns `obs`, `rewards`, `terminateds` and `truncateds`.

        Returns:
            `new_obs` `[B, ...]` (the bootstrap state), `new_action_mask` `[B, A]` (its legal actions, if there is a
            column `action_mask`), `rewards` `[B]` (Σ_k γ^k r_k), `terminateds` `[B]` (whether the
            bootstrap state is terminal) and `n_step` `[B]` (the number of steps actually looked ahead).
        """
        columns = self._columns
        rewards = columns["rewards"][rows]
        steps = torch.ones_like(rewards)
        last = rows  # the last transition inside the window
        for _ in range(1, n_step):
            following = self._following(last)
            ended = columns["terminateds"][last] | columns["truncateds"][last] | ~columns[VALID][following]
            going = ~ended
            rewards = rewards + torch.where(going, gamma**steps * columns["rewards"][following], 0.0)
            steps = steps + going
            last = torch.where(going, following, last)
            # A row that has ended stays where it is, so it ends again in the next round.
        new = self._following(last)
        masks = {NEXT_MASK: columns[MASK][new]} if MASK in columns else {}
        return masks | {
            "new_obs": self._observations(new),
            "rewards": rewards,
            "terminateds": columns["terminateds"][last],
            "n_step": steps,
        }

    @property
    def nbytes(self) -> int:
        """Return the bytes of all columns."""
        return sum(column.nbytes for column in self._columns.values())

    @property
    def bytes_of_state(self) -> int:
        """Return the bytes of one row as it is gathered, with its whole stack of frames."""
        return self._num_frames * self.nbytes // max(1, self.capacity)

    def _following(self, rows: Tensor) -> Tensor:
        """Return the states after those at `rows`, skipping rows that are stored only as context of a stack."""
        following = (rows + 1) % self.capacity
        if self._num_frames == 1:
            return following
        return (following + (self._num_frames - 1) * self._columns[CONTEXT][following]) % self.capacity

    def get_state(self, *, with_rows: bool = True) -> dict[str, Any]:
        """Return the contents (oldest row first), their position in the ring, and the state of the sampling order.

        Without rows there are no contents.
        """
        order = self._oldest(self._size)
        return {
            "num_frames": self._num_frames,
            "capacity": self.capacity,
            "head": self._head,
            "columns": {name: column[order].cpu().numpy() for name, column in self._columns.items()}
            if with_rows
            else {},
            "generator": self._generator.get_state().numpy(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Replace the contents by those of `get_state()`; without `generator`, this replay keeps its drawing order.

        In a ring of the same capacity every row gets its former position, so the same draws return the same rows.
        """
        self._columns, self._head, self._size = {}, 0, 0
        self._drawable = self._drawable[:0]
        self._num_frames = int(state["num_frames"])
        if state["columns"]:
            self.capacity = self.capacity or self.default_capacity(state["columns"])
            if int(state["capacity"]) == self.capacity:
                count = len(next(iter(state["columns"].values())))
                self._head = (int(state["head"]) - count) % self.capacity
            self._append(state["columns"])
        if "generator" in state:
            self._continue_drawing(torch.tensor(state["generator"]))  # a copy: it may be read-only

    def _continue_drawing(self, generator: Tensor) -> None:
        """Draw from this state of a generator on, unless it is of another kind of device."""
        if generator.shape == self._generator.get_state().shape:
            self._generator.set_state(generator)
        else:
            logger.warning(
                "The replay was saved on another kind of device than '%s', whose random numbers differ: rows are drawn "
                "in another order than in an uninterrupted run.",
                self.device,
            )

    def _check(self, rows: Mapping[str, Tensor], count: int) -> None:
        lengths = {name: len(row) for name, row in rows.items()}
        if set(lengths.values()) != {count}:
            raise ValueError(f"All columns of a fragment must have the same length, got {lengths}.")
        if self._columns and rows.keys() != self._columns.keys():
            raise ValueError(f"This replay has the columns {sorted(self._columns)}, got {sorted(rows)}.")
        for name, row in rows.items() if self._columns else ():
            if row.shape[1:] != self._columns[name].shape[1:]:
                raise ValueError(
                    f"Column `{name}` of this replay has rows of shape {tuple(self._columns[name].shape[1:])}, "
                    f"got {tuple(row.shape[1:])}."
                )


class PrioritizedReplay(ColumnarReplay):
    """Ring buffer of columns with proportional prioritized sampling (Schaul et al. 2016, arXiv 1511.05952).

    A row is drawn with a probability proportional to its priority^alpha. A new row has the highest priority so far.
    Several batches are drawn at once, so changed priorities take effect in the next ones. The importance weights are
    computed from the probabilities with which the rows were drawn.

    Args:
        capacity: as in `ColumnarReplay`.
        alpha: in [0, 1]. Low: uniform sampling; high: almost only rows with large errors.
        beta: in [0, 1], exponent of the importance weights. 0: no correction for the rows that are drawn more often;
            1: a full one.
        device: as in `ColumnarReplay`.
        seed: as in `ColumnarReplay`.
    """

    OWN_COLUMNS = (VALID, CONTEXT, _PRIORITY)

    def __init__(
        self,
        capacity: int | None,
        *,
        alpha: float,
        beta: float,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ):
        super().__init__(capacity, device=device, seed=seed)
        self._alpha = alpha
        self._beta = beta
        self._highest = torch.ones((), device=self.device)  # priority

    def _append(self, columns: Mapping[str, np.ndarray | Tensor]) -> None:
        count = len(next(iter(columns.values())))
        priority = np.full(count, float(self._highest) ** self._alpha, dtype=np.float32)
        super()._append({_PRIORITY: priority, **columns})

    def draw(self, num_batches: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each batch its rows and their importance weights, both `[batch_size]`.

        As in RLlib, the weight of a row is (lowest probability / its probability)^beta: 1 at most. Probabilities below
        1e-4 of the mean count as that, or a single row with an error of 0 would bring all other weights near 0.
        """
        for first in range(0, num_batches, BATCHES_AT_ONCE):
            shape = (min(BATCHES_AT_ONCE, num_batches - first), batch_size)
            priorities = self._columns[_PRIORITY][self._drawable]
            sums = priorities.cumsum(0, dtype=torch.float64)
            points = sums[-1] * torch.rand(shape, generator=self._generator, device=self.device, dtype=torch.float64)
            drawn = torch.searchsorted(sums, points, right=True).clamp_(max=len(priorities) - 1)
            least = (sums[-1] * (_LEAST_PRIORITY / len(priorities))).to(priorities.dtype)
            lowest = torch.maximum(priorities.min(), least)
            weights = (lowest / priorities[drawn]).clamp_(max=1.0) ** self._beta
            yield from zip(self._drawable[drawn], weights, strict=True)

    def update_priorities(self, rows: Tensor, errors: Tensor) -> None:
        """Give rows a new priority.

        Args:
            rows: `[B]`, as drawn.
            errors: `[B]`, in any unit and of any sign: the priority is their absolute value, at least 1e-12.
        """
        priorities = errors.abs().clamp(min=1e-12)  # as in RLlib
        self._columns[_PRIORITY][rows] = priorities**self._alpha
        self._highest = torch.maximum(self._highest, priorities.max())

    def get_state(self, *, with_rows: bool = True) -> dict[str, Any]:
        """Return the state as `ColumnarReplay.get_state`; the priorities are a column."""
        return super().get_state(with_rows=with_rows) | {"highest_priority": float(self._highest)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Replace the contents as `ColumnarReplay.set_state`."""
        super().set_state(state)
        self._highest.fill_(float(state.get("highest_priority", 1.0)))  # of a uniform replay it has none


def default_capacity(rows: Mapping[str, np.ndarray | Tensor]) -> int:
    """Return the default number of rows: 50,000, for images 400,000, and no more than 4 GiB.

    A student of images plays badly in states that are unlike those it has learned from (docs/pages/learning.md,
    "Images"). A student of vectors soon sees nearly all of its states.

    Args:
        rows: columns, `[R, ...]`.
    """
    is_image = rows[OBS].ndim > 2
    row_bytes = sum(math.prod(row.shape[1:]) * row.dtype.itemsize for row in rows.values())
    return max(1, min(_MOST_IMAGES if is_image else _MOST_VECTORS, _MOST_BYTES // row_bytes))


def make_replay(
    config: Mapping[str, Any], *, device: torch.device | str = "cpu", seed: int | None = None
) -> ColumnarReplay:
    """Return the replay of a `replay_buffer_config`, prioritized if its `alpha` is above 0."""
    if alpha := config.get("alpha"):
        return PrioritizedReplay(config["capacity"], alpha=alpha, beta=config["beta"], device=device, seed=seed)
    return ColumnarReplay(config["capacity"], device=device, seed=seed)
