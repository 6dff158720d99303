"""Small ONNX models, put together by hand."""

import numpy as np
from onnx import TensorProto, helper


def onnx_model(nodes, weights=(), *, shape=(4,), opset=18):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.ones(8)), *weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


MATMUL = helper.make_node("MatMul", ["obs", "w"], ["q"])


def node(op, *inputs, to="x", **attributes):
    return helper.make_node(op, list(inputs), [to], **attributes)


def integers(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def floats(name, *shape):
    return helper.make_tensor(name, TensorProto.FLOAT, shape, bytes(4 * int(np.prod(shape))), raw=True)


LOOKS_SMALL = [
    node("ReduceSum", "x", to="s", keepdims=0),
    node("MatMul", "obs", "w", to="y"),
    node("Add", "s", "y", to="q"),
]
