"""Images of bytes that a teacher may have seen in another form in its training."""

from __future__ import annotations

import logging

import gymnasium as gym
import numpy as np

from rllib_kd.observations.spaces import is_byte_image
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line

logger = logging.getLogger(__name__)


def warn_of_bytes(teacher: Teacher, space: gym.Space) -> None:
    """Warn if a teacher gets images of bytes, and nothing records in which form it was trained on them.

    No warning for RLlib's own modules, and teachers with a pipeline or with bounds of their inputs.

    Args:
        teacher: a loaded teacher.
        space: space of the environment's observations, without a mask.
    """
    if not is_byte_image(space) or teacher.pipeline is not None or teacher.model_config is not None:
        return
    if not teacher.takes(space):
        logger.warning(
            "The teacher '%s' gets images divided by 255, with channels last, as the student does. If it takes bytes, "
            "load it by load_teacher(..., pipeline=ObservationPipeline(space, (Images(shape, scaled=False),))).",
            one_line(teacher.source),
        )
    elif space.dtype == np.uint8 and space.high.max() > 1 and np.isinf(teacher.input_space.high).any():
        logger.warning(
            "The teacher '%s' gets bytes from 0 to 255. If it was trained on pixels divided by 255, write "
            '{"divisor": 255} into the JSON beside an ONNX, .pt2 or TorchScript file; {"divisor": 1} confirms the '
            "bytes. In Python, give load_teacher() or Teacher.from_callable() pipeline=ObservationPipeline(space, "
            "(Images(shape),)), or Images(shape, scaled=False) to confirm.",
            one_line(teacher.source),
        )
