"""Files of other libraries are data: nothing in them runs or leaves them, and what is broken is said in one error."""

import base64
import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from rllib_kd import load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.export.export import export
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states
from tests.formats import CHECKPOINTS, mlp, to_bytes
from tests.payloads import Payload, payloads
from tests.teachers.refusals import MATMUL, load_or_refuse, onnx_model, refuse, sb3

NAMES = [name for name in sorted(payloads(CHECKPOINTS)) if name != "in an object array"]


# --- Payloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("entry", ["observation_space", "action_space", "policy_kwargs"])
def test_a_payload_in_the_data_of_sb3(tmp_path, entry, which):
    mark = tmp_path / "mark"
    text = base64.b64encode(pickle.dumps(payloads(mark)[which])).decode()
    refuse(sb3(tmp_path / "a.zip", data={entry: {":type:": "", ":serialized:": text}}))
    assert not mark.exists()


def test_entries_that_say_nothing_of_the_network_are_not_even_read(tmp_path):
    mark = tmp_path / "mark"
    text = base64.b64encode(pickle.dumps(payloads(mark)["os.system"])).decode()
    path = sb3(tmp_path / "a.zip", data={"lr_schedule": {":type:": "", ":serialized:": text}})
    assert load_teacher(path).num_parameters == 58
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("wrap", [pickle.dumps, to_bytes], ids=["a pickle", "of torch"])
def test_a_payload_in_weights(tmp_path, wrap, which):
    mark, payload = tmp_path / "mark", payloads(tmp_path / "mark")[which]
    for value in (payload, {"q_net.q_net.0.weight": payload}):
        refuse(sb3(tmp_path / "a.zip", files={"policy.pth": wrap(value)}))
        (tmp_path / "a.cleanrl_model").write_bytes(wrap(value))
        refuse(tmp_path / "a.cleanrl_model")
    assert not mark.exists()


@pytest.mark.parametrize("which", NAMES)
def test_a_payload_as_vec_normalize(tmp_path, which):
    mark = tmp_path / "mark"
    path = sb3(tmp_path / "a.zip")
    for value in (payloads(mark)[which], {"obs_rms": payloads(mark)[which]}):
        (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(value))
        refuse(path)
    assert not mark.exists()


class Writes(nn.Module):
    """TorchScript that writes a file when it is loaded."""

    path: str

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)


def test_torchscript_is_refused_because_it_writes_files(tmp_path):
    mark = tmp_path / "mark"
    torch.jit.save(torch.jit.script(Writes(str(mark))), tmp_path / "a.pt")
    mark.unlink(missing_ok=True)
    refuse(tmp_path / "a.pt", "TorchScript program")
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.jit.load(tmp_path / "a.pt")
    assert mark.exists()  # or this test would show nothing


class Complex(nn.Module):
    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(obs), 2, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[4]", r"returns complex numbers \(torch\.complex64\), expected real Q-values"),
        ("[" * 100_000, "cannot be read as TorchScript: it nests its parts too deeply"),
        ("[4" + " " * 2**23 + "]", "cannot be read as TorchScript: it has 8388611 bytes, expected at most 8388608"),
        ('{"\x1b[2J": 4}', "cannot be read as TorchScript"),
        ("[NaN]", r"its observation_shape is \[nan\], expected a list of positive integers"),
    ],
    ids=["complex", "deep", "long", "no list", "NaN"],
)
def test_what_trusted_torchscript_says_of_itself(tmp_path, text, match):
    torch.jit.save(
        torch.jit.script(Complex()), tmp_path / "a.pt", _extra_files={"observation_shape.json": text.encode()}
    )
    with pytest.raises(CheckpointError, match=match) as caught:
        load_teacher(tmp_path / "a.pt", trust_checkpoint=True)
    assert str(caught.value).isprintable()


# --- Archives ---------------------------------------------------------------------------------------------------------


def test_nothing_leaves_an_archive(tmp_path):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    names = ["../mark", "../../mark", str(tmp_path / "mark"), "x/../../mark", "policy.pth/../../mark"]
    path = sb3(folder / "a.zip", files=dict.fromkeys(names, b"1"))
    before = sorted(tmp_path.rglob("*"))
    assert load_teacher(path).num_parameters == 58
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "policy.pth"])
def test_an_archive_that_unpacks_to_gigabytes(tmp_path, name):
    path = sb3(tmp_path / "a.zip")
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for other in source.namelist():
            if other != name:
                target.writestr(other, source.read(other))
        with target.open(name, "w", force_zip64=True) as file:
            for _ in range(2**4):
                file.write(bytes(2**23))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(bomb, "would unpack from")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**16  # KiB, half of it


def test_packed_weights_are_refused(tmp_path):
    content = to_bytes({"network.0.weight": torch.zeros(2, 4)})
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(tmp_path / "a", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    refuse(tmp_path / "a", "its parts are packed")


def test_a_weight_that_claims_more_than_it_has(tmp_path):
    weights = {"network.0.weight": torch.zeros(1).expand(10**6, 10**6), "network.0.bias": torch.zeros(2)}
    (tmp_path / "a").write_bytes(to_bytes(weights))
    assert (tmp_path / "a").stat().st_size < 10_000
    refuse(tmp_path / "a", r"its weight 'network\.0\.weight' claims more numbers than there are")


def write_weights(path, content, files=()):
    """As `torch.save()`, with a pickle of our own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"a/data.pkl": content, "a/version": b"3\n", "a/byteorder": b"little", **dict(files)}.items():
            archive.writestr(name, data)


def test_names_that_pytorch_admits_and_weights_do_not_have(tmp_path):
    length = b"\x8a\x05" + (2**36).to_bytes(5, "little")
    write_weights(tmp_path / "a", b"\x80\x02cbuiltins\nbytearray\n" + length + b"\x85R.")
    refuse(tmp_path / "a", r"refused: it calls 'builtins\.bytearray', which weights do not need")


def test_a_second_pickle_that_pytorch_might_read(tmp_path):
    """PyTorch looks for its files without regard to case."""
    write_cleanrl(tmp_path / "a")
    expected = load_teacher(tmp_path / "a").q_values(torch.as_tensor(states(5)))
    with zipfile.ZipFile(tmp_path / "a") as archive:
        (own,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        contents = {name: archive.read(name) for name in archive.namelist()}
    for other, count in ((own.replace("data", "DATA"), 1), ("b/data.pkl", 2)):
        with zipfile.ZipFile(tmp_path / "b", "w") as archive:
            for name, content in {other: pickle.dumps({}, 2), **contents}.items():
                archive.writestr(name, content)
        if count == 1:
            assert torch.equal(load_teacher(tmp_path / "b").q_values(torch.as_tensor(states(5))), expected)
        else:
            refuse(tmp_path / "b", "contains 2 pickles; one of weights was expected")


def test_weights_that_share_their_numbers(tmp_path):
    numbers = torch.zeros(2**20)
    weights = {f"network.{2 * i}.weight": numbers.view(2**10, 2**10) for i in range(1_000)}
    (tmp_path / "a").write_bytes(to_bytes(weights))
    assert (tmp_path / "a").stat().st_size < 2**23
    refuse(tmp_path / "a", "claims more numbers than there are")


@pytest.mark.parametrize("value", [torch.zeros(2, 4).to_sparse(), torch.zeros(2, 4, device="meta"), "text", 3])
def test_weights_that_are_no_plain_tensors(tmp_path, value):
    (tmp_path / "a").write_bytes(to_bytes({"network.0.weight": value}))
    refuse(tmp_path / "a")


# --- Descriptions -----------------------------------------------------------------------------------------------------

LINEAR = {"op": "linear", "weight": "w", "bias": "b"}
SHRINK = [{"op": "conv2d", "weight": "k", "bias": "k1", "stride": [60_001, 60_001]}, {"op": "flatten"}]


@pytest.mark.parametrize(
    "description",
    [
        {"layers": [{"op": "one_hot", "lengths": [10**12]}, LINEAR], "observation_shape": []},
        {"layers": [{"op": "zero_pad", "padding": [10**9] * 4}, LINEAR], "observation_shape": [1, 1, 4]},
        {"layers": [LINEAR], "observation_shape": [10**6, 10**6, 4]},
        {"layers": [LINEAR], "observation_shape": [-4]},
        {
            "layers": [LINEAR, {"op": "expectation", "num_atoms": 10**12, "v_min": 0, "v_max": 1}],
            "observation_shape": [4],
        },
        {"layers": [{"op": "__class__"}], "observation_shape": [4]},
        {"layers": [{"op": "linear", "weight": "nothing", "bias": "b"}], "observation_shape": [4]},
        {"layers": [], "observation_shape": [4, 4]},
        {"layers": 3, "observation_shape": "x"},
        {"layers": [{"op": "dueling", "value": [LINEAR], "advantage": None}], "observation_shape": [4]},
        {"layers": [LINEAR], "observation_shape": [4], "num_actions": 3},
        {"layers": [*[LINEAR, {"op": "relu"}] * 100, LINEAR], "observation_shape": [4]},
        {"layers": [*[{"op": "relu"}] * 10_000, LINEAR], "observation_shape": [4]},
        {
            "layers": [*[{"op": "zero_pad", "padding": [1_000] * 4}] * 30, *SHRINK, LINEAR],
            "observation_shape": [1, 1, 4],
        },
        {"layers": [{"op": "conv2d", "weight": "k", "bias": "k1", "stride": [0, 1]}], "observation_shape": [4, 4, 1]},
        {"layers": [{"op": "normalize", "mean": "b", "std": "b", "clip": 1}, LINEAR], "observation_shape": [2]},
        {"layers": [{"op": "normalize", "mean": "m", "std": "m", "clip": 1}, LINEAR], "observation_shape": [4]},
        {"layers": [{"op": "one_hot", "lengths": [10**6] * 4}, LINEAR], "observation_shape": [4]},
        {"layers": [{"op": "one_hot", "lengths": [2.9, 2.2]}, LINEAR], "observation_shape": [2]},
        {"layers": [{"op": "one_hot", "lengths": "22"}, LINEAR], "observation_shape": [2]},
        {"layers": [LINEAR], "observation_shape": [4], "num_actions": 2.7},
        {"layers": [LINEAR], "observation_shape": [4], "num_actions": "2"},
        {"layers": ["linear"], "observation_shape": [4]},
        {"layers": {"op": "linear"}, "observation_shape": [4]},
        {"layers": [{**LINEAR, "weight": "\x1b[2J\n"}], "observation_shape": [4]},
        {"layers": [{"op": "linear", "weight": "none", "bias": "b0"}, LINEAR], "observation_shape": [4]},
        *(
            {"layers": [{**LINEAR, "weight": "w4", "bias": "b4"}, expectation], "observation_shape": [4]}
            for low, high in ((1.0, 0.0), (1.0, 1.0), (-np.inf, np.inf), (0.0, np.nan))
            for expectation in [{"op": "expectation", "num_atoms": 2, "v_min": low, "v_max": high}]
        ),
        *(
            {"layers": [*start, {"op": "normalize", "mean": "zeros", "std": std, "clip": clip}, LINEAR]}
            | {"observation_shape": [4]}
            for std, clip in (("inf", 1.0), ("nan", 1.0), ("ones", -1.0), ("ones", 0.0), ("ones", np.nan))
            for start in ([], [{"op": "relu"}])
        ),
        *(
            {"layers": [{"op": "layer_norm", "weight": "ones", "bias": "zeros", "eps": eps}, LINEAR]}
            | {"observation_shape": [4]}
            for eps in (-1.0, np.inf, np.nan)
        ),
        *(
            {"layers": [{"op": "pixels", "channels_first": False, "divisor": divisor}, {"op": "flatten"}, LINEAR]}
            | {"observation_shape": [2, 2, 1]}
            for divisor in (0, -1, np.inf, np.nan)
        ),
    ],
)
def test_descriptions_of_what_cannot_be(tmp_path, description):
    weights = {"w": (2, 4), "b": (2,), "m": (1_000, 1, 4), "k": (4, 4, 1, 1), "k1": (4,), "w4": (4, 4), "b4": (4,)}
    weights |= {"none": (0, 4), "b0": (0,)}
    tensors = {name: torch.zeros(shape) for name, shape in weights.items()}
    tensors |= {name: torch.full((4,), float(name)) for name in ("inf", "nan")}
    tensors |= {"ones": torch.ones(4), "zeros": torch.zeros(4)}
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(tensors))
    (tmp_path / "a.json").write_text(json.dumps(description))
    refuse(tmp_path / "a.safetensors", "does not fit")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.bool], ids=str)
def test_weights_of_other_numbers(tmp_path, dtype):
    weights = {"w": torch.ones(2, 4).to(dtype), "b": torch.zeros(2)}
    texts = {"layers": json.dumps([LINEAR]), "observation_shape": "[4]"}
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors", texts)
    refuse(tmp_path / "a.safetensors", "its weight 'w' has (complex numbers|numbers of one byte)")


def test_a_description_that_nests_too_deeply(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(2, 4)}))
    (tmp_path / "a.json").write_text('{"layers": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refuse(tmp_path / "a.safetensors", "cannot be read")


# --- What is broken ---------------------------------------------------------------------------------------------------


def write_cleanrl(path):
    path.write_bytes(to_bytes({f"network.{name}": value for name, value in mlp(4, 8, 2).state_dict().items()}))


def write_vec_normalized(path):
    shutil.copy(CHECKPOINTS / "sb3-2.9" / "dqn.zip", path)


def write_safetensors(path):
    student = Teacher(make_q_module(fcnet_hiddens=[8], dueling=True))
    export(student, path, format="safetensors", obs=states(5))


def write_onnx(path):
    path.write_bytes(onnx_model([MATMUL]))


WRITERS = {
    "sb3": sb3,
    "sb3 itself": write_vec_normalized,
    "cleanrl": write_cleanrl,
    "safetensors": write_safetensors,
    "onnx": write_onnx,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_cut_short_is_one_error(tmp_path, kind):
    path = tmp_path / "a"
    WRITERS[kind](path)
    content = path.read_bytes()
    load_teacher(path)
    for length in (0, 1, 9, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refuse(path)


def test_any_other_file_is_one_error(tmp_path):
    for content in (b"", b"PK", b"hello", b"\x08", b"\x80\x04.", bytes(1000), b"PK\x05\x06" + bytes(18)):
        (tmp_path / "a").write_bytes(content)
        refuse(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"GIF89a")
    refuse(tmp_path / "b", "is not a policy of a known format.*Stable-Baselines3, weights of CleanRL")


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused(tmp_path_factory, kind, data):
    original = tmp_path_factory.getbasetemp() / f"original {kind}"
    if not original.exists():
        WRITERS[kind](original)
    content = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = original.with_name(f"flipped {kind}")
    path.write_bytes(bytes(content))
    load_or_refuse(path)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["data", "policy.pth"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_inside_of_a_zip(tmp_path_factory, which, data):
    original = tmp_path_factory.getbasetemp() / "inside"
    if not original.exists():
        sb3(original)
    with zipfile.ZipFile(original) as archive:
        content = bytearray(archive.read(which))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = original.with_name("flipped inside")
    sb3(path, files={which: bytes(content)})
    load_or_refuse(path)


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_of_vec_normalize(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "vec_normalize"
    if not folder.exists():
        shutil.copytree(CHECKPOINTS / "sb3-2.9", folder)
    content = bytearray((CHECKPOINTS / "sb3-2.9" / "vecnormalize.pkl").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "vecnormalize.pkl").write_bytes(bytes(content))
    load_or_refuse(folder / "dqn.zip")


def test_results_of_tune_that_lead_elsewhere(tmp_path):
    make_q_module().save_to_path(str(tmp_path / "elsewhere" / "checkpoint_000000"))
    trial = tmp_path / "trial"
    make_q_module(seed=1).save_to_path(str(trial / "checkpoint_000000"))
    rows = [{"checkpoint_dir_name": "../elsewhere/checkpoint_000000", "env_runners": {"episode_return_mean": 1e9}}]
    (trial / "result.json").write_text("\n".join([*map(json.dumps, rows), "[" * 100_000, "3", '{"env_runners": []}']))
    assert load_teacher(trial).source == str(trial / "checkpoint_000000")


def test_a_payload_is_one(tmp_path):
    """What the tests above feed does harm where it is unpickled."""
    mark = tmp_path / "mark"
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(to_bytes({"a": Payload(os.system, f"touch {mark}")})), weights_only=False)
    assert mark.exists()
