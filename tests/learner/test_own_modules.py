"""Students and losses of the user's own, of which nothing is known but their interface."""

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import QNetAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import nn

from rllib_kd import DistillDQNTorchLearner
from rllib_kd.env_runner.single_agent import DistillEnvRunner
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.parts import last_linear
from tests.conftest import states
from tests.learner.learners import config_of, fragment, group_of, make_learner, q_values, student_of


class Squashed(DefaultDQNTorchRLModule):
    def compute_q_values(self, batch):
        obs = batch[Columns.OBS]
        return super().compute_q_values({**batch, Columns.OBS: obs.sign() * obs.abs().log1p()})


class TenTimes(DefaultDQNTorchRLModule):
    def compute_q_values(self, batch):
        return {QF_PREDS: 10.0 * super().compute_q_values(batch)[QF_PREDS]}


class WeightNorm(DefaultDQNTorchRLModule):
    def setup(self):
        super().setup()
        nn.utils.parametrizations.weight_norm(last_linear(self.af))


class Bounded(DefaultDQNTorchRLModule):
    def setup(self):
        super().setup()
        self.af.net.mlp.append(nn.Tanh())


class Normed(TorchRLModule, QNetAPI):
    """With batch norm and dropout, and without target networks."""

    def setup(self):
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

    def compute_q_values(self, batch):
        return {QF_PREDS: self.net(batch[Columns.OBS])}

    def _forward(self, batch, **kwargs):
        return {Columns.ACTIONS: self.compute_q_values(batch)[QF_PREDS].argmax(-1)}


def with_module(module_class, loss="kl", **distillation):
    config = config_of(loss, **distillation)
    spec = RLModuleSpec(module_class=module_class, model_config=config.model_config)
    return config.rl_module(rl_module_spec=spec)


def test_a_module_that_changes_its_inputs_learns_what_it_computes():
    learner = make_learner(with_module(Squashed))
    columns = {**fragment(), "obs": 50.0 + 20.0 * states(256)}
    columns["teacher_q"] = 0.2 * np.log1p(np.abs(columns["obs"][:, :2]))
    for _ in range(10):
        results = learner.update([columns], num_gradient_steps=100)
    assert results["default_policy"]["kl_to_teacher"].peek() < 0.05
    assert results["default_policy"]["teacher_agreement"].peek() > 0.9


@pytest.mark.parametrize("module_class", [TenTimes, WeightNorm, Bounded])
def test_a_module_that_changes_its_outputs_learns_what_it_computes(module_class):
    learner = make_learner(with_module(module_class, "mse"))
    columns = fragment()
    columns["teacher_q"] = (0.5 * np.tanh(columns["obs"][:, :2]) + 0.3).astype(np.float32)
    for _ in range(10):
        learner.update([columns], num_gradient_steps=100)
    error = (q_values(learner, columns["obs"]) - torch.as_tensor(columns["teacher_q"])).square().mean()
    assert error < 0.05 * columns["teacher_q"].var()


def test_students_act_and_are_measured_as_in_evaluations():
    learner = make_learner(with_module(Normed, td_coeff=0.0))
    module = learner.module["default_policy"]
    assert not module.training
    learner.update([fragment()], num_gradient_steps=3)
    assert not module.training
    before = module.net[1].running_mean.clone()
    learner.update([fragment(seed=1)], num_gradient_steps=0)  # agreement alone
    group_of(learner).q_regret()
    assert torch.equal(module.net[1].running_mean, before)
    assert student_of(learner).training_weights is None  # the statistics are not those of an average
    env_runner = DistillEnvRunner(config=with_module(Normed))
    assert not env_runner.module.training


def test_td_needs_target_networks():
    with pytest.raises(ValueError, match=r"Normed has no forward_target\(\)\. Use .*TargetNetworkAPI.* set td_coeff=0"):
        make_learner(with_module(Normed, td_coeff=1.0))


def test_a_loss_that_writes_into_its_batch_changes_it_for_no_other_student():
    seen = []

    class Halving(DistillDQNTorchLearner):
        def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
            seen.append(batch["teacher_q"].clone())
            batch["teacher_q"].div_(2)
            return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

    sizes = {"a": {"fcnet_hiddens": [4]}, "b": {"fcnet_hiddens": [8]}}
    learner = make_learner(config_of("mse", students=sizes), Halving)
    learner.update([fragment()], num_gradient_steps=1)
    assert len(seen) == 2
    assert torch.equal(*seen)


class Descends(DistillDQNTorchLearner):
    def configure_optimizers_for_module(self, module_id, config=None):
        params = self.get_parameters(self._module[module_id])
        optimizer = torch.optim.SGD(params, lr=0.0)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=0.0)


@pytest.mark.parametrize(
    ("model_config", "distillation"),
    [
        ({"fcnet_hiddens": [4]}, {"restarts": 2}),
        ({"use_lstm": True, "fcnet_hiddens": [4], "lstm_cell_size": 4}, {"restarts": 2}),
        ({}, {"students": {"a": {"fcnet_hiddens": [4]}, "b": {"fcnet_hiddens": [8]}}}),
    ],
)
def test_every_student_has_the_optimizer_of_a_learner_class(model_config, distillation):
    learner = make_learner(config_of(**distillation).rl_module(model_config=model_config), Descends)
    assert [type(own.optimizer) for own in group_of(learner).learners] == [torch.optim.SGD] * 2
    assert [own.optimizer for own in group_of(learner).learners] == list(learner._named_optimizers.values())
