"""Small networks of every kind of layer, many of which are one C program."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from rllib_kd.export.c.write import CNetworkText, c_network
from rllib_kd.export.formats import describe, input_shape
from rllib_kd.export.runners import c_runner
from rllib_kd.networks.layers import ELEMENTWISE, build_layers
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import states
from tests.export.students import LINEAR, MLPS, OTHERS, PIPELINES, linear_student, network

SANITIZERS = ("-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

HOSTILE = 'evil"; */ int main(void) { return 7; } /*\n#error \\'


@dataclass
class Network:
    layers: list
    tensors: dict[str, torch.Tensor]
    shape: tuple[int, ...]
    obs: np.ndarray

    def q_values(self, obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return build_layers(self.layers, self.tensors)(torch.as_tensor(obs)).numpy()

    def ops(self) -> set[str]:
        nested = [layer[name] for layer in self.layers for name in ("value", "advantage") if name in layer]
        return {layer["op"] for layers in (self.layers, *nested) for layer in layers}


class Maker:
    """Random networks: a vector or an image comes in, a few layers follow, and two to four Q-values come out."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, torch.Tensor] = {}

    def weight(self, *shape: int) -> str:
        name = f"{HOSTILE}.{len(self.tensors)}"
        fan_in = max(1.0, float(np.prod(shape[1:])))
        self.tensors[name] = torch.from_numpy((self.rng.normal(size=shape) / fan_in**0.5).astype(np.float32))
        return name

    def linear(self, inputs: int, outputs: int) -> dict:
        return {"op": "linear", "weight": self.weight(outputs, inputs), "bias": self.weight(outputs)}

    def activation(self) -> dict:
        return {"op": str(self.rng.choice(list(ELEMENTWISE)))}

    def normalize(self, *shape: int) -> dict:
        std = self.weight(*shape)
        self.tensors[std] = self.tensors[std].abs() + 0.3
        return {"op": "normalize", "mean": self.weight(*shape), "std": std, "clip": self.rng.choice([None, 1.5])}

    def vectors(self) -> tuple[list, tuple[int, ...], int]:
        """First layers, shape of the observation, and how many numbers come out."""
        kind = self.rng.integers(4)
        size = int(self.rng.integers(1, 9))
        if kind == 0:
            return [], (size,), size
        if kind == 1:
            return [self.normalize(size)], (size,), size
        if kind == 2:
            lengths = self.rng.integers(1, 5, size=size).tolist()
            total = sum(lengths)
            last = [self.normalize(total)] if self.rng.random() < 0.5 else []
            return [{"op": "one_hot", "lengths": lengths}, *last], (size,), total
        return [{"op": "flatten"}], (2, size), 2 * size

    def images(self) -> tuple[list, tuple[int, ...], int]:
        height, width, channels = (int(n) for n in self.rng.integers((5, 6, 1), (9, 10, 4)))
        first = bool(self.rng.random() < 0.5)
        layers: list[dict] = [
            {"op": "pixels", "channels_first": first, "divisor": float(self.rng.choice([1.0, 255.0]))}
        ]
        shape = (channels, height, width) if first else (height, width, channels)
        for _ in range(self.rng.integers(1, 3)):
            left, right, top, bottom = padding = self.rng.integers(0, 3, size=4).tolist()
            filters, kernel, stride = (
                3,
                self.rng.integers(1, 4, size=2).tolist(),
                self.rng.integers(1, 3, size=2).tolist(),
            )
            weight, bias = self.weight(filters, channels, *kernel), self.weight(filters)
            layers += [{"op": "zero_pad", "padding": padding}] if any(padding) else []
            layers += [{"op": "conv2d", "weight": weight, "bias": bias, "stride": stride}, self.activation()]
            height = (height + top + bottom - kernel[0]) // stride[0] + 1
            width = (width + left + right - kernel[1]) // stride[1] + 1
            channels = filters
        return [*layers, {"op": "flatten"}], shape, height * width * channels

    def hidden(self, inputs: int) -> tuple[list, int]:
        layers: list[dict] = []
        for _ in range(self.rng.integers(0, 3)):
            units = int(self.rng.integers(1, 9))
            layers.append(self.linear(inputs, units))
            if self.rng.random() < 0.4:
                norm = {"op": "layer_norm", "weight": self.weight(units), "bias": self.weight(units), "eps": 1e-5}
                layers.append(norm)
            layers.append(self.activation())
            inputs = units
        return layers, inputs

    def network(self) -> Network:
        layers, shape, size = self.images() if self.rng.random() < 0.3 else self.vectors()
        is_image, is_discrete = len(shape) == 3, any(layer["op"] == "one_hot" for layer in layers)
        hidden, size = self.hidden(size)
        layers = [*layers, *hidden]
        actions, head = int(self.rng.integers(2, 5)), self.rng.integers(3)
        if head == 0:
            layers.append(self.linear(size, actions))
        elif head == 1:
            (value, value_size), (advantage, advantage_size) = self.hidden(size), self.hidden(size)
            streams = {
                "value": [*value, self.linear(value_size, 1)],
                "advantage": [*advantage, self.linear(advantage_size, actions)],
            }
            layers.append({"op": "dueling"} | streams)
        else:
            atoms = int(self.rng.integers(2, 6))
            layers += [self.linear(size, actions * atoms)]
            layers += [{"op": "expectation", "num_atoms": atoms, "v_min": -3.0, "v_max": 7.0}]
        obs = self.rng.normal(size=(20, *shape)).astype(np.float32)
        obs = np.rint(2 * np.abs(obs)) if is_discrete else 100 * np.abs(obs) if is_image else obs
        return Network(layers, self.tensors, shape, obs)


def of_student(student: Teacher, obs: np.ndarray) -> Network:
    return Network(*describe(student), input_shape(student), np.asarray(obs, np.float32))


@cache
def students() -> list[Network]:
    """Every network of RLlib's that the other formats are tested with, and what stands before one."""
    found = []
    for name in [*LINEAR, *MLPS, *OTHERS]:
        if name != "cnn":  # large; its layers are those of the padded one
            student = linear_student(LINEAR[name]) if name in LINEAR else network(**(MLPS | OTHERS)[name])
            found.append(of_student(student, states(20, student.observation_space)))
    for shown_space, input_space, stages in PIPELINES.values():
        student = Teacher(network(input_space).module, pipeline=ObservationPipeline(shown_space, stages))
        shown_space.seed(0)
        obs = np.clip(np.stack([shown_space.sample() for _ in range(20)]), -3, 3)
        found.append(of_student(student, obs))
    return found


def tied() -> Network:
    """Two equal Q-values, the largest."""
    tensors = {"w": torch.zeros(4, 3), "b": torch.tensor([0.5, 1.0, 1.0, 0.0])}
    return Network([{"op": "linear", "weight": "w", "bias": "b"}], tensors, (3,), states(5)[:, :3])


@cache
def random_networks(count: int, seed: int = 0) -> list[Network]:
    return [Maker(1000 * seed + i).network() for i in range(count)]


_PROGRAM = """\
#include <stdio.h>
{includes}
{functions}
int main(void)
{{
    {calls}
    return 0;
}}
"""

_FUNCTION = """\
static int play_{name}(int count)
{{
    float observation[{macro}_OBSERVATION_SIZE], q_values[{macro}_NUM_ACTIONS] = {{0}};
    while (count-- > 0) {{
        int i, code;
        if (fread(observation, sizeof observation, 1, stdin) != 1)
            return 1;
        code = {name}_q_values(observation, q_values);
        printf("%d %d", {name}_act(observation), code);
        for (i = 0; i < {macro}_NUM_ACTIONS; i++)
            printf(" %.9g", (double)q_values[i]);
        printf("\\n");
    }}
    return 0;
}}
"""

_RECURRENT_FUNCTION = """\
static int play_{name}(int count)
{{
    float observation[{macro}_OBSERVATION_SIZE], q_values[{macro}_NUM_ACTIONS] = {{0}};
    {name}_state state, copy;
    {name}_begin(&state);
    while (count-- > 0) {{
        int i, code, action;
        if (fread(observation, sizeof observation, 1, stdin) != 1)
            return 1;
        copy = state;
        code = {name}_q_values(count % 2 ? &state : &copy, observation, q_values);
        action = {name}_act(count % 2 ? &copy : &state, observation);
        for (i = 0; i < {macro}_STATE_SIZE; i++)
            if (!(copy.numbers[i] == state.numbers[i]))
                return 1;
        printf("%d %d", action, code);
        for (i = 0; i < {macro}_NUM_ACTIONS; i++)
            printf(" %.9g", (double)q_values[i]);
        printf("\\n");
    }}
    return 0;
}}
"""


class Together:
    """Networks in one C program, each with a prefix of its own; recurrent ones play one episode."""

    def __init__(self, folder: Path, headers: Sequence[str], *options: str):
        names = [f"n{i}" for i in range(len(headers))]
        for name, text in zip(names, headers, strict=True):
            (folder / f"{name}.h").write_text(text)
        self._folder, self._names = folder, names
        templates = [_RECURRENT_FUNCTION if c_runner.state_sizes(text) else _FUNCTION for text in headers]
        functions = "".join(
            template.format(name=name, macro=name.upper()) for template, name in zip(templates, names, strict=True)
        )
        self._source = functions, "".join(f'#include "{name}.h"\n' for name in names)
        self._options = options

    def run(self, observations: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each network: actions, codes and Q-values."""
        functions, includes = self._source
        calls = "\n    ".join(
            f"if (play_{name}({len(obs)})) return 1;" for name, obs in zip(self._names, observations, strict=True)
        )
        source = self._folder / "all.c"
        source.write_text(_PROGRAM.format(includes=includes, functions=functions, calls=calls))
        c_runner.build(source, self._folder / "all", "-O0", *self._options)
        stdin = b"".join(np.asarray(obs, np.float32).tobytes() for obs in observations)
        done = subprocess.run([self._folder / "all"], input=stdin, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        lines = iter(done.stdout.decode().splitlines())
        results = []
        for obs in observations:
            rows = [next(lines).split() for _ in obs]
            codes = np.array([row[:2] for row in rows], int)
            results.append((codes[:, 0], codes[:, 1], np.array([row[2:] for row in rows], np.float32)))
        return results


@cache
def has_sanitizers(folder: Path) -> bool:
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    try:
        c_runner.build(folder / "empty.c", folder / "empty", *SANITIZERS)
    except ValueError:
        return False
    return subprocess.run([folder / "empty"], capture_output=True).returncode == 0


def written(networks: Sequence[Network], *, int8: bool = False) -> list[CNetworkText]:
    return [
        c_network(each.layers, each.tensors, each.shape, prefix=f"n{i}", int8_obs=each.obs if int8 else None)
        for i, each in enumerate(networks)
    ]


def headers(networks: Sequence[Network]) -> list[str]:
    return [each.header for each in written(networks)]
