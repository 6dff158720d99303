"""One run: the teacher is checked, students are trained and compared, candidates are tested, files are written."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd.certificates.certificate import Certificate, RatioTest
from rllib_kd.certificates.certification import Episodes, Tested, certify
from rllib_kd.certificates.games import first_certificate_seed
from rllib_kd.evaluation.seeds import FIRST_CHECKED_EPISODE, VALIDATION_SEED
from rllib_kd.evaluation.validation import Validation
from rllib_kd.experiment.interrupts import saving_on_interrupt
from rllib_kd.export.costs import Cost, measure, ranked
from rllib_kd.networks.weights import have_same_weights
from rllib_kd.relay import listening
from rllib_kd.shrink import report
from rllib_kd.shrink.arena import Arena
from rllib_kd.shrink.budget import Budget, PlayLimit
from rllib_kd.shrink.candidates import Size
from rllib_kd.shrink.checks import Checks, least_episodes
from rllib_kd.shrink.outcome import CERTIFICATE, Shrunk, ShrunkStudent, why_not
from rllib_kd.shrink.parts import Part
from rllib_kd.shrink.progress import Progress, versions
from rllib_kd.shrink.snapshots import Snapshot
from rllib_kd.shrink.spread import ActorTask, Crew, SpreadTrainer, working
from rllib_kd.shrink.tournament import Tournament
from rllib_kd.shrink.training import Trainer, running, save_student
from rllib_kd.teachers.base import Teacher
from rllib_kd.terminal import line
from rllib_kd.text import ratio

#: Shares of training after which students are compared.
ROUNDS = (0.1, 0.2, 0.4, 0.7, 1.0)
_STOPPING = "stopping: the run ends after this iteration or env step. Ctrl-C again ends it at once."


class InterruptedRunError(Exception):
    """Ctrl-C or SIGTERM ends the run; what it has done is saved."""


@dataclass
class Run:
    """One run of `Shrink`, new or resumed.

    Args:
        teacher: the teacher, for this environment.
        arena: where students are judged: in an environment, or by held-out rows.
        config: of the training of all sizes.
        sizes: sizes to try.
        settings: settings of training that were given.
        progress: the run's state on disk, in the folder of all files, which exists.
        state: the state of a run that is resumed; of a new one, its options.
        asked: the `Shrink`.
        parts: parts of the family, each for an actor; fewer than two: this process trains all sizes.
    """

    teacher: Teacher
    arena: Arena
    config: Any
    sizes: Sequence[Size]
    settings: Mapping[str, Any]
    progress: Progress
    state: dict[str, Any]
    asked: Any
    parts: Sequence[Part] = ()

    def __call__(self, *, command: str | None, progress: bool) -> Shrunk:
        """Run, write the files, and return the result; arguments as of `Shrink.run()`."""
        asked = self.asked
        self._budget = Budget(
            minutes=asked.minutes,
            env_steps=asked.env_steps,
            max_episodes=self.arena.most_episodes(asked.episodes),
            spent=self.state.get("seconds", 0.0),
            end=self.state.get("end"),
        )
        self._tournament: Any = None  # until the sizes are known
        self._checks = np.full((2, 1), np.nan)  # until they have been played
        self._tests: list[Tested] = []
        with saving_on_interrupt(_STOPPING) as self._interrupted, line(shown=progress) as self._show:
            try:
                with self._working() as self._crew:
                    self._games = self.arena.new_games(self.teacher, asked.seed, self._crew, self._end_if_interrupted)
                    if "games" in self.state:
                        self._games.set_state(self.state["games"])
                    self._keep(command=self.state.get("command", command))
                    if self._crew is not None:
                        self._crew.wait_for_resources(self._end_if_interrupted)
                    reason, best = self._search()
            except InterruptedRunError:
                self._keep()
                folder = shlex.quote(str(self.progress.folder))
                reason = f"The run was interrupted. Continue it with --resume --out {folder}."
                return self._result(reason, is_complete=False)
            result = self._result(reason)
            self._write(result, best)
        return result

    def _write(self, result: Shrunk, best: Snapshot | None) -> None:
        """Write all files. The episode for the pictures comes last: an environment may end the process in `render()`.

        It has done so if the certificate of a resumed run is already there: then there are no pictures.
        """
        folder = self.progress.folder
        has_pictures = best is not None and not (folder / CERTIFICATE).exists()
        if best is not None:
            self._save(result, best)
        report.write(result, folder)
        if best is not None and has_pictures:
            strip = self.arena.strip_of(self._as_policy(best), first_certificate_seed(self.asked.seed))
            report.write_page(result, folder, strip)
        self.progress.clear()

    @contextmanager
    def _working(self) -> Iterator[Crew | None]:
        """Start the actors of the parts, and end them at the end; None if this process trains all sizes."""
        if len(self.parts) < 2:
            yield None
            return
        task = ActorTask(self.arena.env, self.settings, self._budget.is_by_time)
        with listening(), working(self.teacher, task, self.parts) as crew:
            yield crew

    def _training(self) -> AbstractContextManager[Trainer | SpreadTrainer]:
        return running(self.config) if self._crew is None else nullcontext(SpreadTrainer(self._crew))

    def _keep(self, **changes: Any) -> None:
        """Write the state, with some changes, to disk."""
        self.state |= {**changes, "seconds": self._budget.seconds, "end": self._budget.end}
        self.state["games"] = self._games.get_state()
        self.progress.write(self.state)

    def _end_if_interrupted(self, num_ended: int = 0) -> None:
        if self._interrupted.is_set():
            raise InterruptedRunError

    def _check_teacher(self) -> str:
        """Let the teacher and a random policy play; return why nothing should be trained, or an empty text."""
        checks = Checks(
            self.asked,
            self._games,
            self._budget,
            self._first_test,
            teacher=self.teacher.source,
            env=self.arena.name,
            num_processes=max(1, len(self.parts)),
        )
        if "checks" not in self.state:
            self._show("teacher and random policy play" + self._budget.left())
            self._checks = checks.play()
            if checks.too_short:
                return checks.too_short
            self._keep(checks=self._checks.tolist())
        self._checks = np.array(self.state["checks"])
        self._least_episodes = least_episodes(self._new_test(np.empty(0)), self._checks)
        return checks.why_not_better(self._checks)

    # --- Training and choice ------------------------------------------------------------------------------------------

    def _search(self) -> tuple[str, Snapshot | None]:
        """Train, choose and test; return the reason for no certificate, or an empty text, and which student to save."""
        if reason := self._check_teacher():
            return reason, None
        self._end_if_interrupted()
        with self._training() as trainer:
            self._prepare(trainer)
            if "candidates" not in self.state:
                self._train(trainer)
        candidates = self._candidates()
        if candidates:
            try:
                self._certify(candidates)
            except ValueError as error:  # a return outside of stated bounds
                if (best := self._best_of_all()) is not None:
                    self._save(self._result(str(error)), best)
                raise
        if self._tests and self._tests[-1].is_certified:
            return "", candidates[len(self._tests) - 1]
        how = {"keep": self.asked.keep, "more": self._more(), "measured": self.arena.measured}
        reason = why_not(self._students(), **how, needs_episodes=self._needs_episodes)
        return reason, self._best_of_all()

    def _more(self) -> str:
        """Return the option that gives the run more time: twice as much, or what a certificate needs."""
        asked = self.asked
        if not asked.minutes:
            return f"--env-steps {2 * asked.env_steps}"
        minutes = self._budget.minutes_for(max(self._needed, self._least_episodes), self._games.seconds_per_seed)
        return f"--minutes {2 * asked.minutes if self._needs_episodes else max(2 * asked.minutes, minutes):g}"

    @property
    def _needed(self) -> int:
        """Return how many certificate episodes the last candidate is expected to need; 0 if none was tested."""
        if not self._tests:
            return 0
        last = self._tests[-1].certificate
        return last.num_episodes + (last.episodes_needed or 0)

    @property
    def _needs_episodes(self) -> bool:
        """Return whether the number of certificate episodes, and not the time, is what is missing."""
        return not self._budget.is_by_time or self._needed > self._budget.most_episodes

    def _best_of_all(self) -> Snapshot | None:
        """Return the candidate with the highest return ratio in validation; None if none has played."""
        return max(self._tournament.candidate_of_each_size(), key=self._tournament.ratio, default=None)

    def _prepare(self, trainer: Trainer | SpreadTrainer) -> None:
        """Measure the sizes, and put training and tournament where they were when the run was interrupted."""
        self._pipeline, self._shapes = trainer.pipeline(), trainer.shapes()
        first = trainer.copies()
        self._names = list(first)
        if "costs" not in self.state:
            self._show("sizes are measured" + self._budget.left())
            costs = measure({size: first[size] for size in self._shapes}, self._pipeline, self.asked.minimize)
            self._keep(costs={size: asdict(cost) for size, cost in costs.items()})
        self._costs = {size: Cost.of(cost) for size, cost in self.state["costs"].items()}
        teacher, random = self._checks
        self._tournament = Tournament(
            ranked(self._costs, self.asked.minimize),
            self._validate,
            self._games.validation_baselines,
            self._new_test,
            keep=self.asked.keep,
            scale=float(teacher.mean() - random.mean()),
            looks=self.arena.looks,
            is_same=have_same_weights,
        )
        self._copies_at = partial(self.progress.load_copies, like=first)
        if "tournament" in self.state:
            self._tournament.set_state(self.state["tournament"], self._copies_at)
        if "training" in self.state and not self.state.get("is_trained"):
            trainer.restore(self.progress.saved_checkpoint(self.state["training"]["env_steps"]), self.state["training"])
            self._budget.saved(trainer.env_steps)

    def _train(self, trainer: Trainer | SpreadTrainer) -> None:
        """Train and compare, round by round; then play until the candidates are clear."""
        tournament = self._tournament
        last, copies = self.state.get("compared", -1), dict[str, Any]()
        while not self.state.get("is_trained"):
            round_ = self.state.get("rounds", 0)
            self._keep_time()
            trainer.prefer(tournament.preferred(round_), resting=tournament.resting(round_, self._names))
            trainer.train(
                partial(self._training_is_over, ROUNDS[round_], trainer), partial(self._after_iteration, trainer)
            )
            if trainer.env_steps > last:  # validation may take longer than the time between two rounds
                self._save_training(trainer)
                copies, last = trainer.copies(), trainer.env_steps
                self.progress.save_copies(last, copies)
                tournament.round(round_, copies, last, limit=self._play_limit(last, ROUNDS[round_]))
            is_settled = tournament.is_settled(round_, limit=self._play_limit(last, ROUNDS[round_]))
            self._keep(
                rounds=round_ + 1,
                compared=last,
                tournament=tournament.get_state(),
                is_trained=is_settled or round_ + 1 == len(ROUNDS),
            )
        self._show("validation" + self._budget.left())
        tournament.finish(
            self.state["rounds"] - 1,
            copies or self._copies_at(last),
            last,
            limit=self._play_limit(last, at_end=True),
            save=lambda: self._keep(tournament=tournament.get_state()),
        )

    def _keep_time(self) -> None:
        """Keep time for the certificate, by how long episodes have taken so far; the first ones take longer."""
        if self.arena.certifies_where_it_chooses:
            self._budget.keep_for_certificate(self._games.seconds_per_seed)

    def _play_limit(self, env_steps: int, share: float = 1.0, *, at_end: bool = False) -> PlayLimit | None:
        """Return `Budget.play_limit()`; None for rows, of which there are too few."""
        if self.arena.rows is not None:
            return None
        seconds = self._games.seconds_of_baselines
        return self._budget.play_limit(env_steps, share, seconds_of_baselines=seconds, at_end=at_end)

    def _training_is_over(self, share: float, trainer: Trainer | SpreadTrainer, env_steps: int | None = None) -> bool:
        """Return whether a part has trained for this share, after its env steps; None: all parts together."""
        if self._interrupted.is_set():
            if self._budget.is_by_time:  # else it saves where an equal run that is not interrupted would
                self._save_training(trainer)
            raise InterruptedRunError
        return self._budget.training_is_over(share, trainer.env_steps if env_steps is None else env_steps)

    def _after_iteration(self, trainer: Trainer | SpreadTrainer) -> None:
        self._show_training(trainer)
        if self.asked.bounds is not None:
            self._check_bounds(trainer.seen_returns)
        # Parts reach a number of env steps in any order: by their number, equal runs save after a round alone.
        may_save = self._budget.is_by_time or len(self.parts) < 2
        if may_save and self._budget.is_save_due(trainer.env_steps):
            self._save_training(trainer)

    def _check_bounds(self, seen: np.ndarray) -> None:
        """Raise a ValueError if a training episode had a return outside of stated bounds: no test could begin."""
        try:
            self._first_test(seen)
        except ValueError as error:
            raise ValueError(f"In a training episode, in which students also act at random: {error}") from error

    def _save_training(self, trainer: Trainer | SpreadTrainer) -> None:
        if trainer.env_steps == 0:
            return
        began, folder = time.monotonic(), self.progress.checkpoint(trainer.env_steps)
        if not folder.exists():  # whole: it is put there by renaming
            trainer.save(folder)
        self._keep(training={"env_steps": trainer.env_steps, "returns": trainer.seen_returns.tolist()})
        self._budget.saved(trainer.env_steps, took=time.monotonic() - began)

    def _new_test(self, seen: np.ndarray) -> RatioTest:
        """Return a test like that of the first candidate, to project what it would need."""
        most = self._budget.max_episodes(self._games.seconds_per_seed)
        return self._first_test(np.concatenate([seen, self._checks.ravel()]), most)

    def _first_test(self, seen: np.ndarray, max_episodes: int | None = None) -> RatioTest:
        """Return a test like that of the first candidate; it refuses stated bounds that are too narrow."""
        asked, alpha = self.asked, (1 - self.asked.confidence) / 2
        return self.arena.new_test(asked.keep, alpha, bounds=asked.bounds, seen=seen, max_episodes=max_episodes)

    def _validate(self, modules: Mapping[str, Any], first: int, count: int) -> Validation:
        return self._games.validate(modules, self._pipeline, first, count)

    def _show_training(self, trainer: Trainer | SpreadTrainer) -> None:
        best = self._best_of_all()
        words = f" · best {self._label(best.size)} {ratio(self._tournament.ratio(best))}" if best else ""
        self._show(f"training · {trainer.env_steps:,} env steps{words}{self._budget.left()}")

    # --- Certificate --------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Snapshot]:
        """Return the candidates, which are written to disk before the first of them plays, and never change."""
        snapshots = self._tournament.snapshots
        if "candidates" not in self.state:
            training_took = round(self._budget.seconds, 1)
            most = self._budget.begin_certificate()
            places = {id(one): place for place, one in enumerate(snapshots)}
            seen = [self.state["training"]["returns"], self._checks.ravel(), self._tournament.returns]
            self._keep(
                candidates=[places[id(one)] for one in self._tournament.candidates()],
                tournament=self._tournament.get_state(),
                seen=np.concatenate(seen).tolist(),
                tests=[],
                most_episodes=most,
                training_took=training_took,
            )
        return [snapshots[place] for place in self.state["candidates"]]

    def _certify(self, candidates: Sequence[Snapshot]) -> None:
        def play(place: int, first: int, count: int) -> np.ndarray:
            return self._games.certificate_episodes(self._as_policy(candidates[place]), first, count)

        def report_test(place: int, found: Certificate) -> None:
            words = f"{self._label(candidates[place].size)}: {found.num_episodes:,} {found.measured.unit}"
            known = f", {found.measured.name} {ratio(found.return_ratio)}" if found.return_ratio is not None else ""
            self._show(f"certificate · {words}{known}{self._budget.left()}")

        self._tests = certify(
            len(candidates),
            play,
            keep=self.asked.keep,
            alpha=1 - self.asked.confidence,
            max_episodes=self.state["most_episodes"],
            bounds=self.asked.bounds,
            new_test=self.arena.new_test,
            seen=np.array(self.state["seen"]),
            begun=[Episodes.of(content) for content in self.state["tests"]],
            least_episodes=self._least_episodes,
            affordable=lambda num_left: self._budget.episodes_left(
                num_left, self._games.seconds_per_seed, least=self._least_episodes
            ),
            save=lambda played: self._keep(tests=[one.as_dict() for one in played]),
            report=report_test,
        )

    def _as_policy(self, one: Snapshot) -> Teacher:
        return Teacher(one.module, pipeline=self._pipeline, source="student")

    # --- Result -------------------------------------------------------------------------------------------------------

    def _label(self, size: str) -> str:
        return next(each.label for each in self.sizes if each.name == size)

    def _students(self) -> list[ShrunkStudent]:
        """Return the best student of each size that has played, smallest first."""
        if self._tournament is None:
            return []
        tested = [self._tournament.snapshots[place].size for place in self.state.get("candidates", ())]
        tests = dict(zip(tested, self._tests, strict=False))
        return [self._student(one, tests.get(one.size)) for one in self._tournament.candidate_of_each_size()]

    def _student(self, one: Snapshot, tested: Tested | None) -> ShrunkStudent:
        cost = self._costs[one.size]
        return ShrunkStudent(
            name=one.size,
            label=self._label(one.size),
            num_parameters=cost.num_parameters,
            model_config=self._shapes[one.size],
            env_steps=one.env_steps,
            validation_ratio=self._tournament.ratio(one),
            validation_returns=dict(one.returns),
            certificate=None if tested is None else tested.certificate,
            returns={} if tested is None else tested.returns_by_policy,
            num_bytes=cost.num_bytes,
            latency_ms=cost.latency_ms,
            multiply_adds=cost.multiply_adds,
            num_int8_bytes=cost.num_int8_bytes,
        )

    def _facts(self) -> dict[str, Any]:
        """Return what else certificate.json has."""
        asked = self.asked
        facts = {
            "command": self.state["command"],
            "seed": asked.seed,
            "budget": {
                **{name: getattr(asked, name) for name in ("minutes", "env_steps")},
                "episodes": self.state.get("most_episodes", asked.episodes),
            },
            "bounds": None if asked.bounds is None else [float(bound) for bound in asked.bounds],
            "certify_in_pool": asked.certify_in_pool,
            "parts": max(1, len(self.parts)),
            "versions": versions(),
        }
        if "candidates" not in self.state:
            return facts
        facts |= {
            "env_steps": self.state["compared"],
            "seconds": {"training": self.state["training_took"], "all": round(self._budget.seconds, 1)},
        }
        if self.arena.rows is not None:
            return facts
        certificate = max((test.certificate.num_episodes for test in self._tests), default=0)
        return facts | {
            "seeds": {
                "training": asked.seed,
                "validation": [
                    [VALIDATION_SEED, self._tournament.num_episodes],
                    [VALIDATION_SEED + FIRST_CHECKED_EPISODE, self._checks.shape[1]],
                ],
                "certificate": [first_certificate_seed(asked.seed), certificate],
            },
        }

    def _result(self, reason: str, *, is_complete: bool = True) -> Shrunk:
        asked, tournament = self.asked, self._tournament
        snapshots = [] if tournament is None else tournament.snapshots
        teacher, random = self._checks.mean(axis=1)
        return Shrunk(
            env=self.arena.name,
            env_config=self.arena.config_as_json(),
            teacher=self.teacher.source,
            teacher_parameters=self.teacher.num_parameters,
            teacher_return=float(teacher),
            random_return=float(random),
            keep=asked.keep,
            confidence=asked.confidence,
            students=self._students(),
            copies=[(one.size, tournament.ratio(one)) for one in snapshots],
            reason=reason,
            folder=str(self.progress.folder),
            facts=self._facts(),
            minimize=asked.minimize,
            is_complete=is_complete,
            rows=None if self.arena.rows is None else self.arena.rows.facts(),
        )

    def _save(self, result: Shrunk, best: Snapshot) -> None:
        self._show("saving")
        save_student(
            Path(str(result.checkpoint)),
            best.module,
            self._shapes[best.size],
            teacher=self.teacher,
            env=self.arena.env,
            settings=self.settings,
            seed=self.asked.seed,
        )
