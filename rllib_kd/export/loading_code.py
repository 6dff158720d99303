"""How a person loads an exported file, in about five lines of each language."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from rllib_kd.export.runners.c_runner import header_field, with_prefix
from rllib_kd.text import filled

_ONNX = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(FILE)
q_values = session.run(["q_values"], {"obs": np.zeros(SHAPE, np.float32)MASK_INPUT})[0]  # [batch, actions]
action = q_values.argmax(-1)[0]"""

_SAFETENSORS = """\
import numpy as np
from rllib_kd.export.runners.numpy_runner import load  # one file, which needs numpy alone: take it with you

q_values = load(FILE)(np.zeros(SHAPE, np.float32)MASK)  # [batch, actions]
action = q_values.argmax(-1)[0]"""

_RECURRENT_ONNX = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(FILE)
state = STATE  # at the beginning of an episode
q_values, *after = session.run(None, {**state, "obs": np.zeros(SHAPE, np.float32)MASK_INPUT})
state = dict(zip(state, after))  # for the next step
action = q_values.argmax(-1)[0]"""

_RECURRENT_SAFETENSORS = """\
import numpy as np
from rllib_kd.export.runners.numpy_runner import load  # with remembering.py beside it, it needs numpy alone

q_values = load(FILE)  # which keeps the state
q_values.begin()  # an episode
action = q_values(np.zeros(SHAPE, np.float32)MASK).argmax(-1)[0]"""

_TORCHSCRIPT = """\
import torch

network = torch.jit.load(FILE)
q_values = network(torch.zeros(SHAPE)MASK)  # [batch, actions]
action = q_values.argmax(-1)[0].item()"""

_PT2 = """\
import torch

network = torch.export.load(FILE).module()
q_values = network(torch.zeros(SHAPE)MASK)  # [batch, actions]
action = q_values.argmax(-1)[0].item()"""

_C = """\
#include "HEADER"

static float observation[P_OBSERVATION_SIZE];
STATE
int choose(void)
{
    return p_act(GIVEN); /* from 0; negative: the observation is not finite */
}"""

_C_WITH_MASK = """\
#include "HEADER"

static float observation[P_OBSERVATION_SIZE];
static unsigned char legal[P_NUM_ACTIONS] = {1}; /* the first action alone */
STATE
int choose(void)
{
    return p_act_legal(GIVEN, legal); /* from 0; negative: not finite, or nothing is legal */
}"""

_C_STATE = "static p_state state; /* zeros, as at the beginning of an episode: p_begin(&state) before the next one */\n"

_C_PROGRAM = """\
cc -std=c99 -O2 -o policy MAIN -lm
head -c BYTES /dev/zero | ./policy -q  # an observation of zeros: its action and its Q-values"""

_C_IN_PYTHON = """\
import numpy as np
from rllib_kd.export.runners.c_runner import load  # compiles the header

q_values = load(FILE)(np.zeros(SHAPE, np.float32)MASK)  # [batch, actions]
action = q_values.argmax(-1)[0]"""

_RECURRENT_C_IN_PYTHON = """\
import numpy as np
from rllib_kd.export.runners.c_runner import load  # compiles the header

q_values = load(FILE)  # which keeps the state
q_values.begin()  # an episode
action = q_values(np.zeros(SHAPE, np.float32)MASK).argmax(-1)[0]"""

_NODE = """\
// In the console of the page: student.qValues([...]), student.act([...]). In node:
const [, code] = require("fs").readFileSync(FILE, "utf8").match(/<script id="student">(.*?)<\\/script>/s);
const [, data] = require("fs").readFileSync(FILE, "utf8").match(/id="data">(.*?)<\\/script>/s);
const student = new Function(`${code}; return makeStudent(JSON.parse(arguments[0]).network);`)(data);
console.log(student.act(ZEROS), student.qValues(ZEROS));"""

_TREE = """\
from runpy import run_path  # runs the file

q_values = run_path(FILE)["q_values"]([0.0] * NUMBERS)  # of one observation, [actions]
action = max(range(len(q_values)), key=q_values.__getitem__)"""

_TREE_WITH_MASK = """\
from runpy import run_path  # runs the file

q_values = run_path(FILE)["q_values"]([0.0] * NUMBERS)  # of one observation, [actions]
legal = [0]  # numbers of the legal actions
action = max(legal, key=q_values.__getitem__)"""

_RECURRENT = {"onnx": _RECURRENT_ONNX, "safetensors": _RECURRENT_SAFETENSORS}

_PYTHON = {
    "onnx": _ONNX,
    "pt2": _PT2,
    "python": _TREE,
    "safetensors": _SAFETENSORS,
    "torchscript": _TORCHSCRIPT,
}


def loading_code(
    path: str,
    format: str,
    shape: Sequence[int],
    *,
    num_masked: int | None = None,
    state: Mapping[str, int] | None = None,
) -> list[tuple[str, str]]:
    """Return code that loads an artifact which lies in the working folder.

    Args:
        path: path of the file, which exists; the code has its name.
        format: its format.
        shape: shape of one observation.
        state: units of each part of the state of a recurrent student, by name; None or empty of another one.
        num_masked: number of actions, if the file takes a mask of legal actions; None: it does not.

    Returns:
        Languages, as Markdown names them, each with its lines.
    """
    name, batch = PurePath(path).name, repr((1, *shape))
    has_mask = num_masked is not None
    is_torch = format in ("pt2", "torchscript")
    ones = f"torch.ones(1, {num_masked})" if is_torch else f"np.ones((1, {num_masked}), np.float32)"
    values = {
        "FILE": repr(name),
        "SHAPE": batch,
        "NUMBERS": str(math.prod(shape)),
        "MASK": f", {ones}" if has_mask else "",  # all actions are legal
        "MASK_INPUT": f', "action_mask": {ones}' if has_mask else "",
    }
    if format == "c":
        return _c_code(path, values, has_mask=has_mask, is_recurrent=bool(state), size=math.prod(shape))
    if state:
        parts = ", ".join(f'"{part}": np.zeros((1, {units}), np.float32)' for part, units in state.items())
        return [("python", filled(_RECURRENT[format], {**values, "STATE": f"{{{parts}}}"}))]
    if format == "web":
        return [("js", filled(_NODE, {"FILE": json.dumps(name), "ZEROS": json.dumps([0] * math.prod(shape))}))]
    code = _TREE_WITH_MASK if has_mask and format == "python" else _PYTHON[format]
    return [("python", filled(code, values))]


def _c_code(
    path: str, values: Mapping[str, str], *, has_mask: bool, is_recurrent: bool, size: int
) -> list[tuple[str, str]]:
    """Return code for a header, for its program and for its runner; `size`: numbers of an observation."""
    prefix = header_field(Path(path).read_text(encoding="utf-8"), "Prefix")
    state = (
        {"STATE": _C_STATE, "GIVEN": "&state, observation"} if is_recurrent else {"STATE": "", "GIVEN": "observation"}
    )
    lines = with_prefix(filled(_C_WITH_MASK if has_mask else _C, state), prefix)
    main, num_bytes = shlex.quote(f"{PurePath(path).stem}_main.c"), 4 * (size + is_recurrent)
    return [
        ("c", filled(lines, {"HEADER": PurePath(path).name})),
        ("bash", filled(_C_PROGRAM, {"MAIN": main, "BYTES": str(num_bytes)})),
        ("python", filled(_RECURRENT_C_IN_PYTHON if is_recurrent else _C_IN_PYTHON, values)),
    ]
