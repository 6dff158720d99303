"""The HTTP application: answers equal the network's, and no request ends it."""

import asyncio
import json
import threading

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra serve")

from rllib_kd.evaluation.sources import open_source
from rllib_kd.export.export import export
from rllib_kd.export.serve.app import make_app
from rllib_kd.export.serve.batching import Batches
from rllib_kd.export.serve.policy import ServedPolicy
from rllib_kd.export.serve.requests import MAX_BODY, RequestError, RequestReader
from rllib_kd.observations.pipeline import Flatten, ObservationPipeline, RLlibConnectors, StackFrames
from rllib_kd.observations.spaces import input_space
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_OBS, make_q_module
from tests.export.serve.client import ask, asked

STATE = [0.1, -0.2, 0.3, 0.4]
PARTS = gym.spaces.Dict(
    {
        "numbers": gym.spaces.Box(-1.0, 1.0, (2,), np.float64),
        "pair": gym.spaces.Tuple((gym.spaces.Discrete(3, start=-1), gym.spaces.MultiDiscrete([2, 3]))),
        "bytes": gym.spaces.Box(0, 255, (2, 2), np.uint8),
        "bits": gym.spaces.MultiBinary(2),
        "mission": gym.spaces.Text(20),
    }
)
PART = {"numbers": [0.5, -0.5], "pair": [-1, [1, 2]], "bytes": [[0, 255], [1, 2]], "bits": [0, 1], "mission": "go left"}


def served(space: gym.Space = CARTPOLE_OBS, *stages, **kwargs) -> ServedPolicy:
    pipeline = ObservationPipeline(space, stages) if stages else None
    return ServedPolicy(Teacher(make_q_module(input_space(space), **kwargs), pipeline=pipeline))


@pytest.fixture(scope="module")
def policy() -> ServedPolicy:
    return served()


@pytest.fixture(scope="module")
def app(policy):
    return make_app(policy)


@pytest.fixture(scope="module")
def parts_app():
    return make_app(served(PARTS, Flatten(PARTS)))


def test_actions_and_q_values_are_those_of_the_network(policy, app):
    states = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    status, answer = asked(app, "/act", {"observations": states.tolist()})
    expected = policy.network.q_values(torch.from_numpy(states))
    assert status == 200
    assert answer["actions"] == expected.argmax(-1).tolist()
    np.testing.assert_allclose(answer["q_values"], expected, rtol=1e-6)


def test_illegal_actions_are_not_taken(app):
    best = asked(app, "/act", {"observations": [STATE]})[1]["actions"][0]
    mask = [[int(action != best) for action in range(2)]]
    for given in (mask, [[bool(legal) for legal in mask[0]]]):
        status, answer = asked(app, "/act", {"observations": [STATE], "action_masks": given})
        assert (status, answer["actions"]) == (200, [1 - best])
        assert answer["q_values"][0][best] is None


def test_observations_of_several_parts_are_read_by_their_space(parts_app):
    status, answer = asked(parts_app, "/act", {"observations": [PART, PART | {"mission": "go right"}]})
    assert status == 200
    assert answer["q_values"][0] != answer["q_values"][1]
    example = asked(parts_app, "/policy")[1]["example"]
    assert asked(parts_app, "/act", example)[0] == 200


BAD = {
    "an empty body": (b"", "not JSON"),
    "a text": (b"hello", "not JSON"),
    "not UTF-8": (b"\xff\xfe{", "not JSON"),
    "null": (b"null", "The body is null"),
    "a list": (b"[]", "The body is a list"),
    "NaN": (b'{"observations": [[NaN, 0, 0, 0]]}', "The body has NaN"),
    "infinity": (b'{"observations": [[-Infinity, 0, 0, 0]]}', "The body has -Infinity"),
    "an infinity by its exponent": (b'{"observations": [[1e999, 0, 0, 0]]}', "32-bit floats"),
    "too large for 32 bits": (b'{"observations": [[0, 1e39, 0, 0]]}', "'observations'[0] has the number 1e+39"),
    "too large for the network": (b'{"observations": [[3e38, 3e38, 3e38, 3e38]]}', "so large"),
    "too many digits": (b'{"observations": [[' + b"9" * 10_000 + b", 0, 0, 0]]}", "not JSON"),
    "an integer of 71 bits": (b'{"observations": [[1180591620717411303424, 0, 0, 0]]}', "integers beyond 64 bits"),
    "deep": (b'{"observations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "deeper than an array": (b'{"observations": ' + b"[" * 80 + b"]" * 80 + b"}", "shape [4]"),
    "another shape": ({"observations": [STATE, [0.0]]}, "'observations'[1] must be numbers of the shape [4], got"),
    "one observation, not a list": ({"observations": STATE}, "'observations'[0] must be numbers of the shape [4]"),
    "texts for numbers": ({"observations": [["0", "0", "0", "0"]]}, "other things than numbers"),
    "null for a number": ({"observations": [[None, 0, 0, 0]]}, "other things than numbers"),
    "no observation": ({"observations": []}, "got 0 of them"),
    "too many": ({"observations": [STATE] * 1025}, "got 1025 of them"),
    "no list": ({"observations": {"0": STATE}}, "got an object"),
    "a misspelt key": ({"observations": [STATE], "action_mask": [[1, 1]]}, "unknown key 'action_mask'"),
    "half a surrogate pair": (b'{"observations": [[0, 0, 0, 0]], "\\ud800\\u001b[31m": 1}', "unknown key"),
    "no legal action": ({"observations": [STATE], "action_masks": [[0, 0]]}, "has no legal action"),
    "a mask of other numbers": ({"observations": [STATE], "action_masks": [[2, 1]]}, "0 (illegal) and 1"),
    "a short mask": ({"observations": [STATE], "action_masks": [[1]]}, "got the shape [1, 1]"),
    "one mask for two": ({"observations": [STATE] * 2, "action_masks": [[1, 1]]}, "a list of 2 lists"),
    "a text as a mask": ({"observations": [STATE], "action_masks": "11"}, "got a string"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_answered_by_its_reason(app, what):
    body, reason = BAD[what]
    status, answer = asked(app, "/act", body)
    assert status == 422
    assert reason in answer["detail"]
    assert len(answer["detail"]) < 400
    assert answer["detail"].isprintable()


BAD_PARTS = {
    "a part is missing": ({"numbers": [0, 0]}, "must be an object with the keys"),
    "no object": ([0.0], "must be an object"),
    "a part of another shape": (
        PART | {"numbers": [0.0]},
        "'observations'[0]['numbers'] must be numbers of the shape [2]",
    ),
    "a tuple of another length": (PART | {"pair": [0]}, "must be a list of 2 parts"),
    "a discrete number out of range": (PART | {"pair": [2, [1, 2]]}, "'observations'[0]['pair'][0] has the number 2"),
    "half a discrete number": (PART | {"pair": [0.5, [1, 2]]}, "integers from -1 to 1"),
    "several out of range": (PART | {"pair": [0, [1, 3]]}, "has the number 3"),
    "a byte of 256": (PART | {"bytes": [[0, 256], [0, 0]]}, "integers from 0 to 255"),
    "a bit of 2": (PART | {"bits": [0, 2]}, "integers from 0 to 1"),
    "no text": (PART | {"mission": 3}, "'observations'[0]['mission'] must be a string"),
}


def test_an_integer_that_is_too_large_by_one_is_refused():
    reader = RequestReader(gym.spaces.Box(-5, 5, (2,), np.int64), 2)
    (obs, _, _) = reader.read({"observations": [[2**63 - 1, -(2**63)]]})
    assert obs.tolist() == [[2**63 - 1, -(2**63)]]
    with pytest.raises(RequestError, match="expected integers from"):
        reader.read({"observations": [[2**63, 0]]})


def test_bytes_are_no_image_of_floats():
    reader = RequestReader(gym.spaces.Box(0, 1, (2, 2, 1)), 2)
    (obs, _, _) = reader.read({"observations": [[[[1], [0.5]], [[0], [1]]]]})
    assert obs.max() == 1
    with pytest.raises(RequestError, match=r"has the number 200, expected numbers in \[0, 1\], such as bytes divided"):
        reader.read({"observations": [[[[1], [200]], [[0], [1]]]]})


@pytest.mark.parametrize("what", BAD_PARTS)
def test_a_bad_part_is_named(parts_app, what):
    part, reason = BAD_PARTS[what]
    status, answer = asked(parts_app, "/act", {"observations": [part]})
    assert status == 422
    assert reason in answer["detail"]


def test_a_large_body_is_refused_before_it_is_read(app):
    limit = RequestReader(CARTPOLE_OBS, 2).max_body
    assert asked(app, "/act", b" " * limit, parts=100)[0] == 422
    assert asked(app, "/act", b" " * (limit + 1), parts=100)[0] == 413
    headers = ((b"content-length", b"9" * 30),)
    assert asked(app, "/act", b"{", headers=headers)[0] == 413
    status, answer = asked(app, "/act", json.dumps({"observations": [STATE]}).encode(), parts=7)
    assert (status, len(answer["actions"])) == (200, 1)


def test_a_network_that_fails_is_no_crash_and_tells_no_path(app, policy, monkeypatch):
    def fail(questions):
        raise RuntimeError("/home/someone/secret.py")

    monkeypatch.setattr(ServedPolicy, "outputs", lambda self, questions: fail(questions))
    status, answer = asked(make_app(policy), "/act", {"observations": [STATE]})
    assert status == 500
    assert "secret" not in answer["detail"]
    monkeypatch.setattr(ServedPolicy, "check", lambda self: fail(()))
    status, answer = asked(make_app(policy), "/health")
    assert status == 503
    assert "secret" not in answer["detail"]


def test_requests_at_once_share_forward_passes_and_get_their_own_answers(policy, monkeypatch):
    sizes = []
    outputs = ServedPolicy.outputs

    def counted(self, questions):
        sizes.append(len(questions))
        return outputs(self, questions)

    monkeypatch.setattr(ServedPolicy, "outputs", counted)
    app = make_app(policy)
    states = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    masks = [None if i % 3 else [[i % 2, 1 - i % 2]] for i in range(40)]

    async def all_at_once():
        bodies = (
            {"observations": [state.tolist()]} | ({} if mask is None else {"action_masks": mask})
            for state, mask in zip(states, masks, strict=True)
        )
        good = [ask(app, "/act", json.dumps(body).encode()) for body in bodies]
        bad = [ask(app, "/act", b'{"observations": [[3e38, 3e38, 3e38, 3e38]]}') for _ in range(5)]
        return await asyncio.gather(*good, *bad)

    answers = asyncio.run(all_at_once())
    legal = np.array([[True, True] if mask is None else np.array(mask[0]) == 1 for mask in masks])
    q = policy.network.q_values(torch.from_numpy(states)).numpy()
    assert [status for status, _ in answers] == [200] * 40 + [422] * 5
    assert [answer["actions"][0] for _, answer in answers[:40]] == np.where(legal, q, -np.inf).argmax(-1).tolist()
    assert sum(sizes) == 45
    assert len(sizes) < 45


def test_a_batch_has_a_largest_size_and_forgets_those_who_left():
    calls = []
    go = threading.Event()

    def double(items):
        go.wait(10)
        calls.append(list(items))
        return [2 * item for item in items]

    async def run():
        batches = Batches(double, weigh=lambda item: item, max_weight=10)
        first = asyncio.create_task(batches(1))
        await asyncio.sleep(0.01)  # it runs alone; the others wait for it
        others = [asyncio.create_task(batches(item)) for item in (4, 5, 6, 20)]
        left = asyncio.create_task(batches(3))
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(run()) == [2, 8, 10, 12, 40]
    assert calls == [[1], [4, 5], [6], [20]]


def test_the_description_is_openapi_and_has_the_shape(app, parts_app):
    schema = asked(app, "/openapi.json")[1]
    request = schema["paths"]["/act"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert request["properties"]["observations"]["items"] == {
        "type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4,
    }  # fmt: skip
    jsonschema = pytest.importorskip("jsonschema")
    for described, example, wrong in ((app, STATE, [0.0]), (parts_app, PART, PART | {"bits": [0, 2]})):
        schema = asked(described, "/openapi.json")[1]
        request = schema["paths"]["/act"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate({"observations": [example]}, request)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"observations": [wrong]}, request)


def test_health_and_description_name_no_file(policy, app):
    assert asked(app, "/health") == (200, {"status": "ok"})
    described = asked(app, "/policy")[1]
    assert described["num_actions"] == 2
    assert described["num_parameters"] == policy.network.num_parameters
    assert asked(app, "/docs")[0] == 404  # FastAPI's page loads its scripts from elsewhere


def test_a_policy_travels_to_replicas(policy):
    copy = cloudpickle.loads(cloudpickle.dumps(policy))
    states = np.zeros((1, 4), np.float32)
    question = copy.question({"observations": states.tolist()})
    np.testing.assert_array_equal(copy.outputs([question])[0], policy.outputs([question])[0])


def test_what_remembers_earlier_steps_is_refused():
    pipeline = ObservationPipeline(CARTPOLE_OBS, (RLlibConnectors(None),))
    with pytest.raises(ValueError, match="may remember earlier steps"):
        ServedPolicy(Teacher(make_q_module(), pipeline=pipeline))


def test_stacked_frames_come_with_the_request():
    frame, stack = gym.spaces.Box(0.0, 1.0, (84, 84, 1)), gym.spaces.Box(0.0, 1.0, (84, 84, 4))
    pipeline = ObservationPipeline(frame, (StackFrames(4),))
    filters = {"conv_filters": [[2, 8, 8]], "fcnet_hiddens": []}
    app = make_app(ServedPolicy(Teacher(make_q_module(stack, **filters), pipeline=pipeline)))
    assert asked(app, "/act", {"observations": [np.zeros((84, 84, 4), int).tolist()]})[0] == 200
    assert "[84, 84, 4]" in asked(app, "/act", {"observations": [np.zeros((84, 84, 1), int).tolist()]})[1]["detail"]


def test_the_largest_request_fits_and_is_no_larger_than_need_be():
    largest = {"observations": [[-1.2345678901234567e-300] * 4] * 1024, "action_masks": [[1, 1]] * 1024}
    own = RequestReader(CARTPOLE_OBS, 2).max_body
    assert len(json.dumps(largest, indent=4)) < own < 2**20
    images = RequestReader(gym.spaces.Box(0, 255, (84, 84, 4), np.uint8), 18)
    assert images.max_body == RequestReader(PARTS, 2).max_body == MAX_BODY > 50 * 4 * 84 * 84 * 4


@pytest.mark.parametrize("artifact_format", ["safetensors", "onnx"])
def test_exported_files_are_served_as_their_students(artifact_format, tmp_path):
    student = Teacher(make_q_module())
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    export(student, tmp_path / "student", format=artifact_format, obs=obs)
    served = ServedPolicy(open_source(tmp_path / "student").network())
    app = make_app(cloudpickle.loads(cloudpickle.dumps(served)))
    status, answer = asked(app, "/act", {"observations": obs.tolist(), "action_masks": [[1, 1], [0, 1], [1, 0]]})
    assert (status, answer["actions"][1:]) == (200, [1, 0])
    np.testing.assert_allclose(answer["q_values"][0], student.q_values(torch.from_numpy(obs))[0], rtol=1e-4, atol=1e-5)
