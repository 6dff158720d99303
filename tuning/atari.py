"""Distil an Atari teacher into the smallest network of Rusu et al. 2015, 3.7 % of its size, and compare the two.

rllib train file tuning/atari.py --teacher CHECKPOINT [--env ALE/Breakout-v5]

The settings are for a few CPU cores. With more, and a GPU for the Learner: --config '{"num_env_runners": 15,
"num_gpus_per_learner": 1, "training_intensity": 32, "replay_buffer_config": {"capacity": 500000}}'.
"""

from rllib_kd import DistillDQNConfig

config = (
    DistillDQNConfig()
    # ALE's v5 makes actions stick; most teachers were trained without.
    .environment("ALE/Pong-v5", env_config={"repeat_action_probability": 0.0})
    .env_runners(rollout_fragment_length=64)  # the longer, the fewer frames are sent twice
    .training(
        lr=5e-4,
        train_batch_size_per_learner=64,
        training_intensity=8,  # rows learned from / env steps sampled
        num_steps_sampled_before_learning_starts=2_000,  # env steps
        replay_buffer_config={"capacity": 100_000},  # 7.6 KB a state
    )
    .distillation(
        loss="kl",
        temperature=0.01,  # return units; Rusu et al. 2015, for rewards that were clipped in training
        rollout_policy="mixture",
        teacher_fraction=[[0, 1.0], [50_000, 0.0]],  # env steps
        student="rusu-net3",
        num_baseline_episodes=4,
    )
    .reporting(min_sample_timesteps_per_iteration=2_000)
)
stop = {"num_env_steps_sampled_lifetime": 200_000}
compare_episodes = 10  # of each, played at the end
