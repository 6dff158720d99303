"""Masks are recognised in every spelling, and refused by one sentence if they make no sense."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.algorithm.preflight import check_environment
from rllib_kd.environments.masked import MasksInInfos, with_masks_in_infos
from rllib_kd.observations.connectors import MaskApart, OneVector, connectors_for
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.masks import (
    LegalActions,
    MaskError,
    check_mask_space,
    features_of,
    features_space,
    has_mask,
    legal_only,
    random_actions,
    with_mask,
)
from rllib_kd.observations.pipeline import Flatten, ObservationPipeline, Shown, SideBySide
from rllib_kd.observations.spaces import same_space
from tests.observations.masked import ALL, NUM_ACTIONS, NUMBERS, BesideParts, ByMethod, InDict, InInfo, Payments

ACTIONS = gym.spaces.Discrete(NUM_ACTIONS)
NONE_ENDED = np.zeros(2, dtype=bool)


def vector_env(env):
    return gym.vector.SyncVectorEnv([lambda: with_masks_in_infos(env({"length": 3}))] * 2)


def played(envs, num_steps):
    """What the envs show and which actions are legal, at each step."""
    take = LegalActions(envs.single_observation_space, envs.single_action_space)
    obs, infos = envs.reset(seed=0)
    ended = NONE_ENDED
    for _ in range(num_steps):
        features, mask = take(obs, infos, ended)
        yield features, mask, ended
        obs, _, terminateds, truncateds, infos = envs.step(mask.argmax(-1))
        ended = terminateds | truncateds


@pytest.mark.parametrize("env", ALL)
def test_all_spellings_are_one(env):
    envs = vector_env(env)
    num_ended = 0
    for features, mask, ended in played(envs, 10):
        legal = np.array([own.unwrapped.legal for own in envs.envs], dtype=bool)
        num_ended += ended.sum()
        legal[ended] = True  # no action follows
        np.testing.assert_array_equal(mask, legal)
        assert mask.dtype == bool
        shown = features_space(envs.single_observation_space)
        assert not has_mask(shown)
        numbers = Flattener(shown)(features, 2)
        np.testing.assert_array_equal(numbers, [own.unwrapped.pays for own in envs.envs])
    assert num_ended == 4


def test_environments_without_masks_have_none():
    take = LegalActions(NUMBERS, ACTIONS)
    obs = np.zeros((2, 4))
    assert take(obs, {}, NONE_ENDED) == (obs, None)
    assert take(obs, [{}, {}], NONE_ENDED)[1] is None
    assert not has_mask(gym.spaces.Dict(action_mask=NUMBERS))  # an observation of that name alone
    assert not has_mask(gym.spaces.Dict(action_mask=gym.spaces.Box(0, 1, (2, 2)), obs=NUMBERS))
    assert with_masks_in_infos(env := Payments()) is env


def test_actions_that_are_not_discrete_have_none():
    space = gym.spaces.Dict(observations=NUMBERS, action_mask=NUMBERS)
    take = LegalActions(space, gym.spaces.Box(-1, 1, (2,)))
    obs = {"observations": np.zeros((2, 4)), "action_mask": np.ones((2, 4))}
    features, mask = take(obs, {}, NONE_ENDED)
    assert mask is None
    assert features is obs["observations"]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([[1, 0, 0, 0], [0, 0, 0, 0]], r"sub-environment 1 is \[0, 0, 0, 0\], expected zeros and ones"),
        ([[1, 0, 0, 0], [1, np.nan, 0, 0]], r"sub-environment 1 is \[1.0, nan, 0.0, 0.0\]"),
        ([[1, 0, 0, 0], [1, 2, 0, 0]], r"sub-environment 1 is \[1, 2, 0, 0\]"),
        ([[1, 0, 0, 0], [-1, 1, 0, 0]], r"sub-environment 1 is \[-1, 1, 0, 0\]"),
        ([[1, 0, 0], [1, 1, 0]], r"sub-environment 0 has the shape \[3\], expected \[4\]"),
        ([[1, 0, 0, 0], [1, 1, 0]], r"sub-environment 1 has the shape \[3\], expected \[4\]"),
        ([1, 0], r"sub-environment 0 has the shape \[\], expected \[4\]"),
        (["legal", "legal"], r"sub-environment 0 has the shape \[\]"),
        ([[1, 0, 0, 0], None], r"info\['action_mask'\] is missing in sub-environment 1, but was there before"),
    ],
)
def test_masks_without_sense_are_refused(masks, message):
    take = LegalActions(NUMBERS, ACTIONS)
    with pytest.raises(MaskError, match=message):
        take(np.zeros((2, 4)), [{} if mask is None else {"action_mask": mask} for mask in masks], NONE_ENDED)


def test_a_mask_that_comes_or_goes_is_refused():
    obs, given = np.zeros((2, 4)), [{"action_mask": [1, 1, 1, 1]}] * 2
    take = LegalActions(NUMBERS, ACTIONS)
    take(obs, [{}, {}], NONE_ENDED)
    with pytest.raises(MaskError, match=r"is there after step\(\), but not after reset\(\)"):
        take(obs, given, NONE_ENDED)
    take = LegalActions(NUMBERS, ACTIONS)
    take(obs, given, NONE_ENDED)
    assert take(obs, [{}, given[0]], np.array([True, False]))[1].all()  # an episode has ended
    with pytest.raises(MaskError, match="missing"):
        take(obs, [{}, {}], np.array([True, False]))


def test_masks_of_arrays_and_of_lists_are_equal():
    take = [LegalActions(NUMBERS, ACTIONS) for _ in range(2)]
    obs, masks = np.zeros((2, 4)), np.array([[1, 0, 1, 0], [0, 0, 0, 0]])
    ended = np.array([False, True])
    arrays = take[0](obs, {"action_mask": masks, "_action_mask": np.array([True, False])}, ended)[1]
    dicts = take[1](obs, [{"action_mask": masks[0]}, {}], ended)[1]
    np.testing.assert_array_equal(arrays, dicts)
    np.testing.assert_array_equal(arrays, [[True, False, True, False], [True] * 4])


def test_the_method_is_not_asked_after_the_end():
    class Strict(ByMethod):
        def action_masks(self):
            assert self.legal.any()
            return super().action_masks()

    env = with_masks_in_infos(Strict({"length": 1}))
    assert isinstance(env, MasksInInfos)
    _, info = env.reset(seed=0)
    _, _, terminated, _, last = env.step(info["action_mask"].argmax())
    assert terminated
    assert "action_mask" not in last


@pytest.mark.parametrize("env", ALL)
def test_an_observation_is_put_together_again(env):
    space = env().observation_space
    seen = env().reset(seed=0)[0]
    obs = {key: part[None] for key, part in seen.items()} if has_mask(space) else seen[None]
    mask = np.asarray(obs["action_mask"], dtype=bool) if has_mask(space) else None
    again = with_mask(space, features_of(space, obs), mask, 1)
    if not has_mask(space):
        assert again is obs
        return
    assert again.keys() == obs.keys()
    assert all(np.array_equal(again[key], obs[key]) for key in obs)
    assert with_mask(space, features_of(space, obs), None, 1)["action_mask"].all()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_without_a_mask_all_actions_of_all_environments_are_legal_whatever_the_parts(num_envs):
    numbers = gym.spaces.Box(0, 1, (1,), np.float32)
    for parts, obs in (
        (gym.spaces.Tuple((numbers, numbers)), (np.zeros((num_envs, 1)),) * 2),
        (gym.spaces.Dict(a=numbers, b=gym.spaces.Text(3)), {"a": np.zeros((num_envs, 1)), "b": ("up",) * num_envs}),
    ):
        space = gym.spaces.Dict(observations=parts, action_mask=gym.spaces.MultiBinary(2))
        seen = ObservationPipeline(space, (Flatten(space),)).start()(Shown(obs, np.ones(num_envs, dtype=bool)))
        assert (seen[:, :2] == 1).all()
        assert len(seen) == num_envs


def test_connectors_see_no_mask():
    assert [type(each) for each in connectors_for(InDict().observation_space)] == [MaskApart]
    assert [type(each) for each in connectors_for(BesideParts.observation_space)] == [MaskApart, OneVector]
    assert connectors_for(NUMBERS) == []
    taxi = gym.spaces.Dict(observation=gym.spaces.Discrete(500), action_mask=gym.spaces.MultiBinary(6))
    assert [type(each).__name__ for each in connectors_for(taxi)] == ["MaskApart", "FlattenObservations"]


def test_pipelines_take_observations_with_and_without_masks():
    space = InDict().observation_space
    plain = ObservationPipeline(NUMBERS)
    assert plain.takes(space)
    assert plain.takes(NUMBERS)
    removes = ObservationPipeline(space, (Flatten(space, ("action_mask",)),))  # RLlib's FlattenObservations
    assert removes.takes(space)
    assert removes.takes(NUMBERS)
    obs = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(removes.start()(Shown(obs, np.ones(2, dtype=bool))), obs)
    takes_mask = ObservationPipeline(space, (Flatten(space),))  # a network that sees the mask, too
    mask = np.array([[True, False, True, True], [False, True, True, False]])
    seen = takes_mask.start()(Shown(obs, np.ones(2, dtype=bool), mask=mask))
    np.testing.assert_array_equal(seen, np.concatenate([mask, obs], axis=1))
    assert same_space(features_space(BesideParts.observation_space)["left"], BesideParts.observation_space["left"])


@pytest.mark.parametrize("first", [0, 1])
def test_side_by_side_some_see_the_mask_and_others_do_not(first):
    space = InDict().observation_space
    pipelines = [ObservationPipeline(NUMBERS), ObservationPipeline(space, (Flatten(space),))]
    both = ObservationPipeline(pipelines[first].observation_space, (SideBySide(tuple(pipelines)),))
    assert both.takes(space)
    obs, mask = np.arange(8.0).reshape(2, 4), np.array([[True, False, True, True], [False, True, True, False]])
    seen = both.start()(Shown(obs, np.ones(2, dtype=bool), mask=mask))
    np.testing.assert_array_equal(seen, np.concatenate([obs, mask, obs], axis=1))


def test_illegal_actions_are_never_chosen():
    rng, mask = np.random.default_rng(0), np.array([[True, False, False, True]] * 1_000)
    drawn = random_actions(rng, 4, 1_000, mask)
    assert set(drawn) == {0, 3}
    assert 400 < (drawn == 0).sum() < 600
    assert set(random_actions(rng, 4, 1_000, None)) == {0, 1, 2, 3}
    q = np.tile(np.array([1.0, 9.0, 8.0, 2.0], np.float32), (1_000, 1))
    assert set(legal_only(q, mask).argmax(-1)) == {3}
    assert legal_only(q, mask).dtype == np.float32
    assert legal_only(q, None) is q


def test_infos_of_taxi():
    envs = gym.vector.SyncVectorEnv([lambda: gym.make("Taxi-v3")] * 2)
    for _, mask, ended in played(envs, 5):
        assert mask.shape == (2, 6)
        assert not ended.any()
        assert not mask.all()


def test_a_method_that_is_no_method_is_none():
    class Odd(InInfo):
        action_masks = None

    assert not isinstance(with_masks_in_infos(Odd()), MasksInInfos)


@pytest.mark.parametrize("part", [gym.spaces.Box(0, 1, (3, 1), np.int8), gym.spaces.Discrete(8)])
def test_a_part_with_the_name_of_a_mask_has_the_space_of_one(part):
    """It was an input of the network, and all actions were legal."""
    space = gym.spaces.Dict({"observations": NUMBERS, "action_mask": part})
    with pytest.raises(ValueError, match=r"part 'action_mask' is .*, which is not the space of a mask"):
        check_mask_space(space)
    for other in (part, gym.spaces.Dict({"action_mask": part}), InDict().observation_space):
        check_mask_space(other)


def test_environments_whose_masks_have_another_space_are_refused(cartpole_config):
    part = gym.spaces.Box(0, 1, (3, 1), np.int8)
    with pytest.raises(ValueError, match="not the space of a mask"):
        check_environment(cartpole_config, (gym.spaces.Dict({"observations": NUMBERS, "action_mask": part}), ACTIONS))
