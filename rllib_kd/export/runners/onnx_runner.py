"""Runs a student from ONNX with onnxruntime and numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of an ONNX file, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda obs: session.run(["q_values"], {"obs": np.asarray(obs, np.float32)})[0]
