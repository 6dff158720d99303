"""Episodes as a page plays them: observations, actions, rewards, regret and small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image

from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.making import env_maker
from rllib_kd.environments.video import check_renders
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.evaluation.playing import Act, play
from rllib_kd.evaluation.policies import as_mask
from rllib_kd.export.web.network import encoded
from rllib_kd.observations.pipeline import Shown, View
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line

_MAX_STEPS = 2_000  # of an episode
_MAX_NUMBERS = 500_000  # of observations of an episode: 2 MB
_MAX_FRAMES = 100  # of an episode, evenly spaced
_FRAME_WIDTH = 320  # pixels, at most
_COLOURS = 32  # of a picture with few


@dataclass
class Recording:
    """One episode, up to the step at which it is cut off."""

    seed: int
    episode_return: float = 0.0  # of all of it, undiscounted
    inputs: list[np.ndarray] = field(default_factory=list)  # of the student, float32
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    teacher_actions: list[int] = field(default_factory=list)  # empty without a teacher, as regret
    regret: list[float] = field(default_factory=list)  # max_a Q_T(s, a) − Q_T(s, a_S), ≥ 0
    masks: list[list[bool]] = field(default_factory=list)  # legal actions; empty if all always are
    frames: list[tuple[int, str]] = field(default_factory=list)  # step, data: URL

    def to_dict(self) -> dict[str, Any]:
        """Return it for the page's JSON."""
        return {
            "seed": self.seed,
            "return": self.episode_return,
            "obs": encoded(self.inputs),
            "actions": self.actions,
            "rewards": encoded(self.rewards[: len(self.actions)]),
            "masks": self.masks or None,
            "teacherActions": self.teacher_actions or None,
            "regret": encoded(self.regret) if self.regret else None,
            "frames": [{"step": step, "src": src} for step, src in self.frames],
        }


def record(
    make_env: Callable[[], gym.Env],
    student: Teacher,
    view: Callable[[], View],
    seed: int,
    *,
    teacher: Teacher | None,
    with_frames: bool,
) -> Recording:
    """Play one episode with the student's best actions, and record it.

    Args:
        make_env: makes one environment, with `render_mode="rgb_array"` for frames.
        student: the student.
        view: starts a view of the exported network's inputs.
        seed: seed of the reset.
        teacher: teacher by which regret is recorded; None: no regret is recorded.
        with_frames: whether the environment is rendered.
    """
    recording = Recording(seed)
    recorder = _RecordingPlayer(recording, student, view, teacher)
    # Not the maker itself: an environment's own vector env would not be filmed.
    returns, _ = play(lambda: _Filmed(make_env(), recording, with_frames=with_frames), recorder, [seed])
    recording.episode_return = returns[0]
    recording.frames = [(step, src) for step, src in recording.frames if step < len(recording.actions)]
    return recording


def rendering(played: PlayedEnvironment) -> tuple[Callable[[], gym.Env], str]:
    """Return a maker of environments, which render if they can, and why they cannot; empty if they can."""
    try:
        make_env = env_maker(*played, render_mode="rgb_array")
        check_renders(make_env, "rgb_array")
    except (ValueError, TypeError, EnvFailedError) as error:  # a class of one's own may take no such argument
        return env_maker(*played), f"There are no pictures: {one_line(error, limit=300)}"
    return make_env, ""


class _RecordingPlayer:
    """A player that writes down what it sees and does."""

    def __init__(self, recording: Recording, student: Teacher, view: Callable[[], View], teacher: Teacher | None):
        self._recording, self._student, self._view, self._teacher = recording, student, view, teacher

    def player(self) -> Act:
        own, shown_to_student = self._view(), self._student.start()
        shown_to_teacher = None if self._teacher is None else self._teacher.start()

        def act(shown: Shown) -> np.ndarray:
            mask = as_mask(shown.mask)
            action = self._student.q_values(torch.from_numpy(shown_to_student(shown)), mask).argmax(-1).numpy()
            inputs = np.ravel(np.asarray(own(shown)[0], np.float32))
            teacher_q = None
            if self._teacher is not None and shown_to_teacher is not None:
                teacher_q = self._teacher.q_values(torch.from_numpy(shown_to_teacher(shown)), mask)[0]
            recording = self._recording
            if len(recording.actions) < min(_MAX_STEPS, _MAX_NUMBERS // inputs.size):
                recording.inputs.append(inputs)
                recording.actions.append(int(action[0]))
                if shown.mask is not None:
                    recording.masks.append(shown.mask[0].astype(bool).tolist())
                if teacher_q is not None:
                    recording.teacher_actions.append(int(teacher_q.argmax()))
                    recording.regret.append(float(teacher_q.max() - teacher_q[action[0]]))
            return action

        return act


class _Filmed(gym.Wrapper):
    """Keeps rewards and, evenly spaced, pictures: whenever there are too many, every second one is dropped."""

    def __init__(self, env: gym.Env, recording: Recording, *, with_frames: bool):
        super().__init__(env)
        self._recording, self._with_frames, self._every = recording, with_frames, 1

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        self._film()
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._recording.rewards.append(float(result[1]))
        self._film()
        return result

    def _film(self) -> None:
        step, frames = len(self._recording.rewards), self._recording.frames
        if not self._with_frames or step % self._every or step > _MAX_STEPS:
            return
        pixels = self.env.render()
        is_image = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size
        if not (is_image and pixels.shape[2] in (3, 4)):
            return  # an environment may render something else
        frames.append((step, picture(pixels)))
        if len(frames) > _MAX_FRAMES:
            self._every *= 2
            frames[:] = [frame for frame in frames if frame[0] % self._every == 0]


def picture(pixels: np.ndarray) -> str:
    """Return an image `[H, W, 3 or 4]` of bytes as a data: URL: PNG with few colours or JPEG, whichever is shorter."""
    image = Image.fromarray(pixels)
    image.thumbnail((_FRAME_WIDTH, _FRAME_WIDTH))
    encodings = []
    for kind, drawn, options in (
        ("png", image.quantize(_COLOURS), {"optimize": True}),
        ("jpeg", image.convert("RGB"), {"quality": 70}),
    ):
        buffer = io.BytesIO()
        drawn.save(buffer, kind, **options)
        encodings.append(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return min(encodings, key=len)
