"""A checkpoint is data: whatever is put into one, nothing of it runs."""

import contextlib
import copyreg
import io
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from rllib_kd.checkpoints.pickles import CheckpointError, read_pickle
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.checkpoints.values import build
from rllib_kd.evaluation.comparing import evaluate
from tests.checkpoints.files import FILES, read_all, replace_statistics, there_and_back
from tests.payloads import Payload, payloads
from tests.rllib_checkpoints import build_dqn


@pytest.mark.parametrize("env", ["antigravity:CartPole-v1", "antigravity.Env"])
def test_an_environments_name_imports_nothing(checkpoint, env):
    config = {"env": env, "env_config": {}}
    (checkpoint / FILES["algorithm"]).write_bytes(pickle.dumps({"ctor_args_and_kwargs": ((config,), {})}))
    with pytest.raises(ValueError, match="names a module to import"):
        evaluate(str(checkpoint), num_episodes=1)
    assert "antigravity" not in sys.modules


NAMES = sorted(payloads(Path()))


@pytest.mark.parametrize(
    "which",
    [
        *("os.system", "eval", "exec", "subprocess", "in a state", "in a list", "in a space", "in an object array"),
        *("a dotted name", "a partial", "in metadata"),
    ],
)
def test_the_payloads_would_do_harm(which, tmp_path):
    mark = tmp_path / "mark"
    with contextlib.suppress(Exception):  # some fail when it is done
        pickle.loads(pickle.dumps(payloads(mark)[which]))
    assert mark.exists()


@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_a_payload_runs_nothing(checkpoint, tmp_path, file, which):
    mark = tmp_path / "mark"
    (checkpoint / FILES[file]).write_bytes(pickle.dumps(payloads(mark)[which]))
    if file == "algorithm":  # it is asked for no more than the name of an environment
        assert open_checkpoint(str(checkpoint)).environment() == (None, {})
        with pytest.raises(ValueError, match="does not record its environment"):
            evaluate(str(checkpoint), num_episodes=1)
    else:
        with pytest.raises(CheckpointError):
            read_all(checkpoint)
        with pytest.raises(ValueError, match=checkpoint.name):
            evaluate(str(checkpoint), "CartPole-v1", num_episodes=1)
    assert not mark.exists()


@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("key", ["fcnet_hiddens", "fcnet_activation", "something_new"])
def test_a_payload_in_a_valid_model_config_runs_nothing_and_is_named(checkpoint, tmp_path, key, which):
    mark, payload = tmp_path / "mark", payloads(tmp_path / "mark")[which]
    path = checkpoint / FILES["module"]
    content = pickle.loads(path.read_bytes())
    content["ctor_args_and_kwargs"][1]["model_config"][key] = payload
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        read_all(checkpoint)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_what_is_refused_is_named_with_the_way_out(checkpoint, tmp_path):
    (checkpoint / FILES["weights"]).write_bytes(pickle.dumps(Payload(os.system, "true")))
    with pytest.raises(CheckpointError, match=r"posix\.system.*trust_checkpoint=True \(--trust-checkpoint\)"):
        read_all(checkpoint)


@pytest.mark.parametrize(
    "name",
    [("evil", "DefaultDQNTorchRLModule"), ("ray.rllib.core", "os.system"), ("os", "path.join"), ("os", "system")],
)
def test_a_class_by_another_name_is_refused(checkpoint, name):
    path = checkpoint / FILES["module"]
    content = pickle.loads(path.read_bytes())
    kwargs = content["ctor_args_and_kwargs"][1]
    head = pickle.dumps({"ctor_args_and_kwargs": ((), kwargs), "class": "CLASS"}, 3)
    text = b"X\x05\0\0\0CLASS"
    assert head.count(text) == 1
    module, attribute = (bytes(part, "ascii") for part in name)
    as_global = b"c" + module + b"\n" + attribute + b"\n"
    path.write_bytes(head.replace(text, as_global))
    with pytest.raises(CheckpointError, match=r"refused: its RLModule .* is a custom class"):
        read_all(checkpoint)


def test_the_statistics_of_a_filter_are_no_pickle(checkpoint, tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(os.system, f"touch {mark}")], dtype=object), allow_pickle=True)
    replace_statistics(checkpoint, buffer.getvalue())
    with pytest.raises(CheckpointError):
        read_all(checkpoint)
    assert not mark.exists()


def test_a_class_that_this_process_has_met_by_its_number(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setitem(copyreg._extension_cache, 240, os.system)
    text = f"touch {mark}".encode()
    content = b"\x80\x04\x82\xf0X" + struct.pack("<I", len(text)) + text + b"\x85R."
    with pytest.raises(CheckpointError, match="extension code 240"):
        read_pickle(io.BytesIO(content), "it")
    pickle._loads(content)
    assert mark.exists()  # otherwise it would have run


@pytest.mark.parametrize("kind", [np.matrix, np.ma.MaskedArray, np.recarray])
def test_arrays_of_other_classes_are_refused(kind):
    with pytest.raises(CheckpointError, match=kind.__name__ if kind is not np.ma.MaskedArray else "_mareconstruct"):
        there_and_back(np.arange(4.0).reshape(2, 2).view(kind))


def test_messages_are_one_line_without_control_characters():
    name = "os\x1b[2J\nAll is well.\r" + "x" * 10**6
    content = b"\x80\x04X" + struct.pack("<I", len(name)) + name.encode() + b"\x8c\x01a\x93)R."
    with pytest.raises(CheckpointError, match=r"refused: it calls 'os.\[2J All is well. x+ \.\.\. .*") as caught:
        build(read_pickle(io.BytesIO(content), "it"), "it")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_100


def test_trusting_is_a_word_of_its_own(checkpoint, tmp_path):
    mark = tmp_path / "mark"
    (checkpoint / FILES["module"]).write_bytes(pickle.dumps(payloads(mark)["os.system"]))
    with contextlib.suppress(Exception):  # it is no module, after all
        open_checkpoint(str(checkpoint), trust_checkpoint=True).load_module()
    assert mark.exists()


def test_connectors_of_ones_own_need_trust(cluster, tmp_path):
    algo = build_dqn("own")
    path = algo.save_to_path(str(tmp_path / "algo"))
    running = evaluate(algo, num_episodes=3, seed=3).returns
    algo.stop()
    with pytest.raises(CheckpointError, match=r"Doubled.*trust_checkpoint=True"):
        read_all(path)
    assert evaluate(path, num_episodes=3, seed=3, trust_checkpoint=True).returns == running
