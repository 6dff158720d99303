"""What readers type: every block of README, tutorials and how-to pages runs, or the reason why not stands here.

Commands run in this process, on the Ray that tests share, and briefly: the flags of `SHORT` are added to them.
"""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from rllib_kd import load_teacher
from tests.offline.labelled import episodes, write
from tests.offline.recorded import write_parquet
from tests.test_docs import QUICK
from tests.tutorials import ROOT, STEP, lines_of, run_python

#: README, and the pages of the groups "Tutorials" and "How-to" of the navigation.
NAV = (ROOT / "docs" / "mkdocs.yml").read_text().partition("- Tutorials:")[2].partition("- Reference:")[0]
PAGES = ["README.md", *(f"docs/pages/{name}" for name in re.findall(r": (\w+\.md)$", NAV, re.MULTILINE))]

#: Pages with a test of their own, which runs them as they are written, and longer.
ELSEWHERE = {
    "docs/pages/tutorial_first.md": "test_the_first_tutorial_works_as_written",
    "docs/pages/own_environment.md": "test_the_notebook_runs",
    "docs/pages/tutorial_shrink.md": "test_the_tutorial_on_certificates_works_as_written",
    "docs/pages/c.md": "test_the_page_on_c_works_as_written",
}

#: What is not run, and why.
LEFT_OUT = {
    r"^pip install ": "whoever runs the tests has installed it; .ci/run does so in new environments",
    r"^(ruff|mypy|lint-imports|pytest)\b": ".ci/run runs it",
    r"^(ray|aws) ": "it needs an account of AWS; test_cluster_yaml.py plays AWS",
    r"--(ray-)?address auto": "it needs a cluster; tests/cluster starts some, and the same commands run without one",
    r"^rllib train \.\.\.": "an outline for 2 to 200 EnvRunners; its settings are checked in test_every_setting.py",
    r"envpool/": "test_pools.py samples in such environments",
    r"tuning/atari.py": "it needs the teacher of an Atari game, and an hour",
    r"--num-gpus": "it needs a GPU",
    r"--minutes 5": "it takes as long; tutorial_shrink.md runs the same with --env-steps",
    r"--compression 0.04 .*/tmp/results": "tutorial_first.md runs it, with results in another folder",
    r"^rllib shrink --resume": "it needs a run that was interrupted; tests/shrink/test_shrink.py interrupts some",
    r"^(rllib serve|curl) ": "a server that runs until Ctrl-C; tests/cli/test_serve.py starts and asks one",
    r"benchmarks/serving\.py": "a benchmark of such a server",
}

BRIEF = '{"max_episode_steps": 50}'
#: Flags that shorten the commands that begin like this. If a flag is given twice, the last one counts.
SHORT = {
    "train": ["--stop", '{"training_iteration": 1}'],
    "train file tuning/cartpole.py": ["--compare-episodes", "2"],
    "train file tuning/dqn_teacher.py": ["-c", '{"evaluation_duration": 1, "min_sample_timesteps_per_iteration": 500}'],
    "compare": ["--episodes", "2"],
    "evaluate": ["--episodes", "1", "--num-videos", "1"],
    "evaluate cartpole --video": ["--env-config", BRIEF],
    "export": ["--episodes", "2"],
    "export cartpole --out student.html": ["--env-config", BRIEF],
    "sweep": ["--num-samples", "1", "--num-seeds", "1", "--env-steps", "1000"],
    "shrink": ["--env-steps", "4000", "--restarts", "2", "--keep", "0.8"],
    "sweep --teacher cartpole --env": ["--env-config", BRIEF],
    "sweep --teacher cartpole --input": ["--keep", "0.8", "--num-seeds", "3"],  # that a certificate needs
}
#: The same for Python.
SHORT_PYTHON = {
    "20_000": "1_000",
    "12_000": "600",
    'compare("cartpole", algo)': 'compare("cartpole", algo, num_episodes=2)',
    "concurrency=(1, 8)": "concurrency=1",
}
#: Checkpoints that the reader has: here, the packaged teacher.
CHECKPOINTS = re.compile(r"CHECKPOINT|RUN\d|~/ray_results/cartpole")
#: Where folders begin: here, all are in the reader's, also for workers of Ray, which began in another one.
FOLDERS = re.compile(r'/tmp/|s3://lake/|(?<=")(?=(?:logs|labelled)")')
#: Pages that need no process but the test's own.
QUICK_PAGES = {"docs/pages/families.md", "docs/pages/serve.md"}

Step = tuple[str, str | list[str], str]


def blocks(page: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield place, language, code and file, if any, of a page's blocks. The notebook and SECURITY.md have none."""
    text = (ROOT / page).read_text() if (ROOT / page).exists() else ""
    for match in STEP.finditer(text):
        yield f"{page}:{text[: match.start(2)].count(chr(10)) + 1}", match[2], match[3], match[1] or ""


def commands(block: str) -> Iterator[str]:
    """Yield the commands of a shell block, without comments."""
    for line in lines_of(block):
        words = shlex.split(line, comments=True)
        yield from filter(None, shlex.join(words).split(" '&&' "))


TYPED = [
    command
    for page in PAGES
    for _, language, code, _ in blocks(page)
    if language == "bash"
    for command in commands(code)
]


def is_left_out(command: str) -> bool:
    return any(re.search(pattern, command) for pattern in LEFT_OUT)


def steps_of(page: str, seen: set[str]) -> list[Step]:
    """Return the steps of a page: place; Python, or the words of a command that was not seen yet; file to save."""
    steps: list[Step] = []
    for where, language, code, file in blocks(page):
        if language == "bash":
            new = [command for command in commands(code) if not is_left_out(command) and command not in seen]
            seen.update(new)
            steps += [(where, shlex.split(command), "") for command in new]
        elif file or where not in QUICK:
            steps.append((where, code, file))
    return steps


_seen: set[str] = set()  # a command that stands on several pages runs on the first one
STEPS = {page: steps for page in PAGES if page not in ELSEWHERE and (steps := steps_of(page, _seen))}


@pytest.fixture
def reader(page: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader, who has a clone, and logs of CartPole."""
    monkeypatch.setenv("HOME", str(own_folder))
    monkeypatch.syspath_prepend(own_folder)
    (own_folder / "tuning").symlink_to(ROOT / "tuning")
    columns = episodes(load_teacher("cartpole"), num_rows=8_000)
    if page != "docs/pages/recorded.md":  # which labels the logs
        write(own_folder / "labelled", columns)
    del columns["teacher_q"]
    write_parquet(own_folder / "logs" / "0.parquet", columns)
    return own_folder


def short_python(code: str, folder: Path) -> str:
    """Return code that takes less time, with the reader's own paths."""
    for text, short in SHORT_PYTHON.items():
        code = code.replace(text, short)
    return FOLDERS.sub(f"{folder}/", code)


def arguments(words: list[str], folder: Path) -> list[str]:
    """Return what follows `rllib`, made short, with the reader's own paths."""
    assert words[0] == "rllib", words
    own = [FOLDERS.sub(f"{folder}/", CHECKPOINTS.sub("cartpole", word)) for word in words[1:]]
    return own + [flag for start, flags in SHORT.items() if " ".join(own).startswith(start) for flag in flags]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page in QUICK_PAGES else pytest.mark.slow(as_many=3)) for page in STEPS]
)
def test_what_readers_type_runs(page, reader, rllib):
    for where, step, file in STEPS[page]:
        if isinstance(step, str) and file:
            (reader / file).write_text(short_python(step, reader))
        elif isinstance(step, str):
            run_python(short_python(step, reader), where)
        elif step[0] == "python":
            runpy.run_path(step[1], run_name="__main__")
        else:
            done = rllib(*arguments(step, reader))
            assert done.returncode == 0, f"{where}: {shlex.join(step)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_nothing_is_excused_that_nobody_types(reason):
    assert any(re.search(reason, command) for command in TYPED)


def test_pages_that_run_elsewhere_have_a_test():
    code = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert set(ELSEWHERE) <= set(PAGES)
    assert [test for test in ELSEWHERE.values() if f"def {test}(" not in code] == []
