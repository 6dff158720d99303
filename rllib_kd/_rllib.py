"""Every private name of RLlib that is reached from outside of its class, in one file.

One small function each, with the reason. tests/test_rllib_names.py fails by name where a Ray has moved one.
"""

from __future__ import annotations

from typing import Any


def actor_manager(env_runner_group: Any) -> Any:
    """Return the manager that counts the requests to EnvRunners: the group has no public way to ask for them."""
    return env_runner_group._worker_manager


def calls_under_way(manager: Any, tag: str) -> tuple[list[Any], list[int]]:
    """Return references and actor ids of the calls with a tag, without fetching their results as RLlib would."""
    return manager._filter_calls_by_tag(tag)


def forget_calls(manager: Any, actor_id: int) -> None:
    """Drop the calls to an actor, so that their results are never fetched: RLlib drops them with dead actors only."""
    manager._remove_async_state(actor_id)
