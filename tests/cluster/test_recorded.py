"""Distilling from recorded rows on several nodes, one of which is lost in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from rllib_kd import load_teacher
from tests.background import in_background, wait_for
from tests.cluster.test_faults import LEARNER, assert_goes_on, living, remove_node
from tests.offline.labelled import episodes, recorded_config, write


@pytest.mark.slow
def test_a_lost_node_of_a_learner_sends_a_run_back_to_its_last_checkpoint(nodes, tmp_path):
    for _ in range(2):  # one of them is spare
        nodes.add_node(num_cpus=1, resources={"learner": 1})
    config = recorded_config(write(tmp_path / "labelled", episodes(load_teacher("cartpole"))), "cartpole")
    config.learners(num_learners=1, num_cpus_per_learner=1, custom_resources_per_learner={"learner": 1})
    enough = tmp_path / "enough"

    def rows() -> list[dict[str, Any]]:
        return [json.loads(line) for path in tmp_path.rglob("result.json") for line in path.read_text().splitlines()]

    def lose_a_node() -> None:
        try:
            wait_for(lambda: len(rows()) >= 2)
            ((lost, _),) = living(LEARNER)
            remove_node(nodes, lost)
            wait_for(lambda: [node for node, _ in living(LEARNER) if node != lost])
            before = len(rows())
            wait_for(lambda: len(rows()) >= before + 2)
        finally:
            enough.touch()

    losing = in_background(lose_a_node)
    (result,) = tune.Tuner(
        "DistillDQN",
        param_space=config,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "results"),
            stop=lambda trial, result: enough.exists(),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    ).fit()
    losing.result(timeout=60)
    assert result.error is None
    assert "A Learner has died" in next(Path(result.path).glob("error.txt")).read_text()
    iterations = [row["training_iteration"] for row in rows()]
    assert_goes_on(iterations, max(iterations))
    epochs = [row["distillation"]["num_epochs"] for row in rows()]
    assert epochs == sorted(epochs)
    assert {row["distillation"]["num_rows"] + row["distillation"]["num_rows_held_out"] for row in rows()} == {3_000}
