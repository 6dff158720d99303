"""Teachers from Stable-Baselines3: zips of DQN, QR-DQN, A2C, PPO and MaskablePPO, back to version 1.0 and `gym`.

Neither Stable-Baselines3 nor `gym` is needed. `data` in the zip is JSON, whose pickles are read as data. The weights
are in a file of PyTorch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from rllib_kd import limits
from rllib_kd.checkpoints.archives import Archive, as_tensors, read_weights
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.pickles import CheckpointError, Tag, as_checkpoint_error, read_pickle
from rllib_kd.checkpoints.values import build
from rllib_kd.observations.pipeline import Normalize, Stage
from rllib_kd.observations.spaces import check_size, is_byte_image
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import reason
from rllib_kd.teachers.layered import layered_teacher
from rllib_kd.teachers.normalization import NormalizationFile, is_vec_normalize
from rllib_kd.teachers.sb3_networks import LIBRARIES, ActingNetwork, acting_network, read_network
from rllib_kd.text import one_line
from rllib_kd.wire import LOG_PROBS

FILES = frozenset({"data", "policy.pth"})  # by which a zip is recognised
NAME_THE_ZIP = "Name the zip itself, as model.save() wrote it: that is read without being unpacked."
#: What to do about a network of the user's own code.
_LOAD_IT = "Load it by Stable-Baselines3, and use Teacher.from_callable(), for a policy with outputs='logits'."
_FLOAT32 = np.finfo(np.float32)  # networks take no other numbers


def load_sb3(
    content: bytes, uri: str, find_normalization: Callable[[bool | None], NormalizationFile | None] | None = None
) -> Teacher:
    """Load the network that acts in a zip: the Q-network of DQN or QR-DQN, or the policy of A2C, PPO or MaskablePPO.

    Args:
        content: content of the zip.
        uri: its path, for messages.
        find_normalization: returns its file of VecNormalize, if there is one. Its argument is whether the policy was
            trained with one; None: the zip does not record it.

    Raises:
        ValueError: it is not a whole zip, of another algorithm, or has a network that is not supported.
    """
    archive = Archive(content, uri)
    data = _read_data(archive, uri)
    weights, acting = _read_weights(archive, uri)
    observation_space, action_space = (_read_pickle_in(data, key, uri) for key in ("observation_space", "action_space"))
    _check_policy_class(data, uri)
    policy_kwargs = _read_policy_kwargs(data, uri)
    vec_normalize = None if find_normalization is None else find_normalization(_was_normalized(data, acting))
    with as_checkpoint_error(lambda error: f"'{uri}' has a network that does not fit: {reason(error)}. {_LOAD_IT}"):
        check_size(observation_space)
        layers, tensors, stages, shape = read_network(weights, acting, observation_space, action_space, policy_kwargs)
        if vec_normalize is not None:
            stages = [*_read_vec_normalize(*vec_normalize, observation_space), *stages]
        return layered_teacher(
            layers,
            tensors,
            observation_shape=shape,
            num_actions=int(action_space.n),
            observation_space=observation_space,
            stages=stages,
            outputs=acting.outputs,
            source=uri,
        )


def is_policy(saved: Any) -> bool:
    """Return whether weights are a whole policy of Stable-Baselines3, as its zips have it beside other files."""
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        return False
    acting = acting_network(list(saved))
    return acting is not None and len(acting.of(saved)) < len(saved)  # with target networks or a critic


def _read_weights(archive: Archive, uri: str) -> tuple[dict[str, Tensor], ActingNetwork]:
    """Return the weights of the policy, and which of them act."""
    saved = read_weights(archive.read("policy.pth"), f"{uri}/policy.pth")
    names = [name for name in saved if isinstance(name, str)] if isinstance(saved, Mapping) else []
    acting = acting_network(names)
    if acting is not None and acting.outputs == LOG_PROBS and len(names) == len(saved):
        saved = acting.of(saved)  # the critic's may be the same tensors under other names
    weights = as_tensors(saved, uri)
    if acting is None:
        raise CheckpointError(
            f"'{uri}' is a zip of Stable-Baselines3 without a Q-network or a policy of discrete actions: its weights "
            f"begin with '{next(iter(weights))}'. Expected a DQN, QR-DQN, A2C, PPO or MaskablePPO."
        )
    return weights, acting


# --- The entries of `data` --------------------------------------------------------------------------------------------


def _read_data(archive: Archive, uri: str) -> dict[str, Any]:
    content = archive.read("data")
    if len(content) > limits.MAX_SB3_DATA:
        raise CheckpointError(
            f"'{uri}' was refused: its 'data' has {len(content)} bytes, expected at most {limits.MAX_SB3_DATA}. The "
            "last observations of all environments are in it: save the zip without them, by model.save(path, "
            "exclude=['_last_obs', '_last_original_obs'])."
        )
    try:
        data = parse_json(content, max_bytes=limits.MAX_SB3_DATA)
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{uri}' cannot be read: its 'data' is not JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"'{uri}' cannot be read: its 'data' is not a JSON object.")
    return data


def _read_pickle_in(data: Mapping[str, Any], key: str, uri: str) -> Any:
    """Read an entry that Stable-Baselines3 has written into the JSON as the text of a pickle."""
    where = f"{uri}/data/{key}"
    entry = data.get(key)
    try:
        content = base64.b64decode(entry[":serialized:"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{where}' is missing or broken ({error!r}). Is the file complete?") from error
    return build(read_pickle(io.BytesIO(content), where), where, _LOAD_IT)


def _check_policy_class(data: Mapping[str, Any], uri: str) -> None:
    """Check that the policy's class is a library's: another one may compute anything of weights with the same names."""
    entry = data.get("policy_class")
    module = entry.get("__module__") if isinstance(entry, dict) else None
    if isinstance(module, str) and module.partition(".")[0] not in LIBRARIES:
        raise CheckpointError(
            f"'{uri}' has a policy of a custom class, in the module {one_line(module, limit=100)!r}; expected one "
            f"of Stable-Baselines3. {_LOAD_IT}"
        )


def _read_policy_kwargs(data: Mapping[str, Any], uri: str) -> Mapping[str, Any]:
    policy_kwargs = data.get("policy_kwargs") or {}
    if isinstance(policy_kwargs, dict) and ":serialized:" in policy_kwargs:
        policy_kwargs = _read_pickle_in(data, "policy_kwargs", uri)
    if not isinstance(policy_kwargs, dict):
        raise CheckpointError(f"'{uri}' has a {type(policy_kwargs).__name__} as policy_kwargs, expected a dict.")
    return policy_kwargs


def _was_normalized(data: Mapping[str, Any], acting: ActingNetwork) -> bool | None:
    """Return whether a policy was trained with a VecNormalize, be it of rewards alone; None if that is not recorded.

    A2C and PPO keep the original observations only then, from the start of training on. DQN keeps them always.
    """
    if acting.outputs != LOG_PROBS or "_last_original_obs" not in data or data.get("_last_obs") is None:
        return None
    return data["_last_original_obs"] is not None


# --- VecNormalize -----------------------------------------------------------------------------------------------------


def _read_vec_normalize(where: str, content: bytes, space: gym.Space) -> list[Stage]:
    """Return the current statistics of a `VecNormalize`, as stages."""
    tag = read_pickle(io.BytesIO(content), where)
    if not is_vec_normalize(tag):
        raise CheckpointError(f"'{where}' beside the zip is not a VecNormalize. Move it away if it is not the zip's.")
    state = tag.state
    norm_obs = build(state.get("norm_obs", True), where)
    if not isinstance(norm_obs, bool | np.bool_):
        raise _unusable(where, "norm_obs", norm_obs, "True or False")
    if not norm_obs:
        return []
    statistics = state.get("obs_rms")
    if isinstance(statistics, dict):
        raise CheckpointError(
            f"'{where}' normalises the parts of a Dict, each by statistics of its own, which is not supported. "
            "Normalise each part in a wrapper of the environment, and move this file away."
        )
    if not isinstance(statistics, Tag) or not isinstance(statistics.state, dict):
        raise _unusable(where, "obs_rms", statistics, "the statistics of one array")
    if not isinstance(space, gym.spaces.Box) or is_byte_image(space):  # of images, Stable-Baselines3 saves floats
        raise CheckpointError(f"'{where}' normalises {space}, expected a Box that is no image of bytes.")
    mean, variance = (_numbers(build(statistics.state[key], where), f"obs_rms.{key}", where) for key in ("mean", "var"))
    epsilon, clip = (float(_numbers(build(state[key], where), key, where)) for key in ("epsilon", "clip_obs"))
    if mean.shape == variance.shape and _is_stack(space.shape, mean.shape):
        raise CheckpointError(
            f"'{where}' normalises observations of the shape {mean.shape}, but the zip takes {space.shape}, as of "
            "VecNormalize beneath a VecFrameStack, which is not supported. Normalise in a wrapper of the environment, "
            "before the frames are stacked, and move this file away; or does it belong to another zip?"
        )
    if mean.shape != space.shape or variance.shape != space.shape:
        raise CheckpointError(
            f"'{where}' normalises observations of the shape {mean.shape}, expected {space.shape}. Does it belong to "
            "another zip?"
        )
    with np.errstate(all="ignore"):  # whatever makes no sense is refused below
        std = np.sqrt(variance + epsilon)
    for name, values, makes_sense, expected in (
        ("obs_rms.mean", mean, np.abs(mean) <= _FLOAT32.max, "finite 32-bit numbers"),
        ("obs_rms.var", variance, (variance >= 0) & np.isfinite(variance), "finite numbers of at least 0"),
        ("epsilon", epsilon, 0 <= epsilon < np.inf, "a finite number of at least 0"),
        ("clip_obs", clip, clip > 0, "a number above 0"),
        ("sqrt(obs_rms.var + epsilon)", std, (std >= _FLOAT32.tiny) & (std <= _FLOAT32.max), "32-bit numbers above 0"),
    ):
        if not np.all(makes_sense):
            bad = np.ravel(values)[~np.ravel(makes_sense)][:10].tolist()
            raise _unusable(where, name, ", ".join(map(str, bad)), expected)
    return [Normalize(mean, std, None if clip == np.inf else clip)]


def _is_stack(shape: tuple[int, ...], frame: tuple[int, ...]) -> bool:
    """Return whether arrays of a shape may be stacks of such frames, one behind the other along one axis."""
    if len(shape) != len(frame):
        return False
    longer = [(all_of, one) for all_of, one in zip(shape, frame, strict=True) if all_of != one]
    return len(longer) == 1 and longer[0][1] > 0 and longer[0][0] % longer[0][1] == 0


def _numbers(value: Any, name: str, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise _unusable(where, name, value, "numbers")
    return array.astype(np.float64)


def _unusable(where: str, name: str, got: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"'{where}' beside the zip has {name} = {one_line(got, limit=300)}; expected {expected}. Save it again with "
        "VecNormalize.save(), or move it away if it does not belong to the zip."
    )
