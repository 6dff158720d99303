"""Sweeps by Ray Tune: how small can the student be?

A trial is one setting. It trains several students, one for each seed, side by side, and reports their mean return
ratio, so that searcher and scheduler compare settings rather than seeds.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.sample import Domain, Float

from rllib_kd import _rllib
from rllib_kd.algorithm.algorithm import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm.checks.labels import check_labels
from rllib_kd.algorithm.checks.offline import OF_BEHAVIOUR
from rllib_kd.algorithm.fit import check_shapes
from rllib_kd.algorithm.recorded import check_before
from rllib_kd.algorithm.settings import validate
from rllib_kd.algorithm.student_config import refuse_recurrent, student_config
from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.certificates.certification import Tested
from rllib_kd.certificates.fresh import check_fresh
from rllib_kd.certificates.held_out import HeldOut, check_without_environment, has_input, hold_out_of
from rllib_kd.checkpoints.uris import absolute_uri, check_storage, child_of
from rllib_kd.environments.making import env_maker
from rllib_kd.environments.own import settled, short_name
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.return_ratio import doubt, has_higher_mean
from rllib_kd.experiment.connection import bundles_of, connection
from rllib_kd.experiment.interrupts import SaveOnInterrupt, saving_on_interrupt
from rllib_kd.experiment.locations import location, place_of, remember
from rllib_kd.experiment.names import check_below_storage, check_not_empty
from rllib_kd.experiment.running import alone_in
from rllib_kd.experiment.snapshots import Snapshots, has_snapshot, put_back, snapshot_often
from rllib_kd.export.units import MINIMIZED, check_minimized
from rllib_kd.networks.trees.shape import is_tree
from rllib_kd.numeric import check_integer
from rllib_kd.offline.data import all_files
from rllib_kd.offline.fingerprint import WEIGHTS, fingerprint
from rllib_kd.offline.labelled_files import with_absolute_uris
from rllib_kd.offline.rows import TD_IN_FILES
from rllib_kd.public import public
from rllib_kd.relay import listening
from rllib_kd.students.sizes import WIDTH_KEYS
from rllib_kd.sweeps.baselines import Baselines, baselines_of, keep_baselines, kept_baselines
from rllib_kd.sweeps.certifying import Claim, certify_student, seen_returns
from rllib_kd.sweeps.population import WaitingPopulation
from rllib_kd.sweeps.report import ReportedSweep
from rllib_kd.sweeps.result import GOOD_RATIO, MIN_SEEDS, SweptStudent, good_agreement
from rllib_kd.sweeps.space import (
    OF_NETWORKS,
    POPULATION_SETTINGS,
    check_not_own,
    default_points,
    drawn_space,
    population_space,
    search_space,
)
from rllib_kd.sweeps.spec import SPACE, check_spec, write_spec
from rllib_kd.sweeps.trial import (
    EXTREME_RETURNS,
    NUM_EPISODES,
    NUM_REPORTS,
    SOFTENED,
    StudentTrial,
    Task,
    settings_of,
)
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.loading import load_teacher
from rllib_kd.teachers.names import path_of
from rllib_kd.terminal import line
from rllib_kd.text import did_you_mean

logger = logging.getLogger(__name__)

SEARCHES = ("optuna", "random")
#: The latency of a student on a node of a cluster means nothing elsewhere.
_MINIMIZED = tuple(name for name in MINIMIZED if name != "latency")
SCHEDULERS = ("none", "asha", "pbt")
Space = Callable[..., Mapping[str, Domain]]
_MAX_FAILURES = 3  # of a trial, that send it back to its last checkpoint


@public
@dataclass
class Sweep:
    """A sweep: search for the smallest student that plays as well as its teacher.

    Without an environment, students learn from recorded rows, and are judged by their agreement with the teacher on
    held-out ones.

    Args:
        teacher: as for `load_teacher()`. Only this process reads it: trials get it through Ray's object store.
        env: as in `config.environment()`: a gymnasium id, a name registered with Tune, "path/to/file.py:Name" or
            "module:Name". None: `config` has the recorded rows (`input_`).
        num_samples: settings to try, ≥ 1; with "pbt" the size of the population.
        search: "optuna" (two objectives: return ratio up, parameters down) or "random"; None: "optuna" without a
            scheduler, "random" with one.
        scheduler: "none"; "asha" stops the settings with the lowest returns; "pbt" copies the weights of the best
            to the others, and varies `kd_coeff`, `temperature` and `lr` during training.
        num_seeds: students of each setting, ≥ 1. Their mean is the setting's value. With fewer than 3, no student is
            recommended.
        env_steps: training length of each student, ≥ 1.
        config: settings of all students, by the names that `rllib train --config` takes. They are not searched.
        space: a function that returns the space, with the signature of `search_space()`, the default.
        storage_path: folder or URI of all results; every node must be able to reach it. None: `~/ray_results`.
        name: name of the sweep's folder in `storage_path`. None: `sweep-` and the env.
        seed: seed of the search, and of the first student.
        callbacks: callbacks of Ray Tune, in addition to those that write CSV, JSON and TensorBoard files.
        keep: return ratio, in (0, 1], that the recommended student is to prove in fresh episodes at the end, as in
            `Shrink`; without an environment the agreement with the teacher, in (0, 1). Needs `num_seeds` ≥ 3. None: no
            certificate.
        confidence: of the certificate, in (0.5, 1).
        minimize: what "smallest" means, as in `Shrink`: "parameters", "bytes", "int8_bytes" or "multiply_adds".

    Raises:
        ValueError: a value is out of range or unknown, or search and scheduler cannot be combined.
    """

    teacher: Any
    env: str | None = None
    num_samples: int = 16
    search: str | None = None
    scheduler: str = "none"
    num_seeds: int = 3
    env_steps: int = 20_000
    config: Mapping[str, Any] = field(default_factory=dict)
    space: Space = search_space
    storage_path: str | None = None
    name: str | None = None
    seed: int = 0
    callbacks: Sequence[tune.Callback] = ()
    keep: float | None = None
    confidence: float = 0.95
    minimize: str = "parameters"

    def __post_init__(self) -> None:
        for name, low in (("num_samples", 1), ("num_seeds", 1), ("env_steps", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), low=low)
        check_not_own(self.config, "config")
        self.config = with_absolute_uris(self.config)
        if self.keep is not None:
            RatioTest(self.keep, 1 - self.confidence)  # which checks both
            if self.num_seeds < MIN_SEEDS:
                raise ValueError(
                    f"keep={self.keep:g} certifies the recommended student, and a recommendation needs at least "
                    f"{MIN_SEEDS} seeds, got {self.num_seeds}: raise --num-seeds (num_seeds=...), or leave out --keep."
                )
        self._has_trees = any(map(is_tree, (self.config.get("student"), self.config.get("model_config"))))
        check_minimized(self.minimize, _MINIMIZED, has_trees=self._has_trees)
        if self.scheduler not in SCHEDULERS:
            hint = did_you_mean(str(self.scheduler), SCHEDULERS)
            raise ValueError(f"Unknown scheduler {self.scheduler!r}.{hint} Known are: {', '.join(SCHEDULERS)}.")
        self.search = self.search or ("optuna" if self.scheduler == "none" else "random")
        if self.search not in SEARCHES:
            hint = did_you_mean(str(self.search), SEARCHES)
            raise ValueError(f"Unknown search {self.search!r}.{hint} Known are: {', '.join(SEARCHES)}.")
        if self.search == "optuna" and self.scheduler == "asha":
            raise ValueError(
                "Search 'optuna' needs the final values of two objectives, return and size, but the scheduler 'asha' "
                "stops students early by return alone, small ones first. Use search 'random', or no scheduler."
            )
        if self.search == "optuna" and self.scheduler == "pbt":
            raise ValueError(
                "The scheduler 'pbt' changes settings during training, so the search 'optuna' would learn from values "
                "of other settings. Use search 'random', or no scheduler."
            )
        if self.search == "optuna" and find_spec("optuna") is None:
            raise ValueError("Search 'optuna' needs Optuna: pip install 'rllib-kd[sweep]'. Or use search 'random'.")
        self._rows: HeldOut | None = None  # that judge, without an environment
        self._weights: str | None = None  # fingerprint of the teacher, once it is loaded
        self._own_space: Mapping[str, Domain] | None = None  # the user's, once it is drawn
        self._rounded: frozenset[str] = frozenset()  # as in `Task`, once the space is drawn
        if self.env is None:
            check_without_environment(self.config, self.keep)
        self.env = settled(self.env)
        self.name = self.name or f"sweep-{'rows' if self.env is None else short_name(self.env).replace('/', '-')}"
        check_not_empty(name=self.name)
        check_below_storage(name=self.name)
        self.storage_path = absolute_uri(self.storage_path or "~/ray_results")
        check_storage(self.storage_path)

    @property
    def path(self) -> str:
        """Return the path or URI of the sweep's folder."""
        return child_of(str(self.storage_path), str(self.name))

    def run(self, *, resume: bool = False, address: str | None = None) -> ReportedSweep:
        """Train, and write the result into `report/` in the sweep's folder.

        Uses the Ray of this process, or joins or starts one. Ctrl-C or SIGTERM ends the sweep after each trial's next
        checkpoint; a second one ends it at once. In both cases it can be resumed.

        Args:
            resume: continue the sweep in the folder: trials from their last checkpoints, the search with the results
                so far. If there is none, a sweep starts.
            address: address of a Ray cluster to join, or "auto"; None: a local Ray is started.

        Raises:
            ValueError: the teacher cannot be loaded or plays no better than a random policy; a setting is refused; or
                the folder already contains a sweep, and it is not to be resumed, differs from this one, or still runs.
        """
        remember(self.path)
        with alone_in(self.path, remedy="give another name"):
            return self._run(resume=resume, address=address)

    def _run(self, *, resume: bool, address: str | None) -> ReportedSweep:
        is_there = has_snapshot(self.path)
        if is_there and not resume:
            raise ValueError(
                f"'{self.path}' already contains a sweep. Continue it with --resume (resume=True), or give another "
                "name."
            )
        if is_there:
            check_spec(self.path, self._spec())
        snapshot_often(self.num_samples, seconds=0.2)
        teacher = load_teacher(self.teacher, trust_checkpoint=self.config.get("trust_checkpoint", False))
        self._weights = fingerprint(teacher)
        student_config(self.env, teacher, self.config, seed=self.seed)  # refuses unknown settings, and wrong types
        make_env, baselines = None, None
        if self.env is None:
            task, median_gap = self._task_on_rows(teacher)
        else:
            make_env = env_maker(self.env, self.config.get("env_config"))
            (teacher,) = check_players_fit(make_env, {f"The teacher '{teacher.source}'": teacher})
            if self.keep is not None:
                check_fresh(make_env, short_name(self.env))
            baselines = (kept_baselines(self.path) if is_there else None) or baselines_of(teacher, make_env, self.seed)
            task, median_gap = self._task(teacher, baselines), baselines.median_gap
        if is_there:
            check_spec(self.path, self._spec())  # now with the teacher, and the rows
        self._metric = task.metric
        space = self._space(teacher, median_gap)
        if is_there:
            check_spec(self.path, {SPACE: self._own_space})
        self._check(space, teacher)
        resources = self._resources(teacher)
        needs, bundles = resources.required_resources, bundles_of(resources)
        with connection(needs, bundles=bundles, address=address, lacks=_lacks):
            task = replace(task, rounded=self._rounded)
            shared = tune.with_parameters(StudentTrial, teacher=teacher, task=task)  # in the object store
            trainable = tune.with_resources(shared, resources)
            if is_there:
                put_back(self.path)
                tuner = tune.Tuner.restore(self.path, trainable=trainable, resume_unfinished=True, resume_errored=True)
            else:
                write_spec(self.path, self._spec() | {SPACE: self._own_space})
                if baselines is not None:
                    keep_baselines(self.path, baselines)
                points = default_points(space, median_gap=median_gap, env_steps=self.env_steps, outputs=teacher.outputs)
                tuner = self._tuner(trainable, space, points)
            with _rllib.callbacks_uncounted(), listening(), saving_on_interrupt() as interrupted:
                grid = tuner.fit()
            result = self._result(grid, teacher, task, is_complete=not interrupted.is_set())
        self._write(result)
        if self.keep is None or result.recommended is None or not result.is_complete:
            return result
        seen = seen_returns(baselines, result.students)
        result = replace(result, certified=self._certify(result.recommended, teacher, make_env, seen=seen))
        self._write(result)
        return result

    def _certify(
        self, student: SweptStudent, teacher: Teacher, make_env: Any, *, seen: list[float]
    ) -> tuple[Claim, Tested] | None:
        """Let the recommended student prove in fresh episodes that it keeps the return; None without a checkpoint."""
        if student.best_checkpoint is None or self.keep is None:
            return None
        claim = Claim(student.best_checkpoint, self.keep, self.confidence, self.seed)
        network = load_teacher(claim.checkpoint, trust_checkpoint=self.config.get("trust_checkpoint", False))
        if self.env is not None:
            (network,) = check_players_fit(make_env, {"The recommended student": network})
        given: dict[str, Any] = {"seen": seen, "uri": self.path, "rows": self._rows}
        with line() as show:
            return claim, certify_student(claim, network, teacher, make_env, **given, report=show)

    # --- Before the first trial ---------------------------------------------------------------------------------------

    def _task(self, teacher: Teacher, baselines: Baselines) -> Task:
        played = baselines.teacher, baselines.random
        more = f"A sweep plays {NUM_EPISODES}: train the teacher for longer, or expect return ratios with much noise."
        if text := doubt(teacher.source, self.env, *played, to_play_more=more, same_seeds=True):
            if not has_higher_mean(*played):
                raise ValueError(f"{text} There is nothing to distil.")
            logger.warning("%s", text)
        teacher_mean, random_mean = map(float, map(np.mean, played))
        means = teacher_mean, random_mean
        return Task(
            self.env, dict(self.config), self.env_steps, self.num_seeds, self.seed, *means, minimize=self.minimize
        )

    def _task_on_rows(self, teacher: Teacher) -> tuple[Task, float]:
        """Read the rows that judge; return the task, and the teacher's median action gap on them."""
        config = student_config(None, teacher, self.config, seed=self.seed)
        rows = hold_out_of(config, self.config, teacher, keep=self.keep, confidence=self.confidence)
        self._rows = rows
        given = None, self._settings(), self.env_steps, self.num_seeds, self.seed, 1.0, 0.0
        return Task(*given, minimize=self.minimize, states=rows.choice), rows.choice.median_gap()

    def _settings(self) -> dict[str, Any]:
        """Return the settings of all students."""
        return {**self.config, **({} if self._rows is None else self._rows.settings())}

    def _settings_of(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial's students that are searched."""
        return settings_of(sample, self.config, self.minimize, rounded=self._rounded)

    def _space(self, teacher: Teacher, median_gap: float) -> dict[str, Domain]:
        space = drawn_space(self.space, teacher, median_gap=median_gap, env_steps=self.env_steps)
        is_own = self.space is not search_space
        self._own_space = space if is_own else None
        if self.scheduler == "pbt":
            space = population_space(space)
            if self.config.get("loss", DistillDQNConfig().loss) not in SOFTENED:
                space.pop("temperature", None)
        sizes = {"compression", *WIDTH_KEYS}
        given = set(self.config) | set(self.config.get("model_config", {}))
        fixed = given | sizes if self._has_trees or given & {*sizes, "student"} else given
        if self._has_trees:
            fixed |= OF_NETWORKS
        if has_input(self.config):  # no policy acts, and TD needs whole episodes
            files = all_files(student_config(self.env, teacher, self.config, seed=self.seed))
            fixed |= {*OF_BEHAVIOUR, *(() if set(TD_IN_FILES) <= set(files.columns) else ("td_coeff",))}
        space = {name: domain for name, domain in space.items() if name not in fixed}
        self._rounded = frozenset(name for name, domain in space.items() if isinstance(domain, Float) and not is_own)
        return space

    def _check(self, space: Mapping[str, Domain], teacher: Teacher) -> None:
        """Check the settings before the first trial, so that errors reach the user."""
        if not space:
            raise ValueError(
                "There is nothing to search: `config` fixes every setting of the space. Leave some of them out."
            )
        refuse_recurrent(student_config(self.env, teacher, self.config, seed=self.seed))
        sample = {name: domain.sample() for name, domain in space.items()}
        settings = {**self._settings(), **self._settings_of(sample)}
        config = student_config(self.env, teacher, settings, seed=self.seed)
        validate(config)
        check_before(config, {DEFAULT_MODULE_ID: teacher}, None)  # recorded rows, if there are any
        check_labels(config, {DEFAULT_MODULE_ID: teacher})
        check_shapes(config, {DEFAULT_MODULE_ID: teacher}, (teacher.observation_space, teacher.action_space))

    def _resources(self, teacher: Teacher) -> tune.PlacementGroupFactory:
        """Return the resources of a trial: one main process, and the EnvRunners and Learners of all its students."""
        request = DistillDQN.default_resource_request(student_config(self.env, teacher, self.config, seed=self.seed))
        main_process, *others = request.bundles
        # RLlib asks for the i-th bundle for the i-th EnvRunner of every student.
        shared = [{name: self.num_seeds * amount for name, amount in bundle.items()} for bundle in others]
        return tune.PlacementGroupFactory([main_process, *shared], strategy=request.strategy)

    # --- Tune ---------------------------------------------------------------------------------------------------------

    def _tuner(self, trainable: Any, space: dict[str, Domain], points: list[dict[str, Any]]) -> tune.Tuner:
        return tune.Tuner(
            trainable,
            param_space=space if self.search == "random" else {},
            tune_config=tune.TuneConfig(
                num_samples=self.num_samples,
                search_alg=self._searcher(space, _evenly(points, self.num_samples // 2)),
                scheduler=self._scheduler(space),
                reuse_actors=True,
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=self.name,
                storage_path=self.storage_path,
                verbose=0,
                callbacks=[*self.callbacks, SaveOnInterrupt(), Snapshots()],
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_frequency=1,
                    checkpoint_at_end=True,
                    num_to_keep=4,  # a snapshot may name an older one, and PBT hands older ones to other trials
                ),
            ),
        )

    def _searcher(self, space: Mapping[str, Domain], points: list[dict[str, Any]]) -> Searcher | SearchAlgorithm:
        if self.search == "random":
            return BasicVariantGenerator(random_state=self.seed)  # it takes no points that hold lists
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Choices for a categorical")  # lists; the study is in memory
            return OptunaSearch(
                space=OptunaSearch.convert_search_space(dict(space)),
                metric=[self._metric, "student_cost"],
                mode=["max", "min"],
                points_to_evaluate=points,
                seed=self.seed,
            )

    def _scheduler(self, space: Mapping[str, Domain]) -> TrialScheduler | None:
        objective: dict[str, Any] = {"metric": self._metric, "mode": "max"}
        if self.scheduler == "asha":
            return ASHAScheduler(
                **objective, time_attr="training_iteration", max_t=NUM_REPORTS, grace_period=2, reduction_factor=2
            )
        if self.scheduler == "pbt":
            mutations = {name: space[name] for name in POPULATION_SETTINGS if name in space}
            return WaitingPopulation(**objective, interval=2, hyperparam_mutations=mutations)
        return None

    def _spec(self) -> dict[str, Any]:
        """Return what a resumed sweep must have in common with its beginning, as far as it is known."""
        names = ("env", "num_samples", "search", "scheduler", "num_seeds", "env_steps", "config", "seed", "minimize")
        rows = {} if self._rows is None else {"rows": self._rows.fingerprint}
        teacher = {} if self._weights is None else {WEIGHTS: self._weights}
        return {name: getattr(self, name) for name in names} | rows | teacher

    # --- The result ---------------------------------------------------------------------------------------------------

    def _result(self, grid: tune.ResultGrid, teacher: Teacher, task: Task, *, is_complete: bool) -> ReportedSweep:
        reported = [result for result in grid if result.error is None and self._metric in (result.metrics or {})]
        failed = {Path(result.path).name: str(result.error).strip().splitlines()[-1] for result in grid if result.error}
        return ReportedSweep(
            env=self.env or "recorded rows",
            teacher=list(map(path_of, self.teacher))
            if isinstance(self.teacher, list | tuple)
            else path_of(self.teacher),
            teacher_parameters=teacher.num_parameters,
            teacher_return=task.teacher_return,
            random_return=task.random_return,
            num_episodes=NUM_EPISODES,
            env_steps=self.env_steps,
            fixed=self._settings(),
            students=[self._student(result) for result in reported],
            failed=failed,
            note=_NOTES.get(self.scheduler, ""),
            is_complete=is_complete,
            minimize=self.minimize,
            held_out=None if self._rows is None else self._rows.facts(),
            good=good_agreement(self.keep) if self._rows is not None else GOOD_RATIO,
        )

    def _student(self, result: tune.Result) -> SweptStudent:
        metrics: Any = result.metrics
        return SweptStudent(
            name=Path(result.path).name,
            settings=self._settings_of(result.config or {}),
            num_parameters=metrics["student_params"],
            cost=metrics["student_cost"],
            compression=metrics["compression"],
            return_ratios=tuple(metrics[f"{self._metric}s"]),
            q_regret=metrics.get("q_regret"),
            extreme_returns=tuple(metrics.get(EXTREME_RETURNS, ())),
            env_steps=int(metrics["num_env_steps_sampled_lifetime"]),
            finished=metrics["training_iteration"] >= NUM_REPORTS,
            checkpoint=location(result.checkpoint) if result.checkpoint else None,
        )

    def _write(self, result: ReportedSweep) -> None:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(self.path)
        with tempfile.TemporaryDirectory() as folder:
            result.write(Path(folder), at=child_of(place_of(path, filesystem), "report"))
            filesystem.create_dir(f"{path}/report", recursive=True)
            pyarrow.fs.copy_files(folder, f"{path}/report", destination_filesystem=filesystem)


_NOTES = {
    "asha": "ASHA compares returns alone. Students that it stopped early, more often small ones, are not on the front.",
    "pbt": "Settings are those at the end of training: PBT changes them on the way, together with the weights.",
}


def _lacks(name: str, amounts: str) -> str:
    """Return the message of `connection()`."""
    return (
        f"A trial needs {amounts}. Lower --num-seeds (num_seeds), the number of students that share a bundle, or "
        f"num_env_runners, num_learners or their {name}s in --config (config)."
    )


def _evenly(items: list[Any], count: int) -> list[Any]:
    """Return at most `count` of the items, evenly spaced, including the first and the last if `count` ≥ 2."""
    if len(items) <= count:
        return items
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)
