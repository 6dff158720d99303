"""A user's program, which is not run: mypy checks the types of what the public names give.

Ray's own types are Any here, since mypy skips Ray (pyproject.toml).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_kd import (
    DistillDQN,
    DistillDQNConfig,
    DistillDQNTorchLearner,
    DistillEnvRunner,
    LabelledData,
    Shrink,
    Sweep,
    Teacher,
    compare,
    compare_all,
    load_teacher,
    read_curves,
    search_space,
    summary_table,
    sweep_loggers,
    write_report,
)

if TYPE_CHECKING:
    from ray.rllib.core.rl_module.rl_module import RLModule
    from ray.tune import Callback
    from ray.tune.search.sample import Domain
    from torch import Tensor
    from typing_extensions import assert_type

    from rllib_kd.checkpoints.runs import Curve
    from rllib_kd.evaluation.result import Comparison, PolicyReport
    from rllib_kd.learner.objective import Objective
    from rllib_kd.networks.dqn_module import Support
    from rllib_kd.shrink.outcome import Shrunk, ShrunkStudent
    from rllib_kd.sweeps.report import ReportedSweep
    from rllib_kd.sweeps.result import SweptStudent
    from rllib_kd.wire import Outputs, Sample

    Result = dict[str, Any]

    # Train
    config = DistillDQNConfig()
    assert_type(config, DistillDQNConfig)
    assert_type(config.environment("CartPole-v1"), DistillDQNConfig)
    assert_type(config.offline_data(input_="rows"), DistillDQNConfig)
    assert_type(config.distillation(teacher="cartpole"), DistillDQNConfig)
    assert_type(config.env_runner_cls, type | None)
    assert_type(config.get_default_learner_class(), type)
    assert_type(config.get_rollout_fragment_length(), int)
    assert_type(config.get_state(), Result)
    algo = config.build_algo()
    assert_type(algo, DistillDQN)
    assert_type(DistillDQN(config), DistillDQN)
    assert_type(DistillDQN.get_default_config(), DistillDQNConfig)
    assert_type(algo.config, DistillDQNConfig)
    assert_type(algo.train(), Result)
    assert_type(algo.evaluate(), Result)
    assert_type(algo.get_module(), RLModule)
    assert_type(algo.get_copies(), dict[str, RLModule])
    assert_type(algo.num_env_steps, int)
    assert_type(algo.num_gradient_steps, int)
    assert_type(algo.get_state(), Result)
    assert_type(algo.save_to_path("student"), str)
    assert_type(DistillDQN.from_checkpoint("student"), DistillDQN)

    # Teachers
    teacher = load_teacher("cartpole")
    assert_type(teacher, Teacher)
    assert_type(teacher.num_parameters, float)
    assert_type(teacher.members, Sequence[Teacher])
    assert_type(teacher.model_config, Result | None)
    assert_type(teacher.support, Support | None)
    assert_type(teacher.outputs, Outputs)
    assert_type(teacher.source, str)
    assert_type(teacher.trained_return, float | None)
    assert_type(teacher.is_recurrent, bool)
    assert_type(teacher.to("cpu"), Teacher)
    assert_type(teacher.get_state(), Result)

    def q_values(obs: Tensor) -> Tensor:
        assert_type(teacher.first_q_values(obs), Tensor)
        return assert_type(teacher.q_values(obs), Tensor)

    seen, actions = teacher.observation_space, teacher.action_space
    assert_type(Teacher.from_callable(q_values, observation_space=seen, action_space=actions), Teacher)

    # Compare and report
    comparison = compare("cartpole", algo)
    assert_type(comparison, Comparison)
    assert_type(comparison.return_ratio, float)
    assert_type(comparison.student, PolicyReport)
    assert_type(comparison.to_dict(), Result)
    assert_type(compare_all("cartpole", {"small": "student"}), list[Comparison])
    assert_type(summary_table([comparison]), str)
    curves = read_curves("runs")
    assert_type(curves, dict[str, Curve])
    assert_type(curves["run"][0], tuple[float, float])
    assert_type(write_report([comparison], "report", curves=curves), Path)

    # Search
    space = search_space(teacher, median_gap=1.0, env_steps=1_000)
    assert_type(space, dict[str, Domain])
    callbacks = sweep_loggers(wandb_project="project")
    assert_type(callbacks, list[Callback])
    sweep = Sweep(teacher="cartpole", env="CartPole-v1", callbacks=callbacks)
    assert_type(sweep, Sweep)
    assert_type(sweep.space, Callable[..., Mapping[str, Domain]])
    assert_type(sweep.path, str)
    assert_type(sweep.run(), ReportedSweep)
    assert_type(sweep.run().students, Sequence[SweptStudent])
    shrunk = Shrink("cartpole", "CartPole-v1").run()
    assert_type(shrunk, Shrunk)
    assert_type(shrunk.best, ShrunkStudent | None)
    assert_type(shrunk.checkpoint, str | None)
    assert_type(shrunk.to_dict(), Result)

    # Parts to derive from
    class Learner(DistillDQNTorchLearner):
        def objective(self, module_id: str) -> Objective:
            assert_type(self.replay_arrays(), dict[str, np.ndarray])
            assert_type(self.update(num_gradient_steps=1), Result)
            assert_type(self.get_state(), Result)
            return assert_type(super().objective(module_id), Objective)

    class Runner(DistillEnvRunner):
        def set_state_and_sample(self, state: Mapping[str, Any], **kwargs: Any) -> Sample:
            self.set_teacher(teacher)
            assert_type(self.play_episodes(5, teacher=True), dict[str, list[float]])
            assert_type(self.sample(), list[Any])
            return assert_type(super().set_state_and_sample(state, **kwargs), Sample)

    data = LabelledData(config)
    assert_type(data, LabelledData)
    assert_type(data.num_rows, int)
    assert_type(data.fits, bool)
    assert_type(data.fill(), Iterator[list[Any]])
    assert_type(data.sample(32), list[list[Any]])
    assert_type(data.get_state(), Result)
