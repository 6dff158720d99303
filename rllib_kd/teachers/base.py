"""Teacher: a frozen policy with its observation pipeline, which can be pickled and checkpointed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import DefaultDQNRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_kd import limits
from rllib_kd.environments.failures import users_errors
from rllib_kd.networks.dqn_module import QF_PREDS, QF_PROBS, Support, count_parameters, support_of
from rllib_kd.networks.parts import last_linear
from rllib_kd.networks.stacking import PlainMLP
from rllib_kd.numeric import is_integer
from rllib_kd.observations.masks import MASK
from rllib_kd.observations.pipeline import ObservationPipeline, View
from rllib_kd.observations.spaces import brief
from rllib_kd.public import public
from rllib_kd.teachers.function import Members, QNetwork
from rllib_kd.teachers.probing import warn_of_unsteady
from rllib_kd.teachers.recurrent import RecurrentView, first_outputs
from rllib_kd.text import first_line, one_line
from rllib_kd.wire import LOG_PROBS, Q_VALUES, TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q, Outputs

if TYPE_CHECKING:
    from ray.data import Dataset

#: A policy's smaller probabilities, 0 among them, count as the smallest normal float of 32 bits: −inf marks illegal
#: actions, of which students learn nothing.
_LEAST_LOG_PROB = math.log(torch.finfo(torch.float32).tiny)


@public
class Teacher(Checkpointable):
    """A frozen policy: a trained network, and the pipeline from an environment's observations to its inputs.

    The network is in eval mode and without gradients. Its outputs rank the actions: `outputs` names what they are, the
    Q-values of a DQN, or the log-probabilities of an actor-critic. Every such network that acts and does not learn has
    this type: the teacher of a student, and every student that is loaded to be compared, evaluated or exported.

    It is deliberately not a `torch.nn.Module`: as an attribute of one it would enter optimizers, weight
    synchronization and checkpoints of the student.

    Args:
        module: an RLModule with `compute_q_values()`, which is copied without its target networks, or a `QNetwork`.
            None: an empty teacher, to be filled by `set_state()`.
        pipeline: pipeline from the environment's observations to the network's inputs. None: it is not known; then the
            network takes the environment's observations, if they fit, or else the student's inputs.
        outputs: "q_values" (default); or "log_probs" if the network's outputs are the logits of a policy, of which the
            teacher gives the log-softmax.
        source: its source, for messages.
        trained_return: mean return at the end of its training, if a result of Tune contains it; None otherwise.
    """

    def __init__(
        self,
        module: RLModule | QNetwork | None = None,
        *,
        pipeline: ObservationPipeline | None = None,
        outputs: Outputs = Q_VALUES,
        source: str = "",
        trained_return: float | None = None,
    ):
        self._module: Any = None
        self._mlp: PlainMLP | None = None  # a shorter way through the module, where there is one
        self.pipeline = pipeline
        self.outputs: Outputs = outputs
        self.source = source
        self.trained_return = trained_return
        self._num_numbers = 0  # in memory for one observation, in the widest layer; 0 if not counted yet
        if module is not None:
            constructor_kwargs = module.get_ctor_args_and_kwargs()[1]
            if isinstance(module, RLModule):
                constructor_kwargs = constructor_kwargs | {"inference_only": True}
            weights = module.get_state(inference_only=True)
            self.set_state(
                {
                    "class": type(module),
                    "kwargs": constructor_kwargs,
                    "weights": weights,
                    "pipeline": pipeline,
                    "outputs": outputs,
                    "source": source,
                    "trained_return": trained_return,
                }
            )

    @classmethod
    def from_callable(
        cls,
        function: Callable[[Tensor], Any],
        *,
        observation_space: gym.Space,
        action_space: gym.spaces.Discrete,
        pipeline: ObservationPipeline | None = None,
        num_parameters: int | None = None,
        outputs: Literal["q_values", "logits"] = Q_VALUES,
    ) -> Teacher:
        """Create a teacher from any function.

        Args:
            function: from observations `[B, ...]` (a float32 tensor) to Q-values `[B, A]` (return units), or to logits
                (nats), as tensor or numpy array. cloudpickle must be able to pickle it. A `torch.nn.Module` is copied,
                and moves to GPUs with the EnvRunners. A Q-value such as −1e9 does not mark an illegal action, but
                counts as a Q-value: the environment's mask marks them (docs: Actions that are not always legal).
            observation_space: space of one observation that it takes.
            action_space: Discrete, from 0.
            pipeline: pipeline from the environment's observations to the function, as in `load_teacher()`.
            num_parameters: number of parameters, for the compression ratio. None (default): those of a
                `torch.nn.Module` are counted, and of another function the ratio is NaN.
            outputs: "q_values" (default), or "logits" of a policy, such as an actor-critic's.

        Raises:
            ValueError: the function does not return finite Q-values or logits of this number of actions; the
                observation space is none; or `num_parameters` is no number.
        """
        if not isinstance(observation_space, gym.Space):
            raise ValueError(
                f"`observation_space` must be a gymnasium space of one observation, got {observation_space!r:.100}. "
                "Pass that of the environment: env.observation_space."
            )
        if num_parameters is not None and not is_integer(num_parameters, 0):
            raise ValueError(
                f"`num_parameters` must be an integer of at least 0, or None, got {num_parameters!r:.100}."
            )
        network = QNetwork(function, observation_space, action_space, num_parameters)
        source = getattr(function, "__name__", type(function).__name__)
        if pipeline is not None:
            pipeline = ObservationPipeline(observation_space).after(pipeline)
        return cls(network, pipeline=pipeline, outputs=outputs_of(outputs), source=source).checked()

    @property
    def is_loaded(self) -> bool:
        """Return False for an empty teacher whose state has not been set yet."""
        return self._module is not None

    @property
    def module(self) -> Any:
        """Return the network itself: the frozen RLModule, with `compute_q_values()`."""
        return self._module

    @property
    def is_recurrent(self) -> bool:
        """Return whether the network has a state: `q_values()` then takes its outputs, which `start()`'s view makes."""
        return self.is_loaded and self._module.is_stateful()

    @property
    def members(self) -> Sequence[Teacher]:
        """Return the teachers of an ensemble; otherwise this one."""
        function = getattr(self._module, "function", None)
        return function.teachers if isinstance(function, Members) else (self,)

    @property
    def known_pipeline(self) -> ObservationPipeline:
        """Return its pipeline; one without stages if it is not known."""
        return self.pipeline or ObservationPipeline(self.input_space)

    @property
    def observation_space(self) -> gym.Space:
        """Return the space of observations before its pipeline."""
        return self.known_pipeline.observation_space

    @property
    def input_space(self) -> gym.Space:
        """Return the space of the network's inputs, after its pipeline."""
        return self._module.observation_space

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """Return the space of its actions."""
        return self._module.action_space

    @property
    def num_parameters(self) -> float:
        """Return the number of parameters that act, without target networks; NaN if unknown."""
        if not isinstance(self._module, RLModule):
            return self._module.num_parameters
        return count_parameters(self._module)

    @property
    def model_config(self) -> dict[str, Any] | None:
        """Return RLlib's model config of the network; None if the network is not RLlib's default one."""
        return dict(self._module.model_config) if isinstance(self._module, DefaultDQNRLModule) else None

    @property
    def support(self) -> Support | None:
        """Return the support of its return distributions; None if it has none."""
        return support_of(self._module)

    def to(self, device: torch.device | str) -> Teacher:
        """Move this teacher to a device, and return it."""
        self._module.to(device)
        return self

    def label(
        self,
        dataset: Dataset,
        *,
        obs_column: str = Columns.OBS,
        also: Sequence[str] = (),
        env: str | None = None,
        batch_size: int = 4096,
        concurrency: int | tuple[int, int] | None = None,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
    ) -> Dataset:
        """Return a Ray Dataset of the rows of another one with this teacher's labels, from a pool of actors.

        Its columns are those of a labelled file (docs: Recorded observations): `obs`, RLlib's `actions`, `rewards`,
        `terminateds`, `truncateds`, `eps_id`, `t` and `action_mask` if the dataset has them, and `teacher_q` `[A]`
        (return units) or, of an actor-critic, `teacher_log_probs` `[A]` (nats). Other columns are left out. Its
        `write_parquet()` writes labelled files.

        Args:
            dataset: rows with observations, as in the teacher's environment. Ray Data reads them lazily.
            obs_column: name of its column of observations.
            also: further labels: "teacher_probs" of a C51, "teacher_features" of RLlib's networks.
            env: id of the environment, which labelled files record; None if it is unknown.
            batch_size: rows that the teacher labels at once, ≥ 1.
            concurrency: number of actors, or the least and the most; None: one for each CPU or GPU that Ray has.
            num_cpus: CPUs of each actor.
            num_gpus: GPUs of each actor; with a part of one, the teacher is on it, too.

        Raises:
            ValueError: the teacher does not have these labels, or remembers earlier steps. For rows that cannot be
                labelled, it is raised when Ray Data computes them.
        """
        from rllib_kd.offline.dataset import label_dataset  # which imports Ray Data

        return label_dataset(
            self,
            dataset,
            obs_column=obs_column,
            also=also,
            env=env,
            batch_size=batch_size,
            concurrency=concurrency,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )

    def takes(self, space: gym.Space) -> bool:
        """Return whether its pipeline takes observations of this space."""
        return self.known_pipeline.takes(space)

    def for_space(self, space: gym.Space) -> Teacher:
        """Return this teacher, or a copy that makes the vectors that it takes of the observations."""
        return self._with_pipeline(lambda pipeline: pipeline.for_space(space, self.source))

    def with_recorded_vectors(self, space: gym.Space, connectors: Collection[str] = ()) -> Teacher:
        """Return this teacher, or a copy with `ObservationPipeline.with_recorded_vectors()`: with a file's vectors."""
        return self._with_pipeline(lambda pipeline: pipeline.with_recorded_vectors(space, connectors, self.source))

    def with_image_stage(self, space: gym.Space) -> Teacher:
        """Return this teacher, or a copy with `ObservationPipeline.with_image_stage()`: a file has what is a stage."""
        return self._with_pipeline(lambda pipeline: pipeline.with_image_stage(space))

    def _with_pipeline(self, change: Callable[[ObservationPipeline], ObservationPipeline]) -> Teacher:
        pipeline = self.known_pipeline
        if (changed := change(pipeline)) is pipeline:
            return self
        copy = Teacher(pipeline=changed)
        copy.set_state({**self.get_state(), "pipeline": changed})
        return copy

    def checked(self) -> Teacher:
        """Return this teacher, after checking that its network ranks actions.

        Raises:
            ValueError: its action space is not Discrete from 0, its connectors do not fit its network, or the network's
                outputs for zeros are not finite, or not one for each action.
        """
        action_space, shape, source = self.action_space, self.input_space.shape, one_line(self.source)
        if not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(f"The teacher '{source}' has the action space {action_space}, expected Discrete.")
        if action_space.start != 0:
            raise ValueError(
                f"The teacher '{source}' has the action space {action_space}, but actions are numbered from 0 here. "
                "Wrap its environment: gymnasium.wrappers.TransformAction."
            )
        if shape is None:
            raise ValueError(
                f"The network of '{source}' takes {brief(self.input_space)}, expected arrays of numbers. It gets one "
                "vector of all parts, those of a Dict in the order of their sorted keys: pass "
                "observation_space=gymnasium.spaces.flatten_space(space), and no pipeline."
            )
        if self.pipeline is not None:
            self.pipeline.check_feeds(self.input_space, self.source)
        try:
            q = self._counted(torch.zeros(2, *shape))
            alone = self.first_q_values(torch.zeros(1, *shape))  # which batch norm in training mode refuses
        except users_errors() as error:
            raise ValueError(
                f"The network of '{source}' fails on observations of the shape {list(shape)}, of 32-bit floats: "
                f"{type(error).__name__}: {one_line(first_line(error))}"
            ) from error
        name = "log-probabilities" if self.outputs == LOG_PROBS else "Q-values"
        for got, outputs, count in (("two observations", q, 2), ("one observation", alone, 1)):
            if outputs.shape != (count, action_space.n):
                raise ValueError(
                    f"The network of '{source}' returns the shape {list(outputs.shape)} for {got}, expected "
                    f"{name} {[count, int(action_space.n)]}."
                )
        if torch.isnan(q).any() or torch.isposinf(q).any() or torch.isneginf(q).all():
            raise ValueError(
                f"The {name} of '{source}' are not finite: {q[0].tolist()[:10]}. Is the checkpoint complete?"
            )
        warn_of_unsteady(self, q, name)
        return self

    def start(self) -> View:
        """Start a view of one vector env: a function from its observations to the inputs of `q_values()`."""
        view = self.known_pipeline.start()
        return RecurrentView(self, view) if self.is_recurrent else view

    @torch.inference_mode()
    def first_q_values(self, obs: Tensor) -> Tensor:
        """Return the outputs `[B, A]` for the network's inputs `[B, ...]`, as those of the first states of episodes."""
        return self._ranking(first_outputs(self._module, obs)) if self.is_recurrent else self.q_values(obs)

    @torch.inference_mode()
    def q_values(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the outputs `[B, A]` for the network's inputs `[B, ...]`, by which actions are ranked.

        They are Q-values (return units), for a C51 the expectations; or log-probabilities (nats), if `outputs` is
        "log_probs".

        Args:
            obs: the inputs.
            mask: `[B, A]`, truth values: the legal actions. The others get −inf, and probabilities are of the legal
                ones. None: all are legal.
        """
        return self._in_parts(self._q_values, obs, mask)

    def _in_parts(self, function: Callable[[Tensor, Tensor | None], Any], obs: Tensor, mask: Tensor | None) -> Any:
        """Apply a function of inputs and the masks of the same rows, by `in_parts()`."""

        def apply(rows: range) -> Any:
            at = slice(rows.start, rows.stop)
            return function(obs[at], None if mask is None else mask[at])

        return in_parts(apply, range(len(obs)), self._num_numbers)

    def _q_values(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.is_recurrent:  # its view has made the outputs
            return self._ranking(obs, mask)
        if self._mlp is not None and not self._mlp.has_hooks:
            return self._ranking(self._mlp.q_values(obs), mask)
        batch = {Columns.OBS: obs}
        if mask is not None and isinstance(getattr(self._module, "function", None), Members):
            batch[MASK] = mask  # the members' policies are each of legal actions
        return self._ranking(self._module.compute_q_values(batch)[QF_PREDS], mask)

    def _ranking(self, network_outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        q = network_outputs if mask is None else network_outputs.masked_fill(~mask, -torch.inf)
        if self.outputs != LOG_PROBS:
            return q
        log_probs = F.log_softmax(q, dim=-1).clamp(min=_LEAST_LOG_PROB)
        return log_probs if mask is None else log_probs.masked_fill(~mask, -torch.inf)

    def _counted(self, obs: Tensor) -> Tensor:
        """Return Q-values, and record how much memory the widest layer takes."""

        def count(_: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
            numbers = sum(part.numel() for part in (*inputs, outputs) if isinstance(part, Tensor))
            self._num_numbers = max(self._num_numbers, numbers // len(obs))

        parts = self._module.modules() if isinstance(self._module, nn.Module) else ()
        hooks = [part.register_forward_hook(count) for part in parts]
        try:
            return self.first_q_values(obs)
        finally:
            for hook in hooks:
                hook.remove()

    def labels(self, obs: Tensor, names: Sequence[str], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the label columns `names` of the network's inputs `[B, ...]`, in one pass.

        Args:
            obs: the inputs.
            names: names of the columns.
            mask: as in `q_values()`.

        Returns:
            `teacher_q` `[B, A]`, as `q_values()` returns them; `teacher_probs` `[B, A, atoms]`, a distribution over
            `support` for each legal action, and zeros for an illegal one (with a Q-value of −inf); `teacher_features`
            `[B, units]`.
        """
        if tuple(names) == (TEACHER_Q,):
            return {TEACHER_Q: self.q_values(obs, mask)}
        return self._in_parts(partial(self._labels, names), obs, mask)

    def _labels(self, names: Sequence[str], obs: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        labels: dict[str, Tensor] = {}
        watch: AbstractContextManager = nullcontext()
        if TEACHER_FEATURES in names:
            watch = last_linear(self._module.af).register_forward_pre_hook(
                lambda _, inputs: labels.update({TEACHER_FEATURES: inputs[0]})
            )
        with watch, torch.inference_mode():
            outputs = self._module.compute_q_values({Columns.OBS: obs})
        labels[TEACHER_Q] = self._ranking(outputs[QF_PREDS], mask)
        if TEACHER_PROBS in names:
            illegal = labels[TEACHER_Q] == -torch.inf
            labels[TEACHER_PROBS] = outputs[QF_PROBS].masked_fill(illegal.unsqueeze(-1), 0.0)
        return labels

    @override(Checkpointable)
    def get_state(self, components=None, *, not_components=None, **kwargs) -> dict[str, Any]:
        """Return everything needed to rebuild the teacher, with weights as numpy arrays.

        Raises:
            ValueError: the teacher is empty.
        """
        if not self.is_loaded:
            raise ValueError("There is no teacher to save: none was loaded, or restored. Load one with load_teacher().")
        return {
            **self._recipe,
            "weights": self._module.get_state(),
            "pipeline": self.pipeline,
            "outputs": self.outputs,
            "source": self.source,
            "trained_return": self.trained_return,
            "num_numbers": self._num_numbers,
        }

    @override(Checkpointable)
    def set_state(self, state: dict[str, Any]) -> None:
        """Become the teacher of `get_state()`."""
        module = state["class"](**state["kwargs"])
        module.set_state(state["weights"])
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._module, self._mlp, self.source = module, PlainMLP.of(module), state["source"]
        self.pipeline = state.get("pipeline")  # teachers saved by 0.1 have none of these
        self.outputs = state.get("outputs", Q_VALUES)
        self.trained_return = state.get("trained_return")
        self._num_numbers = state.get("num_numbers", 0)
        self._recipe = {"class": state["class"], "kwargs": state["kwargs"]}

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments of an empty teacher; the state has the rest."""
        return (), {}

    # Pickled by its state: Ray ships teachers to the EnvRunners through the object store.
    def __getstate__(self) -> dict[str, Any]:
        return self.get_state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.set_state(state)
        # Ray's objects are in memory that all processes of a node share. The weights are used there without a copy, so
        # each node has them once, for any number of EnvRunners.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the arrays are read-only: a teacher is never written to
            weights = {name: torch.as_tensor(array) for name, array in state["weights"].items()}
        self._module.load_state_dict(weights, strict=False, assign=True)


def outputs_of(network_outputs: str) -> Outputs:
    """Return what a teacher gives whose network has these outputs, "q_values" or "logits".

    Raises:
        ValueError: they are neither.
    """
    if network_outputs not in (Q_VALUES, "logits"):
        raise ValueError(f"`outputs` must be 'q_values', or 'logits' of a policy, got {network_outputs!r:.100}.")
    return Q_VALUES if network_outputs == Q_VALUES else LOG_PROBS


def in_parts(function: Callable[[Any], Any], rows: Any, num_numbers: int) -> Any:
    """Apply a function to a batch: at once, or part by part if it would take too much memory.

    Args:
        function: from rows `[B, ...]` to one tensor or array `[B, ...]`, or to several by name.
        rows: `[B, ...]`, a tensor or an array.
        num_numbers: numbers in memory for one row; 0 if unknown.
    """
    size = max(1, limits.MAX_IN_FLIGHT // max(1, num_numbers))
    if len(rows) <= size:
        return function(rows)
    parts = [function(rows[start : start + size]) for start in range(0, len(rows), size)]
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)
