"""Which settings are not supported for recurrent students, or make no sense: refused before anything starts."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING

from rllib_kd.networks.recurrent import CELL_SIZE, LAYER_TYPE, LAYER_TYPES, USE_LSTM, max_seq_len_of
from rllib_kd.text import did_you_mean

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


def check_recurrent(config: DistillationConfig) -> None:
    """Check the settings of recurrent students, and what they exclude."""
    given = config.given_model_config
    burn_in, length = config.burn_in_len, max_seq_len_of(config.model_config)
    if not isinstance(burn_in, int) or isinstance(burn_in, bool) or burn_in < 0:
        raise ValueError(f"`burn_in_len` must be an integer of at least 0, in env steps, got {burn_in!r}.")
    if not config.is_recurrent:
        if LAYER_TYPE in given:
            raise ValueError(
                f"model_config['{LAYER_TYPE}']={given[LAYER_TYPE]!r} has no effect without a recurrent layer. Set "
                f"model_config['{USE_LSTM}'] to True, or leave it out."
            )
        return
    if not given.get(USE_LSTM):
        raise ValueError(
            f"`student` and `students` take no '{USE_LSTM}'. Shape a recurrent student by "
            f"rl_module(model_config={{'{USE_LSTM}': True, 'lstm_cell_size': 32, 'fcnet_hiddens': [32]}})."
        )
    for name in (CELL_SIZE, "max_seq_len"):
        value = given.get(name, 1)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"model_config['{name}'] must be an integer of at least 1, got {value!r}.")
    if (kind := given.get(LAYER_TYPE, LAYER_TYPES[0])) not in LAYER_TYPES:
        raise ValueError(
            f"model_config['{LAYER_TYPE}'] must be 'lstm' or 'gru', got {kind!r}.{did_you_mean(str(kind), LAYER_TYPES)}"
        )
    if burn_in >= length:
        raise ValueError(
            f"Of sequences of max_seq_len={length} env steps, the first burn_in_len={burn_in} are not learned from: "
            "nothing would be left. Set model_config['max_seq_len'] above burn_in_len."
        )
    _check_others(config, kind)


def _check_others(config: DistillationConfig, kind: str) -> None:
    """Check settings that are not supported with recurrent students."""
    own = config.given_model_config
    initializers = [name for name in own if name.startswith("lstm_") and "initializer" in name and own[name]]
    for setting, value, is_refused, remedy in (
        ("students", dict(config.students), bool(config.students), "Train each of them alone"),
        ("student", config.student, config.student is not None, "Shape it by rl_module(model_config=...)"),
        ("restarts", config.num_copies, config.num_copies > 1, "Set restarts=1"),
        ("td_coeff", config.td_coeff, config.uses_td, "Leave it at 0"),
        ("loss", config.loss, config.loss == "categorical", "Use another loss"),
        ("num_atoms", config.num_atoms, config.num_atoms > 1, "Set num_atoms=1"),
        ("feature_coeff", config.feature_coeff, bool(config.feature_coeff), "Set it to 0"),
        ("init", config.init, config.init == "teacher", "Set init='random'"),
        ("input_", config.input_, config.is_offline, "Recorded rows are single states: sample from an environment"),
        ("bf16", config.bf16, config.bf16, "Set bf16=False"),
        (
            "replay_buffer_config['alpha']",
            config.replay_buffer_config.get("alpha"),
            bool(config.replay_buffer_config.get("alpha")),
            "Set alpha=0: sequences are drawn uniformly",
        ),
        *(
            (f"model_config['{name}']", own[name], kind == "gru", "Leave it out: RLlib cannot set the weights of a GRU")
            for name in initializers
        ),
        *(
            (f"model_config['{name}']", True, bool(own.get(name)), "Leave it out: RLlib does not read it")
            for name in ("lstm_use_prev_action", "lstm_use_prev_reward")
        ),
    ):
        if is_refused:
            raise ValueError(f"`{setting}`={value!r} is not supported for recurrent students. {remedy}.")
    if config.is_multi_agent:
        raise ValueError("Recurrent students are supported in single-agent settings only. Use feed-forward ones.")
