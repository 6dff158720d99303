import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from rllib_kd import load_teacher
from rllib_kd.evaluation.playing import Reflex, play
from rllib_kd.export.artifact import FORMATS, artifact_format_of, deployment_cost, q_function
from rllib_kd.export.deployment import deploy
from rllib_kd.export.export import TOLERANCE, artifact_view, export
from rllib_kd.export.formats import describe
from rllib_kd.export.runners import numpy_runner
from rllib_kd.networks import layers as layers_module
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.layers import ELEMENTWISE, build_layers
from rllib_kd.observations.pipeline import Flatten, Normalize, ObservationPipeline, RLlibConnectors, Shown, StackFrames
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states

ROOT = Path(__file__).parents[2]
IMAGES = gym.spaces.Box(-1.0, 1.0, (84, 84, 4))
SMALL_IMAGES = gym.spaces.Box(-1.0, 1.0, (13, 11, 3))  # no side is a multiple of a stride
THREE_ACTIONS = gym.spaces.Discrete(3)


def linear_student(observation_space: gym.Space = CARTPOLE_OBS) -> Teacher:
    config = {"fcnet_hiddens": [], "dueling": False, "double_q": True, "num_atoms": 1, "epsilon": 0.0}
    spec = student_module_spec(config | {"v_min": -10.0, "v_max": 10.0})
    spec.observation_space, spec.action_space, spec.inference_only = observation_space, CARTPOLE_ACTIONS, True
    return Teacher(spec.build())


def network(observation_space: gym.Space = CARTPOLE_OBS, **model_config) -> Teacher:
    """Random weights, biases too: an artifact that forgets them must not look right."""
    module = make_q_module(observation_space, THREE_ACTIONS, **model_config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 0.5)
    return Teacher(module)


LINEAR = {"linear": CARTPOLE_OBS, "linear in pixels": SMALL_IMAGES}
MLPS = {
    "one relu layer": {"fcnet_hiddens": [16]},
    "two tanh layers": {"fcnet_hiddens": [16, 8], "fcnet_activation": "tanh"},
    "head layers": {"head_fcnet_hiddens": [8, 6], "head_fcnet_activation": "tanh"},
    "dueling": {"dueling": True, "head_fcnet_hiddens": [8]},
}
OTHERS = {
    "layer norm, elu": {"fcnet_use_layernorm": True, "fcnet_activation": "elu"},
    "silu, sigmoid": {"fcnet_activation": "silu", "head_fcnet_hiddens": [8], "head_fcnet_activation": "Sigmoid"},
    "C51": {"num_atoms": 7},
    "dueling C51": {"num_atoms": 7, "dueling": True},
    "cnn": {
        "observation_space": IMAGES,
        "conv_filters": [[4, 8, 4, "valid"], [6, [4, 3], [2, 1], "valid"]],
        "conv_activation": "relu",
        "head_fcnet_hiddens": [16],
    },
    "cnn with padding": {
        "observation_space": SMALL_IMAGES,
        "conv_filters": [[4, 4, 3], [5, [3, 2], [1, 2]]],
        "conv_activation": "tanh",
        "dueling": True,
    },
}


@pytest.mark.parametrize("artifact_format", FORMATS)
@pytest.mark.parametrize("name", [*LINEAR, *MLPS, *OTHERS])
def test_every_network_in_every_format_equals_pytorch(name, artifact_format, tmp_path):
    student = linear_student(LINEAR[name]) if name in LINEAR else network(**(MLPS | OTHERS)[name])
    obs = states(40, student.observation_space)
    result = export(student, tmp_path / "student", format=artifact_format, obs=obs)
    artifact = q_function(tmp_path / "student")
    expected = student.q_values(torch.as_tensor(obs)).numpy()
    difference = np.abs(artifact(obs) - expected).max()
    assert difference <= TOLERANCE / 10
    assert result.max_difference == pytest.approx(difference, abs=1e-6)
    assert result.agreement == 1.0
    assert result.num_observations == 40
    assert result.max_difference_allowed == TOLERANCE
    # Any batch, and observations of any number type.
    assert artifact(obs[:1].astype(np.float64)) == pytest.approx(expected[:1], abs=1e-5)
    assert artifact_format_of(tmp_path / "student") == artifact_format
    assert np.ptp(expected, axis=0).min() > 0.01  # a constant would be no test


FILTER = Normalize(np.array([0.1, -0.2, 0.3, 0.0]), np.array([0.5, 2.0, 1.0, 0.1]) + 1e-8, clip=1.5)
PIPELINES = {
    "filter": (CARTPOLE_OBS, CARTPOLE_OBS, (FILTER,)),
    "filter without bounds": (CARTPOLE_OBS, CARTPOLE_OBS, (Normalize(FILTER.mean, None, None),)),
    "one-hot": (gym.spaces.Discrete(5), gym.spaces.Box(0, 1, (5,)), (Flatten(gym.spaces.Discrete(5)),)),
    "one-hots, filtered": (
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.Box(0, 1, (5,)),
        (Flatten(gym.spaces.MultiDiscrete([2, 3])), Normalize(np.full(5, 0.4), np.full(5, 0.3), 10.0)),
    ),
    "one-hots in rows and columns": (
        gym.spaces.MultiDiscrete([[2, 3], [4, 2]]),
        gym.spaces.Box(0, 1, (11,)),
        (Flatten(gym.spaces.MultiDiscrete([[2, 3], [4, 2]])),),
    ),
    "bits": (gym.spaces.MultiBinary(5), gym.spaces.Box(0, 1, (5,)), (Flatten(gym.spaces.MultiBinary(5)),)),
    "flat": (gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Box(-1, 1, (6,)), (Flatten(gym.spaces.Box(-1, 1, (2, 3))),)),
}


#: Where each file is played in a process of its own, as many others are: the one that imports torch is slow.
QUICK_TO_PLAY = [pytest.param(name, marks=pytest.mark.slow) if name == "torchscript" else name for name in FORMATS]


@pytest.mark.parametrize("artifact_format", QUICK_TO_PLAY)
@pytest.mark.parametrize("name", PIPELINES)
def test_what_connectors_do_is_in_the_file(name, artifact_format, tmp_path):
    shown_space, input_space, stages = PIPELINES[name]
    pipeline = ObservationPipeline(shown_space, stages)
    student = Teacher(network(input_space).module, pipeline=pipeline)
    shown_space.seed(0)
    obs = np.stack([shown_space.sample() for _ in range(30)])
    obs = np.clip(obs, -3, 3)  # CartPole's speeds have no bounds
    result = export(student, tmp_path / "student", format=artifact_format, obs=obs)
    seen = pipeline.start()(Shown(obs, first=np.ones(len(obs), dtype=bool)))
    expected = student.q_values(torch.as_tensor(seen)).numpy()
    assert q_function(tmp_path / "student")(obs) == pytest.approx(expected, abs=1e-5)
    assert result.max_difference < 1e-5
    assert np.ptp(expected, axis=0).min() > 0.01
    assert deployment_cost(tmp_path / "student").latency_ms > 0  # it is played with the right shape


def test_frames_are_stacked_outside(tmp_path):
    space, conv = gym.spaces.Box(0, 1, (8, 8, 1)), {"conv_filters": [[2, 4, 2], [4, 4, 1]]}
    pipeline = ObservationPipeline(space, (StackFrames(3),))
    student = Teacher(network(gym.spaces.Box(0, 1, (8, 8, 3)), **conv).module, pipeline=pipeline)
    seen = artifact_view(student)()(Shown(np.ones((4, 8, 8, 1)), np.ones(4, dtype=bool)))
    assert seen.shape == (4, 8, 8, 3)
    export(student, tmp_path / "student", format="onnx", obs=seen)
    assert q_function(tmp_path / "student")(seen) == pytest.approx(
        student.q_values(torch.as_tensor(seen)).numpy(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("space", "stages", "message"),
    [
        (gym.spaces.Dict(a=CARTPOLE_OBS), (Flatten(gym.spaces.Dict(a=CARTPOLE_OBS)),), "takes one array"),
        (CARTPOLE_OBS, (FILTER, StackFrames(2)), "stacked after another connector"),
        (CARTPOLE_OBS, (RLlibConnectors(None),), "custom connectors"),
        (gym.spaces.Tuple((CARTPOLE_OBS,)), (Flatten(gym.spaces.Tuple((CARTPOLE_OBS,))),), "takes one array"),
        (gym.spaces.Discrete(4, start=1), (Flatten(gym.spaces.Discrete(4, start=1)),), "count from 0"),
    ],
)
def test_connectors_that_no_file_can_hold(space, stages, message, tmp_path):
    student = Teacher(network().module, pipeline=ObservationPipeline(space, stages))
    with pytest.raises(ValueError, match=message):
        export(student, tmp_path / "student", format="onnx", obs=states(2))


class Shows(gym.Env):
    """Observations of any space; an episode has nine steps."""

    action_space = THREE_ACTIONS

    def __init__(self, space: gym.Space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(action == self.t % 3), self.t >= 9, False, {}


def flat_student(space: gym.Space) -> Teacher:
    """As RLlib's FlattenObservations shows it the space."""
    flat = gym.spaces.Box(-1, 1, (gym.spaces.flatdim(space),))
    return Teacher(network(flat).module, pipeline=ObservationPipeline(space, (Flatten(space),)))


@pytest.mark.parametrize("artifact_format", [*QUICK_TO_PLAY, pytest.param("onnx, int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(5),
        gym.spaces.MultiDiscrete([3, 2, 4]),
        gym.spaces.MultiBinary(4),
        gym.spaces.MultiBinary([2, 3]),
        gym.spaces.Box(-1, 1, (2, 3)),
    ],
    ids=str,
)
def test_what_is_not_a_vector_plays_through_its_file(space, artifact_format, tmp_path):
    name, _, int8 = artifact_format.partition(", ")
    out = tmp_path / "s"
    done = deploy(flat_student(space), out, lambda config: Shows(space), format=name, int8=bool(int8), num_episodes=4)
    assert done.exported.num_observations == 36
    if not int8:
        assert done.exported.max_difference < 1e-5
        assert done.return_mean == done.torch_return
    assert done.cost.latency_ms > 0
    obs = np.stack([space.sample() for _ in range(7)])  # integers, as the environment shows them
    q = q_function(out)
    assert q(obs) == pytest.approx(q(obs.astype(np.float32)), abs=1e-6)
    assert q(obs).shape == (7, 3)


@pytest.mark.parametrize("space", [gym.spaces.Dict(a=CARTPOLE_OBS), gym.spaces.Tuple((CARTPOLE_OBS,))], ids=str)
def test_observations_of_several_parts_are_refused_before_anything_plays(space, tmp_path):
    with pytest.raises(ValueError, match="An artifact takes one array, but observations are"):
        deploy(flat_student(space), tmp_path / "s", lambda config: Shows(space), format="onnx", num_episodes=1)
    assert os.listdir(tmp_path) == []


def run_alone(code: str, *arguments: object, without: tuple[str, ...]) -> str:
    """Output of a fresh process in which those packages cannot be imported."""
    wall = f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", wall + code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RUNNER_PAGE = (ROOT / "docs" / "numpy_runner.md").read_text()
PAGE_CODE = re.search(r"```python\n(.*?)```", RUNNER_PAGE, re.DOTALL)[1]
#: What the page's table says of each op: whether the short runner on the page plays it.
OPS = {
    op: bool(mark.strip())
    for ops, mark in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|(.*?)\|", RUNNER_PAGE.split("| `op` |")[1], re.MULTILINE)
    for op in re.findall(r"`(\w+)`", ops)
}


def of_op(op: str) -> tuple[dict, dict[str, np.ndarray], np.ndarray]:
    """A layer of this op, its tensors, and inputs for it."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    tensors = {"w": numbers(3, 4), "b": numbers(3), "mean": numbers(4), "std": np.abs(numbers(4)) + 0.5}
    linear = {"op": "linear", "weight": "w", "bias": "b"}
    images, vectors = numbers(5, 7, 6, 2), numbers(5, 4)
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
        "expectation": ({"num_atoms": 3, "v_min": -1.0, "v_max": 2.0}, {}, numbers(5, 6)),
    } | dict.fromkeys(ELEMENTWISE, ({}, {}, 3 * vectors))
    layer, own_tensors, inputs = own[op]
    return layer | {"op": op}, tensors | own_tensors, inputs


def test_the_page_lists_every_layer_that_there_is():
    assert set(OPS) == {*ELEMENTWISE, *layers_module._BUILDERS}
    with pytest.raises(ValueError, match="does not know the layer 'none'"):
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


@pytest.mark.parametrize(
    ("artifact_format", "code"),
    [
        (
            "onnx",
            "import onnxruntime\n"
            "session = onnxruntime.InferenceSession(path)\n"
            "q_values = lambda obs: session.run(None, {'obs': obs})[0]\n",
        ),
        ("torchscript", "import torch\nq_values = lambda obs: torch.jit.load(path)(torch.as_tensor(obs)).numpy()\n"),
    ],
)
def test_artifacts_run_without_ray_and_this_package(artifact_format, code, tmp_path):
    student, obs = network(dueling=True), states(20)
    export(student, tmp_path / "student", format=artifact_format, obs=obs)
    np.save(tmp_path / "obs.npy", obs)
    without = ("ray", "rllib_kd", "gymnasium") + (("torch", "onnx") if artifact_format == "onnx" else ())
    code = f"import json, numpy as np\npath = sys.argv[1]\n{code}\nprint(q_values(np.load(sys.argv[2])).tolist())"
    printed = run_alone(code, tmp_path / "student", tmp_path / "obs.npy", without=without)
    expected = student.q_values(torch.as_tensor(obs)).numpy()
    assert np.array(json.loads(printed)) == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def cartpole_states() -> np.ndarray:
    """What the packaged teacher sees on the way, when it is disturbed."""
    teacher, rng = load_teacher("cartpole"), np.random.default_rng(0)

    def policy(obs):
        greedy = teacher.q_values(torch.as_tensor(obs)).argmax(-1).numpy()
        return np.where(rng.random(len(obs)) < 0.2, 1 - greedy, greedy)

    view = artifact_view(teacher)
    return play(lambda: gym.make("CartPole-v1"), Reflex(policy), range(10), views=[view])[1][0]


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_artifacts_play_a_whole_evaluation_as_pytorch_does(artifact_format, cartpole_states, tmp_path):
    teacher, seeds = load_teacher("cartpole"), range(100, 110)
    export(teacher, tmp_path / "teacher", format=artifact_format, obs=cartpole_states)
    artifact = q_function(tmp_path / "teacher")

    def returns(q_values, weakness):
        # To the right of 0.05 a weak policy does the opposite: its episodes end at many different lengths.
        def policy(obs):
            greedy = q_values(obs).argmax(-1)
            return np.where(weakness & (obs[:, 0] > 0.05), 1 - greedy, greedy)

        return play(lambda: gym.make("CartPole-v1"), Reflex(policy), seeds)[0]

    def pytorch(obs):
        return teacher.q_values(torch.as_tensor(obs)).numpy()

    assert returns(artifact, False) == returns(pytorch, False) == [500.0] * len(seeds)
    weak = returns(pytorch, True)
    assert returns(artifact, True) == weak
    assert len(set(weak)) > 3


def test_int8_is_smaller_and_plays(cartpole_states, tmp_path):
    teacher = load_teacher("cartpole")
    plain = export(teacher, tmp_path / "plain.onnx", format="onnx", obs=cartpole_states)
    small = export(teacher, tmp_path / "int8.onnx", format="onnx", obs=cartpole_states, int8=True)
    assert os.path.getsize(small.path) < 0.35 * os.path.getsize(plain.path)
    assert small.int8
    assert not plain.int8
    assert small.max_difference > TOLERANCE >= plain.max_difference  # it says so, and is not refused
    assert small.max_difference_allowed is None
    assert 0.8 < small.agreement <= 1.0
    artifact = q_function(small.path)
    returns, _ = play(lambda: gym.make("CartPole-v1"), Reflex(lambda obs: artifact(obs).argmax(-1)), range(10))
    assert np.mean(returns) > 400


def test_int8_of_convolutions(tmp_path):
    student = network(**OTHERS["cnn"])
    result = export(student, tmp_path / "s.onnx", format="onnx", obs=states(20, IMAGES), int8=True)
    assert TOLERANCE < result.max_difference < 0.1


@pytest.mark.parametrize("artifact_format", QUICK_TO_PLAY)
def test_what_a_deployment_costs(artifact_format, tmp_path):
    teacher, student = load_teacher("cartpole"), network(fcnet_hiddens=[16])
    costs = []
    for name, model in (("teacher", teacher), ("student", student)):
        export(model, tmp_path / name, format=artifact_format, obs=states(8))
        costs.append(deployment_cost(tmp_path / name))
    assert costs[0].disk_bytes == os.path.getsize(tmp_path / "teacher")
    assert costs[0].disk_bytes > 4 * teacher.num_parameters > 50 * costs[1].disk_bytes - 500_000
    assert costs[1].disk_bytes < 10_000
    # This process holds Ray and PyTorch, and some ballast: none of that may count.
    ballast = np.ones(50_000_000)
    again = deployment_cost(tmp_path / "student")
    limit = 600e6 if artifact_format == "torchscript" else 150e6
    assert 5e6 < again.peak_memory_bytes < limit
    assert again.peak_memory_bytes == pytest.approx(costs[1].peak_memory_bytes, rel=0.2)
    assert ballast.nbytes > 150e6
    assert 0 < costs[1].latency_ms < 10
    json.dumps(costs[0].to_dict())


def test_the_teacher_takes_longer_than_a_small_student(tmp_path):
    latencies = []
    for hiddens in ([512, 512], [4]):
        export(network(fcnet_hiddens=hiddens), tmp_path / "s", format="safetensors", obs=states(2))
        latencies.append(deployment_cost(tmp_path / "s").latency_ms)
    assert latencies[0] > 2 * latencies[1]


def test_the_onnx_graph_is_what_a_device_wants(tmp_path):
    import onnx

    for name, operators in {
        "one relu layer": ["Gemm", "Relu", "Gemm"],
        "dueling": ["Gemm", "Relu", "Gemm", "Relu", *["Gemm", "Relu", "Gemm"] * 2, "ReduceMean", "Sub", "Add"],
    }.items():
        path = tmp_path / f"{name}.onnx"
        export(network(**MLPS[name]), path, format="onnx", obs=states(2))
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert sorted(node.op_type for node in model.graph.node) == sorted(operators)
        (obs,), (q_values,) = model.graph.input, model.graph.output
        assert (obs.name, q_values.name) == ("obs", "q_values")
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (obs, q_values)]
        assert shapes == [["batch", 4], ["batch", 3]]


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_artifacts_know_no_paths_of_this_machine(artifact_format, tmp_path):
    export(network(), tmp_path / "s", format=artifact_format, obs=states(2))
    contents = [(tmp_path / "s").read_bytes()]
    if artifact_format == "torchscript":
        with zipfile.ZipFile(tmp_path / "s") as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    for path in (str(ROOT), str(Path(torch.__file__).parent), str(tmp_path), "site-packages", "export.py"):
        assert not any(path.encode() in content for content in contents)


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_exporting_is_silent_and_leaves_one_file(artifact_format, tmp_path, capfd, caplog):
    student = network(dueling=True)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # the second replaces the first
            export(student, tmp_path / "new" / "s", format=artifact_format, obs=states(2))
        if artifact_format == "onnx":
            export(student, tmp_path / "new" / "s", format=artifact_format, obs=states(2), int8=True)
    assert os.listdir(tmp_path / "new") == ["s"]
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_student_is_left_as_it_was(tmp_path):
    student, obs = network(), torch.as_tensor(states(4))
    before = student.q_values(obs)
    for artifact_format in FORMATS:
        export(student, tmp_path / "s", format=artifact_format, obs=states(4))
    assert torch.equal(student.q_values(obs), before)
    assert not any(parameter.requires_grad for parameter in student.module.parameters())


@pytest.mark.parametrize("artifact_format", FORMATS)
@pytest.mark.parametrize("error", [1.1e-4, np.nan])
def test_an_artifact_that_differs_is_refused(artifact_format, error, tmp_path, monkeypatch):
    (tmp_path / "s").write_text("older")
    load = q_function

    def wrong(path):
        artifact = load(path)

        def q_values(obs):
            values = artifact(obs).copy()
            values[-1, -1] += error  # one Q-value of one observation is enough
            return values

        return q_values

    monkeypatch.setattr("rllib_kd.export.export.q_function", wrong)
    shown = "nan" if np.isnan(error) else "0.00011"
    with pytest.raises(ValueError, match=rf"differs from PyTorch by {shown}.*on 300 observations.*allowed is 0.0001 "):
        export(network(), tmp_path / "s", format=artifact_format, obs=states(300))
    assert os.listdir(tmp_path) == ["s"]
    assert (tmp_path / "s").read_text() == "older"
    if error == error:
        assert export(network(), tmp_path / "s", format=artifact_format, obs=states(300), tolerance=2e-4).agreement > 0


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_large_q_values_may_differ_by_their_rounding_and_no_more(artifact_format, tmp_path, monkeypatch):
    student, obs = network(fcnet_hiddens=[256, 256]), states(300)
    with torch.no_grad():
        student.module.af.net.mlp[-1].weight.mul_(2000.0)
    size = np.abs(student.q_values(torch.as_tensor(obs)).numpy()).max()
    assert size > 500
    result = export(student, tmp_path / "s", format=artifact_format, obs=obs)
    assert result.max_difference_allowed == 16 * np.spacing(size) > TOLERANCE
    load = q_function
    monkeypatch.setattr(
        "rllib_kd.export.export.q_function", lambda path: lambda obs: load(path)(obs) + 32 * np.spacing(size)
    )
    with pytest.raises(ValueError, match=r"differs from PyTorch by .* \(Q-values reach"):
        export(student, tmp_path / "s", format=artifact_format, obs=obs)


def test_a_wrong_weight_in_the_file_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rllib_kd.export.formats.save",
        lambda tensors, metadata: save({k: v + 1e-3 for k, v in tensors.items()}, metadata),
    )
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export(network(), tmp_path / "s", format="safetensors", obs=states(5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"format": "tflite"}, "Unknown format 'tflite'. Known are onnx, safetensors, torchscript"),
        ({"format": "safetensors", "int8": True}, "int8 is for format='onnx' only"),
        ({"obs": states(3)[:, :3]}, r"the shape \[3, 3\], expected \[N, 4\]"),
        ({"obs": states(3)[:0]}, r"the shape \[0, 4\], expected \[N, 4\]"),
        ({"obs": states(3)[0]}, r"the shape \[4\], expected \[N, 4\]"),
        ({"obs": 1.0}, r"the shape \[\], expected \[N, 4\]"),
    ],
)
def test_bad_input(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(**{"student": network(), "out": tmp_path / "s", "format": "onnx", "obs": states(3)} | kwargs)
    assert os.listdir(tmp_path) == []


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        export(network(), tmp_path, format="safetensors", obs=states(3))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a device or a pipe, which cannot be replaced"):
        export(network(), tmp_path / "pipe", format="safetensors", obs=states(3))
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_say_what_to_install(package, tmp_path, monkeypatch):
    export(network(), tmp_path / "s", format="onnx", obs=states(3))
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"'{package}', which is not installed. pip install 'rllib-kd\[onnx\]'"
    with pytest.raises(ValueError, match=message):
        export(network(), tmp_path / "s", format="onnx", obs=states(3))
    if package == "onnxruntime":
        for function in (q_function, deployment_cost):
            with pytest.raises(ValueError, match=message):
                function(tmp_path / "s")
    export(network(), tmp_path / "other", format="safetensors", obs=states(3))  # needs none of them


def test_safetensors_names_the_layers_that_it_cannot_describe(tmp_path):
    student = network(fcnet_activation="Softplus")
    with pytest.raises(ValueError, match=r"cannot describe the layer Softplus.*Known are linear, conv2d.*'onnx'"):
        export(student, tmp_path / "s", format="safetensors", obs=states(3))
    export(student, tmp_path / "s", format="onnx", obs=states(3))


def test_recurrent_students_are_refused(tmp_path):
    student = network(use_lstm=True, lstm_cell_size=8, max_seq_len=5)
    with pytest.raises(ValueError, match="recurrent"):
        export(student, tmp_path / "s", format="torchscript", obs=states(3))


class OwnNetwork:
    """The least that an RLModule of the user's own has."""

    pipeline = None

    def __init__(self):
        torch.manual_seed(0)
        self.module = OwnModule()
        self.observation_space, self.action_space = CARTPOLE_OBS, CARTPOLE_ACTIONS

    def q_values(self, obs):
        with torch.inference_mode():
            return self.module.compute_q_values({"obs": obs})["qf_preds"]


class OwnModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 2))

    def is_stateful(self):
        return False

    def compute_q_values(self, batch):
        return {"qf_preds": 2.0 * self.layers(batch["obs"]).cumsum(-1)}


def test_modules_of_the_users_own(tmp_path):
    student = OwnNetwork()
    for artifact_format in ("onnx", "torchscript"):
        assert export(student, tmp_path / "s", format=artifact_format, obs=states(9)).max_difference < 1e-5
    with pytest.raises(ValueError, match="got a OwnModule"):
        export(student, tmp_path / "s", format="safetensors", obs=states(9))


@pytest.mark.parametrize("function", [q_function, deployment_cost])
def test_what_is_no_artifact(function, tmp_path):
    with pytest.raises(ValueError, match="There is no artifact at"):
        function(tmp_path / "nothing")
    for content in (b"", b"hello world, this is text"):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(ValueError, match="is not an artifact"):
            function(tmp_path / "text")


def zip_of(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zip_of(a="b"),
        b"PK broken",
        zip_of(**{"x/extra/observation_shape.json": "[4, null]"}),
        zip_of(**{"x/extra/observation_shape.json": "{"}),
        save({"w": torch.zeros(2)}),
        save({"w": torch.zeros(2)}, {"observation_shape": "[0]"}),
        (9).to_bytes(8, "little") + b"{" + b"x" * 20,
        b"\x08 no ONNX",
    ],
)
def test_the_cost_of_files_of_others_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ValueError, match=r"s' does not record the shape of its observations .* that export") as caught:
        deployment_cost(tmp_path / "s")
    assert str(caught.value).isprintable()


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    export(network(), tmp_path / "s", format="safetensors", obs=states(3))
    monkeypatch.setattr("rllib_kd.export.artifact._observation_shape", lambda path: [5])
    with pytest.raises(RuntimeError, match="mismatch"):
        deployment_cost(tmp_path / "s")


def test_the_description_holds_what_acts_and_no_more():
    student = network(dueling=True)
    layers, tensors = describe(student)
    assert [layer["op"] for layer in layers] == ["linear", "relu", "linear", "relu", "dueling"]
    assert sum(tensor.numel() for tensor in tensors.values()) == student.num_parameters


def test_runners_know_neither_ray_nor_this_package():
    paths = sorted((ROOT / "rllib_kd" / "export" / "runners").glob("*.py"))
    assert len(paths) >= 4
    for path in paths:
        assert not re.search(r"^\s*(import|from) (ray|rllib_kd|gymnasium)\b", path.read_text(), re.MULTILINE)
