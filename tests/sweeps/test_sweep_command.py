"""`rllib sweep`, `python tuning/sweep.py`, and what they print."""

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rllib_kd import Sweep, search_space
from rllib_kd.cli.main import main
from rllib_kd.experiment import locations
from rllib_kd.sweeps import report
from rllib_kd.sweeps.loggers import MinuteLines, SettingLines, sweep_loggers
from tests.sweeps.test_pareto import result, student

ROOT = Path(__file__).parents[2]
SWEEP = ["sweep", "--teacher", "cartpole", "--env", "CartPole-v1"]


@pytest.fixture
def swept(monkeypatch, capsys):
    """Runs the command with a sweep of one result; returns the sweep, how it was run, the exit code and the output."""

    def call(*flags, is_complete=True):
        ran = []

        def run(self, **kwargs):
            ran.append((self, kwargs))
            return result(student(30, 1.0, 1.0, 1.0), is_complete=is_complete)

        monkeypatch.setattr(Sweep, "run", run)
        with pytest.raises(SystemExit) as exit_:
            main([*SWEEP, *flags])
        ((sweep, kwargs),) = ran
        return sweep, kwargs, exit_.value.code or 0, capsys.readouterr().out

    return call


def options(sweep):
    return {field.name: getattr(sweep, field.name) for field in dataclasses.fields(sweep)} | {"callbacks": ()}


def test_without_flags_it_is_the_sweep_that_python_makes(swept):
    sweep, kwargs, code, output = swept()
    expected = Sweep("cartpole", "CartPole-v1")
    assert options(sweep) == options(expected)
    assert list(map(type, sweep.callbacks)) == [SettingLines, MinuteLines]
    assert (kwargs, code) == ({"resume": False, "address": None}, 0)
    assert "Recommended: " in output
    assert re.search(rf"^{sweep.path}/report/index.html, pareto.png, sweep.csv, sweep.json \(\d+ s\)$", output, re.M)


def test_every_flag_reaches_the_sweep(swept, tmp_path):
    (tmp_path / "space.py").write_text("def search_space(teacher, **facts): return {'lr': 1}")
    flags = ["--teacher", "other", "--num-samples", "5", "--num-seeds", "4", "--env-steps", "70", "--search", "random"]
    flags += ["--scheduler", "asha", "--config", '{"loss": "kl"}', "--space", str(tmp_path / "space.py"), "--seed", "4"]
    flags += ["--env-config", '{"sutton_barto_reward": true}']
    flags += ["--storage-path", str(tmp_path), "--name", "mine", "--resume", "--address", "auto"]
    flags += ["--keep", "0.9", "--confidence", "0.99", "--minimize", "bytes", "--trust-checkpoint"]
    sweep, kwargs, _, _ = swept(*flags)
    assert sweep.space(None) == {"lr": 1}
    assert sweep.space is not search_space
    assert {**options(sweep), "space": None} == {
        "teacher": ["cartpole", "other"],
        "env": "CartPole-v1",
        "num_samples": 5,
        "search": "random",
        "scheduler": "asha",
        "num_seeds": 4,
        "env_steps": 70,
        "config": {"loss": "kl", "env_config": {"sutton_barto_reward": True}, "trust_checkpoint": True},
        "space": None,
        "storage_path": str(tmp_path),
        "name": "mine",
        "seed": 4,
        "keep": 0.9,
        "confidence": 0.99,
        "minimize": "bytes",
        "callbacks": (),
    }
    assert kwargs == {"resume": True, "address": "auto"}


def test_an_interrupted_sweep_has_failed(swept):
    assert swept(is_complete=False)[2] == 1


def test_the_file_is_the_same_command_and_helps_at_once():
    file = str(ROOT / "tuning" / "sweep.py")
    code = (
        f"import runpy, sys; sys.argv = [{file!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'ray', 'torch'} & set(sys.modules)"
    )
    by_file = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_name = subprocess.run([sys.executable, "-m", "rllib_kd", "sweep", "--help"], capture_output=True, text=True)
    assert by_file.stdout == by_name.stdout
    assert "rllib sweep --teacher cartpole --env CartPole-v1" in by_file.stdout
    wrong = subprocess.run([sys.executable, file, "--env", "x"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (2, "error: Missing option '--teacher'. See `rllib sweep --help`.\n")


# --- Lines while it runs ----------------------------------------------------------------------------------------------


def trial(status, reports=0, ratio=None):
    last = {"training_iteration": reports} if reports else {}
    return SimpleNamespace(status=status, last_result=last if ratio is None else {**last, "return_ratio": ratio})


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_pipe_gets_a_line_a_minute(monkeypatch, capsys, is_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    clock = Clock()
    lines = MinuteLines(clock=clock)
    lines.setup(total_num_samples=4)
    trials = [trial("TERMINATED", 8, 0.9), trial("ERROR"), trial("RUNNING", 4, 0.95), trial("PENDING")]
    for second in range(0, 601):  # every trial may be silent for long
        clock.now = 1_000.0 + second
        lines.on_step_end(second, trials)
    printed = capsys.readouterr().out.splitlines()
    if is_terminal:
        assert printed == []
        return
    assert len(printed) == 10
    expected = "2 of 4 settings have ended, 1 running, best return ratio so far 0.950"
    assert printed[0] == f"  62% of training after 1 min: {expected}"
    assert printed[-1] == f"  62% of training after 10 min: {expected}"


def test_before_the_first_report_there_is_no_ratio(capsys):
    lines = MinuteLines(seconds=0.0)
    lines.on_step_end(1, [trial("RUNNING")])
    assert capsys.readouterr().out == "   0% of training after 0 min: 0 of 1 settings have ended, 1 running\n"
    assert isinstance(pickle.loads(pickle.dumps(sweep_loggers()))[1], MinuteLines)  # as Tune does


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def saved(num_parameters, *ratios, at="/storage/sweep x"):
    return dataclasses.replace(student(num_parameters, *ratios), checkpoint=f"{at}/s{num_parameters}/checkpoint_000007")


def test_checkpoints_at_a_uri_with_options_can_be_opened_and_linked():
    options = "?scheme=http&endpoint_override=h%2F:1"
    found = dataclasses.replace(
        saved(20, 0.4, 0.5, at="s3://b/x"), checkpoint=f"s3://b/x/s20/checkpoint_000007{options}"
    )
    assert found.best_checkpoint == f"s3://b/x/s20/checkpoint_000007/seed_1{options}"
    link = report._link(found, f"s3://b/x/report{options}", "s20")
    assert link == '<a href="../s20/checkpoint_000007/seed_1">s20</a>'


def test_a_setting_that_fails_is_found_by_its_uri(monkeypatch, capsys):
    monkeypatch.setattr(locations, "_uris", {("s3", "b/x"): "s3://b/x?scheme=http"})
    storage = SimpleNamespace(storage_filesystem=SimpleNamespace(type_name="s3"))
    failed = SimpleNamespace(path="b/x/s20", storage=storage, status="ERROR")
    SettingLines().on_trial_error(1, [failed], failed)
    assert "failed: see error.txt in s3://b/x/s20?scheme=http" in capsys.readouterr().out


def test_the_checkpoint_of_the_recommended_student_is_printed(tmp_path):
    found = result(saved(10, 0.4, 0.5, 0.6), saved(20, 0.99, 1.0, 0.98), saved(30, 1.0, 1.0, 1.0))
    *_, label, path = str(found).splitlines()
    assert label == "Its checkpoint, of the best of 3 seeds:"
    assert path == found.recommended.best_checkpoint == "/storage/sweep x/s20/checkpoint_000007/seed_1"
    assert found.to_dict()["checkpoint"] == path
    *_, label, path = str(result(saved(20, 1.0))).splitlines()  # none is recommended
    assert (label, path) == ("Its checkpoint:", "/storage/sweep x/s20/checkpoint_000007/seed_0")
    assert "checkpoint" not in str(result(student(20, 1.0)))


def test_each_row_links_its_checkpoint(tmp_path):
    storage = "s3://bucket/storage/sweep x"
    found = result(saved(10, 0.4, 0.5, at=storage), saved(20, 1.0, at=storage), student(30, 0.2, finished=False))
    found.write(tmp_path, at=f"{storage}/report")
    rows = re.findall(r"<tr.*?</tr>", (tmp_path / "index.html").read_text())[1:]
    assert len(rows) == 3
    for row, path in zip(rows, ("s10/checkpoint_000007/seed_1", "s20/checkpoint_000007/seed_0"), strict=False):
        assert f'<a href="../{path}">' in row
    assert "href" not in rows[2]


@pytest.mark.slow
def test_links_lead_to_the_checkpoints_from_wherever_the_page_is(tmp_path):
    checkpoint = tmp_path / "sweep x#1?" / "s20" / "checkpoint_000007" / "seed_0"
    checkpoint.mkdir(parents=True)
    found = result(saved(20, 1.0, at=str(tmp_path / "sweep x#1?")))
    found.write(tmp_path / "elsewhere" / "report")
    page = (tmp_path / "elsewhere" / "report" / "index.html").read_text()
    (link,) = set(re.findall(r'href="(\.\.[^"]*)"', page))
    from urllib.parse import unquote

    assert not {"#", "?", " "} & set(link)
    assert (tmp_path / "elsewhere" / "report" / unquote(link)).resolve() == checkpoint
    found.write(tmp_path / "elsewhere" / "report", at="s3://bucket/report")  # from there nothing leads here
    assert 'href="..' not in (tmp_path / "elsewhere" / "report" / "index.html").read_text()
