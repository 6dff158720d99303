"""Check that teachers, students and environment fit together, after all have been built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

from rllib_kd import _rllib
from rllib_kd.algorithm.checks.students import check_convolved_inputs
from rllib_kd.algorithm.defaults import settle_defaults
from rllib_kd.algorithm.preflight import check_teacher
from rllib_kd.algorithm.students import Students, new_student, shape_students
from rllib_kd.environments.failures import described, name_of, users_errors
from rllib_kd.environments.making import check_has_spaces
from rllib_kd.observations.connectors import UnfitConnectorsError
from rllib_kd.observations.flattening import described_parts
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.pipeline import Flatten
from rllib_kd.observations.spaces import (
    bytes_of_0_and_1,
    check_actions,
    check_spaces,
    has_undivided_pixels,
    input_space,
    is_flattened,
    is_float_image,
    named,
    same_space,
)
from rllib_kd.students.convolutions import check_convolutions
from rllib_kd.students.initialization import check as check_units
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

logger = logging.getLogger(__name__)


def check_fit(
    config: DistillationConfig, teachers: Mapping[str, Teacher], students: Students, spaces: Mapping[str, Any]
) -> None:
    """Check that teachers, students and environment have matching spaces, features, supports and layers.

    Args:
        config: config of the run.
        teachers: loaded teachers by group.
        students: students of the run.
        spaces: spaces of the environment and of the students, as the Algorithm has them.

    Raises:
        ValueError: two of them do not fit; the message names both.
    """
    if INPUT_ENV_SINGLE_SPACES in spaces and "env_to_module" not in config.own_connectors:
        _warn_of_bytes(features_space(spaces[INPUT_ENV_SINGLE_SPACES][0]))
    for group_id, teacher in teachers.items():
        _check_spaces(config, teacher, group_id, spaces)
        if config.feature_coeff and teacher.model_config is None:
            raise ValueError(
                f"`feature_coeff` needs a teacher with RLlib's DQN architecture, but '{teacher.source}' has another "
                "network. Set feature_coeff=0."
            )
        for student in students.of_group(group_id).values() if config.loss == "categorical" else ():
            if teacher.support != student.support:
                raise ValueError(
                    "The loss 'categorical' needs return distributions on one support, but the teacher's is "
                    f"{teacher.support} and the student's {student.support}. Set training(num_atoms=..., "
                    "v_min=..., v_max=...) as in the teacher; for a teacher without distributions use another loss."
                )
        if config.starts_from_teacher:
            _check_no_running_filter(config, teacher, spaces)
            _check_first_weights(config, teacher, spaces, students.of_group(group_id))


def check_shapes(
    config: DistillationConfig, teachers: Mapping[str, Teacher], spaces: tuple[gym.Space, gym.Space] | None
) -> None:
    """Check that the students of a config can be shaped, and begin as it asks, as far as is known before Ray starts.

    Args:
        config: config, which stays as it is. Of several agents nothing is known.
        teachers: loaded teachers by group.
        spaces: spaces of the environment; None if unknown.

    Raises:
        ValueError: a compression cannot be reached, convolutions do not suit the environment, or a student cannot begin
            with weights of its teacher.
    """
    if config.is_multi_agent:
        return
    shaped = config.copy(copy_frozen=False)
    settle_defaults(shaped, spaces, teachers)
    shape_students(shaped, teachers, spaces)
    if spaces is None or "env_to_module" in config.own_connectors:  # what the students see is unknown
        return
    seen = input_space(features_space(spaces[0]))
    check_convolved_inputs(config, seen)
    if not config.starts_from_teacher:
        return
    with torch.random.fork_rng(devices=[]):  # of new students, that give their shapes alone
        for group_id, teacher in teachers.items():
            students = shaped.students or (group_id,)
            _check_first_weights(shaped, teacher, {group_id: (seen, spaces[1])}, students)


def _check_first_weights(
    config: DistillationConfig, teacher: Teacher, spaces: Mapping[str, Any], names: Iterable[str]
) -> None:
    """Check that students can begin with weights of their teacher, as the config asks."""
    for name in names:
        check_layers = check_units if config.init == "teacher" else check_convolutions
        check_layers(new_student(config, spaces, name), teacher.module)


def _check_no_running_filter(config: DistillationConfig, teacher: Teacher, spaces: Mapping[str, Any]) -> None:
    """Check that no filter changes a student's observations in training, since those of its teacher do not change.

    Other connectors of the user's are judged by the first states.
    """
    if "env_to_module" not in config.own_connectors:
        return
    try:
        pipeline = config.build_env_to_module_connector(spaces=spaces)
    except users_errors():  # the connectors need the environment itself
        return
    if any(map(_rllib.has_running_statistics, pipeline.connectors)):
        raise ValueError(
            f"init={config.init!r} needs a student with the same observations as its teacher '{teacher.source}', but "
            "the statistics of RLlib's MeanStdFilter change in training. Leave the filter out, or set init='random'."
        )


def _warn_of_bytes(space: gym.Space) -> None:
    """Warn of images of bytes that are zeros and ones: they are hardly an input when they are divided by 255."""
    for path in bytes_of_0_and_1(space):
        logger.warning(
            "The observation%s is of bytes up to 1. Networks get bytes divided by 255, so that its ones become 0.004, "
            "which slows learning. Declare it as a Box of np.bool_, and return obs.astype(bool): truth values are 0 "
            "and 1 to a network. A teacher that has learned from these bytes must then learn again.",
            one_line(named(path)),
        )


def check_vector_env(group: EnvRunnerGroup) -> None:
    """Check that the vector environments reset their sub-environments when RLlib's EnvRunners expect it.

    A warning names what is assumed of an environment that does not declare its mode.

    Raises:
        ValueError: they reset in another mode.
    """
    reported = group.foreach_env_runner(lambda env_runner: env_runner.autoreset_mode())
    modes = {str(mode) for mode in reported if mode is not None}
    if "" in modes:
        logger.warning(
            "The vector environment does not declare when it resets its sub-environments. It is assumed to do so in "
            "the step after an episode's end, whose action is ignored; otherwise rows of two episodes are mixed. Set "
            "metadata = {'autoreset_mode': gymnasium.vector.AutoresetMode.NEXT_STEP} in its class."
        )
    if unknown := modes - {"AutoresetMode.NEXT_STEP", ""}:
        raise ValueError(
            f"The vector environment resets in mode {sorted(unknown)}, but RLlib's EnvRunners need "
            "AutoresetMode.NEXT_STEP. Make it with autoreset_mode=AutoresetMode.NEXT_STEP."
        )


def explain_failed_env_runners(config: DistillationConfig, make_env: Callable[[EnvContext], Any]) -> None:
    """Find out in this process why EnvRunners could not be built: because of the environment, or of connectors.

    Raises:
        ValueError: the reason, if it occurs in this process, too.
    """
    name = name_of(config.env)
    try:
        env = make_env(EnvContext(config.env_config, worker_index=0))
    except users_errors() as error:
        raise ValueError(f"The environment '{name}' cannot be made: {described(error)}") from error
    if config.is_multi_agent:
        if isinstance(env, gym.Env):
            env.close()
        return
    check_has_spaces(env, name)
    with closing(env):
        if "env_to_module" not in config.own_connectors:
            check_spaces(input_space(features_space(env.observation_space)), env.action_space)
            return
        check_actions(env.action_space)
        if (seen := _returned_by_connectors(config, env)) is not None:
            check_spaces(seen, env.action_space)


def _returned_by_connectors(config: DistillationConfig, env: Any) -> Any:
    """Return the space of the networks' inputs after connectors of the user's; None without any connectors."""
    envs = gym.vector.SyncVectorEnv([lambda: env])
    spaces = {INPUT_ENV_SINGLE_SPACES: (env.observation_space, env.action_space)}
    try:
        return config.build_env_to_module_connector(env=envs, spaces=spaces).observation_space
    except UnfitConnectorsError:
        raise
    except users_errors() as error:
        raise ValueError(f"The env_to_module_connector cannot be made: {described(error)}") from error


def _check_spaces(config: DistillationConfig, teacher: Teacher, group_id: str, spaces: Mapping[str, Any]) -> None:
    shown_space, action_space = spaces[group_id if config.is_multi_agent else INPUT_ENV_SINGLE_SPACES]
    stages = () if teacher.pipeline is None else teacher.pipeline.stages
    if config.is_multi_agent and (stages or teacher.takes(shown_space)):
        agents = _shown_to_agents(config, group_id, spaces)
        if not (_takes_as_they_are(teacher, shown_space) and all(_has_parts(teacher, own) for own in agents)):
            raise ValueError(
                f"The teacher '{teacher.source}' uses filters or custom connectors, or takes other observations or "
                f"images than its students, which get {one_line(str(shown_space), limit=200)}. Multi-agent settings "
                "do not support that. Name one that takes what they get."
            )
        shown_space = teacher.observation_space  # of which the teacher would make the student's vectors
    seen, _ = spaces.get(group_id, (None, None))
    own = config.own_connectors
    check_teacher(teacher, (shown_space, action_space), config.env, seen=seen, own_connectors=own)


def _shown_to_agents(config: DistillationConfig, module_id: str, spaces: Mapping[str, Any]) -> list[gym.Space]:
    """Return the spaces, without masks, of observations of a module's agents of which one vector is made.

    Behind connectors of the user's there are none: they make the module's inputs.
    """
    agents, _ = spaces.get(INPUT_ENV_SINGLE_SPACES, (None, None))
    if "env_to_module" in config.own_connectors or not isinstance(agents, gym.spaces.Dict):
        return []
    shown, episode = list(agents.values()), MultiAgentEpisode()  # with an empty one RLlib, too, looks for their modules
    if any(space != shown[0] for space in shown):
        shown = [space for agent, space in agents.items() if config.policy_mapping_fn(agent, episode) == module_id]
    return [space for space in map(features_space, shown) if is_flattened(space)]


def _has_parts(teacher: Teacher, space: gym.Space) -> bool:
    """Return whether a teacher's vectors are made of observations of this space as its students' are, or it is unknown.

    Raises:
        ValueError: its file records other parts; the message has both.
    """
    pipeline = teacher.with_recorded_vectors(space).pipeline
    if pipeline is None or len(pipeline.stages) != 1 or not isinstance(flatten := pipeline.stages[0], Flatten):
        return True
    return flatten.parts == described_parts(space)


def _takes_as_they_are(teacher: Teacher, seen: gym.Space) -> bool:
    """Return whether a teacher takes a student's inputs: with several agents, nothing is converted for it.

    Args:
        teacher: a loaded teacher.
        seen: space of the student's inputs.
    """
    match () if teacher.pipeline is None else teacher.pipeline.stages:
        case () | (Flatten(),):
            are_divided = is_float_image(seen) and has_undivided_pixels(teacher.input_space)
            return same_space(teacher.input_space, seen) and not are_divided
    return False
