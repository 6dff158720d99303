"""`tuning/certificates.py`: rows of real certificates, with made-up runs and returns."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from rllib_kd.evaluation.playing import RandomActions
from tuning import certificates

NUM_EPISODES = certificates.NUM_EPISODES


class Player(SimpleNamespace):
    """A policy, and in one also the network: its returns are those of its name."""


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Runs that certify students with some return ratio; `played` has who has played 5,000 episodes."""
    noise = np.random.default_rng(0).normal(scale=20.0, size=NUM_EPISODES)
    world = SimpleNamespace(ratio=1.0, runs=[], played=[], folder=tmp_path)
    returns = {
        "teacher": lambda: 100 + noise,
        "student": lambda: 100 * world.ratio + noise,
        "random": lambda: 0 * noise,
    }

    def play(make_env, player, seeds):
        name = "random" if isinstance(player, RandomActions) else player.name
        world.played.append(name)
        assert len(seeds) == NUM_EPISODES
        return list(returns[name]()), []

    def run(args, seed, out):
        world.runs.append(seed)
        found = {"return_ratio": 0.99, "num_episodes": 300}
        one = {"name": "linear", "label": "linear", "num_parameters": 10, "certificate": found}
        certified = None if seed == 1 else "linear"
        return {"certified": certified, "candidates": [one], "seconds": {"all": 5.0}}

    monkeypatch.setattr(certificates, "play", play)
    monkeypatch.setattr(certificates, "shrink", run)
    monkeypatch.setattr(certificates, "GreedyQ", lambda network: network)
    monkeypatch.setattr(certificates, "load_teacher", lambda path: path)
    actions = SimpleNamespace(n=2)
    players = Player(name="teacher", action_space=actions), Player(name="student", action_space=actions)
    monkeypatch.setattr(certificates, "check_players_fit", lambda make_env, networks: players)
    return world


def rows(world, monkeypatch, seeds, *flags):
    argv = ["certificates.py", str(world.folder), "--seeds", str(seeds)]
    monkeypatch.setattr("sys.argv", [*argv, "--env", "CartPole-v1", "--teacher", "a/cartpole", *flags])
    certificates.main()
    return [json.loads(line) for line in (world.folder / "rows.jsonl").read_text().splitlines()]


def test_a_seed_is_run_once_and_baselines_are_played_once(world, monkeypatch, capsys):
    assert len(rows(world, monkeypatch, 1)) == 1
    found = rows(world, monkeypatch, 3, "--csv", str(world.folder / "table.csv"))
    assert world.runs == [0, 1, 2]
    assert world.played == ["teacher", "random", "student", "student"]
    assert [row["certified"] for row in found] == ["linear", None, "linear"]
    assert "3 runs, 2 certificates, 0 wrong on 5,000 fresh episodes" in capsys.readouterr().out
    assert len((world.folder / "table.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "flags",
    [
        ["--minutes", "2"],
        ["--env-steps", "4000"],
        ["--keep", "0.9"],
        ["--teacher", "b/cartpole"],
        ["--env", "Acrobot-v1"],
    ],
    ids=lambda flags: flags[0],
)
def test_a_row_is_of_its_settings_alone(world, monkeypatch, capsys, flags):
    rows(world, monkeypatch, 1, *flags)
    capsys.readouterr()
    rows(world, monkeypatch, 1)
    assert "\n1 runs, 1 certificates" in capsys.readouterr().out
    rows(world, monkeypatch, 1, "--minutes", "10")  # the default
    assert world.runs == [0, 0]
    assert world.played.count("random") == (2 if {"--teacher", "--env"} & {*flags} else 1)


@pytest.mark.parametrize(("ratio", "is_wrong"), [(1.0, False), (0.97, False), (0.968, True), (0.5, True)])
def test_a_certificate_is_wrong_if_the_whole_interval_is_below(world, monkeypatch, ratio, is_wrong):
    """Student and teacher have the same noise, so that 0.968 is told from 0.97."""
    world.ratio = ratio
    (row,) = rows(world, monkeypatch, 1)
    assert row["is_wrong"] == is_wrong
    assert row["fresh_ratio"] == pytest.approx(ratio, abs=1e-2)
    assert row["fresh_lower"] < row["fresh_upper"]
