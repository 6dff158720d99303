"""How files of other libraries are refused, for several files of tests."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from rllib_kd import load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.evaluation.comparing import evaluate
from tests.conftest import CARTPOLE_OBS
from tests.formats import mlp, sb3_weights, sb3_zip


def sb3(path, **changes):
    return sb3_zip(path, sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2, **changes)


def refuse(path, match=None):
    """It does not load as a teacher, and no command takes it."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load_teacher(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=match):
        evaluate(path, "CartPole-v1", num_episodes=1)


def load_or_refuse(path):
    """It loads, or there is one error of our own: not one of the many kinds of ValueError from the depths."""
    error = None
    try:
        load_teacher(path)
    except ValueError as caught:
        error = caught
    assert error is None or (type(error) in (CheckpointError, ValueError) and "\n" not in str(error))


def onnx_model(nodes, *, weight=None, weights=(), functions=(), domains=("",)):
    weight = weight or helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.ones(8))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, ["n", 2])],
        [weight, *weights],
    )
    opsets = [helper.make_opsetid(domain, 18 if domain == "" else 1) for domain in domains]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)
    return model.SerializeToString()


MATMUL = helper.make_node("MatMul", ["obs", "w"], ["q"])
