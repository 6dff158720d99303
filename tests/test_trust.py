"""What a checkpoint holds runs in no process: not where it is read, and not where EnvRunners and Learners work."""

import base64
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from rllib_kd import DistillDQN, DistillDQNConfig, compare
from rllib_kd.cli.main import main
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.deployment import deploy
from tests.conftest import CARTPOLE_OBS
from tests.formats import mlp, sb3_weights, sb3_zip
from tests.payloads import Payload, payloads
from tests.rllib_checkpoints import save_dqn, write_checkpoint

#: What is read of an RLlib checkpoint. Everything else in it may hold what it likes.
READ = {
    "env_runner/env_to_module_connector/class_and_ctor_args.pkl",
    "env_runner/env_to_module_connector/MeanStdFilter/state.pkl",
    "env_runner/module_to_env_connector/class_and_ctor_args.pkl",
    "learner_group/learner/rl_module/default_policy/class_and_ctor_args.pkl",
    "learner_group/learner/rl_module/default_policy/module_state.pkl",
}


@pytest.fixture(scope="module")
def saved(cluster, tmp_path_factory):
    return save_dqn("filter", tmp_path_factory.mktemp("checkpoints") / "algo")


def write_rllib(saved: Path, path: Path, mark: Path) -> Path:
    """A whole Algorithm in which every pickle that a teacher does not need does harm."""
    shutil.copytree(saved, path)
    others = [file for file in path.rglob("*.pkl") if file.relative_to(path).as_posix() not in READ]
    assert len(others) > 5
    for file in others:
        file.write_bytes(pickle.dumps(payloads(mark)["os.system"]))
    return path


def write_sb3(saved: Path, path: Path, mark: Path, entry: str = "lr_schedule") -> Path:
    text = base64.b64encode(pickle.dumps(payloads(mark)["os.system"])).decode()
    files = {"policy.optimizer.pth": pickle.dumps(payloads(mark)["os.system"])}
    data = {entry: {":type:": "", ":serialized:": text}}
    return sb3_zip(path, sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2, data=data, files=files)


def config(teacher: Path, num_env_runners: int = 0) -> DistillDQNConfig:
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(train_batch_size_per_learner=8, num_steps_sampled_before_learning_starts=8, training_intensity=1)
        .reporting(min_sample_timesteps_per_iteration=16)
        .distillation(teacher=teacher, compression=0.9, num_baseline_episodes=2)
    )


@pytest.mark.parametrize(
    ("write", "num_env_runners"),
    [(write_rllib, 0), pytest.param(write_rllib, 1, marks=pytest.mark.slow), (write_sb3, 0)],
)
def test_what_a_teacher_does_not_need_runs_nowhere(saved, tmp_path, build, write, num_env_runners):
    mark = tmp_path / "mark"
    teacher = write(saved, tmp_path / "teacher", mark)
    algo = build(config(teacher, num_env_runners))
    assert algo.train()["num_env_steps_sampled_lifetime"] >= 16
    algo.evaluate()
    restored = DistillDQN.from_checkpoint(algo.save_to_path(str(tmp_path / "algo")))
    restored.stop()
    assert not mark.exists()
    os.system(payloads(mark)["os.system"].call[1][0])
    assert mark.exists()  # an absolute path, for every process


def write_broken_sb3(saved: Path, path: Path, mark: Path) -> Path:
    return write_sb3(saved, path, mark, entry="observation_space")


def write_broken_rllib(saved: Path, path: Path, mark: Path) -> Path:
    """A harmless checkpoint, but for one value in its model config."""
    shutil.copytree(saved, path)
    file = path / "learner_group/learner/rl_module/default_policy/class_and_ctor_args.pkl"
    content = pickle.loads(file.read_bytes())
    content["ctor_args_and_kwargs"][1]["model_config"]["vf_share_layers"] = Payload(os.system, f"touch {mark}")
    file.write_bytes(pickle.dumps(content))
    return path


COMMANDS = {
    "evaluate": ["evaluate", "{}", "--env", "CartPole-v1"],
    "compare": ["compare", "--teacher", "cartpole", "{}", "--env", "CartPole-v1"],
    "compare, the teacher": ["compare", "--teacher", "{}", "cartpole", "--env", "CartPole-v1"],
    "export": ["export", "{}", "--out", "out.onnx", "--env", "CartPole-v1"],
    "train": ["train", "--algo", "DistillDQN", "--env", "CartPole-v1", "--teacher", "{}"],
}


@pytest.mark.parametrize("write", [write_broken_rllib, write_broken_sb3])
def test_it_is_refused_by_its_name_wherever_it_is_given(saved, tmp_path, write, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    path = write(saved, tmp_path / "teacher", mark)
    calls = {
        "build": lambda: config(path).build_algo(),
        "a dict, as Tune gives it": lambda: DistillDQN(config={"env": "CartPole-v1", "teacher": str(path)}),
        "evaluate": lambda: evaluate(path, "CartPole-v1", num_episodes=1),
        "compare": lambda: compare("cartpole", path, "CartPole-v1", num_episodes=1),
        "compare, the teacher": lambda: compare(path, "cartpole", "CartPole-v1", num_episodes=1),
        "export": lambda: deploy(str(path), tmp_path / "out", "CartPole-v1", format="onnx"),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"posix\.system") as caught:
            call()
        assert str(caught.value).isprintable(), name
    for name, command in COMMANDS.items():
        monkeypatch.setattr("sys.argv", ["rllib", *(part.format(path) for part in command)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code in (1, 2), name
        assert "posix.system" in said.err + said.out, name
        assert "Traceback" not in said.err + said.out, name
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["a call", "a class", "a path"])
def test_a_config_of_an_environment_runs_nothing(tmp_path, kind, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    value = {"a call": payloads(mark)["os.system"], "a class": Payload, "a path": "/dev/zero"}[kind]
    path = write_checkpoint(tmp_path / "teacher", "CartPole-v1", {"run": value})
    for name in ("evaluate", "compare", "export"):
        words = [part.format(path) for part in COMMANDS[name]]
        for line in (words, words[:-2]):  # with its environment's id, and without
            monkeypatch.setattr("sys.argv", ["rllib", *line])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 2, name
            assert "has entries that are not known to be harmless: 'run'. Set these keys" in capsys.readouterr().err, (
                name
            )
    assert not mark.exists()


def test_training_never_looks_at_the_environment_of_its_teacher(tmp_path, build):
    mark = tmp_path / "mark"
    entries = {"run": payloads(mark)["os.system"], "max_episode_steps": 3}
    algo = build(config(Path(write_checkpoint(tmp_path / "teacher", "antigravity:Env-v0", entries))))
    assert algo.config.env_config == {}
    algo.train()
    assert "antigravity" not in sys.modules
    assert not mark.exists()


def test_notes_of_a_run_are_no_programs(tmp_path):
    """What is read of Tune's folders is JSON."""
    trial = tmp_path / "trial"
    trial.mkdir()
    mark = tmp_path / "mark"
    for name in ("params.pkl", "tuner.pkl", "trainable.pkl"):
        (trial / name).write_bytes(pickle.dumps(payloads(mark)["os.system"]))
    row = {"env_runners": {"episode_return_mean": 1.0}, "checkpoint_dir_name": "checkpoint_000000"}
    (trial / "result.json").write_text("[" * 100_000 + "\n" + json.dumps(row))
    with zipfile.ZipFile(sb3_zip(tmp_path / "a.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)) as archive:
        archive.extractall(trial / "checkpoint_000000")
    with pytest.raises(ValueError, match="holds the files of a zip of Stable-Baselines3"):
        evaluate(trial, "CartPole-v1", num_episodes=1)
    assert not mark.exists()
