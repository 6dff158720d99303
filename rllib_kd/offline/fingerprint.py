"""The fingerprint of a teacher: text that is equal for teachers that compute the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rllib_kd.observations.pipeline import Flatten, Images, Normalize, ObservationPipeline, SideBySide, StackFrames

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher


#: Name under which sweeps and runs of `Shrink` keep the fingerprint of their teacher.
WEIGHTS = "weights of the teacher"
#: Digits of the SHA-256 over the weights. Older fingerprints have no others.
WEIGHT_DIGITS = 64
_COMPUTATION_DIGITS = 16
LENGTHS = (WEIGHT_DIGITS, WEIGHT_DIGITS + _COMPUTATION_DIGITS)


def fingerprint(teacher: Teacher) -> str:
    """Return text that is equal for teachers that compute the same: 80 hexadecimal digits.

    The first 64 are the SHA-256 over the weights, and over what the pipeline normalises by; the others are of that over
    layers without weights, such as activations, strides, the support of a C51, the stages of the pipeline, and an
    ensemble's temperature. What a custom module does between its layers is not seen. It is empty for a function whose
    weights are unknown, such as a lambda.
    """
    weights = _of_weights(teacher)
    computation = hashlib.sha256(repr(list(_computation(teacher))).encode()).hexdigest()
    return weights and weights + computation[:_COMPUTATION_DIGITS]


def agree(one: str, other: str) -> bool:
    """Return whether two fingerprints may be of the same teacher; of older ones, the weights alone tell."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def as_kept(now: str, kept: Any) -> str:
    """Return a fingerprint in the form in which an older one was kept, if both may be of the same teacher."""
    return kept if isinstance(kept, str) and kept and now and agree(now, kept) else now


def short(fingerprint: str) -> str:
    """Return the first digits of both parts, for messages."""
    return "-".join(filter(None, (fingerprint[:12], fingerprint[WEIGHT_DIGITS:][:4])))


def _computation(teacher: Teacher) -> Iterator[Any]:
    """Yield what a teacher does with its weights."""
    yield getattr(getattr(teacher.module, "function", None), "policy_temperature", None)  # of an ensemble
    for member in teacher.members:
        for part in member.module.modules() if isinstance(member.module, torch.nn.Module) else ():
            if next(part.children(), None) is None:
                yield f"{type(part).__name__}({part.extra_repr()})"
        yield None if member.support is None else tuple(map(float, member.support))
        yield from _stages(member.pipeline)
    if teacher.pipeline is not teacher.members[0].pipeline:
        yield from _stages(teacher.pipeline)


def _stages(pipeline: ObservationPipeline | None) -> Iterator[Any]:
    for stage in pipeline.stages if pipeline is not None else ():
        match stage:
            case Images():
                yield "images", stage.shape, stage.scaled
            case Flatten():
                yield "flatten", stage.size, stage.keys_to_remove, stage.scales_images
            case StackFrames():
                yield "frames", stage.num_frames
            case SideBySide():
                yield [list(_stages(each)) for each in stage.pipelines]
            case _:
                yield type(stage).__name__


def _of_weights(teacher: Teacher) -> str:
    """Return the SHA-256 over a teacher's weights, and over what its pipeline normalises by, in hexadecimal digits."""
    digest = hashlib.sha256(teacher.outputs.encode())
    for member in teacher.members:
        content = getattr(getattr(member.module, "function", None), "content", b"")  # of a file of ONNX or TorchScript
        weights = member.module.state_dict() if isinstance(member.module, torch.nn.Module) else {}
        if not weights and not content:
            return ""
        digest.update(content)
        for name in sorted(weights):
            if not isinstance(weights[name], torch.Tensor):  # of get_extra_state(): text of it may differ elsewhere
                continue
            tensor = weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for stage in member.pipeline.stages if member.pipeline is not None else ():
            if isinstance(stage, Normalize):
                arrays = [
                    None if values is None else np.asarray(values).tobytes() for values in (stage.mean, stage.std)
                ]
                digest.update(repr((arrays, stage.clip)).encode())
    return digest.hexdigest()
