"""Policy distillation for Ray RLlib: compact students from trained teachers with discrete actions.

Names are imported when they are first used, so that `import rllib_kd` and the command line start fast. Importing any of
them registers "DistillDQN" with Ray Tune.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rllib_kd.relay import send_warnings_from_worker

if TYPE_CHECKING:
    from rllib_kd.algorithm.algorithm import DistillDQN, DistillDQNConfig
    from rllib_kd.checkpoints.runs import read_curves
    from rllib_kd.env_runner.single_agent import DistillEnvRunner
    from rllib_kd.evaluation.comparing import compare, compare_all
    from rllib_kd.learner.learner import DistillDQNTorchLearner
    from rllib_kd.offline.data import LabelledData
    from rllib_kd.report.comparisons import summary_table, write_report
    from rllib_kd.shrink.shrink import Shrink
    from rllib_kd.sweeps.loggers import sweep_loggers
    from rllib_kd.sweeps.space import search_space
    from rllib_kd.sweeps.sweep import Sweep
    from rllib_kd.teachers.base import Teacher
    from rllib_kd.teachers.loading import load_teacher

    __version__: str

__all__ = [
    "DistillDQN",
    "DistillDQNConfig",
    "DistillDQNTorchLearner",
    "DistillEnvRunner",
    "LabelledData",
    "Shrink",
    "Sweep",
    "Teacher",
    "compare",
    "compare_all",
    "load_teacher",
    "read_curves",
    "search_space",
    "summary_table",
    "sweep_loggers",
    "write_report",
]

send_warnings_from_worker()

#: Where each of them is defined: the same table as above, for the interpreter.
_HOME = {
    "DistillDQN": "algorithm.algorithm",
    "DistillDQNConfig": "algorithm.algorithm",
    "DistillDQNTorchLearner": "learner.learner",
    "DistillEnvRunner": "env_runner.single_agent",
    "LabelledData": "offline.data",
    "Shrink": "shrink.shrink",
    "Sweep": "sweeps.sweep",
    "Teacher": "teachers.base",
    "compare": "evaluation.comparing",
    "compare_all": "evaluation.comparing",
    "load_teacher": "teachers.loading",
    "read_curves": "checkpoints.runs",
    "search_space": "sweeps.space",
    "summary_table": "report.comparisons",
    "sweep_loggers": "sweeps.loggers",
    "write_report": "report.comparisons",
}


if not TYPE_CHECKING:  # which would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("rllib-kd")
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import_module("rllib_kd.algorithm.algorithm")  # registers the algorithm
        return getattr(import_module(f"rllib_kd.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
