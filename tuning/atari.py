"""Distil an Atari teacher into the smallest network of Rusu et al. 2015, 3.7 % of its size, and compare the two.

rllib train file tuning/atari.py --teacher CHECKPOINT [--env ALE/Breakout-v5]

One EnvRunner labels states while the Learner learns: two CPU cores, about half an hour, 5 GB of memory. With more
cores, and a GPU for the Learner: --config '{"num_env_runners": 15, "num_gpus_per_learner": 1}'.
"""

from rllib_kd import DistillDQNConfig

config = (
    DistillDQNConfig()
    # ALE's v5 makes actions stick; most teachers were trained without.
    .environment("ALE/Pong-v5", env_config={"repeat_action_probability": 0.0})
    .env_runners(num_env_runners=1)
    .distillation(student="rusu-net3", num_baseline_episodes=4)
    .reporting(min_sample_timesteps_per_iteration=5_000)
)
stop = {"num_env_steps_sampled_lifetime": 1_800_000}
compare_episodes = 10  # of each, played at the end
