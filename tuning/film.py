"""Film a teacher and its student side by side, on the same seed: a GIF of under a megabyte.

python tuning/film.py --teacher cartpole --student CHECKPOINT --out film.gif

`--env` names another environment, which must render to arrays. Needs pillow (matplotlib brings it), and what the
environment needs to render: for CartPole `pip install -e '.[video]'`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image, ImageDraw

from rllib_kd import Teacher, load_teacher
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.observations.pipeline import Shown

WIDTH, FRAMES_PER_SECOND = 300, 20
MAX_BYTES = 1_000_000


def frames(
    network: Teacher, env: gym.Env, *, title: str, seed: int, num_steps: int, every: int
) -> Iterator[Image.Image]:
    """Yield pictures of one episode of the greedy policy; the last one stays when the episode is over."""
    act = GreedyQ(network).for_space(env.observation_space).player()
    obs, _ = env.reset(seed=seed)
    first, is_over, total = True, False, 0.0
    picture = _picture(env, title, total)
    for step in range(num_steps):
        if not is_over:
            action = act(Shown(np.asarray(obs)[None], first=np.array([first])))[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            first, is_over, total = False, terminated or truncated, total + float(reward)
            picture = _picture(env, title, total)
        if step % every == 0:
            yield picture


def _picture(env: gym.Env, title: str, total: float) -> Image.Image:
    rendered: Any = env.render()
    picture = Image.fromarray(rendered)
    picture = picture.resize((WIDTH, picture.height * WIDTH // picture.width))
    ImageDraw.Draw(picture).text((8, 6), f"{title}\nreturn {total:.0f}", fill=(0, 0, 0))
    return picture


def film(teacher: str, student: str, env: str, out: Path, *, seed: int, num_steps: int, every: int) -> None:
    """Write the film.

    Args:
        teacher: checkpoint of the teacher, or "cartpole".
        student: checkpoint of the student.
        env: id or FILE.py:Class of the environment, which renders to arrays.
        out: GIF to write.
        seed: seed of both episodes.
        num_steps: env steps to show.
        every: env steps between two pictures.

    Raises:
        ValueError: the film has over a megabyte; show fewer steps.
    """
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame prints warnings without a sound card
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    sides = []
    for title, path in (("teacher", teacher), ("student", student)):
        network, played = load_teacher(path), env_maker(env, {"render_mode": "rgb_array"})()
        title = f"{title}, {network.num_parameters:,.0f} parameters"
        sides.append(list(frames(network, played, title=title, seed=seed, num_steps=num_steps, every=every)))
        played.close()
    both = [
        Image.fromarray(np.hstack([np.asarray(left), np.asarray(right)])) for left, right in zip(*sides, strict=True)
    ]
    pictures = [picture.quantize(16, dither=Image.Dither.NONE) for picture in both]
    pictures[0].save(
        out, save_all=True, append_images=pictures[1:], duration=1000 // FRAMES_PER_SECOND, loop=0, optimize=True
    )
    if out.stat().st_size > MAX_BYTES:
        raise ValueError(f"{out} has {out.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}: give fewer --steps.")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="cartpole", metavar="PATH")
    parser.add_argument("--student", required=True, metavar="PATH")
    parser.add_argument("--env", default="CartPole-v1", metavar="ID")
    parser.add_argument("--out", type=Path, default=Path("film.gif"), metavar="FILE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    film(args.teacher, args.student, args.env, args.out, seed=args.seed, num_steps=args.steps, every=args.every)


if __name__ == "__main__":
    main()
