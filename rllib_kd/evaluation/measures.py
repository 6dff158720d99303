"""Agreement, Q-regret and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rllib_kd.learner.label_statistics import agrees, regret
from rllib_kd.teachers.base import Teacher

_STATES_AT_ONCE = 1_000  # in one forward pass: 10,000 stacks of frames and their features would fill the memory
_LATENCY_CALLS = 500


def confusion_and_regret(
    teacher: Teacher,
    student: Teacher,
    teacher_inputs: np.ndarray,
    student_inputs: np.ndarray,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Count the actions of teacher and student, and measure the student's Q-regret.

    Args:
        teacher: a network from inputs `[M, ...]` to Q-values or log-probabilities `[M, A]`.
        student: a network with as many actions.
        teacher_inputs: states as inputs of the teacher's network, `[M, ...]`, M ≥ 1.
        student_inputs: the same states as inputs of the student's network.
        mask: `[M, A]`, truth values: the legal actions, among which both choose; None: all are legal.

    Returns:
        Counts of states `[A, A]`, with rows for the teacher's action and columns for the student's: if the teacher
        finds the student's action equally good, up to rounding, it counts as the teacher's, too. And the Q-regret,
        the mean of max_a Q_T(s, a) − Q_T(s, a_S), ≥ 0, in the unit of the teacher's outputs: return units or nats.
    """
    teacher_q = all_q_values(teacher, teacher_inputs, mask)  # [M, A]
    student_q = all_q_values(student, student_inputs, mask)  # [M, A]
    num_actions = teacher_q.shape[-1]
    chosen = student_q.argmax(-1)  # [M]
    best = torch.where(agrees(teacher_q, chosen), chosen, teacher_q.argmax(-1))
    confusion = torch.bincount(best * num_actions + chosen, minlength=num_actions**2).reshape(num_actions, num_actions)
    return confusion.numpy(), regret(teacher_q, chosen).mean().item()


def all_q_values(network: Teacher, inputs: np.ndarray, mask: np.ndarray | None = None) -> Tensor:
    """Return the outputs `[M, A]` of a network for inputs `[M, ...]`, part by part; −inf where a mask forbids."""
    chunks = torch.as_tensor(inputs).float().split(_STATES_AT_ONCE)
    masks = [None] * len(chunks) if mask is None or mask.all() else torch.as_tensor(mask).split(_STATES_AT_ONCE)
    return torch.cat([network.q_values(chunk, own) for chunk, own in zip(chunks, masks, strict=True)])


def agreement(confusion: np.ndarray) -> float:
    """Return the share of states, in [0, 1], in which both choose the same, or an equally good, action, of `[A, A]`."""
    return float(confusion.trace() / confusion.sum())


def latency_ms(q_values: Callable[[Tensor], Tensor], obs: Tensor) -> float:
    """Measure the median time of one forward pass, in milliseconds, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(_LATENCY_CALLS):
            start = time.perf_counter()
            q_values(obs)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * statistics.median(times)
