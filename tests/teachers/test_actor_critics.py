"""Actor-critics as teachers: their labels are the log-probabilities of the original's policy."""

import base64
import pickle

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.bc.torch.default_bc_torch_rl_module import DefaultBCTorchRLModule
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import get_trainable_cls
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from rllib_kd import compare, load_teacher
from rllib_kd.export.export import export
from rllib_kd.learner.losses import policy_kl
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import as_configured, ensemble_of
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, shared_teacher, states
from tests.formats import actor_critic_weights, frames, mlp, nature_cnn, q_values, sb3_weights, sb3_zip, to_bytes

LOGITS = {"outputs": "logits"}


@torch.no_grad()
def log_policy(network, obs) -> np.ndarray:
    return torch.log_softmax(network(torch.as_tensor(obs).float()), -1).numpy()


def teacher_of(network, **kwargs) -> Teacher:
    """A loaded actor-critic with this policy."""
    spaces = {"observation_space": CARTPOLE_OBS, "action_space": CARTPOLE_ACTIONS}
    return Teacher.from_callable(network, **spaces, **LOGITS, **kwargs)


# --- Stable-Baselines3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_shared", [0, 1])
@pytest.mark.parametrize("widths", [(4, 16, 8, 2), (4, 32, 2), (4, 2)])
def test_sb3_mlps(tmp_path, widths, num_shared):
    network = mlp(*widths, activation=nn.Tanh)
    weights = actor_critic_weights(network, num_shared=num_shared)
    teacher = load_teacher(sb3_zip(tmp_path / "a.zip", weights, CARTPOLE_OBS, 2))
    assert teacher.outputs == "log_probs"
    assert q_values(teacher, states(50)) == pytest.approx(log_policy(network, states(50)), abs=1e-5)
    assert teacher.num_parameters == sum(parameter.numel() for parameter in network.parameters())  # without the critic
    assert isinstance(teacher.module, DefaultDQNTorchRLModule)
    assert teacher.model_config["fcnet_hiddens"] == list(widths[1:-1])


@pytest.mark.parametrize("extractor", ["shared", "own", "old"])
def test_sb3_cnns(tmp_path, extractor):
    network, obs = nature_cnn(2, 3), frames(3, 2)
    weights = actor_critic_weights(network, has_images=True, extractor=extractor)
    space = gym.spaces.Box(0, 255, (2, 84, 84), np.uint8)
    # The last hidden layer of the convolutions is ReLU in both; behind it comes the head.
    teacher = load_teacher(sb3_zip(tmp_path / "a.zip", weights, space, 3))
    assert q_values(teacher, obs) == pytest.approx(log_policy(network, obs / 255.0), abs=1e-4)


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (PPO, {"n_steps": 16, "batch_size": 16}),
        (A2C, {"policy_kwargs": {"net_arch": [8], "activation_fn": nn.ReLU}}),
        (A2C, {"policy_kwargs": {"net_arch": {"pi": [8, 6], "vf": [5]}, "share_features_extractor": False}}),
        (MaskablePPO, {"n_steps": 16, "batch_size": 16}),
    ],
    ids=["PPO", "A2C", "A2C with extractors of its own", "MaskablePPO"],
)
def test_sb3_itself(tmp_path, cls, kwargs):
    model = cls("MlpPolicy", "CartPole-v1", device="cpu", seed=0, **kwargs)
    model.save(tmp_path / "model.zip")
    obs = torch.as_tensor(states(20))
    with torch.no_grad():
        expected = model.policy.get_distribution(obs).distribution.logits
    assert q_values(load_teacher(tmp_path / "model.zip"), obs.numpy()) == pytest.approx(expected.numpy(), abs=1e-5)


class Pixels(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = gym.spaces.Discrete(3)


@pytest.mark.parametrize("shares", [True, False])
def test_sb3_itself_with_images(tmp_path, shares):
    policy_kwargs = {"share_features_extractor": shares, "features_extractor_kwargs": {"features_dim": 8}}
    model = A2C("CnnPolicy", Pixels(), policy_kwargs=policy_kwargs, device="cpu", seed=0)
    model.save(tmp_path / "model.zip")
    obs = np.random.default_rng(0).integers(0, 256, (4, 1, 36, 36), dtype=np.uint8)
    with torch.no_grad():
        expected = model.policy.get_distribution(torch.as_tensor(obs)).distribution.logits
    assert q_values(load_teacher(tmp_path / "model.zip"), obs) == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "space", "message"),
    [
        ({"lstm_actor.weight_ih_l0": torch.ones(2, 2)}, CARTPOLE_OBS, "it is recurrent"),
        ({"features_extractor.own.weight": torch.ones(2)}, CARTPOLE_OBS, "unknown layers: features_extractor"),
    ],
    ids=["LSTM", "an extractor of the user's"],
)
def test_other_sb3_policies_say_so(tmp_path, weights, space, message):
    network = mlp(4, 8, 2)
    path = sb3_zip(tmp_path / "a.zip", actor_critic_weights(network) | weights, space, 2)
    with pytest.raises(ValueError, match=message):
        load_teacher(path)


class OwnPolicy(ActorCriticPolicy):
    """As in the documentation of Stable-Baselines3: layers with the usual names, and another activation."""

    def _build_mlp_extractor(self):
        super()._build_mlp_extractor()
        self.mlp_extractor.policy_net[1] = nn.ReLU()


def test_sb3_policies_of_the_users_class_say_so(tmp_path):
    A2C(OwnPolicy, "CartPole-v1", device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"a policy of a custom class, in the module 'tests\.teachers\..*'.*callable"):
        load_teacher(tmp_path / "model.zip")


def test_sb3_features_extractors_of_the_users_class_say_so(tmp_path):
    policy_kwargs = {":type:": "dict", ":serialized:": base64.b64encode(cloudpickle.dumps(own_extractor())).decode()}
    weights = actor_critic_weights(mlp(4, 8, 2))
    path = sb3_zip(tmp_path / "a.zip", weights, CARTPOLE_OBS, 2, policy_kwargs=policy_kwargs)
    with pytest.raises(
        ValueError, match=r"code, not data\. Load it by Stable-Baselines3, and use Teacher\.from_callable"
    ):
        load_teacher(path)


def own_extractor():
    class Extractor:  # pickled by value, as one of a script
        pass

    return {"features_extractor_class": Extractor}


RETURNS = {  # greedy, 50 episodes from seed 0, as the folder's README has them
    "ppo-CartPole-v1": ("CartPole-v1", 500.0, 0.1),
    "ppo-LunarLander-v2": ("LunarLander-v3", 246.1, 1.0),
    "ppo-Acrobot-v1": ("Acrobot-v1", -73.6, 3.0),  # through its VecNormalize, in a folder beside it
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if "Lander" in n else []) for n in RETURNS])
def test_real_ones_play_as_they_did(name):
    from rllib_kd.evaluation.comparing import evaluate

    env, mean, tolerance = RETURNS[name]
    if env.startswith("LunarLander"):
        pytest.importorskip("Box2D", reason="needs the extra box2d")
    path = shared_teacher(f"sb3/{name}.zip")
    assert evaluate(path, env, num_episodes=50, seed=0).return_mean == pytest.approx(mean, abs=tolerance)


@pytest.mark.parametrize("names", [("teacher_q",), ("teacher_q", "teacher_features")])
def test_probabilities_are_of_legal_actions_however_likely_others_are(names):
    network = nn.Linear(1, 3)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([150.0, 1.0, 9.0]))
    spaces = {"observation_space": gym.spaces.Box(-1, 1, (1,)), "action_space": gym.spaces.Discrete(3)}
    teacher = Teacher.from_callable(network, **spaces, **LOGITS)
    teacher.module.af = network  # whose inputs count as features
    mask = torch.tensor([[False, True, True], [True, True, True]])
    expected = [[-np.inf, -8.0003, -0.0003], [0.0, -87.3365, -87.3365]]
    labels = teacher.labels(torch.zeros(2, 1), names, mask)
    assert labels["teacher_q"].numpy() == pytest.approx(np.array(expected), abs=1e-3)
    assert teacher.q_values(torch.zeros(2, 1), mask).numpy() == pytest.approx(np.array(expected), abs=1e-3)


# --- CleanRL ----------------------------------------------------------------------------------------------------------


def test_cleanrl_ppo(tmp_path):
    actor, critic = mlp(4, 16, 16, 2, activation=nn.Tanh), mlp(4, 16, 1, activation=nn.Tanh)
    weights = {f"critic.{name}": value for name, value in critic.state_dict().items()}
    weights |= {f"actor.{name}": value for name, value in actor.state_dict().items()}
    (tmp_path / "ppo.cleanrl_model").write_bytes(to_bytes(weights))
    teacher = load_teacher(tmp_path / "ppo.cleanrl_model")
    assert teacher.outputs == "log_probs"
    assert q_values(teacher, states(20)) == pytest.approx(log_policy(actor, states(20)), abs=1e-5)
    assert teacher.num_parameters == sum(parameter.numel() for parameter in actor.parameters())


def test_cleanrl_ppo_atari(tmp_path):
    network, obs = nature_cnn(4, 5), frames(3)
    names = {"9": "actor"}
    weights = {}
    for name, value in network.state_dict().items():
        number, _, kind = name.partition(".")
        weights[f"{names.get(number, f'network.{number}')}.{kind}"] = value
    weights |= {"critic.weight": torch.ones(1, 512), "critic.bias": torch.ones(1)}
    (tmp_path / "a.cleanrl_model").write_bytes(to_bytes(weights))
    teacher = load_teacher(tmp_path / "a.cleanrl_model")
    assert teacher.outputs == "log_probs"
    assert q_values(teacher, obs) == pytest.approx(log_policy(network, obs / 255.0), abs=1e-4)


# --- RLlib ------------------------------------------------------------------------------------------------------------

MODEL = {
    "fcnet_hiddens": [8, 6],
    "fcnet_activation": "tanh",
    "head_fcnet_hiddens": [5],
    "head_fcnet_activation": "relu",
}


def make_policy(
    cls=DefaultPPOTorchRLModule,
    observation_space=CARTPOLE_OBS,
    action_space=CARTPOLE_ACTIONS,
    catalog_class=None,
    **config,
):
    torch.manual_seed(0)
    return RLModuleSpec(
        module_class=cls,
        observation_space=observation_space,
        action_space=action_space,
        catalog_class=SACCatalog if cls is DefaultSACTorchRLModule else catalog_class,
        model_config=MODEL | {"vf_share_layers": False, "twin_q": True} | config,
    ).build()


@torch.no_grad()
def logits_of(module, obs):
    return module.forward_inference({"obs": torch.as_tensor(obs)})["action_dist_inputs"]


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (DefaultPPOTorchRLModule, {}),
        (DefaultPPOTorchRLModule, {"vf_share_layers": True}),  # IMPALA's default
        (DefaultAPPOTorchRLModule, {}),
        (DefaultSACTorchRLModule, {}),
        (DefaultBCTorchRLModule, {}),
    ],
    ids=["PPO", "IMPALA", "APPO", "SAC", "BC"],
)
def test_module_folders_of_rllib(tmp_path, cls, config):
    module = make_policy(cls, **config)
    teacher = load_teacher(module.save_to_path(str(tmp_path / "module")))
    expected = torch.log_softmax(logits_of(module, states(20)), -1)
    assert q_values(teacher, states(20)) == pytest.approx(expected.numpy(), abs=1e-5)
    assert teacher.outputs == "log_probs"
    assert isinstance(teacher.module, DefaultDQNTorchRLModule)  # so that it can be made narrower
    assert teacher.num_parameters == (4 * 8 + 8) + (8 * 6 + 6) + (6 * 5 + 5) + (5 * 2 + 2)


def test_a_module_with_images(tmp_path):
    space = gym.spaces.Box(0, 1, (10, 10, 2), np.float32)
    module = make_policy(observation_space=space, conv_filters=[[4, 4, 2], [8, 4, 1]])
    teacher = load_teacher(module.save_to_path(str(tmp_path / "module")))
    expected = torch.log_softmax(logits_of(module, states(5, space)), -1)
    assert q_values(teacher, states(5, space)) == pytest.approx(expected.numpy(), abs=1e-5)


class Odd(DefaultPPOTorchRLModule):
    """A policy of the user's, which RLlib's DQN module cannot compute."""

    def _forward(self, batch, **kwargs):
        outputs = super()._forward(batch, **kwargs)
        return outputs | {"action_dist_inputs": outputs["action_dist_inputs"] ** 3}


def test_a_policy_of_the_users_class(tmp_path):
    module = make_policy(Odd)
    path = module.save_to_path(str(tmp_path / "module"))
    with pytest.raises(ValueError, match="trust_checkpoint"):
        load_teacher(path)
    teacher = load_teacher(path, trust_checkpoint=True)
    expected = torch.log_softmax(logits_of(module, states(20)), -1)
    assert q_values(teacher, states(20)) == pytest.approx(expected.numpy(), abs=1e-5)
    assert teacher.model_config is None
    copy = pickle.loads(pickle.dumps(teacher))
    assert torch.equal(copy.q_values(torch.as_tensor(states(5))), teacher.q_values(torch.as_tensor(states(5))))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"action_space": gym.spaces.Box(-1, 1, (2,))}, r"cannot teach: .*Box.*expected Discrete"),
    ],
    ids=["continuous"],
)
def test_other_policies_of_rllib_say_so(tmp_path, kwargs, message):
    path = make_policy(**kwargs).save_to_path(str(tmp_path / "module"))
    with pytest.raises(ValueError, match=message):
        load_teacher(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PPO", "IMPALA", "SAC"])
def test_algorithms_of_rllib(cluster, tmp_path, name):
    config = get_trainable_cls(name).get_default_config().environment("CartPole-v1")
    config.env_runners(num_env_runners=0).learners(num_learners=0).rl_module(model_config={"fcnet_hiddens": [8]})
    algo = config.build_algo()
    try:
        expected = torch.log_softmax(logits_of(algo.get_module(), states(20)), -1)
        path = algo.save_to_path(str(tmp_path / name))
    finally:
        algo.stop()
    teacher = load_teacher(path)
    assert q_values(teacher, states(20)) == pytest.approx(expected.numpy(), abs=1e-5)
    assert compare(path, make_q_module(fcnet_hiddens=[4]), num_episodes=2).env == "CartPole-v1"  # as recorded


# --- The frozen policy ------------------------------------------------------------------------------------------------


def test_a_callable_with_logits():
    network = mlp(4, 8, 2)
    teacher = teacher_of(network)
    assert q_values(teacher, states(20)) == pytest.approx(log_policy(network, states(20)), abs=1e-6)
    labels = teacher.labels(torch.as_tensor(states(20)), ("teacher_q",))
    assert torch.equal(labels["teacher_q"], teacher.q_values(torch.as_tensor(states(20))))
    with pytest.raises(ValueError, match="`outputs` must be 'q_values', or 'logits'"):
        Teacher.from_callable(network, observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS, outputs="probs")
    with pytest.raises(ValueError, match=r"`observation_space` must be a gymnasium space .* got \(4,\)\. Pass"):
        Teacher.from_callable(network, observation_space=(4,), action_space=CARTPOLE_ACTIONS)


@pytest.mark.parametrize("logit", [-np.inf, -1e9])
def test_an_action_without_probability_is_not_an_illegal_one(logit):
    teacher = teacher_of(lambda obs: torch.tensor([[0.0, logit]]).expand(len(obs), 2))
    labels = teacher.q_values(torch.zeros(1, 4))
    assert labels.tolist() == [[0.0, pytest.approx(-87.34, abs=0.01)]]
    assert policy_kl(torch.tensor([[0.0, 3.0]]), labels, temperature=1.0) > 3  # a student that takes it is wrong
    assert teacher.q_values(torch.zeros(1, 4), torch.tensor([[True, False]])).tolist() == [[0.0, -np.inf]]


def test_what_it_gives_travels_and_is_kept(tmp_path):
    teacher = teacher_of(mlp(4, 8, 2))
    restored = Teacher()
    restored.restore_from_path(teacher.save_to_path(str(tmp_path / "teacher")))
    for copy in (pickle.loads(pickle.dumps(teacher)), restored, teacher.for_space(CARTPOLE_OBS)):
        assert copy.outputs == "log_probs"
        assert q_values(copy, states(5)) == pytest.approx(q_values(teacher, states(5)))
    old = teacher.get_state()
    del old["outputs"]  # as it was before there were actor-critics
    restored.set_state(old)
    assert restored.outputs == "q_values"


def test_a_copy_for_discrete_observations_gives_the_same(tmp_path):
    network = mlp(3, 8, 2, activation=nn.Tanh)
    vectors = gym.spaces.Box(0, 1, (3,), np.float32)
    teacher = load_teacher(sb3_zip(tmp_path / "a.zip", actor_critic_weights(network), vectors, 2))
    fitted = teacher.for_space(gym.spaces.Discrete(3))
    assert fitted.outputs == "log_probs"
    assert q_values(fitted, np.arange(3)) == pytest.approx(log_policy(network, np.eye(3)), abs=1e-5)


def test_regret_is_measured_in_nats(tmp_path):
    path = sb3_zip(tmp_path / "a.zip", actor_critic_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    comparison = compare(path, make_q_module(fcnet_hiddens=[4]), "CartPole-v1", num_episodes=2)
    assert comparison.regret_unit == comparison.to_dict()["regret_unit"] == "nats"
    assert "regret in nats on its states" in str(comparison)
    assert "Q-regret" not in str(comparison)
    assert compare("cartpole", make_q_module(), num_episodes=2).regret_unit == "return units"


def test_it_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match=r"is an actor-critic.*export the student"):
        export(teacher_of(mlp(4, 8, 2)), tmp_path / "a.onnx", format="onnx", obs=states(5))


# --- Ensembles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"policy_temperature": 0.3}])
def test_actor_critics_are_mixed_by_their_probabilities(given):
    networks = [mlp(4, 8, 2), mlp(4, 8, 2)]
    ensemble = ensemble_of([teacher_of(network) for network in networks], **given)
    mean = np.mean([np.exp(log_policy(network, states(20))) for network in networks], axis=0)
    assert ensemble.outputs == "log_probs"
    assert np.exp(q_values(ensemble, states(20))) == pytest.approx(mean, abs=1e-6)


def test_q_networks_beside_actor_critics_need_a_temperature():
    network, module = mlp(4, 8, 2), make_q_module()
    members = [Teacher(module, source="dqn"), teacher_of(network)]
    with pytest.raises(ValueError, match=r"needs teachers with Q-values, but 'Sequential' is an actor-critic"):
        ensemble_of(members)
    for ensemble, temperature, message in (
        ("q", 0.5, "needs teachers with Q-values"),
        ("policy", "auto", "'auto' is measured on that mean. Set a number"),
    ):
        with pytest.raises(ValueError, match=message):
            as_configured(members, ensemble, temperature)
    mixed = as_configured(members, "policy", 0.5)
    q = q_values(members[0], states(20))
    mean = (np.exp(log_policy(network, states(20))) + torch.softmax(torch.as_tensor(q / 0.5), -1).numpy()) / 2
    assert mixed.outputs == "q_values"  # whose softmax at the temperature is the mean policy
    got = torch.softmax(torch.as_tensor(q_values(mixed, states(20)) / 0.5), -1)
    assert got.numpy() == pytest.approx(mean, abs=1e-5)


def test_actor_critics_need_no_temperature():
    members = [teacher_of(mlp(4, 8, 2)), teacher_of(mlp(4, 8, 2))]
    for ensemble, temperature in (("policy", "auto"), ("q", "auto"), ("policy", 2.0)):
        assert as_configured(members, ensemble, temperature).outputs == "log_probs"
    assert as_configured(members[:1], "policy", "auto") is members[0]


def test_q_networks_of_sb3_still_have_q_values(tmp_path):
    assert load_teacher(sb3_zip(tmp_path / "a.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)).outputs == "q_values"
