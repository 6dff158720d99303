"""Distil the packaged CartPole-v1 teacher into a student of under 4 % of its size, and compare the two.

rllib train file tuning/cartpole.py
"""

from rllib_kd import DistillDQNConfig

config = (
    DistillDQNConfig()
    .environment("CartPole-v1")
    .env_runners(gym_env_vectorize_mode="vector_entry_point")  # gymnasium's own vectorised CartPole
    .distillation(
        teacher="cartpole",  # or the path of a checkpoint
        # From 10,000 env steps on, the teacher keeps half of the actions. Left out, it keeps none from 60,000 on.
        teacher_fraction=[[0, 1.0], [10_000, 0.5]],
        compression=0.04,  # student parameters / teacher parameters, at most
    )
)
stop = {"num_env_steps_sampled_lifetime": 20_000}
compare_episodes = 100  # of each, played at the end
