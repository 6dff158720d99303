"""The shape of the house: what is public, who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rllib_kd

PACKAGE = Path(rllib_kd.__file__).parent
#: Modules that may be imported by learner, env_runner and students, and what they may import themselves.
FOUNDATIONS: dict[str, set[str]] = {
    "checkpoints": {"layers", "locks", "observations", "spaces", "text"},
    "frames": set(),
    "initialization": {"teachers"},
    "layers": set(),
    "locks": set(),
    "losses": set(),
    "observations": {"spaces"},
    "progress": {"text"},
    "replay": {"frames"},
    "env_failures": set(),
    "sampling": {"env_failures"},
    "schedules": set(),
    "spaces": set(),
    "stacking": {"students"},
    "statistics": set(),
    "text": set(),
    "teachers": {"checkpoints", "layers", "observations", "spaces", "students"},
}
FREE_OF_RAY = {
    "env_failures",
    "frames",
    "initialization",
    "locks",
    "losses",
    "progress",
    "replay",
    "schedules",
    "spaces",
    "statistics",
    "text",
}


def imports(name: str) -> set[str]:
    """Every module that a file imports, at its top or in its functions."""
    paths = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else list((PACKAGE / name).glob("*.py"))
    found: set[str] = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(name: str) -> set[str]:
    return {module.split(".")[1] for module in imports(name) if module.startswith("rllib_kd.")} - {name}


@pytest.mark.parametrize("name", FOUNDATIONS)
def test_foundations_import_nothing_from_the_rest(name):
    assert own(name) <= FOUNDATIONS[name]


@pytest.mark.parametrize("name", sorted(FREE_OF_RAY))
def test_formulas_and_data_know_nothing_of_ray(name):
    assert not any(module.split(".")[0] == "ray" for module in imports(name))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("students", set()),
        ("learning", {"students"}),
        ("learner", {"learning", "students"}),
        ("family", set()),
        ("env_runner", {"family"}),
        ("multi_agent_env_runner", {"env_runner"}),
        ("first_weights", set()),
    ],
)
def test_the_middle_imports_foundations_and_what_is_below(name, others):
    assert own(name) <= {*FOUNDATIONS, *others}


def test_all_is_sorted_and_true():
    assert rllib_kd.__all__ == sorted(rllib_kd.__all__)
    for name in rllib_kd.__all__:
        assert getattr(rllib_kd, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Destill'"):
        rllib_kd.Destill  # noqa: B018


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_alone_imports_neither_ray_nor_torch():
    assert run("import sys, rllib_kd; print({'ray', 'torch'} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("name", ["compare", "DistillDQNConfig", "load_teacher"])
def test_importing_anything_registers_the_algorithm(name):
    code = (
        f"from rllib_kd import {name}; from ray.tune.registry import get_trainable_cls as get; print(get('DistillDQN'))"
    )
    assert "rllib_kd.algorithm.DistillDQN" in run(code)


def test_ci_runs_the_readmes_test_command():
    root = PACKAGE.parent
    lines = (root / ".ci" / "run").read_text().splitlines()
    (command,) = [line.strip() for line in lines if line.endswith("pytest")]
    assert command in (root / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_links_lead_to_files(page):
    root = PACKAGE.parent
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (root / page).read_text())
    files = [link for link in links if "://" not in link]
    assert files
    assert [file for file in files if not (root / file).exists()] == []


def test_the_readme_links_the_page_on_security():
    (row,) = [line for line in (PACKAGE.parent / "README.md").read_text().splitlines() if "that I do not trust" in line]
    assert "(SECURITY.md)" in row
