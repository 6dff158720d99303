"""Observations of any composition as one vector: images, numbers, discrete ones as one-hot, texts by their hash."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_kd.observations.spaces import (
    MOST_OF_FLOATS,
    Path,
    flat_size,
    has_undivided_pixels,
    image_shape,
    is_text,
    named,
    one_hot_lengths,
    parts_of,
)
from rllib_kd.observations.texts import text_vector


class Flattener:
    """A function from observations to vectors, with the parts in the order of `parts_of()`.

    For spaces without texts and images it equals `gymnasium.spaces.flatten()`, and RLlib's `FlattenObservations` where
    that one can encode them.

    Args:
        space: space of one observation.
        left_out: keys of a Dict whose parts are left out.
        scales_images: whether images of bytes are divided by 255, and all have their channels last. False: they are
            numbers like others, as for RLlib's `FlattenObservations`.
    """

    def __init__(self, space: gym.Space, left_out: Collection[str] = (), *, scales_images: bool = True):
        self.size = 0  # length of a vector
        self._numbers: list[tuple[Path, slice]] = []  # parts, and where they stand in the vector
        self._images: list[tuple[Path, slice, gym.Space]] = []
        self._texts: list[tuple[Path, slice]] = []
        self._cases: list[tuple[Path, slice]] = []  # discrete parts, and where they stand among all discrete numbers
        lengths: list[int] = []
        starts: list[int] = []
        offsets: list[int] = []  # of the one-hot vectors
        for path, part, shape in _kept(space, left_out, scales_images=scales_images):
            place = slice(self.size, self.size + flat_size(part))
            if (own := one_hot_lengths(part)) is not None:
                self._cases.append((path, slice(len(lengths), len(lengths) + len(own))))
                offsets += (self.size + np.cumsum([0, *own[:-1]])).tolist()
                lengths += own
                starts += np.ravel(part.start).tolist()
            elif shape is not None:
                self._images.append((path, place, part))
            else:
                (self._texts if is_text(part) else self._numbers).append((path, place))
            self.size = place.stop
        self._lengths, self._starts = np.array(lengths, np.uint64), np.array(starts, np.int64)
        self._offsets = np.array(offsets, np.int64)

    def __call__(self, obs: Any, num_rows: int) -> np.ndarray:
        """Return vectors `[N, size]`, float32. Numbers that are too large for 32 bits become infinite.

        Args:
            obs: observations `[N, ...]`, or a dict or tuple of such arrays, as vector envs return them; or a single
                observation.
            num_rows: N; 1 for a single observation.

        Raises:
            ValueError: a discrete number is no integer, or outside of its space; or a part of bytes has floats above 1.
        """
        vectors = np.zeros((num_rows, self.size), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for path, place in self._numbers:
                vectors[:, place] = np.asarray(_at(obs, path)).reshape(num_rows, -1)
            for path, place, part in self._images:
                vectors[:, place] = _pixels(np.asarray(_at(obs, path)), num_rows, part)
            if self._cases:
                self._set_cases(obs, vectors)
        for path, place in self._texts:
            texts = _at(obs, path)
            vectors[:, place] = [text_vector(str(text)) for text in ([texts] if isinstance(texts, str) else texts)]
        return vectors

    def part_of(self, index: int) -> tuple[Path, slice]:
        """Return the part of an observation that a vector has at this index, and where the part stands in it."""
        parts = [*self._numbers, *self._texts, *((path, place) for path, place, _ in self._images)]
        return next(((path, place) for path, place in parts if place.start <= index < place.stop), ((), slice(None)))

    def _set_cases(self, obs: Any, vectors: np.ndarray) -> None:
        """Set the ones of all one-hot vectors."""
        indices = np.empty((len(vectors), len(self._lengths)), np.int64)
        for path, place in self._cases:
            indices[:, place] = _integers(np.asarray(_at(obs, path)).reshape(len(vectors), -1), path)
        indices -= self._starts
        if (wrong := indices.view(np.uint64) >= self._lengths).any():  # so that those below 0 are large
            row, column = np.argwhere(wrong)[0]
            path = next(path for path, place in self._cases if place.start <= column < place.stop)
            start, length = int(self._starts[column]), int(self._lengths[column])
            raise ValueError(
                f"the observation{named(path)} contains the number {indices[row, column] + start}, but its space has "
                f"{start} to {start + length - 1}"
            )
        vectors[np.arange(len(vectors))[:, None], self._offsets + indices] = 1.0


def _integers(numbers: np.ndarray, path: Path) -> np.ndarray:
    """Return discrete numbers, of which files have floats, too."""
    if numbers.dtype.kind == "f" and (wrong := numbers[np.floor(numbers) != numbers]).size:
        raise ValueError(f"the observation{named(path)} contains the number {wrong[0]:.6g}, expected integers")
    return numbers


def _pixels(images: np.ndarray, num_rows: int, space: gym.Space) -> np.ndarray:
    """Return images with channels first or last as rows `[N, H · W · C]` with channels last; bytes in [0, 1]."""
    images = images.reshape(num_rows, *images.shape[-3:])
    rows = images if images.shape[1:] == image_shape(space) else np.moveaxis(images, 1, -1)
    is_bytes = rows.dtype.kind in "iu" and space.dtype != np.bool_ and not has_undivided_pixels(space)
    if rows.dtype.kind == "f" and space.dtype == np.uint8 and rows.size and rows.max() > MOST_OF_FLOATS:
        raise ValueError(
            f"an image of floats has values up to {rows.max():.6g}, but its space has bytes: give bytes (uint8), or "
            "floats in [0, 1]"
        )
    return (rows / np.float32(255) if is_bytes else rows).reshape(num_rows, -1)


def described_parts(
    space: gym.Space, left_out: Collection[str] = (), *, scales_images: bool = True
) -> list[dict[str, Any]]:
    """Describe how a `Flattener` with these arguments makes vectors, in JSON's terms.

    Returns:
        The parts of an observation in the order in which they stand in the vector, as `runners/flatten.py` takes them:
        `{"path": [keys and indices], "op": "numbers"}`, `{..., "op": "one_hot", "lengths": [...], "starts": [...]}`,
        `{..., "op": "image", "shape": [height, width, channels], "divisor": 255 for bytes}` or `{..., "op": "text"}`.
    """
    kept = _kept(space, left_out, scales_images=scales_images)
    return [{"path": list(path), **_described(part, shape)} for path, part, shape in kept]


def _kept(
    space: gym.Space, left_out: Collection[str], *, scales_images: bool
) -> Iterator[tuple[Path, gym.Space, tuple[int, int, int] | None]]:
    """Yield the parts that stand in a vector, with height, width and channels of images that are taken as such."""
    for path, part in parts_of(space):
        if not path or path[0] not in left_out:
            yield path, part, image_shape(part) if path and scales_images else None


def _described(space: gym.Space, shape: tuple[int, int, int] | None) -> dict[str, Any]:
    if is_text(space):
        return {"op": "text"}
    if shape is not None:
        return {"op": "image", "shape": list(shape), "divisor": 255 if space.dtype == np.uint8 else 1}
    lengths = one_hot_lengths(space)
    if lengths is None:
        return {"op": "numbers"}
    return {"op": "one_hot", "lengths": list(lengths), "starts": np.ravel(space.start).tolist()}


def with_text_arrays(space: gym.Space, obs: Any) -> Any:
    """Return a vector env's observations with arrays of texts: RLlib takes gymnasium's tuples of them for many parts.

    Args:
        space: space of one observation.
        obs: observations of all environments.
    """
    if isinstance(space, gym.spaces.Dict):
        return {key: with_text_arrays(part, obs[key]) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(map(with_text_arrays, space.spaces, obs))
    return np.asarray(obs) if is_text(space) else obs


def _at(obs: Any, path: Path) -> Any:
    for key in path:
        obs = obs[key]
    return obs
