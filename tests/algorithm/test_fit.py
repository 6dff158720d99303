"""What is checked of an environment when all has been built."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES

from rllib_kd.algorithm.fit import check_fit, check_vector_env
from rllib_kd.env_runner.single_agent import DistillEnvRunner
from rllib_kd.observations.pipeline import Flatten, Images, ObservationPipeline
from rllib_kd.teachers.base import Teacher

MODES = gym.vector.AutoresetMode


def group_of(*envs):
    runners = [SimpleNamespace(env=env) for env in envs]
    return SimpleNamespace(
        foreach_env_runner=lambda report: [DistillEnvRunner.autoreset_mode(each) for each in runners]
    )


def env_with(**metadata):
    return SimpleNamespace(metadata=metadata)


@pytest.mark.parametrize("metadata", [{}, {"render_fps": 50}])
def test_a_vector_env_that_does_not_declare_when_it_resets_is_reported_once(caplog, metadata):
    check_vector_env(group_of(None, env_with(**metadata), env_with(**metadata)))
    (message,) = caplog.messages
    assert "assumed to do so in the step after" in message
    assert "metadata = {'autoreset_mode': gymnasium.vector.AutoresetMode.NEXT_STEP}" in message


def test_a_vector_env_that_resets_in_the_next_step_is_fine(caplog):
    check_vector_env(group_of(None, env_with(autoreset_mode=MODES.NEXT_STEP)))
    assert not caplog.messages


@pytest.mark.parametrize("mode", [MODES.SAME_STEP, MODES.DISABLED])
def test_a_vector_env_that_resets_in_another_mode_is_refused(mode):
    with pytest.raises(ValueError, match=rf"resets in mode \['{mode}'\]"):
        check_vector_env(group_of(env_with(autoreset_mode=mode)))


def box(high, dtype, *shape):
    return gym.spaces.Box(0, high, shape, dtype)


def check(space, **connectors):
    config = SimpleNamespace(own_connectors=connectors)
    check_fit(config, {}, None, {INPUT_ENV_SINGLE_SPACES: (space, gym.spaces.Discrete(2))})


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (box(1, np.uint8, 10, 10, 4), "The observation is of bytes up to 1"),
        (gym.spaces.Dict(a=box(1, np.uint8, 16, 16, 3), b=box(1, np.uint8, 4)), "The observation['a'] is of bytes"),
    ],
)
def test_bytes_of_0_and_1_as_images_are_reported(caplog, space, named):
    check(space)
    (message,) = caplog.messages
    assert named in message
    assert "Declare it as a Box of np.bool_" in message
    caplog.clear()
    check(space, env_to_module=...)  # connectors of the user's may do anything with them
    assert not caplog.messages


@pytest.mark.parametrize(
    "space",
    [
        box(255, np.uint8, 10, 10, 4),
        box(1, np.bool_, 10, 10, 4),
        box(1, np.uint8, 10, 10),  # numbers as they are
        box(1.0, np.float32, 16, 16, 3),
        gym.spaces.Dict(a=box(1, np.uint8, 4, 4, 3)),
        gym.spaces.Discrete(3),
    ],
)
def test_other_observations_are_not(caplog, space):
    check(space)
    assert not caplog.messages


def check_agents(teacher, seen, shown=None, **connectors):
    """`shown`: the spaces of several agents, of which "a" and "b" have this teacher."""
    config = SimpleNamespace(own_connectors=connectors, is_multi_agent=True, env="Team")
    config.feature_coeff = config.loss = config.starts_from_teacher = None
    config.policy_mapping_fn = lambda agent, episode, **kwargs: "agent" if agent in ("a", "b") else "other"
    spaces = {"agent": (seen, gym.spaces.Discrete(2))}
    if shown:
        spaces[INPUT_ENV_SINGLE_SPACES] = gym.spaces.Dict(shown), None
    check_fit(config, {"agent": teacher}, None, spaces)


def teacher_of(space, *stages, shown=None):
    pipeline = ObservationPipeline(shown or space, stages) if stages else None
    return Teacher.from_callable(
        lambda obs: obs.flatten(1)[:, :2],
        observation_space=space,
        action_space=gym.spaces.Discrete(2),
        pipeline=pipeline,
    )


PARTS = gym.spaces.Dict(a=gym.spaces.Discrete(2), b=gym.spaces.Discrete(3))
OTHER = gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Discrete(2))
VECTORS = box(1, np.float32, 5)


def file_of(flatten, space=VECTORS):
    return Teacher(teacher_of(space).module, pipeline=ObservationPipeline(space, parts=flatten.parts), source="file")


def test_a_file_as_a_teacher_of_agents_gets_the_parts_that_it_records():
    file = file_of(Flatten(PARTS))
    check_agents(file, VECTORS, {"a": PARTS, "b": PARTS})
    check_agents(file, VECTORS, {"a": PARTS, "b": PARTS, "c": OTHER})
    check_agents(file, VECTORS, {"a": VECTORS, "c": OTHER})
    check_agents(file, VECTORS, {"a": OTHER}, env_to_module=...)  # which make the vectors
    for shown in ({"a": OTHER}, {"a": PARTS, "b": OTHER}, {"a": gym.spaces.MultiDiscrete([2, 3])}):
        with pytest.raises(ValueError, match=r"'file' takes vectors that are made of \['a'\] as one_hot lengths=\[2\]"):
            check_agents(file, VECTORS, shown)


def test_a_teacher_of_agents_with_vectors_that_are_made_otherwise_is_refused():
    camera = gym.spaces.Dict(image=box(255, np.uint8, 16, 16, 3))
    vectors = box(np.inf, np.float32, 16 * 16 * 3)
    check_agents(file_of(Flatten(camera), vectors), vectors, {"a": camera})
    check_agents(teacher_of(VECTORS, Flatten(PARTS), shown=PARTS), VECTORS, {"a": PARTS})
    for teacher, seen, shown in (
        (file_of(Flatten(camera, scales_images=False), vectors), vectors, camera),
        (teacher_of(VECTORS, Flatten(PARTS), shown=PARTS), VECTORS, OTHER),
    ):
        with pytest.raises(ValueError, match="or takes other observations or images than its students"):
            check_agents(teacher, seen, {"a": shown})


@pytest.mark.parametrize(
    ("teacher", "seen"),
    [
        (teacher_of(box(1, np.float32, 8, 8, 3)), box(1, np.float32, 8, 8, 3)),
        (teacher_of(box(255, np.float32, 8, 8, 3)), box(255, np.float32, 8, 8, 3)),
        (teacher_of(box(np.inf, np.float32, 8, 8, 3)), box(1, np.float32, 8, 8, 3)),
        (teacher_of(box(1, np.float32, 5), Flatten(PARTS), shown=PARTS), box(1, np.float32, 5)),
    ],
)
def test_a_teacher_of_agents_that_takes_what_they_get_is_fine(teacher, seen):
    check_agents(teacher, seen)


@pytest.mark.parametrize(
    ("teacher", "seen"),
    [
        (teacher_of(box(1, np.float32, 8, 8, 3)), box(1, np.float32, 3, 8, 8)),
        (teacher_of(box(255, np.float32, 8, 8, 3)), box(1, np.float32, 8, 8, 3)),
        (teacher_of(box(1, np.float32, 8, 8, 3), Images((8, 8, 3))), box(1, np.float32, 3, 8, 8)),
        (teacher_of(box(1, np.float32, 5), Flatten(PARTS), shown=PARTS), box(1, np.float32, 6)),
    ],
)
def test_a_teacher_of_agents_for_which_observations_would_be_converted_is_refused(teacher, seen):
    with pytest.raises(ValueError, match="or takes other observations or images than its students, which get Box"):
        check_agents(teacher, seen)


def test_a_teacher_of_agents_with_other_spaces_is_refused():
    with pytest.raises(
        ValueError, match=r"The teacher's observation space is Box\(4,\), but in 'Team' it is Box\(5,\)"
    ):
        check_agents(teacher_of(box(1, np.float32, 4)), box(1, np.float32, 5))
