"""Training and episodes on a cluster: an actor for each part of the family, which trains it and plays episodes.

The driver decides as it does without a cluster: a `SpreadTrainer` stands in the place of a `Trainer`, and `SpreadGames`
in the place of `Games`. Nodes need no file: teacher, environment and saves travel through Ray.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rllib_kd.algorithm.algorithm import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm.settings import validate as validated
from rllib_kd.certificates.games import Games
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.playing import Player, RandomActions, play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.validation import Validation, play_validation
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.shrink.parts import Part
from rllib_kd.shrink.training import Trainer, training_config
from rllib_kd.teachers.base import Teacher

logger = logging.getLogger(__name__)

#: An actor is restarted at most this many times, elsewhere if its node has gone.
_MAX_DEATHS = 3
#: How long the driver waits for actors before it checks whether to end, s.
_PATIENCE = 0.5
#: How long it waits at the end until Ray has taken back the resources of the actors, s.
_PATIENCE_WITH_RESOURCES = 10.0
#: After so many seconds without free resources, the user is warned.
_SECONDS_BEFORE_WARNING = 10.0
#: Episodes of a job: the results depend on it in their last bits, and so must not depend on the cluster.
_EPISODES_OF_A_JOB, _VALIDATIONS_OF_A_JOB = 10, 64


@dataclass(frozen=True)
class ActorTask:
    """The settings that all actors share.

    Args:
        env: environment, as in `config.environment()`.
        settings: settings of training.
        is_by_time: as in `training_config()`.
    """

    env: Any
    settings: Mapping[str, Any]
    is_by_time: bool

    def config(self, teacher: Teacher, part: Part) -> DistillDQNConfig:
        """Return the config of the training of a part."""
        given = teacher, self.env, self.settings, part.sizes
        return training_config(*given, restarts=part.num_copies, seed=part.seed, is_by_time=self.is_by_time)


class Worker:
    """Trains a part, and plays episodes, in an actor.

    Args:
        teacher: the teacher, through the object store.
        task: what all actors share.
        part: what this one trains.
    """

    def __init__(self, teacher: Teacher, task: ActorTask, part: Part):
        self._teacher, self._task, self._part = teacher, task, part
        self._own_trainer: Trainer | None = None

    @property
    def _trainer(self) -> Trainer:
        if self._own_trainer is None:  # not for episodes alone
            self._own_trainer = Trainer(self._task.config(self._teacher, self._part))
        return self._own_trainer

    def iterate(self) -> tuple[int, list[float]]:
        """Train for an iteration; return the env steps of the part so far, and its lowest and highest return."""
        done = iter((False, True))
        self._trainer.train(lambda: next(done), lambda: None)
        return self._standing()

    def _standing(self) -> tuple[int, list[float]]:
        return self._trainer.env_steps, self._trainer.seen_returns.tolist()

    def copies(self) -> dict[str, Any]:
        """Return the modules of all copies by their IDs in the whole family."""
        names = self._part.renamed()
        return {names[name]: module for name, module in self._trainer.copies().items()}

    def prefer(self, sizes: Sequence[str], resting: Sequence[str]) -> None:
        """Do what `Trainer.prefer()` does, with what the part has of the family; if all would rest, none does."""
        names = self._part.renamed()
        rests = [name for name, whole in names.items() if whole in resting]
        own = [size for size in self._trainer.shapes() if size in sizes]
        self._trainer.prefer(own, resting=rests if len(rests) < len(names) else ())

    def shapes(self) -> dict[str, dict[str, Any]]:
        """Return the model config of each size."""
        return self._trainer.shapes()

    def pipeline(self) -> ObservationPipeline:
        """Return the pipeline from the environment's observations to the modules' inputs."""
        return self._trainer.pipeline()

    def save(self) -> tuple[bytes, list[float]]:
        """Return a checkpoint as an archive, and the lowest and the highest return that it knows of."""
        with tempfile.TemporaryDirectory() as folder:
            self._trainer.save(Path(folder) / "checkpoint")
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as archive:
                archive.add(Path(folder) / "checkpoint", arcname="checkpoint")
        return content.getvalue(), self._standing()[1]

    def restore(self, content: bytes, returns: Sequence[float]) -> tuple[int, list[float]]:
        """Continue from a result of `save()`; return as `iterate()` does."""
        # Python before 3.10.12 and 3.11.4 has no filters. The archive is of this run's own making.
        options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, **options)
            self._trainer.restore(Path(folder) / "checkpoint", {"returns": list(returns)})
        return self._standing()

    def returns(self, player: Player | None, seeds: Sequence[int], chooses: bool) -> list[float]:
        """Return the returns of a player in episodes with these seeds; None is the teacher. `chooses`: see `play()`."""
        player = GreedyQ(self._teacher) if player is None else player
        return play(self._make_env(), player, seeds, chooses=chooses)[0]

    def validate(self, modules: Mapping[str, Any], pipeline: ObservationPipeline, first: int, count: int) -> Validation:
        """Let students play validation episodes."""
        return play_validation(self._make_env(), modules, pipeline, count, first_episode=first)

    def _make_env(self) -> Any:
        return env_maker(self._task.env, self._task.settings.get("env_config"))


class Call(NamedTuple):
    """A call of an actor's method.

    Args:
        place: number of the part.
        result: reference to the result.
        life: how often the part's actor had died before.
    """

    place: int
    result: ray.ObjectRef
    life: int


class Crew:
    """One actor for each part. An actor that dies with its node is started again, and continues from the last save.

    Args:
        teacher: the teacher.
        task: what all actors share.
        parts: what each trains.
    """

    def __init__(self, teacher: Teacher, task: ActorTask, parts: Sequence[Part]):
        self.parts = list(parts)
        self._teacher, self._task = ray.put(teacher), ray.put(task)
        self._requests = [self._resources(teacher, task, part) for part in parts]
        self._groups: list[Any] = []
        self._actors: list[Any] = []
        self._deaths = [0] * len(self.parts)
        #: By part: what puts an actor that was started again where it was. Their errors are raised by `result()`.
        self._returning: dict[int, list[ray.ObjectRef]] = {}
        self._saved: tuple[Path, list[float]] | None = None
        #: Sizes that act more often, and copies that rest; None before training.
        self._preferred: tuple[list[str], list[str]] | None = None

    def start(self) -> None:
        """Reserve the resources of all parts, and start their actors; if it fails, `stop()` frees what it has."""
        for bundles, strategy in self._requests:
            self._groups.append(placement_group(bundles, strategy=strategy))
        for place in range(len(self.parts)):
            self._actors.append(self._started(place))

    @staticmethod
    def _resources(teacher: Teacher, task: ActorTask, part: Part) -> tuple[list[dict[str, float]], str]:
        """Return what a part needs: for its main process, its EnvRunners and Learners, as Tune's trials do."""
        request = DistillDQN.default_resource_request(validated(task.config(teacher, part)))
        return [dict(bundle) for bundle in request.bundles], request.strategy

    def wait_for_resources(self, look: Callable[[], None]) -> None:
        """Wait until Ray has placed all parts; `look` is called once in a while, and what it raises ends the wait."""
        began, has_warned = time.monotonic(), False
        for place, group in enumerate(self._groups):
            while not group.wait(_PATIENCE):
                look()
                if not has_warned and time.monotonic() - began > _SECONDS_BEFORE_WARNING:
                    logger.warning(
                        "Part %d of %d waits for free resources: %s. A run begins when all parts have theirs: begin "
                        "one with fewer --parts (parts=...) if the cluster never has as many.",
                        place + 1,
                        len(self.parts),
                        group.bundle_specs,
                    )
                    has_warned = True

    def _started(self, place: int) -> Any:
        group = self._groups[place]
        where = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        own = group.bundle_specs[0]
        options = {"num_cpus": own.get("CPU", 0), "num_gpus": own.get("GPU", 0), "scheduling_strategy": where}
        return ray.remote(Worker).options(**options).remote(self._teacher, self._task, self.parts[place])

    def saved_at(self, folder: Path, returns: Sequence[float]) -> None:
        """Note where the parts were saved last, and the returns that they had seen."""
        self._saved = folder, list(returns)

    def begin(self, place: int, method: str, *args: Any) -> Call:
        """Call a method of a part's actor."""
        return Call(place, getattr(self._actors[place], method).remote(*args), self._deaths[place])

    def revive(self, call: Call, error: Exception) -> None:
        """Start an actor again that died in a call, unless another call has done so; it continues from the last save.

        Raises:
            RuntimeError: it has died too often.
        """
        place = call.place
        if call.life < self._deaths[place]:
            return
        self._deaths[place] += 1
        which = f"Part {place + 1} of {len(self.parts)}"
        if self._deaths[place] > _MAX_DEATHS:
            raise RuntimeError(
                f"{which} has died {self._deaths[place]} times: {str(error).strip()} Check the memory of the nodes, "
                "then continue the run with --resume (resume=True)."
            ) from error
        logger.warning("%s has died with its process, and starts again from its last save.", which)
        self._actors[place] = self._started(place)
        file = None if self._saved is None else self._saved[0] / file_of(place)
        calls = []
        if self._saved is not None and file is not None and file.exists():  # not after training
            calls.append(self.begin(place, "restore", file.read_bytes(), self._saved[1]))
        if self._preferred is not None and (file is None or file.exists()):
            calls.append(self.begin(place, "prefer", *self._preferred))
        self._returning[place] = [one.result for one in calls]

    def result(self, call: Call) -> Any:
        """Return the result of a call, and wait for it.

        Raises:
            ray.exceptions.RayActorError: the actor has died: `revive()` it.
            Exception: raised by the call, or by what should have put the actor where it was before it died.
        """
        if call.life == self._deaths[call.place]:
            for earlier in self._returning.pop(call.place, ()):
                ray.get(earlier)
        return ray.get(call.result)

    def prefer(self, sizes: Sequence[str], resting: Sequence[str]) -> None:
        """Let these sizes act more often than the others from now on, and some copies neither act nor learn."""
        self._preferred = list(sizes), list(resting)
        self.ask_all("prefer", [self._preferred] * len(self.parts))

    def ask_all(self, method: str, arguments: Sequence[Sequence[Any]] | None = None) -> list[Any]:
        """Call a method of each actor, with its arguments; return the results in the order of the parts."""
        given = [()] * len(self.parts) if arguments is None else arguments
        calls = [self.begin(place, method, *own) for place, own in enumerate(given)]
        return [self._result(call, method, own) for call, own in zip(calls, given, strict=True)]

    def _result(self, call: Call, method: str, args: Sequence[Any]) -> Any:
        while True:
            try:
                return self.result(call)
            except RayActorError as error:
                self.revive(call, error)
                call = self.begin(call.place, method, *args)

    def share(
        self, method: str, jobs: Sequence[Sequence[Any]], *, advance: Callable[[int], None] = lambda count: None
    ) -> list[Any]:
        """Call a method once for each job, with its arguments, on whichever actors are free; return all results.

        Args:
            method: the method.
            jobs: the arguments of each job.
            advance: called once in a while, with 0; what it raises ends the wait.
        """
        results: list[Any] = [None] * len(jobs)
        waiting, free = list(range(len(jobs)))[::-1], list(range(len(self.parts)))
        running: dict[ray.ObjectRef, tuple[Call, int]] = {}
        while waiting or running:
            while waiting and free:
                job = waiting.pop()
                call = self.begin(free.pop(0), method, *jobs[job])
                running[call.result] = call, job
            done, _ = ray.wait(list(running), timeout=_PATIENCE)
            advance(0)
            if not done:
                continue
            ended = done[0]
            call, job = running.pop(ended)
            try:
                results[job] = self.result(call)
            except RayActorError as error:
                self.revive(call, error)
                waiting.append(job)
            free.append(call.place)
        return results

    def stop(self) -> None:
        """End all actors, and free their resources, which the student's checkpoint may need next."""
        for actor in self._actors:
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        deadline = time.monotonic() + _PATIENCE_WITH_RESOURCES
        while self._groups and time.monotonic() < deadline and not self._is_free():
            time.sleep(0.05)

    def _is_free(self) -> bool:
        free = ray.available_resources()
        needed = {name: amount for bundle in self._groups[0].bundle_specs for name, amount in bundle.items()}
        return all(free.get(name, 0.0) >= amount for name, amount in needed.items())


def file_of(place: int) -> str:
    """Return the name of a part's file in a save."""
    return f"part-{place}.tar"


class SpreadTrainer:
    """Trains all parts, each with its own stream of states; used as a `Trainer`.

    Args:
        crew: the actors.
    """

    def __init__(self, crew: Crew):
        self._crew = crew
        self._standings: list[tuple[int, list[float]]] = [(0, []) for _ in crew.parts]

    @property
    def env_steps(self) -> int:
        """Return the env steps of training of all parts so far."""
        return sum(env_steps for env_steps, _ in self._standings)

    @property
    def seen_returns(self) -> np.ndarray:
        """Return the lowest and the highest return of a training episode of any part, `[2]`; `[0]` without one."""
        returns = [value for _, values in self._standings for value in values]
        return np.array([min(returns), max(returns)]) if returns else np.empty(0)

    def train(self, is_over: Callable[[int], bool], report: Callable[[], None]) -> None:
        """Train each part until `is_over()` of its env steps; `report` is called after each iteration of any part.

        No part waits for another one.
        """

        def begin(place: int) -> None:
            call = self._crew.begin(place, "iterate")
            running[call.result] = call

        running: dict[ray.ObjectRef, Call] = {}
        for place, (env_steps, _) in enumerate(self._standings):
            if not is_over(env_steps):
                begin(place)
        while running:
            ended, _ = ray.wait(list(running), timeout=_PATIENCE)
            if not ended:
                is_over(0)  # which raises if the run is interrupted
            for call in map(running.pop, ended):
                try:
                    self._standings[call.place] = self._crew.result(call)
                except RayActorError as error:
                    self._crew.revive(call, error)
                    begin(call.place)
                    continue
                report()
                if not is_over(self._standings[call.place][0]):
                    begin(call.place)

    def save(self, folder: Path) -> None:
        """Save a checkpoint of each part, whole: it is put there by renaming."""
        new = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for place, (content, returns) in enumerate(self._crew.ask_all("save")):
            (new / file_of(place)).write_bytes(content)
            # After an interrupt, a part ends its iteration before it saves.
            self._standings[place] = self._standings[place][0], returns
        new.rename(folder)
        self._crew.saved_at(folder, self.seen_returns.tolist())

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; as `Trainer.restore()`."""
        self._crew.saved_at(folder, state["returns"])
        contents = [(folder / file_of(place)).read_bytes() for place in range(len(self._crew.parts))]
        self._standings = self._crew.ask_all("restore", [(content, state["returns"]) for content in contents])

    def prefer(self, sizes: Sequence[str], *, resting: Sequence[str]) -> None:
        """Do what `Trainer.prefer()` does, in all parts that have these sizes."""
        self._crew.prefer(sizes, resting)

    def copies(self) -> dict[str, Any]:
        """Return the modules of all copies by ID, as they are now."""
        return {name: module for own in self._crew.ask_all("copies") for name, module in own.items()}

    def pipeline(self) -> ObservationPipeline:
        """Return the pipeline from the environment's observations to the modules' inputs."""
        return self._crew.share("pipeline", [()])[0]

    def shapes(self) -> dict[str, dict[str, Any]]:
        """Return the model config of each size, with layer widths."""
        return {name: shape for own in self._crew.ask_all("shapes") for name, shape in own.items()}


class SpreadGames(Games):
    """Plays episodes on all actors.

    Episodes are divided into jobs of the same sizes on any cluster, so that equal runs have equal returns.

    Args:
        crew: the actors.
        make_env: as in `Games`.
        teacher: as in `Games`.
        seed: as in `Games`.
        in_pool: as in `Games`.
        advance: as in `Games`, but called once in a while.
    """

    def __init__(self, crew: Crew, make_env: Callable[[], Any], teacher: Teacher, seed: int, **more: Any):
        super().__init__(make_env, teacher, seed, **more)
        self._crew = crew

    def validate(self, modules: Mapping[str, Any], pipeline: ObservationPipeline, first: int, count: int) -> Validation:
        """Let students play validation episodes."""
        names, at_once = list(modules), max(1, _VALIDATIONS_OF_A_JOB // count)
        chunks = [names[start : start + at_once] for start in range(0, len(names), at_once)]
        jobs = [({name: modules[name] for name in chunk}, pipeline, first, count) for chunk in chunks]
        began = time.perf_counter()
        played = self._crew.share("validate", jobs, advance=self._advance)
        returns = {name: own for one in played for name, own in one.returns.items()}
        return Validation(returns, sum(one.env_steps for one in played), time.perf_counter() - began)

    def _returns(self, player: Player, seeds: Sequence[int], *, chooses: bool) -> list[float]:
        chunks = [seeds[start : start + _EPISODES_OF_A_JOB] for start in range(0, len(seeds), _EPISODES_OF_A_JOB)]
        jobs = [(self._player_of(player, chunk[0]), chunk, chooses) for chunk in chunks]
        return [value for played in self._crew.share("returns", jobs, advance=self._advance) for value in played]

    def _player_of(self, player: Player, first_seed: int) -> Player | None:
        """Return the policy that plays a job: the actors have the teacher, and each job has its own random actions."""
        if isinstance(player, RandomActions):
            return self._randomly(first_seed)
        return None if isinstance(player, GreedyQ) and player.network is self._teacher else player


@contextmanager
def working(teacher: Teacher, task: ActorTask, parts: Sequence[Part]) -> Iterator[Crew]:
    """Start the actors, and end them at the end."""
    crew = Crew(teacher, task, parts)
    try:
        crew.start()
        yield crew
    finally:
        crew.stop()
