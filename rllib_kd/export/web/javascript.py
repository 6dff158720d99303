"""The student of a page, run by node, or with numpy where there is no node."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from contextlib import suppress
from typing import Any

import numpy as np

from rllib_kd.export.failures import ProgramFailedError
from rllib_kd.export.runners import numpy_runner
from rllib_kd.export.web.network import decoded
from rllib_kd.export.web.page import data_of, student_code_of

#: Reads the code and the network, then observations with masks or null, one JSON a line; prints Q-values likewise.
#: JSON has no infinite numbers: -Infinity, of illegal actions, is a text.
_DRIVER = """
const lines = require("readline").createInterface({ input: process.stdin, crlfDelay: Infinity });
let student;
lines.on("line", (line) => {
  const asked = JSON.parse(line);
  if (student === undefined) {
    const given = { network: asked.network, Buffer, atob: typeof atob === "undefined" ? undefined : atob };
    student = require("vm").runInNewContext(asked.code + "; makeStudent(network)", given);
    return;
  }
  const found = asked.obs.map((observation, i) => student.qValues(observation, asked.masks && asked.masks[i]));
  console.log(JSON.stringify(found, (_, value) => (value === -Infinity ? "-Infinity" : value)));
});
"""


def node() -> str | None:
    """Return the path of node; None if it is not installed."""
    return shutil.which("node")


class PageStudent:
    """The function from observations `[B, ...]`, and masks, to Q-values `[B, A]` of a page just written; a context.

    Args:
        text: the page.
    """

    def __init__(self, text: str):
        self._network = data_of(text)["network"]
        self._process: subprocess.Popen[str] | None = None
        if (program := node()) is not None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self._process = subprocess.Popen([program, "-e", _DRIVER], encoding="utf-8", **pipes)
            self._send({"code": student_code_of(text), "network": self._network})

    def __enter__(self) -> PageStudent:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    @property
    def runs_javascript(self) -> bool:
        """Return whether node runs it; otherwise numpy computes with the page's weights."""
        return self._process is not None

    def __call__(self, obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        """Return Q-values `[B, A]` of observations `[B, ...]`; −inf where `action_mask` `[B, A]` is False."""
        obs = np.asarray(obs, np.float32).reshape(len(obs), -1)
        if self._process is None:
            arrays = {name: decoded(text) for name, text in self._network["arrays"].items()}
            q = numpy_runner.run(self._network["layers"], _shaped(self._network["layers"], arrays), obs)
            return q if action_mask is None else np.where(action_mask, q, np.float32(-np.inf))
        assert self._process.stdout is not None
        self._send({"obs": obs.tolist(), "masks": None if action_mask is None else action_mask.tolist()})
        line = self._process.stdout.readline()
        if not line:
            raise ProgramFailedError("node", self._process.stderr.read() if self._process.stderr is not None else "")
        # null: it is not finite.
        return np.array([[math.nan if q is None else float(q) for q in row] for row in json.loads(line)], np.float32)

    def _send(self, content: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and what it has printed tells why
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()


def _shaped(layers: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with matrices as such: weights of linear layers `[outputs, inputs]`, and a tree's values."""
    shaped = dict(arrays)
    for layer in layers:
        if layer["op"] == "linear":
            shaped[layer["weight"]] = arrays[layer["weight"]].reshape(len(arrays[layer["bias"]]), -1)
        elif layer["op"] == "tree":
            shaped[layer["values"]] = arrays[layer["values"]].reshape(len(layer["first"]) + 1, -1)
        for stream in ("value", "advantage"):
            shaped |= {name: array for name, array in _shaped(layer.get(stream, []), arrays).items() if array.ndim > 1}
    return shaped
