"""What is printed after training."""

from types import SimpleNamespace

from rllib_kd import DistillDQNConfig, Teacher, compare
from rllib_kd.experiment import locations, outcome
from rllib_kd.experiment.experiment import Experiment
from rllib_kd.experiment.outcome import comparison
from tests.conftest import make_q_module


def asked(compare_episodes, teacher="cartpole"):
    config = DistillDQNConfig().distillation(teacher=teacher)
    return SimpleNamespace(compare_episodes=compare_episodes, param_space=config)


def test_trials_of_a_final_comparison_are_called_by_what_varies(monkeypatch):
    seen = {}
    monkeypatch.setattr(outcome, "load_members", lambda *args, **kwargs: None)
    monkeypatch.setattr(outcome, "as_configured", lambda *args: "teacher")
    monkeypatch.setattr(outcome, "summary_table", lambda comparisons: "table")
    monkeypatch.setattr(outcome, "compare_all", lambda teacher, students, *_, **__: seen.update(students) or [1, 2])
    config = dict.fromkeys(("ensemble", "temperature", "env", "env_config", "trust_checkpoint")) | {
        "teacher": "cartpole"
    }
    trials = [
        SimpleNamespace(
            path=f"/r/sizes/DistillDQN_CartPole-v1_abc12_0000{i}_{i}_compression=0.{i}_2026-11-26_16-19-05",
            checkpoint=SimpleNamespace(filesystem=SimpleNamespace(type_name="local"), path=f"/checkpoint_{i}"),
            config=config,
        )
        for i in range(2)
    ]
    assert comparison(asked(1), trials) == "table"
    assert seen == {"compression=0.0": "/checkpoint_0", "compression=0.1": "/checkpoint_1"}


def test_the_command_after_training_names_each_student_of_a_family():
    checkpoint = SimpleNamespace(filesystem=SimpleNamespace(type_name="local"), path="/c")
    config = {"teacher": "cartpole", "students": {"s4": {}, "lin": "linear"}}
    command = comparison(asked(0), [SimpleNamespace(checkpoint=checkpoint, config=config)])
    modules = "/c/learner_group/learner/rl_module"
    assert command == f"compare with: rllib compare --teacher cartpole {modules}/s4 {modules}/lin"


def test_the_command_after_training_has_the_options_of_a_uri(monkeypatch):
    monkeypatch.setattr(locations, "_uris", {("s3", "b/x"): "s3://b/x?scheme=http"})
    checkpoint = SimpleNamespace(filesystem=SimpleNamespace(type_name="s3"), path="b/x/c")
    for students, inner in (({}, ""), ({"s4": {}}, "/learner_group/learner/rl_module/s4")):
        config = {"teacher": "cartpole", "students": students}
        command = comparison(asked(0), [SimpleNamespace(checkpoint=checkpoint, config=config)])
        assert command.endswith(f" 's3://b/x/c{inner}?scheme=http'")


def test_the_command_after_training_has_the_path_of_a_described_teacher():
    checkpoint = SimpleNamespace(filesystem=SimpleNamespace(type_name="local"), path="/c")
    config = {"teacher": {"path": "/net.pth", "network": {"activation": "relu"}}}
    command = comparison(asked(0), [SimpleNamespace(checkpoint=checkpoint, config=config)])
    assert command == "compare with: rllib compare --teacher /net.pth /c"


def test_a_teacher_that_was_loaded_in_python_is_compared_there(tmp_path):
    student = make_q_module().save_to_path(str(tmp_path / "student"))
    checkpoint = SimpleNamespace(filesystem=SimpleNamespace(type_name="local"), path=student)
    teacher = Teacher(make_q_module(seed=1))
    settings = {"teacher": "its source", "env": "CartPole-v1", "env_config": {}}
    trials = [SimpleNamespace(path="/r/x", checkpoint=checkpoint, config=settings)]
    assert comparison(asked(0, teacher), trials) == f"compare in Python with: rllib_kd.compare(teacher, {student!r})"
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher=teacher)
    experiment = Experiment("x", "DistillDQN", config=config, compare_episodes=2).checked()
    settings |= {"ensemble": config.ensemble, "temperature": config.temperature, "trust_checkpoint": False}
    expected = compare(teacher, student, "CartPole-v1", num_episodes=2).student.return_mean
    assert f"{expected:.1f}" in comparison(experiment, trials)
