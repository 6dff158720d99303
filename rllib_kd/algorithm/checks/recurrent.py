"""Refuse settings that are not supported for recurrent students, or make no sense, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from rllib_kd.algorithm.checks.refused import refuse, refuse_priorities
from rllib_kd.algorithm.checks.students import own_shapes
from rllib_kd.networks.mixed_space import MixedBox
from rllib_kd.networks.recurrent import CELL_SIZE, LAYER_TYPE, LAYER_TYPES, USE_LSTM, max_seq_len_of
from rllib_kd.networks.trees.shape import TREE
from rllib_kd.numeric import is_integer
from rllib_kd.text import did_you_mean

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

_MAX_LENGTH = 10_000  # env steps of a sequence: EnvRunners keep whole ones in memory


def check_recurrent(config: DistillationConfig) -> None:
    """Check the settings of recurrent students, and what they exclude."""
    burn_in, length = config.burn_in_len, max_seq_len_of(config.model_config)
    if not is_integer(burn_in, 0):
        raise ValueError(f"`burn_in_len` must be an integer of at least 0, in env steps, got {burn_in!r}.")
    shared, own = config.given_model_config, own_shapes(config)
    if not config.is_recurrent:
        for setting, shape in {"model_config": shared, **own}.items():
            _check_has_no_memory(setting, shape)
        return
    for setting, shape in own.items():
        _check_has_memory(setting, shape, shared)
    for setting, shape in {"model_config": {}, **own}.items():
        _check_values(setting, {**shared, **shape})
    if burn_in >= length:
        raise ValueError(
            f"Sequences have max_seq_len={length} env steps, and the first burn_in_len={burn_in} are not learned from: "
            "none would be left. Set model_config['max_seq_len'] above burn_in_len."
        )
    _check_others(config)


def check_recurrent_inputs(config: DistillationConfig, space: gym.Space | None) -> None:
    """Check that recurrent students suit what they see.

    Args:
        config: config of the run.
        space: space of the student's inputs.

    Raises:
        ValueError: they do not.
    """
    if config.is_recurrent and isinstance(space, MixedBox):
        raise ValueError(
            f"Recurrent students ('{USE_LSTM}') are not supported for images beside other parts of an observation. Let "
            "the environment return either the image or the vectors, or leave it out."
        )


def _check_has_no_memory(setting: str, shape: Any) -> None:
    """Check that a model config, or a student's part of one, has no settings of a recurrent layer."""
    for name in (LAYER_TYPE,) if setting == "model_config" else (LAYER_TYPE, CELL_SIZE):
        if isinstance(shape, Mapping) and name in shape:
            raise ValueError(
                f"{setting}['{name}']={shape[name]!r} has no effect without a recurrent layer. Set "
                f"model_config['{USE_LSTM}'] to True, or leave it out."
            )


def _check_has_memory(setting: str, shape: Any, shared: Mapping[str, Any]) -> None:
    """Check that a student is recurrent, as others are, and learns from their sequences."""
    if not isinstance(shape, Mapping) or TREE in shape:
        raise ValueError(
            f"`{setting}`={shape!r} is not supported for recurrent students. Give it a model config, such as "
            f"{{'{CELL_SIZE}': 8}}."
        )
    if not {**shared, **shape}.get(USE_LSTM):
        raise ValueError(
            f"`{setting}`={dict(shape)} has no memory, but others of its family have, and they learn from sequences. "
            f"Set '{USE_LSTM}' for all of them, in rl_module(model_config=...), or train it alone."
        )
    if "max_seq_len" in shape:
        raise ValueError(
            f"{setting}['max_seq_len']={shape['max_seq_len']!r}: all students learn from the same sequences. Set it in "
            "rl_module(model_config=...)."
        )


def _check_values(setting: str, shape: Mapping[str, Any]) -> None:
    """Check the settings of a recurrent layer, in a whole model config; `setting` has some of them."""
    for name in (CELL_SIZE, "max_seq_len"):
        value = shape.get(name, 1)
        if not is_integer(value, 1):
            raise ValueError(f"{setting}['{name}'] must be an integer of at least 1, got {value!r}.")
    if (length := shape.get("max_seq_len", 1)) > _MAX_LENGTH:
        raise ValueError(f"{setting}['max_seq_len'] must be at most {_MAX_LENGTH:,} env steps, got {length:,}.")
    if (kind := shape.get(LAYER_TYPE, LAYER_TYPES[0])) not in LAYER_TYPES:
        raise ValueError(
            f"{setting}['{LAYER_TYPE}'] must be 'lstm' or 'gru', got {kind!r}.{did_you_mean(str(kind), LAYER_TYPES)}"
        )
    is_refused = dict.fromkeys(("lstm_use_prev_action", "lstm_use_prev_reward"), "RLlib does not read it")
    if kind == "gru":
        initializers = [name for name in shape if name.startswith("lstm_") and "initializer" in name]
        is_refused |= dict.fromkeys(initializers, "RLlib cannot set the weights of a GRU")
    for name, reason in is_refused.items():
        if value := shape.get(name):
            raise ValueError(
                f"`{setting}['{name}']`={value!r} is not supported for recurrent students. Leave it out: {reason}."
            )


def _check_others(config: DistillationConfig) -> None:
    """Check settings that are not supported with recurrent students."""
    settings = (
        ("n_step", config.uses_td and config.n_step != 1, "Set n_step=1, as RLlib's sequences need it"),
        ("loss", config.loss == "categorical", "Use another loss"),
        ("num_atoms", config.num_atoms > 1, "Set num_atoms=1"),
        ("feature_coeff", bool(config.feature_coeff), "Set it to 0"),
        ("init", config.starts_from_teacher, "Set init='random'"),
        ("input_", config.is_offline, "Recorded rows are single states: sample from an environment"),
        ("bf16", config.bf16, "Set bf16=False"),
    )
    refuse(config, settings, lambda setting, remedy: f"{setting} is not supported for recurrent students. {remedy}.")
    refuse_priorities(config, "recurrent students", "sequences")
    if config.is_multi_agent:
        raise ValueError("Recurrent students are supported in single-agent settings only. Use feed-forward ones.")
