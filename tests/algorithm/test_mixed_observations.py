"""Images beside other parts of an observation: from a teacher to an exported student."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModule
from stable_baselines3 import PPO

from rllib_kd import DistillDQN, compare, load_teacher
from rllib_kd.algorithm.defaults import FOR_IMAGES
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.artifact import q_function
from rllib_kd.export.deployment import deploy
from rllib_kd.export.export import check_exportable
from rllib_kd.export.runners.flatten import flatten, parts_in
from rllib_kd.export.web.network import web_network
from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.networks.mixed import MixedEncoder
from rllib_kd.observations.flattening import Flattener
from rllib_kd.wire import receive
from tests.algorithm.resumable import differ, weights
from tests.algorithm.small import small_config
from tests.algorithm.weights import assert_equal_weights
from tests.observations.mixed import Crossing, Crossings, Masked, oracle

SHAPE = {"conv_filters": [[8, 5, 3]], "fcnet_hiddens": [16], "fcnet_activation": "relu"}


def mixed_config(env=Crossing, model_config=SHAPE):
    """One that learns to cross in seconds. With RLlib's default activation, tanh, it takes ten times as long."""
    config = small_config(env).training(lr=3e-3).distillation(teacher=oracle())
    config._model_config = dict(model_config)
    return config


@pytest.fixture(scope="module")
def learned(cluster, tmp_path_factory):
    """The checkpoint of a student that has learned it, and its weights there and after another iteration."""
    algo = mixed_config().build_algo()
    for _ in range(3):
        algo.train()
    path = algo.save_to_path(str(tmp_path_factory.mktemp("students") / "student"))
    assert algo.env_runner._samples_directly
    assert algo.env_runner._teacher_view is None  # it labels what the student sees
    there = weights(algo)
    algo.train()
    after = weights(algo)
    assert algo.evaluate()["env_runners"]["episode_return_mean"] == 8.0  # by RLlib's own loop
    algo.stop()
    return path, there, after


@pytest.fixture(scope="module")
def student_path(learned):
    return learned[0]


@pytest.mark.slow
def test_neither_part_alone_suffices(student_path):
    done = compare(oracle(), student_path, Crossing, num_episodes=10)
    assert done.teacher.return_mean == done.student.return_mean == 8.0
    network = load_teacher(student_path)  # read as data
    assert network.num_parameters == done.student.num_parameters
    flattener, env, returns = Flattener(Crossing.observation_space), Crossing(), []
    for left_out in (slice(0, 400), slice(400, 401)):
        obs, _ = env.reset(seed=0)
        hits = 0.0
        for _ in range(80):
            vector = torch.from_numpy(flattener(obs, 1))
            vector[:, left_out] = 0.0
            obs, reward, *_ = env.step(int(network.q_values(vector).argmax()))
            hits += reward
        returns.append(hits / 10)
    assert max(returns) < 6.0  # 4 by chance, of 8


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_by_bit(learned):
    path, there, after = learned
    algo = DistillDQN.from_checkpoint(path)
    assert_equal_weights(weights(algo), there)
    algo.train()
    assert_equal_weights(weights(algo), after)
    assert differ(there, after)
    algo.stop()


def test_rllib_restores_the_module_alone(student_path):
    module = RLModule.from_checkpoint(f"{student_path}/learner_group/learner/rl_module/default_policy")
    network = load_teacher(student_path)
    assert isinstance(module.encoder, MixedEncoder)
    obs = torch.rand(5, 403)
    with torch.no_grad():
        q = module.compute_q_values({"obs": obs})["qf_preds"]
    assert torch.equal(q, network.q_values(obs))


@pytest.mark.parametrize("name", ["onnx", "safetensors", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pt2",))])
def test_exported_students_play_the_same(student_path, tmp_path, name):
    out, env, network = tmp_path / "student", Crossing(), load_teacher(student_path)
    done = deploy(student_path, out, Crossing, format=name, num_episodes=3)
    assert done.return_mean == done.torch_return == 8.0
    assert done.exported.max_difference < 1e-5
    q, parts = q_function(out), parts_in(str(out))
    obs, _ = env.reset(seed=3)
    for _ in range(20):
        vector = flatten(parts, obs)
        np.testing.assert_array_equal(vector, Flattener(env.observation_space)(obs, 1)[0])
        assert q(vector[None]) == pytest.approx(network.q_values(torch.from_numpy(vector[None])).numpy(), abs=1e-5)
        obs = env.look()
    if name in ("onnx", "safetensors"):  # such a file is a teacher, too
        teacher = load_teacher(out).for_space(env.observation_space)
        assert evaluate(teacher, Crossing, num_episodes=2).returns == [8.0, 8.0]


def test_what_files_cannot_hold(student_path):
    network = load_teacher(student_path)
    with pytest.raises(ValueError, match=r"^C cannot hold images beside other numbers. Use format='onnx'"):
        check_exportable(network, format="c")
    with pytest.raises(ValueError, match="A web page cannot hold images beside other numbers"):
        web_network(network)


@pytest.mark.parametrize(
    ("model_config", "settings", "message"),
    [
        ({"use_lstm": True}, {}, r"Recurrent students .* are not supported for images beside other parts"),
        ({}, {"student": {"tree": {}}}, "observations are images beside other numbers. Images are not supported"),
        ({"fcnet_hiddens": [8]}, {"quantize": "int8"}, "quantize='int8' needs a plain MLP of vectors"),
        (
            SHAPE,
            {"init": "teacher"},
            "need one chain of layers, but images beside other numbers have convolutions",
        ),
        (
            {},
            {"teacher": oracle()},
            "has a custom network, which cannot be scaled by `compression`=.* Shape the student",
        ),
    ],
)
def test_what_students_cannot_have(cluster, student_path, model_config, settings, message):
    config = mixed_config(model_config=model_config).distillation(**{"teacher": student_path, **settings})
    with pytest.raises(ValueError, match=message):
        config.build_algo()


def test_a_student_of_a_student_is_narrower(build, student_path):
    config = mixed_config(model_config={}).distillation(teacher=student_path, compression=0.2, feature_coeff=0.1)
    algo = build(config.training(lr=None, training_intensity=None))
    module = algo.get_module()
    assert 0.1 < count_parameters(module) / load_teacher(student_path).num_parameters <= 0.2
    assert module.model_config["conv_filters"][0][1:] == [5, 3]
    assert (algo.config.lr, algo.config.training_intensity) == (None, FOR_IMAGES["training_intensity"])
    algo.train()


@pytest.mark.slow
def test_by_td_alone_with_masks(build):
    """Also the sizes of convolutions that are the package's own for this image."""
    config = mixed_config(Masked, {"fcnet_hiddens": [16], "fcnet_activation": "relu"}).training(epsilon=1.0, lr=2e-3)
    algo = build(config.distillation(teacher=None, td_coeff=1.0))
    for _ in range(5):
        algo.train()
    assert evaluate(algo, num_episodes=5).return_mean > 7.5
    assert algo.evaluate()["env_runners"]["episode_return_mean"] > 7.5


@pytest.mark.slow
def test_a_family_and_its_copies(build, tmp_path):
    students = {"small": SHAPE, "linear": "linear"}
    config = mixed_config(model_config={}).distillation(students=students, restarts=2, num_validation_episodes=2)
    algo = build(config)
    for _ in range(3):
        algo.train()
    path = algo.save_to_path(str(tmp_path / "family"))
    returns = {
        name: evaluate(f"{path}/learner_group/learner/rl_module/{name}", Crossing, num_episodes=5).return_mean
        for name in students
    }
    assert returns["small"] == 8.0
    assert returns["linear"] < 8.0  # it cannot exchange left and right


@pytest.mark.slow
def test_several_agents(build, tmp_path):
    config = (
        mixed_config(Crossings)
        .multi_agent(policies={"left", "right"}, policy_mapping_fn=lambda agent, *args, **kwargs: agent)
        .distillation(teacher={"left": oracle(), "right": oracle()})
    )
    algo = build(config)
    for _ in range(4):
        algo.train()
    returns = algo.evaluate()["env_runners"]["agent_episode_returns_mean"]
    assert returns == {"left": 8.0, "right": 8.0}


class Colours(gym.Env):
    """Random pictures in colours, with the channels last, and a number."""

    observation_space = gym.spaces.Dict(
        [("speed", gym.spaces.Box(-1, 1, (2,))), ("camera", gym.spaces.Box(0, 255, (36, 40, 3), np.uint8))]
    )
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, bool(self.np_random.random() < 0.1), {}


@pytest.mark.slow
def test_labels_of_stable_baselines3_for_the_students_vectors(build, tmp_path):
    """It was trained on pictures with the channels first, as its own wrapper turns them."""
    model = PPO("MultiInputPolicy", Colours(), n_steps=8, batch_size=8, seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    assert model.observation_space["camera"].shape == (3, 36, 40)
    algo = build(mixed_config(Colours).distillation(teacher=str(tmp_path / "model.zip")))
    settings = {"teacher_fraction": 1.0, "epsilon": 0.0, "names": ("obs", "teacher_q"), "num_shards": 1}
    (ref,), _ = algo.env_runner.sample_columns(**settings)
    columns = receive(ref)
    camera, speed = np.split(columns["obs"], [36 * 40 * 3], axis=1)  # in the order of sorted keys
    pictures = np.round(camera * 255).astype(np.uint8).reshape(-1, 36, 40, 3)
    inputs, _ = model.policy.obs_to_tensor({"camera": pictures.transpose(0, 3, 1, 2), "speed": speed})
    with torch.no_grad():
        expected = model.policy.get_distribution(inputs).distribution.logits
    np.testing.assert_allclose(columns["teacher_q"], expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(columns["teacher_q"], axis=0).min() > 1e-3
    algo.train()
