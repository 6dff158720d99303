"""Small ONNX models that would compute much are refused: in 2 s of processor time, and 300 MB."""

import pytest
import torch
from onnx import TensorProto, helper

from rllib_kd import limits, load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.evaluation import measures, playing
from tests.checkpoints.hostile import refused
from tests.checkpoints.onnx_models import LOOKS_SMALL, floats, integers, node, onnx_model

THOUSAND = floats("m", 2_000, 1_000)
ONNX = {
    "zeros": lambda: ([node("ConstantOfShape", "n")], [integers("n", 2**33)]),
    "zeros of several lengths": lambda: ([node("ConstantOfShape", "n")], [integers("n", 2**20, 2**20)]),
    "zeros, often": lambda: (
        [node("ConstantOfShape", "n", to=f"z{i}") for i in range(3_000)] + [node("Add", "z0", "z1")],
        [integers("n", 2**20)],
    ),
    "expanded": lambda: ([node("Expand", "w", "n")], [integers("n", 2**30, 4, 2)]),
    "tiles": lambda: ([node("Tile", "w", "n")], [integers("n", 2**20, 2**20)]),
    "a range": lambda: (
        [node("Range", "a", "b", "c")],
        [helper.make_tensor(name, TensorProto.INT64, [], [n]) for name, n in (("a", 0), ("b", 2**40), ("c", 1))],
    ),
    "padding": lambda: ([node("Pad", "w", "n")], [integers("n", 2**20, 2**20, 0, 0)]),
    "a resized image": lambda: (
        [node("Unsqueeze", "w", "a", to="i"), node("Resize", "i", "", "s2")],
        [integers("a", 0, 1), helper.make_tensor("s2", TensorProto.FLOAT, [4], [1, 1, 1e5, 1e5])],
    ),
    "a one-hot vector of millions": lambda: (
        [helper.make_node("Cast", ["obs"], ["i"], to=TensorProto.INT64), node("OneHot", "i", "d", "v")],
        [
            helper.make_tensor("d", TensorProto.INT64, [], [2**40]),
            helper.make_tensor("v", TensorProto.FLOAT, [2], [0, 1]),
        ],
    ),
    "products of columns and rows": lambda: (
        [node("MatMul", "c", "r")],
        [floats("c", 50_000, 1), floats("r", 1, 50_000)],
    ),
    "an einsum": lambda: ([node("Einsum", "m", "m", equation="ij,kj->")], [THOUSAND]),
    "an einsum of three": lambda: (
        [node("Einsum", "c", "r", "r", equation="i,j,k->")],
        [floats("c", 3_000), floats("r", 3_000)],
    ),
    "many products": lambda: (
        [node("MatMul", "k", "k", to="p0")]
        + [node("MatMul", f"p{i}", "k", to=f"p{i + 1}") for i in range(20)]
        + [node("Identity", "p20")],
        [floats("k", 600, 600)],
    ),
    "many steps for each of few numbers": lambda: (
        [node("Sin", "m", to="p0")]
        + [node("Sin", f"p{i}", to=f"p{i + 1}") for i in range(900)]
        + [node("Abs", "p900")],
        [THOUSAND],
    ),
    "a large filter": lambda: (
        [node("Reshape", "m", "n", to="i"), node("Conv", "i", "f")],
        [THOUSAND, integers("n", 1, 1, 2_000, 1_000), floats("f", 1, 1, 500, 500)],
    ),
    "a pool as large as the image": lambda: (
        [node("Reshape", "m", "n", to="i"), node("MaxPool", "i", kernel_shape=[500, 500])],
        [THOUSAND, integers("n", 1, 1, 2_000, 1_000)],
    ),
    "a transposed filter": lambda: (
        [node("Reshape", "m", "n", to="i"), node("ConvTranspose", "i", "f")],
        [THOUSAND, integers("n", 1, 1, 2_000, 1_000), floats("f", 1, 1, 50, 50)],
    ),
    "lengths doubled and doubled": lambda: (
        [node("Shape", "obs", to="p0")]
        + [node("Concat", f"p{i}", f"p{i}", to=f"p{i + 1}", axis=0) for i in range(40)]
        + [node("Identity", "p40")],
        [],
    ),
    "axes without end": lambda: (
        [node("Unsqueeze", "obs", "a", to="p0")]
        + [node("Unsqueeze", f"p{i}", "a", to=f"p{i + 1}") for i in range(3_000)]
        + [node("Identity", "p3000")],
        [integers("a", *range(20))],
    ),
    "more operators than any network has": lambda: ([node("Relu", "obs", to=f"r{i}") for i in range(100_000)], []),
    "weights that are not there": lambda: (
        [node("Identity", "big")],
        [TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[2**20, 2**10])],
    ),
    "texts doubled and doubled": lambda: (
        [node("StringConcat", f"t{i}", f"t{i}", to=f"t{i + 1}") for i in range(40)],
        [helper.make_tensor("t0", TensorProto.STRING, [1], [b"x" * 100])],
    ),
    "a tree of decisions": lambda: (
        [helper.make_node("TreeEnsembleRegressor", ["obs"], ["x"], domain="ai.onnx.ml")],
        [],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind.startswith("more operators") else ()) for kind in ONNX]
)
def test_models_that_take_much(tmp_path, kind):
    nodes, weights = ONNX[kind]()
    model = onnx_model([*nodes, *LOOKS_SMALL], weights, opset=20)
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))


def test_lengths_that_are_huge_for_some_numbers_of_observations(tmp_path):
    """(n - 1)(1,000 - n) is nothing for 1 and for 1,000; and a second observation is one, or none."""
    computed = [
        node("Shape", "obs", to="s0"),
        node("Slice", "s0", "0", "1", "0", to="n"),
        node("Sub", "n", "1", to="a"),
        node("Sub", "1000", "n", to="b"),
        node("Mul", "a", "b", to="c"),
        node("Mul", "c", "k", to="length"),
        node("ConstantOfShape", "length"),
    ]
    sliced = [
        node("Slice", "obs", "1", "2", "0", to="second"),
        node("Tile", "second", "k1", to="tiles"),
        node("MatMul", "tiles", "wide"),
    ]
    weights = [integers(str(i), i) for i in (0, 1, 2, 1_000)]
    for nodes, others in (
        (computed, [integers("k", 250_000)]),
        (sliced, [integers("k1", 1_000, 1), floats("wide", 4, 200_000)]),
    ):
        content = onnx_model([*nodes, *LOOKS_SMALL], [*weights, *others]).SerializeToString()
        (tmp_path / "a").write_bytes(content)
        refused(lambda: load_teacher(tmp_path / "a").q_values(torch.ones(3, 4)))


@pytest.mark.parametrize("size", [1, 2, playing.ENVS_AT_ONCE, measures._STATES_AT_ONCE])
def test_what_the_packages_own_batches_take_is_known_when_a_model_is_loaded(tmp_path, size):
    """Nothing but for batches of one size: max(0, 1 - |n - size|) times a length."""
    nodes = [
        node("Shape", "obs", to="s0"),
        node("Slice", "s0", "0", "1", "0", to="n"),
        *(node("Sub", *pair, to=to) for *pair, to in (("n", "size", "a"), ("size", "n", "b"))),
        node("Max", "a", "b", to="far"),
        node("Sub", "1", "far", to="near"),
        node("Max", "near", "0", to="is_it"),
        node("Mul", "is_it", "k", to="length"),
        node("ConstantOfShape", "length"),
    ]
    weights = [integers("0", 0), integers("1", 1), integers("size", size), integers("k", size * limits.MAX_INPUTS + 1)]
    (tmp_path / "a").write_bytes(onnx_model([*nodes, *LOOKS_SMALL], weights).SerializeToString())
    with pytest.raises(CheckpointError, match=f"of {size} observations its operator 'ConstantOfShape' makes numbers"):
        load_teacher(tmp_path / "a")


def test_divisions_of_integers_that_floats_do_not_hold(tmp_path):
    nodes = [node("Div", "big", "one", to="d"), node("Sub", "d", "even", to="e"), node("Mul", "e", "k", to="length")]
    weights = [integers("big", 2**53 + 1), integers("one", 1), integers("even", 2**53), integers("k", 250_000_000)]
    model = onnx_model([*nodes, node("ConstantOfShape", "length"), *LOOKS_SMALL], weights)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))


@pytest.mark.parametrize(("operator", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_many_steps_in_time(tmp_path, operator, gates):
    networks = [helper.make_node(operator, ["X", "W", "R"], ["", f"h{i}"], hidden_size=1) for i in range(3)]
    nodes = [node("ConstantOfShape", "n", to="X"), *networks, node("Sum", "h0", "h1", "h2")]
    weights = [integers("n", 2**19, 1, 1), floats("W", 1, gates, 1), floats("R", 1, gates, 1)]
    (tmp_path / "a").write_bytes(onnx_model([*nodes, *LOOKS_SMALL], weights).SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))
