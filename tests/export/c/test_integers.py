"""Networks in integers: C computes what numpy does, bit by bit, and both are near PyTorch."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from rllib_kd.export.c import write
from rllib_kd.export.c.integers import IntegerStep, _multiplier, check_integers, quantized
from rllib_kd.export.c.program import Step, Value, lower
from rllib_kd.export.c.reference import _rescaled, integer_q_values
from rllib_kd.export.c.write import c_network
from rllib_kd.export.export import export
from tests.conftest import states
from tests.export.c.networks import (
    SANITIZERS,
    Network,
    Together,
    has_sanitizers,
    random_networks,
    students,
    written,
)
from tests.export.c.test_layers import NUM_REFUSED, extremes
from tests.export.students import MLPS, OTHERS, network

LINEAR_LAYER = {"op": "linear", "weight": "w", "bias": "b"}


def linear_network(weight: np.ndarray, bias: np.ndarray, obs: np.ndarray) -> Network:
    tensors = {"w": torch.as_tensor(weight, dtype=torch.float32), "b": torch.as_tensor(bias, dtype=torch.float32)}
    return Network([LINEAR_LAYER], tensors, obs.shape[1:], obs.astype(np.float32))


def then_relu_and_linear(first: Network, weight: np.ndarray) -> Network:
    tensors = first.tensors | {"w2": torch.as_tensor(weight, dtype=torch.float32), "b2": torch.zeros(len(weight))}
    layers = [*first.layers, {"op": "relu"}, {"op": "linear", "weight": "w2", "bias": "b2"}]
    return Network(layers, tensors, first.shape, first.obs)


def dueling_network(advantage: float, value: float) -> Network:
    """Two linear streams with weights of these sizes."""
    streams = {name: [{"op": "linear", "weight": f"{name}.w", "bias": f"{name}.b"}] for name in ("advantage", "value")}
    tensors = {
        "advantage.w": torch.full((3, 4), advantage) * torch.tensor([[1.0], [-1.0], [0.5]]),
        "advantage.b": torch.zeros(3),
        "value.w": torch.full((1, 4), value),
        "value.b": torch.zeros(1),
    }
    return Network([{"op": "dueling", **streams}], tensors, (4,), states(20))


def strange() -> list[Network]:
    """Weights and states at which scales could be infinite, or sums leave 32 bits."""
    obs, one = states(20), np.eye(4)[:2]
    wide = states(20)[:, :1] * np.ones((1, 3000), np.float32)
    rows = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0], [1e-30, 0, 0, 1e-30], [1e30, 0, 0, 0]])
    linear = [
        linear_network(0 * one, np.zeros(2), obs),
        linear_network(0 * one, [1.0, -2.0], obs),
        linear_network(1e-12 * one, [1.0, -2.0], obs),
        linear_network(1e-38 * one, [0.0, 1e-44], obs),
        linear_network(1e37 * one, [0.0, 1.0], obs),
        linear_network(rows, [0.0, 0.0, 1.0, 1e30], obs),
        linear_network(one, [0.0, 1.0], 0 * obs),
        linear_network(one, [0.0, 1.0], 1e-40 * obs),
        linear_network(one, [0.0, 1.0], obs[:1]),
        linear_network(np.ones((2, 3000)), [0.0, 1.0], wide),
        linear_network(-np.ones((2, 3000)), [-1e9, 1e9], wide),
    ]
    hidden = [then_relu_and_linear(each, np.ones((3, len(each.tensors["b"])))) for each in linear]
    duels = [dueling_network(1e-4, 0.0), dueling_network(0.0, 1e-4), dueling_network(0.0, 0.0)]
    cancelled = linear_network(np.array([[1.0, -1, 0, 0], [1.0, -1, 0, 1e-9]]), [0.0, 0.0], np.ones((3, 4)))
    return [*linear, *hidden, *duels, then_relu_and_linear(cancelled, np.ones((2, 2)))]


def fits(each: Network) -> bool:
    return "expectation" not in each.ops()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("integers")


@pytest.fixture(scope="module")
def played(folder):
    """All networks in one program, on their recorded states, then on ones out of range and extreme ones."""
    networks = [*filter(fits, [*random_networks(20), *students()]), *strange()]
    texts = written(networks, int8=True)
    obs = []
    for each in networks:
        rows = each.obs.reshape(len(each.obs), -1)
        # Around twice the largest recorded value, where integers end: in steps of a sixth of an integer.
        ends = 2 * np.abs(rows).max(0) * np.linspace(1 - 1e-4, 1 + 1e-4, 41)[:, None]
        taken = [rows, 3 * rows[::-1], ends, -ends, extremes(rows.shape[1])]
        obs.append(np.concatenate(taken).astype(np.float32))
    options = SANITIZERS if has_sanitizers(folder) else ()
    return networks, texts, obs, Together(folder, [text.header for text in texts], *options).run(obs)


def test_c_computes_the_same_integers_as_numpy(played):
    for each, text, obs, (actions, codes, q_values) in zip(*played, strict=True):
        taken = obs[:-NUM_REFUSED]
        expected = text.integers(taken.reshape(-1, *each.shape))
        np.testing.assert_array_equal(q_values[:-NUM_REFUSED], expected)
        np.testing.assert_array_equal(actions[:-NUM_REFUSED], expected.argmax(-1))
        assert not codes[:-NUM_REFUSED].any()
        assert np.isfinite(expected).all()
        assert (actions[-NUM_REFUSED:] == -1).all()
        assert (codes[-NUM_REFUSED:] == -1).all()


def test_integers_are_near_pytorch_on_recorded_states(played):
    num_close = 0
    for each, _, _, (actions, _, q_values) in zip(*played, strict=True):
        expected = each.q_values(each.obs)
        count, scale = len(each.obs), np.abs(expected).max()
        difference = np.abs(q_values[:count] - expected).max()
        cancels = each is played[0][-1]  # 0 or 1e-9, by the order in which a processor adds
        assert difference <= 0.015 * scale + (1e-8 if cancels else 1e-36)
        chosen = np.take_along_axis(expected, actions[:count, None], -1)[:, 0]
        assert (chosen >= expected.max(-1) - 2 * difference - 1e-6 * scale).all()
        num_close += difference <= 0.004 * scale
    assert num_close > 0.7 * len(played[0])


def test_nothing_but_the_input_is_in_floats():
    for each in written([*filter(fits, random_networks(20))], int8=True):
        text = each.header.replace("const float *observation", "").replace("float *q_values", "")
        definitions = re.split(r"^(?=static )", text, flags=re.MULTILINE)
        functions = {found[1]: part for part in definitions if (found := re.match(r"static [^;=]*?n\d+_(\w+)\(", part))}
        assert {"quantize", "rescale", "integers", "act"} <= set(functions)
        with_floats = {name for name, part in functions.items() if re.search(r"\bfloat\b", part)}
        preprocessing = {"normalize", "clip", "one_hot", "pixels"}
        assert with_floats - preprocessing == {"are_finite", "quantize", "q_values"}
        assert "math.h" not in each.header


def test_sums_are_rounded_to_the_nearest_integer_halves_away_from_zero():
    rng = np.random.default_rng(0)
    sums = np.concatenate([rng.integers(-(2**31) + 1, 2**31, 500), [0, 1, -1, 2**31 - 1, -(2**31) + 1]])
    ratios = np.exp2(rng.uniform(-70, 29, len(sums)))
    ratios[:20] = 0.5 ** np.arange(1, 21)  # many halves
    sums[:20] = 2 * rng.integers(-1000, 1000, 20) + 1
    value = Value(1, (1,))
    for total, ratio in zip(sums.tolist(), ratios.tolist(), strict=True):
        multiplier, shift = _multiplier(ratio)
        assert 0 <= multiplier < 2**31
        assert 1 <= shift <= 62
        assert abs(multiplier / 2**shift - ratio) <= max(ratio * 2**-30, 2**-62)
        arrays = {"multiplier": np.array([multiplier]), "shift": np.array([shift])}
        limit = 2**40
        got = _rescaled(IntegerStep("linear", Step({}, (), value), limit, arrays), np.array([total]))[0]
        exact = abs(Fraction(total) * multiplier / 2**shift)
        rounded = int(exact + Fraction(1, 2)) * (1 if total >= 0 else -1)
        assert got == max(-limit, min(limit, rounded))


def test_states_up_to_twice_the_recorded_ones_are_in_range():
    each = linear_network(np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), [0.0, 0.0], states(50))
    program = lower(each.layers, each.tensors, each.shape)
    (network_,) = quantized(program, each.tensors, each.obs, equalizations=[1.0])
    integers = integer_q_values(network_, each.tensors)
    largest = np.abs(each.obs).max(0)
    assert integers(np.array([1.99 * largest]))[0] == pytest.approx(1.99 * largest[:2], rel=1e-3)
    assert integers(np.array([5.0 * largest]))[0] == pytest.approx(2.0 * largest[:2], rel=1e-3)


def test_numbers_of_different_sizes_keep_their_precision():
    """Each input and each output has a unit of its own."""
    sizes = np.array([1e-4, 1.0, 1e4, 1e2])
    each = linear_network(np.diag([1.0, 1e-6, 1e3, 1.0]), np.zeros(4), states(50) * sizes)
    got = c_network(each.layers, each.tensors, each.shape, int8_obs=each.obs).integers(each.obs)
    expected = each.q_values(each.obs)
    assert np.abs(got - expected)[:, 2].max() <= 1e-3 * np.abs(expected[:, 2]).max()
    # Between them, all hidden units count the same.
    hidden = then_relu_and_linear(each, np.array([[1e4, 1e6, 1e-7, 1e-2], [-1e4, 1e6, -1e-7, -1e-2]]))
    got = c_network(hidden.layers, hidden.tensors, hidden.shape, int8_obs=hidden.obs).integers(hidden.obs)
    assert np.abs(got - hidden.q_values(hidden.obs)).max() < 0.03


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([LINEAR_LAYER, {"op": "expectation", "num_atoms": 2, "v_min": 0.0, "v_max": 1.0}],
         "cannot hold the layer 'expectation' in this place. Export it without int8"),
        ([LINEAR_LAYER, {"op": "relu"}], "expects a linear layer at the end"),
        ([{"op": "relu"}, {"op": "normalize", "mean": "b", "std": "b", "clip": None}], "the layer 'normalize' in this"),
        ([{"op": "layer_norm", "weight": "n", "bias": "n", "eps": 1e-5}, {"op": "linear", "weight": "l", "bias": "b"}],
         "a layer_norm of up to 1024 numbers, got 1025"),
    ],
)  # fmt: skip
def test_layers_that_integers_cannot_hold(layers, message):
    tensors = {"w": torch.ones(4, 4), "b": torch.ones(4), "n": torch.ones(1025), "l": torch.ones(4, 1025)}
    shape = (1025,) if "1025" in message else (4,)
    with pytest.raises(ValueError, match=message):
        check_integers(lower(layers, tensors, shape))
    with pytest.raises(ValueError, match=message):
        c_network(layers, tensors, shape, int8_obs=np.ones((3, *shape)))


def test_sums_that_never_fit_are_refused():
    each = linear_network(np.ones((2, 120_000)), [0.0, 1.0], np.ones((2, 120_000)))
    with pytest.raises(ValueError, match="C with int8 cannot add 120000 products in 32 bits"):
        c_network(each.layers, each.tensors, each.shape, int8_obs=each.obs)


def test_c51_is_refused_before_it_plays(tmp_path):
    with pytest.raises(ValueError, match="the layer 'expectation'"):
        export(network(**OTHERS["C51"]), tmp_path / "s.h", format="c", obs=states(3), int8=True)


def test_an_export_in_integers(tmp_path):
    student, obs = network(**MLPS["dueling"]), states(300)
    result = export(student, tmp_path / "s.h", format="c", obs=obs, int8=True)
    assert result.int8
    assert 0 < result.max_difference < 0.02
    assert result.max_difference_allowed is None
    assert result.agreement > 0.97
    assert (tmp_path / "s.h").read_text().startswith("/* rllib_kd C export. Prefix: student. Arithmetic: int8.")
    weights = int(re.search(r"STUDENT_WEIGHT_BYTES (\d+)", (tmp_path / "s.h").read_text())[1])
    assert student.num_parameters < weights < 2 * student.num_parameters


def test_other_integers_are_noticed(tmp_path, monkeypatch):
    real = write.integer_q_values
    monkeypatch.setattr(write, "integer_q_values", lambda *of: lambda obs: np.nextafter(real(*of)(obs), np.float32(9)))
    with pytest.raises(ValueError, match=r"computes other integers than expected\. Nothing was written"):
        export(network(), tmp_path / "s.h", format="c", obs=states(3), int8=True)
    assert list(tmp_path.iterdir()) == []
