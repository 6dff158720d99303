"""Report states with numbers that are not finite, from which nothing can be learned: their cause and the remedy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from rllib_kd.env_runner.column_sampler import NUM_NOT_FINITE_LIFETIME, NUM_STATES_DROPPED_LIFETIME
from rllib_kd.environments.failures import name_of
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import LOG_PROBS, Q_VALUES

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

logger = logging.getLogger(__name__)


class UnusableStates:
    """Checks the counts of such states, and warns once for each cause: environment or teacher.

    It is not checkpointed: a resumed run warns again.

    Args:
        config: config of the run.
        teachers: teachers by group.
    """

    def __init__(self, config: DistillationConfig, teachers: Mapping[str, Teacher]):
        self._config = config
        self._teachers = teachers
        self._num_dropped = 0  # at the last check
        self._warned: set[str] = set()  # causes that were reported

    def check(self, metrics: Any, env_steps: int, found: str = "") -> None:
        """Warn of numbers that are not finite.

        Args:
            metrics: metrics of the Algorithm, including those of all samples so far.
            env_steps: env steps sampled so far, including those before a restore.
            found: such numbers from an environment, as an EnvRunner describes them; empty if there are none.

        Raises:
            ValueError: all states so far have such numbers, at a time when learning must start.
        """
        dropped = _count(metrics, NUM_STATES_DROPPED_LIFETIME)
        if dropped == self._num_dropped:
            return
        self._num_dropped = dropped
        counts = {cause: _count(metrics, name) for cause, name in NUM_NOT_FINITE_LIFETIME.items()}
        if not counts["observations"] + counts["rewards"]:
            found = ""  # in a step that is not learned from
        # Agents of one env step are many states, which none of RLlib's counters counts.
        is_all = not self._config.is_multi_agent and dropped >= env_steps
        if is_all and env_steps >= max(1, self._config.num_steps_sampled_before_learning_starts):
            raise ValueError(f"There is nothing to learn from: {self._summary(counts, dropped)} {found}".rstrip())
        if found:
            self._warn("environment", f"{found} These states are not learned from; the results count them.")
        if num := counts["labels"]:
            self._warn("teacher", f"Some states are not learned from; the results count them: {self._blame(num)}")

    def _warn(self, of: str, message: str) -> None:
        if of not in self._warned:
            self._warned.add(of)
            logger.warning("%s", message)

    def _summary(self, counts: Mapping[str, int], dropped: int) -> str:
        """Return which numbers are not finite, in how many of the dropped states, and their causes."""
        words = f"of the environment '{name_of(self._config.env)}' are not finite in {{}} of them."
        causes = {"observations": f"observations {words}", "rewards": f"rewards {words}"}
        parts = [causes[cause].format(counts[cause]) for cause in causes if counts[cause]]
        parts += [self._blame(counts["labels"])] if counts["labels"] else []
        return f"{dropped} states are unusable (NaN or infinity): {' '.join(parts)}"

    def _blame(self, num_states: int) -> str:
        teacher = ", ".join(f"'{teacher.source}'" for teacher in self._teachers.values())
        outputs = {self._config.outputs_of(group_id) for group_id in self._teachers}
        values = "Q-values" if outputs == {Q_VALUES} else "log-probabilities" if outputs == {LOG_PROBS} else "labels"
        return (
            f"the teacher {teacher} returns NaN or infinite {values} in {num_states} states. Check that it gets the "
            "observations on which it was trained."
        )


def _count(metrics: Any, name: str) -> int:
    return int(metrics.peek((ENV_RUNNER_RESULTS, name), default=0))
