"""What every teacher is: a frozen function from observations to Q-values, that can travel and be checkpointed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import DefaultDQNRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from torch import Tensor, nn

from rllib_kd.observations import ObservationPipeline, View

QF_PREDS = "qf_preds"  # the keys of RLlib's QNetAPI.compute_q_values(); the second one of C51 only
QF_PROBS = "qf_probs"
#: Columns of labels: Q-values `[A]`, return distributions `[A, atoms]`, and what the last layer gets, `[units]`.
TEACHER_Q, TEACHER_PROBS, TEACHER_FEATURES = "teacher_q", "teacher_probs", "teacher_features"


class Support(NamedTuple):
    """The returns that a distributional (C51) network knows: `num_atoms` of them, evenly from `v_min` to `v_max`."""

    v_min: float
    v_max: float
    num_atoms: int


def support_of(module: Any) -> Support | None:
    """The support of a Q-network; None where it has one output an action."""
    num_atoms = getattr(module, "num_atoms", 1)
    return Support(module.v_min, module.v_max, num_atoms) if num_atoms > 1 else None


def last_linear(head: nn.Module) -> nn.Linear:
    """The output layer of a head of RLlib's DQN module; its inputs are the features of the last hidden layer."""
    return [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]


class Teacher(Checkpointable):
    """A trained Q-network, in eval mode and without gradients.

    It is deliberately no `torch.nn.Module`: as an attribute of one it would enter optimizers, weight syncs and
    checkpoints of the student.

    Args:
        module: an RLModule with `compute_q_values()`, which is copied without its target networks; None makes an empty
            teacher, to be filled by `set_state()`.
        pipeline: what the environment's observations go through on their way to the network; None where that is not
            known: then it takes what the environment shows, if that fits, or else what the student takes.
        source: where it came from, for messages.
    """

    def __init__(
        self, module: RLModule | None = None, *, pipeline: ObservationPipeline | None = None, source: str = ""
    ):
        self._module: Any = None
        self.pipeline = pipeline
        self.source = source
        if module is not None:
            constructor_kwargs = module.get_ctor_args_and_kwargs()[1] | {"inference_only": True}
            weights = module.get_state(inference_only=True)
            self.set_state(
                {
                    "class": type(module),
                    "kwargs": constructor_kwargs,
                    "weights": weights,
                    "pipeline": pipeline,
                    "source": source,
                }
            )

    @property
    def is_loaded(self) -> bool:
        """False for an empty teacher that waits for its state."""
        return self._module is not None

    @property
    def module(self) -> Any:
        """The network itself: the frozen RLModule, with `compute_q_values()`."""
        return self._module

    @property
    def observation_space(self) -> gym.Space:
        """Space of the observations that it is shown, before its pipeline."""
        return self.input_space if self.pipeline is None else self.pipeline.observation_space

    @property
    def input_space(self) -> gym.Space:
        """Space of what the network takes, after its pipeline."""
        return self._module.observation_space

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """Space of its actions."""
        return self._module.action_space

    @property
    def num_parameters(self) -> int:
        """Parameters that act: without target networks."""
        return sum(parameter.numel() for parameter in self._module.parameters())

    @property
    def model_config(self) -> dict[str, Any] | None:
        """RLlib's model config of the network; None where the network is not RLlib's default one."""
        return dict(self._module.model_config) if isinstance(self._module, DefaultDQNRLModule) else None

    @property
    def support(self) -> Support | None:
        """Of the return distributions; None where it has none."""
        return support_of(self._module)

    def to(self, device: torch.device | str) -> Teacher:
        """This teacher, moved to a device."""
        self._module.to(device)
        return self

    def start(self) -> View:
        """A view for one vector env: from what it shows to what `q_values()` takes."""
        return (self.pipeline or ObservationPipeline(self.input_space)).start()

    @torch.inference_mode()
    def q_values(self, obs: Tensor) -> Tensor:
        """Q-values `[B, A]` (return units) of the network's inputs `[B, ...]`; expectations, where it is a C51."""
        return self._module.compute_q_values({Columns.OBS: obs})[QF_PREDS]

    def labels(self, obs: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """What the columns `names` say of the network's inputs `[B, ...]`, in one pass.

        Returns:
            `teacher_q` `[B, A]`; `teacher_probs` `[B, A, atoms]`, a distribution over `support` for each legal action,
            and zeros for an illegal one (a Q-value of −inf); `teacher_features` `[B, units]`.
        """
        if tuple(names) == (TEACHER_Q,):
            return {TEACHER_Q: self.q_values(obs)}
        labels: dict[str, Tensor] = {}
        watch: AbstractContextManager = nullcontext()
        if TEACHER_FEATURES in names:
            watch = last_linear(self._module.af).register_forward_pre_hook(
                lambda _, inputs: labels.update({TEACHER_FEATURES: inputs[0]})
            )
        with watch, torch.inference_mode():
            outputs = self._module.compute_q_values({Columns.OBS: obs})
        labels[TEACHER_Q] = outputs[QF_PREDS]
        if TEACHER_PROBS in names:
            illegal = outputs[QF_PREDS] == -torch.inf
            labels[TEACHER_PROBS] = outputs[QF_PROBS].masked_fill(illegal.unsqueeze(-1), 0.0)
        return labels

    @override(Checkpointable)
    def get_state(self, components=None, *, not_components=None, **kwargs) -> dict[str, Any]:
        """Everything that is needed to build the network again, weights as numpy arrays.

        Raises:
            ValueError: no teacher was loaded.
        """
        if not self.is_loaded:
            raise ValueError("There is no teacher to save: none was loaded, or restored from a checkpoint.")
        weights = self._module.get_state()
        return {**self._recipe, "weights": weights, "pipeline": self.pipeline, "source": self.source}

    @override(Checkpointable)
    def set_state(self, state: dict[str, Any]) -> None:
        """Become the teacher of `get_state()`."""
        module = state["class"](**state["kwargs"])
        module.set_state(state["weights"])
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._module, self.source = module, state["source"]
        self.pipeline = state.get("pipeline")  # teachers saved by 0.1 have none
        self._recipe = {"class": state["class"], "kwargs": state["kwargs"]}

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        """An empty teacher; the state has the rest."""
        return (), {}

    # Pickled by its state: Ray ships teachers to the EnvRunners through the object store.
    def __getstate__(self) -> dict[str, Any]:
        return self.get_state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.set_state(state)
