"""A tree in every format acts as it does in PyTorch, bit by bit, also where a number is at a threshold."""

import ast
import contextlib
import json
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd.export.artifact import FORMATS, deployment_cost, q_function
from rllib_kd.export.c.write import c_network
from rllib_kd.export.export import export
from rllib_kd.export.formats import describe, input_shape
from rllib_kd.export.runners import c_runner, numpy_runner
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.observations.pipeline import Flatten, Normalize, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.loading import load_teacher
from tests.conftest import states
from tests.export.c.networks import SANITIZERS, Together, has_sanitizers
from tests.export.c.test_layers import NUM_REFUSED, extremes
from tests.export.students import network
from tests.networks.trees.trees import ACTIONS, INPUTS, near_ties, tree_module

TREES = {
    "one leaf": {"num_leaves": 1},
    "two leaves": {"num_leaves": 2},
    "many leaves": {"num_leaves": 40},
    "oblique": {"num_leaves": 40, "oblique": True},
    "differences": {"num_leaves": 12, "oblique": ["differences"]},
}
needs_c = pytest.mark.skipif(c_runner.compiler() is None, reason="no C compiler")

#: Formats that are written node by node have every tree; others have the same operators for the rest.
CASES = [
    pytest.param(
        name, each, marks={"c": needs_c, "pt2": pytest.mark.slow, "torchscript": pytest.mark.slow}.get(each, ())
    )
    for each in FORMATS
    for name in (TREES if each in ("c", "python") else ("one leaf", "oblique", "differences"))
]


@pytest.mark.parametrize(("name", "artifact_format"), CASES)
def test_a_tree_in_every_format_is_the_same_bit_by_bit(name, artifact_format, tmp_path):
    module = tree_module(**TREES[name])
    obs, path = near_ties(module, 20_000), tmp_path / "tree.h"
    result = export(Teacher(module), path, format=artifact_format, obs=obs[:500])
    expected = module.compute_q_values({"obs": torch.from_numpy(obs)})["qf_preds"].numpy()
    assert np.array_equal(q_function(path)(obs), expected)
    assert (result.max_difference, result.agreement) == (0.0, 1.0)
    if artifact_format == "onnx":
        import onnx

        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert "TreeEnsembleRegressor" in operators
        assert operators - {"TreeEnsembleRegressor"} <= {"Gather", "Sub", "Add", "Mul", "Concat"}


@needs_c
def test_c_is_the_same_for_the_largest_numbers_and_sanitizers_find_nothing(tmp_path):
    modules = [tree_module(**settings) for settings in TREES.values()]
    texts = [c_network(*describe(Teacher(one)), (3,), prefix=f"n{i}").header for i, one in enumerate(modules)]
    options = SANITIZERS if has_sanitizers(tmp_path) else ()
    obs = [np.concatenate([near_ties(one, 500), extremes(3)]) for one in modules]
    for module, given, (actions, codes, q_values) in zip(
        modules, obs, Together(tmp_path, texts, *options).run(obs), strict=True
    ):
        finite = slice(0, -NUM_REFUSED)
        expected = module.compute_q_values({"obs": torch.from_numpy(given[finite])})["qf_preds"].numpy()
        np.testing.assert_array_equal(q_values[finite], expected)
        np.testing.assert_array_equal(actions[finite], expected.argmax(-1))
        assert not codes[finite].any()
        assert (codes[-NUM_REFUSED:] == -1).all()


def test_huge_entries_of_a_tree_in_numpy_warn_of_nothing(tmp_path):
    module = tree_module(40)
    export(Teacher(module), tmp_path / "tree.safetensors", format="safetensors", obs=near_ties(module, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q_function(tmp_path / "tree.safetensors")(np.full((1, 3), 3e38, np.float32))


def test_no_name_in_c_is_another_one_behind_a_word():
    """Otherwise headers whose prefixes differ by that word could not be in one program."""
    trees = [(Teacher(tree_module(**TREES[name])), None) for name in ("many leaves", "oblique")]
    names = set()
    for student, obs in [(network(fcnet_hiddens=[4]), states(9)), *trees]:
        text = c_network(*describe(student), input_shape(student), prefix="x", int8_obs=obs).header
        names |= set(re.findall(r"\b[xX]_(\w+)", text))
    assert {"lastlinear", "linear", "plaintree", "tree"} <= names
    assert not [(name, other) for name in names for other in names if name.endswith(f"_{other}")]


@needs_c
def test_c_computes_no_floats_for_a_tree_that_compares_entries(tmp_path):
    for name, function in (("many leaves", "plaintree"), ("oblique", "tree")):
        text = c_network(*describe(Teacher(tree_module(**TREES[name]))), (3,)).header
        assert f"student_{function}(observation, q_values" in text
        (body,) = re.findall(rf"static void student_{function}\(.*?^}}$", text, re.DOTALL | re.MULTILINE)
        computed = re.findall(r"x\[first\[node\]\] *[-*+/]|compared = compared [-*]", body)
        assert len(computed) == (2 if function == "tree" else 0)
        assert "math.h" not in text


@pytest.mark.slow
@pytest.mark.parametrize("artifact_format", [pytest.param(f, marks=needs_c) if f == "c" else f for f in FORMATS])
def test_a_hundred_thousand_states_are_the_same(artifact_format, tmp_path):
    module = tree_module(64, oblique=True)
    obs, path = near_ties(module, 100_000), tmp_path / "tree.h"
    export(Teacher(module), path, format=artifact_format, obs=obs[:500])
    q_values = q_function(path)
    for part in np.split(obs, 2):
        expected = module.compute_q_values({"obs": torch.from_numpy(part)})["qf_preds"].numpy()
        assert np.array_equal(q_values(part), expected)


@pytest.mark.parametrize("artifact_format", ["onnx", "safetensors", "torchscript", pytest.param("c", marks=needs_c)])
def test_a_filter_before_a_tree_is_in_the_file(artifact_format, tmp_path):
    module = tree_module(12)
    mean, std = np.array([0.1, -0.2, 0.3]), np.array([0.5, 2.0, 1.0])
    student = Teacher(module, pipeline=ObservationPipeline(INPUTS, (Normalize(mean, std, 1.5),)))
    obs = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    assert export(student, tmp_path / "tree.h", format=artifact_format, obs=obs).agreement == 1.0


def test_one_hot_encodings_before_a_tree_are_in_the_file(tmp_path):
    shown = gym.spaces.MultiDiscrete([2, 1])
    student = Teacher(tree_module(8), pipeline=ObservationPipeline(shown, (Flatten(shown),)))
    assert export(student, tmp_path / "t.onnx", format="onnx", obs=np.array([[0, 0], [1, 0]])).agreement == 1.0


def test_a_python_file_imports_struct_alone_and_has_the_names_of_the_entries(tmp_path):
    module = tree_module(6, names=["height", "speed", "angle"])
    export(Teacher(module), tmp_path / "tree.py", format="python", obs=near_ties(module, 50))
    text = (tmp_path / "tree.py").read_text()
    imported = [node.names[0].name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    assert imported == ["struct"]
    assert "height, speed, angle = map(" in text
    assert deployment_cost(tmp_path / "tree.py").latency_ms < 1.0


@pytest.mark.parametrize(
    "names",
    [
        ["for", "b", "c"],
        ["a b", "b", "c"],
        ["a", "a", "b"],
        ["struct", "a", "b"],
        ["é", "a", "b"],
        ["__debug__", "a", "b"],
    ],
)
def test_names_that_python_has_no_use_for_do_not_get_into_a_file(names, tmp_path):
    module = tree_module(6, names=names)
    export(Teacher(module), tmp_path / "tree.py", format="python", obs=near_ties(module, 50))
    assert "x0, x1, x2 = map(" in (tmp_path / "tree.py").read_text()


def test_c_refuses_a_tree_that_compares_an_entry_beyond_its_tables(tmp_path):
    spec = student_module_spec({"tree": {"max_leaf_nodes": 2}})
    spec.observation_space, spec.action_space, spec.inference_only = gym.spaces.Box(-1, 1, (40_000,)), ACTIONS, True
    module = spec.build()
    obs = np.random.default_rng(0).normal(size=(4, 40_000)).astype(np.float32)
    for entry, reason in ((32_767, None), (32_768, "compares entry 32,768")):
        module.tree = Tree([entry], [0.1], [1], [2], np.eye(3)[:2], num_features=40_000)
        with pytest.raises(ValueError, match=reason) if reason else contextlib.nullcontext():
            export(Teacher(module), tmp_path / "tree.h", format="c", obs=obs)


def test_int8_is_refused_for_trees_and_python_for_networks(tmp_path):
    from tests.export.students import network

    obs = np.zeros((1, 3), np.float32)
    for artifact_format in ("onnx", "c"):
        with pytest.raises(ValueError, match="int8 is for networks"):
            export(Teacher(tree_module(6)), tmp_path / "x", format=artifact_format, obs=obs, int8=True)
    with pytest.raises(ValueError, match="format='python' is for trees"):
        export(network(), tmp_path / "x.py", format="python", obs=np.zeros((1, 4)))
    filtered = ObservationPipeline(INPUTS, (Normalize(np.zeros(3), np.ones(3), None),))
    with pytest.raises(ValueError, match="filters or encodings"):
        export(Teacher(tree_module(6), pipeline=filtered), tmp_path / "x.py", format="python", obs=obs)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_tree_can_be_compared_and_can_teach(tmp_path):
    module = tree_module(30, oblique=True)
    obs = near_ties(module, 2_000)
    export(Teacher(module), tmp_path / "tree.safetensors", format="safetensors", obs=obs[:100])
    loaded = load_teacher(tmp_path / "tree.safetensors")
    assert torch.equal(loaded.q_values(torch.from_numpy(obs)), Teacher(module).q_values(torch.from_numpy(obs)))
    assert loaded.num_parameters == Teacher(module).num_parameters == module.num_parameters


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("left", [0, 2], "a tree that is not valid"),
        ("left", [5, 2], "a tree that is not valid"),
        ("values", "infinite", "a tree that is not valid"),
        ("left", "ab", "not lists of integers"),
        ("left", [1, True], "not lists of integers"),
        ("first", [-1, 0], "lack an entry"),
        ("operation", ["/", ""], "operations"),
    ],
)
def test_a_file_whose_tree_is_none_is_refused(key, value, reason, tmp_path):
    from safetensors.torch import save_file

    layer = {"op": "tree", "first": [0, 1], "second": [0, 1], "operation": ["", ""], "left": [1, 2], "right": [4, 3]}
    layer |= {"threshold": "t", "values": "v", key: value}
    metadata = {"layers": json.dumps([layer]), "observation_shape": "[3]", "num_actions": "3"}
    tensors = {"t": torch.zeros(2), "v": torch.eye(3), "infinite": torch.eye(3) / 0}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    if key in ("left", "values"):  # the runner would never end, or show nothing wrong
        with pytest.raises(ValueError, match="The file has a tree"):
            numpy_runner.load(str(tmp_path / "x.safetensors"))
    with pytest.raises(ValueError, match=reason):
        load_teacher(tmp_path / "x.safetensors")
