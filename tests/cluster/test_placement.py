"""Where actors go on a cluster of several nodes."""

import json

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


def test_env_runners_go_where_the_config_says(nodes, tmp_path):
    node = nodes.add_node(num_cpus=3, resources={"runner": 2})
    nodes.add_node(num_cpus=3)
    config = {"placement_strategy": "SPREAD", "custom_resources_per_env_runner": {"runner": 1}}
    param_space = {"env": "CartPole-v1", "teacher": "cartpole", "num_baseline_episodes": 0, "callbacks_class": Places}
    (result,) = tune.Tuner(
        "DistillDQN",
        param_space={**param_space, "num_env_runners": 2, **config},
        run_config=tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 1}, verbose=0),
    ).fit()
    assert result.error is None
    found = json.loads(json.dumps({name: result.metrics[name] for name in ("main", "runners")}))
    assert found["runners"] == [node.node_id] * 2  # by their resource
    assert found["main"] != node.node_id  # which has a CPU for it, too, and would have it with PACK
