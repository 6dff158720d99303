"""Pickles that do harm."""

from __future__ import annotations

import builtins
import functools
import os
import subprocess
from collections import OrderedDict
from pathlib import Path

import gymnasium as gym
import numpy as np


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Late(Payload):
    """Calls it when its state is set."""

    def __reduce__(self):
        return (OrderedDict, (), Payload(*self.call[:1], *self.call[1]))


def payloads(mark: Path) -> dict[str, object]:
    """Each makes the file when it runs."""
    touch = f"open({str(mark)!r}, 'w').close()"
    system = Payload(os.system, f"touch {mark}")
    return {
        "os.system": system,
        "eval": Payload(builtins.eval, touch),
        "exec": Payload(builtins.exec, touch),
        "subprocess": Payload(subprocess.check_call, ["touch", str(mark)]),
        "in a state": Late(os.system, f"touch {mark}"),
        "in an object array": np.array([system], dtype=object),
        "in a list": [1, [2, {"a": system}]],
        "as a key": {(system, 1): 2},
        "in a space": Payload(gym.spaces.Dict, {"a": system}),
        "behind getattr": Payload(getattr, Payload(__import__, "os"), "sep"),
        "a dotted name": Payload(Path.touch, mark),
        "a partial": Payload(functools.partial(os.system, f"touch {mark}")),
        "in metadata": np.dtype("f4", metadata={"a": system}),
        "a chain": Payload(map, Payload(eval, f"lambda _: {touch}"), [1]),
    }
