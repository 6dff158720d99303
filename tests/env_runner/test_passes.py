"""Other functions act in a module's place, and the module is as before afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rllib_kd.env_runner.legal import choosing_legally
from rllib_kd.env_runner.passes import replaced_passes
from tests.conftest import make_q_module
from tests.env_runner.runners import Silent

PASS = "forward_exploration"


def test_a_pass_of_this_object_alone_is_replaced():
    module, other = make_q_module(), make_q_module()
    with replaced_passes(module, {PASS: lambda batch: "π"}):
        assert module.forward_exploration({}) == "π"
        assert PASS not in vars(other)
    assert PASS not in vars(module)


def test_after_an_error_too_a_pass_that_the_object_had_itself_is_back():
    module = SimpleNamespace(forward_exploration="its own")
    with pytest.raises(ZeroDivisionError), replaced_passes(module, {PASS: lambda: 1 / 0}):
        module.forward_exploration()
    assert module.forward_exploration == "its own"


def test_a_module_without_pytorch_chooses_as_it_does():
    module = SimpleNamespace(forward_exploration=lambda batch: {"actions": np.zeros(1)})
    with choosing_legally(module, lambda batch: np.ones((1, 2), bool)):
        assert isinstance(module.forward_exploration({})["actions"], np.ndarray)


def test_the_behaviour_policy_acts_although_a_callback_has_replaced_the_pass(cartpole_config, build):
    def replace(*, algorithm, **kwargs):
        module = algorithm.env_runner.module
        module.forward_exploration = module.forward_exploration  # as torch.compile() does

    algo = build(cartpole_config.callbacks(Silent, on_algorithm_init=replace))
    assert not algo.env_runner._samples_directly
    assert algo.train()["num_env_steps_sampled_lifetime"] > 0
    assert PASS in vars(algo.env_runner.module)
