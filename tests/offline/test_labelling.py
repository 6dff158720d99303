"""From recorded observations of any kind to a teacher's inputs."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.export.export import export
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.pipeline import (
    Flatten,
    Function,
    Images,
    Normalize,
    ObservationPipeline,
    RLlibConnectors,
    SideBySide,
    StackFrames,
)
from rllib_kd.offline.fingerprint import agree, fingerprint, short
from rllib_kd.offline.job import LabelJob
from rllib_kd.offline.labelling import Labeller
from rllib_kd.offline.rows import LearnerColumns
from rllib_kd.offline.schema import DataError, LabelledSchema, to_table
from rllib_kd.offline.stream import Piece
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import ensemble_of
from tests.conftest import make_q_module, states
from tests.offline.recorded import label_here, lists, read, rows, teacher, write_parquet

ACTIONS = gym.spaces.Discrete(2)
COMPOSED = gym.spaces.Dict(
    {"a": gym.spaces.Discrete(3, start=1), "b": gym.spaces.Tuple([gym.spaces.Text(9), gym.spaces.Box(-1, 1, (2,))])}
)


def vector_teacher(space: gym.Space) -> Teacher:
    """A teacher that takes vectors that are made of the observations."""
    return Teacher(make_q_module(gym.spaces.Box(-np.inf, np.inf, (Flattener(space).size,)))).for_space(space)


def test_composed_observations_of_structs_become_vectors_which_get_the_same_labels(tmp_path):
    a, texts, numbers = np.array([1, 3, 2]), ["go north", "", "go"], states(3)[:, :2]
    inner = pa.StructArray.from_arrays([pa.array(texts), lists(numbers)], ["0", "1"])
    struct = pa.StructArray.from_arrays([pa.array(a), inner, pa.array([0] * 3)], ["a", "b", "other"])
    write_parquet(tmp_path / "in" / "a.parquet", {"obs": struct})
    policy = vector_teacher(COMPOSED)

    label_here(LabelJob(policy, str(tmp_path / "in"), str(tmp_path / "out")))
    labelled = read(tmp_path / "out" / "a.parquet")
    vectors = Flattener(COMPOSED)({"a": a, "b": (texts, numbers)}, 3)
    np.testing.assert_array_equal(labelled["obs"], vectors)
    np.testing.assert_allclose(labelled["teacher_q"], policy.q_values(torch.as_tensor(vectors)).numpy(), rtol=1e-5)

    label_here(LabelJob(policy, str(tmp_path / "out"), str(tmp_path / "again")))  # labelled files are recorded, too
    again = read(tmp_path / "again" / "a.parquet")
    np.testing.assert_array_equal(again["obs"], vectors)
    np.testing.assert_allclose(again["teacher_q"], labelled["teacher_q"], rtol=1e-5)


@pytest.mark.parametrize(
    ("struct", "message"),
    [
        ({"a": [1]}, "column 'obs': has no part 'b'"),
        ({"a": [4], "b": [{"0": "x", "1": [0.0, 0.0]}]}, r"obs\['a'\]|contains the number 4, but its space has 1 to 3"),
        ({"a": [1], "b": [{"0": "x"}]}, "column 'obs.b': has no part 1"),
        ({"a": [1], "b": [{"0": "x", "1": [0.0, 0.0, 0.0]}]}, "column 'obs': has no observations of Dict"),
        ({"a": [1], "b": [{"0": "x", "1": [np.nan, 0.0]}]}, "column 'obs': row 0: has the number nan"),
    ],
)
def test_composed_observations_of_another_kind_are_refused(struct, message):
    array = pa.StructArray.from_arrays([pa.array(values) for values in struct.values()], list(struct))
    from rllib_kd.offline.arrays import to_array

    with pytest.raises(DataError, match=message):
        Labeller(vector_teacher(COMPOSED))({"obs": to_array(array, file="f", column="obs")}, file="f")


def test_parts_have_the_axes_of_their_space():
    spaces = gym.spaces
    space = spaces.Dict(
        eye=spaces.Box(0, 255, (16, 20, 3), np.uint8),
        grid=spaces.Box(-9, 9, (3, 4)),
        on=spaces.MultiBinary([2, 3]),
        speed=spaces.Box(-9, 9, (8,)),
    )
    labeller, rng = Labeller(vector_teacher(space)), np.random.default_rng(0)
    obs = {"eye": rng.integers(256, size=(2, 16, 20, 3), dtype=np.uint8), "grid": rng.normal(size=(2, 3, 4))}
    obs |= {"on": rng.integers(2, size=(2, 2, 3)), "speed": rng.normal(size=(2, 8))}
    expected = labeller({"obs": obs})["obs"]
    for name, same in (
        ("eye", np.moveaxis(obs["eye"], -1, 1)),
        ("eye", obs["eye"].reshape(2, -1)),
        ("grid", obs["grid"].reshape(2, 12)),
        ("grid", obs["grid"][:, None]),
        ("on", obs["on"].reshape(2, 6)),
        ("speed", obs["speed"].reshape(2, 4, 2)),  # a vector has one order
    ):
        np.testing.assert_array_equal(labeller({"obs": obs | {name: same}})["obs"], expected)
    for name, other in (
        ("eye", np.swapaxes(obs["eye"], 1, 2)),
        ("eye", obs["eye"].reshape(2, 8, 40, 3)),
        ("eye", obs["eye"][:, 0].reshape(2, -1)),
        ("grid", np.swapaxes(obs["grid"], 1, 2)),
        ("on", np.swapaxes(obs["on"], 1, 2)),
    ):
        with pytest.raises(
            DataError, match=rf"column 'obs.{name}': has observations of the shape \[.*; the teacher ta"
        ):
            labeller({"obs": obs | {name: other}})
    switches = Labeller(vector_teacher(space["on"]))
    assert len(switches({"obs": obs["on"]})["obs"]) == 2
    with pytest.raises(DataError, match=r"column 'obs': has observations of the shape \[3, 2\]; the teacher takes"):
        switches({"obs": np.swapaxes(obs["on"], 1, 2)})


def test_discrete_observations_become_one_hot():
    labeller = Labeller(vector_teacher(gym.spaces.Discrete(4)))
    assert labeller({"obs": np.array([0, 3])})["obs"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    with pytest.raises(DataError, match="contains the number 4, but its space has 0 to 3"):
        labeller({"obs": np.array([4])})


def test_a_function_of_parts_takes_no_vectors():
    space = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (4,)), "b": gym.spaces.Box(-1, 1, (2,))})
    policy = teacher()
    policy.pipeline = ObservationPipeline(space, (Function(lambda obs: obs["a"]),))
    obs = {"a": states(3), "b": states(3)[:, :2]}

    labelled = Labeller(policy)({"obs": obs})
    assert labelled["obs"].shape == (3, 6)
    np.testing.assert_allclose(labelled["teacher_q"], policy.q_values(torch.as_tensor(obs["a"])).numpy(), rtol=1e-5)
    with pytest.raises(DataError, match="column 'obs': has vectors, but the teacher takes Dict"):
        Labeller(policy)({"obs": labelled["obs"]})


def test_masks_in_observations_are_taken_from_their_column():
    space = gym.spaces.Dict({"observations": gym.spaces.Box(-9, 9, (4,)), "action_mask": gym.spaces.MultiBinary(2)})
    policy = Teacher(make_q_module(space["observations"]), pipeline=ObservationPipeline(space["observations"]))
    labelled = Labeller(policy)({"obs": states(2), "action_mask": np.array([[1, 0], [1, 1]], np.uint8)})
    assert labelled["teacher_q"][0, 1] == -np.inf
    assert np.isfinite(labelled["teacher_q"][1]).all()


def test_bytes_stay_bytes_and_channels_where_they_are():
    policy = Teacher.from_callable(
        lambda obs: obs.mean((1, 2))[:, :2],
        observation_space=gym.spaces.Box(0, 1, (16, 16, 3)),
        action_space=ACTIONS,
    )
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[..., 1] = 255
    for given in (images, np.moveaxis(images, -1, 1), images.reshape(2, -1)):
        labelled = Labeller(policy)({"obs": given})
        assert labelled["obs"].dtype == np.uint8
        assert labelled["obs"].shape == (images if given.ndim == 2 else given).shape
        np.testing.assert_allclose(labelled["teacher_q"], [[0, 1]] * 2)


def test_images_of_other_integers_are_refused():
    space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    policy = Teacher.from_callable(
        lambda obs: obs.mean((1, 2))[:, :2], observation_space=gym.spaces.Box(0, 1, space.shape), action_space=ACTIONS
    ).for_space(space)
    policy.pipeline = ObservationPipeline(space)
    with pytest.raises(DataError, match="has images of int64"):
        Labeller(policy)({"obs": np.zeros((2, 16, 16, 3), np.int64)})


@pytest.mark.parametrize("stage", [StackFrames(4), RLlibConnectors(None)])
@pytest.mark.parametrize("is_member", [False, True])
def test_teachers_that_remember_earlier_steps_are_refused(stage, is_member):
    policy = teacher()
    pipeline = ObservationPipeline(policy.input_space, (stage,))
    policy.pipeline = ObservationPipeline(policy.input_space, (SideBySide((pipeline,)),)) if is_member else pipeline
    with pytest.raises(ValueError, match="remember earlier steps; rows of files are labelled one by one"):
        Labeller(policy)


def test_recurrent_teachers_are_refused():
    policy = Teacher(make_q_module(use_lstm=True, lstm_cell_size=4))
    with pytest.raises(ValueError, match=r"is recurrent and remembers earlier steps; rows .* rllib train --output"):
        Labeller(policy)


def test_a_teacher_that_returns_nan_is_named_with_the_row():
    policy = Teacher.from_callable(
        lambda obs: torch.where(obs[:, :2] > 100, torch.nan, 0.0),
        observation_space=gym.spaces.Box(-np.inf, np.inf, (4,)),
        action_space=ACTIONS,
    )
    obs = states(4)
    obs[2, 1] = 101
    with pytest.raises(
        DataError, match=r"'f', column 'teacher_q': row 12: the teacher '<lambda>' returns \[0.0, nan\]"
    ):
        Labeller(policy)({"obs": obs}, file="f", start=10)


def test_labelled_rows_without_a_legal_action_are_refused():
    labeller = Labeller(teacher())
    columns = labeller({"obs": states(3), "action_mask": np.ones((3, 2), bool)})
    take = LearnerColumns(("obs", "teacher_q"), teacher(), labeller.schema_of(columns))
    assert len(take(Piece(dict(columns), "f"))["teacher_q"]) == 3
    columns["action_mask"][1] = False
    with pytest.raises(DataError, match="'f', column 'action_mask': row 1: allows no action; expected at least one"):
        take(Piece(columns, "f"))


def test_normalisation_is_the_teachers():
    policy = teacher()
    policy.pipeline = ObservationPipeline(policy.input_space, (Normalize(np.ones(4), np.full(4, 2.0), None),))
    labelled = Labeller(policy)({"obs": states(3)})
    np.testing.assert_array_equal(labelled["obs"], states(3))
    expected = policy.q_values(torch.as_tensor((states(3) - 1) / 2)).numpy()
    np.testing.assert_allclose(labelled["teacher_q"], expected, rtol=1e-5)


def test_a_fingerprint_is_of_all_that_makes_labels():
    one, other = teacher(), teacher(seed=1)
    normalized, ranked = teacher(), teacher()
    normalized.pipeline = ObservationPipeline(one.input_space, (Normalize(np.ones(4), None, None),))
    ranked.outputs = "log_probs"
    ensemble = load_teacher([one, other])
    prints = [fingerprint(policy) for policy in (one, other, normalized, ranked, ensemble)]

    assert all(len(text) == 80 for text in prints)
    assert len({text[:64] for text in prints}) == 5
    assert fingerprint(teacher()) == fingerprint(pickle.loads(pickle.dumps(one))) == prints[0]
    function = Teacher.from_callable(lambda obs: obs[:, :2], observation_space=one.input_space, action_space=ACTIONS)
    assert fingerprint(function) == ""
    layers = Teacher.from_callable(torch.nn.Linear(4, 2), observation_space=one.input_space, action_space=ACTIONS)
    assert len(fingerprint(layers)) == 80


def test_a_fingerprint_is_of_what_teachers_do_with_equal_weights():
    space = gym.spaces.Box(-np.inf, np.inf, (4,))
    weights, prints = torch.nn.Linear(4, 2), {}
    for activation in (torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.ELU(), torch.nn.ELU(2.0)):
        layers = torch.nn.Sequential(weights, activation, torch.nn.Linear(2, 2))
        layers[2].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        policy = Teacher.from_callable(layers, observation_space=space, action_space=ACTIONS)
        prints[str(activation)] = fingerprint(policy)
    members = [teacher(), teacher(seed=1)]
    prints |= {str(each): fingerprint(ensemble_of(members, policy_temperature=each)) for each in (None, 0.1, 5.0)}
    images = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 16 * 3, 2))
    for scaled in (True, False):
        prints[f"scaled {scaled}"] = fingerprint(
            Teacher.from_callable(
                network,
                observation_space=gym.spaces.Box(0, 255, images.shape),
                action_space=ACTIONS,
                pipeline=ObservationPipeline(images, (Images(images.shape, scaled=scaled),)),
            )
        )
    assert len(set(prints.values())) == len(prints)
    assert len({text[:64] for text in prints.values()}) == 3

    one, other = prints["ReLU()"], prints["Tanh()"]
    assert not agree(one, other)
    assert agree(one, other[:64])  # an older one
    assert short(one)[:12] == short(other)[:12] != short(one) != short(other)


@pytest.mark.parametrize("end", ["onnx", "pt2"])
def test_programs_have_the_fingerprint_of_their_file(tmp_path, end):
    files = [tmp_path / f"{seed}.{end}" for seed in (0, 1)]
    for seed, file in enumerate(files):
        export(teacher(seed=seed), file, format=end, obs=states(8))
    one, same, other = (fingerprint(load_teacher(file, trust_checkpoint=True)) for file in (files[0], *files))
    assert one == same != other
    assert len(one) == len(other) == 80


def test_a_schema_is_of_the_teacher_and_the_rows():
    labeller = Labeller(teacher())
    schema = labeller.schema_of(labeller(rows()), env="E-v1")
    assert (schema.obs_shape, schema.obs_dtype, schema.num_actions, schema.env) == ((4,), "float32", 2, "E-v1")
    assert schema.fingerprint == fingerprint(teacher())
    assert replace(schema, recorded=()) == labeller.schema_of(labeller({"obs": states(3)}), env="E-v1")


def test_images_of_labelled_files_are_labelled_again(tmp_path):
    policy = Teacher.from_callable(
        lambda obs: obs.mean((1, 2))[:, :2], observation_space=gym.spaces.Box(0, 1, (16, 16, 3)), action_space=ACTIONS
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    write_parquet(tmp_path / "in" / "a.parquet", {"obs": images})
    label_here(LabelJob(policy, tmp_path / "in", tmp_path / "out", batch_size=2))
    label_here(LabelJob(policy, tmp_path / "out", tmp_path / "again", batch_size=2))
    for folder in ("out", "again"):
        np.testing.assert_array_equal(read(tmp_path / folder / "a.parquet")["obs"], images)


def test_labelled_images_keep_the_order_of_their_axes_and_stacks_their_frames(tmp_path):
    policy = Teacher.from_callable(
        lambda obs: obs.mean((1, 2))[:, :2], observation_space=gym.spaces.Box(0, 1, (16, 16, 4)), action_space=ACTIONS
    )
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 16), np.uint8)
    stacks = np.stack([np.moveaxis(frames[i : i + 4], 0, -1) for i in range(9)])
    for name, images, num_frames in (("first", np.moveaxis(stacks, -1, 1), 1), ("stacks", stacks, 4)):
        write_images(tmp_path / name / "a.parquet", images, num_frames=num_frames)
        label_here(LabelJob(policy, tmp_path / name, tmp_path / f"{name}-out", batch_size=2))
        labelled = read(tmp_path / f"{name}-out" / "a.parquet")
        np.testing.assert_array_equal(labelled["obs"], images)
        np.testing.assert_allclose(labelled["teacher_q"], Labeller(policy)({"obs": images})["teacher_q"], rtol=1e-5)


def write_images(path: Path, images: np.ndarray, *, num_frames: int) -> None:
    """A labelled file of two row groups."""
    rows = {"obs": images, "teacher_q": np.zeros((len(images), 2), np.float32)}
    schema = LabelledSchema.of_rows(rows, support=None, num_frames=num_frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema.to_arrow()) as writer:
        for part in (slice(0, 5), slice(5, None)):
            writer.write_table(to_table({name: values[part] for name, values in rows.items()}, schema))


def test_images_of_truth_values_are_zeros_and_ones_to_networks():
    space = gym.spaces.Box(0, 1, (16, 16, 3), np.bool_)
    policy = Teacher.from_callable(
        lambda obs: obs.mean((1, 2))[:, :2], observation_space=gym.spaces.Box(0, 1, space.shape), action_space=ACTIONS
    )
    for given in (np.ones((2, 16, 16, 3), bool), np.ones((2, 16 * 16 * 3), bool)):
        labelled = Labeller(policy)({"obs": given})
        assert (labelled["obs"].dtype, labelled["obs"].max()) == (np.uint8, 255)
        np.testing.assert_allclose(labelled["teacher_q"], [[1, 1]] * 2)
    assert Labeller(teacher())({"obs": np.ones((2, 4), bool)})["obs"].tolist() == [[1] * 4] * 2


def test_teachers_that_do_not_divide_see_truth_values_as_the_environment_shows_them():
    shape, given = (16, 16, 3), np.ones((2, 16, 16, 3), bool)
    flat = (Flatten(gym.spaces.Box(0, 1, shape, np.bool_)),)
    for space, stages in ((gym.spaces.Box(-np.inf, np.inf, shape), ()), (gym.spaces.Box(0, 1, (768,)), flat)):
        policy = Teacher.from_callable(
            lambda obs: obs.flatten(1)[:, :2],
            observation_space=space,
            action_space=ACTIONS,
            pipeline=ObservationPipeline(gym.spaces.Box(0, 1, shape, np.bool_), stages),
        )
        labelled = Labeller(policy)({"obs": given})
        np.testing.assert_array_equal(labelled["teacher_q"], [[1, 1]] * 2)
        np.testing.assert_array_equal(labelled["obs"], np.full((2, *shape), 255, np.uint8))


def test_parts_are_labelled_by_a_teacher_of_vectors_that_knows_their_space():
    space = gym.spaces.Dict(at=gym.spaces.Discrete(3), speed=gym.spaces.Box(-1, 1, (2,)))
    rows = {"obs": {"at": np.array([2, 0]), "speed": np.array([[0.5, 0.25], [0, 1]], np.float32)}}
    given = {"observation_space": gym.spaces.Box(-np.inf, np.inf, (5,)), "action_space": ACTIONS}
    policy = Teacher.from_callable(lambda obs: obs[:, -2:], **given, pipeline=ObservationPipeline(space))
    np.testing.assert_array_equal(Labeller(policy)(rows)["teacher_q"], [[0.5, 0.25], [0, 1]])
    with pytest.raises(DataError, match=r"Load it with the space of the parts: .*pipeline=ObservationPipeline\(space"):
        Labeller(Teacher.from_callable(lambda obs: obs[:, -2:], **given))(rows)
    with pytest.raises(ValueError, match=r"takes Dict\(.*observation_space=gymnasium.spaces.flatten_space\(space\)"):
        Teacher.from_callable(lambda obs: obs, observation_space=space, action_space=ACTIONS)


@pytest.mark.parametrize("shape", [(16, 20, 3), (4, 16, 16)])
def test_only_flat_observations_get_another_shape(shape):
    policy = Teacher.from_callable(
        lambda obs: obs.flatten(1)[:, :2],
        observation_space=gym.spaces.Box(-np.inf, np.inf, shape),
        action_space=ACTIONS,
    )
    obs = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    flat = Labeller(policy)({"obs": obs.reshape(2, -1)})
    np.testing.assert_array_equal(flat["obs"], obs)
    alone = obs.reshape(2, 1, *shape)  # an axis of one has no order
    np.testing.assert_array_equal(Labeller(policy)({"obs": alone})["obs"], obs)
    other = obs.reshape(2, *shape[::-1])
    with pytest.raises(DataError, match=r"has observations of the shape \[\d+, \d+, \d+\]; the teacher takes"):
        Labeller(policy)({"obs": other})


def test_bytes_that_became_floats_are_refused():
    policy = Teacher.from_callable(
        lambda obs: obs.mean((1, 2))[:, :2], observation_space=gym.spaces.Box(0, 1, (16, 16, 3)), action_space=ACTIONS
    )
    obs = np.ones((3, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(Labeller(policy)({"obs": obs})["teacher_q"], [[1, 1]] * 3)
    obs[2] = 200
    with pytest.raises(DataError, match=r"row 2: has images of floats up to 200, but the teacher takes bytes, or fl"):
        Labeller(policy)({"obs": obs})
    with pytest.raises(DataError, match=r"row 0: has the number 1e\+300. Expected finite numbers, that 32-bit"):
        Labeller(teacher())({"obs": np.full((1, 4), 1e300)})


def sees_first_pixels(space: gym.Space, *, scaled: bool | None) -> Teacher:
    """A teacher whose Q-values are pixels as it sees them; `scaled` as of `Images`, None without a pipeline."""
    return Teacher.from_callable(
        lambda obs: obs[:, 0, 0, :2],
        observation_space=gym.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32)),
        action_space=ACTIONS,
        pipeline=None if scaled is None else ObservationPipeline(space, (Images(space.shape, scaled=scaled),)),
    )


@pytest.mark.parametrize(
    ("space", "scaled", "given", "seen", "written"),
    [
        (gym.spaces.Box(0, 255, (16, 16, 3), np.float32), None, np.uint8(200), 200, np.float32(200)),
        (gym.spaces.Box(0, 1, (16, 16, 3), np.bool_), True, np.uint8(1), 1, np.uint8(255)),
        (gym.spaces.Box(0, 1, (16, 16, 3), np.bool_), True, np.uint8(255), 1, np.uint8(255)),  # labelled once
        (gym.spaces.Box(0, 1, (16, 16, 3), np.bool_), None, np.uint8(255), 1, np.uint8(255)),
        (gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), False, np.float32(0.2), 51, np.uint8(51)),
        (gym.spaces.Box(0, 1, (16, 16, 3), np.uint8), False, np.float32(1), 1, np.uint8(1)),
        (gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), True, np.float32(0.2), 0.2, np.float32(0.2)),
        (gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), False, np.uint8(51), 51, np.uint8(51)),
    ],
)
def test_images_are_seen_and_written_on_the_scale_of_the_environment(space, scaled, given, seen, written):
    labelled = Labeller(sees_first_pixels(space, scaled=scaled))({"obs": np.full((3, *space.shape), given)})
    np.testing.assert_allclose(labelled["teacher_q"], seen)
    assert labelled["obs"].dtype == written.dtype
    np.testing.assert_allclose(labelled["obs"], written)


def test_floats_above_1_are_no_bytes_for_any_teacher():
    policy = sees_first_pixels(gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), scaled=False)
    with pytest.raises(DataError, match=r"row 0: has images of floats up to 200, but the teacher takes bytes, or fl"):
        Labeller(policy)({"obs": np.full((3, 16, 16, 3), 200.0, np.float32)})


def test_a_teacher_that_writes_into_its_inputs_leaves_observations_as_they_were():
    def q(obs: torch.Tensor) -> torch.Tensor:
        obs -= 1.0
        return obs[:, :2]

    space, ones = gym.spaces.Box(-np.inf, np.inf, (4,)), np.ones((2, 4), np.float32)
    policy = Teacher.from_callable(q, observation_space=space, action_space=ACTIONS)
    same = Teacher.from_callable(lambda obs: obs[:, :2], observation_space=space, action_space=ACTIONS)
    labelled = Labeller(policy)({"obs": ones})
    np.testing.assert_array_equal(labelled["obs"], np.ones((2, 4)))
    np.testing.assert_array_equal(labelled["teacher_q"], np.zeros((2, 2)))
    np.testing.assert_array_equal(Labeller(load_teacher([policy, same]))({"obs": ones})["teacher_q"], [[0.5, 0.5]] * 2)
    np.testing.assert_array_equal(ones, np.ones((2, 4)))


def test_a_teacher_that_knows_illegal_actions_itself():
    def q(obs: torch.Tensor) -> torch.Tensor:
        return torch.stack([obs[:, 0], torch.full_like(obs[:, 0], -torch.inf)], 1)

    space = gym.spaces.Box(-np.inf, np.inf, (4,))
    policy = Teacher.from_callable(q, observation_space=space, action_space=ACTIONS)
    assert Labeller(policy)({"obs": states(3)})["teacher_q"][:, 1].tolist() == [-np.inf] * 3
