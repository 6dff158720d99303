"""Parameters of ONNX operators at which onnx or onnxruntime crash, hang, or take gigabytes that nobody has counted.

Models are loaded and asked in a process of its own, which some of them used to end.
"""

import pickle

import numpy as np
import pytest
import torch
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.teachers.onnx import load_onnx
from rllib_kd.teachers.onnx_operators import OPERATORS
from tests.fuzzing.workers import measure_each

HUGE = 2**62


def node(op, *inputs, output="x", **attributes):
    return helper.make_node(op, list(inputs), [output], **attributes)


IMAGE = node("Reshape", "obs", "image shape", output="image")  # [n, 1, 2, 2]
INDICES = helper.make_node("Cast", ["obs"], ["indices"], to=TensorProto.INT64)


def model_of(nodes, opset=18, **weights):
    """Q-values `[n, 2]`, in which the sum of `x` has a part."""
    weights = {"w": np.ones((4, 2), np.float32), "image shape": [-1, 1, 2, 2], "ones": np.ones(4, np.float32)} | weights
    ends = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceSum", "floats", output="s", keepdims=0),
        node("MatMul", "obs", "w", output="y"),
        node("Add", "s", "y", output="q"),
    ]
    graph = helper.make_graph(
        [*nodes, *ends],
        "graph",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def ask(content):
    teacher = load_onnx(content, "a.onnx")
    for value in (0.0, 3.0, -1e30, np.nan):
        for count in (1, 50):
            try:
                teacher.q_values(torch.full((count, 4), value))
            except CheckpointError as error:  # about the values
                assert "'a.onnx' fails on" in str(error)  # noqa: PT017
                assert "alloc" not in str(error).lower()  # noqa: PT017


def verdicts(models):
    """What comes of each model, in a process that is started again if one ends it."""
    contents = [model.SerializeToString() for model in models]
    harmless = model_of([node("Relu", "obs")]).SerializeToString()
    results = measure_each(
        range(len(contents)), lambda i: lambda: ask(contents[i]), num_workers=1, warm_up=lambda: ask(harmless)
    )
    return [outcome for _, outcome in sorted(results, key=lambda result: result[0])]


def scaled(*scales, **attributes):
    return model_of(
        [IMAGE, node("Resize", "image", "", "scales", **attributes)], scales=np.array([1, 1, *scales], np.float32)
    )


def range_of(dtype, start, limit, delta):
    return model_of([node("Range", "a", "b", "c")], a=dtype(start), b=dtype(limit), c=dtype(delta))


#: Models, and why they are refused. Some are judged as if they made nothing, since the count overflows.
REFUSED = {
    "GatherND, batch_dims −2³¹": (
        model_of([INDICES, node("GatherND", "obs", "indices", batch_dims=-(2**31))]),
        "'GatherND' has batch_dims = -2147483648; expected integers up to 1048576",
    ),
    "GatherND, batch_dims −1": (
        model_of([INDICES, node("GatherND", "obs", "indices", batch_dims=-1)]),
        "'GatherND' has batch_dims = -1; expected fewer than 2, and at least 0",
    ),
    "GatherND, batch_dims 2": (
        model_of([INDICES, node("GatherND", "obs", "indices", batch_dims=2)]),
        "'GatherND' has batch_dims = 2; expected",
    ),
    "LayerNormalization, axis 2³¹": (
        model_of([node("LayerNormalization", "obs", "ones", axis=2**31)]),
        "'LayerNormalization' has axis = 2147483648",
    ),
    "LayerNormalization, axis 100": (
        model_of([node("LayerNormalization", "obs", "ones", axis=100)]),
        "'LayerNormalization' has axis = 100; expected one of 2 axes",
    ),
    "a range of 32 bits": (range_of(np.int32, -(2**31), 10, 1), "'Range' counts from -2147483648 to 10 in steps of 1"),
    "a range of 64 bits": (range_of(np.int64, -(2**63), 2**63 - 1, 1), "'Range' counts from -9223372036854775808"),
    "a range of floats": (range_of(np.float32, 0, 1e30, 1e-30), "'Range' counts from 0.0 to 1"),
    "a range to NaN": (range_of(np.float32, 0, np.nan, 1), "'Range' takes .*; expected finite numbers"),
    "a range without a step": (range_of(np.int64, 0, 10, 0), "'Range' counts from 0 to 10 in steps of 0"),
    "a shape with zeros that are none": (
        model_of(
            [node("Reshape", "obs", "shape", output="y0", allowzero=64), node("Tile", "y0", "n")],
            shape=[0, 2, 2],
            n=[1, 2**19, 2**19],
        ),
        "'Reshape' has allowzero = 64; expected 0 or 1",
    ),
    "axes that are all, or none": (
        model_of([node("ReduceSum", "obs", "axes", noop_with_empty_axes=2)], axes=np.zeros(0, np.int64)),
        "'ReduceSum' has noop_with_empty_axes = 2; expected 0 or 1",
    ),
    "no axes to squeeze": (
        model_of([IMAGE, node("Squeeze", "image", "axes")], axes=np.zeros(0, np.int64)),
        "'Squeeze' has axes = no numbers; expected at least one",
    ),
    "a slice backwards from past the end": (
        model_of([node("Slice", "obs", "a", "b", "c", "d")], a=[3], b=[2**31 - 1], c=[1], d=[-1]),
        "'Slice' has ends = 2147483647; expected integers up to 2097152 where it steps backwards",
    ),
    "more parts of a split than it counts": (
        model_of([helper.make_node("Split", ["obs"], ["x", "y0"], axis=1, num_outputs=1)]),
        "'Split' has num_outputs = 1; expected its 2 outputs",
    ),
    "more parts of a split than it has sizes": (
        model_of([helper.make_node("Split", ["obs", "n"], ["x", "y0"], axis=1)], n=[4]),
        "'Split' has num_outputs = 1; expected its 2 outputs",
    ),
    "an image made larger to another shape": (
        model_of(
            [IMAGE, node("ConvTranspose", "image", "filter", output_shape=[1, 1], auto_pad="SAME_UPPER")],
            filter=np.ones((1, 1, 2, 2), np.float32),
        ),
        "'ConvTranspose' has output_shape = 1, 1; expected none",
    ),
    "tiles that overflow": (
        model_of([node("Tile", "obs", "n")], n=[1, HUGE]),
        "'Tile' has input 2 = 1, 4611686018427387904; expected integers up to 2147483648",
    ),
    "pads that overflow": (model_of([node("Pad", "obs", "n")], n=[0, HUGE, 0, HUGE]), "'Pad' has input 2 = 0, 46"),
    "blocks that overflow": (
        model_of([IMAGE, node("SpaceToDepth", "image", blocksize=2**32)]),
        "'SpaceToDepth' has blocksize = 4294967296",
    ),
    "scales of NaN": (scaled(np.nan, 1), "'Resize' has scales = 1.0, 1.0, nan, 1.0; expected numbers above 0"),
    "scales of 1e30": (scaled(1e30, 1), "'Resize' has scales = 1.0, 1.0, 1.0"),
    "scales of 0": (scaled(0, 1), "'Resize' has scales = 1.0, 1.0, 0.0, 1.0"),
    "scales of −1": (scaled(-1, 1), "'Resize' has scales = 1.0, 1.0, -1.0, 1.0"),
    "Upsample": (
        model_of([IMAGE, node("Upsample", "image", "scales")], opset=9, scales=np.array([1, 1, np.nan, 1], np.float32)),
        "'Upsample' has scales = 1.0, 1.0, nan, 1.0",
    ),
    "an image cropped anywhere": (
        model_of(
            [IMAGE, node("Resize", "image", "roi", "scales", coordinate_transformation_mode="tf_crop_and_resize")],
            roi=np.full(8, np.nan, np.float32),
            scales=np.ones(4, np.float32),
        ),
        "'Resize' crops an image at places that are not checked",
    ),
}


def test_parameters_that_no_network_needs_are_refused():
    outcomes = verdicts([model for model, _ in REFUSED.values()])
    assert {kind: outcome.verdict for kind, outcome in zip(REFUSED, outcomes, strict=True)} == dict.fromkeys(
        REFUSED, "refused"
    )
    for model, reason in REFUSED.values():  # none of which ends the process
        with pytest.raises(CheckpointError, match=f"'a.onnx' was refused: its operator {reason}"):
            load_onnx(model.SerializeToString(), "a.onnx")


def filtered(op, **attributes):
    inputs = ("image", "filter") if "Conv" in op else ("image",)
    return model_of([IMAGE, node(op, *inputs, **attributes)], filter=np.ones((1, 1, 2, 2), np.float32))


#: What onnx or onnxruntime should see to themselves.
STRANGE = {
    "LRN, size 0": filtered("LRN", size=0),
    "LRN, size −1": filtered("LRN", size=-1),
    "EyeLike, k 2⁶²": model_of([node("EyeLike", "obs", k=HUGE)]),
    "Trilu, k 2⁶²": model_of([node("Trilu", "obs", "k")], k=np.int64(HUGE)),
    "Trilu, k −2⁶²": model_of([node("Trilu", "obs", "k")], k=np.int64(-HUGE)),
    "Slice, step 0": model_of([node("Slice", "obs", "a", "b", "c", "d")], a=[0], b=[2], c=[1], d=[0]),
    "Slice, step −2⁶³": model_of([node("Slice", "obs", "a", "b", "c", "d")], a=[3], b=[-9], c=[1], d=[-(2**63)]),
    "BitShift by 200": model_of([node("BitShift", "a", "b", direction="LEFT")], a=np.uint8([1]), b=np.uint8([200])),
    "Tile, 0": model_of([node("Tile", "obs", "n")], n=[1, 0]),
    "Tile, −1": model_of([node("Tile", "obs", "n")], n=[1, -1]),
    "Expand, −1": model_of([node("Expand", "obs", "n")], n=[-1, 4]),
    "Pad, negative": model_of([node("Pad", "obs", "n")], n=[0, -3, 0, -3]),
    "Gather, any index": model_of([INDICES, node("Gather", "obs", "indices", axis=1)]),
    "Gather, index 2⁶²": model_of([node("Gather", "obs", "i", axis=1)], i=[HUGE]),
    "GatherElements, any index": model_of([INDICES, node("GatherElements", "obs", "indices", axis=1)]),
    "GatherND, any index": model_of([INDICES, node("GatherND", "w", "i")], i=[[HUGE, -HUGE]]),
    "ScatterElements, any index": model_of([INDICES, node("ScatterElements", "obs", "indices", "obs", axis=1)]),
    "ScatterND, index 2⁶²": model_of([node("ScatterND", "w", "i", "v")], i=[[HUGE, 0]], v=np.ones(1, np.float32)),
    "OneHot, depth −1": model_of([INDICES, node("OneHot", "indices", "d", "v")], d=np.int64(-1), v=np.float32([0, 1])),
    "OneHot, depth 2⁶²": model_of([INDICES, node("OneHot", "indices", "d", "v")], d=np.int64(HUGE), v=[0, 1]),
    "TopK, k −1": model_of([helper.make_node("TopK", ["obs", "k"], ["x", "y0"])], k=[-1]),
    "TopK, k 2⁶²": model_of([helper.make_node("TopK", ["obs", "k"], ["x", "y0"])], k=[HUGE]),
    "Split, other sizes": model_of([helper.make_node("Split", ["obs", "n"], ["x", "y0"], axis=1)], n=[HUGE, 4 - HUGE]),
    "ConstantOfShape, −1": model_of([node("ConstantOfShape", "n")], n=[-1]),
    "DepthToSpace, 0": filtered("DepthToSpace", blocksize=0),
    "SpaceToDepth, 0": filtered("SpaceToDepth", blocksize=0),
    "SpaceToDepth, −1": filtered("SpaceToDepth", blocksize=-1),
    "Conv, group 0": filtered("Conv", group=0),
    "Conv, strides 0": filtered("Conv", strides=[0, 0]),
    "Conv, dilations 0": filtered("Conv", dilations=[0, 0]),
    "Conv, pads −2⁶²": filtered("Conv", pads=[-HUGE] * 4),
    "ConvTranspose, group 0": filtered("ConvTranspose", group=0),
    "MaxPool, kernel 0": filtered("MaxPool", kernel_shape=[0, 0]),
    "MaxPool, strides 0": filtered("MaxPool", kernel_shape=[2, 2], strides=[0, 0]),
    "AveragePool, kernel 0": filtered("AveragePool", kernel_shape=[0, 0]),
    "LpPool, p 0": filtered("LpPool", kernel_shape=[2, 2], p=0),
    "CumSum, axis 2⁶²": model_of([node("CumSum", "obs", "a")], a=np.int64(HUGE)),
    "CumSum, any axis": model_of(
        [INDICES, node("ReduceMax", "indices", output="a", keepdims=0), node("CumSum", "obs", "a")]
    ),
    "Flatten, axis −2⁶²": model_of([node("Flatten", "obs", axis=-HUGE)]),
    "Softmax, axis 2⁶²": model_of([node("Softmax", "obs", axis=HUGE)]),
    "Transpose, axes −1": model_of([node("Transpose", "obs", perm=[-1, -1])]),
    "Shape, from −2⁶²": model_of([node("Shape", "obs", start=-HUGE, end=HUGE)]),
    **{
        f"{op}, hidden_size 0": model_of([node(op, "a", "a", "a", hidden_size=0)], a=np.zeros((1, 0, 0), np.float32))
        for op in ("RNN", "GRU", "LSTM")
    },
    "Unsqueeze, axis 2⁶²": model_of([node("Unsqueeze", "obs", "a")], a=[HUGE]),
}


def test_strange_parameters_end_nothing_and_take_little():
    outcomes = dict(zip(STRANGE, verdicts(STRANGE.values()), strict=True))
    assert {kind for kind, outcome in outcomes.items() if outcome.verdict not in ("accepted", "refused")} == set()
    assert max(outcome.seconds for outcome in outcomes.values()) < 4
    assert max(outcome.megabytes for outcome in outcomes.values()) < 300


# --- Axes of length 0 -------------------------------------------------------------------------------------------------


def without_pixels(axis, op, /, *others, opset=18, extra=(), **attributes):
    """An operator on images of which an axis has length 0; `others` are names of what else it takes."""
    channels = 0 if axis == 1 else 1
    kernel = np.ones((1, channels, 1, 1), np.float32)
    none = node("Slice", "image", "0", "0", "axis", output="empty")
    if opset < 10:
        none = node("Slice", "image", output="empty", axes=[axis], starts=[0], ends=[0])
    return model_of(
        [IMAGE, none, *extra, node(op, *others, **attributes)],
        opset,
        **{"0": [0], "axis": [axis], "4s": [1, 1, 4, 4], "2s": np.array([1, 1, 2, 2], np.float32)},
        **{"kernel": kernel, "turned kernel": kernel.swapaxes(0, 1), "bytes": kernel.astype(np.uint8)},
        **{"scale": np.ones(channels, np.float32), "last": np.ones(2, np.float32)},
        **{"one": np.float32(1), "zero": np.uint8(0)},
    )


PIXELS = helper.make_node("Cast", ["empty"], ["pixels"], to=TensorProto.UINT8)


def images_without_pixels(axis):
    one = ("one", "zero")
    return {
        "AveragePool": without_pixels(axis, "AveragePool", "empty", kernel_shape=[2, 2], pads=[1] * 4),
        "BatchNormalization": without_pixels(axis, "BatchNormalization", "empty", *["scale"] * 4),
        "Conv": without_pixels(axis, "Conv", "empty", "kernel", pads=[1] * 4),
        "ConvInteger": without_pixels(axis, "ConvInteger", "pixels", "bytes", extra=[PIXELS]),
        "ConvTranspose": without_pixels(axis, "ConvTranspose", "empty", "turned kernel", pads=[0] * 4),
        "DepthToSpace": without_pixels(axis, "DepthToSpace", "empty", blocksize=1),
        "GlobalAveragePool": without_pixels(axis, "GlobalAveragePool", "empty"),
        "GlobalMaxPool": without_pixels(axis, "GlobalMaxPool", "empty"),
        "InstanceNormalization": without_pixels(axis, "InstanceNormalization", "empty", "scale", "scale"),
        "LRN": without_pixels(axis, "LRN", "empty", size=3),
        "LayerNormalization": without_pixels(axis, "LayerNormalization", "empty", "last", axis=3),
        "LpNormalization": without_pixels(axis, "LpNormalization", "empty", axis=axis),
        "LpPool": without_pixels(axis, "LpPool", "empty", kernel_shape=[1, 1], pads=[1] * 4),
        "MaxPool": without_pixels(axis, "MaxPool", "empty", kernel_shape=[1, 1], pads=[1] * 4),
        "QLinearConv": without_pixels(
            axis, "QLinearConv", "pixels", *one, "bytes", *one, *one, pads=[1] * 4, extra=[PIXELS]
        ),
        "ReduceMax": without_pixels(axis, "ReduceMax", "empty", "axis"),
        "Resize": without_pixels(axis, "Resize", "empty", "", "", "4s", mode="linear"),
        "Softmax": without_pixels(axis, "Softmax", "empty", axis=axis),
        "SpaceToDepth": without_pixels(axis, "SpaceToDepth", "empty", blocksize=2),
        "Upsample": without_pixels(axis, "Upsample", "empty", "2s", opset=9),
    }


def without_steps(op, steps=4, inputs=1):
    """A recurrent operator; one of the two is 0."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    nodes = [
        node("Transpose", "obs", output="rows", perm=[1, 0]),
        node("Slice", "rows", "0", "steps", "0", output="some"),
        node("Unsqueeze", "some", "2", output="states"),
        node("Slice", "states", "0", "inputs", "2", output="empty"),
        node(op, "empty", "input weights", "weights", hidden_size=2),
    ]
    return model_of(
        nodes,
        **{"0": [0], "2": [2], "steps": [steps], "inputs": [inputs]},
        **{"input weights": np.ones((1, gates * 2, inputs), np.float32)},
        **{"weights": np.ones((1, gates * 2, 2), np.float32)},
    )


EMPTY = {
    **{(op, axis): model for axis in (1, 2, 3) for op, model in images_without_pixels(axis).items()},
    **{(op, kind): without_steps(op, **{kind: 0}) for op in ("RNN", "GRU", "LSTM") for kind in ("steps", "inputs")},
}


def test_axes_of_length_0_are_refused():
    outcomes = verdicts(EMPTY.values())
    assert {kind: outcome.verdict for kind, outcome in zip(EMPTY, outcomes, strict=True)} == dict.fromkeys(
        EMPTY, "refused"
    )
    for (op, _), model in EMPTY.items():  # none of which ends the process
        with pytest.raises(
            CheckpointError,
            match=rf"^'a.onnx' was refused: its operator '{op}' takes no numbers: a tensor of the shape \[.*\b0\b.*\]. "
            r"Expected lengths of at least 1\.$",
        ):
            load_onnx(model.SerializeToString(), "a.onnx")


def test_operators_on_nothing_end_nothing():
    """One, two and three times nothing."""
    none = node("Slice", "obs", "0", "0", "1", output="none")
    own = {"Cast": {"to": 1}, "Concat": {"axis": 1}}
    models = {
        (op, count): model_of([none, node(op, *["none"] * count, **own.get(op, {}))], **{"0": [0], "1": [1]})
        for domain, op in OPERATORS
        for count in (1, 2, 3)
        if domain == ""
    }
    outcomes = dict(zip(models, verdicts(models.values()), strict=True))
    assert {kind for kind, outcome in outcomes.items() if outcome.verdict not in ("accepted", "refused")} == set()
    assert {("Relu", 1), ("Softmax", 1), ("Pow", 2)} <= {kind for kind in models if outcomes[kind].verdict == "refused"}
    assert {("Cast", 1), ("Add", 2), ("Concat", 3)} <= {kind for kind in models if outcomes[kind].verdict == "accepted"}


def test_lengths_may_be_computed_of_lists_without_numbers():
    """As torch exports them: no further lengths of a shape, no region of an image, no axes."""
    nodes = [
        node("Shape", "obs", output="shape"),
        node("Slice", "shape", "0", "0", output="no lengths"),
        node("Slice", "shape", "0", "1", output="length"),
        node("Concat", "no lengths", "length", "1", "2", "2", output="lengths", axis=0),
        node("Reshape", "obs", "lengths", output="image"),
        node("Resize", "image", "nowhere", "scales", output="large"),
        node("ReduceSum", "large", "no axes", noop_with_empty_axes=1),
    ]
    model = model_of(
        nodes,
        **{"0": [0], "1": [1], "2": [2], "scales": np.array([1, 1, 2, 2], np.float32)},
        **{"nowhere": np.zeros(0, np.float32), "no axes": np.zeros(0, np.int64)},
    )
    assert load_onnx(model.SerializeToString(), "a.onnx").q_values(torch.ones(3, 4)).shape == (3, 2)


# --- Indices that depend on observations ------------------------------------------------------------------------------


INDEX = node("ReduceMax", "indices", output="index", keepdims=0)
LENGTHS = [
    helper.make_node("ReduceMax", ["obs", "1"], ["longest"], keepdims=0),
    helper.make_node("Cast", ["longest"], ["lengths"], to=TensorProto.INT32),
    node("Transpose", "obs", output="rows", perm=[1, 0]),
    node("Unsqueeze", "rows", "2", output="states"),
]

#: Models that work where all observations are 0, and fail where they are 100.
INDEXED = {
    "Gather": model_of([INDICES, node("Gather", "w", "indices")]),
    "GatherElements": model_of([INDICES, node("GatherElements", "obs", "indices", axis=1)]),
    "GatherND": model_of(
        [INDICES, node("Unsqueeze", "indices", "2", output="each"), node("GatherND", "ones", "each")], **{"2": [2]}
    ),
    "ScatterElements": model_of([INDICES, node("ScatterElements", "obs", "indices", "obs", axis=1)]),
    "ScatterND": model_of(
        [INDICES, node("Unsqueeze", "indices", "2", output="each"), node("ScatterND", "ones", "each", "obs")],
        **{"2": [2]},
    ),
    "CumSum": model_of([INDICES, INDEX, node("CumSum", "obs", "index")]),
    **{
        op: model_of(
            [*LENGTHS, node(op, "states", "a", "b", "", "lengths", hidden_size=2)],
            **{"1": [1], "2": [2], "a": np.ones((1, 2 * gates, 1), np.float32)},
            b=np.ones((1, 2 * gates, 2), np.float32),
        )
        for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4))
    },
}


@pytest.mark.parametrize("op", INDEXED)
def test_indices_outside_of_their_tensors_are_an_error_of_one_line(op):
    teacher = pickle.loads(pickle.dumps(load_onnx(INDEXED[op].SerializeToString(), "a.onnx")))
    assert teacher.q_values(torch.zeros(3, 4)).shape == (3, 2)
    with pytest.raises(CheckpointError, match=r"^'a\.onnx' fails on 3 observations of the shape \[4\]: .") as failure:
        teacher.q_values(torch.full((3, 4), 100.0))
    assert str(failure.value).isprintable()
    assert str(failure.value).endswith("clip these before it is exported.")


def test_no_observations_are_refused():
    teacher = load_onnx(model_of([node("Relu", "obs")]).SerializeToString(), "a.onnx")
    with pytest.raises(ValueError, match=r"'a\.onnx' got no observations. Expected at least one\."):
        teacher.q_values(torch.zeros(0, 4))


def test_lengths_that_depend_on_values_have_a_remedy():
    """As the older exporter of torch writes attention."""
    flat = node("Reshape", "indices", "flat shape", output="flat")
    model = model_of(
        [INDICES, flat, node("ReduceMax", "flat", output="end"), node("Slice", "flat", "0", "end")],
        **{"0": [0], "flat shape": [-1]},
    )
    refused = r"'Slice' makes numbers of the shape \[-1\], .*torch\.onnx\.export\(\.\.\., dynamo=True\)"
    with pytest.raises(CheckpointError, match=refused):
        load_onnx(model.SerializeToString(), "a.onnx")


@pytest.mark.parametrize(
    "op",
    [
        *("DFT", "GroupNormalization", "If", "Loop", "MelWeightMatrix"),
        *("NonMaxSuppression", "NonZero", "RandomNormal", "ReverseSequence", "RoiAlign"),
        *("STFT", "Scan", "SequenceInsert", "StringConcat", "Unique"),
    ],
)
def test_operators_whose_work_is_not_known_beforehand(op):
    assert ("", op) not in OPERATORS
    with pytest.raises(
        CheckpointError, match=rf"its operator '\.{op}' is not one of ONNX's operators .* or as safetensors"
    ):
        load_onnx(model_of([node(op, "obs")]).SerializeToString(), "a.onnx")


@pytest.mark.parametrize("domain", ["ai.onnx.ml", "com.microsoft"])
def test_operators_of_other_domains(domain):
    others = {"ai.onnx.ml": {"Binarizer"}}.get(domain, set())
    assert {op for own, op in OPERATORS if own == domain} == others
    model = model_of([helper.make_node("TreeEnsembleRegressor", ["obs"], ["x"], domain=domain)])
    model.opset_import.add(domain=domain, version=3)
    with pytest.raises(
        CheckpointError, match=f"its operator '{domain}.TreeEnsembleRegressor' is not one of ONNX's operators"
    ):
        load_onnx(model.SerializeToString(), "a.onnx")


@pytest.mark.parametrize("kind", ["twice", "of another kind", "of two kinds"])
def test_attributes_of_which_there_are_several_values(kind):
    softmax = node("Softmax", "obs", axis=1)
    if kind == "twice":
        softmax.attribute.add(name="axis", type=AttributeProto.INT, i=0)
    else:
        softmax.attribute[0].f = 1.0
        if kind == "of another kind":
            softmax.attribute[0].type = AttributeProto.FLOAT
    with pytest.raises(CheckpointError, match="'Softmax' has several values of its attribute 'axis'"):
        load_onnx(model_of([softmax]).SerializeToString(), "a.onnx")


def test_what_exporters_write_loads():
    """Slices to the end of an axis, axes from the last one on, counts, masks and images made larger."""
    nodes = [
        node("Slice", "obs", "start", "end", "axes", "steps", output="slice"),
        node("Softmax", "slice", output="soft", axis=-1),
        node("LayerNormalization", "soft", "ones", output="norm", axis=-1),
        node("Unsqueeze", "norm", "axes", output="rows"),
        node("Trilu", "rows", "k", output="mask", upper=0),
        node("Squeeze", "mask", "axes", output="row"),
        node("Range", "0", "4", "1", output="places"),
        node("Gather", "row", "places", output="gathered", axis=1),
        node("Reshape", "gathered", "image shape", output="image"),
        node("Resize", "image", "", "scales", mode="nearest", coordinate_transformation_mode="asymmetric"),
    ]
    model = model_of(
        nodes,
        start=[0],
        end=[2**63 - 1],
        axes=[1],
        steps=[1],
        k=np.int64(0),
        scales=np.array([1, 1, 2, 2], np.float32),
        **{"0": np.int64(0), "4": np.int64(4), "1": np.int64(1)},
    )
    teacher = load_onnx(model.SerializeToString(), "a.onnx")
    assert teacher.q_values(torch.rand(3, 4)).shape == (3, 2)
