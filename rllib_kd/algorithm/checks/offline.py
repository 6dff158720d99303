"""Checks of settings for recorded rows: those that a run reads, and those that it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyarrow.fs import FileSystem

from rllib_kd.algorithm.checks.refused import refuse
from rllib_kd.numeric import check_integer, is_finite, is_integer
from rllib_kd.offline.data import LabelledData

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


#: RLlib's offline settings that this package reads. The others concern its OfflinePreLearner and Ray Data's options.
READ = ("input_", "input_filesystem", "input_filesystem_kwargs", "offline_data_class", "dataset_num_iters_per_learner")

_UNREAD = (
    "input_read_method",
    "input_read_method_kwargs",
    "input_read_schema",
    "input_read_episodes",
    "input_read_sample_batches",
    "input_read_batch_size",
    "materialize_data",
    "map_batches_kwargs",
    "iter_batches_kwargs",
    "prelearner_class",
    "prelearner_buffer_class",
    "prelearner_use_recorded_module_states",
    "shuffle_buffer_size",
    "offline_evaluation_interval",
)

#: RLlib's output settings that this package reads.
WRITTEN = ("output", "output_max_rows_per_file", "output_max_file_size")

_UNWRITTEN = (
    "output_config",
    "output_write_method",
    "output_write_method_kwargs",
    "output_filesystem",
    "output_filesystem_kwargs",
    "output_write_episodes",
)

#: Settings of the policy that acts in EnvRunners.
OF_BEHAVIOUR = (
    "rollout_policy",
    "teacher_explores",
    "teacher_fraction",
    "max_regret",
    "label_fraction",
    "max_staleness",
    "own_states",
)


def check_offline(config: DistillationConfig) -> None:
    """Check the settings of recorded rows, and what they exclude."""
    _check_places(config)
    if not is_finite(config.held_out, 0.0, 0.5):
        raise ValueError(f"`held_out` must be in [0, 0.5], a share of recorded rows, got {config.held_out!r}.")
    if not is_finite(config.set_aside, 0.0, 0.9):
        raise ValueError(f"`set_aside` must be in [0, 0.9], a share of recorded episodes, got {config.set_aside!r}.")
    if config.in_evaluation:
        return
    if config.output is not None:
        _check_output(config)
    if not config.is_offline:
        return
    if config.teacher is None:
        raise ValueError("Recorded rows are learned from by a teacher's labels, but `teacher` is None. Name a teacher.")
    refuse(
        config,
        (
            (
                "is_multi_agent",
                config.is_multi_agent,
                "Recorded rows are for single agents. Leave out multi_agent(...)",
            ),
            ("output", config.output is not None, "Rows of `input_` are already recorded. Leave out one of the two"),
            (
                "num_env_runners",
                config.num_env_runners > 0,
                "Recorded rows are read, not sampled. Set it to 0; evaluations have evaluation_num_env_runners",
            ),
            (
                "env_to_module_connector",
                "env_to_module" in config.own_connectors,
                "Recorded rows pass through no connectors. Record the networks' inputs, and leave it out",
            ),
        ),
        _not_with_input,
    )
    defaults = type(config)()
    of_behaviour = ((name, "No policy acts while a run learns from recorded rows") for name in OF_BEHAVIOUR)
    unread = ((name, f"Of RLlib's offline settings, only {', '.join(READ)} are supported") for name in _UNREAD)
    refuse(
        config,
        (
            (name, getattr(config, name) != getattr(defaults, name), f"{reason}. Leave it out")
            for name, reason in (*of_behaviour, *unread)
        ),
        _not_with_input,
    )
    steps = config.dataset_num_iters_per_learner
    if steps is not None and not is_integer(steps, 1):
        raise ValueError(
            f"`dataset_num_iters_per_learner` must be an integer of at least 1, the gradient steps of a training step, "
            f"got {steps!r}."
        )
    data_class = config.offline_data_class
    if not (isinstance(data_class, type) and issubclass(data_class, LabelledData)):
        raise ValueError(f"`offline_data_class` must be a LabelledData, got {data_class}.")
    if config.env is None:
        _check_without_environment(config)


def _check_without_environment(config: DistillationConfig) -> None:
    """Refuse settings that need episodes to be played."""
    instead = "Name one (.environment(...), --env), or leave it out: results have agreement and regret on held-out rows"
    refuse(
        config,
        (
            ("evaluation_interval", bool(config.evaluation_interval), f"Evaluations need an environment. {instead}"),
            ("num_baseline_episodes", bool(config.num_baseline_episodes), f"Episodes need an environment. {instead}"),
        ),
        _not_with_input,
    )


def _not_with_input(setting: str, reason: str) -> str:
    return f"{setting} is not supported with `input_`. {reason}."


def _check_output(config: DistillationConfig) -> None:
    """Check that the states that EnvRunners visit can be recorded with labels."""
    defaults = type(config)()
    changed = [(name, getattr(config, name) != getattr(defaults, name)) for name in _UNWRITTEN]
    words = f"Of RLlib's output settings, only {', '.join(WRITTEN)} are supported. Leave it out"
    if not isinstance(config.output, str) or not config.output.strip():
        raise ValueError(f"`output` must be the path or URI of a folder of labelled rows, got {config.output!r}.")
    settings = (
        ("is_multi_agent", config.is_multi_agent, "Rows are recorded for single agents. Leave out multi_agent(...)"),
        ("teacher", config.teacher is None, "It records a teacher's labels. Name a teacher, or leave `output` out"),
        (
            "env_to_module_connector",
            "env_to_module" in config.own_connectors,
            "Rows hold the environment's own observations, which connectors change. Wrap the environment",
        ),
        *((name, is_changed, words) for name, is_changed in changed),
    )
    refuse(config, settings, lambda setting, reason: f"{setting} is not supported with `output`. {reason}.")
    if config.output_max_rows_per_file is not None:
        check_integer("output_max_rows_per_file", config.output_max_rows_per_file, low=1)
    check_integer("output_max_file_size", config.output_max_file_size, low=1)


def _check_places(config: DistillationConfig) -> None:
    """Check where rows are read from and written to. RLlib treats a value that it does not understand as no input."""
    uris = config.input_ if isinstance(config.input_, list | tuple) else [config.input_]
    if not uris or not all(isinstance(uri, str) and uri.strip() for uri in uris):
        raise ValueError(
            f"`input_` must be a path or URI of recorded rows, or a list of them, got {config.input_!r}. Leave it out "
            "to sample an environment."
        )
    filesystem = config.input_filesystem
    if filesystem not in (None, "s3") and not isinstance(filesystem, FileSystem):
        raise ValueError(f"`input_filesystem` must be None, 's3' or a pyarrow FileSystem, got {filesystem!r}.")
    is_s3 = filesystem is not None and "s3" in (filesystem, getattr(filesystem, "type_name", None))
    if is_s3 and (wrong := next((uri for uri in uris if uri.startswith("/") or "://" in uri), None)):
        raise ValueError(
            f"`input_` must be a path like 'bucket/folder' with `input_filesystem` of S3, got {wrong!r}. Set both in "
            "one call of offline_data(); or leave out `input_filesystem`, and write a URI: 's3://bucket/folder?region=R'."
        )
