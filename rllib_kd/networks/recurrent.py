"""Recurrent Q-networks: RLlib's DQN module with an LSTM or a GRU, over sequences, or step by step with a memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.configs import ModelConfig, RecurrentEncoderConfig
from ray.rllib.core.models.torch.encoder import TorchGRUEncoder, TorchLSTMEncoder, TorchMLPEncoder
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.annotations import override
from torch import Tensor, nn

from rllib_kd import _rllib
from rllib_kd.networks.parts import hooks_of, is_chain, is_plain_linear, leaves_of

#: Keys of a model config: RLlib's switch of an LSTM, its size, and the kind of the layer, by RLlib's name in
#: `RecurrentEncoderConfig`.
USE_LSTM, CELL_SIZE, LAYER_TYPE = "use_lstm", "lstm_cell_size", "recurrent_layer_type"
#: The kinds of recurrent layers.
LAYER_TYPES = ("lstm", "gru")
#: Parts of a state, `[B, layers, units]` each: the hidden state, and the cell's of an LSTM.
STATE_PARTS = ("h", "c")


class RecurrentDQNCatalog(DQNCatalog):
    """RLlib's DQN catalog for a GRU, and for `fcnet_hiddens=[]`: then the recurrent layer takes the observation."""

    @classmethod
    @override(DQNCatalog)
    def _get_encoder_config(cls, observation_space, model_config_dict, action_space=None) -> ModelConfig | None:
        if not model_config_dict[USE_LSTM]:  # what is before the recurrent layer
            if is_vector(observation_space) and model_config_dict["fcnet_hiddens"] == []:
                return None
            return super()._get_encoder_config(observation_space, model_config_dict, action_space)
        config = super()._get_encoder_config(observation_space, model_config_dict, action_space)
        assert isinstance(config, RecurrentEncoderConfig)
        config.recurrent_layer_type = model_config_dict.get(LAYER_TYPE, LAYER_TYPES[0])
        return config


def is_vector(space: Any) -> bool:
    """Return whether observations of a space are vectors."""
    return len(space.shape or ()) == 1


def catalog_of(model_config: Mapping[str, Any]) -> type[DQNCatalog] | None:
    """Return the catalog that builds a recurrent module; None if RLlib's own does."""
    is_rllibs = model_config.get(LAYER_TYPE, LAYER_TYPES[0]) == LAYER_TYPES[0]
    return None if is_rllibs and model_config.get("fcnet_hiddens") != [] else RecurrentDQNCatalog


def max_seq_len_of(model_config: Mapping[str, Any]) -> int:
    """Return the length of the sequences that a recurrent module learns from, in env steps."""
    return int(model_config.get("max_seq_len", DefaultModelConfig().max_seq_len))


def num_sequences(num_rows: int, model_config: Mapping[str, Any]) -> int:
    """Return how many sequences have about `num_rows` env steps in all; at least one."""
    return max(1, round(num_rows / max_seq_len_of(model_config)))


def recurrent_layer(module: Any) -> nn.LSTM | nn.GRU | None:
    """Return the recurrent layer of RLlib's DQN module; None if it has none."""
    encoder = getattr(module, "encoder", None)
    if isinstance(encoder, TorchLSTMEncoder):
        return encoder.lstm
    return encoder.gru if isinstance(encoder, TorchGRUEncoder) else None


def first_layers(module: Any) -> list[Any]:
    """Return what takes a vector of observations, with a weight and a bias, if there is one such; else nothing.

    That is the first linear layer of an MLP before the recurrent layer, or the recurrent layer's own matrix.
    """
    layer = recurrent_layer(module)
    if layer is None or not is_vector(module.observation_space) or not _rllib.has_default_q_values(module):
        return []
    tokenizer = module.encoder.tokenizer
    if tokenizer is None:
        return [SimpleNamespace(weight=layer.weight_ih_l0, bias=layer.bias_ih_l0)]
    if not _is_mlp(tokenizer):
        return []
    first = leaves_of(tokenizer)[0]
    return [first] if is_plain_linear(first) else []


def _is_mlp(tokenizer: Any) -> bool:
    """Return whether what stands before a recurrent layer is RLlib's MLP, and does nothing else."""
    return type(tokenizer) is TorchMLPEncoder and is_chain(tokenizer)


def run_sequences(module: Any, obs: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a recurrent module over sequences.

    Args:
        module: the RLModule.
        obs: its inputs, `[B, T, ...]`.
        state: the state before the first step, parts `[B, layers, units]`.

    Returns:
        Q-values `[B, T, A]`, and the state after the last step.
    """
    outputs = module.compute_q_values({Columns.OBS: obs, Columns.STATE_IN: dict(state)})
    return outputs[QF_PREDS], outputs[Columns.STATE_OUT]


class PlainPass:
    """A pass through a recurrent module, without the overhead of RLlib's modules around their layers.

    Args:
        module: an RLlib DQN module with vectors as inputs, which is not dueling.
    """

    def __init__(self, module: Any):
        tokenizer = module.encoder.tokenizer
        self._before = [] if tokenizer is None else leaves_of(tokenizer)
        self._layer, self._after = recurrent_layer(module), leaves_of(module.af)

    @classmethod
    def of(cls, module: Any) -> PlainPass | None:
        """Return None for another module, and for one with hooks, which need a pass through it."""
        if recurrent_layer(module) is None or not is_vector(module.observation_space) or module.uses_dueling:
            return None
        tokenizer = module.encoder.tokenizer
        is_known = tokenizer is None or _is_mlp(tokenizer)
        is_known = is_known and is_chain(module.af) and _rllib.has_default_q_values(module)
        return cls(module) if is_known and not any(hooks_of(module)) and module.num_atoms == 1 else None

    def __call__(self, obs: Tensor, state: Mapping[str, Tensor], places: Tensor) -> Tensor:
        """Return Q-values `[M, A]` at `places` `[M]` of all states of sequences `[B, T, ...]`, as `run_sequences()`."""
        x = obs
        for layer in self._before:
            x = layer(x)
        h, *c = (state[part].transpose(0, 1) for part in STATE_PARTS if part in state)
        assert self._layer is not None
        x = at_places(self._layer(x, (h, *c) if c else h)[0], places)
        for layer in self._after:
            x = layer(x)
        return x


def at_places(values: Tensor, places: Tensor) -> Tensor:
    """Return the rows `[M, ...]` at `places` of `[B, T, ...]`, of which there are B · T."""
    rows = values.flatten(0, 1)
    return rows if len(places) == len(rows) else rows.index_select(0, places)  # in their order, each once


def initial_state(module: Any, count: int, device: torch.device | str | None = None) -> Any:
    """Return the state at the beginning of an episode, parts `[count, layers, units]`; of other modules nested."""

    def of_all(value: Any) -> Tensor:
        start = torch.as_tensor(value, device=device)
        return start.expand(count, *start.shape).contiguous()

    return tree.map_structure(of_all, module.get_initial_state())


class Memory:
    """The states of a recurrent network that acts in a vector env, one for each environment."""

    def __init__(self) -> None:
        #: Parts `[N, layers, units]`, on the network's device; of other modules nested. Empty before the first step.
        self.state: Any = {}

    def begin(self, module: Any, first: np.ndarray, device: torch.device | str | None = None) -> None:
        """Begin episodes where `first` (`[N]`) is True, and anew where an observation has left a state not finite."""
        parts = tree.flatten(self.state)
        if not parts or len(parts[0]) != len(first):
            self.state = initial_state(module, len(first), device)
            return
        begins = torch.from_numpy(first).to(parts[0].device)
        for value in parts:
            begins = begins | ~value.isfinite().reshape(len(first), -1).all(-1)
        if begins.any():
            start = initial_state(module, len(first), begins.device)
            self.state = tree.map_structure(
                lambda value, own: torch.where(begins.view(-1, *[1] * (value.ndim - 1)), own, value), self.state, start
            )

    @torch.inference_mode()
    def step(self, module: Any, obs: Tensor) -> Tensor:
        """Return Q-values `[N, A]` of inputs `[N, ...]`, and take the step into the states."""
        state = {part: value.to(obs.device) for part, value in self.state.items()}
        q, self.state = run_sequences(module, obs.unsqueeze(1), state)
        return q[:, 0]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return copies of the states as arrays."""
        return {part: value.cpu().numpy().copy() for part, value in self.state.items()}

    # Pickled as arrays: where it is restored, there may be another device.
    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.arrays()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = {part: torch.from_numpy(value) for part, value in state["state"].items()}
