"""Small real files of each format, how they are changed, and what is done with them."""

from __future__ import annotations

import base64
import dataclasses
import json
import pickle
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import create_empty_array
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.common.frame_stacking import FrameStacking
from ray.rllib.connectors.env_to_module import EnvToModulePipeline

from rllib_kd import load_teacher
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.export.export import export
from rllib_kd.observations.pipeline import Shown
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_OBS, make_q_module, states
from tests.formats import CHECKPOINTS, actor_critic_weights, mlp, nature_cnn, sb3_weights, sb3_zip, serialized, to_bytes
from tests.fuzzing.mutations import mutate_bytes, mutate_json, mutate_onnx, mutate_pickle, mutate_zip

#: Files by their paths below a folder.
Files = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of checkpoint.

    Args:
        path: that is loaded, below the folder.
        seeds: real ones.
        mutate: one of a file's, by its name.
        load: from a path to a teacher.
    """

    path: str
    seeds: list[Files]
    mutate: Callable[[str, bytes, random.Random, str], bytes]
    load: Callable[[str], Teacher] = load_teacher

    def case(self, rng: random.Random, marker: str) -> Files:
        """A changed checkpoint: one of its files, or two."""
        files = dict(rng.choice(self.seeds))
        for _ in range(rng.choice((1, 1, 1, 2))):
            name = rng.choice(sorted(files))
            content = files[name]
            try:
                is_blind = rng.random() < 0.35
                files[name] = mutate_bytes(content, rng) if is_blind else self.mutate(name, content, rng, marker)
            except Exception:  # it has been changed before, so that it has no grammar any more
                files[name] = mutate_bytes(content, rng)
        return files

    def play(self, path: str, counts: Sequence[int] = (2, 1_000)) -> None:
        """Load it, and let it answer to so many observations."""
        teacher = self.load(path)
        for count in counts:
            q = teacher.q_values(torch.zeros(count, *teacher.input_space.shape))
            assert q.shape == (count, teacher.action_space.n)
            try:
                shown = create_empty_array(teacher.observation_space, count, fn=np.zeros)
                view = teacher.start()(Shown(shown, first=np.ones(count, dtype=bool)))
                fits = view.shape[1:] == teacher.input_space.shape
            except Exception:  # connectors may fit no network: nobody can play it, then
                continue
            if fits:
                teacher.q_values(torch.from_numpy(view))


def write(files: Files, folder: Path) -> None:
    """Put files into a folder, which has no others."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(folder: Path) -> Files:
    """All files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- RLlib ------------------------------------------------------------------------------------------------------------

_MODULE = "learner_group/learner/rl_module/default_policy"
_CONNECTORS = "env_runner/env_to_module_connector/class_and_ctor_args.pkl"


def _rllib() -> Format:
    seeds = [read(CHECKPOINTS / "ray-2.40")]
    parts = gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Box(-1, 1, (2, 2)), c=gym.spaces.MultiDiscrete([2]))
    seeds.append(_whole(make_q_module(gym.spaces.Box(-np.inf, np.inf, (9,))), parts, FlattenObservations, {}))
    frames = gym.spaces.Box(0, 1, (8, 8, 1), np.float32)
    stacked = make_q_module(
        gym.spaces.Box(0, 1, (8, 8, 3), np.float32), conv_filters=[[4, 4, 2], [8, 4, 1]], num_atoms=3
    )
    seeds.append(_whole(stacked, frames, FrameStacking, {"num_frames": 3}))

    def load(path: str) -> Teacher:
        checkpoint = open_checkpoint(path)
        checkpoint.environment()
        checkpoint.algorithm()
        checkpoint.to_env()
        return load_teacher(path)

    return Format("case", [{f"case/{name}": data for name, data in seed.items()} for seed in seeds], _in_rllib, load)


def _whole(module: Any, space: gym.Space, connector: Any, kwargs: dict[str, Any]) -> Files:
    """An Algorithm's checkpoint with one connector."""
    with tempfile.TemporaryDirectory() as folder:
        module.save_to_path(f"{folder}/{_MODULE}")
        files = read(Path(folder))
    args = (space, module.action_space)
    recipe = {
        "class": EnvToModulePipeline,
        "ctor_args_and_kwargs": (args, {"connectors": [(connector, (), kwargs)]}),
    }
    config = {"env": "CartPole-v1", "env_config": {"a": [1, 2.0, None]}}
    algorithm = {"class": DQN, "ctor_args_and_kwargs": ((config,), {})}
    return files | {_CONNECTORS: pickle.dumps(recipe), "class_and_ctor_args.pkl": pickle.dumps(algorithm)}


def _in_rllib(name: str, content: bytes, rng: random.Random, marker: str) -> bytes:
    return mutate_json(content, rng) if name.endswith(".json") else mutate_pickle(content, rng, marker)


# --- Tune -------------------------------------------------------------------------------------------------------------


def _tune() -> Format:
    files: Files = {}
    rows = []
    for i in range(2):
        with tempfile.TemporaryDirectory() as folder:
            make_q_module(seed=i, fcnet_hiddens=[8]).save_to_path(folder)
            files |= {f"case/checkpoint_00000{i}/{name}": data for name, data in read(Path(folder)).items()}
        files[f"case/checkpoint_00000{i}/algorithm_state.pkl"] = pickle.dumps({"training_iteration": i + 1})
        returns = {"env_runners": {"episode_return_mean": 10.0 * i}}
        rows.append({"training_iteration": i + 1, **returns, "evaluation": returns, "config": {"lr": [1e-3, [1, 2]]}})
    files["case/result.json"] = "\n".join(map(json.dumps, rows)).encode()
    return Format("case", [files], _in_tune)


def _in_tune(name: str, content: bytes, rng: random.Random, marker: str) -> bytes:
    if name.endswith("result.json"):
        lines = content.split(b"\n")
        i = rng.randrange(len(lines))
        lines[i] = mutate_json(lines[i], rng)
        return b"\n".join(lines * rng.choice((1, 1, 1, 50)))
    return _in_rllib(name, content, rng, marker)


# --- Stable-Baselines3 ------------------------------------------------------------------------------------------------


def _sb3() -> Format:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        kinds = {"policy_kwargs": serialized({"activation_fn": torch.nn.ReLU, "net_arch": [8]})}
        plain = sb3_zip(path, sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2, data=kinds).read_bytes()
        discrete = sb3_zip(path, sb3_weights(mlp(5, 8, 2)), gym.spaces.MultiDiscrete([2, 3]), 2).read_bytes()
        images = sb3_zip(
            path,
            sb3_weights(nature_cnn(1, 3), has_images=True),
            gym.spaces.Box(0, 255, (1, 84, 84), np.uint8),
            3,
        ).read_bytes()
        policy = actor_critic_weights(mlp(4, 8, 2, activation=torch.nn.Tanh))
        actor_critic = sb3_zip(path, policy, CARTPOLE_OBS, 2).read_bytes()
        seen = actor_critic_weights(nature_cnn(1, 3), has_images=True)
        actor_critic_images = sb3_zip(path, seen, gym.spaces.Box(0, 255, (1, 84, 84), np.uint8), 3).read_bytes()
    own = {"case.zip": (CHECKPOINTS / "sb3-2.9" / "dqn.zip").read_bytes()}
    own["vecnormalize.pkl"] = (CHECKPOINTS / "sb3-2.9" / "vecnormalize.pkl").read_bytes()
    others = (plain, discrete, images, actor_critic, actor_critic_images)
    return Format("case.zip", [own, own, *({"case.zip": content} for content in others)], _in_sb3)


def _in_sb3(name: str, content: bytes, rng: random.Random, marker: str) -> bytes:
    if name.endswith(".pkl"):
        return mutate_pickle(content, rng, marker)

    def mutate(inner: str, data: bytes) -> bytes:
        if inner == "data":
            return _in_data(data, rng, marker)
        return _in_weights(inner, data, rng, marker) if data.startswith(b"PK") else mutate_bytes(data, rng)

    return mutate_zip(content, rng, mutate)


def _in_data(content: bytes, rng: random.Random, marker: str) -> bytes:
    """The JSON of Stable-Baselines3, or a pickle in it."""
    data = json.loads(content)
    entries = [key for key, entry in data.items() if isinstance(entry, dict) and ":serialized:" in entry]
    if not entries or rng.random() < 0.4:
        return mutate_json(content, rng)
    entry = data[rng.choice(entries)]
    pickled = base64.b64decode(entry[":serialized:"])
    entry[":serialized:"] = base64.b64encode(mutate_pickle(pickled, rng, marker)).decode()
    return json.dumps(data).encode()


def _in_weights(name: str, content: bytes, rng: random.Random, marker: str) -> bytes:
    """A file of PyTorch's, which is a zip archive."""

    def mutate(inner: str, data: bytes) -> bytes:
        return mutate_pickle(data, rng, marker) if inner.endswith(".pkl") else mutate_bytes(data, rng)

    return mutate_zip(content, rng, mutate)


# --- CleanRL, safetensors, TorchScript, ONNX --------------------------------------------------------------------------


def _cleanrl() -> Format:
    networks = [mlp(4, 8, 8, 2), nature_cnn(1, 3)]
    contents = [to_bytes({f"network.{key}": value for key, value in net.state_dict().items()}) for net in networks]
    atoms = {"atoms": torch.linspace(-1, 1, 3), **{f"network.{k}": v for k, v in mlp(4, 8, 6).state_dict().items()}}
    contents.append(to_bytes({"model_weights": atoms, "args": {"seed": 1}}))
    parts = {"actor": mlp(4, 8, 2), "critic": mlp(4, 8, 1)}
    contents.append(to_bytes({f"{part}.{k}": v for part, net in parts.items() for k, v in net.state_dict().items()}))
    return Format("case.cleanrl_model", [{"case.cleanrl_model": content} for content in contents], _in_weights)


def _plain() -> Format:
    chain = {
        f"fc{i}.{kind}": value
        for i, net in enumerate((mlp(4, 8), mlp(8, 8), mlp(8, 2)))
        for kind, value in (("weight", net[0].weight.detach()), ("bias", net[0].bias.detach()))
    }
    streams = {"fc.weight": torch.ones(8, 4), "value.weight": torch.ones(1, 8), "advantage.weight": torch.ones(2, 8)}
    described = [{"activation": "relu", "outputs": "logits"}, {"activation": "tanh", "entry": "net", "prefix": "fc"}]
    described += [{"activation": "relu"}, {"activation": "relu", "order": ["fc0", "fc1", "fc2"]}]
    contents = [chain, {"net": chain, "epoch": 3}, streams, chain]
    return Format(
        "case.pth",
        [
            {"case.pth": to_bytes(content), "case.json": json.dumps(description).encode()}
            for content, description in zip(contents, described, strict=True)
        ],
        _in_torchscript,
    )


def _students() -> list[Teacher]:
    modules = [make_q_module(fcnet_hiddens=[8], dueling=True), make_q_module(fcnet_hiddens=[8], num_atoms=3)]
    images = gym.spaces.Box(0, 1, (8, 8, 3), np.float32)
    modules.append(make_q_module(images, conv_filters=[[4, 4, 2], [8, 4, 1]]))
    return [Teacher(module) for module in modules]


def _exported(format: str, name: str) -> list[Files]:
    files = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for student in _students():
            path = Path(folder) / name
            export(student, path, format=format, obs=states(5, student.observation_space))
            files.append({name: path.read_bytes()})
    return files


def _safetensors() -> Format:
    import safetensors.torch

    seeds = _exported("safetensors", "case.safetensors")
    layers = [
        {"op": "zero_pad", "padding": [1, 1, 1, 1]},
        {"op": "conv2d", "weight": "k", "bias": "c", "stride": [2, 2]},
    ]
    layers += [{"op": "relu"}, {"op": "flatten"}, {"op": "linear", "weight": "w", "bias": "b"}]
    tensors = {"k": torch.ones(2, 3, 2, 2), "c": torch.ones(2), "w": torch.ones(2, 18), "b": torch.ones(2)}
    description = json.dumps({"layers": layers, "observation_shape": [4, 4, 3], "num_actions": 2}).encode()
    seeds += [{"case.safetensors": safetensors.torch.save(tensors), "case.json": description}] * 3
    one_hot = [{"op": "one_hot", "lengths": [2, 3]}, {"op": "linear", "weight": "w", "bias": "b"}]
    tensors = {"w": torch.ones(2, 5), "b": torch.ones(2)}
    description = json.dumps({"layers": one_hot, "observation_shape": [2]}).encode()
    seeds += [{"case.safetensors": safetensors.torch.save(tensors), "case.json": description}] * 2
    return Format("case.safetensors", seeds, _in_safetensors)


def _in_safetensors(name: str, content: bytes, rng: random.Random, marker: str) -> bytes:
    if name.endswith(".json"):
        return mutate_json(content, rng)
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end]
    metadata = json.loads(header).get("__metadata__")
    if metadata and rng.random() < 0.6:
        key = rng.choice(sorted(metadata))
        changed = {key: mutate_json(metadata[key].encode(), rng).decode()}
        header = json.dumps({**json.loads(header), "__metadata__": metadata | changed}).encode()
    else:
        header = mutate_json(header, rng)
    length = len(header) if rng.random() < 0.95 else rng.choice((0, 2**63, 2**64 - 1, 10**8))
    return length.to_bytes(8, "little") + header + content[end:]


def _onnx() -> Format:
    return Format("case.onnx", _exported("onnx", "case.onnx"), lambda _n, data, rng, _m: mutate_onnx(data, rng))


def _torchscript() -> Format:
    seeds = [{**files, "case.json": b'{"observation_shape": [4]}'} for files in _exported("torchscript", "case.pt")]
    return Format("case.pt", seeds, _in_torchscript)


def _in_torchscript(name: str, content: bytes, rng: random.Random, marker: str) -> bytes:
    return mutate_json(content, rng) if name.endswith(".json") else _in_weights(name, content, rng, marker)


#: By name.
FORMATS: dict[str, Callable[[], Format]] = {
    "rllib": _rllib,
    "tune": _tune,
    "sb3": _sb3,
    "cleanrl": _cleanrl,
    "plain": _plain,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torchscript": _torchscript,
}
