"""open_source(): the source of a policy, opened once for all queries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.spaces.space_utils import unsquash_action

from rllib_kd import _rllib
from rllib_kd.checkpoints.connectors import pipeline_of, to_env_of
from rllib_kd.checkpoints.tune import Location
from rllib_kd.evaluation.policies import GreedyQ, LikeliestAction
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.teachers.loading import OpenedCheckpoint
from rllib_kd.teachers.names import is_described
from rllib_kd.teachers.rllib import is_q_network, teacher_of_module


class Source:
    """The source of a policy. Everything is read, recognised and built at its first use, and only once."""

    #: Name, path or URI of a checkpoint; None for objects of this process.
    path: str | None = None

    def algorithm(self) -> str | None:
        """Return the name of the algorithm that trained it; None if that is not recorded."""
        return None

    def environment(self) -> tuple[Any, dict[Any, Any]]:
        """Return the environment in which it was trained, and its config; None and {} if they are not recorded.

        They are not checked: `resolve_environment()` does that.
        """
        return None, {}

    def settings(self) -> dict[str, Any]:
        """Return the recorded settings of its training that are texts or finite numbers; {} if none are recorded."""
        return {}

    def members(self) -> Iterator[Source]:
        """Yield itself, or the members of an ensemble, and theirs."""
        yield self

    def network(self) -> Teacher:
        """Return the network that ranks actions, as a frozen copy with its connectors.

        Raises:
            ValueError: it cannot be loaded, or has neither Q-values nor a policy of discrete actions.
        """
        return self._network

    def policy(self) -> GreedyQ | LikeliestAction:
        """Return a player, which takes a Q-network's best action, or another RLModule's likeliest.

        Raises:
            ValueError: it cannot be loaded.
        """
        return self._policy

    @cached_property
    def _network(self) -> Teacher:
        raise NotImplementedError

    @cached_property
    def _policy(self) -> GreedyQ | LikeliestAction:
        return GreedyQ(self.network())


def open_source(source: Any, *, trust_checkpoint: bool = False) -> Source:
    """Open the source of a policy.

    Args:
        source: a `Teacher`, an RLModule, the Algorithm that trains it, or name, path or URI of a checkpoint or run
            folder, or a dict with the path, as for `load_teacher()`. A list of teachers is an ensemble. An open source
            is returned as it is.
        trust_checkpoint: whether code in a checkpoint may be run.

    Raises:
        ValueError: there is no such checkpoint.
    """
    (opened,) = open_sources([source], trust_checkpoint=trust_checkpoint)
    return opened


def open_sources(sources: Iterable[Any], *, trust_checkpoint: bool = False) -> list[Source]:
    """Open several sources as `open_source()` does; paths of the same checkpoint become the same object.

    Dicts do not: a file has another network for each description.
    """
    opened: dict[str, Source] = {}

    def open_each(source: Any) -> Source:
        if isinstance(source, Source):
            return source
        if isinstance(source, list | tuple) and not isinstance(source, Location):
            return _Ensemble([open_each(member) for member in source])
        if isinstance(source, str | os.PathLike | Location) or is_described(source):
            checkpoint = _Checkpoint(OpenedCheckpoint(source, trust_checkpoint=trust_checkpoint))
            return checkpoint if is_described(source) else opened.setdefault(checkpoint.uri, checkpoint)
        return _Object(source)

    return [open_each(source) for source in sources]


class _Checkpoint(Source):
    def __init__(self, opened: OpenedCheckpoint):
        self._opened = opened
        self.path, self.uri = opened.name, opened.location.uri

    def algorithm(self) -> str | None:
        return self._opened.algorithm()

    def environment(self) -> tuple[Any, dict[Any, Any]]:
        return self._opened.environment()

    def settings(self) -> dict[str, Any]:
        return {} if self._opened.rllib is None else self._opened.rllib.settings()

    @cached_property
    def _network(self) -> Teacher:
        return self._opened.network

    @cached_property
    def _policy(self) -> GreedyQ | LikeliestAction:
        checkpoint, module = self._opened.rllib, self._opened.module
        if checkpoint is None or module is None or is_q_network(module):
            return GreedyQ(self.network())
        pipeline = checkpoint.load_observation_pipeline(module)
        if pipeline is not None:
            pipeline.check_feeds(module.observation_space, self.uri)
        return LikeliestAction(module, pipeline or _plain(module), to_env=checkpoint.to_env())


class _Ensemble(Source):
    def __init__(self, members: list[Source]):
        self._members = members

    def members(self) -> Iterator[Source]:
        for member in self._members:
            yield from member.members()

    @cached_property
    def _network(self) -> Teacher:
        return ensemble_of([member.network() for member in self._members])


class _Object(Source):
    """A `Teacher`, an RLModule, or an Algorithm."""

    def __init__(self, source: Any):
        self._source = source
        self._algorithm = source if isinstance(source, Algorithm) else None

    def algorithm(self) -> str | None:
        return None if self._algorithm is None else type(self._algorithm).__name__

    def environment(self) -> tuple[Any, dict[Any, Any]]:
        if self._algorithm is None:
            return None, {}
        return self._algorithm.config.env, dict(self._algorithm.config.env_config)

    @cached_property
    def _network(self) -> Teacher:
        if isinstance(self._source, Teacher):
            return self._source
        if not isinstance(self._module, RLModule) and not hasattr(self._module, "compute_q_values"):
            raise ValueError(
                f"Expected an RLModule, an Algorithm, or the path of a checkpoint, got an object of the class "
                f"{type(self._module).__name__} without compute_q_values()."
            )
        return teacher_of_module(self._module, pipeline=self._pipeline(), source=type(self._source).__name__)

    @cached_property
    def _policy(self) -> GreedyQ | LikeliestAction:
        if not isinstance(self._source, Algorithm | RLModule) or is_q_network(self._module):
            return GreedyQ(self.network())
        env_runner = None if self._algorithm is None else self._algorithm.env_runner
        to_env = unsquash_action if env_runner is None else to_env_of(_rllib.module_to_env(env_runner))
        return LikeliestAction(self._module, self._pipeline() or _plain(self._module), to_env=to_env)

    @cached_property
    def _module(self) -> Any:
        return self._source if self._algorithm is None else self._algorithm.get_module()

    def _pipeline(self) -> ObservationPipeline | None:
        env_runner = None if self._algorithm is None else self._algorithm.env_runner
        return None if env_runner is None else pipeline_of(_rllib.env_to_module(env_runner), self._module)


def _plain(module: RLModule) -> ObservationPipeline:
    return ObservationPipeline(module.observation_space)
