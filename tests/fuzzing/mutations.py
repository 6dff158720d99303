"""Changes to files: blind ones, and such that keep to the grammar of a format."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

#: Integers at which something may break.
_INTEGERS = (0, -1, 1, 2, 255, 2**31 - 1, 2**31, 2**32, 2**61 - 1, 2**63 - 1, 2**63, 10**6, 10**9, 10**12, 10**400)
_TEXTS = (
    "",
    "x",
    "\0",
    "../../etc/passwd",
    "\x1b[2J\n",
    "a" * 10_000,
    "__class__",
    "linear",
    "nan",
    "\ud7ff",
    "9" * 5000,
)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Blind: flipped bytes, cut, spliced, repeated."""
    data = bytearray(content)
    kind = rng.randrange(6)
    if kind <= 1 or not data:
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            if data:
                # Mostly where the structure is: weights take most of the bytes, and may be any.
                place = rng.randrange(min(600, len(data))) if rng.random() < 0.7 else rng.randrange(len(data))
                data[place] = rng.choice((0, 255, rng.randrange(256), data[place] ^ (1 << rng.randrange(8))))
    elif kind == 2:
        del data[rng.randrange(len(data)) :]
    elif kind == 3:
        start, length = rng.randrange(len(data)), rng.choice((1, 4, 16, 200))
        data[(place := rng.randrange(len(data))) : place] = data[start : start + length]
    elif kind == 4:
        start = rng.randrange(len(data))
        del data[start : start + rng.choice((1, 4, 16, 200))]
    else:
        start, length = rng.randrange(len(data)), rng.choice((1, 2, 8))
        data[start:start] = data[start : start + length] * rng.choice((2, 100, 20_000))
    return bytes(data)


# --- Pickles ----------------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _long(value: int) -> bytes:
    data = pickle.encode_long(value)
    return (b"\x8a" + bytes([len(data)]) if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data))) + data


def canaries(marker: str) -> list[bytes]:
    """Calls that make the file, where they are executed."""
    touch = f"open({marker!r}, 'w').close()"
    return [
        b"cos\nsystem\n" + _text(f"touch {marker}") + b"\x85R",
        b"cbuiltins\nexec\n" + _text(touch) + b"\x85R",
        b"cbuiltins\neval\n" + _text(touch) + b"\x85R",
        _text("builtins") + _text("exec") + b"\x93" + _text(touch) + b"\x85R",
        b"(" + _text(touch) + b"ibuiltins\nexec\n",
        b"(cbuiltins\nexec\n" + _text(touch) + b"o",
        b"csubprocess\ncheck_call\n]" + _text("touch") + b"a" + _text(marker) + b"a\x85R",
        b"cpathlib\nPath\n" + _text(marker) + b"\x85R",
    ]


def _bombs(rng: random.Random) -> list[bytes]:
    """Values that take more than their bytes."""
    shared = b"".join(b"r" + struct.pack("<I", 9_000 + i) + b"0(" + _get(9_000 + i) * 2 + b"l" for i in range(60))
    return [
        b"]" + shared,
        b")" + b"2\x86" * 60,  # a pair of pairs of pairs of the same
        b"}" + b")" + b"2\x86" * 60 + b"K\x01s",
        b"]" * rng.choice((50, 5_000, 300_000)),
        b"\x8f" * 200_000 + b"0" * 199_999,
        b"}(" + b"".join(_long(k * (2**61 - 1)) + b"K\x01" for k in range(1, 5_000)) + b"u",
        b"(" + b"c\n\n" * 20_000 + b"l",
        b"(" + b"".join(b"c" + str(i).encode() + b"\nx\n" for i in range(20_000)) + b"l",
        _long(2**4_000),
        b"(" + b"K\x01" * 300_000 + b"t",
        b"B" + struct.pack("<I", 2**20) + bytes(2**20),
    ]


def _get(place: int) -> bytes:
    return b"j" + struct.pack("<I", place)


def mutate_pickle(content: bytes, rng: random.Random, marker: str) -> bytes:
    """At opcodes: removed, repeated, swapped; other arguments; calls and bombs put in or in place of values."""
    try:
        places = [position for _, _, position in pickletools.genops(content)] + [len(content)]
    except Exception:
        return mutate_bytes(content, rng)
    opcodes = [content[a:b] for a, b in itertools.pairwise(places)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(opcodes))
        values = [j for j, opcode in enumerate(opcodes) if opcode[:1] in b"KMJ\x8aGX\x8cNCB]})(\x8f\x88\x89"]
        j = rng.choice(values) if values else i
        match rng.randrange(10):
            case 0:
                del opcodes[i]
            case 1:
                opcodes[i:i] = [opcodes[i]] * rng.choice((1, 3, 1_000, 20_000))
            case 2:
                opcodes[i], opcodes[-2] = opcodes[-2], opcodes[i]
            case 3:
                opcodes[j] = _long(rng.choice(_INTEGERS))
            case 4:
                opcodes[j] = _text(rng.choice(_TEXTS))
            case 5 | 6:
                opcodes[j] = rng.choice(canaries(marker))
            case 7:
                opcodes[j] = rng.choice(_bombs(rng)) or b"N"
            case 8:
                names = [k for k, opcode in enumerate(opcodes) if opcode[:1] in b"ci\x93"]
                if names:
                    opcodes[rng.choice(names)] = rng.choice(
                        (b"cos\nsystem\n", b"cbuiltins\nexec\n", b"cnumpy\ndtype\n")
                    )
            case _:
                opcodes[i] = bytes([rng.randrange(256)]) + opcodes[i][1:]
        if not opcodes:
            return b""
    return b"".join(opcodes)


# --- JSON -------------------------------------------------------------------------------------------------------------


#: What stands in JSON as it is.
_RAWS = ("1e999", "NaN", "-Infinity", "9" * 400, "9" * 5_000, "[" * 500 + "]" * 500, "[" * 100_000, "[[],")


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """At values: others, more of them, deeper ones, none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(content, rng)
    raws: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = json.loads(json.dumps(_mutate_value(value, rng, raws)))  # so that its parts are not shared
    text = json.dumps(value)
    for name, raw in raws.items():
        text = text.replace(f'"{name}"', raw, 3)
    return text.encode()


def _mutate_value(value: Any, rng: random.Random, raws: dict[str, str]) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if rng.random() < 0.1:
            if isinstance(value, dict):
                del value[key]
            else:
                value[key:key] = _times(value[key], rng.choice((1, 3, 1_000, 20_000)))
        else:
            value[key] = _mutate_value(value[key], rng, raws)
        return value
    if isinstance(value, str) and value[:1] in ("[", "{") and rng.random() < 0.8:  # JSON in JSON
        return mutate_json(value.encode(), rng).decode()
    raw = rng.choice(_RAWS)
    name = f"raw {len(raws)}"
    choices: list[Callable[[], Any]] = [
        lambda: rng.choice(_INTEGERS),
        lambda: rng.choice(_TEXTS[:-1]),
        lambda: rng.choice((None, True, False, 0.5, -1.5, [], {})),
        lambda: _times(value, rng.choice((0, 1, 2, 50, 10_000))),
        lambda: {"a": value},
        lambda: raws.setdefault(name, raw) and name,
    ]
    return rng.choice(choices)()


def _times(value: Any, count: int) -> list[Any]:
    """So many of it, as long as they are no more than some megabytes."""
    return [value] * min(count, 1 + 2**21 // len(json.dumps(value)))


# --- Archives ---------------------------------------------------------------------------------------------------------


def mutate_zip(content: bytes, rng: random.Random, mutate: Callable[[str, bytes], bytes]) -> bytes:
    """One of its files, packed in any way, twice, or beside many others."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(files))
        files[i] = files[i][0], mutate(*files[i])
    if rng.random() < 0.1:
        files.append(rng.choice(files))
    if rng.random() < 0.05:
        files += [(f"more/{i}", b"") for i in range(rng.choice((10, 12_000)))]
    if rng.random() < 0.05:
        files[rng.randrange(len(files))] = files[0][0], bytes(rng.choice((10, 2**24)))
    method = rng.choice((zipfile.ZIP_STORED,) * 6 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            # These two take minutes for megabytes that repeat themselves, and a reader sees but the method.
            is_slow = method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2) and len(data) > 2**16
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if is_slow else method)
    return buffer.getvalue()


# --- ONNX -------------------------------------------------------------------------------------------------------------

_OPERATORS = """
    ConstantOfShape Expand Tile Range Einsum MatMul Gemm Gather Resize Pad CumSum OneHot Concat Relu Reshape
    Transpose Softmax Conv MaxPool TopK Loop If Scan Shape Size Slice Unsqueeze Squeeze Identity Cast Add Mul
    StringConcat NonZero RandomNormal LSTM Where Trilu EyeLike Flatten SequenceEmpty Unique Split ReduceSum
"""


def mutate_onnx(content: bytes, rng: random.Random) -> bytes:
    """At nodes, lengths, attributes, weights and versions."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception:
        return mutate_bytes(content, rng)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 4))):
        node = rng.choice(graph.node) if graph.node else None
        names = [tensor.name for tensor in graph.initializer] + [name for each in graph.node for name in each.output]
        names += [value.name for value in graph.input]
        huge = rng.choice([value for value in _INTEGERS if -(2**31) < value < 2**31] + [2**40, 2**62])
        match rng.randrange(14):
            case 0 if node is not None:
                node.op_type = rng.choice(_OPERATORS.split())
            case 1 if node is not None:
                node.domain = rng.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "own"))
            case 2 if node is not None and node.attribute:
                attribute = rng.choice(node.attribute)
                attribute.i = huge
                if attribute.ints:
                    attribute.ints[rng.randrange(len(attribute.ints))] = huge
                attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan")))
            case 3 if node is not None and node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nothing"])
            case 4 if graph.initializer:
                tensor = rng.choice(graph.initializer)
                if tensor.dims:
                    tensor.dims[rng.randrange(len(tensor.dims))] = huge
            case 5 if graph.initializer:
                rng.choice(graph.initializer).data_type = rng.randrange(25)
            case 6 if graph.initializer:
                tensor = rng.choice(graph.initializer)
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=rng.choice(("../secret", "/etc/passwd", "a")))
            case 7 if model.opset_import:
                rng.choice(model.opset_import).version = rng.choice((1, 7, 11, 13, 21, 99, 0, -1))
            case 8:
                model.opset_import.add(domain=rng.choice(("", "ai.onnx", "own")), version=rng.choice((1, 13, 21)))
            case 9:
                model.ir_version = rng.choice((0, 1, 3, 4, 8, 10, 99, 2**40))
            case 10:
                _double(graph, rng, names)
            case 11:
                dims = rng.choice(graph.input).type.tensor_type.shape.dim if graph.input else None
                if dims:
                    rng.choice(dims).dim_value = huge
            case 12 if node is not None:
                graph.node.extend([node] * rng.choice((1, 3, 3_000)))
            case _:
                graph.node.add(op_type=rng.choice(_OPERATORS.split()), input=rng.choices(names, k=2), output=["new"])
    content = model.SerializeToString()
    if rng.random() < 0.1:
        content = content[:4] + b"ORTM" + content[8:]
    return content


def _double(graph: Any, rng: random.Random, names: list[str]) -> None:
    """Nodes of which each makes twice what it takes."""
    last = rng.choice(names)
    for i in range(rng.choice((3, 30))):
        graph.node.add(op_type="Concat", input=[last, last], output=[f"double {i}"])
        graph.node[-1].attribute.add(name="axis", type=2, i=rng.choice((0, 1, -1)))
        last = f"double {i}"
    if graph.node[0].input:
        graph.node[0].input[0] = last if rng.random() < 0.3 else graph.node[0].input[0]
