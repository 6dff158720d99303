"""A user's program, which is not run: mypy checks that no public name is Any, as `assert_type` would say."""

from pathlib import Path
from typing import TYPE_CHECKING

from rllib_kd import (
    DistillDQN,
    DistillDQNConfig,
    Shrink,
    Sweep,
    compare,
    compare_all,
    load_teacher,
    read_curves,
    write_report,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type

    from rllib_kd.checkpoints.runs import Curve
    from rllib_kd.evaluation.result import Comparison
    from rllib_kd.shrink.outcome import Shrunk
    from rllib_kd.sweeps.report import ReportedSweep
    from rllib_kd.teachers.base import Teacher

    config = DistillDQNConfig()
    assert_type(config, DistillDQNConfig)
    assert_type(config.distillation(teacher="cartpole"), DistillDQNConfig)
    assert_type(DistillDQN(config), DistillDQN)
    assert_type(compare("cartpole", "student"), Comparison)
    assert_type(compare("cartpole", "student").return_ratio, float)
    assert_type(compare_all("cartpole", {"small": "student"}), list[Comparison])
    assert_type(load_teacher("cartpole"), Teacher)
    assert_type(load_teacher("cartpole").num_parameters, float)
    assert_type(Sweep(teacher="cartpole", env="CartPole-v1").run(), ReportedSweep)
    assert_type(Shrink("cartpole", "CartPole-v1").run(), Shrunk)
    assert_type(read_curves("runs"), dict[str, Curve])
    assert_type(write_report([compare("cartpole", "student")], "report"), Path)
