"""Several teachers as one: means against formulas written down here, and members that see in ways of their own."""

import json
import pickle
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import DistillDQN, DistillDQNConfig, compare, load_teacher
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.export import export
from rllib_kd.observations.pipeline import Function, ObservationPipeline, Shown
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.teachers.function import mean_policy, mean_q
from tests.conftest import CARTPOLE_OBS, make_q_module, shared_teacher, states
from tests.formats import CHECKPOINTS, frames, mlp, nature_cnn, sb3_weights, sb3_zip


def look(teacher: Teacher, obs) -> torch.Tensor:
    """What it says of what an environment shows."""
    shown = Shown(obs, first=np.ones(len(next(iter(obs.values())) if isinstance(obs, dict) else obs), dtype=bool))
    return teacher.q_values(torch.as_tensor(teacher.start()(shown)))


@pytest.fixture
def paths(tmp_path):
    """Three teachers: of RLlib, of another library, and of another library with statistics of its observations."""
    plain = make_q_module(fcnet_hiddens=[16]).save_to_path(str(tmp_path / "plain"))
    zipped = str(sb3_zip(tmp_path / "other.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2))
    shutil.copytree(CHECKPOINTS / "sb3-2.9", tmp_path / "filtered")
    return [plain, zipped, str(tmp_path / "filtered" / "dqn.zip")]


# --- Formulas ---------------------------------------------------------------------------------------------------------

Q = torch.tensor([[[1.0, 2.0, 0.0], [5.0, 5.0, 5.0]], [[3.0, 0.0, 0.0], [0.0, 1.0, 2.0]]])  # two members, two states


def test_mean_q():
    assert mean_q(Q).tolist() == [[2.0, 1.0, 0.0], [2.5, 3.0, 3.5]]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_the_softmax_of_a_mean_policy_is_the_mean_of_the_softmaxes(temperature):
    q = torch.as_tensor(np.random.default_rng(0).normal(size=(3, 50, 4)))
    weights = np.exp(q.numpy() / temperature)
    expected = (weights / weights.sum(-1, keepdims=True)).mean(0)
    of_labels = np.exp(mean_policy(q, temperature=temperature).numpy() / temperature)
    assert of_labels / of_labels.sum(-1, keepdims=True) == pytest.approx(expected, abs=1e-12)
    assert of_labels.sum(-1) == pytest.approx(np.ones(50))  # they are logarithms of probabilities already


def test_of_one_member_a_mean_policy_is_its_q_values_but_for_a_constant():
    labels = mean_policy(Q[:1], temperature=0.3)
    difference = Q[0] - labels
    torch.testing.assert_close(difference, difference[:, :1].expand(-1, 3))


def test_a_mean_policy_of_sharp_policies_is_finite():
    """exp(−1e5) is 0 in any float: an action that one teacher avoids is not therefore illegal."""
    q = torch.tensor([[[0.0, 1000.0, -torch.inf]], [[1000.0, 0.0, -torch.inf]]])
    labels = mean_policy(q, temperature=0.01)
    torch.testing.assert_close(labels[:, :2], torch.full((1, 2), 0.01 * np.log(0.5)).float())
    assert labels[0, 2] == -torch.inf  # illegal for all
    assert torch.isfinite(mean_policy(q[:1, :, :2], temperature=0.01)).all()


def test_votes_count_alike_whatever_the_scale_of_the_rewards():
    q = torch.tensor([[[0.0, 100.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
    assert mean_q(q).argmax() == 1  # one teacher with large rewards
    assert mean_policy(q, temperature=0.01).argmax() == 0  # two teachers


# --- Members ----------------------------------------------------------------------------------------------------------


def test_it_says_the_mean_of_what_its_members_say(paths):
    members = [load_teacher(path) for path in paths]
    obs = states(50)
    said = torch.stack([look(member, obs) for member in members])
    torch.testing.assert_close(look(load_teacher(paths), obs), said.mean(0))
    policy = ensemble_of(members, policy_temperature=0.2)
    torch.testing.assert_close(look(policy, obs), mean_policy(said, temperature=0.2))
    ensemble = load_teacher([members[0], paths[1], members[2]])  # some are loaded already
    torch.testing.assert_close(look(ensemble, obs), said.mean(0))
    assert ensemble.num_parameters == sum(member.num_parameters for member in members)
    assert ensemble.source == ", ".join(paths)
    assert [member.source for member in ensemble.members] == paths
    assert ensemble.takes(CARTPOLE_OBS)
    assert not ensemble.takes(gym.spaces.Box(-1, 1, (5,)))


def test_members_that_see_alike_need_no_view_of_their_own(paths):
    ensemble = load_teacher(paths[:2])
    assert ensemble.pipeline is None
    assert ensemble.input_space.shape == (4,)
    assert load_teacher(paths).input_space.shape == (12,)


def test_it_travels_and_is_kept(paths, tmp_path):
    ensemble = ensemble_of([load_teacher(path) for path in paths], policy_temperature=0.5)
    restored = Teacher()
    restored.restore_from_path(ensemble.save_to_path(str(tmp_path / "teacher")))
    for copy in (pickle.loads(pickle.dumps(ensemble)), restored):
        assert torch.equal(look(copy, states(20)), look(ensemble, states(20)))
        assert (copy.source, copy.num_parameters) == (ensemble.source, ensemble.num_parameters)
        assert len(copy.members) == 3


def test_members_are_copies(paths):
    member = load_teacher(paths[0])
    ensemble = ensemble_of([member, load_teacher(paths[1])])
    before = look(ensemble, states(5))
    with torch.no_grad():
        for parameter in member.module.parameters():
            parameter.zero_()
    assert torch.equal(look(ensemble, states(5)), before)


def test_one_member_is_the_teacher_itself(paths):
    member = load_teacher(paths[0])
    alone = load_teacher([member])
    assert alone is not member
    assert alone.model_config == member.model_config is not None
    assert torch.equal(look(alone, states(5)), look(member, states(5)))


def test_members_that_count_frames_and_members_that_are_functions(tmp_path):
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    first = load_teacher(sb3_zip(tmp_path / "a.zip", sb3_weights(nature_cnn(4, 3), has_images=True), space, 3))
    low, high = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(3)
    bright = Teacher.from_callable(
        lambda obs: obs.mean((1, 2, 3))[:, None] * torch.tensor([1.0, 2.0, 3.0]),
        observation_space=gym.spaces.Box(0, 1, (84, 84, 4)),
        action_space=high,
    )
    ensemble = ensemble_of([first, bright])
    obs = frames(3)
    torch.testing.assert_close(look(ensemble, obs), torch.stack([look(first, obs), look(bright, obs)]).mean(0))
    assert ensemble.takes(low)
    assert np.isnan(ensemble.num_parameters)  # nobody knows the function's


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_members_with_images_in_0_to_1_and_members_with_other_numbers(order):
    """Of the same shape: bytes are divided by 255 for the first kind alone."""
    shape, actions = (20, 20, 3), gym.spaces.Discrete(3)
    spaces = [gym.spaces.Box(0, 1, shape), gym.spaces.Box(-np.inf, np.inf, shape)]
    members = [
        Teacher.from_callable(
            lambda obs: obs.mean((1, 2, 3))[:, None] * torch.tensor([1.0, 2.0, 3.0]),
            observation_space=spaces[i],
            action_space=actions,
        )
        for i in order
    ]
    obs = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    alone = [look(member, obs) for member in members]
    assert alone[order[0]] * 255 == pytest.approx(alone[order[1]], rel=1e-4)
    torch.testing.assert_close(look(ensemble_of(members), obs), torch.stack(alone).mean(0))


def test_a_member_that_sees_more(tmp_path):
    shown = gym.spaces.Dict({"state": CARTPOLE_OBS, "camera": gym.spaces.Box(-1, 1, (2,))})
    parts = {"state": states(5), "camera": states(5)[:, :2]}
    members = [
        Teacher(
            make_q_module(gym.spaces.Box(-9, 9, (size,)), seed=size),
            pipeline=ObservationPipeline(shown, (Function(lambda obs, name=name: obs[name]),)),
        )
        for name, size in (("state", 4), ("camera", 2))
    ]
    ensemble = ensemble_of(members)
    torch.testing.assert_close(look(ensemble, parts), torch.stack([look(m, parts) for m in members]).mean(0))


def test_teachers_of_different_environments_are_refused_naming_both(paths):
    acrobot = Teacher(make_q_module(gym.spaces.Box(-9, 9, (6,)), gym.spaces.Discrete(2)), source="acrobot")
    with pytest.raises(ValueError, match=r"observation space of '.*plain' is Box\(4,\), and that of 'acrobot' Box"):
        load_teacher([paths[0], acrobot])
    three = Teacher(make_q_module(CARTPOLE_OBS, gym.spaces.Discrete(3)), source="three")
    with pytest.raises(ValueError, match=r"action space of 'three' is Discrete\(3\), and that of '.*' Discrete\(2\)"):
        load_teacher([three, paths[0]])
    with pytest.raises(ValueError, match="at least one teacher, got an empty list"):
        load_teacher([])


def test_it_plays_and_is_compared(paths, tmp_path):
    assert len(evaluate(paths, "CartPole-v1", num_episodes=3).returns) == 3
    comparison = compare(["cartpole", paths[0]], make_q_module(fcnet_hiddens=[4]), num_episodes=2)
    assert comparison.env == "CartPole-v1"  # as its first member says
    assert comparison.teacher.num_parameters == 67_843 + load_teacher(paths[0]).num_parameters
    assert json.dumps(comparison.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="cannot be exported"):
        export(load_teacher(paths[:2]), tmp_path / "a.onnx", format="onnx", obs=states(5))


# --- In the config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ensemble": "median"}, "Unknown ensemble 'median'. Known are: q, policy"),
        ({"ensemble": "policy"}, "'auto' is measured on that mean. Set a number"),
        ({"ensemble": "policy", "temperature": 0.1, "loss": "mse"}, "`loss`='mse' needs the teachers' Q-values"),
        ({"ensemble": "policy", "temperature": 0.1, "gap_weighting": True}, "`gap_weighting`=True needs"),
        ({"ensemble": "policy", "temperature": 0.1, "value_gate": True, "td_coeff": 1.0}, "`value_gate`=True needs"),
        ({"loss": "categorical"}, "return distributions, but an ensemble has only mean Q-values"),
        ({"teacher": []}, "needs a teacher, got"),
        ({"feature_coeff": 0.1}, "`feature_coeff` needs a teacher with RLlib's DQN architecture"),
        ({"init": "teacher"}, "init='teacher' needs a teacher with RLlib's DQN architecture"),
    ],
)
def test_what_makes_no_sense_is_refused(build, cartpole_config, paths, given, message):
    with pytest.raises(ValueError, match=message):
        build(cartpole_config.distillation(**{"teacher": paths[:2], **given}))


@pytest.mark.parametrize("ensemble", ["q", "policy"])
def test_labels_of_the_learner_are_the_means(build, cartpole_config, paths, ensemble, monkeypatch):
    seen = []
    labels = Teacher.labels

    def recorded(teacher, obs, names, mask=None):
        said = labels(teacher, obs, names, mask)
        seen.append((teacher, obs, said["teacher_q"]))
        return said

    monkeypatch.setattr(Teacher, "labels", recorded)
    algo = build(cartpole_config.distillation(teacher=paths, ensemble=ensemble, temperature=0.3))
    result = algo.train()
    assert result["distillation"]["teacher_params"] == load_teacher(paths).num_parameters
    assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])
    teacher, obs, said = seen[-1]
    each = torch.stack(
        [member.q_values(part) for member, part in zip(teacher.members, obs.split(4, dim=1), strict=True)]
    )
    expected = each.mean(0) if ensemble == "q" else mean_policy(each, temperature=0.3)
    torch.testing.assert_close(said, expected)


def test_compression_is_of_all_members_with_the_architecture_of_the_first(build, cartpole_config, paths):
    config = DistillDQNConfig().environment("CartPole-v1").env_runners(num_envs_per_env_runner=2)
    algo = build(config.distillation(teacher=["cartpole", *paths], compression=0.04, num_baseline_episodes=0))
    first = load_teacher("cartpole")
    assert len(algo.get_module().model_config["fcnet_hiddens"]) == len(first.model_config["fcnet_hiddens"])
    distillation = algo.train()["distillation"]
    total = sum(load_teacher(path).num_parameters for path in ["cartpole", *paths])
    assert distillation["teacher_params"] == total
    assert 0.03 * total < distillation["student_params"] <= 0.04 * total


def test_it_is_restored_without_its_paths(build, cartpole_config, paths, tmp_path):
    algo = build(cartpole_config.distillation(teacher=paths, ensemble="policy", temperature=0.3))
    algo.train()
    path = algo.save_to_path(str(tmp_path / "algo"))
    expected = look(algo._teachers["default_policy"], states(5))
    for member in paths:
        shutil.rmtree(member, ignore_errors=True)
    restored = DistillDQN.from_checkpoint(path)
    assert torch.equal(look(restored._teachers["default_policy"], states(5)), expected)
    assert restored.config.ensemble == "policy"
    assert restored.train()["num_env_steps_sampled_lifetime"] > algo.num_env_steps
    restored.stop()


def test_a_dict_as_tune_passes_it(build, cluster, paths):
    settings = {"env": "CartPole-v1", "teacher": paths, "num_baseline_episodes": 0, "num_envs_per_env_runner": 2}
    algo = DistillDQN(config=settings)
    assert len(algo._teachers["default_policy"].members) == 3
    algo.stop()


def test_paths_become_absolute_at_once(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_teacher(paths[0])
    config = DistillDQNConfig().distillation(teacher=["other.zip", "cartpole", loaded])
    assert config.teacher == [str(tmp_path / "other.zip"), "cartpole", loaded]


@pytest.mark.slow
def test_a_student_of_two_teachers(build):
    """The packaged teacher and one of another library: the student plays as they do."""
    other = shared_teacher("sb3/dqn-CartPole-v1.zip")
    algo = build(
        DistillDQNConfig()
        .environment("CartPole-v1")
        .distillation(teacher=["cartpole", other], compression=0.01, num_baseline_episodes=5)
        .debugging(seed=0)
    )
    while algo.train()["num_env_steps_sampled_lifetime"] < 20_000:
        pass
    comparison = compare(["cartpole", other], algo, "CartPole-v1", num_episodes=50, seed=1_000)
    assert comparison.teacher.return_mean == 500.0
    assert comparison.return_ratio > 0.95
    assert comparison.compression < 0.0101


def test_policies_of_an_ensemble_are_each_of_legal_actions():
    """A member that puts nearly all on an illegal action has as much to say about the others."""
    space, actions = gym.spaces.Box(0.0, 1.0, (1,)), gym.spaces.Discrete(3)

    def of(logits):
        return Teacher.from_callable(
            lambda obs: torch.tensor([logits]).expand(len(obs), 3),
            observation_space=space,
            action_space=actions,
            outputs="logits",
        )

    ensemble = ensemble_of([of([20.0, 2.0, 0.0]), of([0.0, 0.0, 2.0])])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    policy = ensemble.q_values(torch.zeros(2, 1), mask).exp()
    torch.testing.assert_close(policy[0], torch.tensor([0.0, 0.5, 0.5]))
    torch.testing.assert_close(policy[1], ensemble.q_values(torch.zeros(1, 1))[0].exp())
    values = ensemble_of([Teacher(make_q_module(seed=seed)) for seed in (0, 1)])
    obs, legal = torch.randn(5, 4), torch.tensor([[True, False]] * 5)
    q = values.labels(obs, ("teacher_q",), legal)["teacher_q"]
    torch.testing.assert_close(q[:, 0], values.q_values(obs)[:, 0])
    assert torch.isneginf(q[:, 1]).all()
