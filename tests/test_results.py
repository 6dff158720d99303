"""The command that makes the page of results, and what it says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

TUNING = Path(__file__).parents[1] / "tuning"
SHARED = TUNING.parents[1] / "shared" / "teachers"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(TUNING))
    import results

    return results


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(TUNING))
    import results_page

    return results_page


def row(students, *, teacher=100.0, env="CartPole-v1", loss="kl", states="mixture"):
    """As `results.py` writes it, of students' returns `{name: [seeds, episodes]}`; a random policy has 0."""

    def report(returns):
        returns = list(map(float, returns))
        return {"returns": returns, "return_mean": np.mean(returns), "return_ci95": 1.0, "num_parameters": 10}

    seeds = {}
    for seed in range(len(next(iter(students.values())))):
        seeds[str(seed)] = {
            "env_steps": 100,
            "gradient_steps": 10,
            "seconds": 1.0,
            "machine": {"cores": 2},
            "students": {
                name: {
                    "num_episodes": len(returns[seed]),
                    "teacher": report([teacher] * len(returns[seed])),
                    "random": report([0.0] * len(returns[seed])),
                    "student": report(returns[seed]),
                    "return_ratio": float(np.mean(returns[seed])) / teacher,
                    "compression": 0.1,
                    "agreement_on_teacher_states": 0.9,
                    "agreement_on_student_states": 0.8,
                }
                for name, returns in students.items()
            },
        }
    name = f"{env}-{loss}-{states}"
    settings = {"loss": loss, "rollout_policy": states}
    return {"row": name, "env": env, "source": "somewhere", "settings": settings, "seeds": seeds}


def test_the_middle_of_the_seeds_counts(page):
    ratios = np.array([0.0, 0.9, 1.0, 1.1, 9.0])
    assert page.iqm(ratios) == pytest.approx(1.0)


def test_a_student_whose_seeds_agree_has_a_narrow_interval(page):
    rng = np.random.default_rng(0)
    agreed = row({"a": 95 + rng.normal(size=(5, 200))})
    spread = row({"a": 95 + 20 * rng.normal(size=(5, 1)) + rng.normal(size=(5, 200))})
    middle, low, high = page.interval([agreed], "a")
    assert low < middle < high
    assert middle == pytest.approx(0.95, abs=0.005)
    assert high - low < 0.01
    _, low, high = page.interval([spread], "a")
    assert high - low > 0.05


def test_one_seed_has_the_interval_of_its_episodes(page):
    returns = 50 + 10 * np.random.default_rng(0).normal(size=(1, 400))
    middle, low, high = page.interval([row({"a": returns})], "a")
    assert middle == pytest.approx(returns.mean() / 100)
    # 1.96 standard errors on each side, of a return ratio.
    assert high - low == pytest.approx(2 * 1.96 * returns.std() / np.sqrt(400) / 100, rel=0.1)


def test_every_environment_is_a_stratum(page):
    """A student that is perfect here and useless there is so in every draw: no draw takes one environment alone."""
    good, bad = row({"a": np.full((4, 10), 100.0)}), row({"a": np.zeros((4, 10))}, env="Acrobot-v1")
    assert page.interval([good, bad], "a") == pytest.approx((0.5, 0.5, 0.5))


def test_the_page_has_every_row(page, tmp_path):
    rng = np.random.default_rng(0)
    for loss in ("kl", "mse"):
        for states in ("mixture", "student"):
            own = row({"64": 100 + rng.normal(size=(3, 20)), "linear": np.zeros((3, 20))}, loss=loss, states=states)
            (tmp_path / f"{own['row']}.json").write_text(json.dumps(own))
    image = row({"net3": np.full((1, 20), 99.0)}, env="ALE/Pong-v5") | {"settings": {}}
    (tmp_path / "pong.json").write_text(json.dumps(image))
    text = Path(page.write_page(tmp_path)).read_text()
    for loss in ("kl", "mse"):
        for states in ("mixture", "student"):
            assert re.search(rf"\| `{loss}`, {states} \| (0.99|1.00)\d \(.*\) \| 0.000 \(0.000 to 0.000\) \|", text)
    assert re.search(r"\| ALE/Pong-v5 \| net3 \|.*\| 0.990 \(0.990 to 0.990\) \|", text)
    assert (tmp_path / "sizes.png").stat().st_size > 10_000


def test_a_name_stands_for_its_rows(results):
    assert results.chosen(["acrobot-kl-mixture"]) == ["acrobot-kl-mixture"]
    assert len(results.chosen(["acrobot-kl", "pong"])) == 5
    assert results.chosen(None) == list(results.ROWS)
    with pytest.raises(SystemExit, match="There is no row acro"):
        results.chosen(["acro"])


def test_a_teacher_that_is_not_there(results, tmp_path):
    assert results.teacher_path(results.TASKS["cartpole"], None) == "cartpole"
    assert results.teacher_path(results.TASKS["acrobot"], None) is None
    assert results.teacher_path(results.TASKS["acrobot"], tmp_path) is None
    assert all(row.task in results.TASKS for row in results.ROWS.values())


def test_every_row_is_a_config(results):
    for row in results.ROWS.values():
        task = results.TASKS[row.task]
        path = results.teacher_path(task, SHARED)
        if path is None or task.env.startswith(("LunarLander", "ALE/")):  # extras
            continue
        config = task.config().distillation(teacher=path, student=None, students=dict(row.students), **row.settings)
        config.validate()


@pytest.mark.slow
def test_a_row_is_trained_once_and_goes_on_where_it_was(results, cluster, tmp_path, monkeypatch):
    task = replace(results.TASKS["cartpole"], env_steps=3_000, num_episodes=5)
    row = results.ROWS["cartpole-kl-mixture"]
    monkeypatch.setattr(results, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    train, interrupted = results._train, []

    def interrupt(algo, env_steps, work):
        if interrupted:
            return train(algo, env_steps, work)
        interrupted.append(train(algo, 2_000, work))
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "_train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        results.measure(task, row, 0, "cartpole", tmp_path / "work")
    measured = results.measure(task, row, 0, "cartpole", tmp_path / "work")
    assert 3_000 <= measured["env_steps"] < 4_100
    assert measured["gradient_steps"] == pytest.approx((measured["env_steps"] - 1_000) / 8, abs=70)
    assert measured["seconds"] > interrupted[0] > 0
    assert list(measured["students"]) == ["64", "32", "16", "8", "linear"]
    assert not (tmp_path / "work").exists()


# --- Students by size -------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_size_and_a_column_for_each_task(results):
    import by_size

    def row(task, compression, seed, points):
        returns = {"teacher_returns": [10.0] * 4, "student_returns": [points] * 4, "random_returns": [0.0] * 4}
        return {"task": task, "compression": compression, "seed": seed, "return_ratio": points / 10, **returns}

    rows = [row("breakout", size, seed, 10.0 * size**0.5) for size in (0.01, 0.25) for seed in range(3)]
    rows.append(row("freeway", 0.25, 0, 10.0))
    header, _, *lines = by_size.table(rows).splitlines()
    assert header == "| parameters | breakout | freeway | all |"
    assert lines == [
        "| 25 % | 0.500 (0.500 to 0.500) | 1.000 (1.000 to 1.000) | 0.500 (0.500 to 0.500) |",
        "| 1 % | 0.100 (0.100 to 0.100) |  | 0.100 (0.100 to 0.100) |",
    ]


# --- The evidence -----------------------------------------------------------------------------------------------------


def test_the_page_of_evidence_has_what_was_measured(results):
    import evidence

    folder = TUNING.parent / "docs" / "results"
    written = (folder / "evidence.md").read_text()
    (made_on,) = re.findall(r"made it on (\S+)", written)
    assert len(evidence.tasks_of(folder)) >= 7
    assert evidence.page(folder, made_on) == written
