"""Paths in messages are as short as they can be, and mean the same place."""

import pytest

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.environments.imports import absolute
from rllib_kd.paths import tidied


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("x/../y", "y"),
        ("./runs//a/./b/", "runs/a/b"),
        ("//runs/a", "/runs/a"),
        ("../y", "../y"),
        (".", "."),
        ("s3://bucket//x/../y", "s3://bucket//x/../y"),  # the names of objects
    ],
)
def test_a_path_is_shown_in_its_shortest_form(path, short):
    assert tidied(path) == short


def test_behind_a_link_the_folder_above_is_another(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    assert tidied("link/../y") == "link/../y"
    assert tidied("a/../link/y") == "link/y"


@pytest.mark.parametrize("make", [absolute_uri, absolute])
def test_an_absolute_path_is_short(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    assert make("x/..//./y/env.py") == f"{tmp_path}/y/env.py"
