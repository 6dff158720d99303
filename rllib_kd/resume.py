"""What a checkpoint holds beside RLlib's own files, so that what is resumed goes on as if it had never stopped.

RLlib saves neither the replay nor where the environments stand, and of several Learners only the first one's state.
Here are: the files of the replay, one for each Learner, and the capture of an EnvRunner with its environments.
"""

from __future__ import annotations

import logging
import random
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pyarrow.fs
import torch
from ray import cloudpickle

logger = logging.getLogger(__name__)

REPLAY_FOLDER = "replay"

#: What sampling goes on from in RLlib's EnvRunners, and in ours where they have it.
_RLLIB_ATTRIBUTES = (
    "_seed",
    "_needs_initial_reset",
    "_ongoing_episodes",
    "_cached_to_module",
    "_shared_data",
    "_done_episodes_for_metrics",
    "_ongoing_episodes_for_metrics",
)
_OUR_ATTRIBUTES = (
    "_rng",
    "_turns",
    "_teacher_view",
    "_shown",
    "_reset_next",
    "_obs",
    "_ended",
    "_returns",
    "_lengths",
)
#: The part of them that goes on where the environments begin anew.
_LASTING_ATTRIBUTES = ("_seed", "_needs_initial_reset", "_rng", "_turns")


# --- EnvRunners -------------------------------------------------------------------------------------------------------


def capture_sampling(env_runner: Any) -> bytes:
    """Where an EnvRunner and its environments stand.

    Environments that cannot be captured (in other processes, or written in C++ without a way to save them) begin new
    episodes, here and where the state is put back, so that both go on alike.
    """
    try:
        return cloudpickle.dumps(
            {
                "runner": _attributes(env_runner, _RLLIB_ATTRIBUTES + _OUR_ATTRIBUTES),
                "env": _env_state(env_runner.env),
                "setting": _setting(env_runner),
            }
        )
    except Exception as error:  # each environment has its own reason why it cannot be pickled
        logger.info("The environments cannot be captured (%s): they begin new episodes at every checkpoint.", error)
        restart_sampling(env_runner)
        return cloudpickle.dumps(
            {"runner": _attributes(env_runner, _LASTING_ATTRIBUTES), "setting": _setting(env_runner)}
        )


def put_back_sampling(env_runner: Any, state: bytes) -> None:
    """Go on from `capture_sampling()`; where that fails, with new episodes."""
    try:
        captured = cloudpickle.loads(state)
        if captured["setting"] != _setting(env_runner):
            raise ValueError(f"they were {captured['setting']}, and are {_setting(env_runner)}")
        if "env" in captured:
            for layer, attributes in zip(_layers(env_runner.env), captured["env"], strict=True):
                vars(layer).update(attributes)
        vars(env_runner).update(captured["runner"])
    except Exception as error:  # another config, or another version of the environment's package
        logger.warning("The environments of the checkpoint do not fit (%s): they begin new episodes.", error)
        env_runner.make_env()
        restart_sampling(env_runner)


def restart_sampling(env_runner: Any, salt: int | None = None) -> None:
    """Begin new episodes, and not those that the EnvRunner began with.

    Args:
        env_runner: which has a random generator, `_rng`.
        salt: any number, for another order of random numbers; None goes on with the present one.
    """
    if env_runner._seed is not None:
        if salt is not None:
            env_runner._rng = np.random.default_rng((env_runner._seed, salt))
        env_runner._seed = int(env_runner._rng.integers(2**31))
    env_runner._needs_initial_reset = True


def _setting(env_runner: Any) -> dict[str, Any]:
    """What must be equal, so that environments can go on."""
    env = env_runner.config.env
    return {
        # A class that is pickled by value has another module and qualified name where it arrives.
        "env": env.__name__ if isinstance(env, type) else str(env),
        "env_config": dict(env_runner.config.env_config),
        "num_envs": env_runner.num_envs,
        "layers": [type(layer).__qualname__ for layer in _layers(env_runner.env)],
    }


def _attributes(env_runner: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: vars(env_runner)[name] for name in names if name in vars(env_runner)}


def _env_state(env: Any) -> list[dict[str, Any]]:
    """The attributes of a vector env and of its wrappers: it is filled, and not replaced, when they are put back."""
    return [{k: v for k, v in vars(layer).items() if k not in ("env", "env_fns")} for layer in _layers(env)]


def _layers(env: Any) -> Iterator[Any]:
    while env is not None:
        yield env
        env = vars(env).get("env")


# --- Random numbers of this process -----------------------------------------------------------------------------------


def capture_random_state() -> dict[str, Any]:
    """The global generators, which an environment or a module may draw from."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state().numpy()}


def put_back_random_state(state: Mapping[str, Any]) -> None:
    """Go on from `capture_random_state()`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))


# --- The replay -------------------------------------------------------------------------------------------------------


def write_replay(path: str, index: int, arrays: Mapping[str, np.ndarray], filesystem: pyarrow.fs.FileSystem) -> None:
    """Write the replay of a Learner into the checkpoint at `path`: a compressed .npz, which numpy reads."""
    filesystem.create_dir(f"{path}/{REPLAY_FOLDER}", recursive=True)
    with (
        filesystem.open_output_stream(f"{path}/{REPLAY_FOLDER}/{index}.npz") as stream,
        # Level 1: half the time of numpy's level 6, for a few percent more bytes.
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_replays(path: str, filesystem: pyarrow.fs.FileSystem) -> list[dict[str, np.ndarray]]:
    """What `write_replay()` has written there, in the order of the Learners; nothing where there is none."""
    selector = pyarrow.fs.FileSelector(f"{path}/{REPLAY_FOLDER}", allow_not_found=True)
    files = [info.path for info in filesystem.get_file_info(selector) if info.path.endswith(".npz")]
    replays = []
    for file in sorted(files, key=lambda file: int(Path(file).stem)):
        with filesystem.open_input_file(file) as stream, np.load(stream, allow_pickle=False) as archive:
            replays.append(dict(archive))
    return replays


# --- Files ------------------------------------------------------------------------------------------------------------


def resolve(path: str | Path, filesystem: pyarrow.fs.FileSystem | None) -> tuple[str, pyarrow.fs.FileSystem]:
    """A path or URI as RLlib understands it, and its filesystem."""
    path = str(path)
    return (path, filesystem) if filesystem else pyarrow.fs.FileSystem.from_uri(path)[::-1]


def local_folder(path: str | Path | None, filesystem: pyarrow.fs.FileSystem | None) -> Path | None:
    """The absolute path of a folder on this machine's disk; None where the path is elsewhere, or is none.

    Raises:
        ValueError: a `file:` URI that is none, or whose path would end at a `#` or a `?`.
    """
    if path is None or not (filesystem is None or isinstance(filesystem, pyarrow.fs.LocalFileSystem)):
        return None
    uri = urlparse(str(path))
    if uri.scheme == "file":
        if uri.fragment or uri.query:
            raise ValueError(f"In a URI, `#` and `?` are written as %23 and %3F, got '{path}'.")
        return Path(pyarrow.fs.FileSystem.from_uri(str(path))[1])
    return None if "://" in str(path) else Path(path).expanduser().absolute()
