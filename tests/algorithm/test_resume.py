"""What is resumed goes on as if it had never stopped: bit by bit where everything can be captured."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole

from rllib_kd import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm import replays
from tests.conftest import start_ray

N = 4  # iterations before the checkpoint, and after it


class CountsSteps(RLlibCallback):
    """Needs RLlib's episodes, so that its own loop samples."""

    def on_episode_step(self, **kwargs):
        pass


def _config(**env_runners) -> DistillDQNConfig:
    env_runners = {"num_envs_per_env_runner": 4, "rollout_fragment_length": 16, **env_runners}
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(**env_runners)
        .training(
            train_batch_size_per_learner=32,
            num_steps_sampled_before_learning_starts=64,
            training_intensity=4,
            replay_buffer_config={"capacity": 300},  # it is full, and wraps around
        )
        .reporting(min_sample_timesteps_per_iteration=64)
        .rl_module(model_config={"fcnet_hiddens": [8], "fcnet_activation": "relu"})
        # Within an episode, π changes from the teacher to the student.
        .distillation(teacher="cartpole", num_baseline_episodes=2, teacher_fraction=[[0, 1.0], [800, 0.0]])
        .debugging(seed=0)
    )


def _td() -> DistillDQNConfig:
    return (
        _config(gym_env_vectorize_mode="vector_entry_point")
        .training(
            replay_buffer_config={"alpha": 0.6},
            n_step=3,
            target_network_update_freq=150,
            lr=[[0, 3e-3], [1_000, 1e-3]],
        )
        .distillation(td_coeff=0.5, kd_coeff=[[0, 1.0], [1_000, 0.5]])
    )


def _family() -> DistillDQNConfig:
    config = _config().distillation(students={"a": {"fcnet_hiddens": [4]}, "b": {"fcnet_hiddens": [8]}})
    config.rl_module(model_config={})
    return config


def _multi_agent() -> DistillDQNConfig:
    return (
        _config(num_envs_per_env_runner=2)
        .environment(MultiAgentCartPole, env_config={"num_agents": 3})
        .multi_agent(policies={"even", "odd"}, policy_mapping_fn=by_parity)
        .distillation(teacher={"even": "cartpole", "odd": "cartpole"})
    )


def by_parity(agent_id, *args, **kwargs):
    return "odd" if agent_id % 2 else "even"


CONFIGS = {
    "sync": _config,
    "td-and-prioritized": _td,
    "values-and-features": lambda: _config().distillation(loss="mse", feature_coeff=0.1),
    "family": _family,
    "through-rllib": lambda: _config().callbacks(CountsSteps),
    "multi-agent": _multi_agent,
    "without-a-teacher": lambda: _config().distillation(teacher=None, td_coeff=1.0, teacher_fraction=0.0),
    "before-learning-starts": lambda: (
        _config().training(num_steps_sampled_before_learning_starts=64 * N + 1).distillation(init="teacher")
    ),
}
#: One student of each kind shows it in the fast set.
FAST = {"sync", "td-and-prioritized", "family", "multi-agent"}
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def weights(algo):
    return {
        f"{module_id}/{name}": array
        for module_id, module in algo.learner_group.get_weights().items()
        for name, array in module.items()
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def differ(first, second):
    return any((first[name] != second[name]).any() for name in first)


def state_of(algo):
    """What must be equal at the end: weights and counters, returns, the order of draws."""
    result = algo.train()
    return {
        "weights": weights(algo),
        "env_steps": result["num_env_steps_sampled_lifetime"],
        "gradient_steps": algo.num_gradient_steps,
        "return": result["env_runners"].get("episode_return_mean"),
        "iteration": result["training_iteration"],
    }


def run(config, *, saves_to=None):
    algo = config.build_algo()
    for i in range(2 * N - 1):
        if i == N and saves_to is not None:
            algo.save_to_path(str(saves_to))
        algo.train()
    state = state_of(algo)
    algo.stop()
    return state


def resume_all(folder):
    """In a process of its own."""
    start_ray(address="local", num_cpus=2, include_dashboard=False)
    for checkpoint in sorted(Path(folder).glob("*.checkpoint")):
        algo = DistillDQN.from_checkpoint(str(checkpoint))
        for _ in range(N - 1):
            algo.train()
        checkpoint.with_suffix(".pkl").write_bytes(pickle.dumps(state_of(algo)))
        algo.stop()


def in_a_new_process(folder):
    command = [sys.executable, "-c", f"from tests.algorithm.test_resume import resume_all; resume_all({str(folder)!r})"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})


@pytest.fixture(scope="module")
def runs(request, cluster, tmp_path_factory):
    """For each config that is tested now: a run without a checkpoint, one with, and what a new process makes of it."""
    folder = tmp_path_factory.mktemp("runs")
    tests = (item for item in request.session.items if item.module is request.module and "runs" in item.fixturenames)
    configs = {name: CONFIGS[name] for name in {test.callspec.params["name"] for test in tests}}
    straight = {name: run(config()) for name, config in configs.items()}
    saved = {name: run(config(), saves_to=folder / f"{name}.checkpoint") for name, config in configs.items()}
    in_a_new_process(folder)
    resumed = {name: pickle.loads((folder / f"{name}.pkl").read_bytes()) for name in configs}
    return straight, saved, resumed


def assert_same(first, second):
    assert_equal(first["weights"], second["weights"])
    for name in first.keys() - {"weights"}:
        np.testing.assert_equal(first[name], second[name], err_msg=name)  # NaN where no episode has ended yet


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_student_whether_it_is_saved_or_not(runs, name):
    straight, saved, _ = runs
    assert_same(straight[name], saved[name])
    assert straight[name]["gradient_steps"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_new_process_goes_on_bit_by_bit(runs, name):
    straight, _, resumed = runs
    assert_same(straight[name], resumed[name])


# --- What cannot go on bit by bit -------------------------------------------------------------------------------------


def test_environments_in_other_processes_begin_anew_at_every_checkpoint(build, tmp_path):
    config = _config(gym_env_vectorize_mode="async")
    algos = [build(config.copy(copy_frozen=False))]
    algos[0].train()
    before = algos[0].env_runner._seed
    path = algos[0].save_to_path(str(tmp_path / "checkpoint"))
    assert algos[0].env_runner._needs_initial_reset
    assert algos[0].env_runner._seed != before  # not the same episodes again
    algos.append(DistillDQN.from_checkpoint(path))
    states = [state_of(algo) for algo in algos]
    algos[1].stop()
    assert_same(*states)


@pytest.mark.slow
def test_remote_env_runners_do_not_sample_the_same_again(build, tmp_path):
    algo = build(_config(num_env_runners=1, num_envs_per_env_runner=2))
    algo.train()
    resumed = DistillDQN.from_checkpoint(algo.save_to_path(str(tmp_path / "checkpoint")))
    seeds = [
        each.env_runner_group.foreach_env_runner(lambda runner: runner._seed, local_env_runner=False)
        for each in (algo, resumed)
    ]
    assert seeds[0] != seeds[1]
    assert len(resumed.learner_group._learner.groups["default_policy"].replay) > 0
    before = resumed.num_gradient_steps
    resumed.train()
    resumed.stop()
    assert resumed.num_gradient_steps > before  # at once: the replay is full


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.env_runners(num_envs_per_env_runner=3),
        lambda config: config.env_runners(gym_env_vectorize_mode="vector_entry_point"),
        lambda config: config.environment(env_config={"sutton_barto_reward": True}),
    ],
    ids=["num_envs", "vectorize_mode", "env_config"],
)
def test_environments_that_have_changed_begin_new_episodes(build, tmp_path, change, caplog):
    algo = build(_config())
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    changed = build(change(_config()))
    changed.restore_from_path(path)
    assert "do not fit" in caplog.text
    assert changed.env_runner._needs_initial_reset
    changed.train()


# --- The replay -------------------------------------------------------------------------------------------------------


def rows_by_learner(algo):
    """The observations in the replay of each Learner."""
    results = algo.learner_group.foreach_learner(lambda own: own.replay_arrays()["default_policy/columns/obs"])
    return [result.get() for result in results]


def as_set(obs):
    return {row.tobytes() for row in obs}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 0), (0, 2)])
def test_each_learner_has_a_file_and_their_number_may_change(build, tmp_path, before, after, caplog):
    algo = build(_config().learners(num_learners=before).training(replay_buffer_config={"capacity": 1_000}))
    algo.train()
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    shards = rows_by_learner(algo)
    files = sorted(file.name for file in (tmp_path / "checkpoint" / "replay").iterdir())
    assert files == [f"{index}.npz" for index in range(max(1, before))]
    other = build(_config().learners(num_learners=after).training(replay_buffer_config={"capacity": 1_000}))
    other.restore_from_path(path)
    restored = rows_by_learner(other)
    if before == after:
        assert not as_set(shards[0]) & as_set(shards[1])
        for ours, theirs in zip(shards, restored, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    elif after == 0:
        assert as_set(restored[0]) == as_set(shards[0]) | as_set(shards[1])
    else:
        assert as_set(restored[0]) == as_set(restored[1]) == as_set(shards[0])
    assert ("rows are redistributed" in caplog.text) == (before != after)
    steps = other.num_gradient_steps
    other.train()
    assert other.num_gradient_steps > steps


def test_a_flag_leaves_the_replay_out(build, tmp_path):
    algo = build(_config().training(store_buffer_in_checkpoints=False))
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint" / "replay").exists()
    resumed = DistillDQN.from_checkpoint(path)
    assert len(resumed.learner_group._learner.groups["default_policy"].replay) == 0
    assert resumed._replay_ratio.get_state()["steps_since_start"] == 0  # it is filled first, as at the start
    resumed.train()
    resumed.stop()


def test_a_replay_without_what_is_learned_now_is_left_out_with_a_word(build, tmp_path, caplog):
    path = build(_config())
    path.train()
    path = path.save_to_path(str(tmp_path / "checkpoint"))
    other = build(_config().distillation(td_coeff=1.0))
    other.restore_from_path(path)
    assert "lacks columns that are needed now" in caplog.text
    assert len(other.learner_group._learner.groups["default_policy"].replay) == 0
    other.train()


def test_a_replay_with_more_than_is_learned_now_is_taken(build, tmp_path):
    algo = build(_td())
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    other = build(_config())
    other.restore_from_path(path)
    replay = other.learner_group._learner.groups["default_policy"].replay
    assert set(replay._columns) == {"obs", "teacher_q", "valid"}
    other.train()


def test_a_checkpoint_may_lie_on_another_filesystem(build, tmp_path):
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    algo = build(_config())
    algo.train()
    algo.save_to_path("bucket/checkpoint", filesystem=filesystem)
    assert (tmp_path / "bucket/checkpoint/replay/0.npz").exists()
    resumed = build(_config())
    resumed.restore_from_path("bucket/checkpoint", filesystem=filesystem)
    replays = [each.learner_group._learner.replay_arrays() for each in (algo, resumed)]
    assert_equal(*replays)


# --- Saving -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved_once(build, tmp_path):
    algo = build(_config())
    algo.train()
    folder = tmp_path / "checkpoint"
    algo.save_to_path(str(folder))
    (folder / "notes.txt").write_text("mine")
    before = weights(algo)
    algo.train()
    algo.train()
    assert differ(before, weights(algo))
    return algo, folder, before


def test_a_full_disk_leaves_the_checkpoint_that_was_there(saved_once, monkeypatch):
    algo, folder, before = saved_once
    write = np.lib.format.write_array

    def fill_up(file, array, **kwargs):
        write(file, array, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fill_up)
    with pytest.raises(OSError, match="No space left"):
        algo.save_to_path(str(folder))
    monkeypatch.undo()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    resumed = DistillDQN.from_checkpoint(str(folder))
    assert_equal(weights(resumed), before)
    resumed.stop()
    algo.train()  # which goes on


def test_a_new_checkpoint_takes_the_place_of_an_old_one(saved_once):
    algo, folder, _ = saved_once
    algo.save_to_path(f"file://{folder}")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "notes.txt").read_text() == "mine"
    resumed = DistillDQN.from_checkpoint(str(folder))
    assert_equal(weights(resumed), weights(algo))
    resumed.stop()


def save_until_killed(folder):
    """In a process of its own: dies in the middle of the second save."""
    start_ray(address="local", num_cpus=1, include_dashboard=False)
    algo = _config().build_algo()
    algo.train()
    algo.save_to_path(str(folder))
    np.savez(f"{folder}-weights.npz", **weights(algo))
    algo.train()
    replays.write_replay = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    algo.save_to_path(str(folder))


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_that_was_there(cluster, tmp_path):
    folder = tmp_path / "checkpoint"
    command = f"from tests.algorithm.test_resume import save_until_killed; save_until_killed({str(folder)!r})"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", command], env=env, check=False)
    assert killed.returncode == -9
    assert list(tmp_path.glob(".checkpoint.saving-*"))
    resumed = DistillDQN.from_checkpoint(str(folder))
    with np.load(f"{folder}-weights.npz") as before:
        assert_equal(weights(resumed), dict(before))
    resumed.save_to_path(str(folder))
    resumed.stop()
    assert not list(tmp_path.glob(".checkpoint.*"))


@pytest.mark.parametrize(
    "spelled",
    [
        "student",
        pytest.param("./student/", marks=pytest.mark.slow),
        pytest.param("~/student", marks=pytest.mark.slow),
        pytest.param("{home}/a folder #1/student", marks=pytest.mark.slow),
        "file://{home}/a%20folder/student",
    ],
)
def test_a_path_may_be_spelled_as_one_likes(build, tmp_path, monkeypatch, spelled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = spelled.format(home=tmp_path)
    algo = build(_config())
    for _ in range(2):  # a first one, and one in its place
        algo.train()
        saved = algo.save_to_path(path)
    assert Path(saved).is_absolute()
    assert sorted(Path(saved).iterdir())
    assert str(tmp_path) in saved
    assert (tmp_path / "~").exists() is False
    resumed = DistillDQN.from_checkpoint(path)
    assert_equal(weights(resumed), weights(algo))
    resumed.restore_from_path(path)
    resumed.stop()


def test_what_cannot_hold_a_checkpoint_is_an_error_before_anything_is_written(build, tmp_path):
    algo = build(_config())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        algo.save_to_path(tmp_path / "file")
    with pytest.raises(ValueError, match="%23"):
        algo.save_to_path(f"file://{tmp_path}/a#b")
    assert os.listdir(tmp_path) == ["file"]


def fails(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_a_remote_learner_that_cannot_save_is_an_error_and_the_older_checkpoint_stays(build, tmp_path):
    algo = build(_config().learners(num_learners=1))
    algo.train()
    path = algo.save_to_path(tmp_path / "student")
    before = weights(algo)
    algo.train()
    algo.learner_group.foreach_learner(lambda own: setattr(own, "save_to_path", fails))
    with pytest.raises(OSError, match="The Learner could not write its part"):
        algo.save_to_path(path)
    assert os.listdir(tmp_path) == ["student"]
    resumed = DistillDQN.from_checkpoint(path)
    assert_equal(weights(resumed), before)
    resumed.stop()


def die_at(call, save):
    """How many function calls a save makes, in a process of its own, which is killed at one of them."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        save()
        sys.setprofile(None)
        os.write(writer, str(calls).encode())
        os._exit(0)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reader) as stream:
        made = stream.read()
    assert code == (0 if made else -signal.SIGKILL)
    return int(made) if made else call


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders at one stroke")
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint_that_restores(saved_once, tmp_path):
    algo, folder, before = saved_once
    newer = weights(algo)
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    seen = []
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999):
        die_at(None, lambda: algo.save_to_path(folder))  # clears up, which takes calls
        total = die_at(None, lambda: algo.save_to_path(folder))
        assert sorted(os.listdir(tmp_path)) == ["checkpoint", "older"]
        shutil.rmtree(folder)
        shutil.copytree(older, folder)
        die_at(round(share * total), lambda: algo.save_to_path(folder))
        resumed = DistillDQN.from_checkpoint(str(folder))
        seen.append("newer" if not differ(weights(resumed), newer) else "older")
        assert_equal(weights(resumed), newer if seen[-1] == "newer" else before)
        assert (folder / "notes.txt").read_text() == "mine"
        resumed.stop()
    assert seen[0] == "older"
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == "newer"
