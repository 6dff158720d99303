"""Policies of several agents in checkpoints, whose connectors are not read: those that would be missed are refused."""

import shutil

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.connectors.common import AgentToModuleMapping
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, FlattenObservations, MeanStdFilter

from rllib_kd import load_teacher
from rllib_kd.observations.connectors import OneVector
from rllib_kd.observations.pipeline import Normalize, ObservationPipeline
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module
from tests.rllib_checkpoints import Doubled, write_checkpoint

MAPPING = {"rl_module_specs": {"p0"}, "agent_to_module_mapping_fn": None}


def write(folder, *connectors):
    """A checkpoint of one policy of several agents, behind these connectors; return the policy's folder."""
    write_checkpoint(folder, "CartPole-v1")
    policy = folder / "learner_group/learner/rl_module/p0"
    make_q_module(fcnet_hiddens=[8]).save_to_path(str(policy))
    spaces = (gym.spaces.Dict(a=space) for space in (CARTPOLE_OBS, CARTPOLE_ACTIONS))
    pipeline = EnvToModulePipeline(*spaces, connectors=[*connectors, AgentToModuleMapping(**MAPPING)])
    pipeline.save_to_path(str(folder / "env_runner/env_to_module_connector"), state=pipeline.get_state())
    return policy


@pytest.mark.parametrize("trust_checkpoint", [False, True])
@pytest.mark.parametrize("make", [lambda: MeanStdFilter(multi_agent=True), Doubled], ids=["filter", "custom"])
def test_connectors_that_change_observations_are_refused(tmp_path, make, trust_checkpoint):
    policy = write(tmp_path / "whole", make())
    name = type(make()).__name__
    with pytest.raises(
        ValueError, match=rf"{name} change what several agents observe.*wrapper.*copy.*Normalize\(mean, std, clip"
    ):
        load_teacher(policy, trust_checkpoint=trust_checkpoint)
    shutil.copytree(policy, tmp_path / "copy")  # as the message says
    normalize = Normalize(np.zeros(4), np.ones(4), 10.0)
    pipeline = ObservationPipeline(CARTPOLE_OBS, (normalize,))
    assert load_teacher(tmp_path / "copy", pipeline=pipeline).pipeline.stages == (normalize,)


@pytest.mark.parametrize(
    "connectors", [(), (FlattenObservations(multi_agent=True),), (OneVector(multi_agent=True),)], ids=len
)
def test_other_connectors_are_no_obstacle(tmp_path, connectors):
    assert load_teacher(write(tmp_path, *connectors)).pipeline is None
