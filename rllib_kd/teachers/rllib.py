"""Teachers from RLlib checkpoints of the new API stack: whole Algorithms, MultiRLModules and single RLModules."""

from __future__ import annotations

import posixpath

import pyarrow.fs
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.apis import QNetAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd.teachers.base import Teacher

_MULTI_RL_MODULE = "learner_group/learner/rl_module"
_MODULE_FILES = ("class_and_ctor_args.pkl", "module_state.pkl")


def load_rllib(uri: str, *, module_id: str = DEFAULT_MODULE_ID) -> Teacher:
    """Load the Q-network of an RLlib checkpoint.

    RLlib checkpoints are pickles: load only what you trust.

    Args:
        uri: an absolute path, or a URI that pyarrow knows (`file://`, `s3://`, `gs://`), of an Algorithm's checkpoint
            directory or of its rl_module folder.
        module_id: which RLModule of the checkpoint.

    Raises:
        ValueError: there is nothing at `uri`, it is no RLlib checkpoint, or its policy has no Q-values.
    """
    filesystem, path = _open(uri)
    module_path = _find_module(filesystem, path, module_id, uri)
    try:
        module = RLModule.from_checkpoint(module_path, filesystem=filesystem)
    except Exception as error:
        raise ValueError(
            f"'{uri}' cannot be read ({type(error).__name__}: {error}). Is it complete, and are the "
            "classes of its RLModule importable here?"
        ) from error
    if isinstance(module, MultiRLModule):
        raise ValueError(
            f"'{uri}' is not an RLlib checkpoint of one policy: it holds the RLModules {sorted(module.keys())}, none "
            f"of which is '{module_id}'. Name the folder of the one to distil."
        )
    if not isinstance(module, QNetAPI):
        raise ValueError(
            f"'{uri}' is a {type(module).__name__}, which has no Q-values. Expected the checkpoint of a DQN, or of "
            "another RLModule that implements compute_q_values()."
        )
    return Teacher(module, source=uri)


def _open(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"'{uri}' is neither an absolute path nor a known URI: {error}") from error
    if filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
        raise ValueError(
            f"There is no checkpoint at '{uri}'. Expected the directory of a trained RLlib DQN (in the config of a "
            "Tune trial as an absolute path, since trials run elsewhere), or 'cartpole', which comes with rllib_kd."
        )
    return filesystem, path


def _find_module(filesystem: pyarrow.fs.FileSystem, path: str, module_id: str, uri: str) -> str:
    """The folder of the single RLModule inside any kind of checkpoint."""
    for folder in (path, posixpath.join(path, module_id), posixpath.join(path, _MULTI_RL_MODULE, module_id)):
        infos = filesystem.get_file_info([posixpath.join(folder, name) for name in _MODULE_FILES])
        # A MultiRLModule's folder has both files too, but its parts lie in folders of their own below it.
        is_leaf = filesystem.get_file_info(posixpath.join(folder, module_id)).type == pyarrow.fs.FileType.NotFound
        if is_leaf and all(info.type == pyarrow.fs.FileType.File for info in infos):
            return folder
    if filesystem.get_file_info(posixpath.join(path, "policies")).type == pyarrow.fs.FileType.Directory:
        raise ValueError(
            f"'{uri}' is a checkpoint of RLlib's old API stack. Only those of the new API stack can be "
            "read: train the teacher with config.api_stack(enable_rl_module_and_learner=True, "
            "enable_env_runner_and_connector_v2=True)."
        )
    raise ValueError(
        f"'{uri}' is not an RLlib checkpoint: found no RLModule '{module_id}' ({' and '.join(_MODULE_FILES)}) in it, "
        f"nor below '{_MULTI_RL_MODULE}'. Expected what `algo.save_to_path()` or `module.save_to_path()` wrote; files "
        "of other libraries cannot be read yet."
    )
