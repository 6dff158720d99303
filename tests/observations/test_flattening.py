"""One vector of observations of any composition."""

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector.utils import concatenate, create_empty_array
from ray.rllib.connectors.env_to_module import FlattenObservations

from rllib_kd.checkpoints.connectors import _spec, connector_stages
from rllib_kd.export.runners.flatten import flatten as flatten_as_described
from rllib_kd.observations.flattening import Flattener, described_parts
from rllib_kd.observations.pipeline import Shown
from rllib_kd.observations.spaces import (
    check_spaces,
    flat_size,
    input_space,
    is_flattened,
    is_text,
    parts_of,
    same_space,
)
from rllib_kd.observations.texts import TEXT_SIZE, text_vector
from tests.observations.spaces import CASES, COMPOSED, NUMBERS, TEXTS, Missions

ACTIONS = gym.spaces.Discrete(2)
GYMNASIUMS = NUMBERS | CASES | COMPOSED
IMAGE = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)


def seen(space, count=20):
    space.seed(0)
    return [space.sample() for _ in range(count)]


def batched(space, observations):
    """As a vector env shows them."""
    return concatenate(space, observations, create_empty_array(space, len(observations)))


@pytest.mark.parametrize("name", GYMNASIUMS)
def test_gymnasiums_vectors(name):
    space = GYMNASIUMS[name]
    observations = seen(space)
    expected = np.array([gym.spaces.flatten(space, obs) for obs in observations], np.float32)
    assert len(np.unique(expected, axis=0)) > 2
    flatten = Flattener(space)
    got = flatten(batched(space, observations), len(observations))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal([flatten(obs, 1)[0] for obs in observations], expected)
    assert flatten.size == flat_size(space) == gym.spaces.flatdim(space)
    assert is_flattened(space)
    assert input_space(space).shape == expected.shape[1:]
    check_spaces(input_space(space), ACTIONS)


def test_texts_stand_among_other_parts():
    space = TEXTS["with texts"]
    observations = seen(space)
    vectors = Flattener(space)(batched(space, observations), len(observations))
    for vector, obs in zip(vectors, observations, strict=True):
        at, mission, note, x = np.split(vector, np.cumsum([4, TEXT_SIZE, TEXT_SIZE]))
        assert at.argmax() == obs["at"] + 2
        np.testing.assert_array_equal(mission, text_vector(obs["mission"]))
        np.testing.assert_array_equal(note, text_vector(obs["note"]))
        np.testing.assert_array_equal(x, obs["x"].ravel().astype(np.float32))
    assert Flattener(space).size == flat_size(space) == vectors.shape[1]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_alone(name):
    space = TEXTS[name]
    observations = seen(space)
    expected = [Flattener(space)(obs, 1)[0] for obs in observations]
    np.testing.assert_array_equal(Flattener(space)(batched(space, observations), len(observations)), expected)
    assert len(np.unique(expected, axis=0)) > 2
    assert is_flattened(space)


def test_a_texts_vector_is_known():
    """SHA-256 of "key" begins with 0x2c70e12b: bits 0010 1100 ..."""
    np.testing.assert_array_equal(text_vector("key")[:8], [-1, -1, 1, -1, 1, 1, -1, -1])
    both = text_vector("get key")
    parts = [text_vector(term) for term in ("get", "key")]
    pair = both * np.sqrt(3) - sum(parts)  # "get key" as a term of its own
    np.testing.assert_allclose(np.abs(pair), 1, atol=1e-5)
    assert not np.allclose(both, text_vector("key get"))
    assert not text_vector("").any()
    assert not text_vector(" \n").any()
    assert np.abs(text_vector("a b c d")).max() <= np.sqrt(7) + 1e-5
    with pytest.raises(ValueError, match="read-only"):
        both[0] = 1


def test_a_texts_vector_is_the_same_in_every_process():
    code = "from rllib_kd.observations.texts import text_vector; print(text_vector('go to the grün ball').tolist())"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(text_vector("go to the grün ball").tolist())


def test_equal_vectors_are_rare():
    """Of 3,000 one-word texts all differ: a Text of digits, say."""
    assert len(np.unique([text_vector(str(i)) for i in range(3000)], axis=0)) == 3000


def test_parts_stand_in_the_order_of_sorted_keys():
    space = gym.spaces.Dict([("z", ACTIONS), ("a", gym.spaces.Tuple((ACTIONS, ACTIONS)))])  # keeps its own order
    assert [path for path, _ in parts_of(space)] == [("a", 0), ("a", 1), ("z",)]
    mixed = gym.spaces.Dict({1: ACTIONS, "a": ACTIONS, 0: ACTIONS})
    assert [path for path, _ in parts_of(mixed)] == [(0,), (1,), ("a",)]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (2, "2, but its space has -2 to 1"),
        (-3.0, "-3, but its space has -2 to 1"),
        (0.9, "0.9, expected integers"),
        (np.nan, "nan, expected integers"),
    ],
)
def test_a_number_outside_of_its_space(wrong, text):
    flatten = Flattener(gym.spaces.Dict(a=CASES["discrete"], b=gym.spaces.Tuple((CASES["start"],))))
    obs = {"a": np.array([0, 3]), "b": (np.array([0, wrong]),)}
    with pytest.raises(ValueError, match=rf"observation\['b'\]\[0\] contains the number {text}$"):
        flatten(obs, 2)


def test_what_is_too_large_becomes_infinite():
    space = NUMBERS["float64"]
    assert np.isposinf(Flattener(space)(np.full((2, 3), 1e300), 1)[0, 0])
    assert np.isnan(Flattener(space)(np.full((2, 3), np.nan), 1)[0, 0])


def test_which_spaces_have_texts():
    class Said(gym.Space):  # no dtype
        def sample(self, mask=None, probability=None):
            return "a word"

    assert is_text(Missions())
    assert is_text(Said())
    assert is_text(gym.spaces.Text(3))
    for other in (ACTIONS, IMAGE, COMPOSED["dict"], gym.spaces.Sequence(ACTIONS), None):
        assert not is_text(other)
    assert same_space(Missions(), gym.spaces.Text(3))
    assert same_space(gym.spaces.Dict(a=Missions()), gym.spaces.Dict(a=gym.spaces.Text(3)))
    assert not same_space(Missions(), ACTIONS)


def test_images_and_vectors_are_no_vectors_of_ours():
    stacked = gym.spaces.Box(0.0, 1.0, (32, 32, 4))
    for space in (gym.spaces.Box(-1.0, 1.0, (3,), np.float64), IMAGE, stacked, gym.spaces.Box(0, 1, (9, 9, 2), bool)):
        assert not is_flattened(space)
        check_spaces(input_space(space), ACTIONS)


WITH_IMAGES = gym.spaces.Dict(
    {
        "pair": gym.spaces.Tuple((gym.spaces.Box(0, 255, (3, 16, 20), np.uint8), ACTIONS)),
        "bits": gym.spaces.Box(0, 1, (16, 16, 1), np.bool_),
        "floats": gym.spaces.Box(-2.0, 2.0, (17, 18, 2)),
        "unit": gym.spaces.Box(0.0, 1.0, (1, 16, 16), np.float64),
        "grid": gym.spaces.Box(0, 255, (15, 15, 1), np.uint8),
        "lattice": gym.spaces.Box(-2.0, 2.0, (2, 17, 18)),
    }
)
ALL = GYMNASIUMS | TEXTS | {"image": IMAGE, "with images": WITH_IMAGES}


def test_images_beside_other_parts_have_their_channels_last_and_bytes_in_0_to_1():
    observations = seen(WITH_IMAGES, 3)
    expected = [
        np.concatenate(
            [
                np.ravel(obs["bits"]),
                np.ravel(obs["floats"]),
                np.ravel(obs["grid"]),  # plain numbers
                np.ravel(obs["lattice"]),  # likewise: the first axis need not be that of channels
                np.ravel(np.transpose(obs["pair"][0], (1, 2, 0))) / np.float32(255),
                np.eye(2)[obs["pair"][1]],
                np.ravel(obs["unit"]),
            ]
        ).astype(np.float32)
        for obs in observations
    ]
    flatten = Flattener(WITH_IMAGES)
    np.testing.assert_array_equal(flatten(batched(WITH_IMAGES, observations), 3), expected)
    np.testing.assert_array_equal([flatten(obs, 1)[0] for obs in observations], expected)
    space = input_space(WITH_IMAGES)
    assert space.images == ((0, 16, 16, 1), (256, 17, 18, 2), (1705, 16, 20, 3), (2667, 16, 16, 1))
    assert space.shape == (flatten.size,) == (len(expected[0]),)
    check_spaces(space, ACTIONS)
    first, last = (gym.spaces.Box(0, 255, shape, np.uint8) for shape in ((3, 16, 20), (16, 20, 3)))
    np.testing.assert_array_equal(  # an environment with the other layout than the teacher's
        Flattener(gym.spaces.Tuple((last, ACTIONS)))(observations[0]["pair"], 1),
        Flattener(gym.spaces.Tuple((first, ACTIONS)))(observations[0]["pair"], 1),
    )
    assert same_space(gym.spaces.Tuple((last, ACTIONS)), gym.spaces.Tuple((first, ACTIONS)))
    assert not same_space(first, last)
    brighter = {**observations[0], "pair": (np.full((3, 16, 20), 255.0), observations[0]["pair"][1])}
    with pytest.raises(ValueError, match=r"an image of floats has values up to 255, but its space has bytes"):
        flatten(brighter, 1)
    assert flatten.part_of(1705) == (("pair", 0), slice(1705, 2665))


@pytest.mark.parametrize("scales_images", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_the_description_makes_the_same_vectors(name, scales_images):
    space = ALL[name]
    keys = list(space.spaces) if isinstance(space, gym.spaces.Dict) else []
    for left_out in ((), keys[:1]):
        flatten = Flattener(space, left_out, scales_images=scales_images)
        parts = described_parts(space, left_out, scales_images=scales_images)
        for obs in seen(space, 3):
            np.testing.assert_array_equal(flatten_as_described(parts, obs), flatten(obs, 1)[0])


def test_integers_of_images_are_divided_by_255_where_the_space_has_0_to_1():
    own = {
        "255": gym.spaces.Box(0, 255, (16, 16, 3), np.float32),
        "bytes": gym.spaces.Box(0, 255, (16, 16, 3), np.uint8),
        "unit": gym.spaces.Box(0, 1, (16, 16, 3), np.float32),
    }
    images = {key: np.full((1, 16, 16, 3), 51) for key in own}  # as a table of another tool may have them
    vectors = Flattener(gym.spaces.Dict(own))(images, 1).reshape(3, -1)
    np.testing.assert_allclose(vectors, np.repeat([[51], [0.2], [0.2]], 768, axis=1), rtol=1e-6)


def test_rllibs_connector_leaves_images_as_they_are():
    space = gym.spaces.Dict(eye=IMAGE, x=ACTIONS)
    connector = FlattenObservations(space, ACTIONS)
    obs = seen(space, 1)[0]
    (stage,) = connector_stages([_spec(connector)], space)
    vector = stage.start()(Shown(batched(space, [obs]), np.ones(1, bool)))[0]
    np.testing.assert_array_equal(vector, gym.spaces.flatten(space, obs).astype(np.float32))
    assert vector.max() > 1.0


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            gym.spaces.Dict(x=gym.spaces.Sequence(ACTIONS)),
            r"part \['x'\] is Sequence.*number of numbers\. Wrap",
        ),
        (gym.spaces.Sequence(ACTIONS), "need observations in a Box"),
        (gym.spaces.Dict(), "need observations in a Box"),
        (gym.spaces.Box(0.0, 1.0, (0,)), r"at least one number to see, got Box\(\[\], \[\], \(0,\), float32\)"),
        (gym.spaces.Box(0.0, 1.0, (42, 42, 1), np.float16), "a Box of floats of 32 or 64 bits"),
    ],
)
def test_what_becomes_no_vector(space, message):
    assert not is_flattened(space)
    with pytest.raises(ValueError, match=message):
        check_spaces(input_space(space), ACTIONS)
