"""Checks before any process starts: whether environment, teachers and resources fit."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.util import get_current_placement_group

from rllib_kd import _rllib
from rllib_kd.algorithm.checks.quantization import check_quantized_inputs
from rllib_kd.algorithm.checks.recurrent import check_recurrent_inputs
from rllib_kd.algorithm.checks.students import check_convolved_inputs
from rllib_kd.algorithm.checks.trees import check_tree_inputs
from rllib_kd.algorithm.config import DistillationConfig
from rllib_kd.cluster import ray_address
from rllib_kd.env_runner.explaining import check_vectorized
from rllib_kd.environments.failures import name_of
from rllib_kd.environments.making import checked_call, close, env_maker, name_in, names_class
from rllib_kd.environments.masked import with_masks_in_infos
from rllib_kd.environments.own import is_in_file, is_registered_with_tune
from rllib_kd.environments.returned import check_reset
from rllib_kd.evaluation.playing import taken_apart
from rllib_kd.observations.masks import LegalActions, check_mask_space, features_space, has_mask
from rllib_kd.observations.pipeline import begins_at_inputs
from rllib_kd.observations.spaces import brief, check_actions, check_spaces, input_space, same_space, told_apart
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.byte_images import warn_of_bytes
from rllib_kd.text import stable_text

logger = logging.getLogger(__name__)

_DQN_WITH_MASK = (
    "RLlib's DQN does not support masks of legal actions: it reads the mask as part of the observation, and may choose "
    "illegal actions. DistillDQN supports masks: --algo DistillDQN --no-teacher."
)

_SECONDS_TO_BECOME_FREE = 2.0  # Ray frees the resources of an algorithm a moment after its end


def check_has_environment(config: DistillationConfig) -> None:
    """Check that there is an environment, or recorded rows; or that its spaces are set, for an EnvRunner of the user's.

    Raises:
        ValueError: there is nothing to learn in.
    """
    if config.env is None and config.observation_space is None and not config.is_offline:
        raise ValueError(
            "DistillDQN needs an environment, got None. Set .environment('CartPole-v1'), or recorded rows: "
            ".offline_data(input_=...)."
        )


def known_spaces(config: AlgorithmConfig) -> tuple[gym.Space, gym.Space] | None:
    """Return the spaces of an environment of gymnasium or in a file, or those in the config; None for any other.

    Others are not made here: they may need resources that only EnvRunners have.

    Raises:
        ValueError: the environment cannot be made, or lacks a space; the message has its reason.
    """
    if config.is_multi_agent:
        return None
    if config.observation_space is not None and config.action_space is not None:
        return config.observation_space, config.action_space
    env = config.env
    if not isinstance(env, str) or names_class(env) or (is_registered_with_tune(env) and not is_in_file(env)):
        return None
    made = env_maker(env, config.env_config)()
    close(made)
    return made.observation_space, made.action_space


def try_out(config: AlgorithmConfig) -> None:
    """Reset one environment and take a step, as EnvRunners do, and check what it returns.

    Raises:
        ValueError: the environment cannot be made.
        EnvFailedError: it raised, or what it returned does not match gymnasium's API or its spaces.
    """
    make = env_maker(config.env, config.env_config)
    envs = gym.vector.SyncVectorEnv([lambda: with_masks_in_infos(make())])
    legal_actions = LegalActions(envs.single_observation_space, envs.single_action_space)
    try:
        check_reset(envs.envs[0], name_in(envs))
        envs.action_space.seed(0)
        actions = envs.action_space.sample()
        obs, infos = checked_call(envs.reset, seed=0)
        _, mask = taken_apart(legal_actions, envs, obs, infos, np.zeros(1, dtype=bool), doing="reset")
        if mask is not None:
            actions = mask.argmax(-1)
        checked_call(envs.step, actions)
    finally:
        close(envs)


def spaces_known_here(config: AlgorithmConfig) -> tuple[gym.Space, gym.Space] | None:
    """Return `known_spaces()`; None also if the environment cannot be made here, but perhaps by remote EnvRunners.

    Raises:
        ValueError: the environment cannot be made, and this process has the only EnvRunner.
    """
    try:
        return known_spaces(config)
    except ValueError:
        if config.num_env_runners == 0:
            raise
        return None  # the nodes of EnvRunners may have packages that are missing here


def check_environment(config: DQNConfig, spaces: tuple[gym.Space, gym.Space]) -> None:
    """Check that a Q-network suits the environment.

    Raises:
        ValueError: it does not; the message has the remedy.
    """
    shown, actions = spaces
    check_actions(actions)
    check_vectorized(config, shown)
    # A network's inputs behind connectors are unknown here; and RLlib's DQN also takes other observations.
    if isinstance(config, DistillationConfig) and "env_to_module" not in config.own_connectors:
        check_mask_space(shown)
        seen = input_space(features_space(shown))
        check_spaces(seen, actions)
        check_convolved_inputs(config, seen)
        check_tree_inputs(config, seen)
        check_recurrent_inputs(config, seen)
        check_quantized_inputs(config, seen)
    elif not isinstance(config, DistillationConfig) and has_mask(shown):
        logger.warning(_DQN_WITH_MASK)


def check_evaluation_environment(config: AlgorithmConfig, spaces: tuple[gym.Space, gym.Space]) -> None:
    """Check that evaluations in another environment, as `evaluation_config` may name it, suit what is trained.

    Args:
        config: config of the training.
        spaces: spaces of its environment.

    Raises:
        ValueError: the other environment cannot be made, or has other spaces; the message has both.
    """
    if not (config.evaluation_interval or config.evaluation_num_env_runners):
        return
    evaluation = config.get_evaluation_config_object()
    if evaluation is None:
        return
    if evaluation.env == config.env and stable_text(evaluation.env_config) == stable_text(config.env_config):
        return
    there = spaces_known_here(evaluation)
    if there is None or _rllib.has_env_to_module(config) or _rllib.has_env_to_module(evaluation):
        return  # behind connectors, observations may be the same
    for what, own, other in zip(("observation", "action"), spaces, there, strict=True):
        own, other = features_space(own), features_space(other)
        if not same_space(own, other):
            name = name_of(evaluation.env)
            raise ValueError(
                f"`evaluation_config`: in '{name}' the {what} space is {brief(other)}, but in the environment of the "
                f"training, '{name_of(config.env)}', it is {brief(own)}. Evaluate in an "
                "environment with the same spaces, or leave `env` and `env_config` out there."
            )


def check_teacher(
    teacher: Teacher,
    spaces: tuple[gym.Space, gym.Space],
    env: Any,
    *,
    seen: gym.Space | None = None,
    own_connectors: Collection[str] = (),
) -> None:
    """Check that a teacher was trained on an environment's observations and actions.

    Args:
        teacher: a loaded teacher.
        spaces: spaces of the environment.
        env: name of the environment, for messages.
        seen: the student's inputs behind connectors; a teacher without a pipeline of its own may take these.
        own_connectors: kinds of the user's connectors.

    Raises:
        ValueError: it was not; the message has both spaces.
    """
    shown, actions = spaces
    own, teacher = told_apart(shown, teacher.observation_space), teacher.with_recorded_vectors(shown, own_connectors)
    if begins_at_inputs(teacher.pipeline) and not teacher.takes(shown) and seen is not None:
        own = own if same_space(shown, seen) else f"{own}, of which the student gets {brief(seen)}"
        shown = seen
    for what, fits, teachers, here in (
        ("observation", teacher.takes(shown), told_apart(teacher.observation_space, shown), own),
        ("action", same_space(teacher.action_space, actions), brief(teacher.action_space), brief(actions)),
    ):
        if not fits:
            raise ValueError(
                f"The teacher's {what} space is {teachers}, but in '{name_of(env)}' it is "
                f"{here}. Distil in the environment in which the teacher was trained, with the same wrappers, "
                "and connectors if its checkpoint has none."
            )


def check_teachers_fit(
    config: DistillationConfig, teachers: Mapping[str, Teacher], spaces: tuple[gym.Space, gym.Space] | None
) -> None:
    """Check that the teachers of a config fit its environment, as far as possible before connectors are built.

    Args:
        config: config with the environment.
        teachers: teachers by group.
        spaces: spaces of the environment; None if unknown.

    Raises:
        ValueError: a teacher does not fit.
    """
    teacher = teachers.get(DEFAULT_MODULE_ID)
    if spaces is None or teacher is None or not teacher.is_loaded or config.is_multi_agent:
        return
    seen = input_space(features_space(spaces[0]))
    if "env_to_module" in config.own_connectors and begins_at_inputs(teacher.pipeline):
        seen = teacher.observation_space  # only the connectors know; EnvRunners check it
    else:
        warn_of_bytes(teacher, features_space(spaces[0]))
    check_teacher(teacher, spaces, config.env, seen=seen, own_connectors=config.own_connectors)


def limit_threads(num_cpus: int) -> None:
    """Limit PyTorch in this process to as many threads as RLlib assigns CPUs to it.

    Ray does so for the processes that it starts. With more threads than free cores, PyTorch is many times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(num_cpus)))


def actor_resources(algorithm: type[Algorithm], config: AlgorithmConfig) -> dict[str, float]:
    """Return the total resources of an algorithm's remote EnvRunners and Learners."""
    request = algorithm.default_resource_request(config)
    bundles = request.bundles if request.head_bundle_is_empty else request.bundles[1:]  # the first: the process itself
    names = set().union(*bundles)
    needs = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in sorted(names)}
    return {name: amount for name, amount in needs.items() if amount > 0}


def check_resources(needs: Mapping[str, float]) -> None:
    """Check that Ray has, or will have when RLlib starts it, the resources of all actors: they would wait silently.

    In a placement group, which Tune has reserved for a trial, nothing is checked.

    Args:
        needs: resources of all actors together, `{"CPU": 2.0, ...}`.

    Raises:
        ValueError: Ray lacks resources, and runs on this machine alone, so it cannot grow.
    """
    if not ray.is_initialized():
        if ray_address():
            return  # its resources are unknown before it is joined
        own = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        if lacking := _lacking(needs, own):
            raise ValueError(f"{_spell(needs, lacking, own)} here. {_remedy(needs, lacking)}")
    elif get_current_placement_group() is None:
        total = ray.cluster_resources()
        if lacking := _lacking(needs, total):
            if _is_own_ray():
                raise ValueError(f"{_spell(needs, lacking, total)}. {_remedy(needs, lacking)}")
            logger.warning("%s now. They wait until the cluster grows.", _spell(needs, lacking, total))
        elif lacking := _lacking(needs, free := _free(needs)):
            logger.warning("%s free now. They wait until other actors end.", _spell(needs, lacking, free))


def _free(needs: Mapping[str, float]) -> Mapping[str, float]:
    """Return the free resources, after Ray has reclaimed those of a former algorithm."""
    deadline = time.monotonic() + _SECONDS_TO_BECOME_FREE
    while _lacking(needs, free := ray.available_resources()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return free


def _lacking(needs: Mapping[str, float], there: Mapping[str, float]) -> list[str]:
    """Return the names of insufficient resources."""
    return [name for name, amount in needs.items() if amount > there.get(name, 0.0)]


def _spell(needs: Mapping[str, float], lacking: Sequence[str], there: Mapping[str, float]) -> str:
    wanted = " and ".join(f"{needs[name]:g} {name}s" for name in lacking)
    return f"EnvRunners and Learners need {wanted}, but Ray has {' and '.join(f'{there.get(n, 0):g}' for n in lacking)}"


def _remedy(needs: Mapping[str, float], lacking: Sequence[str]) -> str:
    """Return how to give a Ray of this machine enough resources."""
    arguments = [f"num_{name.lower()}s={math.ceil(needs[name])}" for name in lacking if name in ("CPU", "GPU")]
    if custom := {name: needs[name] for name in lacking if name not in ("CPU", "GPU")}:
        arguments.append(f"resources={custom}")
    return (
        "Lower num_env_runners, num_learners, evaluation_num_env_runners or their resources, or start Ray with more: "
        f"ray.init({', '.join(arguments)})."
    )


def _is_own_ray() -> bool:
    """Return whether this process has started Ray: such a Ray has no autoscaler, and no other node can join it."""
    node = _rllib.own_node()
    return node is not None and node.is_head()
