"""Checks of Learners: the user's own class, their number, and who reads from them while they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.rllib.algorithms.dqn import DQNConfig

from rllib_kd import _rllib
from rllib_kd.algorithm.checks.refused import refuse
from rllib_kd.learner.learner import DistillDQNTorchLearner

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

#: Hooks of RLlib's Learner that are not called: all gradient steps of an iteration are one tight loop.
_UNCALLED = (
    "apply_gradients",
    "compute_gradients",
    "compute_losses",
    "postprocess_gradients",
    "postprocess_gradients_for_module",
)
_BY_EPSILON = "Students explore by epsilon. Set it to a number or a schedule"
#: Settings of RLlib's that no code reads here, with what to do instead, if there is something.
_UNREAD = {
    "torch_skip_nan_gradients": "A loss that is not finite ends the run. Lower lr",
    "log_gradients": "Gradients are not measured. Set grad_clip if they are too large",
    _rllib.LR_SCHEDULERS: "Set lr to a schedule, like [[0, 1e-3], [100000, 1e-4]]",
    _rllib.GRAD_SCALER: "Set distillation(bf16=True), which needs no scaler",
    **dict.fromkeys(("noisy", "sigma0", "categorical_distribution_temperature"), _BY_EPSILON),
    "hiddens": "Set rl_module(model_config={'head_fcnet_hiddens': [...]})",
    "optimizer": "Set adam_epsilon, or override configure_optimizers_for_module() in a Learner class of your own",
    "num_epochs": "Set training_intensity",
    "minibatch_size": "Set train_batch_size_per_learner",
    "shuffle_batch_per_epoch": "",  # rows are drawn at random
    "torch_compile_learner": "",
    "num_aggregator_actors_per_learner": "",
    "count_steps_by": "Env steps are counted. Divide by the agents that act in each",
}


def check_unread(config: DistillationConfig) -> None:
    """Check that settings that no code reads here have RLlib's defaults.

    Raises:
        ValueError: one was set.
    """
    defaults = vars(DQNConfig())
    settings = ((name, getattr(config, name) != defaults[name], remedy) for name, remedy in _UNREAD.items())

    def message(setting: str, remedy: str) -> str:
        return f"DistillDQN does not read {setting}. {f'{remedy}, or leave' if remedy else 'Leave'} it out."

    refuse(config, settings, message)


def check_learner_class(config: DistillationConfig) -> None:
    """Check that a Learner class extends that of this package, by hooks that are called.

    Raises:
        ValueError: it does not.
    """
    cls = config.learner_class
    if not (isinstance(cls, type) and issubclass(cls, DistillDQNTorchLearner)):
        raise ValueError(
            f"`learner_class` must be a DistillDQNTorchLearner, got {getattr(cls, '__name__', repr(cls))}."
        )
    for name in _UNCALLED:
        if getattr(cls, name) is not getattr(DistillDQNTorchLearner, name):
            raise ValueError(
                f"{cls.__name__} overrides {name}(), which DistillDQN does not call: it makes all gradient steps of an "
                "iteration in one loop. Override compute_loss_for_module(), configure_optimizers_for_module() or "
                "after_gradient_based_update() instead."
            )


def check_learners(config: DistillationConfig) -> None:
    """Check that there are environments, and so rows, for each Learner."""
    if config.in_evaluation or config.is_offline:
        return  # recorded rows are split evenly
    if config.num_envs_per_env_runner < config.num_learners:
        raise ValueError(
            f"Each of the {config.num_learners} Learners gets the rows of different environments. Set "
            f"num_envs_per_env_runner to at least {config.num_learners}, got {config.num_envs_per_env_runner}."
        )


def check_parallel_evaluation(config: DistillationConfig) -> None:
    """Check that evaluations beside training get whole students: RLlib then trains in a second thread.

    A remote Learner sends its weights between two updates; those of a local one can be read at any moment.

    Raises:
        ValueError: the Learner is local, or there are several students or restarts.
    """
    if config.in_evaluation or not config.evaluation_parallel_to_training:
        return
    name = "evaluation_parallel_to_training"
    settings = (
        (
            "students",
            bool(config.students),
            f"they are evaluated one after the other, and would change in between. Set {name}=False",
        ),
        (
            "restarts",
            config.num_copies > 1,
            f"copies are compared before each evaluation, and would change during the comparison. Set {name}=False",
        ),
        (
            "num_learners",
            config.num_learners == 0,
            f"evaluations would read weights in the middle of an update. Set num_learners=1, or {name}=False",
        ),
    )
    refuse(config, settings, lambda setting, remedy: f"{name}=True is not supported with {setting}: {remedy}.")
