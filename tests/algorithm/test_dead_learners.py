"""A Learner that has died is named at whatever moment it shows. The group is RLlib's; its actors die when told."""

import pickle
from types import SimpleNamespace

import pyarrow.fs
import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.actor_manager import RemoteCallResults, ResultOrError

from rllib_kd import DistillDQN
from rllib_kd.algorithm.dead_learners import (
    LearnerDiedError,
    ask_learner,
    has_dead_learners,
    naming_dead_learners,
    raise_failures,
)
from rllib_kd.algorithm.learner_saves import check_learner_has_saved, num_learner_saves
from rllib_kd.algorithm.replays import save_replays
from rllib_kd.algorithm.sampling import Sampling

SAID = r"A Learner has died, .*RLlib restarts EnvRunners but never Learners"


class Manager:
    """RLlib's manager of one Learner: the first call to a dead actor returns its error, later ones nobody's answer."""

    def __init__(self):
        self.is_dead, self.is_healthy = False, True
        self.learner = SimpleNamespace(num_saves=1, replay_arrays=lambda: {})

    def foreach_actor(self, func, **kwargs):
        results = RemoteCallResults()
        if not self.is_healthy:
            return results
        if self.is_dead:
            self.is_healthy = False
            results.add_result(0, ResultOrError(error=RayActorError()), None)
        else:
            results.add_result(0, ResultOrError(result=func(self.learner) if callable(func) else [{}]), None)
        return results

    def healthy_actor_ids(self):
        return [0] if self.is_healthy else []

    def num_healthy_actors(self):
        return int(self.is_healthy)


@pytest.fixture
def group():
    """RLlib's group, but for its actors; `group.kill()` lets its only Learner die."""
    group = LearnerGroup.__new__(LearnerGroup)
    group._is_local, group._is_shut_down = False, True
    group.config = SimpleNamespace(num_learners=1, num_aggregator_actors_per_learner=0)
    group._workers, group._worker_manager = [None], Manager()

    def kill(*, is_known: bool) -> None:
        group._worker_manager.is_dead = True
        group._worker_manager.is_healthy = not is_known

    group.kill = kill
    return group


@pytest.fixture(params=[False, True], ids=["dies now", "has been given up"])
def dead(request, group):
    group.kill(is_known=request.param)
    return group


def algorithm(group) -> DistillDQN:
    algo = DistillDQN.__new__(DistillDQN)
    algo.learner_group = group
    return algo


@pytest.mark.parametrize(
    ("moment", "of_rllib"),
    [("step", "step"), ("evaluate", "evaluate"), ("get_state", "get_state")],
)
def test_in_an_iteration_an_evaluation_and_a_state(dead, monkeypatch, moment, of_rllib):
    # What RLlib does there: it asks a Learner for the student's weights.
    monkeypatch.setattr(DQN, of_rllib, lambda self, *args, **kwargs: self.learner_group.get_state("learner/rl_module"))
    algo = algorithm(dead)
    algo.config = SimpleNamespace(students=None)
    with pytest.raises(LearnerDiedError, match=SAID):
        getattr(algo, moment)()


def test_in_an_update(dead):
    with pytest.raises(LearnerDiedError, match=SAID), naming_dead_learners(dead):
        dead._get_results(dead._worker_manager.foreach_actor("update"))[0]


def test_when_the_student_is_asked_for(dead):
    sampling = Sampling.__new__(Sampling)
    sampling._learner_group = dead
    with pytest.raises(LearnerDiedError, match=SAID), naming_dead_learners(dead):
        sampling._ask_for_student(0)


def test_in_a_save(group, dead, tmp_path):
    with pytest.raises(OSError, match=SAID):
        check_learner_has_saved(dead, str(tmp_path), num_saves_before=1)
    assert num_learner_saves(dead) is None


def test_when_its_replay_is_handed_over(dead, tmp_path):
    with pytest.raises(LearnerDiedError, match=SAID):
        save_replays(dead, str(tmp_path), pyarrow.fs.LocalFileSystem())


def test_when_it_is_restored(dead, monkeypatch, tmp_path):
    monkeypatch.setattr(DQN, "restore_from_path", lambda self, *args, **kwargs: self.learner_group.get_state())
    algo = algorithm(dead)
    algo._sampling = SimpleNamespace(forget=lambda: None)
    with pytest.raises(LearnerDiedError, match=SAID):
        algo.restore_from_path(str(tmp_path), component="learner_group")


def test_a_living_learner_is_not_blamed(group):
    assert not has_dead_learners(group)
    assert ask_learner(group, 0, lambda own: own.num_saves) == 1
    for error in (RayActorError(), IndexError("of an EnvRunner")):
        with pytest.raises(type(error)), naming_dead_learners(group):
            raise error
    with pytest.raises(KeyError), naming_dead_learners(None):
        raise KeyError


def test_what_a_learner_itself_has_raised_keeps_its_words(dead):
    with pytest.raises(ValueError, match="loss is NaN"), naming_dead_learners(dead):
        raise RayTaskError("update", "loss is NaN", ValueError("loss is NaN")).as_instanceof_cause()
    with pytest.raises(OSError, match="disk"), naming_dead_learners(dead):
        raise OSError("disk full")


def test_an_error_of_a_learner_that_restores_is_raised_though_rllib_drops_it(group, monkeypatch):
    learner = group._worker_manager.learner
    learner.failure = None
    raise_failures(group)
    error = RayTaskError("restore", "no such file", FileNotFoundError("no such file")).as_instanceof_cause()
    answers = RemoteCallResults()
    answers.add_result(0, ResultOrError(error=error), None)
    monkeypatch.setattr(LearnerGroup, "foreach_learner", lambda self, func, **kwargs: answers)
    with pytest.raises(FileNotFoundError, match="no such file"), naming_dead_learners(group):
        raise_failures(group)


def test_a_local_learner_never_dies(group):
    group._is_local = True
    group._learner = group._worker_manager.learner
    assert not has_dead_learners(group)


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(LearnerDiedError()))
    assert isinstance(error, RuntimeError)
    assert str(error) == str(LearnerDiedError())
    assert isinstance(ray.exceptions.RayTaskError("f", "...", error).as_instanceof_cause(), LearnerDiedError)
