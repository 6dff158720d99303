"""Policy distillation for Ray RLlib: compact students from trained DQN teachers.

Names are imported when they are first used, so that `import rllib_kd` and the command line start fast. Importing any of
them registers "DistillDQN" with Ray Tune.
"""

from importlib import import_module
from typing import Any

from rllib_kd.relay import send_warnings_from_worker

send_warnings_from_worker()

_HOME = {
    "DistillDQN": "algorithm",
    "DistillDQNConfig": "config",
    "DistillDQNTorchLearner": "learner",
    "DistillEnvRunner": "env_runner",
    "Sweep": "sweeps",
    "Teacher": "teachers.base",
    "compare": "evaluation",
    "compare_all": "evaluation",
    "load_teacher": "teachers",
    "read_curves": "runs",
    "search_space": "sweep_space",
    "summary_table": "report",
    "sweep_loggers": "sweeps",
    "write_report": "report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rllib-kd")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("rllib_kd.algorithm")  # registers the algorithm
    return getattr(import_module(f"rllib_kd.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
