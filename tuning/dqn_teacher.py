"""Train a DQN teacher for an environment with vectors, by this package's loop without a teacher.

rllib train file tuning/dqn_teacher.py -n teacher [--env CartPole-v1]

~/ray_results/teacher is a teacher then: the checkpoint with the best evaluation. CartPole-v1 takes some two minutes on
two CPU cores. Harder tasks need more env steps: tuning/lunarlander_teacher.py is such a file, for LunarLander-v3.
"""

from rllib_kd import DistillDQNConfig

ENV_STEPS = 50_000

config = (
    DistillDQNConfig()
    .environment("CartPole-v1")
    .rl_module(model_config={"fcnet_hiddens": [128, 128], "fcnet_activation": "relu"})
    .training(
        n_step=3,
        gamma=0.99,
        lr=[[0, 5e-4], [ENV_STEPS, 1e-5]],  # env steps
        grad_clip=10.0,
        train_batch_size_per_learner=128,
        training_intensity=64.0,  # rows learned from / env steps sampled
        num_steps_sampled_before_learning_starts=1_000,
        replay_buffer_config={"capacity": 100_000},
        target_network_update_freq=0,  # env steps; 0: after each gradient step
        tau=0.01,
        epsilon=[[0, 1.0], [8_000, 0.05]],  # env steps
    )
    .distillation(teacher=None, td_coeff=1.0)
    .evaluation(evaluation_interval=1, evaluation_duration=20)
    .reporting(min_sample_timesteps_per_iteration=5_000)
)
stop = {"num_env_steps_sampled_lifetime": ENV_STEPS}
