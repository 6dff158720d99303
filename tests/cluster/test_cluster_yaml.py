"""cluster.yaml is a file that Ray's launcher takes, fits the package, opens no door, and scales."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import moto
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.fake_cloud import run_on, why_impossible

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def worker_types(cluster: dict[str, Any]) -> dict[str, Any]:
    types = cluster["available_node_types"]
    return {name: types[name] for name in types.keys() - {cluster["head_node_type"]}}


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every table within, with its value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield str(key), child
        yield from entries(child)


# --- The file ---------------------------------------------------------------------------------------------------------


def test_ray_takes_the_file(cluster):
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    validate_config(prepare_config(cluster))  # as `ray up` does, with the provider's defaults


def test_all_nodes_have_one_python_and_a_ray_that_pyproject_admits(cluster):
    images = [image for key, image in entries(cluster) if key.endswith("image")]
    assert len(images) == 2
    versions = {re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)(?:-gpu)?", image).groups() for image in images}
    [(ray_version, *python)] = versions
    required = Requirement(re.search(r'"(ray\[[^"]+)"', PYPROJECT)[1]).specifier
    assert Version(ray_version) in required
    assert ".".join(python) in SpecifierSet(re.search(r'requires-python = "(.+)"', PYPROJECT)[1])


def test_all_nodes_install_the_package_in_the_same_way(cluster):
    [(target, source)] = cluster["file_mounts"].items()
    assert (ROOT / source / "pyproject.toml").exists()
    [install] = cluster["setup_commands"]
    assert f" {target} " in install
    extra = re.search(r"\[(\w+)\]", install)[1]
    assert f"\n{extra} = [" in PYPROJECT
    prepared = prepare_config(cluster)
    assert prepared["worker_setup_commands"] == [install]
    assert prepared["head_setup_commands"][0] == install
    assert not any("setup_commands" in key for key, _ in entries(cluster["available_node_types"]))


def test_workers_come_from_zero(worker_types):
    assert set(worker_types) == {"cpu_worker", "gpu_worker"}
    assert all(node_type["min_workers"] == 0 for node_type in worker_types.values())


def test_the_dashboard_is_reached_through_ssh_only(cluster):
    [start] = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start


def test_there_are_no_secrets(cluster):
    secret = re.compile(r"secret|password|token|credential|private_key|access_key|AKIA|BEGIN .*KEY", re.IGNORECASE)
    assert not [entry for entry in entries(cluster) if secret.search(str(entry))]


# --- What Ray asks of AWS ---------------------------------------------------------------------------------------------


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A false AWS with the instance types of the real one."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps its ssh key there
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    monkeypatch.setattr("ray.autoscaler._private.aws.config.time.sleep", lambda seconds: None)  # until a role spreads
    with moto.mock_aws():
        yield


def test_ssh_is_the_only_door_and_every_type_can_be_launched(cluster, aws):
    asked = AWSNodeProvider.bootstrap_config(prepare_config(cluster))
    groups = [node_type["node_config"]["SecurityGroupIds"] for node_type in asked["available_node_types"].values()]
    [group_id] = {group_id for of_one_type in groups for group_id in of_one_type}
    inside, outside = boto3.resource("ec2", cluster["provider"]["region"]).SecurityGroup(group_id).ip_permissions
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group_id]
    assert not inside["IpRanges"]
    assert (outside["IpProtocol"], outside["FromPort"], outside["ToPort"]) == ("tcp", 22, 22)
    provider = AWSNodeProvider(asked["provider"], asked["cluster_name"])
    for name, node_type in asked["available_node_types"].items():
        [node] = provider.create_node(node_type["node_config"], {"ray-user-node-type": name}, 1)
        [instance] = boto3.resource("ec2", cluster["provider"]["region"]).instances.filter(InstanceIds=[node])
        assert (instance.instance_lifecycle == "spot") == (name == "cpu_worker")


def test_instances_have_the_resources_that_the_file_gives_to_ray(cluster, worker_types, aws):
    given = {name: dict(node_type["resources"]) for name, node_type in worker_types.items()}
    for node_type in worker_types.values():
        node_type["resources"] = {}
    found = AWSNodeProvider.fillout_available_node_types_resources(cluster)["available_node_types"]
    for name, resources in given.items():
        real = found[name]["resources"]
        assert (real["CPU"], real.get("GPU")) == (resources["CPU"], resources.get("GPU"))


# --- The cluster ------------------------------------------------------------------------------------------------------


@pytest.fixture
def namespaces() -> None:
    if reason := why_impossible():
        pytest.skip(f"this machine makes no namespaces to put a cluster in: {reason}")


@pytest.mark.timeout(1_200)  # longer than the commands may take, so that they report what hangs
def test_a_sweep_brings_workers_that_leave_again_and_work_for_a_gpu_the_gpu_type(cluster, namespaces, tmp_path):
    cluster["available_node_types"]["gpu_worker"]["max_workers"] = 1  # as its comment says
    own_runners = {"num_env_runners": 1, "custom_resources_per_env_runner": {"env_runner": 1}}
    sweep = [sys.executable, str(ROOT / "tuning" / "sweep.py"), "--teacher=cartpole", "--env=CartPole-v1"]
    sweep += ["--address=auto", f"--config={json.dumps(own_runners)}", f"--storage-path={tmp_path}", "--name=sweep"]
    sweep += ["--num-samples=1", "--num-seeds=1", "--env-steps=500"]
    work = "import ray; ray.init('auto'); ray.get(ray.remote(num_gpus=1)(lambda: None).remote())"
    of_sweep, of_gpu = run_on(cluster, [sweep, [sys.executable, "-c", work]], tmp_path)
    assert of_sweep.returncode == 0, of_sweep.output
    assert not [error.read_text() for error in tmp_path.glob("sweep/*/error.txt")], "a trial was made again"
    assert of_sweep.workers[0] == {}, "there were workers before there was work"
    assert of_sweep.workers[-1] == {}, "idle workers stayed"
    # A trial, and an EnvRunner for its student: two CPUs, where a node has one.
    assert max(workers.get("cpu_worker", 0) for workers in of_sweep.workers) >= 2, of_sweep.workers
    assert not any("gpu_worker" in workers for workers in of_sweep.workers), "no work needs a GPU"
    assert of_sweep.actors["DistillEnvRunner"] == ["cpu_worker"]
    assert (tmp_path / "sweep" / "report" / "index.html").exists()
    students = list(tmp_path.glob("sweep/*/checkpoint_*/seed_*/learner_group/learner/rl_module/default_policy"))
    assert students, "the sweep ended without a student"
    assert of_gpu.returncode == 0, of_gpu.output
    assert of_gpu.workers == [{}, {"gpu_worker": 1}, {}]
