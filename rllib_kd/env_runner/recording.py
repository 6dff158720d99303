"""An EnvRunner that records the states that it visits; and one without an environment, where states are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override

from rllib_kd.env_runner.fragment import Fragment
from rllib_kd.env_runner.students import StudentsEnvRunner
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.spaces import input_space
from rllib_kd.offline.recording import Recorder, recorder_of
from rllib_kd.teachers.base import Teacher


class RecordingEnvRunner(StudentsEnvRunner):
    """An EnvRunner for students, with a recorder if the config has an `output`; its environment may be missing."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._recorder: Recorder | None = None  # of visited states, if `output` is set

    @override(StudentsEnvRunner)
    def make_env(self) -> None:
        if self.config.env is not None:
            super().make_env()
            return
        # Rows are recorded, and a student is needed here, but no environment. RLlib's would raise.
        shown, actions = self.config.observation_space, self.config.action_space
        own = {DEFAULT_MODULE_ID: (input_space(features_space(shown)), actions)}
        self.spaces = {INPUT_ENV_SPACES: (shown, actions), INPUT_ENV_SINGLE_SPACES: (shown, actions), **own}

    def begin_recording(self, teacher: Teacher) -> None:
        """Record the states from now on, with this teacher's labels, if the config has an `output`."""
        if self.config.output and self.env is not None and self._recorder is None:
            self._recorder = recorder_of(self.config, teacher, self.num_envs)

    def record(self, columns: Mapping[str, np.ndarray], fragment: Fragment) -> None:
        """Record the columns `[N, T, ...]` of a fragment, if there is a recorder."""
        if self._recorder is not None:
            self._recorder.add(columns, fragment.ended_before, begins=fragment.begins)

    def write_recorded(self) -> None:
        """Write recorded states that wait for a whole file."""
        if self._recorder is not None:
            self._recorder.write()

    @override(SingleAgentEnvRunner)
    def stop(self) -> None:
        self.write_recorded()
        super().stop()

    def count_rows(self, num_rows: int) -> None:
        """Count recorded rows that pass as steps, by which schedules and stop criteria go."""
        self._increase_sampled_metrics(num_rows, 0)
