"""EnvRunners that sample a small environment."""

import gymnasium as gym
import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_kd import DistillDQNConfig, DistillEnvRunner, load_teacher
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from rllib_kd.wire import receive

ALL_COLUMNS = DISTILLATION_COLUMNS + TD_COLUMNS


class Silent(RLlibCallback):
    """Does nothing, but asks for RLlib's episodes."""

    def on_episode_step(self, **kwargs):
        pass


class Counting(gym.Env):
    """Observes the step's number, ends after `length` steps, and pays a reward of that number."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config):
        self.length, self.fails_at, self.mark = config["length"], config.get("fails_at"), config.get("mark")
        self.total = 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.t += 1
        self.total += 1
        if self.total == self.fails_at and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()  # once and never again
            raise RuntimeError("the simulator has crashed")
        return np.array([self.t], np.float32), float(self.t), self.t == self.length, False, {}


def make_runner(config: DistillDQNConfig, teacher=None, *, worker_index=0) -> DistillEnvRunner:
    config = config.copy(copy_frozen=False)
    config.validate()
    runner = DistillEnvRunner(config=config, worker_index=worker_index)
    runner.set_teacher(teacher or load_teacher(config.teacher))
    return runner


def sample(runner, names=ALL_COLUMNS, *, teacher_fraction=1.0, epsilon=0.0, num_shards=1):
    refs, metrics = runner.sample_columns(
        teacher_fraction=teacher_fraction, epsilon=epsilon, names=names, num_shards=num_shards
    )
    return [receive(ref) for ref in refs], metrics
