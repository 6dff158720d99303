"""The EnvRunner of recurrent students: it keeps their states, and returns sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from rllib_kd.env_runner.behavior import BehaviorPolicy
from rllib_kd.env_runner.fragment import Fragment
from rllib_kd.env_runner.sequences import FIRST, OpenSequences
from rllib_kd.env_runner.single_agent import DistillEnvRunner
from rllib_kd.networks.memories import FamilyMemory, StateLayout
from rllib_kd.networks.recurrent import max_seq_len_of
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.images import as_input
from rllib_kd.observations.masks import MASK
from rllib_kd.wire import STATE_COLUMNS


class RecurrentEnvRunner(DistillEnvRunner):
    """`DistillEnvRunner` for students with an LSTM or a GRU.

    Each student takes every step, also those in which the teacher or another student acts: its state is that of its own
    past observations.
    """

    SAMPLING_STATE: ClassVar[tuple[str, ...]] = (*DistillEnvRunner.SAMPLING_STATE, "_memory", "_open")
    LASTING_STATE: ClassVar[tuple[str, ...]] = (*DistillEnvRunner.LASTING_STATE, "_open")
    NOT_SAVED: ClassVar = DistillEnvRunner.NOT_SAVED | {"_students", "_layout"}

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._memory = FamilyMemory()
        self._open = OpenSequences(*self._setting_of_sequences())

    @override(DistillEnvRunner)
    def make_module(self) -> None:
        super().make_module()
        if self.module is not None:
            #: All students by name, of which the first is `module`; and where each one's state is in columns.
            self._students = {DEFAULT_MODULE_ID: self.module} if self.family is None else dict(self.family.items())
            self._layout = StateLayout(self._students)

    @override(DistillEnvRunner)
    def _decide(
        self, obs: torch.Tensor, policy: BehaviorPolicy, is_labelled: bool = True
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        self._memory.begin(self._students, self._shown.first, self._device)
        if not self._is_training:  # the teacher or a random policy plays, for its return
            return super()._decide(obs, policy, is_labelled)
        before = self._layout.join(self._memory.arrays())
        labels, actions = super()._decide(obs, policy, is_labelled)
        if policy.teacher_fraction == 1.0:  # the students were not asked
            self._student_q(as_input(obs.to(self._device), self.module.observation_space.shape))
        labels[FIRST] = self._shown.first
        return labels | {STATE_COLUMNS[part]: value for part, value in before.items()}, actions

    @override(DistillEnvRunner)
    def _student_q(self, obs: torch.Tensor) -> torch.Tensor:
        q = self._memory.step(self._students, obs)
        return q[0] if self.family is None else q[torch.from_numpy(self._turns.acting), torch.arange(len(obs))]

    @override(DistillEnvRunner)
    def _shards(
        self, columns: dict[str, np.ndarray], fragment: Fragment, names: Sequence[str], num_shards: int
    ) -> list[dict[str, np.ndarray]]:
        if self._open.setting != (setting := self._setting_of_sequences()):  # restored from a run with another one
            self._open = OpenSequences(*setting)
        kept = {*names, VALID, FIRST, *STATE_COLUMNS.values(), *({MASK} if self.config.uses_td else ())}
        return self._open.add({name: column for name, column in columns.items() if name in kept}, num_shards)

    def _setting_of_sequences(self) -> tuple[int, int, bool]:
        return max_seq_len_of(self.config.model_config), self.config.burn_in_len, self.config.uses_td

    # RLlib's own loop has an axis of time, and takes the state from the outputs into the next batch.

    @override(DistillEnvRunner)
    def _inputs_in(self, batch: Mapping[str, Any]) -> torch.Tensor:
        return batch[Columns.OBS][:, 0]

    @override(DistillEnvRunner)
    def _as_outputs(self, actions: np.ndarray) -> dict[str, Any]:
        state = self._memory.state_of(next(iter(self._students)))
        return {Columns.ACTIONS: torch.from_numpy(actions)[:, None], Columns.STATE_OUT: state}
