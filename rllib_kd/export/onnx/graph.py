"""A graph of ONNX in the making."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: The oldest opset that torch's exporter writes too: the most devices can run it.
OPSET = 18
#: ONNX's operators for machine learning: the oldest that onnx.helper and the runtimes have in common.
_ML_OPSET = 3
_IR_VERSION = 9


class OnnxGraph:
    """Nodes, constants and inputs. Values are known by name; all inputs and outputs are float32, of any batch size."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._counts: Counter[str] = Counter()

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Add an input `[B, *shape]`, and return its name."""
        self._inputs.append(_value(name, shape))
        return name

    def constant(self, name: str, array: Any) -> str:
        """Add a constant, and return its name: the given one, with a number behind it if another array has that."""
        from onnx import numpy_helper

        name = self._unused(name)
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        (output,) = self.add_with_outputs(1, op, *inputs, **attributes)
        return output

    def add_with_outputs(self, count: int, op: str, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Add a node, and return the names of its outputs."""
        from onnx import helper

        outputs = tuple(self._unused(op.lower()) for _ in range(count))
        self._nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs

    def model(self, outputs: Mapping[str, tuple[str, Sequence[int]]]) -> Any:
        """Return the checked model.

        Args:
            outputs: by name, the value that is put out, and its shape without the batch.
        """
        from onnx import checker, helper

        names = {value: name for name, (value, _) in outputs.items()}
        for node in self._nodes:
            for side in (node.input, node.output):
                side[:] = [names.get(name, name) for name in side]
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain for node in self._nodes):
            opsets.append(helper.make_opsetid("ai.onnx.ml", _ML_OPSET))
        put_out = [_value(name, shape) for name, (_, shape) in outputs.items()]
        graph = helper.make_graph(self._nodes, "student", self._inputs, put_out, list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        checker.check_model(model, full_check=True)
        return model

    def _unused(self, name: str) -> str:
        self._counts[name] += 1
        count = self._counts[name]
        return name if count == 1 else f"{name}_{count}"


def _value(name: str, shape: Sequence[int]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
