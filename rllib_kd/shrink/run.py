"""One run: the teacher is checked, students are trained and compared, candidates are tested, files are written."""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd.environments.making import EnvMaker
from rllib_kd.evaluation.measures import doubt
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.evaluation.seeds import VALIDATION_SEED
from rllib_kd.experiment.interrupts import saving_on_interrupt
from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.shrink import report
from rllib_kd.shrink.budget import Budget
from rllib_kd.shrink.candidates import Size
from rllib_kd.shrink.certificate import Certificate, RatioTest
from rllib_kd.shrink.certification import Tested, certify
from rllib_kd.shrink.games import Games, first_certificate_seed
from rllib_kd.shrink.outcome import Shrunk, ShrunkStudent, why_not
from rllib_kd.shrink.tournament import Snapshot, Tournament
from rllib_kd.shrink.training import Trainer, running, save_student
from rllib_kd.teachers.base import Teacher
from rllib_kd.terminal import line, say
from rllib_kd.text import number, ratio

#: Shares of training after which students are compared.
ROUNDS = (0.1, 0.2, 0.4, 0.7, 1.0)
#: Episodes by which the teacher is compared with a random policy, before anything is trained; and the first of them
#: among the validation episodes, far from those of the rounds.
_NUM_CHECKS, _FIRST_CHECK = 100, 100_000


@dataclass
class Run:
    """One run of `Shrink`.

    Args:
        teacher: the teacher, for this environment.
        played: the environment, with its config.
        make_env: makes one.
        config: of the training of all sizes.
        sizes: sizes to try.
        settings: settings of training that were given.
        folder: folder of all files, which exists.
        asked: the `Shrink`.
    """

    teacher: Teacher
    played: PlayedEnvironment
    make_env: EnvMaker
    config: Any
    sizes: Sequence[Size]
    settings: Mapping[str, Any]
    folder: Path
    asked: Any

    def __call__(self, *, command: str | None, progress: bool) -> Shrunk:
        """Run, write the files, and return the result; arguments as of `Shrink.run()`."""
        asked = self.asked
        self._budget = Budget(minutes=asked.minutes, env_steps=asked.env_steps, max_episodes=asked.episodes)
        self._games = Games(self.make_env, self.teacher, asked.seed)
        self._facts: dict[str, Any] = {}
        with saving_on_interrupt() as interrupted, line(shown=progress) as self._show:
            self._show("teacher and random policy play" + self._budget.left())
            self._checks = self._games.validation_baselines(_FIRST_CHECK, _NUM_CHECKS)
            reason = self._teacher_fails()
            students, copies, reason, best = ([], [], reason, None) if reason else self._search(interrupted)
            result = self._result(students, copies, reason, command)
            if best is not None:
                self._save(result, best)
        report.write(result, self.folder)
        return result

    def _teacher_fails(self) -> str:
        teacher, random = self._checks
        if doubt(self.teacher.source, self.played.name, teacher, random, to_play_more="") is None:
            return ""
        return (
            f"The teacher is not clearly better than a random policy: mean returns of {number(teacher.mean())} and "
            f"{number(random.mean())} in {_NUM_CHECKS} episodes, so that a return ratio has no meaning. Check the "
            "teacher and its environment. Nothing was trained."
        )

    # --- Training and choice ------------------------------------------------------------------------------------------

    def _search(self, interrupted: threading.Event) -> tuple[list[ShrunkStudent], list[Any], str, Snapshot | None]:
        """Train, choose and test; return the students, the copies, the reason for no certificate, and whom to save."""
        with running(self.config) as trainer:
            pipeline = trainer.pipeline()
            self._shapes = trainer.shapes()
            first = trainer.copies()
            sizes = sorted(self._shapes, key=lambda name: count_parameters(first[name]))
            teacher, random = self._checks
            tournament = Tournament(
                sizes,
                lambda modules, start, count: self._games.validate(modules, pipeline, start, count),
                self._games.validation_baselines,
                self._new_test,
                keep=self.asked.keep,
                scale=float(teacher.mean() - random.mean()),
            )
            self._train(trainer, tournament, interrupted)
            seen = np.concatenate([trainer.seen_returns, self._checks.ravel(), tournament.returns])
            self._facts["env_steps"] = trainer.env_steps
        self._facts["seconds"] = {"training": round(self._budget.seconds, 1)}
        self._budget.begin_certificate()
        interrupted.clear()  # from here on, Ctrl-C ends the tests
        candidates = tournament.candidates()
        tests = self._certify(candidates, pipeline, seen, interrupted) if candidates else []
        self._facts["seconds"]["all"] = round(self._budget.seconds, 1)
        self._facts["seeds"] = self._seeds(tournament, tests)
        by_size = {one.size: test for one, test in zip(candidates, tests, strict=False)}
        chosen = {size: one for size in sizes if (one := tournament.best(size)) is not None}
        students = [self._student(one, tournament.ratio(one), by_size.get(size)) for size, one in chosen.items()]
        copies = [(count_parameters(one.module), tournament.ratio(one)) for one in tournament.snapshots]
        more = (
            f"--minutes {2 * self.asked.minutes:g}" if self.asked.minutes else f"--env-steps {2 * self.asked.env_steps}"
        )
        is_certified = bool(tests) and tests[-1].is_certified
        reason = "" if is_certified else why_not(students, keep=self.asked.keep, more=more)
        best = candidates[len(tests) - 1] if is_certified else max(chosen.values(), key=tournament.ratio, default=None)
        return students, copies, reason, best

    def _train(self, trainer: Trainer, tournament: Tournament, interrupted: threading.Event) -> None:
        last, copies = -1, dict[str, Any]()
        for number_of_round, share in enumerate(ROUNDS):
            trainer.train(
                partial(self._training_is_over, share, trainer, interrupted),
                partial(self._show_training, trainer, tournament),
            )
            if trainer.env_steps > last:  # validation may take longer than the time between two rounds
                copies, last = trainer.copies(), trainer.env_steps
                tournament.round(number_of_round, copies, last)
            if interrupted.is_set():
                say("interrupted: training ends, and what there is is tested.")
                break
            if tournament.is_settled(number_of_round):
                break
        self._show("validation" + self._budget.left())
        tournament.finish(number_of_round, copies, last)

    def _training_is_over(self, share: float, trainer: Trainer, interrupted: threading.Event) -> bool:
        is_stopped = interrupted.is_set() and trainer.env_steps > 0
        return is_stopped or self._budget.training_is_over(share, trainer.env_steps)

    def _new_test(self, seen: np.ndarray) -> RatioTest:
        """Return a test like that of the first candidate, to project what it would need."""
        most = self._budget.max_episodes(self._games.seconds_per_seed)
        alpha = (1 - self.asked.confidence) / 2
        seen = np.concatenate([seen, self._checks.ravel()])
        return RatioTest(self.asked.keep, alpha, bounds=self.asked.bounds, seen=seen, max_episodes=most)

    def _show_training(self, trainer: Trainer, tournament: Tournament) -> None:
        best = max((one for one in map(tournament.best, tournament.sizes) if one), key=tournament.ratio, default=None)
        words = f" · best {self._label(best.size)} {ratio(tournament.ratio(best))}" if best else ""
        self._show(f"training · {trainer.env_steps:,} env steps{words}{self._budget.left()}")

    # --- Certificate --------------------------------------------------------------------------------------------------

    def _certify(
        self, candidates: Sequence[Snapshot], pipeline: Any, seen: np.ndarray, interrupted: threading.Event
    ) -> list[Tested]:
        def affordable(num_left: int, num_played: int) -> float:
            if interrupted.is_set():
                return -np.inf
            return self._budget.episodes_left(num_left, self._games.seconds_per_seed)

        def report_test(place: int, found: Certificate) -> None:
            words = f"{self._label(candidates[place].size)}: {found.num_episodes:,} episodes"
            known = f", return ratio {ratio(found.return_ratio)}" if found.return_ratio is not None else ""
            self._show(f"certificate · {words}{known}{self._budget.left()}")

        return certify(
            len(candidates),
            lambda place, first, count: self._games.certificate_episodes(
                candidates[place].module, pipeline, first, count
            ),
            keep=self.asked.keep,
            alpha=1 - self.asked.confidence,
            max_episodes=self.asked.episodes,
            bounds=self.asked.bounds,
            seen=seen,
            affordable=affordable,
            report=report_test,
        )

    # --- Result -------------------------------------------------------------------------------------------------------

    def _label(self, size: str) -> str:
        return next(each.label for each in self.sizes if each.name == size)

    def _student(self, one: Snapshot, validation_ratio: float, tested: Tested | None) -> ShrunkStudent:
        names = ("student", "teacher", "random")
        return ShrunkStudent(
            name=one.size,
            label=self._label(one.size),
            num_parameters=count_parameters(one.module),
            model_config=self._shapes[one.size],
            env_steps=one.env_steps,
            validation_ratio=validation_ratio,
            validation_returns=dict(one.returns),
            certificate=None if tested is None else tested.certificate,
            returns={} if tested is None else dict(zip(names, tested.returns.tolist(), strict=True)),
        )

    def _seeds(self, tournament: Tournament, tests: Sequence[Tested]) -> dict[str, Any]:
        """Return the seeds: first and number of episodes."""
        return {
            "training": self.asked.seed,
            "validation": [[VALIDATION_SEED, tournament.num_episodes], [VALIDATION_SEED + _FIRST_CHECK, _NUM_CHECKS]],
            "certificate": [
                first_certificate_seed(self.asked.seed),
                max((test.certificate.num_episodes for test in tests), default=0),
            ],
        }

    def _result(self, students: Any, copies: Any, reason: str, command: str | None) -> Shrunk:
        asked = self.asked
        packages = {name: version(name) for name in ("rllib-kd", "ray", "torch", "gymnasium", "numpy")}
        budget = {name: getattr(asked, name) for name in ("minutes", "env_steps", "episodes")}
        facts = {
            "command": command,
            "seed": asked.seed,
            "budget": budget,
            "bounds": None if asked.bounds is None else [float(bound) for bound in asked.bounds],
            **self._facts,
            "versions": {**packages, "python": platform.python_version()},
        }
        teacher, random = self._checks.mean(axis=1)
        return Shrunk(
            env=self.played.name,
            env_config=self.played.config_as_json(),
            teacher=self.teacher.source,
            teacher_parameters=self.teacher.num_parameters,
            teacher_return=float(teacher),
            random_return=float(random),
            keep=asked.keep,
            confidence=asked.confidence,
            students=students,
            copies=copies,
            reason=reason,
            folder=str(self.folder),
            facts=facts,
        )

    def _save(self, result: Shrunk, best: Snapshot) -> None:
        self._show("saving")
        save_student(
            Path(str(result.checkpoint)),
            best.module,
            self._shapes[best.size],
            teacher=self.teacher,
            env=self.played.env,
            settings=self.settings,
            seed=self.asked.seed,
        )
