"""An algorithm's checkpoint, to be read and to be spoiled."""

import shutil
from pathlib import Path

import pytest

from tests.rllib_checkpoints import build_dqn


@pytest.fixture(scope="session")
def saved(cluster, tmp_path_factory):
    algo = build_dqn("filter")
    path = algo.save_to_path(str(tmp_path_factory.mktemp("checkpoints") / "algo"))
    algo.stop()
    return Path(path)


@pytest.fixture
def checkpoint(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "algo"))
