"""What a Ray starts with, without starting one."""

from unittest.mock import MagicMock

import pytest
import ray
from ray._private import parameter, services
from ray.runtime_env import RuntimeEnv
from ray.tune import PlacementGroupFactory
from ray.tune.execution import class_cache
from ray.tune.trainable import Trainable

from rllib_kd.experiment.connection import LocalRay, bundles_of, connection

SERVER_OF_DASHBOARD = services.start_api_server


@pytest.fixture
def daemons(monkeypatch):
    """Those that `ray.init()` would start, as it finds them when `connection()` calls it."""
    found = set()

    def init(**arguments):
        params = parameter.RayParams()
        starts = {
            "autoscaler": not params.no_monitor,
            "log monitor": params.include_log_monitor is not False,
            "server": services.start_api_server is SERVER_OF_DASHBOARD,
        }
        found.update(name for name, is_started in starts.items() if is_started)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    return found


@pytest.mark.parametrize(
    ("bundles", "named", "flag"),
    [
        ([{"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}], None, None),
        ([{"CPU": 1.0}, {"CPU": 3.0}], "3 CPUs on one node", "cpus"),
        ([{"CPU": 4.0, "GPU": 1.0}], "4 CPUs and 1 GPUs on one node", "cpus"),  # of two
        ([{"CPU": 1.0, "GPU": 2.0}], "1 CPUs and 2 GPUs on one node", "gpus"),
    ],
)
def test_a_trial_waits_aloud_for_a_node_that_is_large_enough(daemons, monkeypatch, capsys, bundles, named, flag):
    nodes = [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0}, {"CPU": 8.0}]
    nodes = [{"Resources": node, "Alive": node["CPU"] < 8} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("ray.cluster_utils.Cluster", MagicMock())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    with connection({"CPU": 4.0}, bundles=bundles, address="auto"):
        note = capsys.readouterr().err
    assert (note == "") == (named is None)
    if named is not None:
        assert f"note: training waits until the cluster has a larger node. A trial needs {named}" in note
        assert "Lower num_env_runners" in note
        with (
            pytest.raises(ValueError, match=f"{named}.* raise --ray-num-{flag}"),
            connection({"CPU": 4.0}, bundles=bundles, local=LocalRay(num_cpus=2, num_gpus=1, num_nodes=2)),
        ):
            pass


def test_the_bundles_of_a_trial_are_for_one_node_each_if_it_is_not_packed():
    bundles = [{"CPU": 1.0}, {"CPU": 2.0}]
    assert bundles_of(PlacementGroupFactory(bundles)) == bundles
    assert bundles_of(PlacementGroupFactory(bundles, strategy="STRICT_PACK")) == [{"CPU": 3.0}]


def runtime_env_of_trials() -> str:
    return RuntimeEnv(**class_cache._ActorClassCache().get(Trainable)._default_options["runtime_env"]).serialize()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"log_level": "INFO"}, {"log monitor"}),
        ({"needs": {}}, {"autoscaler", "log monitor", "server"}),  # of Ray Serve
        ({"local": LocalRay(dashboard=True)}, {"autoscaler", "log monitor", "server"}),
        ({"address": "auto"}, {"autoscaler", "log monitor", "server"}),
    ],
)
def test_a_local_ray_starts_with_the_daemons_that_it_needs(daemons, options, expected):
    with connection(**{"needs": {"CPU": 1.0}, **options}):
        assert daemons == expected
        assert services.start_api_server is SERVER_OF_DASHBOARD
        assert not parameter.RayParams().no_monitor


def test_trials_run_in_the_workers_that_a_local_ray_has_started_ahead(daemons, monkeypatch):
    monkeypatch.delenv("PL_DISABLE_FORK", raising=False)
    others = runtime_env_of_trials()
    with connection({"CPU": 1.0}):
        assert runtime_env_of_trials() == "{}"  # as that of workers that wait
    assert runtime_env_of_trials() == others != "{}"
    with connection({"CPU": 1.0}, address="auto"):
        assert runtime_env_of_trials() == others
