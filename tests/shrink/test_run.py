"""Rounds of training and validation, and how Ctrl-C ends them; without training."""

import threading
from itertools import pairwise
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.certificates.games import Games, first_certificate_seed
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.shrink.arena import InEnvironment
from rllib_kd.shrink.budget import Budget
from rllib_kd.shrink.candidates import default_sizes, mlp
from rllib_kd.shrink.progress import Progress
from rllib_kd.shrink.run import ROUNDS, InterruptedRunError, Run
from rllib_kd.shrink.training import reachable, training_config
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module


class Trainer:
    """Counts env steps; `at_step` is called after each iteration."""

    def __init__(self, at_step=lambda env_steps: None):
        self.env_steps, self.at_step = 0, at_step

    def train(self, is_over, report):
        while not is_over():
            self.env_steps += 100
            self.at_step(self.env_steps)
            report()

    def prefer(self, sizes, *, resting):
        self.preferred = [*getattr(self, "preferred", []), (sizes, resting)]

    def copies(self):
        return {"linear": self.env_steps}

    seen_returns = np.zeros(2)

    def save(self, folder):
        folder.mkdir(parents=True)


class NoProgress(Progress):
    """Writes no copies, which here are numbers."""

    def save_copies(self, env_steps, modules):
        pass


class Tournament:
    sizes = ("linear",)

    def __init__(self, settled_at=None):
        self.settled_at, self.rounds, self.finished = settled_at, [], None

    def round(self, number, copies, env_steps, *, limit):
        assert copies == {"linear": env_steps}
        self.limits = [*getattr(self, "limits", []), limit]
        self.rounds.append((number, env_steps))

    def preferred(self, number):
        return ["linear"] * number

    def resting(self, number, copies):
        assert copies == ["linear"]
        return ["huge"] * number

    def is_settled(self, number, *, limit):
        return number == self.settled_at

    def finish(self, number, copies, env_steps, *, limit, save):
        self.finished, self.limit = (number, env_steps), limit
        save()

    def get_state(self):
        return {}

    def candidate_of_each_size(self):
        return []

    def ratio(self, snapshot):
        return 0.5


@pytest.fixture
def trained(tmp_path):
    def train(trainer, tournament, interrupted=None, rows=None, **limit):
        arena = SimpleNamespace(rows=rows, certifies_where_it_chooses=True)
        asked = SimpleNamespace(bounds=None)
        run = Run(None, arena, None, sizes=[mlp(())], settings={}, progress=NoProgress(tmp_path), state={}, asked=asked)
        run._budget = Budget(**{"minutes": None, "env_steps": 1_000, **limit}, max_episodes=100)
        run._games = Games(None, None, 0)
        run._show = lambda text: None
        run._tournament, run._names = tournament, ["linear"]
        run._interrupted = interrupted or threading.Event()
        run._train(trainer)
        return tournament

    return train


def test_rounds_are_spread_over_training(trained):
    tournament = trained(Trainer(), Tournament())
    assert tournament.rounds == list(enumerate(round(1_000 * share) for share in ROUNDS))
    assert tournament.finished == (4, 1_000)
    assert [(limit.unit, limit.races) for limit in tournament.limits] == [
        ("env_steps", n) for _, n in tournament.rounds
    ]
    assert (tournament.limit.unit, tournament.limit.races) == ("env_steps", 1_000)


def test_who_acts_follows_those_that_play(trained):
    trainer = Trainer()
    trained(trainer, Tournament())
    assert trainer.preferred == [(["linear"] * number, ["huge"] * number) for number in range(5)]


def test_held_out_rows_are_too_few_for_races(trained):
    tournament = trained(Trainer(), Tournament(), rows="rows")
    assert {tournament.limit, *tournament.limits} == {None}


def test_training_ends_once_the_smallest_is_good_enough(trained):
    tournament = trained(Trainer(), Tournament(settled_at=1))
    assert tournament.rounds == [(0, 100), (1, 200)]
    assert tournament.finished == (1, 200)


def saves(tmp_path):
    return sorted(path.name for path in (tmp_path / "progress").glob("training-*"))


def test_ctrl_c_ends_training_after_the_iteration_and_saves_it(trained, tmp_path):
    interrupted = threading.Event()
    trainer, tournament = Trainer(lambda env_steps: interrupted.set() if env_steps == 300 else None), Tournament()
    with pytest.raises(InterruptedRunError):
        trained(trainer, tournament, interrupted, minutes=1_000.0, env_steps=None)
    assert trainer.env_steps == 300
    assert saves(tmp_path) == ["training-300"]
    assert tournament.finished is None


def test_with_env_steps_ctrl_c_saves_nothing_that_an_equal_run_does_not_save(trained, tmp_path):
    interrupted = threading.Event()
    trainer = Trainer(lambda env_steps: interrupted.set() if env_steps == 300 else None)
    with pytest.raises(InterruptedRunError):
        trained(trainer, Tournament(), interrupted)
    assert saves(tmp_path) == ["training-200"]  # of the last round


def test_before_the_first_iteration_there_is_nothing_to_save(trained, tmp_path):
    interrupted = threading.Event()
    interrupted.set()
    with pytest.raises(InterruptedRunError):
        trained(Trainer(), Tournament(), interrupted, minutes=1_000.0, env_steps=None)
    assert saves(tmp_path) == []


def test_a_slow_validation_is_not_repeated_without_training(trained):
    class Instant(Trainer):
        def train(self, is_over, report):
            super().train(lambda: self.env_steps >= 500, report)

    assert trained(Instant(), Tournament()).rounds == [(0, 500)]


def test_each_seed_has_certificate_episodes_of_its_own():
    firsts = [first_certificate_seed(seed) for seed in range(1_000)]
    assert len(set(firsts)) == 1_000
    assert min(b - a for a, b in pairwise(firsts)) == 100_000
    assert max(firsts) + 100_000 < 2**31
    assert min(firsts) > 1_500_000_000 + 200_000  # beyond validation


def test_shares_that_are_too_small_for_a_teacher_of_images_are_left_out():
    space = gym.spaces.Box(-1.0, 1.0, (84, 84, 4), np.float32)
    filters = [[4, 8, 4], [4, 4, 4], [4, 4, 4]]
    teacher = Teacher(make_q_module(space, conv_filters=filters, fcnet_hiddens=[], head_fcnet_hiddens=[8]), source="t")
    sizes = default_sizes(teacher, space)
    left = reachable(teacher, "CartPole-v1", {}, sizes, seed=0)
    assert [size.name for size in left] == ["share-0-3"]
    tiny = [size._replace(shape={"compression": 1e-6}) for size in sizes]
    with pytest.raises(ValueError, match=r"No default size .* Choose a larger compression"):
        reachable(teacher, "CartPole-v1", {}, tiny, seed=0)


@pytest.mark.parametrize(
    ("shape", "num_parameters", "expected"),
    [
        ((4, 84, 84), 10**6, ["rusu-net3", "rusu-net2", "rusu-net1"]),
        ((84, 84, 4), 150_000, ["rusu-net3", "rusu-net2"]),
        ((84, 84, 4), float("nan"), ["rusu-net3", "rusu-net2", "rusu-net1"]),
        ((84, 84, 4), 1_000, r"'rusu-net1' has \d+,\d+ parameters, the teacher 1,000"),
        ((10, 10, 4), 10**6, "images of at least 36 × 36 pixels, but the images have 10 × 10"),
    ],
)
def test_presets_that_do_not_suit_the_teacher_of_another_library_are_left_out(
    monkeypatch, shape, num_parameters, expected
):
    spaces = {"observation_space": gym.spaces.Box(0, 255, shape, np.uint8), "action_space": gym.spaces.Discrete(4)}
    teacher = Teacher.from_callable(lambda obs: obs.flatten(1)[:, :4], **spaces)
    monkeypatch.setattr(Teacher, "num_parameters", num_parameters)
    sizes = default_sizes(teacher, spaces["observation_space"])
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            reachable(teacher, "CartPole-v1", {}, sizes, seed=0)
    else:
        assert [size.name for size in reachable(teacher, "CartPole-v1", {}, sizes, seed=0)] == expected


def test_settings_that_a_search_cannot_have_are_refused():
    teacher = Teacher(make_q_module())
    settings = {"env_to_module_connector": lambda *args, **kwargs: []}
    with pytest.raises(ValueError, match="Connectors of your own are not supported"):
        training_config(teacher, "CartPole-v1", settings, [mlp(())], restarts=1, seed=0)
    with pytest.raises(ValueError, match="Recurrent students"):
        training_config(teacher, "CartPole-v1", {"model_config": {"use_lstm": True}}, [mlp(())], restarts=1, seed=0)
    config = training_config(teacher, "CartPole-v1", {"lr": 0.5}, [mlp(()), mlp((2,))], restarts=3, seed=7)
    assert (config.lr, config.seed, config.restarts, list(config.students)) == (0.5, 7, 3, ["linear", "units-2"])
    assert config.num_validation_episodes == 0  # saves would play them


@pytest.mark.parametrize(
    ("env", "in_pool", "knows"), [("CartPole-v1", False, True), ("envpool/A", False, False), ("envpool/A", True, True)]
)
def test_how_long_a_certificate_takes_is_known_where_its_episodes_are_like_those_that_choose(
    env, in_pool, knows, tmp_path
):
    arena = InEnvironment(PlayedEnvironment(env, {}), None, None, in_pool=in_pool)
    run = Run(None, arena, None, sizes=[], settings={}, progress=NoProgress(tmp_path), state={}, asked=None)
    run._games = SimpleNamespace(seconds_per_seed=0.001)
    run._budget = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, spent=400.0)
    run._keep_time()
    assert run._budget.training_is_over(1.0, 1) != knows  # of ten minutes, 55 % are over, and 85 % are not
