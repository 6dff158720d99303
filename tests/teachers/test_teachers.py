import json
import pickle
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch.nn import functional as F

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.loading import load_teacher
from rllib_kd.teachers.names import absolute_teacher_uri
from tests.buckets import bucket_named
from tests.conftest import make_q_module, shared_teacher, states


def q_values(module, obs):
    with torch.no_grad():
        return module.compute_q_values({"obs": torch.as_tensor(obs)})["qf_preds"]


@pytest.mark.parametrize(
    "variant",
    [{}, {"dueling": True}, {"num_atoms": 11}, {"num_atoms": 11, "dueling": True}],
    ids=["plain", "dueling", "c51", "c51-dueling"],
)
def test_q_values_are_those_of_the_saved_module(tmp_path, variant):
    module = make_q_module(inference_only=False, **variant)
    module.make_target_networks()
    teacher = load_teacher(module.save_to_path(str(tmp_path / "module")))
    assert torch.equal(teacher.q_values(torch.as_tensor(states(10))), q_values(module, states(10)))
    assert teacher.q_values(torch.as_tensor(states(10))).shape == (10, 2)
    assert teacher.num_parameters == sum(p.numel() for p in make_q_module(**variant).parameters())


@pytest.mark.parametrize("variant", [{}, {"n_step": 3, "double_q": True}, {"num_atoms": 5, "dueling": True}])
def test_loads_from_a_whole_algorithm_and_from_each_folder_inside(cluster, tmp_path, variant):
    algo = DQNConfig().environment("CartPole-v1").training(**variant).build_algo()
    path = tmp_path / "algorithm"
    algo.save_to_path(str(path))
    expected = q_values(algo.get_module(), states(10))
    algo.stop()
    rl_module = path / "learner_group" / "learner" / "rl_module"
    for place in (path, rl_module, rl_module / "default_policy", f"file://{path}"):
        assert torch.equal(load_teacher(place).q_values(torch.as_tensor(states(10))), expected)


def test_is_frozen_and_in_eval_mode(small_teacher):
    teacher = load_teacher(small_teacher)
    assert not teacher._module.training
    assert not any(parameter.requires_grad for parameter in teacher._module.parameters())
    assert not isinstance(teacher, torch.nn.Module)
    assert teacher.q_values(torch.as_tensor(states(3)).requires_grad_()).grad_fn is None


def test_travels_by_pickle_and_by_checkpoint(small_teacher, tmp_path):
    teacher = load_teacher(small_teacher)
    restored = Teacher()
    assert not restored.is_loaded
    restored.restore_from_path(teacher.save_to_path(str(tmp_path / "teacher")))
    for copy in (pickle.loads(pickle.dumps(teacher)), restored):
        assert torch.equal(copy.q_values(torch.as_tensor(states(5))), teacher.q_values(torch.as_tensor(states(5))))
        assert (copy.source, copy.num_parameters) == (teacher.source, teacher.num_parameters)


def test_the_hooks_and_weights_of_its_module_count(small_teacher):
    teacher, obs, seen = load_teacher(small_teacher), torch.as_tensor(states(5)), []
    for own in (teacher, pickle.loads(pickle.dumps(teacher))):
        before = own.q_values(obs)
        handle = own.module.encoder.register_forward_hook(lambda *args: seen.append(args))
        assert torch.equal(own.q_values(obs), before)
        assert seen.pop()
        handle.remove()
        for parameter in own.module.parameters():
            parameter.mul_(2.0)
        assert not torch.equal(own.q_values(obs), before)
        assert torch.equal(own.q_values(obs), q_values(own.module, obs))


def test_relative_paths_become_absolute_at_once(small_teacher, tmp_path, monkeypatch):
    shutil.copytree(small_teacher, tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    uri = absolute_teacher_uri("here")
    monkeypatch.chdir("/")
    assert uri == str(tmp_path / "here")
    assert load_teacher(uri).num_parameters == 1_282
    assert absolute_teacher_uri("s3://bucket/teacher") == "s3://bucket/teacher"


def test_uris_stay_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("s3://bucket/results") == "s3://bucket/results"
    assert absolute_uri("results") == str(tmp_path / "results")
    assert absolute_uri("~/results") == str(Path.home() / "results")


@pytest.fixture
def bucket():
    """A bucket of S3 in this process: its URI, and the options that lead there."""
    with bucket_named("teachers") as found:
        yield found


def upload(client, folder, key):
    for file in (file for file in Path(folder).rglob("*") if file.is_file()):
        client.upload_file(str(file), "teachers", f"{key}/{file.relative_to(folder).as_posix()}")


def test_teachers_in_a_bucket(bucket, tmp_path):
    client, options = bucket
    for i, value in enumerate((5.0, 9.0)):
        name = f"checkpoint_{i:06d}"
        make_q_module(seed=i).save_to_path(str(tmp_path / "experiment" / "trial" / name))
        row = {"env_runners": {"episode_return_mean": value}, "checkpoint_dir_name": name}
        with open(tmp_path / "experiment" / "trial" / "result.json", "a") as file:
            file.write(json.dumps(row) + "\n")
    upload(client, tmp_path / "experiment", "runs/experiment")
    upload(client, Path(__file__).parents[1] / "checkpoints" / "sb3-2.9", "sb3")
    best = q_values(make_q_module(seed=1), states(5))
    for path in ("runs/experiment", "runs/experiment/trial", "runs/experiment/trial/checkpoint_000001"):
        teacher = load_teacher(f"s3://teachers/{path}{options}")
        assert torch.equal(teacher.q_values(torch.as_tensor(states(5))), best)
        assert teacher.source == f"s3://teachers/runs/experiment/trial/checkpoint_000001{options}"
    zipped = load_teacher(f"s3://teachers/sb3/dqn.zip{options}")  # with what lies beside it
    assert [type(stage).__name__ for stage in zipped.pipeline.stages] == ["Normalize"]
    assert evaluate(f"s3://teachers/runs/experiment{options}", "CartPole-v1", num_episodes=1).num_parameters == 1_282
    with pytest.raises(ValueError, match="There is no checkpoint at 's3://teachers/nothing"):
        load_teacher(f"s3://teachers/nothing{options}")


def test_the_packaged_teacher_resolves_by_name_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_teacher_uri("cartpole") == "cartpole"
    teacher = load_teacher("cartpole")
    assert (teacher.observation_space.shape, teacher.action_space.n) == ((4,), 2)


def save_nothing(path):
    path.mkdir()


def save_old_stack(path):
    (path / "policies" / "default_policy").mkdir(parents=True)


def save_truncated(path):
    make_q_module().save_to_path(str(path))
    state = path / "module_state.pkl"
    state.write_bytes(state.read_bytes()[:100])


def save_other_policies(path):
    spec = RLModuleSpec.from_module(make_q_module())
    MultiRLModuleSpec(rl_module_specs={"blue": spec}).build().save_to_path(str(path))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: None, "There is no checkpoint at"),
        (save_nothing, "is not an RLlib checkpoint"),
        (save_old_stack, "old API stack"),
        (save_truncated, "cannot be read"),
        (save_other_policies, r"contains the RLModules \['blue'\]"),
    ],
    ids=["missing", "empty", "old-stack", "truncated", "other-policies"],
)
def test_what_is_no_teacher_says_so(tmp_path, save, message):
    save(tmp_path / "teacher")
    with pytest.raises(ValueError, match=message) as error:
        load_teacher(tmp_path / "teacher")
    assert str(tmp_path / "teacher") in str(error.value)


def test_an_unknown_scheme_says_so():
    with pytest.raises(ValueError, match="neither an absolute path nor a URI that can be read"):
        load_teacher("nowhere://teacher")


@pytest.mark.parametrize(("game", "num_actions"), [("pong", 6), ("breakout", 4)])
def test_loads_the_atari_teachers_without_their_environment(game, num_actions):
    path = shared_teacher(f"atari/{game}")
    teacher = load_teacher(path)
    assert teacher.observation_space.shape == (84, 84, 4)
    assert teacher.action_space == gym.spaces.Discrete(num_actions)
    assert 1.68e6 < teacher.num_parameters < 1.70e6
    frames = torch.as_tensor(np.random.default_rng(0).random((20, 84, 84, 4), dtype=np.float32))
    file = path / "learner_group" / "learner" / "rl_module" / "default_policy" / "module_state.pkl"
    weights = {name: torch.as_tensor(value) for name, value in pickle.loads(file.read_bytes()).items()}
    x = frames.permute(0, 3, 1, 2)
    for i, stride in ((0, 4), (2, 2), (4, 1)):
        name = f"encoder.net.0.cnn.{i}"
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride).relu()
    x = x.permute(0, 2, 3, 1).flatten(1)
    x = F.linear(x, weights["af.net.mlp.0.weight"], weights["af.net.mlp.0.bias"]).relu()
    expected = F.linear(x, weights["af.net.mlp.2.weight"], weights["af.net.mlp.2.bias"])
    assert teacher.q_values(frames).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_ray_ships_it_through_the_object_store(cluster, small_teacher):
    teacher = load_teacher(small_teacher)
    copy = ray.get(ray.put(teacher))
    assert torch.equal(copy.q_values(torch.as_tensor(states(5))), teacher.q_values(torch.as_tensor(states(5))))


def test_return_distributions_of_a_c51():
    module = make_q_module(num_atoms=11, v_min=-2.0, v_max=3.0)
    teacher = Teacher(module)
    assert teacher.support == (-2.0, 3.0, 11)
    labels = teacher.labels(torch.as_tensor(states(10)), ("teacher_q", "teacher_probs"))
    assert torch.equal(labels["teacher_q"], q_values(module, states(10)))
    expectation = (labels["teacher_probs"] * torch.linspace(-2.0, 3.0, 11)).sum(-1)
    torch.testing.assert_close(expectation, labels["teacher_q"])
    assert Teacher(make_q_module()).support is None


def test_illegal_actions_have_no_return_distribution(monkeypatch):
    teacher = Teacher(make_q_module(num_atoms=11))
    compute = teacher.module.compute_q_values

    def masked(batch):
        outputs = compute(batch)
        outputs["qf_preds"][:, 1] = -torch.inf
        return outputs

    monkeypatch.setattr(teacher.module, "compute_q_values", masked)
    probs = teacher.labels(torch.as_tensor(states(10)), ("teacher_q", "teacher_probs"))["teacher_probs"]
    torch.testing.assert_close(probs.sum(-1), torch.tensor([[1.0, 0.0]]).expand(10, 2))


@pytest.mark.parametrize("head", [[], [24]], ids=["encoder", "head"])
def test_features_are_what_the_last_layer_makes_q_values_of(head):
    module = make_q_module(fcnet_hiddens=[32, 16], head_fcnet_hiddens=head)
    labels = Teacher(module).labels(torch.as_tensor(states(10)), ("teacher_q", "teacher_features"))
    assert labels["teacher_features"].shape == (10, 24 if head else 16)
    weight, bias = list(module.af.parameters())[-2:]
    torch.testing.assert_close(labels["teacher_features"] @ weight.detach().T + bias.detach(), labels["teacher_q"])


def test_processes_of_a_node_share_the_weights(cluster, small_teacher):
    """What comes out of the object store is used where it lies there."""
    teacher = load_teacher(small_teacher)
    reference = ray.put(teacher)
    first, second = ray.get(reference), ray.get(reference)
    addresses = [[p.data_ptr() for p in each.module.parameters()] for each in (teacher, first, second)]
    assert addresses[1] == addresses[2]
    assert not set(addresses[0]) & set(addresses[1])
    assert not any(p.requires_grad for p in first.module.parameters())
    obs = torch.as_tensor(states(8))
    assert torch.equal(first.q_values(obs), teacher.q_values(obs))


@pytest.mark.parametrize("outputs", ["q_values", "log_probs"])
def test_a_mask_leaves_legal_actions(outputs):
    teacher = Teacher(make_q_module(seed=3, action_space=gym.spaces.Discrete(3)), outputs=outputs)
    obs, mask = torch.randn(50, 4), torch.rand(50, 3) < 0.5
    mask[:, 1] = True
    q, legal = teacher.q_values(obs), teacher.q_values(obs, mask)
    assert torch.equal(torch.isneginf(legal), ~mask)
    if outputs == "q_values":
        assert torch.equal(legal[mask], q[mask])
    else:
        torch.testing.assert_close(legal.exp().sum(-1), torch.ones(50))
        shares = (q.exp() * mask) / (q.exp() * mask).sum(-1, keepdim=True)
        torch.testing.assert_close(legal.exp(), shares)
    torch.testing.assert_close(teacher.labels(obs, ("teacher_q",), mask)["teacher_q"], legal)
