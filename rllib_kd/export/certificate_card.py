"""The model card of a certificate: README.md beside certificate.json, or beside a sweep's report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rllib_kd.evaluation.played_environment import described
from rllib_kd.export.card import bullets
from rllib_kd.export.card_files import write_card
from rllib_kd.export.markdown import code, code_block
from rllib_kd.text import number

_LOAD = """\
import torch
from rllib_kd import load_teacher

student = load_teacher({})
action = student.q_values(torch.zeros(1, *student.input_space.shape)).argmax(-1)[0].item()"""


def write_certificate_card(folder: Path, content: Mapping[str, Any]) -> Path | None:
    """Write README.md beside a certificate, as `write_card()` does; return its path.

    Args:
        folder: folder of the certificate.
        content: `to_dict()` of a shrink or a sweep.
    """
    blocks = [
        "# A student and its certificate",
        code(content["verdict"], limit=1_000),
        bullets(_facts(content)),
        "`certificate.json` has what was found in every episode, and all candidates.",
    ]
    if content.get("command") is not None:
        blocks += ["The command that trains it:", code_block("bash", content["command"])]
    blocks += ["## Limits", bullets(_limits(content))]
    if (checkpoint := content.get("checkpoint")) is not None:
        blocks += ["## How to load it", code_block("python", _LOAD.format(repr(checkpoint)))]
        blocks += ["`rllib export` writes it as C, ONNX, safetensors or a web page."]
    return write_card(folder, "\n\n".join(blocks))


def _facts(content: Mapping[str, Any]) -> Iterator[str]:
    if _is_about_return(content):
        yield f"Environment: {code(described(content['env'], content.get('env_config') or {}))}"
    else:
        yield "Environment: none. The student was compared with its teacher on recorded states."
    teacher = content["teacher"]
    parameters = content.get("teacher_parameters")
    size = "" if parameters is None or not math.isfinite(parameters) else f", {parameters:,.0f} parameters"
    yield f"Teacher: {code(teacher if isinstance(teacher, str) else ', '.join(map(str, teacher)))}{size}"
    teacher_return, random_return = content.get("teacher_return"), content.get("random_return")
    if teacher_return is not None and random_return is not None:
        yield f"Mean return of the teacher: {number(teacher_return)}; of a random policy: {number(random_return)}"
    if (certificate := content.get("certificate")) is not None:
        yield f"Certificate: {code(certificate['reason'], limit=1_000)}"


def _is_about_return(content: Mapping[str, Any]) -> bool:
    return content.get("measured", "return ratio") == "return ratio"


def _limits(content: Mapping[str, Any]) -> Iterator[str]:
    if not _is_about_return(content):
        yield content["note"]
        yield "It holds for states like the recorded ones. The student may lead to others."
        return
    yield "A certificate is about the mean return of this environment's own seeds, not about the worst episode."
    yield "The return ratio is that of the greedy policy in floats. A file of 8-bit weights must be measured again."
