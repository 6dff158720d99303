"""Datasets of Minari: read as data, and their environment's specification not at all."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest

from rllib_kd.offline.job import LabelJob
from rllib_kd.offline.schema import DataError
from rllib_kd.offline.unlabelled_files import UnlabelledFiles
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states
from tests.offline.recorded import BOX4, DISCRETE2, label_here, read, teacher, write_minari

h5py = pytest.importorskip("h5py", reason="needs the extra minari")

IMAGE = json.dumps(
    {"type": "Box", "dtype": "uint8", "shape": [40, 40, 3]}
    | {"low": np.zeros((40, 40, 3), int).tolist(), "high": np.full((40, 40, 3), 255).tolist()}
)
SPEC = json.dumps({"id": "Evil-v0", "entry_point": "os:abort", "additional_wrappers": [], "vector_entry_point": None})


@pytest.mark.parametrize("inner", ["", "data"])
def test_hdf5(tmp_path, inner):
    folder = write_minari(tmp_path / "in", env_spec=SPEC)

    label_here(LabelJob(teacher(), str(folder / inner), str(tmp_path / "out"), batch_size=3))
    labelled = read(tmp_path / "out" / "main_data.hdf5.parquet")
    np.testing.assert_array_equal(labelled["obs"], np.concatenate([states(6, seed=i)[:5] for i in (0, 1)]))
    assert labelled["eps_id"].tolist() == ["0"] * 5 + ["1"] * 5
    assert labelled["t"].tolist() == [0, 1, 2, 3, 4] * 2
    assert labelled["terminateds"].tolist() == ([False] * 4 + [True]) * 2
    assert labelled["actions"].tolist() == [0, 1, 0, 1, 0] * 2


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("is_image", [False, True])
def test_what_minari_itself_writes(tmp_path, data_format, is_image, monkeypatch):
    minari = pytest.importorskip("minari")
    buffers = pytest.importorskip("minari.data_collector.episode_buffer")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    space = gym.spaces.Box(0, 255, (40, 40, 3), np.uint8) if is_image else gym.spaces.Box(-9, 9, (4,))
    obs = [np.full((6, 40, 40, 3), 100, np.uint8) if is_image else states(6, seed=i) for i in range(2)]
    episodes = [
        buffers.EpisodeBuffer(
            observations=list(own),
            actions=list(np.arange(5) % 2),
            rewards=[1.0] * 5,
            terminations=[False] * 4 + [True],
            truncations=[False] * 5,
        )
        for own in obs
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no author
        minari.create_dataset_from_buffers(
            "pole-v0", episodes, observation_space=space, action_space=gym.spaces.Discrete(2), data_format=data_format
        )

    policy = image_teacher() if is_image else teacher()
    label_here(LabelJob(policy, str(tmp_path / "root" / "pole-v0"), str(tmp_path / "out"), batch_size=3))
    files = sorted((tmp_path / "out").rglob("*.parquet"))
    labelled = [read(file) for file in files]
    assert len(files) == (1 if data_format == "hdf5" else 2)
    expected = np.concatenate([own[:5] for own in obs])
    np.testing.assert_array_equal(np.concatenate([columns["obs"] for columns in labelled]), expected)
    for name, values in (("t", [0, 1, 2, 3, 4]), ("actions", [0, 1, 0, 1, 0]), ("terminateds", [0, 0, 0, 0, 1])):
        np.testing.assert_array_equal(np.concatenate([columns[name] for columns in labelled]), values * 2)
    assert [episode for columns in labelled for episode in columns["eps_id"]] == ["0"] * 5 + ["1"] * 5


def image_teacher() -> Teacher:
    return Teacher.from_callable(
        lambda obs: obs.mean((1, 2))[:, :2],
        observation_space=gym.spaces.Box(0, 1, (40, 40, 3)),
        action_space=gym.spaces.Discrete(2),
    )


def test_composed_observations_and_images(tmp_path):
    space = gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": gym.spaces.Box(-1, 1, (2,))})
    parts = {
        "a": {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3},
        "b": {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2},
    }
    folder = write_minari(
        tmp_path / "in", observation_space=json.dumps({"type": "Dict", "subspaces": parts}), episodes=1
    )
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations/a"] = np.array([0, 1, 2, 0, 1, 2])
        file["episode_0/observations/b"] = states(6)[:, :2]
    policy = Teacher(make_q_module(gym.spaces.Box(-np.inf, np.inf, (5,)))).for_space(space)

    label_here(LabelJob(policy, str(folder), str(tmp_path / "out")))
    labelled = read(tmp_path / "out" / "main_data.hdf5.parquet")["obs"]
    np.testing.assert_array_equal(labelled, np.hstack([np.eye(3)[[0, 1, 2, 0, 1]], states(6)[:5, :2]]))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"observation_space": None, "env_spec": SPEC}, "does not record the 'observation_space'. Minari would make"),
        ({"action_space": None, "env_spec": SPEC}, "does not record the 'action_space'"),
        ({"action_space": BOX4}, "has the actions Box"),
        ({"action_space": DISCRETE2.replace('"start": 0', '"start": 1')}, "has the actions"),
        ({"data_format": "pickle"}, "data_format 'pickle'"),
        ({"observation_space": BOX4.replace("[4]", "[99999999999]")}, "'observation_space' cannot be read"),
        ({"observation_space": '{"type": "MultiBinary", "n": 99999999999}'}, "'observation_space' cannot be read"),
        ({"observation_space": '{"type": "Discrete", "n": 99999999999, "start": 0}'}, "cannot be read"),
        ({"observation_space": '{"type": "os.system"}'}, "cannot be read"),
        ({"observation_space": BOX4.replace("float32", "O")}, "cannot be read"),
        ({"observation_space": "[" * 100_000}, "cannot be read"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused(tmp_path, metadata, message):
    folder = write_minari(tmp_path / "in", **metadata)
    with pytest.raises(DataError, match=message) as error:
        LabelJob(teacher(), str(folder), str(tmp_path / "out"))
    assert "data/metadata.json'" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group, at: group.__setitem__("observations", h5py.ExternalLink("secret.h5", "/x")), "is a link"),
        (lambda group, at: group.__setitem__("observations", h5py.SoftLink("/episode_1/observations")), "is a link"),
        (
            lambda group, at: group.create_dataset("observations", (6, 4), "f4", external=[("/etc/passwd", 0, 96)]),
            "in other files",
        ),
        (lambda group, at: group.__setitem__("observations", states(6)[:, :3]), "has the shape"),
        (lambda group, at: group.__setitem__("observations", states(3)), "different lengths"),
        (lambda group, at: group.create_group("observations"), "is a Group, expected a Dataset"),
        (lambda group, at: group.create_dataset("observations", (6, 2**40), "f4", chunks=(1, 4)), "has the shape"),
        (lambda group, at: None, "observations': is missing"),
    ],
)
def test_hdf5_that_leads_elsewhere_or_lies_is_refused(tmp_path, change, message):
    folder = write_minari(tmp_path / "in")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        change(file["episode_0"], tmp_path)

    with pytest.raises(DataError, match=message) as error:
        LabelJob(teacher(), str(folder), str(tmp_path / "out"))
    assert "main_data.hdf5'" in str(error.value)


def test_images_are_unpacked_at_their_size_alone(tmp_path):
    from PIL import Image

    def jpeg(size: int) -> np.ndarray:
        stream = io.BytesIO()
        Image.new("RGB", (size, size), (255, 0, 0)).save(stream, "JPEG")
        return np.frombuffer(stream.getvalue(), np.uint8)

    folder = write_minari(tmp_path / "in", episodes=1, observation_space=IMAGE)
    for size in (40, 4_000):
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file["episode_0/observations"]
            images = [jpeg(40)] * 4 + [jpeg(size), jpeg(40)]
            file["episode_0"].create_dataset("observations", (6,), h5py.vlen_dtype(np.uint8))[:] = images
        if size == 40:
            label_here(LabelJob(image_teacher(), str(folder), str(tmp_path / "out"), batch_size=4))
    with pytest.raises(DataError, match=r"row 4 .*has the size \(4000, 4000\), expected \(40, 40\)"):
        LabelJob(image_teacher(), str(folder), str(tmp_path / "other"))
    labelled = read(tmp_path / "out" / "main_data.hdf5.parquet")
    assert labelled["obs"].shape == (5, 40, 40, 3)
    np.testing.assert_allclose(labelled["teacher_q"], [[1, 0]] * 5, atol=0.02)


def write_arrow(folder: Path, observations: pa.Array, **metadata: object) -> Path:
    """A dataset of one episode in Arrow, of as many steps as observations but one; return the path of its file."""
    count = len(observations)
    columns = {"actions": np.arange(count) % 2, "rewards": np.ones(count)}
    columns |= {name: np.zeros(count, bool) for name in ("terminations", "truncations")}
    batch = pa.record_batch({"observations": observations} | {name: pa.array(own) for name, own in columns.items()})
    path = write_minari(folder, data_format="arrow", **metadata) / "data" / "0" / "part-0.arrow"
    path.parent.mkdir()
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return path


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_raw_images_are_read_without_an_entry_of_their_encoding(tmp_path, data_format):
    images = np.random.default_rng(0).integers(256, size=(6, 40, 40, 3), dtype=np.uint8)
    if data_format == "arrow":
        flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images[0].size)
        write_arrow(tmp_path / "in", flat, observation_space=IMAGE)
    else:
        folder = write_minari(tmp_path / "in", episodes=1, observation_space=IMAGE)
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file["episode_0/observations"]
            file["episode_0/observations"] = images

    label_here(LabelJob(image_teacher(), str(tmp_path / "in"), str(tmp_path / "out")))
    (labelled,) = (tmp_path / "out").rglob("*.parquet")
    np.testing.assert_array_equal(read(labelled)["obs"], images[:5])


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_the_size_of_an_observation_is_known_before_it_is_read(tmp_path, data_format):
    if data_format == "arrow":
        write_arrow(tmp_path, pa.array([b"no image"] * 6), observation_space=IMAGE)
    else:
        folder = write_minari(tmp_path, episodes=1, observation_space=IMAGE)
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file["episode_0/observations"]
            file["episode_0/observations"] = np.zeros((6, 40, 40, 3), np.uint8)
    files = UnlabelledFiles([str(tmp_path)])
    assert files.obs_numbers == 40 * 40 * 3
    assert files.num_rows == 5


@pytest.mark.parametrize("shift", [4, 1_000_000, 2**30])
def test_lists_that_lead_out_of_an_arrow_file_are_refused(tmp_path, shift):
    file = write_arrow(tmp_path / "in", pa.array(list(states(6)), pa.list_(pa.float32())))
    offsets = np.arange(0, 28, 4, dtype=np.int32)
    assert file.read_bytes().count(offsets.tobytes()) == 1
    file.write_bytes(file.read_bytes().replace(offsets.tobytes(), (offsets + np.int32(shift)).tobytes()))
    with pytest.raises(DataError, match=r"part-0.arrow': cannot be read as Minari's file"):
        LabelJob(teacher(), tmp_path / "in", tmp_path / "out")


def test_more_rows_than_an_arrow_file_has_are_refused(tmp_path):
    file = write_arrow(tmp_path / "in", pa.array(list(states(6)), pa.list_(pa.float32(), 4)))
    content = file.read_bytes()
    for rows in (6, 24):  # of the columns, and of the numbers of the lists
        content = content.replace(np.int64(rows).tobytes(), np.int64(1_000 * rows).tobytes())
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"part-0.arrow': cannot be read as Minari's file"):
        LabelJob(teacher(), tmp_path / "in", tmp_path / "out")


def test_broken_hdf5_is_an_error_that_names_it(tmp_path):
    folder = write_minari(tmp_path / "in")
    file = folder / "data" / "main_data.hdf5"
    good = file.read_bytes()
    messages = []
    for place in range(0, len(good), len(good) // 40):
        file.write_bytes(good[:place] + b"\xff" * 16 + good[place + 16 :])
        try:
            LabelJob(teacher(), folder, tmp_path / "out")
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert all("main_data.hdf5'" in message for message in messages)


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_broken_tables_are_an_error_that_names_them(tmp_path, data_format):
    folder = write_minari(tmp_path / "in", data_format=data_format)
    file = folder / "data" / "0" / f"part-0.{data_format}"
    file.parent.mkdir()
    file.write_bytes(b"ARROW1 PAR1 no table")
    with pytest.raises(DataError, match=rf"data/0/part-0.{data_format}': cannot be read as"):
        LabelJob(teacher(), folder, tmp_path / "out")
