"""Every private name of RLlib that this package depends on: a Ray that moves one fails here, by that name."""

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import ray
from ray import _raylet, actor
from ray._private import parameter, ray_constants, services, utils, worker
from ray._private.node import Node
from ray.air._internal import usage
from ray.experimental import internal_kv
from ray.rllib.algorithms import algorithm
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.connectors.common.numpy_to_tensor import NumpyToTensor
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.core.learner import learner_group
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune import registry
from ray.tune.execution import class_cache
from ray.tune.trainable import Trainable

import rllib_kd
from rllib_kd import _rllib
from rllib_kd.algorithm.algorithm import DistillDQN
from rllib_kd.algorithm.config import DistillationConfig
from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner
from rllib_kd.env_runner.single_agent import DistillEnvRunner, StudentsEnvRunner
from rllib_kd.learner.learner import DistillDQNTorchLearner

OUR_CLASSES = (
    DistillDQN,
    DistillationConfig,
    DistillDQNTorchLearner,
    DistillEnvRunner,
    StudentsEnvRunner,
    DistillMultiAgentEnvRunner,
)
#: What is reached in objects of RLlib from outside of them.
REACHED = {
    EnvRunnerGroup: ("_ignore_ray_errors_on_env_runners", "_worker_manager"),
    FaultTolerantActorManager: (
        "_filter_calls_by_tag",
        "_remove_async_state",
        "actors",
        "handle_remote_call_result_errors",
    ),
    Learner: ("_learner_index", "_weights_seq_no", "_optimizer_lr_schedules"),
    DQNLearner: ("last_update_ts_by_mid",),
    SingleAgentEnvRunner: (
        "_env_to_module",
        "_module_to_env",
        "_needs_initial_reset",
        "_seed",
        "_try_env_reset",
        "_try_env_step",
        "_weights_seq_no",
    ),
    AlgorithmConfig: (
        "_env_to_module_connector",
        "_model_config",
        "_model_config_auto_includes",
        "_train_batch_size_per_learner",
    ),
    MultiAgentEnvRunner: ("_new_episode", "_try_env_reset", "_try_env_step"),
    Node: ("is_head",),
    MetricsLogger: ("_get_key",),
    MeanStdFilter: ("_update_stats",),
    Trainable: ("_storage", "_iteration"),
    DefaultDQNTorchRLModule: _rllib.Q_VALUE_METHODS,
    TorchRLModule: _rllib.LOGITS_METHODS,
}
#: The same in modules of Ray.
REACHED_IN_MODULES = {
    worker: ("_global_node", "global_worker", "WORKER_MODE", "connect"),
    _raylet.Config: ("initialize",),
    _raylet.JobID: ("from_int",),
    _raylet.TaskID: ("for_fake_task",),
    actor: ("ActorClassID",),
    services: ("ConsolePopen", "start_api_server"),
    parameter: ("RayParams",),
    utils: ("set_sigterm_handler", "set_omp_num_threads_if_unset"),
    usage: ("tag_callbacks",),
    algorithm: ("make_callback",),
    learner_group: ("_get_backend_config",),
    registry: ("_global_registry", "_make_key"),
    class_cache: ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE"),
    ray_constants: ("OBJECT_STORE_MINIMUM_MEMORY_BYTES",),
    internal_kv: tuple(f"_internal_kv_{name}" for name in ("initialized", "list", "get", "put", "exists", "del")),
}
#: Private names of other packages: named tuples, Python, gymnasium (of time limits), PyTorch.
OF_OTHERS = (
    *("_asdict", "_make", "_replace", "_exit", "_Unpickler"),
    "_max_episode_steps",
    "_version",
    *("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"),
    *("_foreach_add_", "_foreach_lerp_", "_foreach_mul_", "_foreach_norm", "_fused_adam_"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_post_accumulate_grad_hooks"),
)


def source_of(classes) -> str:
    return "\n".join(map(source, classes))


def source(cls: type) -> str:
    """Of a class; of a public one, whose `__module__` is the package, at its home."""
    if cls.__module__ != rllib_kd.__name__:
        return textwrap.dedent(inspect.getsource(cls))
    text = inspect.getsource(import_module(f"rllib_kd.{rllib_kd._HOME[cls.__name__]}"))
    classes = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return ast.get_source_segment(text, next(classes))


def missing_in(cls: type, names) -> set[str]:
    """Those that a class neither has nor assigns to itself."""
    rllibs = source_of(base for base in cls.__mro__ if base.__module__.startswith("ray."))
    return {name for name in names if not hasattr(cls, name) and f"self.{name}" not in rllibs}


#: Files with base classes of ours, whose attributes the classes above set.
PARTS = ("rllib_kd.algorithm.checkpoint", "rllib_kd.algorithm.derived")


def private_names(classes) -> set[str]:
    """`self._x` and `super()._x` in the bodies of classes, that none of them defines or assigns."""
    used, own = set(), set()
    for node in ast.walk(ast.parse(source_of(classes))):
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        of_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "super"
        if of_self and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif of_self or of_super:
            used.add(node.attr)
    return used - own


def message(cls: type, missing: set[str]) -> str:
    return f"Ray {ray.__version__} has no {sorted(missing)} in {cls.__name__}, which rllib_kd depends on."


@pytest.mark.parametrize("cls", OUR_CLASSES)
def test_what_our_classes_use_of_their_base_classes_is_there(cls):
    inherited = source_of(base for base in cls.__mro__[1:] if base.__module__.startswith("rllib_kd"))
    parts = [base for base in cls.__mro__ if base is cls or base.__module__ in PARTS]
    names = {name for name in private_names(parts) if f"def {name}" not in inherited}
    assert names
    missing = missing_in(cls, names)
    assert not missing, message(cls, missing)


@pytest.mark.parametrize("cls", REACHED)
def test_what_is_reached_from_outside_is_there(cls):
    missing = missing_in(cls, REACHED[cls])
    assert not missing, message(cls, missing)


@pytest.mark.parametrize("cls", [DistillEnvRunner, DistillMultiAgentEnvRunner])
def test_what_sampling_goes_on_from_is_there(cls):
    names = _rllib.SAMPLING_STATE
    rllibs = source_of(base for base in cls.__mro__ if base.__module__.startswith("ray."))
    missing = {name for name in names if f"self.{name}" not in rllibs}
    assert not missing, message(cls, missing)


def test_what_is_reached_in_one_file_is_listed():
    tree = ast.parse(inspect.getsource(_rllib))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    used = {name for name in used if not name.startswith("__")} - {"_private", "_namespace", "_raylet"}
    assert used <= {name for names in (REACHED | REACHED_IN_MODULES).values() for name in names}


def nodes_of(code: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(code)))


def private_names_of_others(nodes: list[ast.AST]) -> set[str]:
    """`x._y` in a file, but for those of `self`, `cls` and `super()`; and what it imports from Ray."""
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {node.module for node in imports if "._private" in str(node.module)}
    of_ray = (alias.name for node in imports if str(node.module).startswith("ray") for alias in node.names)
    names |= {name for name in of_ray if name.startswith("_") and name != "__version__"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = getattr(node.value, "id", None) or getattr(getattr(node.value, "func", None), "id", None)
            if owner not in ("self", "cls", "super"):
                names.add(node.attr)
    return names


def own_private_names(nodes: list[ast.AST]) -> set[str]:
    """Private names that a file defines or assigns to `self`."""
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
    names = {node.id for node in stored if isinstance(node, ast.Name)}
    return (
        functions | names | {node.attr for node in stored if getattr(getattr(node, "value", None), "id", "") == "self"}
    )


def test_no_private_name_of_ray_is_reached_from_another_file():
    files = {path: nodes_of(path.read_text()) for path in Path(rllib_kd.__file__).parent.rglob("*.py")}
    own = set().union(*map(own_private_names, files.values()), OF_OTHERS)
    reached = {path: private_names_of_others(nodes) - own for path, nodes in files.items()}
    assert {path: names for path, names in reached.items() if names and path.name != "_rllib.py"} == {}
    assert private_names_of_others(
        nodes_of("from ray._private import worker\nrunner._gone = worker._node\nfrom ray.x import _y")
    ) == {
        "ray._private",
        "_y",
        "_gone",
        "_node",
    }


def private_names_in_texts(tree: ast.AST) -> set[str]:
    """Texts such as "_seed" outside of classes, by which `vars()` and `getattr()` reach attributes."""
    in_classes = {id(node) for cls in ast.walk(tree) if isinstance(cls, ast.ClassDef) for node in ast.walk(cls)}
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in in_classes)
    return {text for text in texts if isinstance(text, str) and re.fullmatch(r"_[a-z]\w*", text)}


def test_no_attribute_of_rllib_is_named_by_a_text_in_another_file():
    bases = {base for cls in OUR_CLASSES for base in cls.__mro__ if base.__module__.startswith("ray.")}
    rllibs = set(re.findall(r"self\.(_[a-z]\w*)", source_of(bases)))
    files = {path: ast.parse(path.read_text()) for path in Path(rllib_kd.__file__).parent.rglob("*.py")}
    named = {path.name: private_names_in_texts(tree) & rllibs for path, tree in files.items()}
    assert named.pop("_rllib.py") >= {*_rllib.SAMPLING_STATE, *_rllib.CONFIG_ATTRIBUTES.values()}
    assert {name: names for name, names in named.items() if names} == {}


def test_attributes_of_settings_are_there():
    assert not (missing := missing_in(AlgorithmConfig, _rllib.CONFIG_ATTRIBUTES.values())), message(
        AlgorithmConfig, missing
    )


@pytest.mark.parametrize("module", REACHED_IN_MODULES)
def test_what_is_reached_in_modules_is_there(module):
    missing = [name for name in REACHED_IN_MODULES[module] if not hasattr(module, name)]
    assert not missing, f"Ray {ray.__version__} has no {missing} in {module.__name__}, which rllib_kd depends on."


def test_a_name_that_is_gone_is_named():
    assert missing_in(Algorithm, ["_iteration", "_gone"]) == {"_gone"}
    assert "has no ['_gone'] in Algorithm" in message(Algorithm, {"_gone"})


def test_the_default_connectors_are_known_by_their_classes():
    from rllib_kd.checkpoints.connectors import is_default_connector

    assert is_default_connector(NumpyToTensor())


def test_the_timeout_of_learners_is_the_one_of_their_process_group():
    with _rllib.learners_wait_for_each_other(seconds=123):
        assert learner_group._get_backend_config(DistillDQNTorchLearner).to_dict()["timeout_s"] == 123
    assert learner_group._get_backend_config(DistillDQNTorchLearner).to_dict()["timeout_s"] == 1800
