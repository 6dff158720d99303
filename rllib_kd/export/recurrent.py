"""Recurrent students as files: one step of a function from observation and state to Q-values and the next state.

States are `[B, units]`, zeros at the beginning of an episode. `runners/remembering.py` keeps them for the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from torch import Tensor, nn

from rllib_kd import _rllib
from rllib_kd.networks.parts import is_known
from rllib_kd.networks.recurrent import Memory, recurrent_layer

#: Formats that hold recurrent students.
RECURRENT_FORMATS = ("c", "onnx", "safetensors")
#: Names of the parts of a state, as inputs of a file; its outputs have `_out` after them.
_STATE_INPUTS = {"lstm": ("state_h", "state_c"), "gru": ("state_h",)}

_AT_ONCE = 16  # sequences of the parity check


def kind_of(module: Any) -> str:
    """Return "lstm" or "gru"."""
    return "lstm" if isinstance(recurrent_layer(module), nn.LSTM) else "gru"


def state_sizes(module: Any) -> dict[str, int]:
    """Return the units of each part of a state, by its name as an input of a file."""
    layer = recurrent_layer(module)
    assert layer is not None
    return dict.fromkeys(_STATE_INPUTS[kind_of(module)], layer.hidden_size)


def check_recurrent_exportable(module: Any, *, format: str, int8: bool) -> None:
    """Check that a recurrent student can be exported.

    Raises:
        ValueError: it cannot.
    """
    layer = recurrent_layer(module)
    if (
        not _rllib.has_default_q_values(module)
        or layer is None
        or not all(map(is_known, (module.encoder, layer)))
        or layer.num_layers != 1
        or module.num_atoms > 1
    ):
        raise ValueError(
            f"Recurrent students can be exported if they are RLlib's DQN module with one LSTM or GRU, without hooks "
            f"and without a compute_q_values() of their own, got a {type(module).__name__}. Distil it into one."
        )
    if format not in RECURRENT_FORMATS:
        raise ValueError(
            f"The student is recurrent, and format='{format}' keeps no state. Use one of "
            f"{', '.join(RECURRENT_FORMATS)}, or export a feed-forward student."
        )
    if int8:
        raise ValueError("int8 is for feed-forward students, but this one is recurrent. Leave out int8.")


class StepNetwork(nn.Module):
    """One step of a recurrent student: from observations `[B, ...]` and a state to Q-values `[B, A]` and the next one.

    The recurrent layer is written in operations that every runtime has.

    Args:
        module: the student's RLModule.
        preprocessing: the stages before it that the file contains.
    """

    def __init__(self, module: Any, preprocessing: nn.Module):
        super().__init__()
        self.preprocessing, self.module = preprocessing, module
        self.kind = kind_of(module)

    def forward(self, obs: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Return Q-values and the parts of the next state; `more` are the parts of the state, and then the mask."""
        count = len(_STATE_INPUTS[self.kind])
        state, mask = more[:count], more[count:]
        encoder, x = self.module.encoder, self.preprocessing(obs)
        if encoder.tokenizer is not None:
            x = encoder.tokenizer({Columns.OBS: x})[ENCODER_OUT]
        after = _cell(self.kind, encoder.lstm if self.kind == "lstm" else encoder.gru, x, state)
        q = self.module.af(after[0])
        if self.module.uses_dueling:
            q = q - q.mean(-1, keepdim=True) + self.module.vf(after[0])
        for one in mask:
            q = torch.where(one > 0.5, q, -torch.inf)
        return (q, *after)


def _cell(kind: str, layer: Any, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the parts of the state `[B, units]` after one step."""
    inputs = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
    hidden = nn.functional.linear(state[0], layer.weight_hh_l0, layer.bias_hh_l0)
    if kind == "lstm":
        i, f, g, o = (inputs + hidden).chunk(4, dim=-1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    (r, z, n), (hidden_r, hidden_z, hidden_n) = inputs.chunk(3, dim=-1), hidden.chunk(3, dim=-1)
    z = torch.sigmoid(z + hidden_z)
    n = torch.tanh(n + torch.sigmoid(r + hidden_r) * hidden_n)
    return (n + z * (state[0] - n),)


def describe_recurrent(module: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe the recurrent layer for safetensors; its weights are added to `tensors`."""
    layer, kind = recurrent_layer(module), kind_of(module)
    assert layer is not None
    names = {}
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        names[name] = f"{kind}.{name}"
        tensors[names[name]] = getattr(layer, f"{name}_l0").detach().cpu().float().contiguous()
    return {"op": kind, **names}


def recurrent_parity(
    student: Any, artifact: Any, obs: np.ndarray, inputs: Callable[[np.ndarray], np.ndarray], masks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Run PyTorch and a file over the same observations as sequences, each keeping its state.

    Args:
        student: the student in PyTorch.
        artifact: a `Remembering`.
        obs: observations `[N, ...]`. Those at places i, i + B, i + 2 B, ... are one sequence.
        inputs: from observations to the network's inputs.
        masks: legal actions `[N, A]`; None: all.

    Returns:
        Q-values `[M, A]` of PyTorch without masks, and of the file; M ≤ N.
    """
    count = min(_AT_ONCE, max(1, len(obs) // 2))  # at least two steps of each, if there are two
    device = next(student.module.parameters()).device
    memory, expected, got = Memory(), [], []
    artifact.begin()
    for start in range(0, len(obs) - count + 1, count):
        rows = slice(start, start + count)
        memory.begin(student.module, np.full(count, start == 0), device)
        x = torch.as_tensor(np.asarray(inputs(obs[rows]), np.float32), device=device)
        expected.append(memory.step(student.module, x).cpu().numpy())
        chunk = obs[rows].astype(np.float32)
        got.append(artifact(chunk) if masks is None else artifact(chunk, masks[rows]))
    return np.concatenate(expected), np.concatenate(got)
