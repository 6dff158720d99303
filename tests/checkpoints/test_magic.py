"""Files are recognised by their first bytes."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from rllib_kd.checkpoints.magic import file_kind, is_legacy_torch
from rllib_kd.export.runners.flatten import parts_in


def zip_file(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("{", b"{" * 100)
    return file.getvalue()


def safetensors(header: bytes, **metadata: str) -> bytes:
    """Return a file whose JSON header has a length with these first bytes."""
    content = save({"q": np.zeros(2, np.float32)}, metadata={"note": "", **metadata})
    length = int.from_bytes(header.ljust(8, b"\0"), "little")
    padding = length - int.from_bytes(content[:8], "little")
    return save({"q": np.zeros(2, np.float32)}, metadata={"note": "x" * padding, **metadata})


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_files(method):
    assert file_kind(zip_file(method)[:9], 1_000) == "zip"


@pytest.mark.parametrize("header", [b"\xe8\x03", b"PK", b"\x08\x08"])
def test_safetensors_have_headers_of_any_length(header):
    content = safetensors(header)
    assert content.startswith(header)
    assert file_kind(content[:9], len(content)) == "safetensors"


def test_the_runner_without_this_package_recognises_it_likewise(tmp_path):
    parts = [{"path": ["a"], "op": "array"}]
    (tmp_path / "student").write_bytes(safetensors(b"PK", observation_parts=json.dumps(parts)))
    assert parts_in(str(tmp_path / "student")) == parts


def test_a_header_longer_than_its_file_is_none():
    content = safetensors(b"\xe8\x03")
    assert file_kind(content[:9], 1_000) is None


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"import torch\n"])
def test_other_files_are_of_no_kind(content):
    assert file_kind(content, len(content)) is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_pytorch_before_1_6(protocol):
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert is_legacy_torch(file.getvalue()[:64])
    assert not is_legacy_torch(pickle.dumps({"a": 1}, protocol))
