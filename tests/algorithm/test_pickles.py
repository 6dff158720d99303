"""Pickles name public classes by the package alone, so that files can move: they are found wherever they are read."""

import pickle
import subprocess
import sys

import pytest
import ray
from ray import cloudpickle
from ray.tune.registry import TRAINABLE_CLASS, _global_registry

from rllib_kd import DistillDQN, DistillDQNConfig
from rllib_kd.checkpoints.pickles import read_pickle
from tests.conftest import ray_address

PUBLIC = (DistillDQN, DistillDQNConfig)


@pytest.mark.parametrize("cls", PUBLIC)
@pytest.mark.parametrize("pickles", [pickle, cloudpickle])
def test_classes_are_pickled_by_the_name_of_the_package(cls, pickles):
    content = pickles.dumps(cls)
    assert b"algorithm" not in content
    assert b"rllib_kd" in content
    assert pickles.loads(content) is cls


def in_a_new_process(folder, code, content) -> str:
    """What a process prints that has imported nothing of the package."""
    (folder / "content.pkl").write_bytes(content)
    setup = f"import pickle, sys; content = open({str(folder / 'content.pkl')!r}, 'rb').read(); "
    setup += "assert not any(name.startswith('rllib_kd') for name in sys.modules); "
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_remote_process_finds_them(cluster):
    @ray.remote
    def look(config, cls):
        return type(config), config.algo_class is cls, cls, _global_registry.get(TRAINABLE_CLASS, "DistillDQN")

    config = DistillDQNConfig().distillation(loss="mse")
    assert ray.get(look.remote(config, DistillDQN)) == (DistillDQNConfig, True, DistillDQN, DistillDQN)


def test_tunes_registry_has_the_class(cluster):
    assert _global_registry.get(TRAINABLE_CLASS, "DistillDQN") is DistillDQN


@pytest.mark.slow
def test_a_process_that_has_not_imported_the_package_reads_pickles_and_checkpoints(cartpole_config, build, tmp_path):
    path = tmp_path / "checkpoint"
    build(cartpole_config).save_to_path(str(path))
    with (path / "class_and_ctor_args.pkl").open("rb") as file:
        content = read_pickle(file, str(path))
    assert str(content["class"].of) == "rllib_kd.DistillDQN"
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole", loss="mse")
    pickled = [pickles.dumps((DistillDQN, config)) for pickles in (pickle, cloudpickle)]
    code = (
        "path, pickled = pickle.loads(content); found = [pickle.loads(each) for each in pickled]; "
        "import ray; from ray.rllib.algorithms.algorithm import Algorithm; "
        f"ray.init(address={ray_address()!r}, log_to_driver=False); "
        "algo = Algorithm.from_checkpoint(path); "
        "read = [(cls.__name__, type(config).__name__, config.loss) for cls, config in found]; "
        "print(read, type(algo).__name__, type(algo.config).__name__, algo.train()['training_iteration']); algo.stop()"
    )
    read = [("DistillDQN", "DistillDQNConfig", "mse")] * 2
    shown = in_a_new_process(tmp_path, code, pickle.dumps((str(path), pickled)))
    assert shown == f"{read} DistillDQN DistillDQNConfig 1"
