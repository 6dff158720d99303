"""Headers on an emulated microcontroller compute what they compute here."""

import numpy as np
import pytest

from rllib_kd.export.export import export
from rllib_kd.export.runners.c_runner import CNetwork
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states
from tests.export.c import cortex_m
from tests.export.students import LINEAR, linear_student, network
from tests.networks.trees.trees import near_ties, tree_module

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not cortex_m.is_there(), reason=f"needs {', '.join(cortex_m.PROGRAMS)}"),
]

STUDENTS = {
    "linear": lambda: linear_student(LINEAR["linear"]),
    "relu": lambda: network(fcnet_hiddens=[32, 32], fcnet_activation="relu"),
    "tanh": lambda: network(fcnet_hiddens=[16], fcnet_activation="tanh"),
    "silu": lambda: network(fcnet_hiddens=[16], fcnet_activation="silu"),
    "dueling": lambda: Teacher(make_q_module(dueling=True)),
    "tree": lambda: Teacher(tree_module(30, oblique=True)),
}
NETWORKS = [name for name in STUDENTS if name != "tree"]


@pytest.mark.parametrize(
    ("name", "int8"), [*((name, False) for name in STUDENTS), *((name, True) for name in NETWORKS)]
)
def test_the_board_computes_the_same(name, int8, tmp_path):
    student = STUDENTS[name]()
    obs = near_ties(student.module, 200) if name == "tree" else np.concatenate([states(150), 1e3 * states(50)])
    export(student, tmp_path / "student.h", format="c", obs=obs, int8=int8)
    actions, q_values = CNetwork(str(tmp_path / "student.h")).run(obs)
    on_board, seen = cortex_m.run(tmp_path / "student.h", obs, tmp_path)
    # Its C library rounds exp() and tanh() in another way.
    own_functions = name in ("tanh", "silu") and not int8
    np.testing.assert_allclose(seen, q_values, rtol=2e-6 if own_functions else 0, atol=2e-6 if own_functions else 0)
    gaps = np.abs(np.diff(np.sort(q_values, -1)[:, -2:], axis=-1)[:, 0])
    assert (on_board == actions)[gaps > 1e-5].all()
    assert (
        cortex_m.flash_bytes(tmp_path / "student.h", tmp_path)
        < 1.1 * student.num_parameters * (1 if int8 else 4) + 2_000
    )


def test_what_is_not_finite_is_refused(tmp_path):
    export(network(), tmp_path / "student.h", format="c", obs=states(10))
    obs = states(4)
    obs[0, 1], obs[1, 2], obs[2, 0] = np.nan, np.inf, -np.inf
    actions, _ = cortex_m.run(tmp_path / "student.h", obs, tmp_path)
    assert actions[:3].tolist() == [-1, -1, -1]
    assert actions[3] >= 0
