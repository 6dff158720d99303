"""Recorded states that judge students if there is no environment: some choose, others certify."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from ray.rllib.core.columns import Columns

from rllib_kd.algorithm.checks.offline import check_offline
from rllib_kd.certificates.agreement import AgreementTest, fewest_units
from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.certificates.certification import MAX_EPISODES
from rllib_kd.evaluation.validation import Validation
from rllib_kd.learner.label_statistics import QStatistics, agrees, regret
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.observations.images import as_input
from rllib_kd.offline.data import all_files, check_teacher_of
from rllib_kd.offline.rows import LearnerColumns
from rllib_kd.offline.stream import Piece
from rllib_kd.offline.subset import BLOCK_ROWS, Subset, has_episodes, place_of
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import TEACHER_Q

#: Share of all units that judge, by default: half of them choose, the others certify.
HELD_OUT = 0.2
#: Fewer units than these choose nothing.
_LEAST_TO_CHOOSE = 10
#: Units that choose, and units that certify, at most.
_MOST_UNITS = MAX_EPISODES
#: States of a unit, at least (if it has as many) and at most: between these, as many as all units may have numbers.
_STATES_OF_A_UNIT, _MOST_NUMBERS = (8, 256), 2**27
_AT_ONCE = 4_096  # states


class HeldOutStates:
    """States in units (episodes, or blocks of rows), with the teacher's labels.

    Args:
        obs: as replays have them, `[N, ...]`, the states of a unit one after the other.
        labels: the teacher's outputs, `[N, A]`; −inf marks illegal actions.
        sizes: number of states of each unit, `[U]`, each ≥ 1.
    """

    def __init__(self, obs: np.ndarray, labels: np.ndarray, sizes: np.ndarray):
        self._obs, self._labels, self._sizes = obs, labels, sizes
        self._starts = np.cumsum(sizes) - sizes

    @property
    def num_units(self) -> int:
        """Return U."""
        return len(self._sizes)

    @property
    def num_rows(self) -> int:
        """Return N."""
        return len(self._obs)

    def add_to(self, digest: Any) -> None:
        """Add the states and their units to a hash; not the labels, which may differ between machines."""
        for array in (self._sizes, self._obs):
            digest.update(np.ascontiguousarray(array).tobytes())

    @torch.no_grad()
    def agreements(self, module: Any, first: int, count: int) -> np.ndarray:
        """Return the share of the states of each unit in which a student agrees with the teacher, `[count]`.

        Args:
            module: RLModule with Q-values.
            first: number of the first unit; after the last one they begin again.
            count: number of units.
        """
        if not count:
            return np.empty(0)
        units = (first + np.arange(count)) % self.num_units
        sizes = self._sizes[units]
        ends = np.cumsum(sizes)
        rows = np.arange(ends[-1]) + np.repeat(self._starts[units] - (ends - sizes), sizes)
        agrees = np.concatenate([self._agree(module, rows[i : i + _AT_ONCE]) for i in range(0, len(rows), _AT_ONCE)])
        return np.add.reduceat(agrees, ends - sizes) / sizes

    @torch.no_grad()
    def regret(self, module: Any) -> float:
        """Return a student's mean Q-regret over all states, in units of the labels."""
        regrets = []
        for first in range(0, self.num_rows, _AT_ONCE):
            labels, chosen = self._choices(module, np.arange(first, min(first + _AT_ONCE, self.num_rows)))
            regrets.append(regret(labels, chosen))
        return float(torch.cat(regrets).mean())

    def median_gap(self) -> float:
        """Return the median action gap of the teacher: as `QStatistics.median_gap()`."""
        statistics = QStatistics(self._labels.shape[-1])
        for labels in torch.tensor(self._labels).split(_AT_ONCE):
            statistics.update(labels)
        return statistics.median_gap()

    def _agree(self, module: Any, rows: np.ndarray) -> np.ndarray:
        """Return 1.0 for those of some states in which a student takes an action that is as good as the teacher's."""
        labels, chosen = self._choices(module, rows)
        return agrees(labels, chosen).double().numpy()

    def _choices(self, module: Any, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the teacher's labels of some states, `[R, A]`, and a student's actions, `[R]`."""
        labels = torch.tensor(self._labels[rows])
        obs = as_input(torch.tensor(self._obs[rows]), module.observation_space.shape)
        outputs = module.compute_q_values({Columns.OBS: obs})[QF_PREDS]
        return labels, outputs.masked_fill(labels == -torch.inf, -torch.inf).argmax(-1)


@dataclass(frozen=True)
class HeldOut:
    """What judges students of recorded rows: no student learns from these rows.

    Args:
        choice: states that choose among students.
        test: states that certify, and choose nothing.
        set_aside: share of all units that a run must not read: the setting of this name.
        unit: what states come in, as a plural: "episodes" or "blocks of 64 rows".
        fingerprint: text that is equal for the same held-out states of files of equal names and sizes.
    """

    choice: HeldOutStates
    test: HeldOutStates
    set_aside: float
    unit: str
    fingerprint: str

    def settings(self) -> dict[str, float]:
        """Return the settings of a run that reads none of these rows, and holds out no others."""
        return {"set_aside": self.set_aside, "held_out": 0.0}

    def new_test(self) -> Callable[..., RatioTest]:
        """Return what makes a test of agreement, with the arguments of `RatioTest`."""
        return partial(AgreementTest, unit=self.unit)

    def facts(self) -> dict[str, Any]:
        """Return the numbers of states and units, for certificate.json."""
        both = {"choice": self.choice, "certificate": self.test}
        numbers = {name: {"units": states.num_units, "rows": states.num_rows} for name, states in both.items()}
        return {"unit": self.unit, "share_of_units": self.set_aside, **numbers}


def has_input(settings: Mapping[str, Any]) -> bool:
    """Return whether settings name recorded rows."""
    return bool(settings.get("input_")) and settings["input_"] != "sampler"


def check_without_environment(settings: Mapping[str, Any], keep: float | None) -> None:
    """Check that a search without an environment has recorded rows, and an agreement that can be proven.

    Raises:
        ValueError: it has none, or the agreement cannot be proven.
    """
    if not has_input(settings):
        raise ValueError(
            "Neither an environment nor recorded rows are given. Name an environment in which students play (--env, "
            "env=...), or rows on which they are compared with their teacher (--input, config={'input_': ...})."
        )
    if keep is not None and not keep < 1:
        raise ValueError(
            f"keep must be in (0, 1) without an environment, got {keep!r}: no test proves an agreement of 1."
        )
    if settings.get("env_config"):
        raise ValueError("`env_config` needs an environment: --env (env=...). Leave it out.")


def hold_out_of(
    config: Any, settings: Mapping[str, Any], teacher: Teacher, *, keep: float | None, confidence: float
) -> HeldOut:
    """Read the states that judge the students of a search without an environment: `hold_out()` by its settings.

    Args:
        config: config of its students.
        settings: settings that were given, by name. `held_out` is the share of all units.
        teacher: the teacher.
        keep: as in `hold_out()`.
        confidence: as in `hold_out()`.

    Raises:
        DataError: as of `hold_out()`.
        ValueError: as of `hold_out()`; or a setting is refused.
    """
    if "set_aside" in settings:
        raise ValueError("The setting 'set_aside' cannot be in the config: it follows from `held_out`. Leave it out.")
    check_offline(config)
    share = config.held_out if "held_out" in settings else HELD_OUT
    if not share:
        raise ValueError("held_out=0 leaves no rows to judge students by. Set a share in (0, 0.5], or leave it out.")
    return hold_out(config, teacher, share=share, keep=keep, confidence=confidence)


def hold_out(config: Any, teacher: Teacher, *, share: float, keep: float | None, confidence: float) -> HeldOut:
    """Read the states that judge the students of recorded rows.

    The unit is an episode if the rows name theirs (`eps_id`), and otherwise a block of `BLOCK_ROWS` rows of a file.

    Args:
        config: config of a run, with `input_`.
        teacher: the teacher, which labels rows without labels.
        share: of all units, in (0, 0.9]; half of them choose.
        keep: agreement to certify; None: nothing is certified.
        confidence: of the certificate.

    Raises:
        DataError: rows cannot be read, or the labels are another teacher's.
        ValueError: there are too few units to choose, or for any certificate.
    """
    files = all_files(config)
    check_teacher_of(files, teacher)
    unit = "episodes" if has_episodes(files) else f"blocks of {BLOCK_ROWS} rows"
    choice, test = (_read(Subset(files, low, high), teacher) for low, high in ((0.0, share / 2), (share / 2, share)))
    digest = hashlib.sha256(files.fingerprint().encode())
    for states in (choice, test):
        states.add_to(digest)
    found = HeldOut(choice, test, share, unit, digest.hexdigest()[:16])
    _check_enough(found, keep, confidence)
    return found


def _check_enough(found: HeldOut, keep: float | None, confidence: float) -> None:
    """Check that there are units enough to choose, and for a certificate.

    Raises:
        ValueError: there are too few.
    """
    remedy = "record more, or hold out a larger share: --config '{\"held_out\": 0.4}'"
    if (there := found.choice.num_units) < _LEAST_TO_CHOOSE:
        raise ValueError(
            f"{there} {found.unit} are held out to choose among students, {found.set_aside / 2:.2g} of all; at least "
            f"{_LEAST_TO_CHOOSE} are needed: {remedy}."
        )
    if keep is None:
        return
    if (needed := fewest_units(keep, confidence)) > (there := found.test.num_units):
        raise ValueError(
            f"{there} {found.unit} are held out for the certificate, {found.set_aside / 2:.2g} of all, but an "
            f"agreement of {keep:g} takes at least {needed:,} with {100 * confidence:g} % confidence, even of a "
            f"student that always agrees: {remedy}; or ask for less (--keep, --confidence)."
        )


def _read(subset: Subset, teacher: Teacher) -> HeldOutStates:
    """Return the states of a subset, unit after unit, in the order of their places: by a hash of their names.

    Of a unit with many states some are drawn at random, so that the expected agreement is that of all; of many units
    those that come first are taken. So memory is bounded for any number of rows.
    """
    make = LearnerColumns((Columns.OBS, TEACHER_Q), teacher, subset.schema)
    names = make.in_files((Columns.OBS, TEACHER_Q))
    most_states = int(np.clip(_MOST_NUMBERS // (_MOST_UNITS * subset.obs_numbers), *_STATES_OF_A_UNIT))
    rng = np.random.default_rng(0)
    numbers: dict[str, int] = {}  # of the units, as they come
    waiting: list[_Rows] = []
    for chunk in subset.chunks:
        for piece in subset.read_units(chunk, names):
            columns = make(Piece(piece.columns, subset.path_of(chunk)))
            own = np.array([numbers.setdefault(unit, len(numbers)) for unit in piece.units])
            units, lots = own[piece.unit_of_row], rng.random(len(piece.unit_of_row))
            waiting.append(_Rows(columns[Columns.OBS], columns[TEACHER_Q], units, lots))
            if sum(len(part.units) for part in waiting) * subset.obs_numbers > 2 * _MOST_NUMBERS:
                waiting = [_thinned(waiting, list(numbers), most_states)]
    rows = _thinned(waiting, list(numbers), most_states)
    starts = np.flatnonzero(np.diff(rows.units, prepend=-1))
    return HeldOutStates(rows.obs, rows.labels, np.diff([*starts, len(rows.units)]))


class _Rows(NamedTuple):
    obs: np.ndarray
    labels: np.ndarray
    units: np.ndarray  # number of each row's unit, `[R]`
    lots: np.ndarray  # by which rows are drawn, in [0, 1)


def _thinned(parts: Sequence[_Rows], names: Sequence[str], most_states: int) -> _Rows:
    """Return the rows of the first units by their places, those of a unit together, and no more of it than `most`."""
    rows = _Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    ranks = np.argsort(np.argsort([place_of(name) for name in names]))[rows.units]
    order = np.lexsort((rows.lots, ranks))
    ranks = ranks[order]
    starts = np.flatnonzero(np.diff(ranks, prepend=-1))
    place_in_unit = np.arange(len(ranks)) - np.repeat(starts, np.diff([*starts, len(ranks)]))
    kept = order[(place_in_unit < most_states) & (ranks < _MOST_UNITS)]
    return _Rows(*(column[kept] for column in rows))


class RowGames:
    """Stands in the place of `Games`: an episode is a held-out unit, and its return the agreement with the teacher.

    The teacher's own is 1. The random policy's counts as 0, so that return ratios are agreements.

    Args:
        held_out: what judges.
        advance: as in `Games`, but called once in a while.
    """

    seconds_per_seed = seconds_of_baselines = 0.0  # next to nothing

    def __init__(self, held_out: HeldOut, *, advance: Callable[[int], None] = lambda count: None):
        self._held_out, self._advance = held_out, advance

    def validation_baselines(self, first: int, count: int) -> np.ndarray:
        """Return ones and zeros, `[2, count]`."""
        self._advance(0)
        return _baselines(count)

    def validate(self, modules: Mapping[str, Any], pipeline: Any, first: int, count: int) -> Validation:
        """Return the agreements of students in units that choose, in the place of returns."""
        self._advance(0)
        agreements = {
            name: self._held_out.choice.agreements(module, first, count).tolist() for name, module in modules.items()
        }
        return Validation(agreements, env_steps=0, seconds=0.0)

    def certificate_episodes(self, student: Teacher, first: int, count: int) -> np.ndarray:
        """Return a student's agreements in units that certify, and ones and zeros, `[3, count]`.

        Raises:
            ValueError: there are not so many units.
        """
        if first + count > self._held_out.test.num_units:
            raise ValueError(f"There are {self._held_out.test.num_units} units, got {first + count}.")
        self._advance(0)
        own = self._held_out.test.agreements(student.module, first, count)
        return np.concatenate([[own], _baselines(count)])

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs: nothing, since the files have the rows."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


def _baselines(count: int) -> np.ndarray:
    return np.array([[1.0] * count, [0.0] * count])
