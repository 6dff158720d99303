"""An EnvRunner for students: a whole family of them, and masks of legal actions, taken apart from observations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.env_runner import ENV_STEP_FAILURE
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override

from rllib_kd import _rllib
from rllib_kd.env_runner.explaining import ExplainingEnvRunner
from rllib_kd.env_runner.legal import choosing_legally, put_masks_in_infos
from rllib_kd.environments.returned import unusable_mask
from rllib_kd.networks.weights import Weights, with_weights
from rllib_kd.observations.masks import LegalActions, MaskError, check_mask_space


class StudentsEnvRunner(ExplainingEnvRunner):
    """RLlib's single-agent EnvRunner that explains its failures, with all students of a family; one acts at a time."""

    module: Any
    #: All students of the family; None: there is one student, `module`.
    family: MultiRLModule | None = None
    #: The legal actions now, `[N, A]`; None if the environment has no masks.
    mask: np.ndarray | None = None
    _features: Any = None  # what it shows now, without masks

    @override(ExplainingEnvRunner)
    def make_env(self) -> None:
        super().make_env()
        put_masks_in_infos(self.config, self.env)
        check_mask_space(self.env.single_observation_space)
        self._legal_actions = LegalActions(self.env.single_observation_space, self.env.single_action_space)

    @override(ExplainingEnvRunner)
    def _try_env_reset(self, *args: Any, **kwargs: Any) -> Any:
        obs, infos = super()._try_env_reset(*args, **kwargs)
        self._take_masks_apart(obs, infos, np.zeros(self.num_envs, dtype=bool), doing="reset")
        return obs, infos

    @override(ExplainingEnvRunner)
    def _try_env_step(self, actions: Any) -> Any:
        results = super()._try_env_step(actions)
        if results != ENV_STEP_FAILURE:
            obs, _, terminateds, truncateds, infos = results
            self._take_masks_apart(obs, infos, terminateds | truncateds, doing="step")
        return results

    def _take_masks_apart(self, obs: Any, infos: Any, ended: np.ndarray, *, doing: str) -> None:
        try:
            self._features, self.mask = self._legal_actions(obs, infos, ended)
        except MaskError as error:
            raise unusable_mask(self.config.env, error, doing=doing) from error

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[Any]:
        with choosing_legally(self.module, lambda batch: self.mask):
            return super().sample(**kwargs)

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        members = self.config.members
        if not members:
            super().make_module()
            if self.module is not None:
                self.module.eval()  # dropout and batch norm act as in evaluations
            return
        self.family = self.config.get_multi_rl_module_spec(spaces=self.get_spaces(), inference_only=True).build()
        assert self.family is not None
        for module in self.family.values():
            module.to(self._device).eval()
        self.let_act(next(iter(members)))

    def let_act(self, name: str, weights: Weights | None = None) -> None:
        """Let the student of this name act, or a copy of it with other weights, which no later ones replace.

        A recurrent one begins new episodes: of those running it has no state.
        """
        assert self.family is not None
        acting = self.family[name] if weights is None else with_weights(self.family[name], weights)
        if self.module is not acting and acting.is_stateful():
            _rllib.reset_next(self)
        self.module = acting

    @override(SingleAgentEnvRunner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self._all_students():
            return super().get_state(*args, **kwargs)

    @override(SingleAgentEnvRunner)
    def set_state(self, state: dict[str, Any]) -> None:
        weights = state.get(COMPONENT_RL_MODULE)
        if self.family is not None and weights is not None:
            weights = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
            # RLlib would take only the part of the default module, which restarts have.
            state = {**state, COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: weights}}
        with self._all_students():
            super().set_state(state)

    @override(SingleAgentEnvRunner)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        with self._all_students():
            return super().get_checkpointable_components()

    @contextmanager
    def _all_students(self) -> Iterator[None]:
        """In this context, RLlib reads and writes the whole family as its module."""
        acting = self.module
        self.module = acting if self.family is None else self.family
        try:
            yield
        finally:
            self.module = acting
