"""States from which nothing can be learned, since numbers in them are not finite: who gave these, and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from rllib_kd.env_runner.column_sampler import NUM_NOT_FINITE_LIFETIME, NUM_STATES_DROPPED_LIFETIME
from rllib_kd.teachers.base import Teacher

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

logger = logging.getLogger(__name__)


class UnusableStates:
    """Looks at the counts of such states, and says once what they come from. In no checkpoint: a resumed run says it.

    Args:
        config: of the run.
        teachers: by group.
    """

    def __init__(self, config: DistillationConfig, teachers: Mapping[str, Teacher]):
        self._config = config
        self._teachers = teachers
        self._num_dropped = 0  # when it was last looked

    def check(self, metrics: Any, env_steps: int) -> None:
        """Warn once of numbers that are not finite, by who gave them.

        Args:
            metrics: of the Algorithm, with those of all samples so far.
            env_steps: sampled so far, over restarts.

        Raises:
            ValueError: so it was in every state so far, when there must be something to learn from.
        """
        dropped = _count(metrics, NUM_STATES_DROPPED_LIFETIME)
        if dropped == self._num_dropped:
            return
        is_first, self._num_dropped = self._num_dropped == 0, dropped
        counts = {cause: _count(metrics, name) for cause, name in NUM_NOT_FINITE_LIFETIME.items()}
        message = not_finite(counts, dropped, env=self._config.env, teacher=self._teacher_sources())
        # Agents of one env step are many states, which none of RLlib's counters counts.
        is_all = not self._config.is_multi_agent and dropped >= env_steps
        if is_all and env_steps >= max(1, self._config.num_steps_sampled_before_learning_starts):
            raise ValueError(f"There is nothing to learn from: {message}")
        if is_first:
            logger.warning("%s These states are not learned from; the results count them.", message)

    def _teacher_sources(self) -> str:
        return ", ".join(f"'{teacher.source}'" for teacher in self._teachers.values())


def not_finite(counts: Mapping[str, int], dropped: int, *, env: Any, teacher: str) -> str:
    """Who gave numbers that are not finite, in how many of the dropped states, and what to do.

    Args:
        counts: states by cause: "observations", "rewards" or "labels".
        dropped: states altogether.
        env: of the config.
        teacher: its name.
    """
    env = getattr(env, "__name__", env)
    advice = "Mend the environment, or wrap it."
    words = {
        "observations": f"observations of the environment '{env}' are not finite in {{}} of them. {advice}",
        "rewards": f"rewards of the environment '{env}' are not finite in {{}} of them. {advice}",
        "labels": f"the teacher {teacher} gives no finite Q-values in {{}} of them. Does it see the observations that "
        "it was trained on?",
    }
    causes = "; ".join(words[cause].format(count) for cause, count in counts.items() if count)
    return f"{dropped} states are unusable (NaN or infinity): {causes}"


def _count(metrics: Any, name: str) -> int:
    return int(metrics.peek((ENV_RUNNER_RESULTS, name), default=0))
