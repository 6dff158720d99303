"""Train a DQN teacher for highway-fast-v0 of highway-env, by this package's loop without a teacher.

rllib train file tuning/highway_teacher.py --checkpoint-freq 2 --storage-path FOLDER --experiment-name highway

FOLDER/highway is a teacher then: the checkpoint with the best evaluation. Needs `pip install -e '.[envpool,highway]'`:
envpool samples, gymnasium's environment, with 25 to 70 steps a second, evaluates. A return is the sum of 30 rewards in
[0, 1], fewer after a crash; "slower" at all times has 20.8 in envpool, a random policy 8.2.
"""

from rllib_kd import DistillDQNConfig

ENV_STEPS = 150_000

config = (
    DistillDQNConfig()
    .environment("envpool/highway-fast-v0")
    .env_runners(num_envs_per_env_runner=16, rollout_fragment_length=4)
    .rl_module(model_config={"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"})
    .training(
        n_step=3,
        gamma=0.9,
        lr=[[0, 5e-4], [ENV_STEPS, 2e-5]],  # env steps
        train_batch_size_per_learner=64,
        training_intensity=64.0,  # rows learned from / env steps sampled
        num_steps_sampled_before_learning_starts=1_000,
        replay_buffer_config={"capacity": ENV_STEPS},
        target_network_update_freq=0,  # env steps; 0: after each gradient step
        tau=0.01,
        epsilon=[[0, 1.0], [15_000, 0.05], [ENV_STEPS, 0.01]],  # env steps
    )
    .distillation(teacher=None, td_coeff=1.0)
    .evaluation(evaluation_interval=2, evaluation_duration=50)
    .reporting(min_sample_timesteps_per_iteration=10_000)
    .debugging(seed=0)
)
stop = {"num_env_steps_sampled_lifetime": ENV_STEPS}
