"""Files of the user's own that are run and not imported: experiments and search spaces."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ray import cloudpickle

from rllib_kd.environments.failures import described, users_errors
from rllib_kd.environments.imports import make_importable
from rllib_kd.environments.own import RUN_NAME


def run_file(path: Path) -> dict[str, Any]:
    """Run a Python file and return its names. Other processes can make the environments that it registers.

    Args:
        path: path of the file. Its folder and the working folder become importable.

    Raises:
        ValueError: the file raises; the message has the reason, and the line in it.
    """
    make_importable(os.getcwd())
    make_importable(str(path.parent.absolute()))
    try:
        with _pickled_by_value(RUN_NAME):
            return runpy.run_path(str(path.absolute()), run_name=RUN_NAME)
    except users_errors() as error:
        raise ValueError(f"'{path}' cannot be run: {described(error)}") from error


@contextmanager
def _pickled_by_value(name: str) -> Iterator[None]:
    """Let pickles contain the classes and functions of a module that nothing can import.

    Ray pickles what a file registers at once, while `runpy` has a module for the file, which is gone afterwards.
    """
    stands_in = name not in sys.modules
    module = sys.modules.setdefault(name, ModuleType(name))  # cloudpickle registers only what is loaded
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        if stands_in:
            sys.modules.pop(name, None)
