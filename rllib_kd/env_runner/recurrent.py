"""The EnvRunner of a recurrent student: it keeps the student's state, and returns sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from rllib_kd.env_runner.behavior import BehaviorPolicy
from rllib_kd.env_runner.fragment import Fragment
from rllib_kd.env_runner.sequences import FIRST, OpenSequences
from rllib_kd.env_runner.single_agent import DistillEnvRunner
from rllib_kd.networks.recurrent import Memory, max_seq_len_of
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.images import as_input
from rllib_kd.wire import STATE_COLUMNS


class RecurrentEnvRunner(DistillEnvRunner):
    """`DistillEnvRunner` for a student with an LSTM or a GRU.

    The student takes every step, also those in which the teacher acts: its state is that of its own past observations.
    """

    SAMPLING_STATE: ClassVar[tuple[str, ...]] = (*DistillEnvRunner.SAMPLING_STATE, "_memory", "_open")
    LASTING_STATE: ClassVar[tuple[str, ...]] = (*DistillEnvRunner.LASTING_STATE, "_open")

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._memory = Memory()
        self._open = OpenSequences(*self._setting_of_sequences())

    @override(DistillEnvRunner)
    def _decide(self, obs: torch.Tensor, policy: BehaviorPolicy) -> tuple[dict[str, np.ndarray], np.ndarray]:
        self._memory.begin(self.module, self._shown.first, self._device)
        if not self._is_training:  # the teacher or a random policy plays, for its return
            return super()._decide(obs, policy)
        before = self._memory.arrays()
        labels, actions = super()._decide(obs, policy)
        if policy.teacher_fraction == 1.0:  # the student was not asked
            self._student_q(as_input(obs.to(self._device), self.module.observation_space.shape))
        labels[FIRST] = self._shown.first
        return labels | {STATE_COLUMNS[part]: value for part, value in before.items()}, actions

    @override(DistillEnvRunner)
    def _student_q(self, obs: torch.Tensor) -> torch.Tensor:
        return self._memory.step(self.module, obs)

    @override(DistillEnvRunner)
    def _shards(
        self, columns: dict[str, np.ndarray], fragment: Fragment, names: Sequence[str], num_shards: int
    ) -> list[dict[str, np.ndarray]]:
        if self._open.setting != (setting := self._setting_of_sequences()):  # restored from a run with another one
            self._open = OpenSequences(*setting)
        kept = {*names, VALID, FIRST, *STATE_COLUMNS.values()}
        return self._open.add({name: column for name, column in columns.items() if name in kept}, num_shards)

    def _setting_of_sequences(self) -> tuple[int, int]:
        return max_seq_len_of(self.config.model_config), self.config.burn_in_len

    # RLlib's own loop has an axis of time, and takes the state from the outputs into the next batch.

    @override(DistillEnvRunner)
    def _inputs_in(self, batch: Mapping[str, Any]) -> torch.Tensor:
        return batch[Columns.OBS][:, 0]

    @override(DistillEnvRunner)
    def _as_outputs(self, actions: np.ndarray) -> dict[str, Any]:
        return {Columns.ACTIONS: torch.from_numpy(actions)[:, None], Columns.STATE_OUT: self._memory.state}
