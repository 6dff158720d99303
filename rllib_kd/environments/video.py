"""Record videos of episodes, and check that environments can be rendered."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np

from rllib_kd.environments.failures import described, users_errors
from rllib_kd.environments.making import close

#: What an environment of the user's own needs to be shown.
_REMEDY = (
    "Take `render_mode` in the constructor, or config['render_mode'] where it takes a config; set self.render_mode to "
    "it; and with 'rgb_array' return an array [height, width, 3] of bytes from render()."
)


def check_recorder() -> None:
    """Check that videos can be written, before anything is loaded or played.

    Raises:
        ValueError: a package is missing; the message names it.
    """
    try:
        import moviepy  # noqa: F401
    except Exception as error:  # moviepy itself looks for ffmpeg
        missing = f"'{error.name}'" if isinstance(error, ImportError) and error.name else f"'moviepy' ({error})"
        raise ValueError(f"Videos need the package {missing}: pip install 'rllib-kd[video]'") from error


def check_renders(make_env: Callable[[], gym.Env], mode: str) -> None:
    """Check that an environment can be rendered, before it plays.

    Args:
        make_env: makes an environment with this `render_mode`.
        mode: gymnasium's "human" or "rgb_array".

    Raises:
        ValueError: it cannot; the message has the environment's reason, and what an environment needs.
    """
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame prints warnings without a sound card
    if mode == "rgb_array" and not os.environ.get("DISPLAY"):  # as it does where it looks for a screen, and finds none
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        env = make_env()
    except ValueError as error:  # such as a constructor without this argument
        raise ValueError(f"{error}. {_REMEDY}" if "render_mode" in str(error) else str(error)) from error
    try:
        if env.render_mode != mode:
            raise ValueError(
                f"The environment cannot be rendered as '{mode}': its render_mode is {env.render_mode!r}. {_REMEDY}"
            )
        env.reset(seed=0)
        picture = env.render()
        if mode == "rgb_array" and not isinstance(picture, np.ndarray):
            got = "None" if picture is None else f"a {type(picture).__name__}"
            raise ValueError(f"The environment returns {got} from render(), which is no picture. {_REMEDY}")
    except ValueError:
        raise
    except users_errors() as error:  # such as a missing package or display
        raise ValueError(f"The environment cannot be shown: {described(error)}") from error
    finally:
        close(env)


def recording(make_env: Callable[[], gym.Env], folder: Path, *, name: str) -> Callable[[], gym.Env]:
    """Return a function that makes environments which write their first episode to a video.

    Args:
        make_env: makes an environment that renders to arrays (`render_mode="rgb_array"`).
        folder: folder of the video, which is created if it is missing.
        name: prefix of the file's name.

    Raises:
        ValueError: the package that writes videos is missing.
    """
    check_recorder()

    def make() -> gym.Env:
        env = make_env()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are videos in the folder: they have other names
            return gym.wrappers.RecordVideo(
                env, str(folder), episode_trigger=lambda i: i == 0, name_prefix=name, disable_logger=True
            )

    return make
