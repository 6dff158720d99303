"""States from which nothing can be learned, since the teacher gives no finite Q-values for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from rllib_kd.env_runner.column_sampler import NUM_STATES_DROPPED_LIFETIME
from rllib_kd.teachers.base import Teacher

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

logger = logging.getLogger(__name__)


class UnusableStates:
    """Looks at the count of such states, and warns of them once. In no checkpoint: a resumed run warns again.

    Args:
        config: of the run.
        teachers: by group.
    """

    def __init__(self, config: DistillationConfig, teachers: Mapping[str, Teacher]):
        self._config = config
        self._teachers = teachers
        self._num_dropped = 0  # when it was last looked

    def check(self, metrics: Any, env_steps: int) -> None:
        """Warn once of states for which the teacher gives no finite Q-values.

        Args:
            metrics: of the Algorithm, with those of all samples so far.
            env_steps: sampled so far, over restarts.

        Raises:
            ValueError: so it was in every state so far, when there must be something to learn from.
        """
        dropped = int(metrics.peek((ENV_RUNNER_RESULTS, NUM_STATES_DROPPED_LIFETIME), default=0))
        if dropped == self._num_dropped:
            return
        is_first, self._num_dropped = self._num_dropped == 0, dropped
        teacher = ", ".join(f"'{teacher.source}'" for teacher in self._teachers.values())
        message = (
            f"the teacher {teacher} gives no finite Q-values in {dropped} states (NaN or infinity). "
            "Does it see the observations that it was trained on?"
        )
        # Agents of one env step are many states, which none of RLlib's counters counts.
        is_all = not self._config.is_multi_agent and dropped >= env_steps
        if is_all and env_steps >= max(1, self._config.num_steps_sampled_before_learning_starts):
            raise ValueError(f"There is nothing to learn from: {message}")
        if is_first:
            logger.warning("Some states are not learned from, and counted in the results: %s", message)
