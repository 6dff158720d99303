"""The EnvRunner: acts with the behaviour policy π, and labels every state with the teacher's Q-values as it passes.

Two ways lead to the same columns. The direct one steps the vector env and both networks itself. Where a user's config
needs RLlib's machinery on the way (connectors, callbacks on episodes), RLlib's own sampling loop runs instead, and the
columns are recorded as it calls the module and the env.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.env_runner import ENV_STEP_FAILURE
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import SAMPLE_TIMER, WEIGHTS_SEQ_NO

from rllib_kd.checkpoints.rllib import is_default_connector
from rllib_kd.env_failures import EnvFailedError, failure
from rllib_kd.family import FamilyQValues, FamilyTurns
from rllib_kd.frames import VALID, pack
from rllib_kd.observations import Images, ImagesToFloats, ObservationPipeline, Shown, View, as_input
from rllib_kd.sampling import Sample, hand_over
from rllib_kd.spaces import check_spaces, is_byte_image
from rllib_kd.teachers.base import QF_PREDS, TEACHER_Q, Teacher

logger = logging.getLogger(__name__)

#: Callbacks that get RLlib's episodes, which only its own loop makes.
_EPISODE_CALLBACKS = (
    "on_episode_created",
    "on_episode_start",
    "on_episode_step",
    "on_episode_end",
    "on_sample_end",
)
#: Metric: states from which nothing can be learned, since the environment or the teacher gave no finite numbers.
NUM_STATES_DROPPED_LIFETIME = "num_states_dropped_lifetime"
#: Metrics: which of them were not finite, in those states. They are there from the first such state on.
NUM_NOT_FINITE_LIFETIME = {
    "observations": "num_observations_not_finite_lifetime",
    "rewards": "num_rewards_not_finite_lifetime",
    "labels": "num_labels_not_finite_lifetime",
}
_ENDLESS = 10_000  # steps after which a baseline episode is cut


@dataclass(frozen=True)
class BehaviorPolicy:
    """π: the teacher with probability β, otherwise the student; a random legal action with probability ε.

    Args:
        teacher_fraction: β, per step and environment.
        epsilon: ε, per step and environment.
        rng: draws both.
    """

    teacher_fraction: float
    epsilon: float
    rng: np.random.Generator

    def act(self, student_q: np.ndarray | None, teacher_q: np.ndarray | None) -> np.ndarray:
        """Actions `[N]` by Q-values `[N, A]`: the student's may be None where β is 1, the teacher's where β is 0."""
        guide = student_q if teacher_q is None else teacher_q  # also says which actions are legal
        if guide is None:
            raise ValueError("There are no Q-values to act by.")
        actions = guide.argmax(-1)
        if student_q is not None and teacher_q is not None:
            teacher_acts = self.rng.random(len(actions)) < self.teacher_fraction
            legal_student_q = np.where(np.isneginf(teacher_q), -np.inf, student_q)
            actions = np.where(teacher_acts, actions, legal_student_q.argmax(-1))
        if self.epsilon > 0.0:
            explores = self.rng.random(len(actions)) < self.epsilon
            if explores.any():
                scores = np.where(np.isneginf(guide), -1.0, self.rng.random(guide.shape))
                actions = np.where(explores, scores.argmax(-1), actions)
        return actions


class Fragment:
    """What one call of sampling saw: columns `[N, ...]` for each step of the vector env.

    Gymnasium's vector envs reset in the step after an episode's end (NEXT_STEP), and ignore the action of that step.
    So an episode's last state is a row like the others, in which no action counts.

    Args:
        ended_before: `[N]`, whose last step before this fragment ended an episode.
    """

    def __init__(self, ended_before: np.ndarray):
        self.ended_before = ended_before
        self.steps: list[dict[str, np.ndarray]] = []
        self.final_obs: np.ndarray | None = None  # [N, ...], where sampling goes on
        self.restarted = False
        self.num_dropped = 0  # of the states in `columns()`: those that nothing can be learned from
        self.num_not_finite: dict[str, int] = {}  # of those by cause
        self._decision: dict[str, np.ndarray] = {}

    def decide(self, obs: np.ndarray, labels: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
        """What was seen, what the teacher says of it, and what was chosen, `[N, ...]`."""
        self._decision = {Columns.OBS: obs, **labels, Columns.ACTIONS: actions}

    def step(self, rewards: np.ndarray, terminateds: np.ndarray, truncateds: np.ndarray) -> None:
        """What came of it, each `[N]`."""
        # Copies: vector envs may write the next ones into the same arrays.
        outcome = {
            Columns.REWARDS: np.array(rewards),
            Columns.TERMINATEDS: np.array(terminateds),
            Columns.TRUNCATEDS: np.array(truncateds),
        }
        self.steps.append(self._decision | outcome)

    def restart(self) -> None:
        """Forget everything: the env has failed and was made anew."""
        self.ended_before = np.zeros_like(self.ended_before)
        self.restarted = True
        self.steps.clear()

    @property
    def ended_after(self) -> np.ndarray:
        """`[N]`, whose last step ended an episode."""
        return _ends(self.steps[-1])

    def transitions(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each step: where an action counted `[N]`, rewards `[N]`, and where an episode ended `[N]`."""
        ended = self.ended_before
        for step in self.steps:
            counts = ~ended
            ended = _ends(step)
            yield counts, step[Columns.REWARDS], ended

    def columns(self) -> dict[str, np.ndarray]:
        """Everything as columns `[N, T, ...]`."""
        columns = {name: np.stack([step[name] for step in self.steps], axis=1) for name in self.steps[0]}
        columns[Columns.REWARDS] = columns[Columns.REWARDS].astype(np.float32)
        columns[VALID] = np.stack([counts for counts, _, _ in self.transitions()], axis=1)
        states = np.concatenate([columns[Columns.OBS], np.asarray(self.final_obs)[:, None]], axis=1)
        usable = is_usable(states, columns[Columns.REWARDS], columns.get(TEACHER_Q))
        self.num_dropped = int((columns[VALID] & ~usable).sum())
        if self.num_dropped:
            self.num_not_finite = count_not_finite(columns[VALID] & ~usable, states, columns[Columns.REWARDS])
        columns[VALID] &= usable
        return columns


class ExplainsFailures:
    """Of an EnvRunner: says what its environment has raised, and where, also to the process that has asked.

    RLlib's raises an error without a message; a remote one ends, and takes the reason with it. This one answers with
    the reason first, and ends at the next request: with RLlib's delay, and to be restarted where the config says so.
    """

    config: Any
    _failure: EnvFailedError | None = None

    def _try_env_reset(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._try_env_reset(*args, **kwargs)  # type: ignore[misc]  # RLlib's
        except EnvFailedError:
            raise  # RLlib's tries again by calling this
        except Exception as error:
            raise failure(self.config.env, error, doing="reset") from error

    def _try_env_step(self, actions: Any) -> Any:
        try:
            return super()._try_env_step(actions)  # type: ignore[misc]  # RLlib's
        except Exception as error:
            is_rllibs = type(error) is RuntimeError and not error.args and error.__cause__ is not None
            reason = error.__cause__ if is_rllibs else error  # RLlib's own has no message
            assert reason is not None
            raise failure(self.config.env, reason, doing="step") from reason

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As RLlib's, which ends this process when `func` raises; but an environment's failure is an answer first."""

        def answer(env_runner: Any, *args: Any, **kwargs: Any) -> Any:
            if self._failure is not None:
                raise self._failure
            try:
                return func(env_runner, *args, **kwargs)
            except EnvFailedError as reason:
                self._failure = reason
                return None

        was_whole = self._failure is None
        result = super().apply(answer, *args, **kwargs)  # type: ignore[misc]  # RLlib's
        if was_whole and self._failure is not None:
            raise self._failure
        return result

    def ping(self) -> str:
        """As RLlib's; after a failure this process ends instead."""
        return self.apply(lambda env_runner: "pong")


class StudentsEnvRunner(ExplainsFailures, SingleAgentEnvRunner):
    """RLlib's single-agent EnvRunner, with all students of a family, of whom one acts.

    Without a family it is RLlib's, which explains its failures.
    """

    #: All of them. None: there is one student, `module`.
    family: MultiRLModule | None = None

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        if not self.config.students:
            super().make_module()
            return
        self.family = self.config.get_multi_rl_module_spec(spaces=self.get_spaces(), inference_only=True).build()
        assert self.family is not None
        for module in self.family.values():
            module.to(self._device)
        self.let_act(next(iter(self.config.students)))

    def let_act(self, name: str) -> None:
        """Let that student act."""
        assert self.family is not None
        self.module = self.family[name]

    @override(SingleAgentEnvRunner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self._all_students():
            return super().get_state(*args, **kwargs)

    @override(SingleAgentEnvRunner)
    def set_state(self, state: dict[str, Any]) -> None:
        with self._all_students():
            super().set_state(state)

    @override(SingleAgentEnvRunner)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        with self._all_students():
            return super().get_checkpointable_components()

    @contextmanager
    def _all_students(self) -> Iterator[None]:
        """Where RLlib reads or writes the module, it means the whole family."""
        acting = self.module
        self.module = acting if self.family is None else self.family
        try:
            yield
        finally:
            self.module = acting


class DistillEnvRunner(StudentsEnvRunner):
    """RLlib's single-agent EnvRunner, which also hands out labelled columns."""

    def __init__(self, **kwargs: Any):
        self.module: Any = None
        super().__init__(**kwargs)
        if self.family is not None:
            self._turns = FamilyTurns(len(self.family), self.num_envs, offset=self.worker_index * self.num_envs)
            self._family_q = FamilyQValues(dict(self.family.items()))
        self._teacher: Any = None
        self._teacher_view: View | None = None  # None: the teacher takes what the student takes
        self._shown: Any = None  # what the env shows now
        self._reset_next = np.zeros(self.num_envs, dtype=bool)  # where the next step will only reset
        self._rng = np.random.default_rng(self._seed)
        self._obs: Any = None  # [N, ...], where the direct way goes on
        self._ended = np.zeros(self.num_envs, dtype=bool)  # whose last step ended an episode
        self._returns = np.zeros(self.num_envs)  # of the running episodes, on the direct way
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._recording: Fragment | None = None  # on RLlib's way, while its loop runs
        self._has_plain_connectors = has_plain_connectors(self)
        self._samples_directly = self._needs_no_episodes()
        if self.env is not None and not self._samples_directly and self.worker_index in (0, 1):
            logger.warning(
                "Connectors or callbacks on episodes are set: sampling goes through RLlib's episodes, which is slower "
                "than the direct way and gives the same data."
            )

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        if self.env is not None:
            check_spaces(self._env_to_module.observation_space, self.env.single_action_space)
        super().make_module()

    @override(StudentsEnvRunner)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if self.family is not None:
            self._family_q.refresh()

    def set_teacher(self, teacher: Teacher) -> None:
        """Take the teacher whose Q-values are the labels."""
        self._teacher = teacher.to(self._device)
        self._teacher_view = teacher.start() if self.env is not None and self._looks_for_itself(teacher) else None
        self._needs_initial_reset = True  # a view starts with an episode

    def _looks_for_itself(self, teacher: Teacher) -> bool:
        """Whether the teacher takes something else than the student, of what the environment shows."""
        shown = self.env.single_observation_space
        if not self._has_plain_connectors:  # they stand between the env and the student, and are none of the teacher's
            return teacher.takes(shown)
        pipeline = teacher.pipeline or ObservationPipeline(teacher.input_space)
        images = pipeline.images
        is_students = images == Images(self.module.observation_space.shape)
        sees_the_same = is_students or (images is None and not is_byte_image(shown))
        return teacher.takes(shown) and not (sees_the_same and all(stage == images for stage in pipeline.stages))

    def autoreset_mode(self) -> Any:
        """When the vector env resets its sub-environments; None without an env."""
        if self.env is None:
            return None
        return self.env.metadata.get("autoreset_mode", gym.vector.AutoresetMode.NEXT_STEP)

    def sample_columns(
        self, *, teacher_fraction: float, epsilon: float, names: Sequence[str], num_shards: int
    ) -> tuple[list[Any], dict[str, Any]]:
        """Sample one fragment of `rollout_fragment_length` steps in every environment.

        Args:
            teacher_fraction: β of the behaviour policy.
            epsilon: ε of the behaviour policy.
            names: columns to send. With `valid` among them whole trajectories are sent, each followed by the state that
                it leads to; without, only the states in which an action was taken.
            num_shards: how many Learners share the fragment. Each gets the rows of environments of its own.

        Returns:
            `num_shards` dicts of columns (`[R, ...]`; stacks of frames are packed, as in frames.py), as `hand_over()`
            makes them; and RLlib's metrics.
        """
        fragment = self._sample_fragment(BehaviorPolicy(teacher_fraction, epsilon, self._rng))
        if self._samples_directly:
            self._log_fragment(fragment)
        columns = fragment.columns()
        log_dropped(self.metrics, fragment.num_dropped, fragment.num_not_finite)
        if VALID in names:
            columns = _append_final_states(columns, fragment.final_obs)
        shards = []
        for envs in np.array_split(np.arange(self.num_envs), num_shards):
            valid = columns[VALID][envs]
            rows = np.ones_like(valid) if VALID in names else valid
            shard = {name: columns[name][envs][rows] for name in names}
            shape = self.module.observation_space.shape
            shards.append(hand_over(self, pack(shard, shape) if len(shape) == 3 else shard))
        return shards, self.get_metrics()

    def set_state_and_sample(self, state: Mapping[str, Any], **kwargs: Any) -> Sample:
        """Take a state, and sample: both in one remote call.

        Args:
            state: of the student with its `weights_seq_no`, and of connectors, as `set_state()` takes it.
            kwargs: of `sample_columns()`.
        """
        return set_state_and_sample(self, state, kwargs)

    def play_episodes(self, num_episodes: int, *, teacher: bool) -> dict[str, list[float]]:
        """Undiscounted returns of the greedy teacher, or of a random policy, in this runner's environments.

        Each environment plays its share, so that short episodes count no more than long ones. Sampling starts anew
        afterwards.

        Returns:
            One return an episode, under the name of the only module.
        """
        with fixed_seed(self):
            return self._play_episodes(num_episodes, teacher=teacher)

    def _play_episodes(self, num_episodes: int, *, teacher: bool) -> dict[str, list[float]]:
        policy = BehaviorPolicy(1.0, 0.0 if teacher else 1.0, np.random.default_rng(self._seed))
        self._needs_initial_reset = True
        due = np.full(self.num_envs, num_episodes // self.num_envs)
        due[: num_episodes % self.num_envs] += 1
        running, lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        returns: list[float] = []
        connectors = (self._env_to_module, self._module_to_env)
        states = [connector.get_state() for connector in connectors]
        while due.any():
            fragment = self._sample_fragment(policy)
            if fragment.restarted:
                running[:], lengths[:] = 0.0, 0
            for counts, rewards, ended in fragment.transitions():
                running += rewards * counts
                lengths += counts
                finished = ended | (lengths >= _ENDLESS)
                returns += running[finished & (due > 0)].tolist()
                due -= finished & (due > 0)
                running[finished], lengths[finished] = 0.0, 0
        for connector, state in zip(connectors, states, strict=True):  # filters are for the states of training
            connector.set_state(state)
        self.get_metrics()  # not samples: drop what RLlib has logged
        self._needs_initial_reset = True
        return {DEFAULT_MODULE_ID: returns}

    def _sample_fragment(self, policy: BehaviorPolicy) -> Fragment:
        if self._needs_initial_reset:
            self._ended = np.zeros(self.num_envs, dtype=bool)
        fragment = Fragment(self._ended)
        if self._samples_directly:
            with self.metrics.log_time(SAMPLE_TIMER):
                self._sample_directly(fragment, policy)
        else:
            self._sample_through_rllib(fragment, policy)
        self._ended = fragment.ended_after
        return fragment

    def _decide(self, obs: torch.Tensor, policy: BehaviorPolicy) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Labels `[N, ...]` and actions `[N]`, in one pass of each network."""
        obs = as_input(obs.to(self._device), self.module.observation_space.shape)
        labels = self._label(obs)
        student_q = None
        if policy.teacher_fraction < 1.0:
            student_q = self._student_q(obs).cpu().numpy()
        return labels, policy.act(student_q, labels.get(TEACHER_Q))

    @torch.inference_mode()
    def _student_q(self, obs: torch.Tensor) -> torch.Tensor:
        """`[N, A]`, of whoever acts."""
        if self.family is not None:
            return self._family_q(obs, self._turns.acting)
        return self.module.compute_q_values({Columns.OBS: obs})[QF_PREDS]

    def _label(self, obs: torch.Tensor) -> dict[str, np.ndarray]:
        """What the teacher says of the states that the student sees as `obs`; nothing without a teacher."""
        if not self.config.label_columns:
            return {}
        if self._teacher_view is not None:
            obs = torch.from_numpy(self._teacher_view(self._shown)).to(self._device)
        labels = self._teacher.labels(obs, self.config.label_columns)
        return {name: column.cpu().numpy() for name, column in labels.items()}

    # --- The direct way -----------------------------------------------------------------------------------------------

    def _needs_no_episodes(self) -> bool:
        has_callbacks = any(
            getattr(type(callbacks), name) is not getattr(RLlibCallback, name)
            for callbacks in self._callbacks
            for name in _EPISODE_CALLBACKS
        ) or any(getattr(self.config, f"callbacks_{name}") for name in _EPISODE_CALLBACKS)
        return self._has_plain_connectors and not has_callbacks

    def _sample_directly(self, fragment: Fragment, policy: BehaviorPolicy) -> None:
        if self._needs_initial_reset:
            self._reset_directly(seed=self._seed)
        while len(fragment.steps) < self.config.get_rollout_fragment_length():
            labels, actions = self._decide(torch.from_numpy(self._obs), policy)
            fragment.decide(self._obs, labels, actions)
            results = self._try_env_step(actions)
            if results == ENV_STEP_FAILURE:  # RLlib has made a new env
                self._reset_directly()
                fragment.restart()
                continue
            obs, rewards, terminateds, truncateds, _ = results
            fragment.step(rewards, terminateds, truncateds)
            self._obs = _as_column(obs)
        fragment.final_obs = self._obs

    def _reset_directly(self, seed: int | None = None) -> None:
        obs, _ = self._try_env_reset(seed=seed)
        self._obs = _as_column(obs)
        self._needs_initial_reset = False
        self._returns[:], self._lengths[:] = 0.0, 0

    def _log_fragment(self, fragment: Fragment) -> None:
        """The metrics that RLlib's own loop logs."""
        num_steps = num_episodes = 0
        for counts, rewards, ended in fragment.transitions():
            self._returns += rewards * counts
            self._lengths += counts
            for index in np.flatnonzero(ended):
                self._log_episode_metrics(int(self._lengths[index]), float(self._returns[index]), 0.0)
            self._returns[ended], self._lengths[ended] = 0.0, 0
            num_steps += int(counts.sum())
            num_episodes += int(ended.sum())
        self._increase_sampled_metrics(num_steps, num_episodes)

    # --- RLlib's way --------------------------------------------------------------------------------------------------

    def _sample_through_rllib(self, fragment: Fragment, policy: BehaviorPolicy) -> None:
        """RLlib's own loop, with π in the place of the student, and a recorder at the env."""
        student: Any = self.module

        def act(batch: Mapping[str, Any]) -> dict[str, Any]:
            labels, actions = self._decide(batch[Columns.OBS], policy)
            fragment.decide(self._seen(batch), labels, actions)
            return {Columns.ACTIONS: torch.from_numpy(actions)}

        self.module = _ActingModule(student, act)
        self._recording = fragment
        try:
            self.sample(num_timesteps=self.config.get_rollout_fragment_length() * self.num_envs, explore=True)
        finally:
            self.module, self._recording = student, None
        fragment.final_obs = self._seen(self._cached_to_module)

    def _seen(self, batch: Mapping[str, Any]) -> np.ndarray:
        """What is kept of the states: what the environment shows, or else what connectors have made of it."""
        return _as_column(self._shown.obs if self._has_plain_connectors else batch[Columns.OBS].cpu().numpy())

    # --- Between RLlib and the env ------------------------------------------------------------------------------------

    @override(StudentsEnvRunner)
    def _try_env_reset(self, *args: Any, **kwargs: Any) -> Any:
        obs, infos = super()._try_env_reset(*args, **kwargs)
        self._shown = Shown(obs, first=np.ones(self.num_envs, dtype=bool))
        self._reset_next = np.zeros(self.num_envs, dtype=bool)
        return obs, infos

    @override(StudentsEnvRunner)
    def _try_env_step(self, actions: Any) -> Any:
        results = super()._try_env_step(actions)
        if results == ENV_STEP_FAILURE:
            if self._recording is not None:
                self._recording.restart()
            return results
        obs, rewards, terminateds, truncateds, _ = results
        self._shown = Shown(obs, self._reset_next, actions, rewards)
        self._reset_next = terminateds | truncateds
        if self.family is not None:
            self._turns.end_episodes(self._reset_next)
        if self._recording is not None:
            self._recording.step(rewards, terminateds, truncateds)
        return results


def set_state_and_sample(env_runner: Any, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Sample:
    """What an EnvRunner with `sample_columns()` answers to a request."""
    if state[WEIGHTS_SEQ_NO] < env_runner._weights_seq_no:
        env_runner._weights_seq_no = 0  # the Learner was restored: RLlib would keep the newer student
    env_runner.set_state(state)
    shards, metrics = env_runner.sample_columns(**kwargs)
    connectors = (COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR)
    connector_states = {} if has_plain_connectors(env_runner) else env_runner.get_state(components=connectors)
    return Sample(env_runner.worker_index, shards, metrics, env_runner._weights_seq_no, connector_states)


def is_usable(states: np.ndarray, rewards: np.ndarray, teacher_q: np.ndarray | None) -> np.ndarray:
    """Whether something can be learned from a row: its state, the next one and its reward are finite, and labelled.

    A teacher that does not know a state cannot label it. −inf marks illegal actions, and is fine.

    Args:
        states: `[..., T + 1, *obs]`, with the one that follows the last row.
        rewards: `[..., T]`.
        teacher_q: `[..., T, A]`; None without a teacher.

    Returns:
        `[..., T]`.
    """
    usable = np.isfinite(rewards)
    if states.dtype != np.uint8:
        usable &= _shows_finite(states, rewards.ndim)
    if teacher_q is not None:
        usable &= np.isfinite(teacher_q).any(-1) & ~(np.isnan(teacher_q) | np.isposinf(teacher_q)).any(-1)
    return usable


def count_not_finite(dropped: np.ndarray, states: np.ndarray, rewards: np.ndarray) -> dict[str, int]:
    """How many of the dropped rows have observations, and how many rewards, that are not finite; else it is the labels.

    What a teacher says of an observation that is not finite, or after one, is no fault of its own.

    Args:
        dropped: `[..., T]`, which rows are unusable.
        states: `[..., T + 1, *obs]`.
        rewards: `[..., T]`.
    """
    not_shown = dropped & ~_shows_finite(states, rewards.ndim)
    not_rewarded = dropped & ~np.isfinite(rewards)
    return {
        "observations": int(not_shown.sum()),
        "rewards": int(not_rewarded.sum()),
        "labels": int((dropped & ~not_shown & ~not_rewarded).sum()),
    }


def log_dropped(metrics: Any, num_dropped: int, num_not_finite: Mapping[str, int]) -> None:
    """Log how many states were dropped, and why."""
    metrics.log_value(NUM_STATES_DROPPED_LIFETIME, num_dropped, reduce="lifetime_sum")
    for cause, count in num_not_finite.items():
        metrics.log_value(NUM_NOT_FINITE_LIFETIME[cause], count, reduce="lifetime_sum")


def _shows_finite(states: np.ndarray, num_axes: int) -> np.ndarray:
    """`[..., T]`, where a state `[..., T + 1, *obs]` and the next one are finite; `num_axes` of `[..., T]`."""
    finite = np.isfinite(states).reshape(*states.shape[:num_axes], -1).all(-1)
    return finite[..., :-1] & finite[..., 1:]


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


class _ActingModule:
    """The student, for everything but choosing actions."""

    def __init__(self, student: Any, act: Callable[[Mapping[str, Any]], dict[str, Any]]):
        self._student = student
        self._act = act

    def forward_exploration(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)


def _ends(step: Mapping[str, np.ndarray]) -> np.ndarray:
    """`[N]`, whose episode the step ends."""
    return step[Columns.TERMINATEDS] | step[Columns.TRUNCATEDS]


def _as_column(obs: np.ndarray) -> np.ndarray:
    """A copy (vector envs write the next observations into the same array), of bytes or 32-bit floats."""
    return np.array(obs, dtype=np.uint8 if obs.dtype == np.uint8 else np.float32)


def _append_final_states(columns: Mapping[str, np.ndarray], final_obs: Any) -> dict[str, np.ndarray]:
    """Add to each trajectory the state that it leads to: a row that no action was taken in, yet."""
    extended = {}
    for name, column in columns.items():
        last = final_obs if name == Columns.OBS else np.zeros_like(column[:, 0])
        extended[name] = np.concatenate([column, last[:, None]], axis=1)
    return extended
