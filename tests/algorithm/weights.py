"""Weights of students and teachers, and whether they are the same."""

import numpy as np


def student_weights(algo):
    return algo.learner_group.get_weights()["default_policy"]


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def bytes_of(teacher) -> list[bytes]:
    return [parameter.numpy().tobytes() for parameter in teacher._module.parameters()]
