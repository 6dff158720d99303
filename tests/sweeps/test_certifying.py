"""The certificate of the recommended student."""

import json
import shlex
from dataclasses import replace

import gymnasium as gym
import pytest
from ray import tune

from rllib_kd import Sweep, load_teacher
from rllib_kd.certificates import certification
from rllib_kd.certificates.games import Games, first_certificate_seed
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.sweeps.baselines import Baselines
from rllib_kd.sweeps.certifying import Claim, certify_student, content_of, seen_returns
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.sweeps.test_pareto import result, student
from tests.sweeps.test_sweeps import QUICK

CLAIM = Claim("/trial/checkpoint_000007/seed_0", 0.97, 0.95, 3)


class KilledError(Exception):
    pass


@pytest.fixture
def games(monkeypatch):
    """Episodes without an environment; returns the spans that were played."""
    spans = []

    def play(self, student, first, count):
        spans.append((first, count))
        return [[495.0] * count, [500.0] * count, [20.0] * count]

    monkeypatch.setattr(Games, "certificate_episodes", play)
    return spans


def certified(tmp_path, claim=CLAIM):
    return certify_student(claim, None, None, None, seen=[0.0, 500.0], uri=str(tmp_path))


def test_the_student_is_tested_on_fresh_episodes_until_it_is_certified(games, tmp_path):
    tested = certified(tmp_path)
    assert tested.is_certified
    assert tested.certificate.alpha == pytest.approx(0.05)
    assert games == [(50 * i, 50) for i in range(len(games))]
    sweep = result(student(10, 1.0), fixed={"env_config": {"gravity": 5.0}}).to_dict()
    content = json.loads(json.dumps(content_of(CLAIM, tested, sweep)))
    assert {**content, "env": "CartPole-v1", "env_config": {"gravity": 5.0}, "teacher": "my teacher"} == content
    assert content["command"].startswith("rllib train ")
    assert content["checkpoint"] == CLAIM.checkpoint
    assert content["seeds"] == [first_certificate_seed(3), 50 * len(games)]
    assert len(content["certificate_returns"]["random"]) == 50 * len(games)


def test_an_interrupted_test_continues_and_one_that_has_ended_is_not_repeated(games, tmp_path, monkeypatch):
    play, expected = Games.certificate_episodes, certified(tmp_path)
    whole = list(games)
    games.clear()

    def dying(self, student, first, count):
        if len(games) == 2:
            raise KilledError
        return play(self, student, first, count)

    monkeypatch.setattr(Games, "certificate_episodes", dying)
    (tmp_path / "killed").mkdir()
    with pytest.raises(KilledError):
        certified(tmp_path / "killed")
    monkeypatch.setattr(Games, "certificate_episodes", play)
    assert certified(tmp_path / "killed").certificate == expected.certificate
    assert games == whole
    games.clear()
    assert certified(tmp_path / "killed").certificate == expected.certificate
    assert games == []


def test_another_keep_goes_on_with_the_same_episodes(games, tmp_path):
    certified(tmp_path)
    num_played = 50 * len(games)
    games.clear()
    tested = certified(tmp_path, replace(CLAIM, keep=0.9))
    assert tested.is_certified
    assert tested.certificate.keep == 0.9
    assert games == [(num_played, 50)]
    moved = replace(CLAIM, keep=0.9, checkpoint=f"/moved{CLAIM.checkpoint}")
    assert certified(tmp_path, moved).certificate == tested.certificate
    at_uri = replace(moved, checkpoint=f"s3://bucket{CLAIM.checkpoint}?endpoint_override=http://host")
    assert certified(tmp_path, at_uri).certificate == tested.certificate
    assert len(games) == 1


def test_episodes_that_have_tested_a_student_test_no_other_one(games, tmp_path):
    certified(tmp_path)
    with pytest.raises(ValueError, match=r"were used to test '.*seed_0', and cannot test another student, '.*seed_2'"):
        certified(tmp_path, replace(CLAIM, keep=0.9, checkpoint=CLAIM.checkpoint.replace("seed_0", "seed_2")))


def test_another_confidence_needs_other_episodes(games, tmp_path):
    certified(tmp_path)
    with pytest.raises(ValueError, match=r"with a confidence of 0\.95; got 0\.9\. Set --confidence 0\.95"):
        certified(tmp_path, replace(CLAIM, confidence=0.9))


def test_a_student_that_fails_is_not_certified(tmp_path):
    teacher = load_teacher("cartpole")
    weak = Teacher(make_q_module(), source="weak")
    tested = certify_student(CLAIM, weak, teacher, lambda: gym.make("CartPole-v1"), seen=[], uri=str(tmp_path))
    assert tested.certificate.verdict == "hopeless"


def test_the_range_of_returns_is_of_all_episodes_of_the_sweep(games, tmp_path):
    """The rare return of −1,000 of a random policy, and that of a student, are part of the range without bounds."""
    baselines = Baselines([500.0] * 2, [20.0] * 99 + [-1_000.0], 0.1)
    students = [replace(student(30, 1.0), extreme_returns=(-2_000.0, 510.0)), student(40, 1.0)]
    seen = seen_returns(baselines, students)
    assert (min(seen), max(seen), len(seen)) == (-2_000, 510, 104)
    assert min(seen_returns(baselines, [])) == -1_000
    assert seen_returns(None, students) == [0.0, 1.0]
    tested = certify_student(CLAIM, None, None, None, seen=seen, uri=str(tmp_path))
    assert tested.certificate.bounds[0] < -2_000


def test_it_is_printed_and_written(games, tmp_path):
    tested = certified(tmp_path)
    changed = {"env_config": {"gravity": 5.0}}
    whole = replace(result(student(30, 1.0, 1.0, 1.0), fixed=changed), certified=(CLAIM, tested))
    line = "Certified, in fresh episodes: its return ratio there is 0.990. The return ratio is at least 0.97, with 95 %"
    assert line in " ".join(str(whole).split())
    whole.write(tmp_path / "report")
    assert json.loads((tmp_path / "report" / "certificate.json").read_text())["certificate"]["verdict"] == "certified"
    assert json.loads((tmp_path / "report" / "sweep.json").read_text())["certificate"]["keep"] == 0.97
    assert "Certified, in fresh episodes" in (tmp_path / "report" / "index.html").read_text()
    assert 'Environment: `CartPole-v1 {"gravity": 5.0}`' in (tmp_path / "report" / "README.md").read_text()
    assert "Certificate: `The return ratio is at least 0.97" in (tmp_path / "report" / "README.md").read_text()
    failed = replace(tested.certificate, verdict="hopeless", return_ratio=None, reason="Given up.")
    assert (
        "Not certified, in fresh episodes: its return ratio there is –. Given up."
        in replace(whole, certified=(CLAIM, certification.Tested(failed, tested.returns))).remarks()
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 1.2}, "keep must be in"),
        ({"keep": 0.9, "confidence": 95}, "alpha must be in"),
        ({"keep": 0.9, "num_seeds": 2}, r"a recommendation needs at least 3 seeds, got 2: raise --num-seeds"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sweep("cartpole", "CartPole-v1", search="random", **values)


@pytest.mark.slow
def test_a_sweep_ends_with_a_certificate_and_its_command_trains_the_recommended_student(cluster, tmp_path):
    space = {"fcnet_hiddens": tune.choice([[]]), "loss": tune.choice(["kl"]), "lr": tune.uniform(0.003, 0.0031)}
    sweep = Sweep(
        "cartpole",
        "CartPole-v1",
        num_samples=1,
        env_steps=3_000,
        search="random",
        config={**QUICK, "training_intensity": 32.0},
        space=lambda teacher, **facts: space,
        storage_path=str(tmp_path),
        keep=0.9,
    )
    result = sweep.run()
    student = result.recommended
    assert student is not None, str(result)
    claim, tested = result.certified
    assert claim.checkpoint == student.best_checkpoint
    assert tested.is_certified
    again = sweep.run(resume=True)
    assert again.certified[1].certificate == tested.certificate
    words = shlex.split(result.command(student))
    settings = {"env": "CartPole-v1", "teacher": "cartpole", **json.loads(words[words.index("--config") + 1])}
    algo = Experiment("x", "DistillDQN", settings=settings).checked().param_space.build_algo()
    assert sum(p.numel() for p in algo.get_module().parameters()) == student.num_parameters == 10
    assert algo.config.lr == student.settings["lr"]
    algo.stop()
