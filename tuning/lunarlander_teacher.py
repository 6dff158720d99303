"""Train a DQN teacher for LunarLander-v3, by this package's loop without a teacher.

rllib train file tuning/lunarlander_teacher.py --checkpoint-freq 2 --storage-path FOLDER --experiment-name lunarlander

FOLDER/lunarlander is a teacher then: the checkpoint with the best evaluation. They differ by 80 points, so that each
evaluation has many episodes. Needs `pip install -e '.[box2d]'`.
"""

from rllib_kd import DistillDQNConfig

ENV_STEPS = 300_000

config = (
    DistillDQNConfig()
    .environment("LunarLander-v3")
    .env_runners(num_envs_per_env_runner=16)
    .rl_module(model_config={"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"})
    .training(
        n_step=3,
        gamma=0.99,
        lr=[[0, 5e-4], [ENV_STEPS, 1e-5]],  # env steps
        grad_clip=10.0,
        train_batch_size_per_learner=128,
        training_intensity=128.0,  # rows learned from / env steps sampled
        num_steps_sampled_before_learning_starts=5_000,
        replay_buffer_config={"capacity": 200_000},
        target_network_update_freq=0,  # env steps; 0: after each gradient step
        tau=0.005,
        epsilon=[[0, 1.0], [50_000, 0.02]],  # env steps
    )
    .distillation(teacher=None, td_coeff=1.0)
    .evaluation(evaluation_interval=2, evaluation_duration=100)
    .reporting(min_sample_timesteps_per_iteration=30_000)
    .debugging(seed=0)
)
stop = {"num_env_steps_sampled_lifetime": ENV_STEPS}
