"""`rllib shrink` without an environment: it certifies agreement on held-out rows, and says that this is not return."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import ray

from rllib_kd import Shrink, load_teacher
from rllib_kd.certificates.agreement import AgreementTest
from rllib_kd.certificates.held_out import HeldOut, HeldOutStates
from rllib_kd.cli.main import main
from rllib_kd.export.certificate_card import write_certificate_card
from rllib_kd.shrink.arena import OnRows
from rllib_kd.shrink.outcome import Shrunk, ShrunkStudent, why_not
from rllib_kd.shrink.progress import Progress
from rllib_kd.shrink.report import write
from rllib_kd.shrink.tournament import Tournament
from tests.conftest import make_q_module
from tests.offline.labelled import episodes
from tests.offline.labelled import write as write_rows
from tests.shrink.killed import content, run_killed

NO_RETURN = "This is agreement with the teacher on recorded states, and not return"


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("cartpole")


@pytest.fixture(scope="module")
def rows(teacher, tmp_path_factory):
    """470 episodes of a random policy."""
    return write_rows(tmp_path_factory.mktemp("rows"), episodes(teacher, num_rows=10_000, max_length=500))


# --- Before the work starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--keep", "0.97"],
            "episodes are held out for the certificate, 0.1 of all, but an agreement of 0.97 takes at",
        ),
        (["--keep", "1"], "keep must be in (0, 1) without an environment, got 1.0"),
        (["--bounds", "0", "1"], "bounds=(0.0, 1.0) needs an environment"),
        (["--env-config", '{"a": 1}'], "env_config={'a': 1} needs an environment"),
        (["--config", '{"set_aside": 0.1}'], "'set_aside' cannot be in the config"),
        (["--config", '{"held_out": 0}'], "held_out=0 leaves no rows to judge students by"),
        (["--config", '{"held_out": 0.7}'], "`held_out` must be in [0, 0.5]"),
        (["--config", '{"teacher_fraction": 0.5}'], "No policy acts while a run learns from recorded rows"),
        (["--teacher", "/does/not/exist"], "no checkpoint at '/does/not/exist'"),
    ],
)
def test_wrong_use_is_refused_before_ray_starts(monkeypatch, capsys, tmp_path, rows, flags, message):
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    teacher = [] if "--teacher" in flags else ["--teacher", "cartpole"]
    with pytest.raises(SystemExit) as exit_:
        main(["shrink", *teacher, "--input", rows, "--keep", "0.9", *flags, "--out", str(tmp_path / "new")])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# --- Choice -----------------------------------------------------------------------------------------------------------


def test_copies_are_compared_on_all_units_if_these_are_few():
    states = HeldOutStates(np.zeros((30, 4), np.float32), np.tile([[1.0, 0.0]], (30, 1)), np.full(30, 1))
    held_out = HeldOut(states, states, 0.4, "episodes", "files")
    arena = OnRows(held_out, None)
    assert arena.looks == (30, 0, 0)
    assert arena.most_episodes(5_000) == 30
    games, module = arena.new_games(None, 0, None, lambda num_ended: None), make_q_module()
    tournament = Tournament(
        ["a"],
        lambda modules, first, count: games.validate(modules, None, first, count),
        games.validation_baselines,
        lambda seen: arena.new_test(0.9, 0.025, seen=seen, max_episodes=30),
        keep=0.9,
        scale=1.0,
        looks=arena.looks,
    )
    for number in range(3):
        tournament.round(number, {"a": module}, 100 * (number + 1))
        assert len(tournament.snapshots[-1].returns) == 30
    tournament.finish(2, {"a": module}, 300)
    share = float(states.agreements(module, 0, 30).mean())
    assert tournament.ratio(tournament.best("a")) == pytest.approx(share)


# --- What is printed and written --------------------------------------------------------------------------------------


def student(name, size, agreement, units=None):
    tested = {}
    if units is not None:
        test = AgreementTest(0.9, 0.025, unit="episodes", max_episodes=units)
        test.add([agreement] * units)
        tested = {"certificate": test.certificate(), "returns": {"student": [agreement] * units, "teacher": []}}
    return ShrunkStudent(name, f"{name} label", size, {}, 4_000, agreement, {0: agreement}, **tested)


def shrunk(*students, reason=""):
    numbers = {"units": 200, "rows": 4_000}
    return Shrunk(
        env="recorded rows",
        env_config={},
        teacher="cartpole",
        teacher_parameters=67_843,
        teacher_return=1.0,
        random_return=0.0,
        keep=0.9,
        confidence=0.95,
        students=list(students),
        copies=[(one.name, 0.5) for one in students],
        reason=reason,
        folder="/tmp/results",
        facts={"command": "rllib shrink", "seed": 0},
        rows={"unit": "episodes", "share_of_units": 0.2, "choice": numbers, "certificate": numbers},
    )


FOUND = shrunk(student("a", 10, 0.7, 40), student("b", 16, 0.96, 200), student("c", 30, 0.97))
NOT_FOUND = shrunk(student("a", 10, 0.7, 40), reason="Why.")


@pytest.mark.parametrize("result", [FOUND, NOT_FOUND])
def test_screen_json_page_and_card_say_that_agreement_is_not_return(result, tmp_path):
    write(replace(result, folder=str(tmp_path)), tmp_path)
    content = json.loads((tmp_path / "certificate.json").read_text(), parse_constant=pytest.fail)
    page, card = ((tmp_path / name).read_text() for name in ("shrink.html", "README.md"))
    for text in (str(result), content["note"], content["verdict"], page, card):
        assert NO_RETURN in " ".join(text.split())
    assert content["measured"] == "agreement"
    for text in (json.dumps(content | {"note": "", "verdict": ""}), page):
        plain = text.replace("and not return", "").replace("is_about_return", "")
        assert not re.search(r"return|random policy|environment's own seeds", plain.replace("no environment", ""))
    assert max(map(len, str(result).splitlines())) <= 80


def test_the_certificate_is_of_agreement(tmp_path):
    text = " ".join(str(FOUND).split())
    assert "keep 90 % agreement with the teacher, 95 % confidence" in text
    assert "Certified: the b label student, with 16 parameters (0.024 % of the teacher's), has a mean" in text
    assert (
        "agreement with its teacher of at least 0.9, with 95 % confidence: in 200 held-out episodes it is 0.96" in text
    )
    content = FOUND.to_dict()
    first, second, third = content["candidates"]
    assert (content["certified"], third["certificate"]) == ("b", None)
    assert first["certificate"]["verdict"] == "hopeless"
    assert second["certificate"]["agreement"] == pytest.approx(0.96)
    assert second["validation_agreement"] == 0.96
    assert second["certificate_agreements"] == [0.96] * 200
    assert content["rows"]["certificate"] == {"units": 200, "rows": 4_000}
    assert "Environment: none" in write_certificate_card(tmp_path, content).read_text()


def test_without_a_certificate_it_says_what_would_help():
    test = AgreementTest(0.9, 0.025, unit="episodes", max_episodes=90)
    test.add(np.random.default_rng(0).uniform(0.84, 1.0, 60))
    close = replace(student("a", 10, 0.92), certificate=test.certificate())
    text = why_not([close], keep=0.9, more="--minutes 20", measured=FOUND.measured)
    assert "Record more, or hold out a larger share of the rows." in text
    text = why_not([student("a", 10, 0.7)], keep=0.9, more="--minutes 20", measured=FOUND.measured)
    assert "has an agreement of 0.700" in text


# --- Whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_rows_that_is_killed_and_resumed_ends_with_the_same_certificate(
    cluster, tmp_path, monkeypatch, rows, teacher
):
    def shrink(name):
        sizes = {"linear": {"fcnet_hiddens": []}, "small": {"fcnet_hiddens": [16]}}
        config = {"input_": rows, "held_out": 0.3}
        given = {"keep": 0.85, "env_steps": 1_000, "restarts": 2, "seed": 3, "sizes": sizes, "config": config}
        return Shrink("cartpole", out=tmp_path / name, **given)

    whole = shrink("whole").run()
    assert whole.certified is not None, str(whole)
    assert load_teacher(whole.checkpoint).num_parameters == whole.certified.num_parameters
    assert len(whole.certified.returns["student"]) <= whole.rows["certificate"]["units"]
    num_kills = run_killed(lambda: shrink("killed"), tmp_path / "killed", monkeypatch, after_writes=6)
    assert num_kills >= 1
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
def test_rows_that_have_changed_are_not_resumed_on(cluster, tmp_path, monkeypatch, teacher):
    folder = tmp_path / "rows"
    write_rows(folder, episodes(teacher, num_rows=6_000, max_length=500))
    given = {"keep": 0.7, "env_steps": 500, "restarts": 1, "config": {"input_": str(folder), "held_out": 0.4}}

    def dying(self, state):
        raise KeyboardInterrupt

    write_state = Progress.write
    monkeypatch.setattr(Progress, "write", lambda self, state: (write_state(self, state), dying(self, state)))
    with pytest.raises(KeyboardInterrupt):
        Shrink("cartpole", out=tmp_path / "out", **given).run()
    write_rows(folder, episodes(teacher, num_rows=7_000, max_length=500))
    with pytest.raises(ValueError, match="recorded rows was"):
        Shrink("cartpole", out=tmp_path / "out", **given).run(resume=True)
