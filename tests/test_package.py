"""The shape of the house: what is public, and what can be imported without Ray. import-linter holds the floors."""

import ast
import inspect
import pickle
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from ray import cloudpickle

import rllib_kd
from rllib_kd.checkpoints.runs import Curve
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states

PACKAGE = Path(rllib_kd.__file__).parent
ROOT = PACKAGE.parent
#: Formulas and data: they work, and can be tested, without Ray.
FREE_OF_RAY = (
    "certificates.certificate",
    "certificates.certification",
    "certificates.evidence",
    "checkpoints.magic",
    "evaluation.intervals",
    "evaluation.return_ratio",
    "evaluation.seeds",
    "learner.optimizer_step",
    "learner.label_statistics",
    "learner.losses",
    "learner.replay",
    "observations.flattening",
    "observations.frames",
    "observations.masks",
    "observations.spaces",
    "observations.texts",
    "public",
    "schedules",
    "shrink.budget",
    "shrink.outcome",
    "shrink.tournament",
    "terminal",
    "text",
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
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


def test_all_modules_that_import_linter_keeps_free_of_ray_are_tried():
    contract = (ROOT / "pyproject.toml").read_text().partition("Formulas and data need no Ray")[2].partition("]")[0]
    modules = re.findall(r'"rllib_kd\.([\w.]+)"', contract)
    assert len(modules) > 10
    assert [module for module in modules if module not in FREE_OF_RAY] == []


def test_faces_of_wings_import_nothing_of_the_package():
    """Otherwise a part that needs no Ray would import it; and import-linter sees no circle of a face and its parts."""
    faces = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert len(faces) > 20
    for face in faces:
        imports = [node for node in ast.parse(face.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert [ast.unparse(node) for node in imports if "rllib_kd" in ast.unparse(node)] == [], face


def test_public_names_are_those_of_the_package_wherever_their_code_is():
    assert [name for name in rllib_kd.__all__ if getattr(rllib_kd, name).__module__ != "rllib_kd"] == []
    decorated = re.compile(r"^@public\n(?:@.*\n)*(?:class|def) (\w+)", re.MULTILINE)
    assert sorted(name for path in PACKAGE.rglob("*.py") for name in decorated.findall(path.read_text())) == (
        rllib_kd.__all__
    )


def test_documentation_finds_what_is_decorated():
    assert list(inspect.signature(rllib_kd.read_curves).parameters) == ["run_dir"]
    assert inspect.getsourcefile(rllib_kd.read_curves) == str(PACKAGE / "checkpoints" / "runs.py")
    assert inspect.getsource(rllib_kd.read_curves).startswith("@public\ndef read_curves(")
    assert typing.get_type_hints(rllib_kd.read_curves)["return"] == dict[str, Curve]


def test_the_program_of_a_user_that_mypy_checks_has_every_public_name():
    program = ast.parse((ROOT / "tests" / "typed.py").read_text())
    (checked,) = (node for node in program.body if isinstance(node, ast.If))
    named = {node.id for node in ast.walk(checked) if isinstance(node, ast.Name)}
    assert [name for name in rllib_kd.__all__ if name not in named] == []


@pytest.mark.slow
def test_public_names_and_teachers_are_unpickled_in_a_fresh_process():
    """By their public names, so that pickles survive when a class or a function moves to another file."""
    public = [getattr(rllib_kd, name) for name in rllib_kd.__all__]
    assert len(public) == 16
    plain = rllib_kd.Teacher(make_q_module())
    teachers = [plain, rllib_kd.load_teacher([plain, rllib_kd.Teacher(make_q_module(seed=1))])]
    spaces = {"observation_space": CARTPOLE_OBS, "action_space": CARTPOLE_ACTIONS}
    of_callable = rllib_kd.Teacher.from_callable(lambda obs: obs[:, :2], **spaces)
    obs = torch.as_tensor(states(5))
    data = [pickle.dumps((public, teachers, obs)), cloudpickle.dumps((public, [*teachers, of_callable], obs))]
    elsewhere = {f"rllib_kd.{home}".encode() for home in rllib_kd._HOME.values()}
    assert not [home for home in elsewhere for each in data if home in each]
    code = (
        f"import pickle\nfor data in {data!r}:\n    public, teachers, obs = pickle.loads(data)\n"
        "    print([each.__name__ for each in public], [teacher.q_values(obs).tolist() for teacher in teachers])"
    )
    expected = [[each.q_values(obs).tolist() for each in own] for own in (teachers, [*teachers, of_callable])]
    assert run(code).splitlines() == [f"{rllib_kd.__all__} {q_values}" for q_values in expected]


def test_ci_runs_the_readmes_test_command():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    (command,) = [line.strip() for line in lines if line.endswith("pytest")]
    assert command in (ROOT / "README.md").read_text()


PAGES = [
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md") if "site" not in p.parts),
]


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if heading:
            assert heading in map(anchor, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def test_readme_is_short_and_links_the_page_on_security():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 7 * 1024
    assert "(SECURITY.md)" in text


def test_texts_are_read_and_written_whole_in_utf_8():
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        texts = [call for call in calls if getattr(call.func, "attr", None) in ("read_text", "write_text")]
        assert [ast.unparse(call) for call in texts if "encoding" not in {each.arg for each in call.keywords}] == []
        assert "text=True" not in path.read_text(), path  # of subprocesses


def test_an_installed_package_has_all_its_files():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    listed = {
        path
        for package, own in patterns.items()
        for pattern in own
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    tracked = subprocess.run(["git", "ls-files", "rllib_kd"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("there is no git, or this is no clone")
    others = {ROOT / name for name in tracked.stdout.splitlines() if not name.endswith(".py")}
    assert others == listed


#: The modules that an extra is for: others import it where it is used.
OF_EXTRAS = {
    "rllib_kd.export.runners.onnx_runner",
    "rllib_kd.export.serve.app",
    *(f"rllib_kd.teachers.onnx_{part}" for part in ("costs", "model", "operators", "parameters")),
}
EXTRAS = ("ale_py", "fastapi", "h5py", "minari", "mlflow", "moviepy", "onnx", "onnxruntime", "onnxscript", "optuna")
IMPORT_ALL = f"""
import importlib, pkgutil, sys
for name in {(*EXTRAS, "pygame", "sklearn", "starlette", "wandb")!r}:
    sys.modules[name] = None
import rllib_kd
from rllib_kd import load_teacher
from ray.tune.registry import get_trainable_cls
get_trainable_cls("DistillDQN")
for module in pkgutil.walk_packages(rllib_kd.__path__, "rllib_kd."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:
            print(module.name)
"""


@pytest.mark.slow
def test_without_extras_everything_else_is_imported_and_anything_registers_the_algorithm():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == OF_EXTRAS, done.stderr


def test_files_and_functions_can_be_read_at_one_go():
    for path in (path for folder in (PACKAGE, ROOT / "tests", ROOT / "tuning") for path in folder.rglob("*.py")):
        lines = path.read_text().splitlines()
        assert len(lines) <= 500, path
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                above = "\n".join(lines[max(0, first - 3) : first - 1])
                assert "# Longer than other functions" in above, f"{path}: {node.name}"
