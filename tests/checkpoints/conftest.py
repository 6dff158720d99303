"""An algorithm's checkpoint, to be read and to be spoiled."""

import shutil
from pathlib import Path

import pytest

from tests.rllib_checkpoints import save_dqn


@pytest.fixture(scope="session")
def saved(cluster, tmp_path_factory):
    return save_dqn("filter", tmp_path_factory.mktemp("checkpoints") / "algo")


@pytest.fixture
def checkpoint(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "algo"))
