"""Policies of RLlib with code of the user's: taught as they act, with their architecture where it is RLlib's."""

import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.models.torch.encoder import TorchMLPEncoder
from torch import nn

from rllib_kd.teachers.rllib import teacher_of_module
from tests.conftest import states
from tests.formats import q_values
from tests.teachers.test_actor_critics import MODEL, logits_of, make_policy

FAR = 100.0 * states(20)


def clamped(batch):
    return {**batch, "obs": batch["obs"].clamp(-5, 5)}


class Clipped(DefaultPPOTorchRLModule):
    """A policy of the user's, which differs from its layers far from 0 alone."""

    def _forward(self, batch, **kwargs):
        return super()._forward(clamped(batch), **kwargs)


class ClippedEncoder(TorchMLPEncoder):
    def _forward(self, inputs, **kwargs):
        return super()._forward(clamped(inputs), **kwargs)


def patched():
    module = make_policy()
    forward = module.forward_inference
    module.forward_inference = lambda batch: forward(clamped(batch))
    return module


def with_own_encoder():
    module = make_policy()
    module.encoder.actor_encoder.__class__ = ClippedEncoder
    return module


def with_a_layer_of_torch():
    module = make_policy()
    net = module.encoder.actor_encoder.net
    net.mlp = nn.Sequential(nn.Hardtanh(-5, 5), net.mlp)
    return module


def with_another_setting():
    module = make_policy(fcnet_activation="Softplus")
    module.encoder.actor_encoder.net.mlp[1] = nn.Softplus(threshold=2)
    return module


@pytest.mark.parametrize(
    "make", [lambda: make_policy(Clipped), patched, with_own_encoder, with_a_layer_of_torch, with_another_setting]
)
def test_code_of_the_users_that_acts_on_rare_observations_is_kept(make):
    module = make()
    module.eval()
    expected = torch.log_softmax(logits_of(module, FAR), -1)
    assert not torch.allclose(expected, torch.log_softmax(logits_of(make_policy(), FAR), -1), atol=1e-3)
    teacher = teacher_of_module(module, pipeline=None, source="x")
    assert q_values(teacher, FAR) == pytest.approx(expected.numpy(), abs=1e-5)


class OwnCritic(DefaultPPOTorchRLModule):
    def compute_values(self, batch, embeddings=None):
        return super().compute_values(batch, embeddings) + 1.0


class OwnLinear(nn.Linear):
    """A part of the user's."""


class OwnValueHead(DefaultPPOTorchRLModule):
    def setup(self):
        super().setup()
        self.vf = OwnLinear(6, 1)
        self.encoder.critic_encoder.own = OwnLinear(6, 6)


class OwnAuxiliaryHead(DefaultPPOTorchRLModule):
    def setup(self):
        self.first = OwnLinear(6, 1)
        super().setup()
        self.shared = nn.Sequential(self.encoder.actor_encoder, OwnLinear(6, 1))


@pytest.mark.parametrize("lstm", [{}, {"use_lstm": True, "max_seq_len": 5, "lstm_cell_size": 6}])
@pytest.mark.parametrize("cls", [OwnCritic, OwnValueHead, OwnAuxiliaryHead])
def test_other_parts_of_the_users_leave_the_policy_its_architecture(cls, lstm):
    teacher = teacher_of_module(make_policy(cls, **lstm), pipeline=None, source="x")
    assert teacher.model_config["fcnet_hiddens"] == MODEL["fcnet_hiddens"]
    assert teacher.is_recurrent == bool(lstm)
