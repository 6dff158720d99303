"""A config that learns small environments in seconds."""

from rllib_kd import DistillDQNConfig


def small_config(env):
    return (
        DistillDQNConfig()
        .environment(env)
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=16)
        .training(
            train_batch_size_per_learner=64,
            num_steps_sampled_before_learning_starts=128,
            training_intensity=16,
            gamma=0.0,
        )
        .reporting(min_sample_timesteps_per_iteration=512)
        .rl_module(model_config={"fcnet_hiddens": [32]})
        .distillation(num_baseline_episodes=0)
        .evaluation(evaluation_interval=None, evaluation_duration=3)
        .debugging(seed=0)
    )
