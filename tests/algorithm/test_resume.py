"""What is resumed goes on as if it had never stopped: bit by bit where everything can be captured."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.utils import EzPickle
from ray import cloudpickle
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole

from rllib_kd import DistillDQN, DistillDQNConfig
from rllib_kd.env_runner import capture
from tests.algorithm.resumable import resumable_config, td_config, weights
from tests.algorithm.weights import assert_equal_weights
from tests.conftest import ray_address, start_ray
from tests.env_runner.runners import Silent

N = 2  # iterations before the checkpoint, and after it


def _family() -> DistillDQNConfig:
    config = resumable_config().distillation(students={"a": {"fcnet_hiddens": [4]}, "b": {"fcnet_hiddens": [8]}})
    config.rl_module(model_config={})
    return config


class OwnEnvironment(CartPoleEnv):
    """RLlib makes it by a function that refers to the EnvRunner, which the environment's spec refers to."""

    def __init__(self, config=None):
        super().__init__()


def _multi_agent() -> DistillDQNConfig:
    return (
        resumable_config(num_envs_per_env_runner=2)
        .environment(MultiAgentCartPole, env_config={"num_agents": 3})
        .multi_agent(policies={"even", "odd"}, policy_mapping_fn=by_parity)
        .distillation(teacher={"even": "cartpole", "odd": "cartpole"})
    )


def by_parity(agent_id, *args, **kwargs):
    return "odd" if agent_id % 2 else "even"


CONFIGS = {
    "sync": resumable_config,
    "own-environment": lambda: resumable_config().environment(OwnEnvironment),
    "td-and-prioritized": td_config,
    "values-and-features": lambda: resumable_config().distillation(loss="mse", feature_coeff=0.1),
    "family": _family,
    "through-rllib": lambda: resumable_config().callbacks(Silent),
    "multi-agent": _multi_agent,
    "without-a-teacher": lambda: resumable_config().distillation(teacher=None, td_coeff=1.0, teacher_fraction=0.0),
    "before-learning-starts": lambda: (
        resumable_config().training(num_steps_sampled_before_learning_starts=64 * N + 1).distillation(init="teacher")
    ),
}
FAST = ("td-and-prioritized", "own-environment")
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in FAST)]


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
    algo = config.distillation(num_baseline_episodes=2).build_algo()
    for i in range(2 * N - 1):
        if i == N and saves_to is not None:
            algo.save_to_path(str(saves_to))
        algo.train()
    state = state_of(algo)
    algo.stop()
    return state


def resume_all(folder, address):
    """In a process of its own, which joins the Ray that is there."""
    start_ray(address=address)
    for checkpoint in sorted(Path(folder).glob("*.checkpoint")):
        algo = DistillDQN.from_checkpoint(str(checkpoint))
        for _ in range(N - 1):
            algo.train()
        checkpoint.with_suffix(".pkl").write_bytes(pickle.dumps(state_of(algo)))
        algo.stop()


def in_a_new_process(folder):
    code = f"from tests.algorithm.test_resume import resume_all; resume_all({str(folder)!r}, {ray_address()!r})"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    )


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
    assert_equal_weights(first["weights"], second["weights"])
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


class Mapped(CartPoleEnv):
    """Its config has what cannot be compared: an array, a function, and an object that is equal to none."""

    def __init__(self, config):
        super().__init__()


def test_a_config_with_arrays_functions_and_objects_has_not_changed(build, caplog):
    def made(first):
        heights = np.arange(first, first + 2_000)
        env_config = {"heights": heights, "reward": lambda height: height, "object": Mapped(None), "nan": float("nan")}
        return build(resumable_config().environment(Mapped, env_config=env_config)).env_runner

    runner, same, other = made(0), made(0), made(1)
    runner.sample_columns(teacher_fraction=1.0, epsilon=0.0, names=["obs"], num_shards=1)
    state = capture.capture_sampling(runner)
    capture.put_back_sampling(same, state)
    assert not same._needs_initial_reset
    assert "do not fit" not in caplog.text
    capture.put_back_sampling(other, state)
    assert "do not fit" in caplog.text


# --- What cannot go on bit by bit -------------------------------------------------------------------------------------


class PickledWithoutState(CartPoleEnv, EzPickle):
    """As environments of Box2D and MuJoCo: a pickle has the arguments of the constructor alone."""

    def __init__(self, config=None):
        EzPickle.__init__(self)
        super().__init__()


@pytest.mark.parametrize(
    "config",
    [
        lambda: resumable_config(gym_env_vectorize_mode="async"),
        lambda: resumable_config().environment(PickledWithoutState),
    ],
    ids=["in other processes", "pickled without their state"],
)
def test_environments_that_cannot_be_captured_begin_anew_at_every_checkpoint(config, build, tmp_path):
    config = config()
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


def test_an_environment_that_an_earlier_version_saved_without_its_state_begins_anew(
    build, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(capture, "_with_state", cloudpickle.dumps)  # as earlier versions did
    algo = build(resumable_config().environment(PickledWithoutState))
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    monkeypatch.undo()
    resumed = DistillDQN.from_checkpoint(path)
    assert "pickled without its state" in caplog.text
    assert resumed.env_runner._needs_initial_reset
    resumed.train()
    resumed.stop()


@pytest.mark.slow
def test_remote_env_runners_do_not_sample_the_same_again(build, tmp_path):
    algo = build(resumable_config(num_env_runners=1, num_envs_per_env_runner=2))
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
    algo = build(resumable_config())
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    changed = build(change(resumable_config()))
    changed.restore_from_path(path)
    assert "do not fit" in caplog.text
    assert changed.env_runner._needs_initial_reset
    changed.train()
