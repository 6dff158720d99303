"""Small runs that can be captured, and what is compared of them when they are resumed."""

from rllib_kd import DistillDQNConfig


def resumable_config(**env_runners) -> DistillDQNConfig:
    env_runners = {"num_envs_per_env_runner": 4, "rollout_fragment_length": 16, **env_runners}
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(**env_runners)
        .training(
            train_batch_size_per_learner=32,
            num_steps_sampled_before_learning_starts=64,
            training_intensity=4,
            replay_buffer_config={"capacity": 300},  # it is full, and wraps around
        )
        .reporting(min_sample_timesteps_per_iteration=64)
        .rl_module(model_config={"fcnet_hiddens": [8], "fcnet_activation": "relu"})
        # Within an episode, π changes from the teacher to the student.
        .distillation(teacher="cartpole", num_baseline_episodes=0, teacher_fraction=[[0, 1.0], [800, 0.0]])
        .debugging(seed=0)
    )


def td_config() -> DistillDQNConfig:
    return (
        resumable_config(gym_env_vectorize_mode="vector_entry_point")
        .training(
            replay_buffer_config={"alpha": 0.6},
            n_step=3,
            target_network_update_freq=150,
            lr=[[0, 3e-3], [1_000, 1e-3]],
        )
        .distillation(td_coeff=0.5, kd_coeff=[[0, 1.0], [1_000, 0.5]])
    )


def weights(algo):
    return {
        f"{module_id}/{name}": array
        for module_id, module in algo.learner_group.get_weights().items()
        for name, array in module.items()
    }


def differ(first, second):
    return any((first[name] != second[name]).any() for name in first)
