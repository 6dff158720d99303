"""Record episodes, write the page, compare its JavaScript with PyTorch, and let it play."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd.environments.making import close, env_maker
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.intervals import mean_and_ci95
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.seeds import FRESH_SEED, episode_seeds
from rllib_kd.export.deployment import ArtifactPlayer, Deployment, visited
from rllib_kd.export.export import check_exportable, checked_obs, checked_out, compared
from rllib_kd.export.formats import input_shape
from rllib_kd.export.web import cartpole
from rllib_kd.export.web.javascript import PageStudent
from rllib_kd.export.web.network import web_network
from rllib_kd.export.web.page import page
from rllib_kd.export.web.recording import Recording, record, rendering
from rllib_kd.observations.pipeline import View
from rllib_kd.paths import replace_file
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import count_of_episodes, how_many, mean_and_interval, one_line, percent, printable
from rllib_kd.wire import LOG_PROBS

NUM_RECORDED = 3  # episodes
_MAX_SLIDERS = 32

_NO_NODE = (
    "Node.js is not installed, so the page's JavaScript was not run: only its weights were compared with PyTorch. "
    "Install node, and export again."
)

logger = logging.getLogger(__name__)


def check_web(student: Teacher) -> None:
    """Check that a page can hold the student, before it plays episodes.

    Raises:
        ValueError: it cannot; the message has the reason.
    """
    if student.module.is_stateful():
        raise ValueError(
            "The student is recurrent, and a web page keeps no state. Use format='onnx', 'safetensors' or 'c'."
        )
    check_exportable(student, format="safetensors")  # whose descriptions of layers a page runs
    web_network(student)


def publish(
    student: Teacher,
    out: Path,
    played: PlayedEnvironment,
    *,
    teacher: Teacher | None = None,
    teacher_name: str | None = None,
    num_episodes: int = 20,
    advance: Callable[[int], None] = lambda count: None,
) -> Deployment:
    """Write a student as a web page in one file, which requests nothing, if its Q-values equal PyTorch's.

    The page plays recorded episodes, answers observations, and simulates CartPole. Its JavaScript is run by node, which
    also plays the episodes; without node, only its weights are compared, with a warning, and the return is NaN.

    Args:
        student: the Q-network.
        out: path of the page; missing folders are created.
        played: the environment.
        teacher: teacher whose regret and actions the page shows; None: the page shows none.
        teacher_name: its name on the page; None: where it was loaded from.
        num_episodes: episodes of PyTorch, and as many of the page, ≥ 1; the first three are recorded.
        advance: called with the number of episodes that have ended since its last call, of 2 × `num_episodes`.

    Raises:
        ValueError: the student does not fit a page or the environment, or the page differs from PyTorch.
    """
    check_web(student)
    checked_out(out, "web")
    seeds, make_env = episode_seeds(num_episodes, FRESH_SEED), env_maker(*played)
    networks = {"The student": student} | ({} if teacher is None else {"The teacher": teacher})
    student, *others = check_players_fit(make_env, networks, for_files=True)
    view, torch_returns, states, masks = visited(student, make_env, seeds, advance=advance)
    obs = checked_obs(states, input_shape(student))
    teacher = others[0] if others else None
    data = _data(student, teacher, view, played, seeds[:NUM_RECORDED])
    lead = f"A student of {student.num_parameters:,} parameters plays {played}: return "
    lead += f"{mean_and_interval(*mean_and_ci95(torch_returns))}, {count_of_episodes(num_episodes)}."
    if teacher is not None:
        name = one_line(teacher_name or teacher.source, limit=200)
        lead += f" Its teacher is {name}, {how_many(teacher.num_parameters)} parameters."
    text = page(out.stem, lead, data)
    with PageStudent(text) as page_student:
        exported = compared(student, page_student, obs, out, format="web", masks=masks)
        returns = [math.nan]
        if page_student.runs_javascript:
            returns, _ = play(make_env, ArtifactPlayer(page_student, view), seeds, advance=advance)
        else:
            logger.warning(_NO_NODE)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, text.encode())
    mean, half_width = mean_and_ci95(returns)
    return Deployment(
        out.name, exported, None, mean_and_ci95(torch_returns)[0], mean, half_width, str(played), network=student
    )


def summary(deployment: Deployment, num_episodes: int) -> str:
    """Return what was measured of a page, in lines."""
    exported = deployment.exported
    size = Path(exported.path).stat().st_size
    return "\n".join(
        [
            f"played in {printable(deployment.played_in)}",
            f"return {mean_and_interval(deployment.return_mean, deployment.return_ci95)} "
            f"({count_of_episodes(num_episodes)}), in PyTorch {mean_and_interval(deployment.torch_return)}",
            f"largest difference from PyTorch {exported.max_difference:.1e}, agreement "
            f"{percent(exported.agreement or 0.0)} % of {exported.num_observations:,} observations",
            f"{size:,} bytes: {printable(exported.path)}",
        ]
    )


def _data(
    student: Teacher,
    teacher: Teacher | None,
    view: Callable[[], View],
    played: PlayedEnvironment,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return what the page shows, with an episode of each seed."""
    make_env, no_frames = rendering(played)
    recordings = [record(make_env, student, view, seed, teacher=teacher, with_frames=not no_frames) for seed in seeds]
    env = make_env()
    physics = cartpole.physics_of(env) if input_shape(student) == (4,) else None
    close(env)
    return {
        "network": web_network(student),
        "inputs": _inputs(recordings, cartpole.INPUTS if physics else None),
        "maxSliders": _MAX_SLIDERS,
        "actions": cartpole.ACTIONS if physics else [f"action {i}" for i in range(int(student.action_space.n))],
        "episodes": [recording.to_dict() for recording in recordings],
        "noFrames": no_frames,
        "regretUnit": "nats" if teacher is not None and teacher.outputs == LOG_PROBS else "return units",
        "cartpole": physics,
    }


def _inputs(recordings: Sequence[Recording], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return name and range of each input: the recorded range and a quarter of it on each side."""
    seen = np.concatenate([np.stack(recording.inputs) for recording in recordings]).astype(float)
    low, high = seen.min(0), seen.max(0)
    margin = np.where(high > low, (high - low) / 4, 1.0)
    is_whole = bool((seen == np.round(seen)).all())
    steps = "1" if is_whole else "any"
    names = [f"input {i}" for i in range(seen.shape[1])] if names is None else names
    rows = zip(
        names, np.floor(low) if is_whole else low - margin, np.ceil(high) if is_whole else high + margin, strict=True
    )
    return [{"name": name, "low": float(a), "high": float(b), "step": steps} for name, a, b in rows]
