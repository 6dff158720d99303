"""Means with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit as student_t_quantile  # scipy.stats takes a second to import


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the half width of its 95 % confidence interval (Student's t; infinite for one value)."""
    half_width = (
        float(student_t_quantile(len(values) - 1, 0.975)) * standard_error(values) if len(values) > 1 else math.inf
    )
    return float(np.mean(values)), half_width


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Return the standard error of a mean; infinite for one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def lower_bound(values: Sequence[float]) -> float:
    """Return the lower bound of the mean, with one-sided 95 % confidence (Student's t); −inf for a single value."""
    if len(values) < 2:
        return -math.inf
    return float(np.mean(values)) - float(student_t_quantile(len(values) - 1, 0.95)) * standard_error(values)
