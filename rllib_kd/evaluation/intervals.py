"""Means with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit as student_t_quantile  # scipy.stats takes a second to import


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the half width of its 95 % confidence interval (Student's t; infinite for one value)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    half_width = student_t_quantile(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, float(half_width)


def lower_bound(values: Sequence[float]) -> float:
    """Return the lower bound of the mean, with one-sided 95 % confidence (Student's t); −inf for a single value."""
    if len(values) < 2:
        return -math.inf
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - float(student_t_quantile(len(values) - 1, 0.95)) * spread
