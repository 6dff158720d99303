"""Sweeps on recorded rows: judged by agreement on held-out ones, and certified on others."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from rllib_kd import Shrink, Sweep, load_teacher
from rllib_kd.certificates.held_out import HeldOut, HeldOutStates
from rllib_kd.cli.main import main
from rllib_kd.learner.label_statistics import QStatistics
from rllib_kd.sweeps.certifying import Claim, certify_student, content_of
from rllib_kd.sweeps.result import recommend
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.offline.labelled import episodes, write
from tests.sweeps.test_pareto import result, student

NO_RETURN = "This is agreement with the teacher on recorded states, and not return"
CLAIM = Claim("/runs/seed_0", 0.9, 0.95, 3)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("cartpole")


@pytest.fixture(scope="module")
def columns(teacher):
    return episodes(teacher, num_rows=10_000, max_length=500)


@pytest.fixture(scope="module")
def rows(columns, tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows"), columns)


@pytest.fixture
def held_out(columns):
    numbers = np.arange(4_000)
    halves = numbers[:2_000], numbers[2_000:]
    half = [HeldOutStates(columns["obs"][own], columns["teacher_q"][own], np.full(200, 10)) for own in halves]
    return HeldOut(*half, set_aside=0.2, unit="episodes", fingerprint="files")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Neither an environment nor recorded rows are given"),
        (["--input", "ROWS", "--keep", "1"], "keep must be in (0, 1) without an environment"),
        (["--input", "ROWS", "--keep", "0.99"], "an agreement of 0.99 takes at least 356 with 95 % confidence"),
        (["--input", "ROWS", "--env-config", '{"a": 1}'], "`env_config` needs an environment"),
        (["--input", "ROWS", "--config", '{"set_aside": 0.1}'], "'set_aside' cannot be in the config"),
        (["--input", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_wrong_use_is_refused_before_ray_starts(monkeypatch, capsys, tmp_path, rows, flags, message):
    import ray

    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    given = [rows if flag == "ROWS" else flag for flag in flags]
    with pytest.raises(SystemExit) as exit_:
        main(["sweep", "--teacher", "cartpole", "--search", "random", "--storage-path", str(tmp_path), *given])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_places_of_rows_are_the_same_in_any_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for kind in (Shrink, Sweep):
        asked = kind("cartpole", config={"input_": ["rows", "s3://bucket/rows"]})
        assert asked.config == {"input_": [str(tmp_path / "rows"), "s3://bucket/rows"]}


def test_what_recorded_rows_lack_is_not_searched(teacher, columns, rows, tmp_path):
    space = Sweep("cartpole", search="random", config={"input_": rows})._space(teacher, 0.1)
    assert "teacher_fraction" not in space
    assert {"td_coeff", "lr", "fcnet_hiddens"} <= space.keys()
    bare = write(tmp_path, {name: columns[name] for name in ("obs", "teacher_q")})
    assert "td_coeff" not in Sweep("cartpole", search="random", config={"input_": bare})._space(teacher, 0.1)
    assert "teacher_fraction" in Sweep("cartpole", "CartPole-v1", search="random")._space(teacher, 0.1)


def test_the_gap_and_the_regret_are_those_of_the_labels(held_out, columns, teacher):
    labels = columns["teacher_q"][:2_000]
    ordered = np.sort(labels, 1)
    expected = QStatistics(2)
    expected.update(torch.tensor(labels))
    assert held_out.choice.median_gap() == expected.median_gap() > 0
    module = make_q_module(seed=1)
    with torch.no_grad():
        chosen = module.compute_q_values({"obs": torch.tensor(columns["obs"][:2_000])})["qf_preds"].argmax(-1).numpy()
    regret = (ordered[:, -1] - labels[np.arange(2_000), chosen]).mean()
    assert held_out.choice.regret(module) == pytest.approx(regret, rel=1e-4)
    assert held_out.choice.regret(teacher.module) == pytest.approx(0.0, abs=1e-6)


def test_the_recommended_student_is_certified_on_other_rows_than_those_of_the_choice(held_out, teacher, tmp_path):
    tested = certify_student(CLAIM, teacher, teacher, None, seen=[0.0, 1.0], uri=str(tmp_path), rows=held_out)
    assert tested.is_certified
    content = json.loads(json.dumps(content_of(CLAIM, tested, {})))
    assert (content["measured"], content["certificate"]["agreement"]) == ("agreement", 1.0)
    assert NO_RETURN in content["note"]
    assert "returns" not in json.dumps(content)
    (tmp_path / "weak").mkdir()
    weak = Teacher(make_q_module(seed=1), source="weak")
    tested = certify_student(CLAIM, weak, teacher, None, seen=[], uri=str(tmp_path / "weak"), rows=held_out)
    assert tested.certificate.verdict == "hopeless"
    assert tested.certificate.return_ratio == pytest.approx(
        held_out.test.agreements(weak.module, 0, tested.certificate.num_episodes).mean()
    )


def test_what_is_written_is_about_agreement(held_out, teacher, tmp_path):
    certified = CLAIM, certify_student(CLAIM, teacher, teacher, None, seen=[], uri=str(tmp_path), rows=held_out)
    swept = result(
        replace(student(30, 0.95, 0.96, 0.97), q_regret=0.25),
        student(10, 0.7),
        env="recorded rows",
        fixed={"input_": ["/a b", "s3://c/d"], "set_aside": 0.2},
        held_out=held_out.facts(),
        good=0.9 + 0.1 / 3,
        certified=certified,
    )
    assert swept.recommended.num_parameters == 30
    assert recommend(swept.students) is None  # 0.98
    text = " ".join(str(swept).split())
    assert "a mean agreement with the teacher of at least 0.933 on at least 3 seeds" in text
    assert "Certified, in held-out episodes: its agreement there is 1.000" in text
    assert "--input '/a b' --input s3://c/d --teacher 'my teacher' --config '{\"set_aside\": 0.2, \"lr\"" in text
    swept.write(tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    content = json.loads((tmp_path / "report" / "sweep.json").read_text())
    card = (tmp_path / "report" / "README.md").read_text()
    for words in (text, page, content["note"], " ".join(card.split())):
        assert NO_RETURN in words
    row = content["students"][1]
    assert (row["agreement"], row["q_regret"]) == (pytest.approx(0.96), 0.25)
    for words in (text, page, json.dumps(content | {"note": ""})):
        assert not re.search("return_|return ratio|random policy", words.replace("is_about_return", ""))


@pytest.mark.slow
def test_a_sweep_on_rows_ends_with_a_certificate_and_is_not_repeated(cluster, rows, tmp_path):
    config = {
        **{"input_": rows, "held_out": 0.3, "loss": "kl", "lr": 0.003, "td_coeff": 0.0, "training_intensity": 16.0},
        "model_config": {"fcnet_hiddens": [16]},
    }
    given = {"num_samples": 1, "num_seeds": 3, "env_steps": 1_500, "search": "random", "keep": 0.8}
    sweep = Sweep("cartpole", config=config, storage_path=str(tmp_path), **given)
    swept = sweep.run()
    assert swept.recommended is not None, str(swept)
    claim, tested = swept.certified
    assert tested.is_certified
    assert load_teacher(claim.checkpoint).num_parameters == swept.recommended.num_parameters
    assert swept.recommended.q_regret > 0
    again = Sweep("cartpole", config=config, storage_path=str(tmp_path), **given).run(resume=True)
    assert again.certified[1].certificate == tested.certificate
    other = Sweep("cartpole", config=config | {"held_out": 0.2}, storage_path=str(tmp_path), **given)
    with pytest.raises(ValueError, match="was started with"):
        other.run(resume=True)
