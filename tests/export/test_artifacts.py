"""What an artifact plays as, what it costs, and what is none."""

import io
import os
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save

from rllib_kd import load_teacher
from rllib_kd.cli.main import main
from rllib_kd.evaluation.playing import play
from rllib_kd.export.artifact import artifact_format_of, deployment_cost, q_function
from rllib_kd.export.export import TOLERANCE, artifact_view, export
from rllib_kd.export.onnx import integers as onnx_integers
from rllib_kd.networks.quantization import round_linears
from rllib_kd.networks.stacking import linears_of
from rllib_kd.teachers.base import Teacher
from tests.conftest import Reflex, make_q_module, states
from tests.export.students import IMAGES, NETWORK_FORMATS, OTHERS, network


@pytest.fixture(scope="module")
def cartpole_states() -> np.ndarray:
    """What the packaged teacher sees on the way, when it is disturbed."""
    teacher, rng = load_teacher("cartpole"), np.random.default_rng(0)

    def policy(obs):
        greedy = teacher.q_values(torch.as_tensor(obs)).argmax(-1).numpy()
        return np.where(rng.random(len(obs)) < 0.2, 1 - greedy, greedy)

    view = artifact_view(teacher)
    return play(lambda: gym.make("CartPole-v1"), Reflex(policy), range(10), views=[view])[1][0]


def weak_returns(q_values):
    """To the right of 0.05, a weak policy does the opposite: its episodes end at many different lengths."""

    def policy(obs):
        greedy = q_values(obs).argmax(-1)
        return np.where(obs[:, 0] > 0.05, 1 - greedy, greedy)

    return play(lambda: gym.make("CartPole-v1"), Reflex(policy), range(100, 110))[0]


@pytest.fixture(scope="module")
def weak_returns_of_pytorch():
    teacher = load_teacher("cartpole")
    returns = weak_returns(lambda obs: teacher.q_values(torch.as_tensor(obs)).numpy())
    assert len(set(returns)) > 3
    return returns


@pytest.mark.parametrize("artifact_format", NETWORK_FORMATS)
def test_artifacts_play_whole_episodes_as_pytorch_does(
    artifact_format, cartpole_states, weak_returns_of_pytorch, tmp_path
):
    export(load_teacher("cartpole"), tmp_path / "teacher", format=artifact_format, obs=cartpole_states)
    assert weak_returns(q_function(tmp_path / "teacher")) == weak_returns_of_pytorch


def test_int8_is_smaller_and_plays(cartpole_states, tmp_path):
    teacher = load_teacher("cartpole")
    plain = export(teacher, tmp_path / "plain.onnx", format="onnx", obs=cartpole_states)
    small = export(teacher, tmp_path / "int8.onnx", format="onnx", obs=cartpole_states, int8=True)
    assert os.path.getsize(small.path) < 0.35 * os.path.getsize(plain.path)
    assert small.int8
    assert not plain.int8
    assert small.max_difference > TOLERANCE >= plain.max_difference  # it says so, and is not refused
    assert small.max_difference_allowed is None
    assert 0.94 < small.agreement <= 1.0  # with scales that observations set: 0.90 to 0.93
    assert onnx_notes(small.path)["quantization"] == "static"
    artifact = q_function(small.path)
    returns, _ = play(lambda: gym.make("CartPole-v1"), Reflex(lambda obs: artifact(obs).argmax(-1)), range(10))
    assert np.mean(returns) > 400


def onnx_notes(path):
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_closer_of_two_ways_to_quantise_is_taken(cartpole_states, tmp_path, monkeypatch):
    student = load_teacher("cartpole")
    static = export(student, tmp_path / "static.onnx", format="onnx", obs=cartpole_states, int8=True)
    # Scales from states that are nothing like those that come.
    real = onnx_integers._quantize_static
    monkeypatch.setattr(
        onnx_integers, "_quantize_static", lambda file, out, obs, num_actions: real(file, out, obs * 0, num_actions)
    )
    dynamic = export(student, tmp_path / "dynamic.onnx", format="onnx", obs=cartpole_states, int8=True)
    assert onnx_notes(static.path)["quantization"] == "static"
    assert onnx_notes(dynamic.path)["quantization"] == "dynamic"


@pytest.mark.parametrize("with_masks", [False, True])
def test_scales_of_run_time_are_of_one_observation_at_a_time(with_masks, tmp_path):
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(1000, 4)) * np.exp(4 * rng.normal(size=(1000, 1)))  # a few are huge
    masks = np.ones((1000, 3)) if with_masks else None
    done = export(network(), tmp_path / "s.onnx", format="onnx", obs=obs, action_masks=masks, int8=True)
    assert onnx_notes(done.path)["quantization"] == "dynamic"
    if not with_masks:
        assert load_teacher(done.path).num_parameters == network().num_parameters  # scales are no parameters
    assert done.agreement > 0.98  # of fixed scales and of whole batches: below 0.9
    assert done.num_observations == 1000
    runner, rows = q_function(done.path), [obs, masks] if with_masks else [obs]
    apart = np.concatenate([runner(*(each[[row]] for each in rows)) for row in range(1000)])
    np.testing.assert_array_equal(runner(*rows), apart)
    teacher_q = load_teacher(done.path).q_values(torch.as_tensor(obs, dtype=torch.float32))
    assert (teacher_q.argmax(-1).numpy() == apart.argmax(-1)).all()


def test_onnx_has_exactly_the_weights_of_a_student_that_learned_for_8_bits(cartpole_states, tmp_path):
    module = make_q_module()
    round_linears(linears_of(module))
    exported = export(Teacher(module), tmp_path / "s.onnx", format="onnx", obs=cartpole_states, int8=True)
    assert exported.agreement > 0.998
    assert exported.max_difference < 1e-3


def test_int8_of_convolutions(tmp_path):
    student = network(**OTHERS["cnn"])
    result = export(student, tmp_path / "s.onnx", format="onnx", obs=states(20, IMAGES), int8=True)
    assert TOLERANCE < result.max_difference < 0.1


@pytest.mark.parametrize("artifact_format", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
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
    assert 5e6 < again.peak_memory_bytes < 150e6
    assert again.peak_memory_bytes == pytest.approx(costs[1].peak_memory_bytes, rel=0.2)
    assert ballast.nbytes > 150e6
    assert 0 < costs[1].latency_ms < 10


def test_the_teacher_takes_longer_than_a_small_student(tmp_path):
    latencies = []
    for hiddens in ([512, 512], [4]):
        export(network(fcnet_hiddens=hiddens), tmp_path / "s", format="safetensors", obs=states(2))
        latencies.append(deployment_cost(tmp_path / "s").latency_ms)
    assert latencies[0] > 2 * latencies[1]


@pytest.mark.parametrize("function", [q_function, deployment_cost])
def test_what_is_no_artifact(function, tmp_path):
    with pytest.raises(ValueError, match="There is no artifact at"):
        function(tmp_path / "nothing")
    for content in (b"", b"hello world, this is text"):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(ValueError, match="is not an artifact"):
            function(tmp_path / "text")


def test_the_command_shows_what_an_artifact_costs(tmp_path, capsys):
    artifact = tmp_path / "student.onnx"
    with pytest.raises(SystemExit) as exit_:
        main(["export", "cartpole", "--out", str(artifact), "--teacher", "cartpole", "--episodes", "2"])
    assert not exit_.value.code
    assert artifact_format_of(artifact) == "onnx"
    output = capsys.readouterr().out
    for row in ("student.onnx", "bytes on disk", "peak memory", "latency, batch of 1", "difference from PyTorch"):
        assert row in output
    *lines, card = output.splitlines()
    assert card == str(tmp_path / "README.md")
    assert max(map(len, lines)) <= 80


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
