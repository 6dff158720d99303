"""Where actors go on a cluster of several nodes."""

import json
import time

import pytest
import ray
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback

pytestmark = pytest.mark.slow


class Places(RLlibCallback):
    """Reports the node of the main process, and of each EnvRunner."""

    def on_train_result(self, *, algorithm, result, **kwargs):
        def place(env_runner=None):
            return ray.get_runtime_context().get_node_id()

        result["runners"] = algorithm.env_runner_group.foreach_env_runner(place, local_env_runner=False)
        result["main"] = place()


def places(tmp_path, **config):
    deadline = time.monotonic() + 300
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the actors of the last trial have not gone"
        time.sleep(0.1)
    param_space = {"env": "CartPole-v1", "teacher": "cartpole", "num_baseline_episodes": 0, "callbacks_class": Places}
    (result,) = tune.Tuner(
        "DistillDQN",
        param_space={**param_space, "num_env_runners": 2, **config},
        run_config=tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 1}, verbose=0),
    ).fit()
    assert result.error is None
    return json.loads(json.dumps({name: result.metrics[name] for name in ("main", "runners")}))


def test_env_runners_go_where_the_config_says(nodes, tmp_path):
    node = nodes.add_node(num_cpus=3, resources={"runner": 2})
    nodes.add_node(num_cpus=3)
    for strategy, count in (("SPREAD", 3), ("PACK", 1)):
        found = places(tmp_path / strategy, placement_strategy=strategy)
        assert len({found["main"], *found["runners"]}) == count
    chosen = places(tmp_path / "chosen", custom_resources_per_env_runner={"runner": 1})
    assert chosen["runners"] == [node.node_id] * 2
