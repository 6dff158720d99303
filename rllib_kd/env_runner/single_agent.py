"""The EnvRunner: acts, labels and samples, directly or through RLlib's episodes.

Both ways yield the same columns. Direct sampling steps the vector env and both networks itself. If the config needs
RLlib's loop (connectors, callbacks on episodes), RLlib's own sampling runs instead, and the columns are recorded as it
calls the module and the env.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_runner import ENV_STEP_FAILURE
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_STEP_TIMER, SAMPLE_TIMER

from rllib_kd import _rllib
from rllib_kd.allocator import keep_freed_memory
from rllib_kd.checkpoints.connectors import stages_of
from rllib_kd.env_runner.behavior import ActionGaps, BehaviorPolicy, draw_labelled
from rllib_kd.env_runner.column_sampler import (
    apart_from_samples,
    has_plain_connectors,
    log_dropped,
    log_episodes,
    set_state_and_sample,
)
from rllib_kd.env_runner.explaining import ExplainsFailures
from rllib_kd.env_runner.family import FamilyTurns
from rllib_kd.env_runner.fragment import Fragment, append_final_states
from rllib_kd.env_runner.passes import replaced_passes
from rllib_kd.env_runner.recording import RecordingEnvRunner
from rllib_kd.env_runner.students import StudentsEnvRunner
from rllib_kd.env_runner.whole_episodes import WholeEpisodes
from rllib_kd.environments.making import time_limit_of
from rllib_kd.environments.returned import explained, not_finite, not_finite_by_connectors
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.family import FamilyQValues
from rllib_kd.networks.stacking import PlainMLP
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.frames import VALID, pack
from rllib_kd.observations.images import as_input
from rllib_kd.observations.masks import MASK, features_space, legal_only, with_mask
from rllib_kd.observations.pipeline import Flatten, Images, Shown, View
from rllib_kd.observations.spaces import brief, check_spaces, is_byte_image, named
from rllib_kd.public import public
from rllib_kd.random_state import policy_generator
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import ACTING, TEACHER_Q, Sample, hand_over

logger = logging.getLogger(__name__)

#: Callbacks on RLlib's episodes, which only RLlib's own loop creates.
_EPISODE_CALLBACKS = (
    "on_episode_created",
    "on_episode_start",
    "on_episode_step",
    "on_episode_end",
    "on_sample_end",
)


@public
class DistillEnvRunner(RecordingEnvRunner):
    """RLlib's single-agent EnvRunner, which also returns labelled columns."""

    #: Attributes that a checkpoint contains, in addition to the environments.
    SAMPLING_STATE: ClassVar[tuple[str, ...]] = (
        *_rllib.SAMPLING_STATE,
        "_rng",
        "_turns",
        "_gaps",
        "_teacher_view",
        "_legal_actions",
        "_features",
        "mask",
        "_shown",
        "_reset_next",
        "_obs",
        "_ended",
        "_recorder",
        "_returns",
        "_lengths",
    )
    #: Those that a checkpoint contains even if the environments cannot be captured.
    LASTING_STATE: ClassVar[tuple[str, ...]] = ("_seed", "_needs_initial_reset", "_rng", "_turns", "_gaps")
    #: The others: they follow from the config, are sent by the Algorithm, or exist only during one call.
    NOT_SAVED: ClassVar = frozenset(
        {
            "module",
            "_family_q",
            "_plain",
            "_teacher",
            "_recording",
            "_has_plain_connectors",
            "_samples_directly",
            "_flatten",
            "_flattened_space",
        }
    )

    def __init__(self, **kwargs: Any):
        keep_freed_memory()
        self.module: Any = None
        self._plain: PlainMLP | None = None
        self._turns: Any = None  # of a family's students
        super().__init__(**kwargs)
        if self.family is not None:
            self._turns = FamilyTurns(
                len(self.family) // self.config.num_copies,
                self.num_envs,
                num_copies=self.config.num_copies,
                offset=self.worker_index * self.num_envs,
                seed=self._seed,
            )
            self._family_q = FamilyQValues(dict(self.family.items()))
        self._teacher: Any = None
        self._teacher_view: View | None = None  # None: the teacher takes what the student takes
        self._shown: Any = None  # what the env shows now
        self._reset_next = np.zeros(self.num_envs, dtype=bool)  # where the next step will only reset
        self._rng = policy_generator(self._seed)
        self._gaps = ActionGaps()
        self._obs: Any = None  # [N, ...], from which direct sampling continues
        self._ended = np.zeros(self.num_envs, dtype=bool)  # whose last step ended an episode
        self._returns = np.zeros(self.num_envs)  # of the running episodes, on the direct way
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._recording: Fragment | None = None  # on RLlib's way, while its loop runs
        self._has_plain_connectors = has_plain_connectors(self)
        self._flattened_space: Any = None  # the space of what `_flatten` takes
        self._flatten = self._own_flattener()  # None: observations are taken as they are
        self._samples_directly = self._needs_no_episodes()
        if self.env is not None and not self._samples_directly and self.worker_index in (0, 1):
            logger.warning(
                "Connectors or callbacks on episodes are set, so sampling uses RLlib's episodes, which is slower than "
                "direct sampling and yields the same data."
            )

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        if self.env is not None:
            check_spaces(self._env_to_module.observation_space, self.env.single_action_space)
        super().make_module()
        self._plain = None if self.module is None or self.family is not None else PlainMLP.of(self.module)

    @override(StudentsEnvRunner)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if self.family is not None:
            self._family_q.refresh()

    def set_teacher(self, teacher: Teacher) -> None:
        """Set the teacher whose outputs are the labels."""
        self._teacher, self._teacher_view = teacher.to(self._device), None
        if self.env is not None:
            seeing = teacher.with_recorded_vectors(self.env.single_observation_space, self.config.own_connectors)
            self._teacher_view = seeing.start() if self._looks_for_itself(seeing) else None
        self._needs_initial_reset = True  # a view starts with an episode
        self.begin_recording(teacher)

    def _looks_for_itself(self, teacher: Teacher) -> bool:
        """Return whether the teacher's inputs are made from observations in another way than the student's."""
        shown = features_space(self.env.single_observation_space)
        if teacher.is_recurrent:  # only its view has a memory
            if not teacher.takes(shown):
                raise ValueError(
                    f"The recurrent teacher '{teacher.source}' takes {brief(teacher.observation_space)}, but the "
                    f"environment shows {brief(shown)}. Give it a pipeline: load_teacher(..., pipeline=...)."
                )
            return True
        if not self._has_plain_connectors:  # they stand between the env and the student, and are none of the teacher's
            return teacher.takes(shown)
        pipeline = teacher.known_pipeline
        if self._flatten is not None:
            return teacher.takes(shown) and pipeline.stages != stages_of(self._env_to_module)
        images, students = pipeline.images, Images(self.module.observation_space.shape)
        sees_the_same = images == students or (images is None and not is_byte_image(shown))
        return teacher.takes(shown) and not (sees_the_same and all(stage == images for stage in pipeline.stages))

    def autoreset_mode(self) -> Any:
        """Return when the vector env resets its sub-environments; None without an env, "" if it does not declare it."""
        return None if self.env is None else self.env.metadata.get("autoreset_mode", "")

    def sample_columns(
        self,
        *,
        teacher_fraction: float,
        epsilon: float,
        names: Sequence[str],
        num_shards: int,
        preferred: Sequence[int] = (),
        resting: Sequence[int] = (),
    ) -> tuple[list[Any], dict[str, Any]]:
        """Sample one fragment of `rollout_fragment_length` steps in every environment.

        Args:
            teacher_fraction: β of the behaviour policy, in [0, 1].
            epsilon: ε of the behaviour policy, in [0, 1].
            names: columns to send. If `valid` is among them, whole trajectories are sent, each followed by its final
                state; otherwise only states in which an action was taken.
            num_shards: number of Learners that share the fragment, ≥ 1. Each gets the rows of different environments.
            preferred: students of a family that act more often than the others, by their places; as in `FamilyTurns`.
            resting: copies of a family that do not act, likewise.

        Returns:
            `num_shards` dicts of columns (`[R, ...]`; stacks of frames are packed, as in frames.py), as `hand_over()`
            makes them; and RLlib's metrics.
        """
        gaps = self.config.max_regret_in_gaps
        max_regret = self._gaps.in_return_units(gaps)
        policy = BehaviorPolicy(teacher_fraction, epsilon, self._rng, max_regret, self.config.teacher_explores)
        if self._turns is not None:
            self._turns.prefer(preferred, resting)
        with self._training():
            fragment = self._sample_fragment(policy)
            self._has_lasted()
            columns = fragment.columns()
            if TEACHER_Q in columns and math.isfinite(gaps):
                self._gaps.update(columns[TEACHER_Q][columns[VALID]])
            if fragment.num_dropped:
                self._check(self._check_fragment, fragment)
        if self._samples_directly:
            self._log_fragment(fragment)
        log_dropped(self.metrics, fragment.num_dropped, fragment.num_not_finite)
        self.record(columns, fragment)
        shards = [hand_over(self, shard) for shard in self._shards(columns, fragment, names, num_shards)]
        return shards, self.get_metrics()

    def _shards(
        self, columns: dict[str, np.ndarray], fragment: Fragment, names: Sequence[str], num_shards: int
    ) -> list[dict[str, np.ndarray]]:
        """Return the columns `names` of a fragment for each Learner, `[R, ...]`."""
        if VALID in names:
            columns = append_final_states(columns, fragment.final_obs, fragment.final_mask)
            names = (*names, *({MASK} & columns.keys()))  # for the bootstrap
        shards = []
        for envs in np.array_split(np.arange(self.num_envs), num_shards):
            valid = columns[VALID][envs]
            rows = np.ones_like(valid) if VALID in names else valid
            shard = {name: columns[name][envs][rows] for name in names}
            shape = self.module.observation_space.shape
            shards.append(pack(shard, shape) if len(shape) == 3 else shard)
        return shards

    def set_state_and_sample(self, state: Mapping[str, Any], **kwargs: Any) -> Sample:
        """Set a state and sample in one remote call.

        Args:
            state: state of the student with its `weights_seq_no`, and of connectors, as for `set_state()`.
            kwargs: arguments of `sample_columns()`.
        """
        return set_state_and_sample(self, state, kwargs)

    def play_episodes(self, num_episodes: int, *, teacher: bool) -> dict[str, list[float]]:
        """Return the undiscounted returns of the greedy teacher, or of a random policy, in this runner's environments.

        Each environment plays the same number of episodes, so that short ones count no more than long ones. Sampling
        begins new episodes afterwards.

        Args:
            num_episodes: ≥ 1.
            teacher: whether the teacher plays, or the random policy.

        Returns:
            One return for each episode, under the name of the only module.
        """
        with apart_from_samples(self):
            return self._play_episodes(num_episodes, teacher=teacher)

    def _play_episodes(self, num_episodes: int, *, teacher: bool) -> dict[str, list[float]]:
        policy = BehaviorPolicy(1.0, 0.0 if teacher else 1.0, policy_generator(self._seed))
        self._needs_initial_reset = True
        turns = copy.deepcopy(self._turns)
        episodes = WholeEpisodes(num_episodes, num_envs=self.num_envs, time_limit=time_limit_of(self.env))
        connectors = (self._env_to_module, self._module_to_env)
        states = [connector.get_state() for connector in connectors]
        while not episodes.are_complete:
            fragment, num_played = self._sample_fragment(policy), len(episodes.returns)
            self._check_fragment(fragment)
            episodes.add(fragment)
            if len(episodes.returns) > num_played:
                self._has_lasted()
        episodes.warn_of_cut("the teacher" if teacher else "the random policy")
        for connector, state in zip(connectors, states, strict=True):  # filters are for the states of training
            connector.set_state(state)
        self._turns = turns  # nor do these returns tell of students
        self._needs_initial_reset = True
        return {DEFAULT_MODULE_ID: episodes.returns}

    def _sample_fragment(self, policy: BehaviorPolicy) -> Fragment:
        if self._needs_initial_reset:
            self._ended = np.zeros(self.num_envs, dtype=bool)
        share = 1.0 if policy.needs_teacher else self.config.label_fraction
        is_labelled = draw_labelled(self.config.get_rollout_fragment_length(), share, self._rng)
        fragment = Fragment(self._ended, begins=self._needs_initial_reset, is_labelled=is_labelled)
        if self._samples_directly:
            with self.metrics.log_time(SAMPLE_TIMER):
                self._sample_directly(fragment, policy)
        else:
            self._sample_through_rllib(fragment, policy)
        self._ended = fragment.ended_after
        return fragment

    @override(ExplainsFailures)
    def _handles_each_step(self) -> bool:
        return not self._samples_directly

    @staticmethod
    @override(ExplainsFailures)
    def _ends_episode(terminateds: Any, truncateds: Any) -> bool:
        return False  # fragments count, which fail as a whole

    def _check_fragment(self, fragment: Fragment) -> None:
        """Check the numbers of all steps at once, at a hundredth of the cost of a check after each step."""
        if (found := fragment.find_not_finite()) is None:
            return
        numbers, doing = found
        if not self._has_plain_connectors and numbers.what != "reward":  # each step has checked what the env returned
            raise not_finite_by_connectors(numbers)
        if self._flatten is not None and numbers.what != "reward":
            path, place = self._flatten.part_of(int(np.flatnonzero(~np.isfinite(numbers.got))[0]))
            numbers = numbers._replace(what=f"observation{named(path)}", got=numbers.got[place])
        raise not_finite(self.config.env, self.env, numbers, doing=doing)

    def _decide(
        self, obs: torch.Tensor, policy: BehaviorPolicy, is_labelled: bool = True
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return labels `[N, ...]`, none if not `is_labelled`, and actions `[N]`, by one pass of each network."""
        obs = as_input(obs.to(self._device), self.module.observation_space.shape)
        labels = self._label(obs, is_labelled)
        student_q, mask = None, self._shown.mask
        if policy.teacher_fraction < 1.0:
            student_q = legal_only(self._student_q(obs).cpu().numpy(), mask)
        if mask is not None:
            labels[MASK] = mask
        actions, teacher_acts = policy.decide(student_q, labels.get(TEACHER_Q))
        if self.config.own_states:
            labels[ACTING] = np.where(teacher_acts, 0, 1 + self._turns.students()).astype(np.int32)
        return labels, actions

    @torch.inference_mode()
    def _student_q(self, obs: torch.Tensor) -> torch.Tensor:
        """Return the acting students' Q-values `[N, A]`."""
        if self.family is not None:
            return self._family_q(obs, self._turns.acting)
        if self._plain is not None and not self._plain.has_hooks:
            return self._plain.q_values(obs)
        return self.module.compute_q_values({Columns.OBS: obs})[QF_PREDS]

    def _label(self, obs: torch.Tensor, is_labelled: bool) -> dict[str, np.ndarray]:
        """Return the labels of the states that the student sees as `obs`; none without a teacher, or if not asked."""
        if not self.config.label_columns:
            return {}
        if self._teacher_view is not None:  # it sees every state
            obs = torch.from_numpy(self._teacher_view(self._shown)).to(self._device)
        if not is_labelled:
            return {}
        mask = None if self._shown.mask is None else torch.from_numpy(self._shown.mask).to(self._device)
        labels = self._teacher.labels(obs, self.config.label_columns, mask)
        return {name: column.cpu().numpy() for name, column in labels.items()}

    # --- The direct way -----------------------------------------------------------------------------------------------

    def _needs_no_episodes(self) -> bool:
        has_callbacks = any(
            getattr(type(callbacks), name) is not getattr(RLlibCallback, name)
            for callbacks in self._callbacks
            for name in _EPISODE_CALLBACKS
        ) or any(getattr(self.config, f"callbacks_{name}") for name in _EPISODE_CALLBACKS)
        return self._has_plain_connectors and not has_callbacks

    def _own_flattener(self) -> Flattener | None:
        """Return the function that makes the student's vectors; None if observations are no such, or go by RLlib."""
        stages = stages_of(self._env_to_module) if self.env is not None and self._has_plain_connectors else ()
        flattening = [stage for stage in stages or () if isinstance(stage, Flatten)]
        if not flattening:
            return None
        self._flattened_space = flattening[0].space  # with a mask only if the connector is the user's
        return flattening[0].flattener

    def _rows(self, obs: Any) -> np.ndarray:
        """Return observations `[N, ...]` as columns have them: bytes, or 32-bit floats, of which vectors are made."""
        if self._flatten is None:
            return _as_column(obs)
        try:
            return self._flatten(with_mask(self._flattened_space, obs, self.mask, self.num_envs), self.num_envs)
        except ValueError as error:
            raise explained(self.config.env, self.env, error, doing="step") from error

    def _sample_directly(self, fragment: Fragment, policy: BehaviorPolicy) -> None:
        if self._needs_initial_reset:
            self._reset_directly(seed=self._seed)
        seconds: list[float] = []  # of each step
        while len(fragment.steps) < self.config.get_rollout_fragment_length():
            labels, actions = self._decide(torch.from_numpy(self._obs), policy, fragment.labels_next)
            fragment.decide(self._obs, labels, actions)
            start = time.perf_counter()
            results = self._try_env_step(actions)
            seconds.append(time.perf_counter() - start)
            if results == ENV_STEP_FAILURE:  # RLlib has made a new env
                self._reset_directly()
                fragment.restart()
                continue
            _, rewards, terminateds, truncateds, _ = results
            fragment.step(rewards, terminateds, truncateds)
            self._obs = self._rows(self._shown.obs)
        fragment.final_obs, fragment.final_mask = self._obs, self._shown.mask
        self.metrics.log_value(ENV_STEP_TIMER, fmean(seconds))
        self._log_env_steps(self._metrics_num_try_env_step, len(seconds))

    def _reset_directly(self, seed: int | None = None) -> None:
        self._try_env_reset(seed=seed)
        self._obs = self._rows(self._shown.obs)
        self._needs_initial_reset = False
        self._returns[:], self._lengths[:] = 0.0, 0

    def _log_fragment(self, fragment: Fragment) -> None:
        """Log the metrics that RLlib's own loop logs."""
        num_steps, lengths, returns = fragment.end_episodes(self._lengths, self._returns)
        log_episodes(self, lengths, returns)
        self._increase_sampled_metrics(num_steps, len(lengths))

    # --- RLlib's way --------------------------------------------------------------------------------------------------

    def _sample_through_rllib(self, fragment: Fragment, policy: BehaviorPolicy) -> None:
        """Run RLlib's own loop, with π instead of the student, and record each step of the env."""

        def act(batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
            labels, actions = self._decide(self._inputs_in(batch), policy, fragment.labels_next)
            fragment.decide(self._seen(batch), labels, actions)
            return self._as_outputs(actions)

        num_steps = self.config.get_rollout_fragment_length() * self.num_envs
        self._recording = fragment
        try:
            with replaced_passes(self.module, {"forward_exploration": act}):
                self.sample(num_timesteps=num_steps, explore=True)
        finally:
            self._recording = None
        fragment.final_obs, fragment.final_mask = self._seen(self._cached_to_module), self._shown.mask

    def _seen(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Return the states to keep: the environment's observations, or the outputs of connectors."""
        is_unchanged = self._has_plain_connectors and self._flatten is None
        return _as_column(self._shown.obs if is_unchanged else self._inputs_in(batch).cpu().numpy())

    def _inputs_in(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the student's inputs `[N, ...]` of RLlib's batch."""
        return batch[Columns.OBS]

    def _as_outputs(self, actions: np.ndarray) -> dict[str, Any]:
        """Return actions `[N]` as the outputs of a module's pass."""
        return {Columns.ACTIONS: torch.from_numpy(actions)}

    # --- Between RLlib and the env ------------------------------------------------------------------------------------

    @override(StudentsEnvRunner)
    def _try_env_reset(self, *args: Any, **kwargs: Any) -> Any:
        obs, infos = super()._try_env_reset(*args, **kwargs)
        self._shown = Shown(self._features, first=np.ones(self.num_envs, dtype=bool), mask=self.mask)
        self._reset_next = np.zeros(self.num_envs, dtype=bool)
        if self.family is not None:
            self._turns.begin_episodes()
        return obs, infos

    @override(StudentsEnvRunner)
    def _try_env_step(self, actions: Any) -> Any:
        results = super()._try_env_step(actions)
        if results == ENV_STEP_FAILURE:
            if self._recording is not None:
                self._recording.restart()
            return results
        _, rewards, terminateds, truncateds, _ = results
        self._shown = Shown(self._features, self._reset_next, actions, rewards, self.mask)
        self._reset_next = terminateds | truncateds
        if self.family is not None:
            self._turns.step(rewards, self._reset_next)
        if self._recording is not None:
            self._recording.step(rewards, terminateds, truncateds)
        return results


def _as_column(obs: np.ndarray) -> np.ndarray:
    """Return a copy, as bytes or 32-bit floats: vector envs write the next observations into the same array."""
    if obs.dtype in (np.uint8, np.float32):
        return np.array(obs)
    if obs.dtype == np.bool_:
        return np.multiply(obs, 255, dtype=np.uint8)  # a quarter of the memory of floats, and the same inputs
    with np.errstate(over="ignore"):  # what is too large for 32 bits becomes infinite, and is reported as such
        return np.array(obs, dtype=np.float32)
