"""A strip of pictures: one episode of the student that a run has found."""

from __future__ import annotations

import math
from typing import NamedTuple

from rllib_kd.environments.failures import described
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.export.web.recording import record, rendering
from rllib_kd.teachers.base import Teacher

_MOST = 8  # pictures


class Strip(NamedTuple):
    """Pictures of one episode.

    Args:
        seed: seed of the episode's reset.
        episode_return: its undiscounted return.
        frames: step and data: URL of each picture, evenly spaced, the first and the last state among them.
        missing: why there are none; empty if there are some.
    """

    seed: int
    episode_return: float
    frames: list[tuple[int, str]]
    missing: str


def strip_of(student: Teacher, played: PlayedEnvironment, seed: int) -> Strip:
    """Let a student play one episode, and return pictures of it, if the environment can be rendered."""
    make_env, missing = rendering(played)
    if missing:
        return Strip(seed, math.nan, [], missing)
    try:
        recording = record(make_env, student, student.start, seed, teacher=None, with_frames=True)
    except Exception as error:  # a certificate is worth more than its pictures
        return Strip(seed, math.nan, [], f"There are no pictures: {described(error)}")
    frames = recording.frames
    last, count = len(frames) - 1, min(_MOST, len(frames))
    places = [round(place * last / max(1, count - 1)) for place in range(count)]
    return Strip(seed, recording.episode_return, [frames[place] for place in places], "")
