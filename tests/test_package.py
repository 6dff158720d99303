"""The shape of the house: what is public, and what can be imported without Ray. import-linter holds the floors."""

import subprocess
import sys
from pathlib import Path

import pytest

import rllib_kd

PACKAGE = Path(rllib_kd.__file__).parent
#: Formulas and data: they work, and can be tested, without Ray.
FREE_OF_RAY = (
    "learner.label_statistics",
    "learner.losses",
    "learner.replay",
    "observations.frames",
    "schedules",
    "terminal",
    "text",
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_sorted_and_true():
    assert rllib_kd.__all__ == sorted(rllib_kd.__all__) == sorted(rllib_kd._HOME)
    for name in rllib_kd.__all__:
        assert getattr(rllib_kd, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Destill'"):
        rllib_kd.Destill  # noqa: B018


def test_the_package_alone_imports_neither_ray_nor_torch():
    assert run("import sys, rllib_kd; print({'ray', 'torch'} & set(sys.modules))") == "set()"


def test_formulas_and_data_are_imported_where_ray_is_blocked():
    modules = ", ".join(f"rllib_kd.{name}" for name in FREE_OF_RAY)
    assert run(f"import sys; sys.modules['ray'] = None; import {modules}; print('done')") == "done"


@pytest.mark.parametrize("name", ["compare", "DistillDQNConfig", "load_teacher"])
def test_importing_anything_registers_the_algorithm(name):
    code = (
        f"from rllib_kd import {name}; from ray.tune.registry import get_trainable_cls as get; print(get('DistillDQN'))"
    )
    assert "DistillDQN" in run(code)


def test_ci_runs_the_readmes_test_command():
    root = PACKAGE.parent
    lines = (root / ".ci" / "run").read_text().splitlines()
    (command,) = [line.strip() for line in lines if line.endswith("pytest")]
    assert command in (root / "README.md").read_text()
