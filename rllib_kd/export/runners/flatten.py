"""Makes the vector that an exported student takes of an observation with several parts or texts; with numpy alone.

Observations that are one array of numbers need none of this: artifacts take them as the environment shows them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_KEY = "observation_parts"


def parts_in(path: str) -> list[dict[str, Any]] | None:
    """Return the parts of an observation, as an artifact records them; None if it takes arrays as they are.

    For ONNX this needs onnxruntime.
    """
    data = Path(path).read_bytes()
    if data[8:9] == b"{":  # safetensors; first, since the length of its header may begin as a zip file does
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found = [text for name, text in header.get("__metadata__", {}).items() if name == _KEY]
    elif data.startswith(b"PK"):  # .pt2, TorchScript
        with zipfile.ZipFile(path) as archive:
            found = [archive.read(name).decode() for name in archive.namelist() if name.endswith(f"/{_KEY}")]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = [text for name, text in session.get_modelmeta().custom_metadata_map.items() if name == _KEY]
    return json.loads(found[0]) if found else None


def flatten(parts: list[dict[str, Any]], obs: Any) -> np.ndarray:
    """Return one observation of the environment as the artifact's input `[size]`, float32."""
    vectors = []
    for part in parts:
        value = obs
        for key in part["path"]:
            value = value[key]
        if part["op"] == "text":
            vectors.append(text_vector(value))
        elif part["op"] == "one_hot":
            numbers = np.ravel(value).astype(int) - part["starts"]
            vectors += [number == np.arange(length) for number, length in zip(numbers, part["lengths"], strict=True)]
        elif part["op"] == "image":
            image = np.asarray(value, np.float32)
            last = image if list(image.shape) == part["shape"] else np.moveaxis(image, 0, -1)  # its channels
            vectors.append(np.ravel(last) / np.float32(part["divisor"]))
        else:
            vectors.append(np.ravel(value))
    return np.concatenate([np.asarray(vector, np.float32) for vector in vectors])


def text_vector(text: str) -> np.ndarray:
    """Return a text as 64 numbers, of its words and of its pairs of neighbouring words.

    The bits of the hash of each, as +1 and -1, are added, and divided by the root of their number.
    """
    words = text.split()
    terms = words + [f"{word} {following}" for word, following in itertools.pairwise(words)]
    hashes = b"".join(hashlib.sha256(term.encode("utf-8", "surrogatepass")).digest()[:8] for term in terms)
    bits = np.unpackbits(np.frombuffer(hashes, np.uint8)).reshape(-1, 64)
    return (bits * 2.0 - 1.0).sum(0) / max(1, len(terms)) ** 0.5
