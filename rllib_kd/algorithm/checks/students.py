"""Check the settings that shape students: one, a family, copies of a student."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.metrics import ALL_MODULES

from rllib_kd.algorithm.settings import check_model_config
from rllib_kd.networks.recurrent import CELL_SIZE, LAYER_TYPE, USE_LSTM
from rllib_kd.networks.trees.shape import TREE, is_tree
from rllib_kd.networks.windows import check_windows
from rllib_kd.numeric import is_finite
from rllib_kd.students.restarts import is_named
from rllib_kd.students.sizes import PRESETS, WIDTH_KEYS
from rllib_kd.text import did_you_mean

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


#: Bytes of a name. Names of files have at most 255, and copies of a student have longer names.
_MAX_NAME = 200


#: What RLlib writes beside the folders of modules, and how its results name all modules together.
_TAKEN_NAMES = {
    RLModule.METADATA_FILE_NAME,
    RLModule.CLASS_AND_CTOR_ARGS_FILE_NAME,
    *(f"{RLModule.STATE_FILE_NAME}.{ending}" for ending in ("pkl", "msgpack")),
    ALL_MODULES,
}


def own_shapes(config: DistillationConfig) -> dict[str, Any]:
    """Return what each student has beside the shared model config, by the setting that has it."""
    if config.students:
        return {f"students['{name}']": shape for name, shape in config.students.items()}
    return {} if config.student is None else {"student": config.student}


def check_convolved_inputs(config: DistillationConfig, space: gym.Space) -> None:
    """Check that students with convolutions take images that are large enough for these.

    Args:
        config: config of the run.
        space: space of the students' inputs.

    Raises:
        ValueError: they do not.
    """
    shared = config.given_model_config
    for setting, shape in (own_shapes(config) or {"model_config": {}}).items():
        own = PRESETS[shape] if isinstance(shape, str) else shape
        filters = {**shared, **own}.get("conv_filters")
        if filters and TREE not in own:
            what = setting if "conv_filters" in own else "model_config"
            value = repr(shape) if isinstance(shape, str) else f"{{'conv_filters': {filters}}}"
            check_windows(f"{what}={value}", filters, space)


def check_student(config: DistillationConfig) -> None:
    """Check that one setting alone shapes the student."""
    own = config.given_model_config
    if config.own_rl_module_spec is not None:
        is_refused = is_tree(config.student) or _has_shape(config.own_rl_module_spec)
        others = {"student": config.student if is_refused else None}
        of_model = {f"model_config['{name}']": own.get(name) or None for name in (TREE, USE_LSTM)}
        _check_alone("rl_module_spec", {**others, "compression": config.compression, **of_model})
    widths = sorted(WIDTH_KEYS & set(own))
    if config.compression is not None and widths:
        raise ValueError(
            f"Both `compression`={config.compression:g} and {widths} in rl_module(model_config=...) set "
            "the widths of the student's layers. Set one of them."
        )
    if config.student is not None:
        _check_shape("student", config.student)
        if widths:
            raise ValueError(
                f"Both `student`={config.student!r} and {widths} in rl_module(model_config=...) set the widths "
                "of the student's layers. Set one of them."
            )
        if config.compression is not None:
            raise ValueError(
                f"Both `student`={config.student!r} and `compression`={config.compression:g} set the size of the "
                "student. Set one of them."
            )


def check_family(config: DistillationConfig) -> None:
    """Check the names and shapes of a family of students, if there is one."""
    if isinstance(config.own_states, str) and config.own_states != "linear":
        raise ValueError(f"`own_states` must be True, False or 'linear', got {config.own_states!r}.")
    if not config.students:
        if config.own_states:
            raise ValueError("`own_states` is for several `students`, but there is one. Leave it out.")
        return
    others = {"student": config.student, "compression": config.compression, "rl_module_spec": config.own_rl_module_spec}
    _check_alone("students", others)
    for name, shape in config.students.items():
        if isinstance(name, str) and not is_named(name):
            raise ValueError(f"`restarts` gives names like {name!r} to the copies of a student. Choose another name.")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"The name of a student becomes a folder's name, so it must be a word of letters, digits, '_', '-' and "
                f"'.', got {name!r}."
            )
        check_folder_name("student", name)
        _check_shape(f"students['{name}']", shape)


def _has_shape(spec: Any) -> bool:
    """Return whether a spec has a model config of its own, beside which a student's would have no effect."""
    specs = spec.rl_module_specs.values() if isinstance(spec, MultiRLModuleSpec) else (spec,)
    return any(own.model_config for own in specs)


def _check_alone(setting: str, others: Mapping[str, object]) -> None:
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"Both `{setting}` and `{name}` set what is trained. Set one of them.")


def check_folder_name(what: str, name: str) -> None:
    """Check that a module's name can be that of its folder in a checkpoint, and of its entry in results.

    Args:
        what: kind of the module, for the message.
        name: its name.

    Raises:
        ValueError: the name is too long, or RLlib gives it to a file beside the folder, or to all modules together.
    """
    if (length := len(os.fsencode(name))) > _MAX_NAME:
        raise ValueError(
            f"The name of a {what} becomes a folder's name, so it must have at most {_MAX_NAME} bytes, got {length}: "
            f"{name!r:.50}."
        )
    if name in _TAKEN_NAMES:
        raise ValueError(
            f"The name of a {what} becomes a folder's name, but RLlib itself uses {name!r}. Choose another name."
        )


def check_restarts(config: DistillationConfig) -> None:
    """Check that copies of the student are possible."""
    if config.num_copies == 1:
        return
    if config.is_multi_agent:
        raise ValueError(f"`restarts`={config.num_copies} is supported in single-agent settings only. Set it to 1.")
    if config.init == "teacher":
        raise ValueError(
            f"`restarts`={config.num_copies} copies of a student would be equal with init='teacher'. Set init='random',"
            " or restarts=1."
        )


def _check_shape(setting: str, shape: object) -> None:
    """Check a preset, a compression or a model config of one student of a family."""
    where = f"`{setting}`"
    if isinstance(shape, str):
        _check_preset("student" if setting == "student" else f"student {where}:", shape)
        return
    if not isinstance(shape, Mapping):
        raise ValueError(f"{where} must be a model config such as {{'fcnet_hiddens': [16]}}, got {shape!r}.")
    known = {*(field.name for field in dataclasses.fields(DefaultModelConfig)), "compression", TREE, LAYER_TYPE}
    for key in shape:
        if key not in known:
            raise ValueError(f"{where} has no setting '{key}'.{did_you_mean(str(key), known)}")
    check_model_config(setting, shape)
    # A recurrent layer's units may be all that a student has of its own; beside a compression they are not scaled.
    widths = WIDTH_KEYS if "compression" in shape else WIDTH_KEYS | {CELL_SIZE}
    if len({"compression", TREE} & set(shape)) + bool(widths & set(shape)) != 1:
        raise ValueError(
            f"{where} must have either `compression`, `{TREE}` or widths ({', '.join(sorted(widths))}), got "
            f"{dict(shape)}."
        )
    if "compression" in shape:
        check_compression(f"{where}: `compression`", shape["compression"])


def check_compression(what: str, value: object) -> None:
    """Check a share of the teacher's parameters."""
    if not is_finite(value) or not 0.0 < value <= 1.0:
        raise ValueError(f"{what} must be in (0, 1]: student parameters / teacher parameters. Got {value!r}.")


def _check_preset(what: str, name: object) -> None:
    if name not in PRESETS:
        hint = did_you_mean(str(name).lower(), PRESETS)
        raise ValueError(
            f"Unknown {what} {name!r}.{hint} Known are: {', '.join(PRESETS)}. For any other shape, give a compression, "
            "or a model config such as {'fcnet_hiddens': [16]}."
        )
