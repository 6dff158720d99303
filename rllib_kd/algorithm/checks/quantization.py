"""Refuse settings that exclude `quantize`, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from rllib_kd.algorithm.checks.refused import refuse
from rllib_kd.learner.losses import VALUE_LOSSES
from rllib_kd.networks.quantization import QUANTIZATIONS
from rllib_kd.networks.recurrent import USE_LSTM
from rllib_kd.observations.spaces import brief

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


_REMEDY = "Leave quantize out, and export with --int8, which rounds after training"


def check_quantize(config: DistillationConfig) -> None:
    """Check `quantize`, and what it excludes."""
    if config.quantize is None:
        return
    if config.quantize not in QUANTIZATIONS:
        raise ValueError(f"`quantize` must be None or 'int8', got {config.quantize!r}.")
    normalizes = config.loss in VALUE_LOSSES and config.normalize_q_values
    settings = (
        ("td_coeff", config.uses_td, "with TD. Leave td_coeff at 0"),
        ("feature_coeff", config.feature_coeff != 0, "with the features of the last layer. Set feature_coeff=0"),
        ("bf16", bool(config.bf16), "in bfloat16, which cannot hold rounded weights. Set bf16=False"),
        ("num_atoms", config.num_atoms > 1, "for return distributions. Set num_atoms=1"),
        ("dueling", bool(config.dueling), "by dueling networks. Set dueling=False"),
        ("normalize_q_values", normalizes, f"with loss={config.loss!r}. Set normalize_q_values=False, or loss='kl'"),
    )

    def message(setting: str, reason: str) -> str:
        because = f"weights of 8 bits are not learned {reason}"
        return f"quantize='int8' is not supported with {setting}: {because}. Or leave quantize out."

    refuse(config, settings, message)
    shared = config.given_model_config
    for name, shape in (config.students or {"student": config.student}).items():
        _check_shape(name, shared | dict(shape) if isinstance(shape, Mapping) else shared, shape)
    if config.trees:
        raise ValueError("quantize='int8' is for networks: a tree has no weights. Leave quantize out.")


def _check_shape(name: str, model_config: Mapping[str, Any], shape: Any) -> None:
    if isinstance(shape, str) and shape != "linear":
        raise ValueError(f"quantize='int8' is for plain MLPs, but '{name}' is {shape!r}, with convolutions. {_REMEDY}.")
    for key, is_refused in (
        (USE_LSTM, bool(model_config.get(USE_LSTM))),
        ("conv_filters", bool(model_config.get("conv_filters"))),
        ("fcnet_use_layernorm", bool(model_config.get("fcnet_use_layernorm"))),
        ("head_fcnet_use_layernorm", bool(model_config.get("head_fcnet_use_layernorm"))),
    ):
        if is_refused:
            raise ValueError(
                f"quantize='int8' is for plain MLPs, but '{name}' has {key}={model_config[key]!r}. {_REMEDY}."
            )


def check_quantized_inputs(config: DistillationConfig, space: gym.Space) -> None:
    """Check that students with 8-bit weights take vectors.

    Args:
        config: config of the run.
        space: space of the student's inputs.

    Raises:
        ValueError: they take images.
    """
    if config.quantize is not None and len(space.shape or ()) != 1:
        raise ValueError(f"quantize='int8' is for observations that are vectors, got {brief(space)}. {_REMEDY}.")
