"""The fingerprint of a teacher: text that is equal for teachers with the same weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from rllib_kd.observations.pipeline import Normalize

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher


def fingerprint(teacher: Teacher) -> str:
    """Return the SHA-256 over a teacher's weights, and over what its pipeline normalises by, in hexadecimal digits.

    It is empty for a function whose weights are unknown, such as a lambda.
    """
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
