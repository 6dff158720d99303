"""Artifacts run without Ray and without this package."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from rllib_kd.export.export import export
from rllib_kd.export.runners import numpy_runner
from rllib_kd.networks import layers as layers_module
from rllib_kd.networks.layers import ELEMENTWISE, build_layers
from rllib_kd.networks.recurrent import LAYER_TYPES
from rllib_kd.networks.trees.layer import describe_tree
from rllib_kd.observations.pipeline import ObservationPipeline, Shown
from rllib_kd.teachers.base import Teacher
from tests.conftest import states
from tests.export.students import MLPS, PIPELINES, ROOT, linear_student, network
from tests.networks.trees.trees import tree_module


def run_alone(code: str, *arguments: object, without: tuple[str, ...]) -> str:
    """Output of a fresh process in which those packages cannot be imported."""
    wall = f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", wall + code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RUNNER_PAGE = (ROOT / "docs" / "pages" / "numpy_runner.md").read_text()
PAGE_CODE = re.search(r"```python\n(.*?)```", RUNNER_PAGE, re.DOTALL)[1]

#: What the page's table says of each op, but of those with a state (test_recurrent.py): whether the short runner on the
#: page plays it.
OPS = {
    op: bool(mark.strip())
    for ops, mark in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|(.*?)\|", RUNNER_PAGE.split("| `op` |")[1], re.MULTILINE)
    for op in re.findall(r"`(\w+)`", ops)
    if op not in LAYER_TYPES
}


def of_op(op: str) -> tuple[dict, dict[str, np.ndarray], np.ndarray]:
    """A layer of this op, its tensors, and inputs for it."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    tensors = {"w": numbers(3, 4), "b": numbers(3), "mean": numbers(4), "std": np.abs(numbers(4)) + 0.5}
    linear = {"op": "linear", "weight": "w", "bias": "b"}
    images, vectors = numbers(5, 7, 6, 2), numbers(5, 4)
    branches = [{"start": 1, "shape": [3, 1], "layers": [{"op": "relu"}]}, {"start": 0, "shape": [1], "layers": []}]
    own: dict[str, tuple[dict, dict[str, np.ndarray], np.ndarray]] = {
        "linear": (linear, {}, vectors),
        "conv2d": (linear | {"stride": [2, 1]}, {"w": numbers(3, 2, 3, 2)}, images),
        "zero_pad": ({"padding": [1, 2, 0, 3]}, {}, images),
        "layer_norm": (linear | {"eps": 1e-5}, {"w": numbers(4), "b": numbers(4)}, vectors),
        "normalize": ({"mean": "mean", "std": "std", "clip": 0.7}, {}, vectors),
        "one_hot": ({"lengths": [3, 2]}, {}, np.array([[2, 1], [0, 0], [1, 1]], np.float32)),
        "pixels": ({"channels_first": True, "divisor": 255.0}, {}, images),
        "flatten": ({}, {}, images),
        "dueling": ({"value": [linear], "advantage": [linear, {"op": "relu"}]}, {}, vectors),
        "branches": ({"branches": branches}, {}, vectors),
        "expectation": ({"num_atoms": 3, "v_min": -1.0, "v_max": 2.0}, {}, numbers(5, 6)),
    } | dict.fromkeys(ELEMENTWISE, ({}, {}, 3 * vectors))
    module, of_tree = tree_module(4), {}
    tree = describe_tree(module.tree, module.features, of_tree)
    own["tree"] = tree, {name: tensor.numpy() for name, tensor in of_tree.items()}, vectors[:, :3]
    layer, own_tensors, inputs = own[op]
    return layer | {"op": op}, tensors | own_tensors, inputs


def test_the_page_lists_every_layer_that_there_is():
    assert set(OPS) == {*ELEMENTWISE, *layers_module._BUILDERS}
    with pytest.raises(ValueError, match="does not support the layer 'none'"):
        numpy_runner.run([{"op": "none"}], {}, np.zeros((1, 4)))
    page: dict = {}
    exec(PAGE_CODE, page)

    def is_known(op: str) -> bool:
        try:
            page["run"]([{"op": op}], {}, np.zeros((1, 4)))
        except KeyError as error:  # of the op, or of what else such a layer has
            return error.args != (op,)
        return True

    assert {op: is_known(op) for op in OPS} == OPS


@pytest.mark.parametrize("op", OPS)
def test_runners_play_the_layers_of_the_page(op):
    layer, tensors, x = of_op(op)
    expected = build_layers([layer], {k: torch.as_tensor(v) for k, v in tensors.items()})(torch.as_tensor(x))
    assert numpy_runner.run([layer], tensors, x) == pytest.approx(expected.detach().numpy(), abs=1e-5)
    if OPS[op]:
        page: dict = {}
        exec(PAGE_CODE, page)
        assert page["run"]([layer], tensors, x) == pytest.approx(expected.detach().numpy(), abs=1e-5)


@pytest.mark.parametrize(
    "name", ["linear", "filter", "one-hot", "one-hots, filtered", "one-hots in rows and columns", "bits", "flat", *MLPS]
)
def test_the_numpy_runner_in_the_docs(name, tmp_path):
    code = PAGE_CODE
    assert len([line for line in code.splitlines() if line]) <= 22
    student = linear_student() if name == "linear" else network(**MLPS.get(name, {}))
    obs = states(20)
    if name in PIPELINES:
        shown_space, input_space, stages = PIPELINES[name]
        student = Teacher(network(input_space).module, pipeline=ObservationPipeline(shown_space, stages))
        shown_space.seed(0)
        obs = obs if name == "filter" else np.stack([shown_space.sample() for _ in range(20)])
    export(student, tmp_path / "s.safetensors", format="safetensors", obs=obs)
    np.save(tmp_path / "obs.npy", obs)
    code += "\nprint(json.dumps(load(sys.argv[1])(np.load(sys.argv[2])).tolist()))"
    printed = run_alone(
        code,
        tmp_path / "s.safetensors",
        tmp_path / "obs.npy",
        without=("ray", "torch", "rllib_kd", "safetensors", "onnxruntime", "gymnasium"),
    )
    seen = student.start()(Shown(obs, first=np.ones(len(obs), dtype=bool)))
    expected = student.q_values(torch.as_tensor(seen)).numpy()
    assert np.array(json.loads(printed)) == pytest.approx(expected, abs=1e-5)


WITH_ONNXRUNTIME = """
import onnxruntime
session = onnxruntime.InferenceSession(path + ".onnx")
print(session.run(None, {"obs": obs})[0].tolist())
"""
WITH_TORCH = """
import torch
obs = torch.as_tensor(obs)
print(torch.export.load(open(path + ".pt2", "rb")).module()(obs).tolist())
print(torch.jit.load(path + ".torchscript")(obs).tolist())
"""


@pytest.mark.parametrize(
    ("formats", "code", "without"),
    [
        (["onnx"], WITH_ONNXRUNTIME, ("torch", "onnx")),
        pytest.param(["pt2", "torchscript"], WITH_TORCH, (), marks=pytest.mark.slow),
    ],
    ids=["onnxruntime", "torch"],
)
def test_artifacts_run_without_ray_and_this_package(formats, code, without, tmp_path):
    student, obs = network(dueling=True), states(20)
    for name in formats:
        export(student, tmp_path / f"student.{name}", format=name, obs=obs)
    np.save(tmp_path / "obs.npy", obs)
    code = f"import numpy as np\npath, obs = sys.argv[1], np.load(sys.argv[2])\n{code}"
    without = ("ray", "rllib_kd", "gymnasium", *without)
    printed = run_alone(code, tmp_path / "student", tmp_path / "obs.npy", without=without)
    expected = student.q_values(torch.as_tensor(obs)).numpy()
    assert len(printed.splitlines()) == len(formats)
    for line in printed.splitlines():
        assert np.array(json.loads(line)) == pytest.approx(expected, abs=1e-5)


def test_runners_know_neither_ray_nor_this_package():
    paths = sorted((ROOT / "rllib_kd" / "export" / "runners").glob("*.py"))
    assert len(paths) >= 4
    for path in paths:
        assert not re.search(r"^\s*(import|from) (ray|rllib_kd|gymnasium)\b", path.read_text(), re.MULTILINE)
