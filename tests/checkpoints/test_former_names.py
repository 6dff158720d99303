"""RLModules and catalogs under the names that earlier versions of Ray gave them."""

import sys
from types import ModuleType

import pytest
import torch
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.bc.torch.default_bc_torch_rl_module import DefaultBCTorchRLModule
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule

from rllib_kd import load_teacher
from tests.conftest import states
from tests.formats import q_values
from tests.teachers.test_actor_critics import logits_of, make_policy


def under_a_former_name(monkeypatch, name, base):
    """A class of today's with another name, in "algorithm.module.Class"."""
    home, _, attribute = f"ray.rllib.algorithms.{name}".rpartition(".")
    module = ModuleType(home)
    vars(module)[attribute] = former = type(attribute, (base,), {"__module__": home})
    monkeypatch.setitem(sys.modules, home, module)
    return former


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("appo.torch.appo_torch_rl_module.APPOTorchRLModule", DefaultAPPOTorchRLModule),
        ("bc.torch.bc_torch_rl_module.BCTorchRLModule", DefaultBCTorchRLModule),
        ("marwil.torch.marwil_torch_rl_module.MARWILTorchRLModule", DefaultPPOTorchRLModule),
        ("marwil.marwil_catalog.MARWILCatalog", PPOCatalog),
        ("ppo.torch.ppo_torch_rl_module.PPOTorchRLModule", DefaultPPOTorchRLModule),
    ],
)
def test_they_load_as_todays(monkeypatch, tmp_path, name, base):
    former = under_a_former_name(monkeypatch, name, base)
    module = make_policy(catalog_class=former) if base is PPOCatalog else make_policy(former)
    path = module.save_to_path(str(tmp_path / "module"))
    monkeypatch.undo()
    expected = torch.log_softmax(logits_of(module, states(20)), -1)
    assert q_values(load_teacher(path), states(20)) == pytest.approx(expected.numpy(), abs=1e-5)
