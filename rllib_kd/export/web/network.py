"""A student's network as JSON, which the page's JavaScript runs."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rllib_kd.export.formats import describe, input_shape
from rllib_kd.networks.layers import ELEMENTWISE, Layer, op_in_words
from rllib_kd.teachers.base import Teacher

#: Layers that student.js runs.
KNOWN = {*ELEMENTWISE, "linear", "layer_norm", "normalize", "one_hot", "flatten", "dueling", "expectation", "tree"}
MAX_INPUTS = 1_000  # numbers of an observation that a page takes


def web_network(student: Teacher) -> dict[str, Any]:
    """Return the network as `{"layers": [...], "arrays": {name: base64 of 32-bit floats}}`.

    Raises:
        ValueError: it has another layer than `KNOWN`, or more than `MAX_INPUTS` inputs.
    """
    layers, tensors = describe(student)
    check_layers(layers)
    if (size := math.prod(input_shape(student))) > MAX_INPUTS:
        raise ValueError(
            f"A web page takes observations of at most {MAX_INPUTS} numbers, got {size}. Use format='onnx'."
        )
    return {"layers": layers, "arrays": {name: encoded(tensor.numpy()) for name, tensor in tensors.items()}}


def check_layers(layers: Sequence[Layer]) -> None:
    """Raise a ValueError that names the first layer which student.js does not run."""
    for layer in layers:
        if layer["op"] not in KNOWN:
            raise ValueError(
                f"A web page cannot hold {op_in_words(layer['op'])}: it runs linear students, MLPs and trees. Use "
                "format='onnx'."
            )
        for stream in ("value", "advantage"):
            check_layers(layer.get(stream, ()))


def encoded(numbers: Any) -> str:
    """Return numbers as base64 of 32-bit floats, little-endian, as `decodeFloats()` of student.js reads them."""
    return base64.b64encode(np.asarray(numbers, "<f4").tobytes()).decode()


def decoded(text: str) -> np.ndarray:
    """Return the numbers of `encoded()`, float32."""
    return np.frombuffer(base64.b64decode(text), "<f4")
