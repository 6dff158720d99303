"""The files of an algorithm's checkpoint that are read, and what spoils them."""

import base64
import io
import pickle
import zlib
from pathlib import Path

from rllib_kd.checkpoints.pickles import read_pickle
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.checkpoints.values import build

MODULE = "learner_group/learner/rl_module/default_policy"
CONNECTORS = "env_runner/env_to_module_connector"
FILES = {
    "module": f"{MODULE}/class_and_ctor_args.pkl",
    "weights": f"{MODULE}/module_state.pkl",
    "connectors": f"{CONNECTORS}/class_and_ctor_args.pkl",
    "filter": f"{CONNECTORS}/MeanStdFilter/state.pkl",
    "algorithm": "class_and_ctor_args.pkl",
}


def read_all(path: Path) -> None:
    """Everything that this package reads of a checkpoint."""
    checkpoint = open_checkpoint(str(path))
    checkpoint.environment()
    checkpoint.to_env()
    checkpoint.load_observation_pipeline(checkpoint.load_module())


def there_and_back(value):
    return build(read_pickle(io.BytesIO(pickle.dumps(value)), "it"), "it")


def change_model_config(checkpoint: Path, changes: dict) -> None:
    path = checkpoint / FILES["module"]
    content = pickle.loads(path.read_bytes())
    content["ctor_args_and_kwargs"][1]["model_config"] |= changes
    path.write_bytes(pickle.dumps(content))


def replace_statistics(checkpoint: Path, array_file: bytes) -> None:
    path = checkpoint / FILES["filter"]
    content = pickle.loads(path.read_bytes())
    content[None]["running_stats"][0]["mean_array"] = base64.b64encode(zlib.compress(array_file)).decode()
    path.write_bytes(pickle.dumps(content))
