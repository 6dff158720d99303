"""A policy that answers requests: observations in, greedy actions and what ranks them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from rllib_kd.export.serve.requests import RequestError, RequestReader
from rllib_kd.observations.pipeline import (
    Flatten,
    Function,
    Images,
    Normalize,
    ObservationPipeline,
    Shown,
    StackFrames,
)
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line


@dataclass(frozen=True)
class Question:
    """The content of a request.

    Args:
        obs: observations `[N, ...]`, or a dict or tuple of such arrays.
        mask: legal actions `[N, A]`, bool; None: all are legal.
        num_rows: N.
    """

    obs: Any
    mask: np.ndarray | None
    num_rows: int


@dataclass(frozen=True)
class ServedPolicy:
    """A network without memory that answers requests.

    Args:
        network: the frozen network. With stacked frames, a request contains the stack, as for exported files.

    Raises:
        ValueError: it remembers earlier steps, so that one observation is not enough.
    """

    network: Teacher
    _pipeline: ObservationPipeline = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pipeline", _memoryless(self.network))

    def __reduce__(self) -> tuple[Any, ...]:
        return ServedPolicy, (self.network,)

    @property
    def num_actions(self) -> int:
        """Return the number of actions, A."""
        return int(self.network.action_space.n)

    @cached_property
    def reader(self) -> RequestReader:
        """Return the reader of its requests."""
        return RequestReader(self._pipeline.observation_space, self.num_actions)

    def question(self, request: Any) -> Question:
        """Return the content of a request.

        Raises:
            RequestError: it does not fit this policy.
        """
        return Question(*self.reader.read(request))

    def outputs(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Return for each question the outputs `[N, A]` that rank actions, by one forward pass for all.

        They are Q-values (return units) or log-probabilities (nats), by `network.outputs`; −inf for illegal actions.
        """
        obs = _joined([question.obs for question in questions])
        counts = [question.num_rows for question in questions]
        mask: np.ndarray | None = None
        if any(question.mask is not None for question in questions):
            mask = np.concatenate([self._mask(question) for question in questions])
        first = np.ones(sum(counts), dtype=bool)
        inputs = torch.from_numpy(self._pipeline.start()(Shown(obs, first, mask=mask)))
        q = self.network.q_values(inputs, None if mask is None else torch.from_numpy(mask)).numpy()
        return np.split(q, np.cumsum(counts)[:-1])

    def _mask(self, question: Question) -> np.ndarray:
        if question.mask is None:
            return np.ones((question.num_rows, self.num_actions), dtype=bool)
        return question.mask

    def answer(self, question: Question, outputs: np.ndarray) -> dict[str, Any]:
        """Return the answer to a question as JSON: `actions` `[N]`, and the outputs by their name, `[N, A]`.

        Illegal actions have null.

        Raises:
            RequestError: an output is not finite: the observation is finite, but too large for the network.
        """
        legal = self._mask(question)
        if not np.isfinite(outputs[legal]).all():
            row = int(np.flatnonzero(~np.where(legal, np.isfinite(outputs), True).all(-1))[0])
            raise RequestError(
                f"'observations'[{row}] has numbers so large that the policy's outputs are not finite. Expected "
                "observations as the environment shows them."
            )
        rows = outputs.astype(object)
        rows[~legal] = None
        return {"actions": outputs.argmax(-1).tolist(), self.network.outputs: rows.tolist()}

    def check(self) -> None:
        """Raise a RuntimeError if an output of the network for zeros is NaN."""
        outputs = self.network.q_values(torch.zeros(1, *(self.network.input_space.shape or ())))
        if torch.isnan(outputs).any():
            raise RuntimeError(f"The policy's outputs for zeros are {outputs[0].tolist()[:10]}.")

    def description(self) -> dict[str, Any]:
        """Return what is served, for clients; no names of files."""
        return {
            "outputs": self.network.outputs,
            "num_actions": self.num_actions,
            "num_parameters": None if np.isnan(self.network.num_parameters) else int(self.network.num_parameters),
            "example": self.reader.example(),
        }


def _memoryless(network: Teacher) -> ObservationPipeline:
    """Return the pipeline from a request's observations to the network's inputs."""
    pipeline = network.known_pipeline
    kinds = [type(stage) for stage in pipeline.stages]
    source = one_line(network.source)
    if network.is_recurrent:
        raise ValueError(
            f"'{source}' is recurrent, but a request is answered by its own observation alone. Serve a feed-forward "
            "policy."
        )
    for kind in kinds:
        if kind not in (Flatten, Normalize, Images, Function, StackFrames):
            raise ValueError(
                f"'{source}' has connectors that may remember earlier steps ({kind.__name__}), but a request is "
                "answered by its own observation alone. Wrap the environment instead."
            )
    if StackFrames not in kinds:
        return pipeline
    if len(kinds) > 1:
        raise ValueError(
            f"'{source}' stacks frames beside other connectors, which cannot be served. Wrap the environment."
        )
    return ObservationPipeline(network.input_space)


def _joined(parts: list[Any]) -> Any:
    """Return the observations of several requests as those of one."""
    if isinstance(parts[0], dict):
        return {key: _joined([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(map(_joined, map(list, zip(*parts, strict=True))))
    if isinstance(parts[0], list):  # of texts
        return [text for part in parts for text in part]
    return np.concatenate(parts)
