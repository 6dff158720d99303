"""Code on the pages: it compiles, its names exist, and what is quick is run."""

import ast
import builtins
import importlib
import inspect
import json
import re
import shlex
import subprocess

import pytest
import typer.main
from gymnasium.utils.env_checker import check_env

import rllib_kd
import rllib_kd.cli.main  # adds the commands
from rllib_kd import DistillDQNConfig, compare
from rllib_kd.cli.app import app
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.playing import RandomActions, play
from rllib_kd.experiment.files import read_experiment
from rllib_kd.observations.masks import features_space
from tests.tutorials import ROOT, followed, tutorial

PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "pages").glob("*.md")),
    *sorted((ROOT / "docs" / "results").rglob("*.md")),
)
#: Python on the pages, by page and line.
BLOCKS = {
    f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}": match[1]
    for page in PAGES
    for text in [page.read_text()]
    for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
}
#: Modules that readers save from the pages.
SAVED = set(re.findall(r"Save\s+this\s+as\s+`(\w+)\.py`", "".join(page.read_text() for page in PAGES)))
#: What the text around a block has made.
GIVEN = {"config": DistillDQNConfig, "make_env": lambda: None}
#: They start Ray, take minutes, or read files that the reader has.
SLOW = {"InferenceSession", "build_algo", "compare", "compare_all", "learn", "load_teacher", "write_report"}


def called(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [(getattr(call.func, "attr", getattr(call.func, "id", "")), call) for call in calls]


QUICK = [where for where, code in BLOCKS.items() if not SLOW & {name for name, _ in called(ast.parse(code))}]


def test_there_are_pages_with_code():
    assert len(BLOCKS) >= 7


@pytest.mark.parametrize("where", BLOCKS)
def test_names_on_the_pages_exist(where):
    tree = ast.parse(BLOCKS[where], where)
    nodes = list(ast.walk(tree))
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    arguments = [node for node in nodes if isinstance(node, ast.arguments)]
    own |= {argument.arg for node in arguments for argument in (*node.args, *node.kwonlyargs)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    known: dict = {name: getattr(rllib_kd, name) for name in rllib_kd.__all__} | GIVEN
    for node in nodes:
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in SAVED:
            known |= {alias.name: None for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert used <= own | set(known) | set(dir(builtins))
    for name, call in called(tree):
        function = known.get(name) if isinstance(call.func, ast.Name) else getattr(DistillDQNConfig, name, None)
        if function is None or (name not in DistillDQNConfig.__dict__ and not hasattr(rllib_kd, name)):
            continue  # of another library
        parameters = inspect.signature(function).parameters
        assert {keyword.arg for keyword in call.keywords} <= set(parameters), name


@pytest.mark.parametrize("where", QUICK)
def test_quick_code_on_the_pages_runs(where):
    names = {name: getattr(rllib_kd, name) for name in rllib_kd.__all__} | {"config": DistillDQNConfig()}
    exec(compile(BLOCKS[where], where, "exec"), names)


def test_tests_that_pages_name_exist():
    """docs/pages/guarantees.md says for each promise which test holds it."""
    files = list((ROOT / "tests").rglob("*.py"))
    there = {file.stem for file in files}
    there |= {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    named = {name for page in PAGES for name in re.findall(r"\btest_\w+", page.read_text())}
    assert len(named) > 50
    assert named <= there


# --- Measured figures -------------------------------------------------------------------------------------------------

RESULTS = sorted(
    page for page in (ROOT / "docs" / "results").rglob("*.md") if page.parent.name != "results" or page.stem != "README"
)


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_measured_figures_have_a_date_or_a_machine_and_a_command(page):
    text = page.read_text()
    assert re.search(r"\b20\d\d-\d\d-\d\d\b|^## Machine$", text, re.MULTILINE)
    assert re.search(r"`(python|rllib|pytest) |```bash", text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "pages"], ids=lambda page: page.stem)
def test_no_other_page_has_measured_returns(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert not re.search(r"\d ± \d|\b[01]\.\d{3} \([01]\.\d{3}|^\|.*\b0\.9\d\d?, [01]\.\d", text, re.MULTILINE)


def test_the_table_of_the_readme_is_that_of_the_results():
    page = (ROOT / "docs" / "results" / "sizes" / "README.md").read_text()
    rows = re.findall(r"^\| (\S+-v\d(?:, PPO)?) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 3
    for env, cells in rows:
        (measured,) = re.findall(rf"^### {env}\n.*?^\| `kl`, mixture \| (.*?) \| 5 \|$", page, re.MULTILINE | re.DOTALL)
        assert cells.split(" | ") == [cell.split()[0] for cell in measured.split(" | ")]


# --- Commands ---------------------------------------------------------------------------------------------------------

#: Commands in blocks and in running text, by page.
COMMAND_LINES = {
    f"{page.relative_to(ROOT)}: {line[:60]}": line
    for page in PAGES
    for text in [page.read_text().replace("\\\n", " ")]
    for line in [
        *re.findall(
            r"^(?:rllib|python) \S.*", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)), re.MULTILINE
        ),
        *re.findall(r"`((?:rllib|python) [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)),
    ]
}
FLAGS = {
    name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for name, command in typer.main.get_command(app).commands.items()
}


@pytest.mark.parametrize("where", COMMAND_LINES)
def test_commands_on_the_pages_have_flags_and_files_that_exist(where):
    line = COMMAND_LINES[where].replace("\n", " ").partition(" #")[0]
    program, first, *words = shlex.split(line + "'" * (line.count("'") % 2))  # JSON may go on in the next line
    if program == "python":
        assert first.startswith("-") or first in {f"{name}.py" for name in SAVED} or (ROOT / first).is_file()
    elif first in FLAGS:
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= FLAGS[first]
    else:
        assert first in {"...", "COMMAND", "--help"}


# --- docs/pages/environments.md ---------------------------------------------------------------------------------------

OWN = ROOT / "docs" / "pages" / "environments.md"
FILE, IN_PYTHON, EXPERIMENT = re.findall(r"```python\n(.*?)```", OWN.read_text(), re.DOTALL)
COMMANDS = [
    block
    for block in re.findall(r"```bash\n(.*?)```", OWN.read_text(), re.DOTALL)
    if "pip install" not in block  # test_pools.py runs what needs an extra
]


def test_the_page_on_environments_has_an_environment(own_folder):
    (own_folder / "my_env.py").write_text(FILE)
    check_env(env_maker("./my_env.py:Corridor", {"length": 3})(), skip_render_check=True)
    assert all("my_env.py:Corridor" in text for text in (COMMANDS[0], IN_PYTHON))


def test_the_page_on_environments_has_an_experiment_that_registers_one(own_folder):
    (own_folder / "short.py").write_text(EXPERIMENT)
    experiment = read_experiment("short.py")
    assert experiment.checked().title == "DistillDQN-short-cartpole"
    assert env_maker(experiment.config.env, {"steps": 3})().spec.id == "CartPole-v1"
    assert "train file short.py" in COMMANDS[2]


# --- Tutorials --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tutorial_first.md", "tutorial_own.md", "tutorial_shrink.md", "privileged.md", "export.md"]
)
def test_a_tutorial_is_a_script(name):
    done = subprocess.run(["bash", "-n"], input=tutorial(name), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow(as_many=15)
def test_the_first_tutorial_works_as_written(tmp_path, rllib, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = followed("tutorial_first.md", rllib, capsys)
    assert printed.count("student / teacher") >= 2
    assert "2,690" in printed
    assert re.search(r"^linear +10 .* 1\.000 ", printed, re.MULTILINE)
    assert (tmp_path / "report" / "index.html").is_file()
    assert (tmp_path / "student.safetensors").is_file()


@pytest.mark.slow(as_many=15)
def test_the_tutorial_on_certificates_works_as_written(tmp_path, rllib, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = followed("tutorial_shrink.md", rllib, capsys)
    assert "keeps at least 97 % of the return, with 95 % confidence" in " ".join(printed.split())
    assert (tmp_path / "smallest.safetensors").is_file()
    read = json.loads((tmp_path / "shrunk" / "certificate.json").read_text())
    (certified,) = [one for one in read["candidates"] if one["name"] == read["certified"]]
    assert certified["certificate"]["lower"] >= 0.97
    assert (tmp_path / "shrunk" / "shrink.html").is_file()
    again = compare("cartpole", str(tmp_path / "shrunk" / "student"), num_episodes=50, seed=5_000)
    assert again.return_ratio >= 0.96
    assert again.student.num_parameters == certified["num_parameters"] <= 58


# --- docs/pages/masks.md ----------------------------------------------------------------------------------------------

MASKS = (ROOT / "docs" / "pages" / "masks.md").read_text()
NIM = re.findall(r"```python\n(.*?)```", MASKS, re.DOTALL)[0]


def test_the_page_on_masks_has_an_environment(own_folder):
    (own_folder / "nim.py").write_text(NIM)
    make = env_maker("./nim.py:Nim", {"sticks": 9})
    assert features_space(make().observation_space).shape == (10,)
    returns, _ = play(make, RandomActions(3, seed=0), range(20))  # an illegal action raises an error
    assert set(returns) == {-1.0, 1.0}


def test_the_page_of_games_has_what_was_measured():
    measured = [json.loads(line) for line in (ROOT / "docs" / "results" / "games.jsonl").read_text().splitlines()]
    page = (ROOT / "docs" / "results" / "games.md").read_text()
    lines = re.findall(r"^\| .* \| yes \|$", page, re.MULTILINE)
    assert len(lines) == len(measured)
    for line, row in zip(lines, measured, strict=True):
        names = ("teacher", "teacher_return", "student_return", "random_return", "return_ratio", "agreement")
        assert [cell.strip() for cell in line.split("|")[2:-2]] == [str(row[name]) for name in names]
        assert row["return_ratio"] >= 0.97
        for artifact_format in ("onnx", "safetensors"):
            assert row[f"{artifact_format}_agreement"] == 1.0
            assert row[f"{artifact_format}_same_return"]
