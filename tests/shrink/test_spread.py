"""Training and episodes that several actors share, without Ray."""

import tarfile
from itertools import count
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from ray.exceptions import RayActorError

from rllib_kd.certificates.games import Games
from rllib_kd.environments.making import env_maker
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.shrink import spread as module_of_spread
from rllib_kd.shrink.candidates import mlp
from rllib_kd.shrink.parts import divide
from rllib_kd.shrink.spread import ActorTask, Crew, SpreadGames, SpreadTrainer, Worker, file_of
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module

SPACE = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)


class HereCrew:
    """Does all jobs in this process; remembers them."""

    def __init__(self, teacher):
        (part,) = divide([mlp(())], 1, 1, seed=0)
        self.worker = Worker(teacher, ActorTask("CartPole-v1", {}, False), part)
        self.jobs = []

    def share(self, method, jobs, *, advance):
        self.jobs += [(method, job) for job in jobs]
        return [getattr(self.worker, method)(*job) for job in jobs]


@pytest.fixture
def teacher():
    return Teacher(make_q_module(SPACE), source="teacher")


def spread(teacher, seed=0):
    crew = HereCrew(teacher)
    return SpreadGames(crew, env_maker("CartPole-v1", {}), teacher, seed), crew


def test_every_seed_is_played_once_and_greedy_policies_as_without_actors(teacher):
    games, crew = spread(teacher)
    student = Teacher(make_q_module(SPACE), source="student")
    own = games.certificate_episodes(student, 50, 25)
    alone = Games(env_maker("CartPole-v1", {}), teacher, 0).certificate_episodes(student, 50, 25)
    assert own.shape == (3, 25)
    assert own[:2].tolist() == alone[:2].tolist()
    assert all(len(seeds) <= 10 for _, (_, seeds, _) in crew.jobs)
    assert len(crew.jobs) == 9


def test_the_teacher_is_not_sent_with_the_jobs_and_random_actions_differ_between_them(teacher):
    games, crew = spread(teacher)
    _, random = games.validation_baselines(0, 20)
    players = [player for _, (player, *_) in crew.jobs]
    assert players[:2] == [None, None]
    assert random[:10].tolist() != random[10:].tolist()
    again, _ = spread(teacher)
    assert again.validation_baselines(0, 20)[1].tolist() == random.tolist()


@pytest.mark.parametrize("count", [3, 30, 100])
def test_validation_is_shared_by_students(teacher, count):
    games, crew = spread(teacher)
    modules = {f"m{i}": make_q_module(SPACE) for i in range(5)}
    pipeline = ObservationPipeline(SPACE)
    own = games.validate(modules, pipeline, 7, count)
    alone = Games(env_maker("CartPole-v1", {}), teacher, 0).validate(modules, pipeline, 7, count)
    assert own[:2] == alone[:2]
    assert list(own.returns) == list(modules)
    assert len(crew.jobs) == {3: 1, 30: 3, 100: 5}[count]


# --- Actors -----------------------------------------------------------------------------------------------------------


class Actor:
    """An actor whose part makes 100 or more env steps an iteration; `dies` is asked before each call."""

    def __init__(self, place, dies):
        self.preferred = None
        self.place, self.dies, self.env_steps, self.is_dead = place, dies, 0, False

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *args: self.call(method, *args))

    def call(self, method, *args):
        self.is_dead = self.is_dead or self.dies(self.place, method)
        return Result(RayActorError(error_msg="it died.") if self.is_dead else self.result(method, *args))

    def result(self, method, *args):
        if method == "iterate":
            self.env_steps += 100 + self.place
        if method == "restore":
            self.env_steps, self.preferred = int(args[0]), None
        if method == "prefer":
            self.preferred = args
        return {
            "iterate": (self.env_steps, [-1.0 - self.place, 5.0]),
            "restore": (self.env_steps, []),
            "prefer": None,
            "save": (b"%d" % self.env_steps, [-10.0 - self.place, 5.0]),
            "copies": {f"copy-{self.place}": self.env_steps},
            "double": 2 * args[0] if args else None,
        }[method]


class Group:
    """Resources that are free when one asks for the third time."""

    bundle_specs = ({"CPU": 1.0},)

    def __init__(self):
        self.asked = count(1)

    def wait(self, seconds):
        return next(self.asked) == 3


class Result:
    numbers = count()

    def __init__(self, value):
        self.value, self.number = value, next(self.numbers)


def get(result):
    if isinstance(result.value, Exception):
        raise result.value
    return result.value


def crew_of(monkeypatch, num_parts, dies=lambda place, method: False):
    def started(self, place):
        actors.append(Actor(place, dies))
        return actors[-1]

    actors = []
    ended = {"wait": lambda results, timeout=None: (results[-1:], results[:-1]), "get": get, "put": lambda value: value}
    monkeypatch.setattr(module_of_spread, "ray", SimpleNamespace(**ended, ObjectRef=Result))
    monkeypatch.setattr(Crew, "_started", started)
    monkeypatch.setattr(Crew, "_resources", staticmethod(lambda *args: ([], "PACK")))
    monkeypatch.setattr(module_of_spread, "placement_group", lambda bundles, strategy: Group())
    sizes = [mlp((2**i,)) for i in range(num_parts)]
    crew = Crew(None, None, divide(sizes, 1, num_parts, seed=0))
    crew.start()
    return crew, actors


def dying(*numbers):
    """Calls of `iterate` that kill the actor, by their number over all actors."""
    counter = count()
    return lambda place, method: method == "iterate" and next(counter) in numbers


def test_each_part_trains_for_as_long_as_one_alone_would(monkeypatch):
    crew, _ = crew_of(monkeypatch, 3)
    trainer, reports = SpreadTrainer(crew), []
    assert trainer.seen_returns.tolist() == []
    trainer.train(lambda env_steps: env_steps >= 250, lambda: reports.append(trainer.env_steps))
    assert trainer.env_steps == 3 * (100 + 101 + 102)
    assert len(reports) == 9
    assert trainer.seen_returns.tolist() == [-3.0, 5.0]
    trainer.train(lambda env_steps: env_steps >= 250, lambda: pytest.fail("it has trained enough"))


def test_an_interrupt_is_noticed_while_all_parts_are_busy(monkeypatch):
    crew, _ = crew_of(monkeypatch, 2)
    monkeypatch.setattr(module_of_spread.ray, "wait", lambda results, timeout: ([], results))

    def is_over(env_steps):
        if next(asked) > 5:
            raise KeyboardInterrupt
        return False

    asked = count()
    with pytest.raises(KeyboardInterrupt):
        SpreadTrainer(crew).train(is_over, lambda: None)


@pytest.mark.parametrize("numbers", [(0,), (1,), (4,), (2, 3), (1, 5, 6)])
def test_a_part_that_dies_trains_on_from_its_last_save_to_the_same_end(monkeypatch, tmp_path, numbers):
    crew, actors = crew_of(monkeypatch, 2, dying(*(2 + number for number in numbers)))
    trainer = SpreadTrainer(crew)
    trainer.train(lambda env_steps: env_steps >= 100, lambda: None)
    trainer.save(tmp_path / "training-201")
    trainer.prefer(["linear"], resting=["huge"])
    assert (tmp_path / "training-201" / file_of(1)).read_bytes() == b"101"
    trainer.train(lambda env_steps: env_steps >= 350, lambda: None)
    assert trainer.copies() == {"copy-0": 400, "copy-1": 404}
    assert len(actors) == 2 + len(numbers)
    assert all(actor.preferred == (["linear"], ["huge"]) for actor in crew._actors)


def test_a_part_that_dies_without_a_save_begins_again(monkeypatch):
    crew, actors = crew_of(monkeypatch, 2, dying(5))
    trainer = SpreadTrainer(crew)
    trainer.prefer(["linear"], resting=[])
    trainer.train(lambda env_steps: env_steps >= 250, lambda: None)
    assert trainer.env_steps == 300 + 303
    assert len(actors) == 3
    assert all(actor.preferred == (["linear"], []) for actor in crew._actors)


def test_a_part_that_always_dies_ends_the_run(monkeypatch):
    crew, _ = crew_of(monkeypatch, 2, lambda place, method: place == 1)
    with pytest.raises(RuntimeError, match=r"Part 2 of 2 has died 4 times: .*it died\. Check the memory"):
        SpreadTrainer(crew).train(lambda env_steps: env_steps >= 250, lambda: None)


def test_what_a_part_cannot_continue_from_is_an_error(monkeypatch, tmp_path):
    """It would begin anew, and nobody would know."""
    crew, actors = crew_of(monkeypatch, 2, dying(3))
    trainer = SpreadTrainer(crew)
    trainer.train(lambda env_steps: env_steps >= 100, lambda: None)
    trainer.save(tmp_path / "training-201")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Actor, "result", lambda self, method, *args: full if method == "restore" else (1, []))
    with pytest.raises(OSError, match="No space left"):
        trainer.train(lambda env_steps: env_steps >= 350, lambda: None)
    assert len(actors) == 3


def test_a_save_knows_the_returns_of_an_iteration_that_was_under_way(monkeypatch, tmp_path):
    crew, _ = crew_of(monkeypatch, 2)
    trainer = SpreadTrainer(crew)
    trainer.train(lambda env_steps: env_steps >= 100, lambda: None)
    assert trainer.seen_returns.tolist() == [-2.0, 5.0]
    trainer.save(tmp_path / "training-201")
    assert trainer.env_steps == 201
    assert trainer.seen_returns.tolist() == [-11.0, 5.0]


def test_who_waits_for_resources_is_told_so_and_can_end_it(monkeypatch, caplog):
    monkeypatch.setattr(module_of_spread, "_SECONDS_BEFORE_WARNING", -1.0)
    crew, _ = crew_of(monkeypatch, 2)
    looks = []
    crew.wait_for_resources(lambda: looks.append(None))
    assert len(looks) == 4
    (said,) = caplog.messages
    assert "Part 1 of 2 waits for free resources: ({'CPU': 1.0},)" in said
    crew, _ = crew_of(monkeypatch, 2)
    with pytest.raises(ZeroDivisionError):
        crew.wait_for_resources(lambda: 1 / 0)


def test_what_is_reserved_is_freed_if_the_start_of_the_parts_fails(monkeypatch):
    def placed(bundles, strategy):
        if len(groups) == 1:
            raise ZeroDivisionError
        groups.append(Group())
        return groups[-1]

    groups, freed = [], []
    crew_of(monkeypatch, 1)  # stand-ins for Ray
    monkeypatch.setattr(module_of_spread.ray, "available_resources", lambda: {"CPU": 1.0}, raising=False)
    monkeypatch.setattr(module_of_spread, "placement_group", placed)
    monkeypatch.setattr(module_of_spread, "remove_placement_group", freed.append)
    parts = divide([mlp((2,)), mlp((4,))], 1, 2, seed=0)
    with pytest.raises(ZeroDivisionError), module_of_spread.working(None, None, parts):
        pass
    assert freed == groups != []


def test_one_death_that_several_calls_notice_is_one(monkeypatch):
    crew, actors = crew_of(monkeypatch, 2, dying(0))
    calls = [crew.begin(0, "iterate") for _ in range(3)]
    for call in calls:
        with pytest.raises(RayActorError):
            get(call.result)
        crew.revive(call, RayActorError())
    assert len(actors) == 3


def test_jobs_of_an_actor_that_dies_are_done_by_others_and_results_keep_their_order(monkeypatch):
    counter = count()
    crew, actors = crew_of(monkeypatch, 3, lambda place, method: next(counter) in (1, 4, 9))
    assert crew.share("double", [(i,) for i in range(12)]) == [2 * i for i in range(12)]
    assert len(actors) == 6


def test_the_wait_for_jobs_can_be_ended(monkeypatch):
    crew, _ = crew_of(monkeypatch, 3)
    monkeypatch.setattr(module_of_spread.ray, "wait", lambda results, timeout: ([], results))  # none ends
    waits = count()

    def advance(num_ended):
        if next(waits) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        crew.share("double", [(i,) for i in range(12)], advance=advance)


def test_a_save_is_whole_or_not_there(monkeypatch, tmp_path):
    crew, _ = crew_of(monkeypatch, 2)
    trainer = SpreadTrainer(crew)
    trainer.train(lambda env_steps: env_steps >= 100, lambda: None)
    monkeypatch.setattr(module_of_spread, "file_of", lambda place: "a" if place == 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.save(tmp_path / "training-201")
    assert not (tmp_path / "training-201").exists()


def test_a_part_continues_from_its_archive_also_in_a_python_without_filters(monkeypatch):
    restored, worker = [], Worker(None, None, None)
    worker._own_trainer = SimpleNamespace(
        save=lambda folder: folder.mkdir() or (folder / "file").write_text("weights"),
        restore=lambda folder, state: restored.append(((folder / "file").read_text(), state)),
        env_steps=50,
        seen_returns=np.array([1.0, 2.0]),
    )
    content, returns = worker.save()
    real = tarfile.TarFile.extractall
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, folder: real(self, folder))
    monkeypatch.delattr(tarfile, "data_filter")
    assert worker.restore(content, returns) == (50, [1.0, 2.0])
    assert restored == [("weights", {"returns": [1.0, 2.0]})]
