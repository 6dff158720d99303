"""Code that both EnvRunners share: requests, connectors, metrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    DEFAULT_AGENT_ID,
    DEFAULT_MODULE_ID,
)
from ray.rllib.utils.metrics import (
    EPISODE_DURATION_SEC_MEAN,
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    WEIGHTS_SEQ_NO,
)

from rllib_kd import _rllib
from rllib_kd.checkpoints.connectors import is_default_connector
from rllib_kd.env_runner.explaining import ExplainingEnvRunner as ExplainingEnvRunner  # checkpoints name it here
from rllib_kd.env_runner.explaining import offset_of_seeds
from rllib_kd.observations.connectors import MaskApart, OneVector
from rllib_kd.observations.images import ImagesToFloats
from rllib_kd.wire import Sample

#: Metric: number of states that are not learned from, since numbers of the environment or the teacher are not finite.
NUM_STATES_DROPPED_LIFETIME = "num_states_dropped_lifetime"

#: Metrics: number of these states by cause. Results have them from the first such state on.
NUM_NOT_FINITE_LIFETIME = {
    "observations": "num_observations_not_finite_lifetime",
    "rewards": "num_rewards_not_finite_lifetime",
    "labels": "num_labels_not_finite_lifetime",
}


def set_state_and_sample(env_runner: Any, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Sample:
    """Set the state of an EnvRunner with `sample_columns()`, and sample."""
    if state[WEIGHTS_SEQ_NO] < _rllib.weights_seq_no(env_runner):  # the Learner was restored
        _rllib.accept_older_weights(env_runner)
    env_runner.set_state(state)
    shards, metrics = env_runner.sample_columns(**kwargs)
    connectors = (COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR)
    connector_states = {} if has_plain_connectors(env_runner) else env_runner.get_state(components=connectors)
    seq_no = _rllib.weights_seq_no(env_runner)
    return Sample(env_runner.worker_index, shards, metrics, seq_no, connector_states, env_runner.not_finite)


def log_episodes(env_runner: Any, lengths: Sequence[int], returns: Sequence[float]) -> None:
    """Log the metrics of ended episodes that RLlib logs, up to their window, without its search for each number."""
    metrics, config = env_runner.metrics, env_runner.config
    window = max(1, math.ceil(config.metrics_num_episodes_for_smoothing / (config.num_env_runners or 1)))
    lengths, returns = lengths[-window:], returns[-window:]
    for key, values, reduce in (
        (EPISODE_LEN_MEAN, lengths, "mean"),
        (EPISODE_LEN_MIN, lengths, "min"),
        (EPISODE_LEN_MAX, lengths, "max"),
        (EPISODE_RETURN_MEAN, returns, "mean"),
        (EPISODE_RETURN_MIN, returns, "min"),
        (EPISODE_RETURN_MAX, returns, "max"),
        (("agent_episode_return_mean", DEFAULT_AGENT_ID), returns, "mean"),
        (("module_episode_return_mean", DEFAULT_MODULE_ID), returns, "mean"),
        (EPISODE_DURATION_SEC_MEAN, [0.0] * len(returns), "mean"),
    ):
        _rllib.log_values(metrics, key, values, reduce=reduce, window=window)


def log_dropped(metrics: Any, num_dropped: int, num_not_finite: Mapping[str, int]) -> None:
    """Log how many states were dropped, and why."""
    metrics.log_value(NUM_STATES_DROPPED_LIFETIME, num_dropped, reduce="lifetime_sum")
    for cause, count in num_not_finite.items():
        metrics.log_value(NUM_NOT_FINITE_LIFETIME[cause], count, reduce="lifetime_sum")


@contextmanager
def apart_from_samples(env_runner: Any) -> Iterator[None]:
    """Make episodes reproducible in this context, whether the user has set a seed or not, and drop what is logged."""
    own_seed, is_given = _rllib.seed(env_runner), env_runner.config.seed is not None
    _rllib.set_seed(env_runner, own_seed if is_given else offset_of_seeds(env_runner))
    own_metrics, env_runner.metrics = env_runner.metrics, copy.deepcopy(env_runner.metrics)
    try:
        yield
        env_runner.get_metrics()  # RLlib forgets the episodes that it has kept for them
    finally:  # without a seed by chance again: environments keep their random state when they are reset without one
        env_runner.metrics = own_metrics
        chance = int(np.random.default_rng().integers(2**31))
        _rllib.set_seed(env_runner, own_seed if is_given else chance)


def has_plain_connectors(env_runner: Any) -> bool:
    """Return whether actions pass unchanged, and observations unchanged or as the vectors that a space asks for.

    Such connectors have no memory, and need no episodes. Masks are taken out without them.
    """
    connectors = [*_rllib.env_to_module(env_runner).connectors, *_rllib.module_to_env(env_runner).connectors]
    own = [piece for piece in connectors if not is_default_connector(piece) and not isinstance(piece, MaskApart)]
    return not own or (len(own) == 1 and isinstance(own[0], ImagesToFloats | OneVector | FlattenObservations))
