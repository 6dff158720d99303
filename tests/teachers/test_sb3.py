"""Teachers of Stable-Baselines3 beside Stable-Baselines3 itself, which is installed for tests alone."""

import json
import os
import pickle
import shutil
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rllib_kd import limits, load_teacher
from rllib_kd.observations.pipeline import Shown
from tests.formats import serialized
from tests.payloads import payloads


class Anything(gym.Env):
    """Random observations of a space."""

    def __init__(self, observation_space):
        self.observation_space, self.action_space = observation_space, gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def images(*shape):
    return gym.spaces.Box(0, 255, shape, np.uint8)


KINDS = {
    "MLP": (DQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": [16, 8]}),
    "MLP, tanh": (DQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": [16], "activation_fn": torch.nn.Tanh}),
    "linear": (DQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": []}),
    "a matrix": (DQN, gym.spaces.Box(-1, 1, (3, 2)), {"net_arch": [8]}),
    "bytes": (DQN, images(12), {"net_arch": [8]}),
    "discrete": (DQN, gym.spaces.Discrete(5), {"net_arch": [8]}),
    "several discrete": (DQN, gym.spaces.MultiDiscrete([3, 4]), {"net_arch": [8]}),
    "bits": (DQN, gym.spaces.MultiBinary(5), {"net_arch": [8]}),
    "images, channels last": (DQN, images(84, 84, 4), {}),
    "images, channels first": (DQN, images(2, 40, 48), {"net_arch": [8]}),
    "images, fewer features": (DQN, images(36, 36, 1), {"features_extractor_kwargs": {"features_dim": 16}}),
    "quantiles": (QRDQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": [16], "n_quantiles": 25}),
    "quantiles of images": (QRDQN, images(36, 36, 3), {"n_quantiles": 5}),
}


@torch.no_grad()
def original(model, obs):
    """Q-values as Stable-Baselines3 computes them."""
    tensor, _ = model.policy.obs_to_tensor(obs)
    return (model.policy.q_net(tensor) if isinstance(model, DQN) else model.policy.quantile_net(tensor).mean(1)).numpy()


def converted(teacher, obs):
    seen = teacher.start()(Shown(obs, first=np.ones(len(obs), dtype=bool)))
    return teacher.q_values(torch.as_tensor(seen)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_q_values_are_those_of_the_original(tmp_path, kind):
    algorithm, space, policy_kwargs = KINDS[kind]
    policy = "CnnPolicy" if len(space.shape) == 3 else "MlpPolicy"
    model = algorithm(policy, Anything(space), buffer_size=8, policy_kwargs=policy_kwargs, seed=0)
    model.save(tmp_path / "model.zip")
    obs = np.stack([model.observation_space.sample() for _ in range(5)])  # of images, channels first
    teacher = load_teacher(tmp_path / "model.zip")
    assert converted(teacher, obs) == pytest.approx(original(model, obs), abs=1e-6)
    assert isinstance(teacher.module, DefaultDQNTorchRLModule)
    if space.shape != model.observation_space.shape:
        assert converted(teacher, np.moveaxis(obs, 1, -1)) == pytest.approx(original(model, obs), abs=1e-6)


@pytest.mark.parametrize("policy_kwargs", [{}, {"normalize_images": False}], ids=["divided", "as they are"])
@pytest.mark.parametrize(
    "space",
    [images(3, 8, 9), images(8, 9, 3), gym.spaces.Box(0, 99, (8, 9, 3), np.uint8)],
    ids=["channels first", "channels last", "no image there"],
)
def test_mlps_see_images_as_those_of_the_original(tmp_path, space, policy_kwargs):
    kwargs = {"net_arch": [8], **policy_kwargs}
    model = DQN("MlpPolicy", Anything(space), buffer_size=8, policy_kwargs=kwargs, seed=0)
    model.save(tmp_path / "model.zip")
    space.seed(0)
    obs = np.stack([space.sample() for _ in range(5)])
    expected = original(model, obs)
    teacher = load_teacher(tmp_path / "model.zip")
    assert teacher.takes(space)
    assert converted(teacher, obs) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if space.high.max() == 255:
        floats = obs / np.float32(255)
        assert converted(teacher, floats) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_vec_normalize_as_the_original_applies_it(tmp_path):
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=1.5)
    model = DQN("MlpPolicy", envs, learning_starts=0, buffer_size=100, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(100)
    model.save(tmp_path / "model.zip")
    envs.save(tmp_path / "vecnormalize.pkl")
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    teacher = load_teacher(tmp_path / "model.zip")
    assert converted(teacher, obs) == pytest.approx(original(model, envs.normalize_obs(obs)), abs=1e-5)


@pytest.fixture(scope="module")
def normalized(tmp_path_factory):
    """A folder with a zip and files of VecNormalize, observations, and the Q-values of both."""
    folder = tmp_path_factory.mktemp("normalized")
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=1.5)
    model = DQN("MlpPolicy", envs, learning_starts=0, buffer_size=100, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(100)
    model.save(folder / "model.zip")
    envs.save(folder / "right.pkl")
    content = pickle.dumps(envs, 3).replace(b"cgymnasium.spaces", b"cgym.spaces")
    (folder / "gym.pkl").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    expected = original(model, envs.normalize_obs(obs))
    load_teacher(folder / "model.zip")  # so that RLlib has warned of what it warns of once
    envs.obs_rms.mean = envs.obs_rms.mean + 1.0
    envs.save(folder / "wrong.pkl")
    return folder, obs, expected


def lay(normalized, folder, zip_name, **files):
    """Copies of the zip and of its normalisation, as "right" or "wrong", by their paths below a folder."""
    source, obs, expected = normalized
    for name, which in {zip_name: "model.zip", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / which, folder / name)
    return folder / zip_name, obs, expected


@pytest.mark.parametrize(
    ("zip_name", "statistics"),
    [
        ("model.zip", "vec_normalize.pkl"),  # the documentation, and the zoo's hub
        ("model.zip", "vecnormalize.pkl"),
        ("model.zip", "model_vecnormalize.pkl"),
        ("model.zip", "model_vec_normalize.pkl"),
        ("rl_model_1000_steps.zip", "rl_model_vecnormalize_1000_steps.pkl"),  # CheckpointCallback
        ("best_model.zip", "vec_normalize.pkl"),  # EvalCallback
        ("logs/dqn/CartPole-v1_1/CartPole-v1.zip", "logs/dqn/CartPole-v1_1/CartPole-v1/vecnormalize.pkl"),  # the zoo
        ("logs/dqn/CartPole-v1_1/best_model.zip", "logs/dqn/CartPole-v1_1/CartPole-v1/vecnormalize.pkl"),
        ("logs/dqn/CartPole-v1_12/rl_model_5_steps.zip", "logs/dqn/CartPole-v1_12/CartPole-v1/vecnormalize.pkl"),
        ("dqn-CartPole-v1.zip", "vec_normalize.pkl"),
        ("model", "vec_normalize.pkl"),  # any file with the content of a zip
    ],
)
def test_usual_names_of_vec_normalize(tmp_path, normalized, caplog, zip_name, statistics):
    path, obs, expected = lay(normalized, tmp_path, zip_name, **{statistics: "right.pkl"})
    assert converted(load_teacher(path), obs) == pytest.approx(expected, abs=1e-5)
    assert not caplog.records


@pytest.mark.parametrize(
    ("zip_name", "right", "wrong"),
    [
        ("model.zip", "vecnormalize.pkl", "vec_normalize.pkl"),
        ("model.zip", "model_vecnormalize.pkl", "vecnormalize.pkl"),
        ("a_5_steps.zip", "a_vecnormalize_5_steps.pkl", "vecnormalize.pkl"),
        ("a_5_steps.zip", "vec_normalize.pkl", "a_vecnormalize_10_steps.pkl"),
        ("model.zip", "vecnormalize.pkl", "model/vecnormalize.pkl"),
    ],
)
def test_of_several_files_one_is_taken_and_the_others_are_named(tmp_path, normalized, caplog, zip_name, right, wrong):
    path, obs, expected = lay(normalized, tmp_path, zip_name, **{right: "right.pkl", wrong: "wrong.pkl"})
    assert converted(load_teacher(path), obs) == pytest.approx(expected, abs=1e-5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.name.startswith("rllib_kd.")
    stem = zip_name.removesuffix(".zip")
    assert f"from '{right}'. Not used: '{wrong}'." in record.getMessage()
    own = f"{stem}_vecnormalize.pkl"
    advice = f"replace '{own}'" if f"from '{own}'" in record.getMessage() else f"rename it to '{own}'"
    assert advice in record.getMessage()


@pytest.mark.parametrize(
    "name",
    ["normalization.pkl", "obs_rms.npz", "VecNormalise-final.pkl", "running_mean_std.json", "venv_norm_stats.pkl"],
)
def test_normalisation_under_another_name_is_named(tmp_path, normalized, caplog, name):
    path, obs, expected = lay(normalized, tmp_path, "model.zip", **{name: "right.pkl"})
    assert converted(load_teacher(path), obs) != pytest.approx(expected, abs=1e-3)
    assert f"Not used: '{name}'. To use another file" in caplog.text
    path.with_name(name).rename(tmp_path / "model_vecnormalize.pkl")  # as the warning says
    caplog.clear()
    assert converted(load_teacher(path), obs) == pytest.approx(expected, abs=1e-5)
    assert not caplog.records


@pytest.mark.parametrize(
    ("zip_name", "name"),
    [
        ("model.zip", "stats.pkl"),
        ("model.zip", "env.pkl"),
        ("model.zip", "normalization/final.pkl"),
        ("model.zip", "statistics"),
        ("model.zip", "env.bin"),
        ("best_model/best_model.zip", "vec_normalize.pkl"),  # EvalCallback beside the statistics of training
        ("best_model/best_model.zip", "stats"),
    ],
)
def test_a_vec_normalize_under_any_name_is_named(tmp_path, normalized, caplog, zip_name, name):
    path, obs, expected = lay(normalized, tmp_path, zip_name, **{name: "right.pkl"})
    assert converted(load_teacher(path), obs) != pytest.approx(expected, abs=1e-3)
    shown, own = os.path.relpath(tmp_path / name, path.parent), f"{path.stem}_vecnormalize.pkl"
    advice = f"{'copy' if '..' in shown else 'rename'} it to '{own}' beside the zip"
    assert (
        f"takes no file of normalisation. Not used: '{shown}'. To use another file for this zip, {advice}"
        in caplog.text
    )
    shutil.copy(tmp_path / name, path.with_name(own))  # as the warning says
    caplog.clear()
    assert converted(load_teacher(path), obs) == pytest.approx(expected, abs=1e-5)


def test_what_is_no_vec_normalize_is_not_named(tmp_path, normalized, caplog):
    path = lay(normalized, tmp_path, "a/model.zip")[0]
    rewards = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False)
    contents = {"data.pkl": pickle.dumps({"a": 1}), "broken": pickle.dumps(rewards)[:-9], "empty.pkl": b""}
    contents |= {"rewards.pkl": pickle.dumps(rewards), "text": b"VecNormalize", "other.zip": pickle.dumps(rewards)}
    for name, content in contents.items():
        for folder in (path.parent, tmp_path, tmp_path / "a" / "inner"):
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    load_teacher(path)
    assert not caplog.records


def test_statistics_beside_other_zips_are_theirs_unless_this_one_has_none(tmp_path, normalized, caplog):
    files = {f"{folder}vec_normalize.pkl": "right.pkl" for folder in ("", "best/", "last/")}
    path = lay(
        normalized, tmp_path, "model.zip", **files, **{"best/best_model.zip": "model.zip", "last/c.zip": "model.zip"}
    )[0]
    for zip_name in ("model.zip", "best/best_model.zip"):
        load_teacher(tmp_path / zip_name)
    assert not caplog.records
    (tmp_path / "vec_normalize.pkl").unlink()
    load_teacher(path)
    assert "Not used: 'best/vec_normalize.pkl', 'last/vec_normalize.pkl'." in caplog.text


def test_a_folder_called_after_another_zip_has_its_statistics(tmp_path, normalized, caplog):
    """As in the zoo: ppo-Acrobot-v1.zip, and ppo-Acrobot-v1/vecnormalize.pkl."""
    path = lay(normalized, tmp_path, "dqn.zip", **{"ppo.zip": "model.zip", "ppo/vecnormalize.pkl": "right.pkl"})[0]
    load_teacher(path)
    assert not caplog.records
    (tmp_path / "ppo.zip").unlink()
    load_teacher(path)
    assert "Not used: 'ppo/vecnormalize.pkl'." in caplog.text


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_statistics_that_are_no_plain_file_are_an_error(tmp_path, normalized, kind):
    path = lay(normalized, tmp_path, "model.zip")[0]
    if kind == "folder":
        (tmp_path / "vecnormalize.pkl").mkdir()
    else:
        (tmp_path / "vecnormalize.pkl").symlink_to("nowhere.pkl")
    with pytest.raises(ValueError, match="has the name of the zip's statistics, but is not a plain file"):
        load_teacher(path)


def test_no_folder_above_is_a_run_of_the_zoo(tmp_path, normalized):
    path = lay(normalized, tmp_path, ".._1/model.zip", **{"vecnormalize.pkl": "wrong.pkl"})[0]
    assert load_teacher(path).pipeline is None


def test_candidates_are_data_and_few(tmp_path, normalized, caplog, monkeypatch):
    mark = tmp_path / "mark"
    path = lay(normalized, tmp_path, "model.zip")[0]
    for i, payload in enumerate(payloads(mark).values()):
        (tmp_path / f"{i}.pkl").write_bytes(pickle.dumps(payload))
    load_teacher(path)
    assert not mark.exists()
    lay(normalized, tmp_path, "model.zip", **{"x.pkl": "right.pkl", "y": "right.pkl"})
    load_teacher(path)
    assert "Not used: 'x.pkl', 'y'." in caplog.text
    caplog.clear()
    monkeypatch.setattr(limits, "MAX_STATISTICS", 1 + len(payloads(mark)))
    load_teacher(path)
    assert "Not used: 'x.pkl'." in caplog.text


def test_files_of_other_checkpoints_are_no_candidates(tmp_path, normalized, caplog):
    lay(normalized, tmp_path, "a_10_steps.zip", **{"a_vecnormalize_10_steps.pkl": "wrong.pkl"})
    lay(normalized, tmp_path, "b.zip", **{"b_vecnormalize.pkl": "wrong.pkl", "normalizer_notes.txt": "wrong.pkl"})
    path, obs, expected = lay(normalized, tmp_path, "a_5_steps.zip", **{"a_vecnormalize_5_steps.pkl": "right.pkl"})
    assert converted(load_teacher(path), obs) == pytest.approx(expected, abs=1e-5)
    assert not caplog.records


def test_vec_normalize_from_the_days_of_gym(tmp_path, normalized):
    path, obs, expected = lay(normalized, tmp_path, "model.zip", **{"vec_normalize.pkl": "gym.pkl"})
    assert b"cgym.spaces" in (tmp_path / "vec_normalize.pkl").read_bytes()
    assert converted(load_teacher(path), obs) == pytest.approx(expected, abs=1e-5)


def test_normalisation_of_another_shape_is_refused(tmp_path, normalized):
    path = lay(normalized, tmp_path, "model.zip")[0]
    VecNormalize(DummyVecEnv([lambda: gym.make("Acrobot-v1")])).save(tmp_path / "vec_normalize.pkl")
    with pytest.raises(ValueError, match=r"'vec_normalize.pkl' normalises .* the shape \(6,\), expected \(4,\)"):
        load_teacher(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"clip_obs": -1.0}, "clip_obs = -1.0; expected a number above 0"),
        ({"clip_obs": 0.0}, "clip_obs = 0.0; expected a number above 0"),
        ({"clip_obs": np.nan}, "clip_obs = nan; expected a number above 0"),
        ({"epsilon": np.nan}, "epsilon = nan; expected a finite number of at least 0"),
        ({"epsilon": -1.0}, "epsilon = -1.0; expected"),
        ({"epsilon": np.inf}, "epsilon = inf; expected"),
        ({"var": -1.0}, r"obs_rms\.var = -1.0; expected finite numbers of at least 0"),
        ({"var": np.inf}, r"obs_rms\.var = inf; expected"),
        ({"var": np.nan}, r"obs_rms\.var = nan; expected"),
        ({"mean": np.nan}, r"obs_rms\.mean = nan; expected finite 32-bit numbers"),
        ({"mean": 1e300}, r"obs_rms\.mean = 1e\+300; expected finite 32-bit numbers"),
        ({"var": 1e-300, "epsilon": 0.0}, r"sqrt\(obs_rms\.var \+ epsilon\) = 1e-150; expected 32-bit numbers above 0"),
        ({"var": 0.0, "epsilon": 0.0}, r"sqrt\(obs_rms\.var \+ epsilon\) = 0.0; expected"),
        ({"clip_obs": None}, "clip_obs = None; expected numbers"),
        ({"clip_obs": "10"}, "clip_obs = 10; expected numbers"),
        ({"clip_obs": True}, "clip_obs = True; expected numbers"),
        ({"norm_obs": "False"}, "norm_obs = False; expected True or False"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(tmp_path, normalized, change, match):
    path = lay(normalized, tmp_path, "model.zip")[0]
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    for name, value in change.items():
        if name in ("mean", "var"):
            getattr(envs.obs_rms, name)[2] = value
        else:
            setattr(envs, name, value)
    envs.save(tmp_path / "vec_normalize.pkl")
    with pytest.raises(ValueError, match=match) as caught:
        load_teacher(path)
    assert str(caught.value).isprintable()
    if "expected" in match:
        assert "'vec_normalize.pkl' beside the zip has" in str(caught.value)


def test_statistics_at_the_edge_of_sense_load(tmp_path, normalized):
    """Without clipping, and of an input that never varies."""
    path, obs, _ = lay(normalized, tmp_path, "model.zip")
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=np.inf)
    envs.obs_rms.var[2] = 0.0
    envs.save(tmp_path / "vec_normalize.pkl")
    expected = original(DQN.load(path), envs.normalize_obs(obs))
    assert converted(load_teacher(path), obs) == pytest.approx(expected, rel=1e-4)


PARTS = {
    "vector": gym.spaces.Box(-1, 1, (3,)),
    "cell": gym.spaces.Discrete(4),
    "grid": gym.spaces.Box(0, 9, (2, 2), np.uint8),
    "several": gym.spaces.MultiDiscrete([2, 3]),
    "bits": gym.spaces.MultiBinary(2),
}


def check_is_the_original(algorithm, space, path, *, policy_kwargs=None):
    """It gives the original's Q-values or logits, for 100 random observations of an environment with this space."""
    smaller = {"buffer_size": 8} if algorithm is DQN else {} if algorithm is A2C else {"n_steps": 8, "batch_size": 8}
    env = Anything(space)
    env.action_masks = lambda: np.ones(3, dtype=bool)
    model = algorithm("MultiInputPolicy", env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **smaller)
    with torch.no_grad():  # outputs that differ from observation to observation
        for weight in model.policy.parameters():
            weight.mul_(1.5)
    model.save(path)
    teacher = load_teacher(path)
    space.seed(0)
    seen = [space.sample() for _ in range(100)]
    batch = {key: np.stack([obs[key] for obs in seen]) for key in space.spaces}
    with torch.no_grad():
        inputs, _ = model.policy.obs_to_tensor(batch)
        if algorithm is DQN:
            expected = model.q_net(inputs)
        else:
            expected = model.policy.get_distribution(inputs).distribution.logits
    assert teacher.takes(space)
    assert teacher.takes(model.observation_space)  # with the channels first
    got = teacher.q_values(torch.from_numpy(teacher.start()(Shown(batch, np.ones(100, dtype=bool)))))
    assert got.numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-5 * max(1.0, float(expected.abs().max())))
    assert np.ptp(expected.numpy(), axis=0).min() > 1e-2


@pytest.mark.parametrize("order", [sorted(PARTS), list(PARTS)], ids=["sorted", "its own order"])
@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_policies_of_several_inputs_are_those_of_the_original(tmp_path, algorithm, order):
    space = gym.spaces.Dict([(key, PARTS[key]) for key in order])
    assert list(space.spaces) == order
    check_is_the_original(algorithm, space, tmp_path / "model.zip")


def floats(low, *shape):
    return gym.spaces.Box(low, 1.0, shape, np.float32)


VECTOR, CELL = PARTS["vector"], PARTS["cell"]
RAW = {"normalize_images": False}
#: Inputs in an order that is not the one of sorted keys, and policy_kwargs.
WITH_IMAGES = {
    "channels first": ({"vector": VECTOR, "eye": images(3, 36, 40), "cell": CELL}, None),
    "channels last": ({"vector": VECTOR, "eye": images(36, 40, 3), "cell": CELL}, None),
    "two images": ({"z": images(40, 36, 1), "vector": VECTOR, "eye": images(36, 36, 3), "cell": CELL}, None),
    "floats": ({"z": floats(0.0, 3, 36, 40), "vector": VECTOR}, RAW),
    "floats below 0": ({"z": floats(-1.0, 3, 36, 40), "vector": VECTOR}, RAW),
    "bytes as they are": ({"z": images(3, 36, 40), "vector": VECTOR}, RAW),
    "floats that are no image there": ({"z": floats(0.0, 3, 36, 40), "y": images(1, 36, 36), "a": VECTOR}, None),
    "bytes that are no image there": ({"z": gym.spaces.Box(0, 99, (3, 20, 24), np.uint8), "a": VECTOR}, None),
}


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [*((kind, DQN) for kind in WITH_IMAGES), *(("channels first", each) for each in (PPO, A2C, MaskablePPO))],
)
def test_images_beside_other_inputs_are_seen_as_by_the_original(tmp_path, algorithm, kind):
    parts, policy_kwargs = WITH_IMAGES[kind]
    space = gym.spaces.Dict(list(parts.items()))
    assert list(space.spaces) == list(parts) != sorted(parts)
    check_is_the_original(algorithm, space, tmp_path / "model.zip", policy_kwargs=policy_kwargs)


def test_the_last_images_of_many_environments_are_no_obstacle(tmp_path, monkeypatch):
    model = A2C("CnnPolicy", Anything(images(36, 36, 1)), device="cpu")
    model._last_obs = np.zeros((5_000, 1, 36, 36), np.uint8)
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert archive.getinfo("data").file_size > limits.MAX_DESCRIPTION
    assert load_teacher(tmp_path / "model.zip").action_space.n == 3
    monkeypatch.setattr(limits, "MAX_SB3_DATA", limits.MAX_DESCRIPTION)
    with pytest.raises(
        ValueError, match=r"its 'data' has \d+ bytes, expected at most \d+\. .*exclude=\['_last_obs', '"
    ):
        load_teacher(tmp_path / "model.zip")
    model.save(tmp_path / "model.zip", exclude=["_last_obs", "_last_original_obs"])  # as the message says
    assert load_teacher(tmp_path / "model.zip").action_space.n == 3


def test_inputs_without_a_fixed_size_are_refused(tmp_path):
    space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (3,)), eye=images(3, 40, 40))
    DQN("MultiInputPolicy", Anything(space), buffer_size=8).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(files["data"])
    data["observation_space"] = serialized(gym.spaces.Dict(a=space["a"], eye=gym.spaces.Sequence(CELL)))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for name, content in {**files, "data": json.dumps(data)}.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="Sequence"):
        load_teacher(tmp_path / "model.zip")
