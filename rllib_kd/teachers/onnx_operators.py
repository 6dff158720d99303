"""The operators of ONNX whose work is known before they run, and how much it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import onnx

Shape = tuple[int, ...]


class Node(NamedTuple):
    """An operator with the shapes of its inputs and outputs."""

    inputs: list[Shape]
    outputs: list[Shape]
    attributes: dict[str, Any]

    def attribute(self, name: str, default: Any) -> Any:
        """Return one of its attributes by name."""
        return onnx.helper.get_attribute_value(self.attributes[name]) if name in self.attributes else default


def domain_of(domain: str) -> str:
    """Return the domain by which `OPERATORS` lists an operator: ONNX's own operators have two names for theirs."""
    return "" if domain == "ai.onnx" else domain


#: Returns the steps beside one for each number that goes in and comes out, and the numbers that are copied.
_Work = Callable[[Node], tuple[int, int]]


def _times(steps: int) -> _Work:
    """Return the work of this many steps for each number that goes in or comes out."""
    return lambda node: (steps * sum(map(math.prod, (*node.inputs, *node.outputs))), 0)


def _matmul(node: Node) -> tuple[int, int]:
    inner = node.inputs[0][-1] if node.inputs[0] else 1
    return math.prod(node.outputs[0]) * inner, 0


def _gemm(node: Node) -> tuple[int, int]:
    return math.prod(node.outputs[0]) * max(node.inputs[0]), 0


def _convolution(weight: int) -> _Work:
    def work(node: Node) -> tuple[int, int]:
        filters, *patch = node.inputs[weight]
        numbers = math.prod(node.outputs[0])
        return numbers * math.prod(patch), numbers * math.prod(patch) // max(1, filters)

    return work


def _transposed_convolution(node: Node) -> tuple[int, int]:
    _, *patch = node.inputs[1]
    copied = math.prod(node.inputs[0]) * math.prod(patch)
    return copied, copied // max(1, node.inputs[0][1])


def _pool(node: Node) -> tuple[int, int]:
    return math.prod(node.outputs[0]) * math.prod(map(abs, node.attribute("kernel_shape", [1]))), 0


def _local_response(node: Node) -> tuple[int, int]:
    return math.prod(node.outputs[0]) * abs(node.attribute("size", 1)), 0


def _recurrent(node: Node) -> tuple[int, int]:
    """Return the work of a recurrent layer: each step in time has a cost of its own, however few numbers it has."""
    length, batch = node.inputs[0][:2]
    hidden = node.inputs[2][-1]
    work = length * batch * sum(map(math.prod, node.inputs[1:3]))
    return work + length * 1_000 * node.inputs[1][0] + length * batch * hidden * 20, 0


def _einsum(node: Node) -> tuple[int, int]:
    """Return the work of nested loops, one for each letter; with more than two inputs, parts of the sum take memory."""
    terms = node.attribute("equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, node.inputs, strict=True):
        letters = term.replace("...", "." * (len(shape) - len(term.replace("...", ""))))
        for i, (letter, length) in enumerate(zip(letters, shape, strict=True)):
            key = f".{i - len(shape)}" if letter == "." else letter  # each axis without a letter is a loop of its own
            lengths[key] = max(lengths.get(key, 1), length)
    work = len(terms) * math.prod(lengths.values())
    return work, work if len(terms) > 2 else 0


#: Operators that take some steps for each number that goes in or comes out.
_ELEMENTWISE = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization BitShift BitwiseAnd BitwiseNot
    BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish
    Hardmax Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization Max Mean Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh
    Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile
    Transpose Trilu Unsqueeze Upsample Where Xor
"""

OPERATORS: dict[tuple[str, str], _Work] = {
    **{("", name): _times(10) for name in _ELEMENTWISE.split()},
    ("", "AveragePool"): _pool,
    ("", "Conv"): _convolution(1),
    ("", "ConvInteger"): _convolution(1),
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "Einsum"): _einsum,
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _gemm,
    ("", "LRN"): _local_response,
    ("", "LSTM"): _recurrent,
    ("", "LpPool"): _pool,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "MaxPool"): _pool,
    ("", "QLinearConv"): _convolution(3),
    ("", "QLinearMatMul"): _matmul,
    ("", "RNN"): _recurrent,
    ("", "Resize"): _times(100),
    ("", "TopK"): _times(50),
    ("ai.onnx.ml", "Binarizer"): _times(10),
}
