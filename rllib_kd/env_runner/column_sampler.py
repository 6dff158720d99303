"""What both EnvRunners share: requests, seeds, connectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.rllib.core import COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_kd.checkpoints.connectors import is_default_connector
from rllib_kd.observations.images import ImagesToFloats
from rllib_kd.wire import Sample

#: Metric: states from which nothing can be learned, since the environment or the teacher gave no finite numbers.
NUM_STATES_DROPPED_LIFETIME = "num_states_dropped_lifetime"


ENDLESS = 10_000  # steps after which a baseline episode is cut


def set_state_and_sample(env_runner: Any, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Sample:
    """What an EnvRunner with `sample_columns()` answers to a request."""
    if state[WEIGHTS_SEQ_NO] < env_runner._weights_seq_no:
        env_runner._weights_seq_no = 0  # the Learner was restored: RLlib would keep the newer student
    env_runner.set_state(state)
    shards, metrics = env_runner.sample_columns(**kwargs)
    connectors = (COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR)
    connector_states = {} if has_plain_connectors(env_runner) else env_runner.get_state(components=connectors)
    return Sample(env_runner.worker_index, shards, metrics, env_runner._weights_seq_no, connector_states)


@contextmanager
def fixed_seed(env_runner: Any) -> Iterator[None]:
    """Episodes that are the same in every run, whether the user has set a seed or not."""
    own_seed, is_given = env_runner._seed, env_runner.config.seed is not None
    env_runner._seed = own_seed if is_given else env_runner.worker_index
    try:
        yield
    finally:  # without a seed by chance again: environments keep their random state when they are reset without one
        chance = int(np.random.default_rng().integers(2**31))
        env_runner._seed = own_seed if is_given else chance


def has_plain_connectors(env_runner: Any) -> bool:
    """Whether networks see what the environment shows, and the environment gets what they choose."""
    connectors = [*env_runner._env_to_module.connectors, *env_runner._module_to_env.connectors]
    return all(isinstance(piece, ImagesToFloats) or is_default_connector(piece) for piece in connectors)
