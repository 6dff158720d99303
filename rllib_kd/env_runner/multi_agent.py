"""The EnvRunner of multi-agent settings: RLlib's own loop, with a behaviour policy π and a teacher for each module.

The columns are made from RLlib's episodes, separately for each agent: slower than direct sampling in single_agent.py,
with the same result.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_kd import _rllib
from rllib_kd.allocator import keep_freed_memory
from rllib_kd.env_runner.behavior import ActionGaps, BehaviorPolicy
from rllib_kd.env_runner.column_sampler import apart_from_samples, log_dropped, set_state_and_sample
from rllib_kd.env_runner.explaining import ExplainsFailures
from rllib_kd.env_runner.fragment import as_rewards, count_not_finite, is_usable
from rllib_kd.env_runner.legal import choosing_legally
from rllib_kd.env_runner.passes import replaced_passes
from rllib_kd.env_runner.whole_episodes import EvenShares, StepLimit
from rllib_kd.environments.making import time_limit_of
from rllib_kd.environments.returned import (
    check_fits,
    explained,
    find_not_finite,
    not_finite,
    not_finite_by_connectors,
)
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.masks import MASK, legal_only
from rllib_kd.observations.spaces import check_spaces
from rllib_kd.random_state import policy_generator
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import TEACHER_Q, Sample, hand_over


class ExplainingMultiAgentEnvRunner(ExplainsFailures, MultiAgentEnvRunner):
    """RLlib's multi-agent EnvRunner, which explains its failures."""

    @override(ExplainsFailures)
    def _check_returned(
        self, obs: Sequence[Mapping[Any, Any]], rewards: Sequence[Mapping[Any, Any]] = (), *, doing: str
    ) -> None:
        """Check the observations and rewards of each agent of each environment."""
        for index, of_agents in enumerate(obs):
            env = self.env.envs[index].unwrapped
            for agent, value in of_agents.items():
                space, what = env.get_observation_space(agent), f"observation[{agent!r}]"
                check_fits(self.config.env, self.env, index, space, value, what, doing=doing)
        for what, of_all in (("reward", rewards), ("observation", obs)):
            for index, of_agents in enumerate(of_all):
                batches = {
                    agent: as_rewards(value)[np.newaxis] if what == "reward" else tree.map_structure(_as_batch, value)
                    for agent, value in of_agents.items()
                }
                if (found := find_not_finite(batches, what)) is not None:
                    doing = "step" if what == "reward" else doing
                    raise not_finite(self.config.env, self.env, found._replace(env_index=index), doing=doing)

    @staticmethod
    @override(ExplainsFailures)
    def _ends_episode(terminateds: Sequence[Mapping[Any, bool]], truncateds: Sequence[Mapping[Any, bool]]) -> bool:
        return any(of_agents.get("__all__", False) for of_agents in (*terminateds, *truncateds))

    @override(MultiAgentEnvRunner)
    def make_env(self) -> None:
        try:
            super().make_env()
        except ValueError as error:  # of RLlib's check, which takes every error for one of an old API
            if error.__cause__ is None:
                raise
            doing = "step" if "`step()`" in str(error) else "reset"
            raise explained(self.config.env, self.env, error.__cause__, doing=doing) from error.__cause__

    @override(MultiAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[Any]:
        with ExitStack() as stack:
            for _, module in self.module.items() if isinstance(self.module, MultiRLModule) else ():
                stack.enter_context(choosing_legally(module, lambda batch: batch.get(MASK)))
            return super().sample(**kwargs)


class DistillMultiAgentEnvRunner(ExplainingMultiAgentEnvRunner):
    """RLlib's multi-agent EnvRunner, which also returns labelled columns of each module that has a teacher."""

    #: The same lists as in `DistillEnvRunner`.
    SAMPLING_STATE: ClassVar = (*_rllib.SAMPLING_STATE, "_rng", "_gaps")
    LASTING_STATE: ClassVar = ("_seed", "_needs_initial_reset", "_rng", "_gaps")
    NOT_SAVED: ClassVar = frozenset({"_teachers"})
    _limit: StepLimit | None = None  # of episodes, while baselines are played
    _shares: EvenShares | None = None  # of the environments, likewise

    def __init__(self, **kwargs: Any):
        keep_freed_memory()
        super().__init__(**kwargs)
        self._teachers: dict[str, Teacher] = {}
        self._gaps: dict[str, ActionGaps] = defaultdict(ActionGaps)  # by module
        self._rng = policy_generator(self._seed)

    @override(ExplainingMultiAgentEnvRunner)
    def make_env(self) -> None:
        super().make_env()
        if self._limit is not None:  # a new one in the place of one that has failed
            self._limit.put_on(self.env.envs)

    @override(MultiAgentEnvRunner)
    def _new_episode(self, env_index: int, episodes: Any = None) -> None:
        if self._shares is not None:
            ended = (self._ongoing_episodes if episodes is None else episodes)[env_index]
            if ended is not None and ended.is_done:
                self._shares.end(env_index, ended.id_)
        super()._new_episode(env_index, episodes)

    @override(MultiAgentEnvRunner)
    def make_module(self) -> None:
        if self.env is not None:
            spaces = self.get_spaces()
            for module_id in self.config.teachers:
                check_spaces(*spaces[module_id])
        super().make_module()
        for module in self.module.values() if self.module is not None else ():
            if isinstance(module, torch.nn.Module):  # not those that act by other rules
                module.eval()

    def set_teacher(self, teachers: Mapping[str, Teacher]) -> None:
        """Set the teachers whose outputs are the labels, by module."""
        self._teachers = {module_id: teacher.to(self._device) for module_id, teacher in teachers.items()}
        self._needs_initial_reset = True

    def autoreset_mode(self) -> None:
        """Return None: RLlib resets the environments itself."""

    def sample_columns(
        self, *, teacher_fraction: float, epsilon: float, names: Sequence[str], num_shards: int
    ) -> tuple[list[Any], dict[str, Any]]:
        """Sample `rollout_fragment_length` steps in every environment.

        Args:
            teacher_fraction: β of the behaviour policies.
            epsilon: ε of the behaviour policies.
            names: columns to send, as in `DistillEnvRunner.sample_columns()`.
            num_shards: number of Learners that share the sample, ≥ 1. Each gets the rows of different agents.

        Returns:
            `num_shards` dicts from modules to their columns, as `hand_over()` makes them; and RLlib's metrics.
        """
        num_steps = self.config.get_rollout_fragment_length() * self.num_envs
        policy = BehaviorPolicy(teacher_fraction, epsilon, self._rng, teacher_explores=self.config.teacher_explores)
        with self._training():
            episodes = self._act_by(policy, num_timesteps=num_steps)
            self._has_lasted()
            return self._shards(episodes, names, num_shards), self.get_metrics()

    def _shards(self, episodes: Sequence[Any], names: Sequence[str], num_shards: int) -> list[Any]:
        """Return the columns of RLlib's episodes, for each Learner, as `hand_over()` makes them."""
        parts: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
        for episode in episodes:
            for agent_episode in episode.agent_episodes.values():
                if agent_episode.module_id in self._teachers and len(agent_episode):
                    parts[agent_episode.module_id].append(self._columns(agent_episode, names))
        shards = []
        for shard in range(num_shards):
            own = {module_id: columns[shard::num_shards] for module_id, columns in parts.items()}
            joined = {module_id: _joined(columns) for module_id, columns in own.items() if columns}
            shards.append(hand_over(self, joined))
        return shards

    def set_state_and_sample(self, state: Mapping[str, Any], **kwargs: Any) -> Sample:
        """Set a state and sample in one remote call, as `DistillEnvRunner.set_state_and_sample()`."""
        return set_state_and_sample(self, state, kwargs)

    def play_episodes(self, num_episodes: int, *, teacher: bool) -> dict[str, list[float]]:
        """Return the undiscounted returns of the greedy teachers, or of random policies: by module, one per episode.

        Each environment plays the same number of episodes, so that short ones count no more than long ones. Sampling
        begins new episodes afterwards.
        """
        with apart_from_samples(self):
            return self._play_episodes(num_episodes, teacher=teacher)

    def _play_episodes(self, num_episodes: int, *, teacher: bool) -> dict[str, list[float]]:
        policy = BehaviorPolicy(1.0, 0.0 if teacher else 1.0, policy_generator(self._seed))
        returns: dict[str, list[float]] = {module_id: [] for module_id in self._teachers}
        shares = EvenShares(num_episodes, self.num_envs)
        self._limit, self._shares = StepLimit(time_limit_of(self.env)), shares
        try:
            self._limit.put_on(self.env.envs)
            episodes = self._act_by(policy, num_episodes=shares)
        finally:
            limit, self._limit, self._shares = self._limit, None, None
            limit.take_off()
        limit.warn_of_cut("the teachers" if teacher else "the random policies")
        for episode in episodes:
            if not shares.count(episode.id_):
                continue
            sums: dict[str, float] = defaultdict(float)
            for agent_episode in episode.agent_episodes.values():
                sums[agent_episode.module_id] += agent_episode.get_return()
            for module_id in sums.keys() & returns.keys():
                returns[module_id].append(sums[module_id])
        self._needs_initial_reset = True
        return returns

    def _act_by(self, policy: BehaviorPolicy, **duration: int) -> list[Any]:
        """Return RLlib's episodes, with π instead of the students; the labels are among the outputs."""
        module: Any = self.module

        def act(batch: Mapping[str, Mapping[str, Any]], **kwargs: Any) -> dict[str, dict[str, Any]]:
            return {
                module_id: self._decide(module_id, part, policy)
                if module_id in self._teachers
                else module[module_id].forward_exploration(part, **kwargs)
                # In the same order in every process: modules share a generator, and the user's `policies` may be a set.
                for module_id, part in sorted(batch.items())
            }

        with replaced_passes(module, {"forward_exploration": act}):
            return self.sample(explore=True, **duration)

    def _decide(self, module_id: str, batch: Mapping[str, Any], policy: BehaviorPolicy) -> dict[str, Any]:
        obs, mask = batch[Columns.OBS].to(self._device, torch.float32), batch.get(MASK)
        mask = None if mask is None else mask.to(self._device).bool()
        labels = self._teachers[module_id].labels(obs, self.config.label_columns, mask)
        student_q = None
        if policy.teacher_fraction < 1.0:
            with torch.inference_mode():
                outputs = self.module[module_id].compute_q_values({Columns.OBS: obs})[QF_PREDS]
            student_q = legal_only(outputs.cpu().numpy(), None if mask is None else mask.cpu().numpy())
            max_regret = self._gaps[module_id].in_return_units(self.config.max_regret_in_gaps)
            policy = replace(policy, max_regret=max_regret)
        if mask is not None:
            labels[MASK] = mask
        actions = policy.act(student_q, labels[TEACHER_Q].cpu().numpy())
        return {Columns.ACTIONS: torch.from_numpy(actions), **labels}

    def _columns(self, episode: SingleAgentEpisode, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return rows `[T + 1, ...]` of an agent's steps, the last one for its predecessor only; or `[T, ...]`."""
        num_steps = len(episode)
        columns = {
            Columns.OBS: np.asarray(episode.get_observations(), np.float32),
            Columns.ACTIONS: np.asarray(episode.get_actions()),
            Columns.REWARDS: as_rewards(episode.get_rewards()),
            Columns.TERMINATEDS: np.zeros(num_steps, dtype=bool),
            Columns.TRUNCATEDS: np.zeros(num_steps, dtype=bool),
        }
        columns[Columns.TERMINATEDS][-1] = episode.is_terminated
        columns[Columns.TRUNCATEDS][-1] = episode.is_truncated
        for name in self.config.label_columns:
            columns[name] = np.asarray(episode.get_extra_model_outputs(name))
        states, rewards = columns[Columns.OBS], columns[Columns.REWARDS]
        columns[VALID] = is_usable(states, rewards, columns[TEACHER_Q])
        dropped = ~columns[VALID]
        causes = count_not_finite(dropped, states, rewards) if dropped.any() else {}
        log_dropped(self.metrics, int(dropped.sum()), causes)
        self._check(_check_seen, states)
        if math.isfinite(self.config.max_regret_in_gaps):
            self._gaps[episode.module_id].update(columns[TEACHER_Q][columns[VALID]])
        if MASK in episode.extra_model_outputs:
            columns[MASK] = np.asarray(episode.get_extra_model_outputs(MASK), dtype=bool)
            if VALID in names:
                names = (*names, MASK)
                columns[VALID][-1] &= episode.is_terminated  # the legal actions after the last step are unknown
        if VALID not in names:
            return {name: columns[name][:num_steps][columns[VALID]] for name in names}
        last = {name: np.zeros_like(columns[name][:1]) for name in names if name != Columns.OBS}
        return {name: np.concatenate([columns[name], last[name]]) if name in last else columns[name] for name in names}


def _as_batch(part: Any) -> np.ndarray:
    """Return a part of one observation as a batch of one."""
    return np.asarray(part)[np.newaxis]


def _check_seen(states: np.ndarray) -> None:
    """Check an agent's network inputs, `[T + 1, ...]`. Each step has checked the environment's numbers already."""
    if (found := find_not_finite(states, "observation")) is not None:
        raise not_finite_by_connectors(found)


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
