"""What a Ray starts with, without starting one."""

import pytest
import ray
from ray._private import parameter, services
from ray.runtime_env import RuntimeEnv
from ray.tune.execution import class_cache
from ray.tune.trainable import Trainable

from rllib_kd.experiment.connection import LocalRay, connection

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
