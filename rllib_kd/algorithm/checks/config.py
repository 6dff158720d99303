"""Check settings, alone and in combination."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from rllib_kd.algorithm.checks.label_fraction import check_label_fraction
from rllib_kd.algorithm.checks.learners import (
    check_learner_class,
    check_learners,
    check_parallel_evaluation,
    check_unread,
)
from rllib_kd.algorithm.checks.objects import check_objects
from rllib_kd.algorithm.checks.offline import check_offline
from rllib_kd.algorithm.checks.policies import check_overrides
from rllib_kd.algorithm.checks.quantization import check_quantize
from rllib_kd.algorithm.checks.recurrent import check_recurrent
from rllib_kd.algorithm.checks.refused import refuse
from rllib_kd.algorithm.checks.students import (
    check_compression,
    check_family,
    check_folder_name,
    check_restarts,
    check_student,
)
from rllib_kd.algorithm.checks.trees import check_trees
from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner
from rllib_kd.env_runner.recurrent import RecurrentEnvRunner
from rllib_kd.env_runner.single_agent import DistillEnvRunner
from rllib_kd.environments.failures import users_errors
from rllib_kd.environments.own import check_takes_config
from rllib_kd.learner.losses import LOSSES, POLICY_LOSSES
from rllib_kd.numeric import check_integer, is_finite
from rllib_kd.schedules import check_schedule, values_of
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.names import is_by_policy, is_described
from rllib_kd.text import did_you_mean

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


#: Settings that are one of several words; None where that is the default.
WORDS = {
    "loss": LOSSES,
    "ensemble": ("q", "policy"),
    "rollout_policy": ("teacher", "student", "mixture"),
    "init": (None, "random", "teacher", "convolutions"),
}


def check_alone(config: DistillationConfig) -> None:
    """Check settings by themselves, in the order of `_ALONE`; values may be of any type.

    Raises:
        ValueError: a setting is not supported. The message contains what was got, what was expected and what to do.
    """
    for part in _ALONE:
        part(config)


def check_together(config: DistillationConfig) -> None:
    """Check combinations of settings, in the order of `_TOGETHER`; values must be of their types.

    Raises:
        ValueError: as of `check_alone()`.
    """
    for part in _TOGETHER:
        part(config)


# --- Each setting by itself -------------------------------------------------------------------------------------------


def check_fields(config: DistillationConfig) -> None:
    """Refuse fields that no code reads: a config from a plain dict, as Tune passes it, may have any."""
    known = set(vars(type(config)()))
    for name in vars(config):
        if name not in known and name != "class" and not name.startswith("__"):  # Tune's own start with "__"
            raise ValueError(f"DistillDQN has no config field '{name}'.{did_you_mean(name, known)}")


def check_words(config: DistillationConfig) -> None:
    """Check settings that are one of several words."""
    for name, known in WORDS.items():
        if (value := getattr(config, name)) not in known:
            words = [word for word in known if word is not None]
            hint = did_you_mean(str(value).lower(), words)
            raise ValueError(f"Unknown {name} {value!r}.{hint} Known are: {', '.join(words)}.")


def check_numbers(config: DistillationConfig) -> None:
    """Check what the ranges of `check_settings()` cannot say: open ends, words beside numbers, and the loss."""
    if not (isinstance(config.temperature, str) and config.temperature == "auto"):
        _check_positive("temperature", config.temperature, "a number, or 'auto'")
    if config.student_temperature is not None:
        _check_positive("student_temperature", config.student_temperature, "a number, or None")
    _check_positive("huber_delta", config.huber_delta, "a number")
    _check_positive("margin", config.margin, "a number")
    if config.regret_coeff:
        _check_positive("regret_coeff", config.regret_coeff, "a number, or 0 for the KL alone")
        if config.loss != "kl":
            raise ValueError(
                f"`regret_coeff`={config.regret_coeff} needs loss='kl', got loss={config.loss!r}. Leave out one of "
                "them."
            )
    if config.feature_coeff != 0:
        _check_positive("feature_coeff", config.feature_coeff, "a number, or 0 for no feature matching")
    if not isinstance(config.weight_averaging, Real) or not 0.0 <= config.weight_averaging < 1.0:
        raise ValueError(f"`weight_averaging` must be in [0, 1), got {config.weight_averaging!r}.")
    if config.compression is not None:
        check_compression("`compression`", config.compression)
    if config.max_regret not in (None, math.inf):
        _check_positive("max_regret", config.max_regret, "median action gaps; inf for no limit; None: the default")
    for name in ("restarts", "patience", "max_staleness", "num_baseline_episodes", "num_validation_episodes"):
        if isinstance(value := getattr(config, name), float) and value.is_integer():
            check_integer(name, value, low=0)  # check_settings() lets whole floats pass, as files have them


def check_schedules(config: DistillationConfig) -> None:
    """Check the ranges of numbers that may change over env steps."""
    if config.teacher_fraction is not None:
        check_schedule("teacher_fraction", config.teacher_fraction, high=1.0)
    check_schedule("td_coeff", config.td_coeff)
    if config.kd_coeff != "qdagger":
        check_schedule("kd_coeff", config.kd_coeff, words=("qdagger",))
    check_schedule("epsilon", config.epsilon, high=1.0)


def check_rllib_numbers(config: DistillationConfig) -> None:
    """Check the ranges of RLlib's own numbers, of which RLlib checks few."""
    for name in ("alpha", "beta"):
        _check_share(f"replay_buffer_config['{name}']", config.replay_buffer_config.get(name, 0.0))
    if config.training_intensity is not None:
        _check_positive("training_intensity", config.training_intensity, "rows learned from / env steps sampled")
    if config.replay_buffer_config.get("capacity") is not None:
        check_integer("replay_buffer_config['capacity']", config.replay_buffer_config["capacity"], low=1)
    check_integer("num_learners", config.num_learners, low=0)
    check_integer("train_batch_size", config.train_batch_size, low=1)  # RLlib divides it by the Learners
    for name in ("train_batch_size_per_learner", "num_envs_per_env_runner", "max_requests_in_flight_per_env_runner"):
        check_integer(name, getattr(config, name), low=1)
    check_integer("num_steps_sampled_before_learning_starts", config.num_steps_sampled_before_learning_starts, low=0)
    check_integer("rollout_fragment_length", config.get_rollout_fragment_length(), low=1)
    check_integer("n_step", config.n_step, low=1)  # without TD, RLlib compares it with a fragment's length


# --- Teacher and losses -----------------------------------------------------------------------------------------------


def check_teachers(config: DistillationConfig) -> None:
    """Check that each teacher is a path, a loaded teacher, or a list of these."""
    for teacher in config.teachers.values():
        members = teacher if isinstance(teacher, list | tuple) else [teacher]
        if not members or not all(
            isinstance(member, str | os.PathLike | Teacher) or is_described(member) for member in members
        ):
            raise ValueError(
                f"DistillDQN needs a teacher, got {teacher!r}. Name one with "
                ".distillation(teacher='path/to/checkpoint'), or 'cartpole', which comes with the package."
            )


def check_ensemble(config: DistillationConfig) -> None:
    """Check that the loss can be computed from the combined outputs of an ensemble."""
    if config.loss == "categorical" and any(isinstance(teacher, list | tuple) for teacher in config.teachers.values()):
        raise ValueError(
            "The loss 'categorical' needs return distributions, but an ensemble has only mean Q-values. Use another "
            "loss, or one teacher."
        )
    if config.ensemble != "policy":
        return
    needs_q_values = {
        "loss": config.loss not in POLICY_LOSSES,
        "gap_weighting": bool(config.gap_weighting),
        "value_gate": bool(config.value_gate),
    }
    because = "needs the teachers' Q-values, but ensemble='policy' has only their mean policy"
    settings = ((name, needs, "Use ensemble='q', or leave it out") for name, needs in needs_q_values.items())
    refuse(config, settings, lambda setting, remedy: f"{setting} {because}. {remedy}.")


def check_without_teacher(config: DistillationConfig) -> None:
    """Check that, without a teacher, there is TD and no setting that needs a teacher."""
    if config.teacher is not None:
        return
    if not config.uses_td:
        raise ValueError(
            "DistillDQN needs a teacher, got None. Name a checkpoint, or 'cartpole', which comes with the package: "
            "--teacher PATH, or .distillation(teacher=PATH). To learn without one, as DQN does: --no-teacher, or "
            "td_coeff=1.0."
        )
    needs_teacher = {
        "rollout_policy": config.rollout_policy == "teacher",
        "kd_coeff": config.kd_coeff == "qdagger",
        "loss": config.loss == "categorical",
        "compression": config.compression is not None,
        "gap_weighting": bool(config.gap_weighting),
        "value_gate": bool(config.value_gate),
        "feature_coeff": bool(config.feature_coeff),
        "init": config.starts_from_teacher,
        "patience": config.patience is not None,
    }
    settings = (
        (name, needs, f"Leave `{name}` at its default, or name a teacher") for name, needs in needs_teacher.items()
    )
    refuse(config, settings, lambda setting, remedy: f"{setting} needs a teacher, but `teacher` is None. {remedy}.")


def check_weights_of_losses(config: DistillationConfig) -> None:
    """Check that the weights of distillation and TD give the student something to learn."""
    if config.kd_coeff == "qdagger":
        for missing, reason in (
            (
                not config.uses_td,
                "`td_coeff` is 0, so nothing would be left to learn from near the teacher's return. Set td_coeff",
            ),
            (not config.evaluation_interval, "there are no evaluations. Set .evaluation(evaluation_interval=...)"),
            (
                config.num_baseline_episodes == 0,
                "`num_baseline_episodes` is 0, so it cannot be computed. Leave num_baseline_episodes out",
            ),
        ):
            if missing:
                raise ValueError(f"kd_coeff='qdagger' is 1 − the student's return ratio, but {reason}.")
    elif not (config.uses_td or any(values_of(config.kd_coeff))):
        raise ValueError("`kd_coeff` and `td_coeff` are both 0: there is nothing to learn. Set one of them.")


def check_losses(config: DistillationConfig) -> None:
    """Check that the student's outputs are what the losses compare."""
    if config.value_gate and not config.uses_td:
        raise ValueError(
            "`value_gate` compares the teacher's values with those that the student learns from rewards, but "
            "`td_coeff` is 0, so a value above the teacher's would never be corrected. Set td_coeff, or leave "
            "value_gate out."
        )
    own_scale = config.student_temperature not in (None, config.temperature)
    if config.uses_td and config.loss in POLICY_LOSSES and own_scale:
        raise ValueError(
            f"With `td_coeff`, the student's outputs must be Q-values, but student_temperature="
            f"{config.student_temperature} with temperature={config.temperature} gives them another scale. Leave "
            "student_temperature at None."
        )
    if config.loss == "categorical" and config.model_config.get("num_atoms", 1) < 2:
        raise ValueError(
            "The loss 'categorical' needs a C51 student, but this one has one output for each action. Give it the "
            "teacher's support: training(num_atoms=51, v_min=..., v_max=...), or use another loss."
        )
    if config.uses_td and config.num_atoms > 1:
        raise ValueError(
            f"`td_coeff` with a distributional student (num_atoms={config.num_atoms}) is not supported. Set "
            "num_atoms=1; the teacher may be distributional."
        )
    if config.num_atoms > 1 and not config.v_min < config.v_max:
        raise ValueError(
            f"Return distributions need v_min < v_max, got {config.v_min} and {config.v_max}. Set "
            "training(v_min=..., v_max=...) as in the teacher."
        )


# --- RLlib ------------------------------------------------------------------------------------------------------------


def check_api_stack(config: DistillationConfig) -> None:
    """Check that RLlib's new API stack and PyTorch are used."""
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        raise ValueError("DistillDQN runs on RLlib's new API stack only. Leave `api_stack(...)` at its defaults.")
    if config.framework_str != "torch":
        raise ValueError(f"DistillDQN needs framework 'torch', got {config.framework_str!r}.")


def check_multi_agent(config: DistillationConfig) -> None:
    """Check that policies and teachers have the same names, and that there are none without `multi_agent()`."""
    if not config.is_multi_agent:
        if is_by_policy(config.teacher):
            raise ValueError(
                f"There are teachers for the policies {sorted(config.teacher)}, but no such policies. Name them: "
                ".multi_agent(policies=..., policy_mapping_fn=...)."
            )
        return
    policies = sorted(config.policies)
    for policy in policies:
        check_folder_name("policy", policy)
    example = "{" + ", ".join(f"'{policy}': ..." for policy in policies[:2]) + "}"
    if not is_by_policy(config.teacher) or not config.teacher or not set(config.teacher) <= set(policies):
        got = sorted(config.teacher) if is_by_policy(config.teacher) else repr(config.teacher)
        raise ValueError(
            f"In multi-agent settings each policy that learns needs a teacher of its own: "
            f".distillation(teacher={example}), with policies of {policies}. Got {got}."
        )
    if (names := sorted(map(str, _trained(config.policies_to_train, policies)))) != sorted(config.teacher):
        raise ValueError(
            f"The policies with a teacher are {sorted(config.teacher)}, but those to be trained are "
            f"{names}. Set multi_agent(policies_to_train={sorted(config.teacher)})."
        )
    if config.own_connectors & {"env_to_module", "module_to_env"}:
        raise ValueError("Custom connectors are not supported in multi-agent settings. Wrap the environment.")
    if config.students or config.student:
        raise ValueError(
            "`student` and `students` are supported in single-agent settings only. Shape the students of several "
            "policies by `compression`, or by rl_module(...)."
        )


def _trained(given: Any, policies: list[str]) -> list[str]:
    """Return the policies that `policies_to_train` admits: a collection of names, a function of a name, or None."""
    if not callable(given):
        return policies if given is None else list(given)
    try:
        return [policy for policy in policies if given(policy, None)]  # as RLlib's Learner calls it
    except users_errors() as error:
        raise ValueError(
            "`policies_to_train` must be names of policies, or a function of a name and a batch, which is called once "
            f"for each name, with None as the batch. It raised {type(error).__name__}: {error}"
        ) from error


def check_replay_type(config: DistillationConfig) -> None:
    """Check that the replay is the columnar one of the Learners."""
    replay = config.replay_buffer_config
    if not isinstance(replay, Mapping) or replay.get("type") != "ColumnarReplay":
        raise ValueError(
            "DistillDQN uses a replay of its own, in the Learners. Set only its size and priorities: "
            "training(replay_buffer_config={'capacity': ..., 'alpha': ..., 'beta': ...}). Got "
            f"{replay}."
        )


def check_classes(config: DistillationConfig) -> None:
    """Check that classes of the user's own take what RLlib passes, or replace those of this package."""
    check_learner_class(config)
    check_takes_config(config.env)
    if config.in_evaluation:
        return
    expected: type = DistillMultiAgentEnvRunner if config.is_multi_agent else DistillEnvRunner
    if config.is_recurrent:
        expected = RecurrentEnvRunner
    cls = config.env_runner_cls
    if not (isinstance(cls, type) and issubclass(cls, expected)):
        raise ValueError(f"`env_runner_cls` must be a {expected.__name__}, got {cls}.")
    if "learner" in config.own_connectors:
        raise ValueError("`learner_connector` is not supported: Learners get columns, not episodes. Leave it out.")
    if config.batch_mode != "truncate_episodes":
        raise ValueError(f"`batch_mode` must be 'truncate_episodes', got {config.batch_mode!r}.")


#: All checks, of settings alone and then together. Later ones rely on earlier ones.
_ALONE: tuple[Callable[[DistillationConfig], None], ...] = (
    check_fields,
    check_api_stack,
    check_objects,
    check_unread,
    check_words,
    check_numbers,
    check_schedules,
    check_replay_type,
    check_rllib_numbers,
)
_TOGETHER: tuple[Callable[[DistillationConfig], None], ...] = (
    check_teachers,
    check_offline,
    check_multi_agent,
    check_without_teacher,
    check_ensemble,
    check_weights_of_losses,
    check_losses,
    check_student,
    check_family,
    check_trees,
    check_recurrent,
    check_quantize,
    check_restarts,
    check_label_fraction,
    check_classes,
    check_learners,
    check_parallel_evaluation,
    check_overrides,
)


# --- Kinds of values --------------------------------------------------------------------------------------------------


def _check_share(name: str, value: object) -> None:
    if not is_finite(value, 0.0, 1.0):
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}.")


def _check_positive(name: str, value: object, expected: str) -> None:
    if not is_finite(value) or value <= 0:
        raise ValueError(f"`{name}` must be positive ({expected}), got {value!r}.")
