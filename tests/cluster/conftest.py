"""Several nodes on this machine."""

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.conftest import start_ray


@pytest.fixture
def nodes():
    """A cluster of several raylets, in the place of the Ray that the other tests share. The head has two CPUs."""
    was_running = ray.is_initialized()
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    start_ray(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    if was_running:
        start_ray(address="local", num_cpus=4, include_dashboard=False)
