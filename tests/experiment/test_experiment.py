"""Experiments as files and as objects."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from ray import tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig

from rllib_kd import DistillDQNConfig
from rllib_kd.experiment import experiment, locations
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.files import parse_settings, read_experiment
from rllib_kd.experiment.locations import location
from rllib_kd.experiment.outcome import summary


def test_flags_change_a_config_and_leave_it_as_it_was():
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")
    experiment = Experiment("x", DistillDQNConfig().algo_class, config, {"loss": "mse", "compression": 0.5})
    space = experiment.checked().param_space
    assert isinstance(space, AlgorithmConfig)
    assert (space.loss, space.compression) == ("mse", 0.5)
    assert (config.loss, config.compression) == ("kl", None)


def test_environments_that_differ_in_the_middle_of_a_large_array_are_each_looked_at(monkeypatch):
    looked_at = []
    monkeypatch.setattr(experiment, "known_spaces", lambda config: looked_at.append(config.env_config))
    monkeypatch.setattr(experiment, "try_out", lambda config: None)
    configs = [
        DQNConfig().environment("CartPole-v1", env_config={"heights": np.arange(2_000) == place})
        for place in (1_000, 1_001, 1_000)
    ]
    experiment._checked_teachers(configs)
    assert len(looked_at) == 2


def test_search_spaces_of_a_config_and_of_settings_meet():
    config = DQNConfig().environment("CartPole-v1").training(lr=tune.grid_search([1e-3, 1e-4]))
    checked = Experiment("x", "DQN", config, {"gamma": {"grid_search": [0.9, 0.99]}}).checked()
    assert isinstance(checked.param_space, dict)
    assert checked.param_space["lr"] == {"grid_search": [1e-3, 1e-4]}
    assert checked.param_space["gamma"] == {"grid_search": [0.9, 0.99]}
    with pytest.raises(ValueError, match="evaluation_duration"):
        Experiment("x", "DQN", config, {"evaluation_duration": {"grid_search": [1, -1]}}).checked()


def test_a_trial_needs_what_the_largest_of_its_variants_needs():
    settings = {"env": "CartPole-v1", "num_env_runners": {"grid_search": [1, 3, 2]}}
    checked = Experiment("x", "DQN", settings=settings).checked()
    assert checked.trial_resources["CPU"] == 4
    assert checked.bundles == [{"CPU": 1.0}] * (2 + 4 + 3)


def test_stop_criteria_have_todays_names():
    stop = {"env_runners/episode_reward_mean": 100, "timesteps_total": 5, "x/y": 1}
    checked = Experiment("x", "DQN", settings={"env": "CartPole-v1"}, stop=stop).checked()
    assert checked.stop == {"env_runners/episode_return_mean": 100, "num_env_steps_sampled_lifetime": 5, "x/y": 1}


def test_teachers_in_a_grid_mean_the_same_everywhere(small_teacher, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(small_teacher)
    monkeypatch.chdir(tmp_path)
    settings = {"env": "CartPole-v1", "teacher": {"grid_search": ["link", "cartpole"]}}
    space = Experiment("x", "DistillDQN", settings=settings).checked().param_space
    assert space["teacher"] == {"grid_search": [str(tmp_path / "link"), "cartpole"]}


def test_a_yaml_file_in_the_old_layout(tmp_path):
    path = tmp_path / "tuned.yaml"
    path.write_text(
        "cartpole-dqn:\n  run: DQN\n  env: CartPole-v1\n  stop: {episode_reward_mean: 150}\n"
        "  num_samples: 2\n  config:\n    num_workers: 0\n    model: {fcnet_hiddens: [64]}\n"
    )
    experiment = read_experiment(path)
    assert (experiment.name, experiment.algorithm, experiment.num_samples) == ("cartpole-dqn", "DQN", 2)
    space = experiment.checked().param_space
    assert (space.num_env_runners, space.model_config["fcnet_hiddens"]) == (0, [64])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "a: {run: DQN, env: CartPole-v1, config: , stop: , num_samples: , compare_episodes: }"),
        (
            "a.py",
            "from ray.rllib.algorithms.dqn import DQNConfig\nconfig = DQNConfig().environment('CartPole-v1')\n"
            "stop = num_samples = compare_episodes = None\n",
        ),
    ],
)
def test_entries_without_a_value_have_their_defaults(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    checked = read_experiment(tmp_path / name).checked()
    assert (checked.stop, checked.num_samples, checked.compare_episodes) == ({}, 1, 0)


@pytest.mark.parametrize("name", ["num_samples", "compare_episodes"])
def test_numbers_of_an_experiment_are_numbers(name):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least ., got None"):
        Experiment("x", "DQN", settings={"env": "CartPole-v1"}, **{name: None}).checked()


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"lr": 0.1}'), ("a.yaml", "lr: 0.1\n"), ("a.txt", '{"lr": 0.1}')]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # as some editors of Windows write it
def test_objects_are_read_from_files(tmp_path, name, text, encoding):
    (tmp_path / name).write_text(text, encoding=encoding)
    assert parse_settings(f"@{tmp_path / name}", "--config") == {"lr": 0.1}


@pytest.mark.parametrize(("kind", "expected"), [("local", "results/x"), ("s3", "s3://results/x")])
def test_checkpoints_are_named_so_that_they_can_be_found(kind, expected):
    assert location(SimpleNamespace(path="results/x", filesystem=SimpleNamespace(type_name=kind))) == expected


@pytest.mark.parametrize(
    ("folder", "path", "expected"),
    [
        ("s3://b/x?scheme=http&region=r", "b/x/trial/lr=0.1 #", "s3://b/x/trial/lr=0.1%20%23?scheme=http&region=r"),
        ("s3://b/x?scheme=http&region=r", "b/xy/trial", "s3://b/xy/trial"),
        ("abfs://c@account.dfs.core.windows.net/x", "c/x/trial", "abfs://c@account.dfs.core.windows.net/x/trial"),
        ("/x", "/x/trial", "s3:///x/trial"),
        ("s3://KEY:SECRET@b/x?region=r", "b/x/trial", "s3://b/x/trial?region=r"),
        ("abfs://c:SECRET@a.dfs.core.windows.net/x", "c/x/trial", "abfs://c@a.dfs.core.windows.net/x/trial"),
    ],
)
def test_checkpoints_have_the_options_of_the_uri_that_results_were_written_to(monkeypatch, folder, path, expected):
    monkeypatch.setattr(locations, "_uris", {})
    locations.remember(folder)
    kind, other = ("abfs", "s3") if folder.startswith("abfs") else ("s3", "gcs")
    assert location(SimpleNamespace(path=path, filesystem=SimpleNamespace(type_name=kind))) == expected
    assert location(SimpleNamespace(path=path, filesystem=SimpleNamespace(type_name=other))) == f"{other}://{path}"
    assert location(SimpleNamespace(path=path, filesystem=SimpleNamespace(type_name="local"))) == path


def test_the_summary_shows_the_last_evaluation_and_whose_return_it_is_otherwise(tmp_path):
    metrics = {
        "training_iteration": 2,
        "num_env_steps_sampled_lifetime": 20,
        "env_runners": {"episode_return_mean": 400.0},
        "distillation": {"teacher_fraction": 0.5},
    }
    result = tune.Result(error=None, path=str(tmp_path), metrics=metrics, checkpoint=None)
    assert summary(result).splitlines() == ["20 env steps · behaviour return 400.0", str(tmp_path)]
    earlier = {**metrics, "training_iteration": 1, "num_env_steps_sampled_lifetime": 10}
    earlier["evaluation"] = {"env_runners": {}}
    earlier["evaluation"]["env_runners"]["episode_return_mean"] = -0.0321
    (tmp_path / "result.json").write_text(json.dumps(earlier) + "\n" + json.dumps(metrics) + "\n")
    assert summary(result).startswith("20 env steps · return -0.0321\n")


@pytest.mark.parametrize("name", ["/tmp/x", "..", "../x", "x/../../y"])
def test_results_stay_in_their_folder(name):
    with pytest.raises(ValueError, match="must name a folder below --storage-path"):
        Experiment(name, "DQN", settings={"env": "CartPole-v1"}).checked()
    assert Experiment("a/b..", "DQN", settings={"env": "CartPole-v1"}).checked().name == "a/b.."


def test_a_family_is_not_compared_at_the_end():
    settings = {
        "env": "CartPole-v1",
        "teacher": "cartpole",
        "students": {"s4": {"fcnet_hiddens": [4]}, "lin": "linear"},
    }
    Experiment("x", "DistillDQN", settings=settings).checked()
    with pytest.raises(ValueError, match=r"got the family s4, lin\..* s4=CHECKPOINT/.*rl_module/s4 lin=CHECKPOINT/"):
        Experiment("x", "DistillDQN", settings=settings, compare_episodes=1).checked()
