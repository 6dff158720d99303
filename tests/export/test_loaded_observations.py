"""An exported file that is loaded again sees an environment as the student did, or refuses it."""

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.algorithm.preflight import check_teacher
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.export.export import export
from rllib_kd.observations.pipeline import Flatten, ObservationPipeline, Shown
from rllib_kd.observations.spaces import input_space
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import ensemble_of
from tests.conftest import make_q_module
from tests.env_runner.runners import make_runner, sample
from tests.env_runner.test_composed_observations import config_of
from tests.export.students import SLOW_TO_PLAY, THREE_ACTIONS
from tests.export.test_exported_observations import Shows
from tests.observations.environments import Signs
from tests.observations.spaces import CASES, COMPOSED, NUMBERS, TEXTS

Box, Dict, Discrete = gym.spaces.Box, gym.spaces.Dict, gym.spaces.Discrete
CAMERA = Dict(image=Box(0, 255, (17, 16, 3), np.uint8), speed=Box(-1, 1, (3,)))
FORMATS = ["safetensors", "onnx", *SLOW_TO_PLAY]
#: How vectors are made: of the camera scaled and raw, without a part, and of other spaces.
FLATTENED = {
    "scaled": Flatten(CAMERA),
    "raw": Flatten(CAMERA, scales_images=False),
    "less": Flatten(CAMERA, ("image",)),
    **{name: Flatten(space) for name, space in (COMPOSED | TEXTS | CASES).items()},
    "binary": Flatten(NUMBERS["binary"]),
}


def student_of(stage: Flatten) -> Teacher:
    torch.manual_seed(0)
    module = make_q_module(Box(-np.inf, np.inf, (stage.size,)), THREE_ACTIONS)
    return Teacher(module, pipeline=ObservationPipeline(stage.space, (stage,)))


def is_array(space: gym.Space) -> bool:
    return isinstance(space, Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)


def exported(stage: Flatten, file, artifact_format="safetensors"):
    """Write a student of a stage; return it and its file, loaded."""
    student = student_of(stage)
    stage.space.seed(0)
    sampled = [stage.space.sample() for _ in range(20)]
    export(student, file, format=artifact_format, obs=np.stack(sampled) if is_array(stage.space) else sampled)
    return student, load_teacher(file, trust_checkpoint=True)


def outputs(policy: Teacher, space: gym.Space) -> np.ndarray:
    space.seed(1)
    view, first = policy.start(), np.ones(1, bool)
    samples = [space.sample() for _ in range(10)]
    seen = [view(Shown(np.stack([each]) if is_array(space) else each, first)) for each in samples]
    return policy.q_values(torch.from_numpy(np.concatenate(seen))).numpy()


@pytest.mark.parametrize("artifact_format", FORMATS)
@pytest.mark.parametrize("name", ["raw", "less", "with texts", *CASES, "binary"])
def test_a_loaded_file_makes_the_vectors_that_it_records(name, artifact_format, tmp_path):
    space = FLATTENED[name].space
    student, loaded = exported(FLATTENED[name], tmp_path / "student", artifact_format)
    (fitted,) = check_players_fit(lambda: Shows(space), {"The policy": loaded})
    np.testing.assert_allclose(outputs(fitted, space), outputs(student, space), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FLATTENED)
def test_vectors_are_made_as_the_students_were(name, tmp_path):
    space = FLATTENED[name].space
    student, loaded = exported(FLATTENED[name], tmp_path / "student")
    fitted = loaded.for_space(space)
    assert fitted.takes(space)
    np.testing.assert_allclose(outputs(fitted, space), outputs(student, space), rtol=1e-5, atol=1e-5)
    if loaded.pipeline is not None:  # training sees the same
        assert loaded.with_recorded_vectors(space).pipeline == fitted.pipeline


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (Dict(a=Discrete(3), b=Discrete(2)), Dict(a=Discrete(2), b=Discrete(3))),
        (Dict(a=Discrete(3, start=1), b=Box(-1, 1, (2,))), Dict(pos=Box(-1, 1, (2,)), vel=Box(-1, 1, (3,)))),
        (Dict(a=Discrete(3), b=Box(-1, 1, (2,))), Box(-1, 1, (1, 5))),
        (Dict(a=Discrete(3), b=Box(-1, 1, (2,))), gym.spaces.MultiBinary(5)),
    ],
)
def test_another_environment_with_vectors_of_the_same_length_is_refused(own, other, tmp_path):
    _, loaded = exported(Flatten(own), tmp_path / "student")
    message = r"student' takes vectors that are made of \['a'\] as one_hot lengths=\[3\] .* those of this environment"
    with pytest.raises(ValueError, match=message):
        check_players_fit(lambda: Shows(other), {"The policy": loaded})
    with pytest.raises(ValueError, match=message):
        check_teacher(loaded, (other, THREE_ACTIONS), "Other", seen=Box(-1, 1, (5,)))
    check_teacher(loaded, (own, THREE_ACTIONS), "Own", seen=Box(-1, 1, (5,)))


def test_parts_of_another_size_are_no_match(tmp_path):
    _, loaded = exported(Flatten(Dict(a=Box(-1, 1, (2,)))), tmp_path / "student")
    with pytest.raises(ValueError, match="was made for observations"):
        check_players_fit(lambda: Shows(Dict(a=Box(-1, 1, (3,)))), {"The policy": loaded})


def test_a_space_that_is_given_makes_the_recorded_vectors(tmp_path):
    student, _ = exported(FLATTENED["raw"], tmp_path / "student")
    loaded = load_teacher(tmp_path / "student", pipeline=ObservationPipeline(CAMERA))
    assert loaded.pipeline.stages == (FLATTENED["raw"],)
    np.testing.assert_allclose(outputs(loaded, CAMERA), outputs(student, CAMERA), rtol=1e-5, atol=1e-5)


def test_members_of_an_ensemble_get_vectors_of_their_own(tmp_path):
    one, first = exported(FLATTENED["raw"], tmp_path / "raw")
    other, second = exported(FLATTENED["scaled"], tmp_path / "scaled")
    expected = (outputs(one, CAMERA) + outputs(other, CAMERA)) / 2
    ensemble = ensemble_of([first, second]).for_space(CAMERA)
    np.testing.assert_allclose(outputs(ensemble, CAMERA), expected, rtol=1e-4, atol=1e-4)
    alike = ensemble_of([first, first]).for_space(CAMERA)
    np.testing.assert_allclose(outputs(alike, CAMERA), outputs(one, CAMERA), rtol=1e-5, atol=1e-5)


def test_an_ensemble_of_a_file_and_a_network_without_parts_teaches(cluster, tmp_path):
    space = Signs.observation_space
    student, file = exported(Flatten(space), tmp_path / "student")
    ensemble = ensemble_of([file, Teacher(student.module)])
    check_teacher(ensemble, (space, THREE_ACTIONS), "Own", seen=input_space(space))
    (columns,), _ = sample(make_runner(config_of(Signs), ensemble))
    (expected,), _ = sample(make_runner(config_of(Signs), student))
    np.testing.assert_allclose(columns["teacher_q"], expected["teacher_q"], rtol=1e-4, atol=1e-4)


def test_a_file_that_is_exported_again_keeps_its_parts(tmp_path):
    _, loaded = exported(FLATTENED["raw"], tmp_path / "student")
    size = FLATTENED["raw"].size
    export(loaded, tmp_path / "again", format="safetensors", obs=np.ones((3, size), np.float32))
    assert load_teacher(tmp_path / "again").pipeline.parts == FLATTENED["raw"].parts


def test_a_file_of_discrete_numbers_refuses_other_ones(tmp_path):
    """Files of a network of any kind, and those of described layers."""
    for artifact_format in ("safetensors", "onnx"):
        _, loaded = exported(FLATTENED["start"], tmp_path / "student", artifact_format)
        assert loaded.observation_space == CASES["start"]
        for other in (Discrete(4), Discrete(5, start=-2), gym.spaces.MultiDiscrete([4])):
            with pytest.raises(ValueError, match=r"was made for observations Discrete\(4, start=-2\)"):
                check_players_fit(lambda other=other: Shows(other), {"The policy": loaded})


@pytest.mark.parametrize(("name", "shape"), [("discrete", r"\[\]"), ("with texts", r"\[\d+\]")])
def test_a_divisor_beside_a_file_is_for_images(name, shape, tmp_path):
    exported(FLATTENED[name], tmp_path / "student.onnx", "onnx")
    (tmp_path / "student.json").write_text('{"divisor": 255}')
    with pytest.raises(ValueError, match=f"has a divisor, which is for images, but its inputs have the shape {shape}"):
        load_teacher(tmp_path / "student.onnx")


@pytest.mark.parametrize("note", ["[]", "{}", '{"lengths": [3], "starts": [0, 0]}', '{"lengths": [0], "starts": [0]}'])
def test_discrete_numbers_that_make_no_sense_are_refused(note, tmp_path):
    exported(FLATTENED["discrete"], tmp_path / "student", "onnx")
    model = onnx.load(tmp_path / "student")
    onnx.helper.set_model_props(model, {"discrete_numbers": note})
    onnx.save(model, tmp_path / "student")
    with pytest.raises(ValueError, match=r"note that cannot be read: its discrete_numbers are .* a length and a start"):
        load_teacher(tmp_path / "student")


@pytest.mark.parametrize("parts", ["{}", "[1]", '[{"path": "a"}]', '[{"path": [[]]}]'])
def test_a_description_that_makes_no_sense_is_refused(parts, tmp_path):
    exported(FLATTENED["less"], tmp_path / "student")
    content = (tmp_path / "student").read_bytes()
    header, weights = content[8 : 8 + int.from_bytes(content[:8], "little")], content[8:]
    written = header.replace(
        b'[{\\"path\\": [\\"speed\\"], \\"op\\": \\"numbers\\"}]', parts.replace('"', '\\"').encode()
    )
    assert written != header
    (tmp_path / "student").write_bytes(len(written).to_bytes(8, "little") + written + weights[len(header) :])
    with pytest.raises(ValueError, match=r"its observation_parts are .* expected a list of objects with a path"):
        load_teacher(tmp_path / "student")
