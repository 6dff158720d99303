"""What dies on a cluster of several nodes, and what goes on. Real actors and real nodes are killed."""

import contextlib
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from ray import tune
from ray._private import state as ray_state

from rllib_kd import DistillDQNConfig, Sweep, compare, load_teacher
from rllib_kd.teachers.base import Teacher
from tests.background import in_background, wait_for
from tests.cluster.conftest import only_ray

pytestmark = pytest.mark.slow

LEARNER = "_WrappedExecutable"  # the class of the actor that RLlib puts a Learner in
ENV_STEPS = 10_000
BEFORE_LEARNING = {"num_steps_sampled_before_learning_starts": 1_000}
FRESH_SEED = 1_000_000


def actors():
    return [actor for actor in ray_state.actors().values() if actor["State"] == "ALIVE"]


def living(class_name):
    """Node id and process id of each actor of a class."""
    return [
        (actor["Address"]["NodeID"], actor["Pid"])
        for actor in actors()
        if actor["ActorClassName"].split(".")[-1] == class_name
    ]


def remove_node(nodes, node_id):
    (node,) = [node for node in nodes.list_all_nodes() if node.node_id == node_id]
    nodes.remove_node(node, allow_graceful=False)


def config(**env_runners):
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(**env_runners)
        .training(**BEFORE_LEARNING)
        .rl_module(model_config={"fcnet_hiddens": [16], "fcnet_activation": "relu"})
        .distillation(teacher="cartpole", num_baseline_episodes=0)
        .debugging(seed=0)
    )


def assert_counters(rows, *, intensity=32):
    """Env steps only grow, and the gradient steps are those of the replay ratio."""
    steps = [row["num_env_steps_sampled_lifetime"] for row in rows]
    assert all(later > earlier for earlier, later in pairwise(steps))
    for row in rows:
        made = row.get("distillation", row)["num_gradient_steps_lifetime"]
        # What is sampled before learning starts, here and after a restart, is not learned from.
        assert intensity * (row["num_env_steps_sampled_lifetime"] - 2_500) / 256 < made
        assert made <= intensity * row["num_env_steps_sampled_lifetime"] / 256


def assert_goes_on(iterations, last):
    """None is missing, and at most one is made twice: its result was written, and its checkpoint not yet."""
    assert iterations == sorted(iterations)
    assert set(iterations) == set(range(1, last + 1))
    assert len(iterations) <= last + 1


# --- In the Python API ------------------------------------------------------------------------------------------------


def test_a_dead_node_of_env_runners_is_replaced(nodes):
    places = [nodes.add_node(num_cpus=1, resources={"place": 1}) for _ in range(2)]
    runners = {"num_env_runners": 2, "num_cpus_per_env_runner": 1, "custom_resources_per_env_runner": {"place": 1}}
    algo = config(**runners).build_algo()
    rows = []

    def train():
        rows.append(algo.train())
        return algo.env_runner_group.num_healthy_remote_workers()

    train(), train()
    assert {node for node, _ in living("DistillEnvRunner")} == {node.node_id for node in places}
    nodes.remove_node(places[0], allow_graceful=False)
    wait_for(lambda: train() == 1)  # the other one goes on
    new = nodes.add_node(num_cpus=1, resources={"place": 1})
    wait_for(lambda: train() == 2 and rows[-1]["num_env_steps_sampled_lifetime"] >= ENV_STEPS)
    assert new.node_id in {node for node, _ in living("DistillEnvRunner")}
    taught = algo.env_runner_group.foreach_env_runner(
        lambda runner: runner._teacher is not None, local_env_runner=False
    )
    assert taught == [True, True]
    assert_counters(rows)
    result = compare("cartpole", algo, "CartPole-v1", num_episodes=20, seed=FRESH_SEED)
    algo.stop()
    assert result.return_ratio >= 0.95


class Wide(gym.ObservationWrapper):
    """CartPole in 40 KB of zeros."""

    NUM_ZEROS = 10_000

    def __init__(self, config):
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4 + self.NUM_ZEROS,), np.float32)

    def observation(self, obs):
        return np.concatenate([obs, np.zeros(self.NUM_ZEROS, np.float32)])


@pytest.mark.parametrize("spills", [True, False], ids=["that spills", "beside a full disk"])
def test_a_full_object_store_loses_nothing(tmp_path, spills):
    # What may be under way (2 EnvRunners × 2 fragments of 41 MB), and what is learned from, is more than it holds.
    store = {"object_store_memory": 80 * 2**20, "object_spilling_directory": str(tmp_path)}
    # Ray does not spill to a disk of which a larger share is in use, however full the one of this machine is.
    settings = {"max_io_workers": 1, "local_fs_capacity_threshold": 1.0 if spills else 0.0}
    with only_ray(num_cpus=2, **store, _system_config=settings):
        cartpole = load_teacher("cartpole")
        teacher = Teacher.from_callable(
            lambda obs: cartpole.q_values(obs[:, :4]),
            observation_space=Wide({}).observation_space,
            action_space=cartpole.action_space,
        )
        settings = config(num_env_runners=2, num_envs_per_env_runner=8, rollout_fragment_length=128)
        settings.environment(Wide).training(replay_buffer_config={"capacity": 2_000}, training_intensity=8)
        algo = settings.distillation(teacher=teacher).build_algo()
        rows, spilled = [algo.train()], False
        while rows[-1]["num_env_steps_sampled_lifetime"] < (5_000 if spilled == spills else 50_000):
            rows.append(algo.train())
            spilled |= any(path.is_file() for path in tmp_path.rglob("*"))
        assert spilled == spills
        assert_counters(rows, intensity=8)
        algo.stop()


# --- In a sweep -------------------------------------------------------------------------------------------------------


def test_a_dead_node_sends_its_trial_back_to_its_last_checkpoint_elsewhere(nodes, tmp_path, monkeypatch):
    places = [nodes.add_node(num_cpus=1, resources={"place": 1}) for _ in range(2)]
    space = {"fcnet_hiddens": tune.choice([[16]])}
    sweep = Sweep(
        "cartpole",
        "CartPole-v0",  # whose episodes end after 200 steps
        num_samples=1,
        num_seeds=1,
        search="random",
        env_steps=8_000,
        config={"custom_resources_for_main_process": {"place": 1}, **BEFORE_LEARNING},
        space=lambda teacher, **facts: space,
        storage_path=str(tmp_path),
    )
    monkeypatch.setattr("rllib_kd.sweeps.sweep.NUM_EPISODES", 10)  # of teacher and random policy

    def rows():
        files = list(Path(sweep.path).glob("*/result.json"))
        return [json.loads(line) for line in files[0].read_text().splitlines()] if files else []

    def wait_and_remove():
        wait_for(lambda: len(rows()) >= 3)
        pid = rows()[-1]["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that the trial does not end before its node is lost
        try:
            (node_id,) = (actor["Address"]["NodeID"] for actor in actors() if actor["Pid"] == pid)
            assert node_id in {node.node_id for node in places}
            remove_node(nodes, node_id)
        finally:  # a stopped process would never end by itself
            with contextlib.suppress(ProcessLookupError):  # it may have died with its node
                os.kill(pid, signal.SIGKILL)

    removing = in_background(wait_and_remove)
    result = sweep.run()
    removing.result(timeout=60)
    assert not result.failed
    (student,) = result.students
    assert student.finished
    assert_counters(rows()[-4:])
    assert list(Path(sweep.path).glob("*/error.txt"))
    iterations = [row["training_iteration"] for row in rows()]
    assert iterations[-1] == 8
    assert_goes_on(iterations, 8)
