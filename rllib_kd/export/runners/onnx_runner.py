"""Runs a student from ONNX with onnxruntime and numpy alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

#: The operator that quantises with one scale for all rows of a batch. A model that has it gets them one at a time.
_ONE_SCALE = b"DynamicQuantizeLinear"


def load(path: str) -> Callable[..., np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of an ONNX file, on one thread.

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf. Of a recurrent
    student it is a `Remembering`, for which remembering.py must lie beside this file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {value.name: value.shape for value in session.get_inputs()}
    takes_mask = "action_mask" in inputs
    sizes = {name: shape[-1] for name, shape in inputs.items() if name.startswith("state_")}
    if sizes:
        return _remembering(session, sizes, takes_mask=takes_mask)
    num_actions = session.get_outputs()[0].shape[-1]

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(["q_values"], inputs)[0]

    has_one_scale = _ONE_SCALE in Path(path).read_bytes()

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        inputs = {"obs": np.asarray(obs, np.float32)}
        if takes_mask:
            mask = np.ones((len(obs), num_actions)) if action_mask is None else action_mask
            inputs["action_mask"] = np.asarray(mask, np.float32)
        if has_one_scale and len(obs) > 1:
            rows = range(len(obs))
            q = np.concatenate([run({name: each[[row]] for name, each in inputs.items()}) for row in rows])
        else:
            q = run(inputs)
        if takes_mask or action_mask is None:
            return q
        return np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values


def _remembering(
    session: onnxruntime.InferenceSession, sizes: dict[str, int], *, takes_mask: bool
) -> Callable[..., np.ndarray]:
    """Return a recurrent student as a function that keeps its state."""
    beside = f"{__package__}.remembering" if __package__ else "remembering"  # taken along without the package
    remembering = importlib.import_module(beside)
    names = ["q_values", *(f"{name}_out" for name in sizes)]
    num_actions = session.get_outputs()[0].shape[-1]

    def step(
        obs: np.ndarray, state: dict[str, np.ndarray], action_mask: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        mask = np.ones((len(obs), num_actions)) if action_mask is None else np.asarray(action_mask)
        masks = {"action_mask": mask.astype(np.float32)} if takes_mask else {}
        q, *after = session.run(names, {"obs": obs, **state, **masks})
        if not takes_mask and action_mask is not None:
            q = np.where(mask == 1, q, np.float32(-np.inf))
        return q, dict(zip(sizes, after, strict=True))

    return remembering.Remembering(step, sizes)
