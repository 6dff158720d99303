"""Runs a student from ONNX with onnxruntime and numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime


def load(path: str) -> Callable[..., np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of an ONNX file, on one thread.

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    takes_mask = "action_mask" in [value.name for value in session.get_inputs()]
    num_actions = session.get_outputs()[0].shape[-1]

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        inputs = {"obs": np.asarray(obs, np.float32)}
        if takes_mask:
            mask = np.ones((len(obs), num_actions)) if action_mask is None else action_mask
            inputs["action_mask"] = np.asarray(mask, np.float32)
        q = session.run(["q_values"], inputs)[0]
        if takes_mask or action_mask is None:
            return q
        return np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values
