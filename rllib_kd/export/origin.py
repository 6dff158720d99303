"""How a network was trained, as far as its checkpoint records it: names and texts of others, for a model card."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.environments.pools import played
from rllib_kd.evaluation.played_environment import described
from rllib_kd.evaluation.sources import Source

_SETTINGS = ("teacher", "loss", "rollout_policy", "kd_coeff", "td_coeff", "lr", "seed")
_SAVED_INSIDE = "checkpoint:"  # a teacher without another name than its place in the checkpoint


@dataclass(frozen=True)
class Origin:
    """The origin of a network.

    Args:
        checkpoint: name, path or URI of its checkpoint; None: it was made in this process.
        algorithm: name of the algorithm that trained it; None if that is not recorded.
        settings: recorded settings of the distillation by name, numbers and texts.
        command: the command that trained it; None if that is not recorded.
        verdict: what its certificate states; None without one.
        certified_in: environment of that certificate, with its config; None if it has none.
    """

    checkpoint: str | None = None
    algorithm: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    verdict: str | None = None
    certified_in: str | None = None


def origin_of(source: Source) -> Origin:
    """Return what the checkpoint of a network, and a certificate beside it, record."""
    recorded = source.settings()
    settings = {name: recorded[name] for name in _SETTINGS if name in recorded}
    if str(settings.get("teacher", "")).startswith(_SAVED_INSIDE):
        del settings["teacher"]
    certificate = {} if source.path is None else _certificate_beside(source.path)
    return Origin(
        checkpoint=source.path,
        algorithm=source.algorithm(),
        settings=settings,
        command=_text(certificate.get("command")),
        verdict=_text(certificate.get("verdict")),
        certified_in=_environment_of(certificate),
    )


def _certificate_beside(path: str) -> dict[str, Any]:
    """Return the certificate of `rllib shrink` for the student in its folder; {} if there is none."""
    folder = Path(path).absolute()
    with contextlib.suppress(OSError, ValueError):
        file = folder.parent / "certificate.json"
        if os.path.isfile(file) and os.path.getsize(file) <= limits.MAX_DESCRIPTION:
            content = parse_json(file.read_bytes())
            if isinstance(content, dict) and content.get("checkpoint") == folder.name:
                return content
    return {}


def _environment_of(certificate: dict[str, Any]) -> str | None:
    name: Any = _text(certificate.get("env"))
    env_config: Any = certificate.get("env_config") or {}
    if name is None or not isinstance(env_config, dict):
        return None
    if not certificate.get("certify_in_pool"):
        name, env_config = played(name, env_config)
    return described(name, env_config)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
