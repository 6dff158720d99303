"""tuning/film.py: a GIF of teacher and student side by side."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def film():
    spec = importlib.util.spec_from_file_location("film", ROOT / "tuning" / "film.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_play_in_one_picture(film, tmp_path):
    out = tmp_path / "film.gif"
    film.film("cartpole", "cartpole", "CartPole-v1", out, seed=1, num_steps=12, every=3)
    with Image.open(out) as picture:
        assert picture.n_frames == 4
        assert picture.size == (2 * film.WIDTH, 200)
        left, right = (picture.convert("RGB").crop((x, 40, x + film.WIDTH, 200)) for x in (0, film.WIDTH))
    assert left.tobytes() == right.tobytes()  # one policy, one seed


def test_a_film_that_is_too_large_is_an_error(film, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"bytes, expected at most 100: give fewer --steps"):
        film.film("cartpole", "cartpole", "CartPole-v1", tmp_path / "film.gif", seed=1, num_steps=2, every=1)


def test_the_film_of_the_first_page_is_small(film):
    assert (ROOT / "docs" / "pages" / "pictures" / "film.gif").stat().st_size < film.MAX_BYTES
