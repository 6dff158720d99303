"""Export a Q-network, measure its cost, and play episodes with the file."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.table import Table

from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.intervals import mean_and_ci95
from rllib_kd.evaluation.played_environment import PlayedEnvironment, resolve_environment
from rllib_kd.evaluation.playing import Act, MaskRecorder, play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.seeds import FRESH_SEED, episode_seeds
from rllib_kd.evaluation.sources import open_source
from rllib_kd.export.artifact import DeploymentCost, DeviceCost, deployment_cost, q_function
from rllib_kd.export.export import Exported, artifact_view, check_exportable, checked_out, ending_of
from rllib_kd.export.export import export as write_artifact
from rllib_kd.export.runners.remembering import Remembering
from rllib_kd.observations.pipeline import Shown, View
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import cell, means_and_intervals, number, percent, printable, rendered

_TORCHSCRIPT = (
    "PyTorch has deprecated TorchScript, and a later version of rllib_kd will only read it. Write .pt2 instead "
    "(--format pt2), or ONNX."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deployment:
    """An artifact with its parity check, its cost and its returns."""

    name: str
    exported: Exported
    cost: DeploymentCost | DeviceCost | None  # None: C without a compiler, which could neither be measured nor played
    torch_return: float  # of the network in PyTorch, undiscounted
    return_mean: float  # of the artifact, on the same episodes; NaN if it could not be played
    return_ci95: float
    played_in: str  # environment, with its config
    network: Teacher  # in PyTorch


def has_figures(teacher: Teacher, *, format: str, int8: bool) -> bool:
    """Return whether a teacher can be measured as a file of this format; warn with the reason if it cannot.

    Args:
        teacher: of the student that is exported.
        format: as in `deploy()`.
        int8: as in `deploy()`.
    """
    try:
        check_exportable(teacher, format=format, int8=int8)
    except ValueError as error:
        logger.warning("The teacher's figures are left out, because it cannot be exported. %s", error)
        return False
    return True


class ArtifactPlayer:
    """An exported Q-network as a player; as PyTorch's side, it gets arrays that the pipeline makes of observations."""

    def __init__(self, q_values: Callable[..., np.ndarray], view: Callable[[], View]):
        self._q_values, self._view = q_values, view

    def player(self) -> Act:
        """Return a function that acts in one vector env."""
        view, q_values = self._view(), self._q_values
        if not isinstance(q_values, Remembering):
            return lambda shown: q_values(view(shown), shown.mask).argmax(-1)
        q_values.begin()

        def act(shown: Shown) -> np.ndarray:
            q_values.begin(shown.first)
            return q_values(view(shown), shown.mask).argmax(-1)

        return act


def check_file(out: Path, format: str) -> None:
    """Check that a file can be written in a format, and warn of a format that PyTorch has given up.

    Raises:
        ValueError: as `checked_out()`.
    """
    checked_out(out, format)
    if format == "torchscript":
        logger.warning(_TORCHSCRIPT)


def visited(
    network: Teacher, make_env: Callable[[], gym.Env], seeds: Sequence[int], *, advance: Callable[[int], None]
) -> tuple[Callable[[], View], list[float], np.ndarray, np.ndarray | None]:
    """Let a network play in PyTorch, before its file does.

    Args:
        network: the network.
        make_env: makes one environment.
        seeds: seeds of the episodes.
        advance: as in `deploy()`.

    Returns:
        What makes the file's inputs; returns of the episodes; these inputs `[N, ...]` in the visited states; and the
        masks there `[N, A]`, None if the environment has none.
    """
    view = artifact_view(network)
    recorder = MaskRecorder(int(network.action_space.n))
    returns, (states, masks) = play(make_env, GreedyQ(network), seeds, views=[view, recorder.start], advance=advance)
    return view, returns, states, recorder.masks_of(masks)


# Longer than other functions by its docstring.
def deploy(
    checkpoint: Any,
    out: Path | None,
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    *,
    format: str,
    int8: bool = False,
    prefix: str | None = None,
    num_episodes: int = 20,
    env_config: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Deployment:
    """Export a Q-network, check it on the states that it visits, measure its cost, and play episodes with it.

    Args:
        checkpoint: as the student of `compare()`.
        out: the file to write; None: a temporary file, for a teacher to compare with.
        env: as in `compare()`.
        format: "c", "onnx", "pt2", "python", "safetensors" or "torchscript".
        int8: weights of 8 bits, for "c" and "onnx".
        prefix: what the names in C begin with; None: "student".
        num_episodes: episodes of PyTorch, and as many of the artifact, ≥ 1.
        env_config: as in `compare()`.
        advance: called with the number of episodes that have ended since its last call, of 2 × `num_episodes`.

    Raises:
        ValueError: the network cannot be loaded or exported, or the artifact differs from PyTorch; the message has the
            difference.
    """
    if out is not None:
        check_file(out, format)  # before the episodes
    seeds = episode_seeds(num_episodes, FRESH_SEED)
    source = open_source(checkpoint)
    played = resolve_environment({"the student": source}, env, env_config)
    network, make_env = source.network(), env_maker(*played)
    name = "The teacher" if out is None else "The student"
    (network,) = check_players_fit(make_env, {name: network}, for_files=True)
    check_exportable(network, format=format, int8=int8, prefix=prefix)
    view, torch_returns, states, masks = visited(network, make_env, seeds, advance=advance)
    with tempfile.TemporaryDirectory() as folder:
        path = out if out is not None else Path(folder) / f"network{ending_of(format)}"
        exported = write_artifact(
            network, path, format=format, obs=states, action_masks=masks, int8=int8, prefix=prefix
        )
        cost, returns = None, [math.nan]
        if exported.is_checked:
            returns, _ = play(make_env, ArtifactPlayer(q_function(path), view), seeds, advance=advance)
            cost = deployment_cost(path)
    return Deployment(
        "teacher" if out is None else out.name,
        exported,
        cost,
        mean_and_ci95(torch_returns)[0],
        *mean_and_ci95(returns),
        played_in=str(played),
        network=network,
    )


def deployment_table(deployments: Sequence[Deployment]) -> str:
    """Return the environments, and a table of at most 80 columns with one column for each artifact.

    For C that could not be checked, since there is no compiler, return one line without numbers.
    """
    if any(deployment.cost is None for deployment in deployments):
        return f"written unchecked: {printable(deployments[0].exported.path)}"
    table = Table(title=f"{deployments[0].exported.format}{', int8' if deployments[0].exported.int8 else ''}")
    table.add_column("")
    for deployment in deployments:
        table.add_column(cell(deployment.name), justify="right", overflow="fold")
    returns = means_and_intervals([(d.return_mean, d.return_ci95) for d in deployments])
    table.add_row("return, mean ± 95 % CI", *returns)
    columns = list(map(_rows, deployments))
    for title in columns[0]:
        table.add_row(title, *(column[title] for column in columns))
    environments = dict.fromkeys(deployment.played_in for deployment in deployments)
    return "\n".join([*(f"played in {printable(each)}" for each in environments), rendered(table)])


def _rows(deployment: Deployment) -> dict[str, str]:
    """Return the numbers of one artifact by the titles of their rows."""
    exported = deployment.exported
    return {
        "return in PyTorch": number(deployment.torch_return, deployment.return_ci95),
        **_costs(deployment.cost),
        "difference from PyTorch": _difference(exported.max_difference),
        "allowed": _difference(exported.max_difference_allowed),
        "agreement with PyTorch": "–" if exported.agreement is None else f"{percent(exported.agreement)} %",
    }


def _costs(cost: DeploymentCost | DeviceCost | None) -> dict[str, str]:
    if isinstance(cost, DeviceCost):
        return {
            "flash (code, weights)": _bytes(cost.flash_bytes),
            "static RAM": _bytes(cost.ram_bytes),
            "multiply-adds": f"{cost.multiply_adds:,}",
            "latency, batch of 1": f"{1e3 * cost.latency_ms:.3g} µs",
        }
    assert cost is not None  # all artifacts were measured
    return {
        "bytes on disk": f"{cost.disk_bytes:,}",
        "peak memory": f"{cost.peak_memory_bytes / 2**20:.1f} MiB",
        "latency, batch of 1": f"{1e3 * cost.latency_ms:.1f} µs",
    }


def _bytes(count: int | None) -> str:
    return "–" if count is None else f"{count:,} bytes"


def _difference(difference: float | None) -> str:
    return "–" if difference is None else f"{difference:.1e}"
