"""Every private name of RLlib that is reached from outside of its class, in one file.

One small function each, with the reason. tests/test_rllib_names.py fails by name where a Ray has moved one.
"""

from __future__ import annotations

from typing import Any

from ray._private import worker


def actor_manager(env_runner_group: Any) -> Any:
    """Return the manager that counts the requests to EnvRunners: the group has no public way to ask for them."""
    return env_runner_group._worker_manager


def ignores_errors(env_runner_group: Any) -> bool:
    """Return whether `fault_tolerance()` restarts EnvRunners that have died, or goes on without them."""
    return env_runner_group._ignore_ray_errors_on_env_runners


def calls_under_way(manager: Any, tag: str) -> tuple[list[Any], list[int]]:
    """Return references and actor ids of the calls with a tag, without fetching their results as RLlib would."""
    return manager._filter_calls_by_tag(tag)


def forget_calls(manager: Any, actor_id: int) -> None:
    """Drop the calls to an actor, so that their results are never fetched: RLlib drops them with dead actors only."""
    manager._remove_async_state(actor_id)


def own_node() -> Any:
    """Return the node of this process, which says whether it has started Ray; None where Ray is not initialized."""
    return worker._global_node
