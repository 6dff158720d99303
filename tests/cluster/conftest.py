"""Several nodes on this machine."""

from contextlib import contextmanager

import pytest
import ray
from ray.cluster_utils import Cluster

from rllib_kd import _rllib
from tests.conftest import forked_workers, start_ray


@contextmanager
def _without_the_shared_ray():
    was_running = ray.is_initialized()
    ray.shutdown()
    try:
        yield
    finally:
        ray.shutdown()
        if was_running:
            start_ray(address="local", num_cpus=4, include_dashboard=False)


@contextmanager
def only_ray(**kwargs):
    """A Ray of its own, in the place of the one that the other tests share."""
    with _without_the_shared_ray():
        start_ray(address="local", include_dashboard=False, **kwargs)
        yield


@pytest.fixture
def nodes():
    """A cluster of several raylets, of which a dead one is missed after three seconds. The head has two CPUs.

    The workers of nodes that tests add are forks too, which saves six CPU-seconds of imports for each.
    """
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": {"health_check_period_ms": 500}}
    with _without_the_shared_ray(), forked_workers():
        with _rllib.few_daemons(log_monitor=False):
            cluster = Cluster(initialize_head=True, head_node_args=head)
        start_ray(address=cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()  # resets the key-value store of this process: before the shared Ray starts again
