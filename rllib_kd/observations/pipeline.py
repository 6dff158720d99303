"""Pipelines from an environment's observations to a network's inputs, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_kd import _rllib
from rllib_kd.observations.flattening import Flattener, described_parts, with_text_arrays
from rllib_kd.observations.images import as_input
from rllib_kd.observations.masks import features_space, with_mask
from rllib_kd.observations.spaces import input_space, is_flattened, is_float_image, named, same_space
from rllib_kd.text import one_line

#: Steps after which an episode for RLlib's connectors is cut; they can look back as many. RLlib cuts its own ones after
#: each fragment, with `episode_lookback_horizon`, which is 1 if it is not set.
_MOST_STEPS = 200


class OtherPartsError(ValueError):
    """Raised if an environment's observations have other parts than a file records of its vectors."""


@dataclass(frozen=True)
class Shown:
    """The observations of a vector env after a step or a reset.

    Args:
        obs: observations `[N, ...]`, or a dict or tuple of such arrays.
        first: `[N]`, whether an episode starts with it.
        actions: `[N, ...]`, or a dict or tuple of such arrays: the actions that led to it; None after a reset of all.
        rewards: `[N]`, the rewards of these actions; None after a reset of all.
        mask: `[N, A]`, the legal actions, which are no part of `obs`; None: all are.
    """

    obs: Any
    first: np.ndarray
    actions: Any = None
    rewards: Any = None
    mask: np.ndarray | None = None


#: A running stage, or several: from observations to the inputs of the next stage. It may remember earlier steps.
View = Callable[[Shown], Any]


@dataclass(frozen=True)
class Flatten:
    """One vector of all parts: images, numbers as they are, discrete ones as one-hot, texts by their hash.

    It equals RLlib's `FlattenObservations` where that one can encode the space, and there are no images or they are not
    scaled.

    Args:
        space: space of the input observations.
        keys_to_remove: parts of a Dict that are left out.
        scales_images: as in `Flattener`.
    """

    space: gym.Space
    keys_to_remove: tuple[str, ...] = ()
    scales_images: bool = True

    @property
    def flattener(self) -> Flattener:
        """Return the function that makes the vectors."""
        return Flattener(self.space, self.keys_to_remove, scales_images=self.scales_images)

    def start(self) -> View:
        """Return the running stage, which remembers nothing."""
        flatten = self.flattener
        return lambda shown: flatten(shown.obs, len(shown.first))

    @property
    def size(self) -> int:
        """Return the length of the vector."""
        return self.flattener.size

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Return how the vectors are made, as `described_parts()` describes it."""
        return described_parts(self.space, self.keys_to_remove, scales_images=self.scales_images)


@dataclass(frozen=True)
class Normalize:
    """A filter of arrays with fixed statistics: (x − mean) / std, clipped.

    Args:
        mean: shape of one observation; None: not subtracted.
        std: shape of one observation, > 0; None: not divided by.
        clip: largest absolute value of the outputs, > 0; None: no limit.
        dtype: type of the outputs. RLlib's `MeanStdFilter` keeps that of its observations, even integers.

    Raises:
        ValueError: a number is outside of its range, or is NaN.
    """

    mean: np.ndarray | None
    std: np.ndarray | None
    clip: float | None
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        for name, values, fits, expected in (
            ("mean", self.mean, np.isfinite, "finite numbers"),
            ("std", self.std, lambda std: std > 0, "numbers above 0"),
            ("clip", self.clip, lambda clip: clip > 0, "a number above 0, or None"),
        ):
            if values is not None and not np.all(fits(values)):
                shown = np.ravel(values)[:10].tolist()
                raise ValueError(f"a filter of observations has a {name} of {shown}; expected {expected}")

    def start(self) -> View:
        """Return the running stage, which remembers nothing."""
        return lambda shown: self._normalize(np.asarray(shown.obs))

    def _normalize(self, obs: np.ndarray) -> np.ndarray:
        x = obs if self.mean is None else obs - self.mean
        x = x if self.std is None else x / self.std
        return np.asarray(x if self.clip is None else np.clip(x, -self.clip, self.clip), self.dtype)


@dataclass(frozen=True)
class StackFrames:
    """RLlib's `FrameStackingEnvToModule`: the last frames `[N, H, W, 1]` as `[N, H, W, num_frames]`, newest last.

    Frames before an episode's first one are zeros.
    """

    num_frames: int

    def start(self) -> View:
        """Return the running stage, which remembers the last frames of each environment."""
        stack: np.ndarray | None = None

        def view(shown: Shown) -> np.ndarray:
            nonlocal stack
            frame = np.asarray(shown.obs)
            if stack is None:
                stack = np.zeros((*frame.shape[:-1], self.num_frames), frame.dtype)
            stack[shown.first] = 0
            stack = np.concatenate([stack[..., 1:], frame], axis=-1)
            return stack.copy()

        return view


@dataclass(frozen=True)
class Images:
    """Converts images of bytes, or with channels first, to the inputs of RLlib's networks: floats, channels last.

    Args:
        shape: (height, width, channels) of the outputs.
        scaled: whether bytes are divided by 255, so that inputs are in [0, 1].
    """

    shape: tuple[int, int, int]
    scaled: bool = True

    def takes(self, space: gym.Space) -> bool:
        """Return whether images of this space can be converted: channels first or last; if scaled, bytes or [0, 1]."""
        if not isinstance(space, gym.spaces.Box) or not self.fits(space.shape):
            return False
        is_0_to_1 = bool(np.all(space.low >= 0) and np.all(space.high <= 1))
        return not self.scaled or space.dtype == np.uint8 or is_0_to_1

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether images of this shape are those of the outputs, with channels first or last."""
        height, width, channels = self.shape
        return shape in (self.shape, (channels, height, width))

    def start(self) -> View:
        """Return the running stage, which remembers nothing."""

        def view(shown: Shown) -> np.ndarray:
            obs = np.asarray(shown.obs)
            return as_input(torch.as_tensor(obs if self.scaled else obs.astype(np.float32)), self.shape).numpy()

        return view


@dataclass(frozen=True)
class Function:
    """Any function of observations, such as the selection of a part of a Dict for a teacher.

    Args:
        function: from observations `[N, ...]`, or a dict or tuple of such arrays, to the inputs of the next stage.
            cloudpickle must be able to pickle it, which includes lambdas.
    """

    function: Callable[[Any], Any]

    def start(self) -> View:
        """Return the running stage, which remembers nothing."""
        return lambda shown: self.function(shown.obs)


@dataclass(frozen=True)
class RLlibConnectors:
    """Connectors of any kind, run by RLlib over episodes of its own, of which the last steps are kept.

    Args:
        pipeline: RLlib's env-to-module pipeline, without the default connectors at its end.
        rl_module: module that is passed to them.
    """

    pipeline: Any
    rl_module: Any = None

    def start(self) -> View:
        """Return the running stage, which remembers the running episodes."""
        pipeline = copy.deepcopy(self.pipeline)
        for connector in pipeline.connectors:
            _rllib.freeze_statistics(connector)
        episodes: list[SingleAgentEpisode] = []

        def view(shown: Shown) -> np.ndarray:
            num_envs = len(shown.first)
            episodes.extend(SingleAgentEpisode() for _ in range(num_envs - len(episodes)))
            shown_obs = with_text_arrays(pipeline.input_observation_space, shown.obs)
            for i in range(num_envs):
                obs = tree.map_structure(lambda part, i=i: np.asarray(part)[i], shown_obs)
                if shown.first[i]:
                    episodes[i] = SingleAgentEpisode(
                        observation_space=pipeline.input_observation_space, action_space=pipeline.input_action_space
                    )
                    episodes[i].add_env_reset(obs)
                else:
                    if len(episodes[i]) >= _MOST_STEPS:
                        episodes[i] = episodes[i].cut(len_lookback_buffer=_MOST_STEPS)
                    action = tree.map_structure(lambda part, i=i: part[i], shown.actions)
                    episodes[i].add_env_step(obs, action, float(shown.rewards[i]))
            batch = pipeline(
                rl_module=self.rl_module, batch={}, episodes=episodes, explore=False, shared_data={}, metrics=None
            )
            if Columns.OBS in batch:  # by episode
                return np.stack([np.asarray(items[-1]) for items in batch[Columns.OBS].values()])
            return np.stack([np.asarray(episode.get_observations(-1)) for episode in episodes])

        return view


@dataclass(frozen=True)
class SideBySide:
    """The inputs of several networks, each by a pipeline of its own, side by side in one vector."""

    pipelines: tuple[ObservationPipeline, ...]

    def takes(self, space: gym.Space) -> bool:
        """Return whether observations of this space suit all pipelines."""
        return all(pipeline.takes(space) for pipeline in self.pipelines)

    def start(self) -> View:
        """Return the running stage, which remembers what the pipelines remember."""
        views = [pipeline.start() for pipeline in self.pipelines]
        return lambda shown: np.concatenate([view(shown).reshape(len(shown.first), -1) for view in views], axis=1)


Stage = Flatten | Normalize | StackFrames | Images | Function | RLlibConnectors | SideBySide


@dataclass(frozen=True)
class ObservationPipeline:
    """Stages, one after the other.

    Args:
        observation_space: space of the environment's observations.
        stages: the stages. Without any, observations are unchanged; the parts of a Dict or Tuple become one vector.
            Images of floats in [0, 1] may always come as bytes, or with channels first.
        parts: how the vectors that it takes are made of an environment's observations, as `described_parts()` describes
            it and exported files record it. None: it takes other observations, or that is not known.
    """

    observation_space: gym.Space
    stages: tuple[Stage, ...] = ()
    parts: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        space = features_space(self.observation_space)
        if not self.stages and isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) and is_flattened(space):
            object.__setattr__(self, "stages", (Flatten(space),))

    @property
    def images(self) -> Images | None:
        """Return the stage that converts images; None for other observations."""
        if isinstance(first := next(iter(self.stages), None), Images):
            return first
        is_implied = self._side_by_side is None and is_float_image(self.observation_space)
        return Images(self.observation_space.shape) if is_implied else None

    @property
    def _side_by_side(self) -> SideBySide | None:
        return first if isinstance(first := next(iter(self.stages), None), SideBySide) else None

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Return the stages. The conversion of images is the first, also if it is implied."""
        return self.stages if self.images is None or self.images in self.stages[:1] else (self.images, *self.stages)

    def after(self, first: ObservationPipeline, source: str = "the policy") -> ObservationPipeline:
        """Return a pipeline that does what another one does, and then what this one does.

        Images that the other one has converted are converted once.

        Args:
            first: the other one.
            source: source of the network, for the message.

        Raises:
            OtherPartsError: as `for_space()`, if the other one makes one vector as it is made by default.
            ValueError: the other one returns images in [0, 1], but the network takes bytes as they are.
        """
        space = features_space(first.observation_space)
        if self.parts is not None and first.stages == (Flatten(space),):
            return self.for_space(space, source)
        conversions = [stage for stage in first.all_stages[-1:] if isinstance(stage, Images)]
        if self._takes_bytes and any(stage.scaled for stage in conversions):
            raise ValueError(
                f"The network of '{one_line(source)}' takes bytes as they are, but the pipeline before it returns "
                "images in [0, 1]. Let it return bytes: leave out the conversion, Images()."
            )
        own = self.stages if conversions else self.all_stages
        return ObservationPipeline(first.observation_space, (*first.stages, *own))

    def takes(self, space: gym.Space) -> bool:
        """Return whether observations of this space suit the pipeline, whether they contain a mask or not."""
        space, own = features_space(space), features_space(self.observation_space)
        if self._side_by_side is not None:
            return self._side_by_side.takes(space)
        if self.images is None:
            return same_space(own, space)
        is_divided = space.dtype != np.uint8 and replace(self.images, scaled=True).takes(space)
        return self.images.takes(space) and not (self._takes_bytes and is_divided)

    @property
    def _takes_bytes(self) -> bool:
        """Return whether the network gets bytes as they are: if they are to be divided, it does so itself."""
        return self.images is not None and not self.images.scaled and self.observation_space.dtype == np.uint8

    def for_space(self, space: gym.Space, source: str = "the policy") -> ObservationPipeline:
        """Return a pipeline that makes one vector of observations first, if this one takes such vectors.

        Otherwise return this one.

        Args:
            space: space of an environment's observations.
            source: source of the network, for the message.

        Raises:
            OtherPartsError: it is known how these vectors are made, and observations of this space have other parts.
        """
        space = features_space(space)
        if not is_flattened(space) or self.takes(space):
            return self
        if self._side_by_side is not None:
            fitted = SideBySide(tuple(each.for_space(space, source) for each in self._side_by_side.pipelines))
            return ObservationPipeline(space, (fitted, *self.stages[1:])) if fitted.takes(space) else self
        own = self.observation_space
        is_binary = isinstance(space, gym.spaces.MultiBinary) and own.shape == space.shape
        if is_binary and self.parts is None and isinstance(own, gym.spaces.Box):
            return replace(self, observation_space=space)  # numbers as they are
        size, flatten = input_space(space).shape, Flatten(space)
        if self.parts is not None:
            flatten = self._flatten_as_recorded(space, source)
            size = (flatten.size,)
        if not isinstance(own, gym.spaces.Box) or own.shape != size:
            return self
        return ObservationPipeline(space, (flatten, *self.stages))

    def _flatten_as_recorded(self, space: gym.Space, source: str) -> Flatten:
        """Return the stage that makes vectors of the recorded parts. Other parts of a Dict are left out.

        Raises:
            OtherPartsError: observations of this space have other parts.
        """
        kept = {path[0] for path in (part["path"] for part in self.parts or ()) if path}
        keys = space.spaces if isinstance(space, gym.spaces.Dict) else ()
        left_out = tuple(key for key in keys if key not in kept)
        for scales_images in (True, False):
            flatten = Flatten(space, left_out, scales_images)
            if flatten.parts == self.parts:
                return flatten
        raise OtherPartsError(
            f"'{one_line(source)}' takes vectors that are made of {_as_text(self.parts or [])}; those of this "
            f"environment would be made of {_as_text(Flatten(space).parts)}. Choose the environment in which it was "
            "trained."
        )

    @property
    def records_vectors(self) -> bool:
        """Return whether it is known how its vectors are made, or those of one of several networks."""
        if self._side_by_side is not None:
            return any(pipeline.records_vectors for pipeline in self._side_by_side.pipelines)
        return self.parts is not None

    def with_recorded_vectors(
        self, space: gym.Space, own_connectors: Collection[str] = (), source: str = "the policy"
    ) -> ObservationPipeline:
        """Return `for_space()` if it is known how vectors are made; otherwise this pipeline.

        Args:
            space: space of an environment's observations.
            own_connectors: kinds of the user's connectors. Those of the kind "env_to_module" make the vectors if
                observations of this space have other parts.
            source: source of the network, for the message.

        Raises:
            OtherPartsError: observations of this space have other parts, and no such connectors make the vectors.
        """
        try:
            return self.for_space(space, source) if self.records_vectors else self
        except OtherPartsError:
            if "env_to_module" not in own_connectors:
                raise
            return self

    def with_image_stage(self, space: gym.Space) -> ObservationPipeline:
        """Return a pipeline of which the conversion of such images is a stage: files contain stages alone.

        Return this one if it has stages, or takes these observations as they are.
        """
        space, images = features_space(space), self.images
        if self.stages or images is None or not images.takes(space):
            return self
        is_converted = space.dtype == np.uint8 or space.shape != images.shape
        return ObservationPipeline(space, (images,)) if is_converted else self

    def check_feeds(self, space: gym.Space, source: str) -> None:
        """Check that the outputs fit a network, before PyTorch fails in the middle of an episode.

        Args:
            space: space of the network's inputs.
            source: source of the network, for the message.

        Raises:
            ValueError: they do not.
        """
        shape = self._output_shape()
        if shape is not None and shape != space.shape:
            raise ValueError(
                f"The connectors of '{one_line(source)}' do not fit its network: their outputs have the shape "
                f"{list(shape)}, but its inputs {list(space.shape or ())}. Do both parts belong to the same checkpoint?"
            )

    def _output_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one output; None if it is unknown without running the pipeline."""
        shape = self.observation_space.shape
        for stage in self.stages:
            match stage:
                case Flatten():
                    shape = (stage.size,)
                case Images():
                    shape = stage.shape if shape is None or stage.fits(shape) else shape
                case StackFrames():
                    shape = (*shape[:-1], stage.num_frames) if shape else None
                case Normalize():
                    pass
                case _:
                    return None
        return shape

    def start(self) -> View:
        """Return a view for one vector env: the inputs `[N, ...]` of the network, float32."""
        views = [stage.start() for stage in self.all_stages]
        is_side_by_side = self._side_by_side is not None  # each of which sees the mask or not

        def view(shown: Shown) -> np.ndarray:
            obs, num_envs = shown.obs, len(shown.first)
            if not is_side_by_side:
                obs = with_mask(self.observation_space, obs, shown.mask, num_envs)
            for stage_view in views:
                obs = stage_view(Shown(obs, shown.first, shown.actions, shown.rewards, shown.mask))
            inputs = np.asarray(obs, np.float32)
            return inputs if min(inputs.strides, default=0) >= 0 else inputs.copy()  # PyTorch takes none in reverse

        return view


def begins_at_inputs(pipeline: ObservationPipeline | None) -> bool:
    """Return whether connectors may make a network's inputs: it has no pipeline, or one that records alone."""
    return pipeline is None or (pipeline.parts is not None and not pipeline.stages)


def _as_text(parts: list[dict[str, Any]]) -> str:
    """Return the description of a vector's parts as text for a message."""
    texts = []
    for part in parts:
        how = "".join(f" {name}={value}" for name, value in part.items() if name not in ("path", "op"))
        texts.append(f"{named(tuple(part['path'])) or 'the observation'} as {part.get('op')}{how}")
    return one_line(", ".join(texts), limit=300)
