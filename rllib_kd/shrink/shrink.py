"""Shrink: the smallest student that keeps a share of its teacher's return, with a certificate."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import ray
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_kd.algorithm.algorithm import DistillDQN
from rllib_kd.algorithm.settings import validate
from rllib_kd.algorithm.student_config import student_config
from rllib_kd.certificates.evidence import as_range
from rllib_kd.certificates.fresh import check_fresh
from rllib_kd.certificates.games import EPISODES_OF_A_SEED
from rllib_kd.certificates.held_out import check_without_environment, hold_out_of
from rllib_kd.cluster import ray_address
from rllib_kd.environments.making import close, env_maker
from rllib_kd.environments.own import settled, short_name
from rllib_kd.environments.pools import is_pool
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.experiment.connection import MAX_SHARED_CPUS, connection
from rllib_kd.experiment.files import with_env_config
from rllib_kd.experiment.names import folder_word, new_name, own_folder
from rllib_kd.experiment.running import alone_in
from rllib_kd.export.units import MINIMIZED, check_minimized
from rllib_kd.networks.trees.shape import is_tree
from rllib_kd.numeric import check_integer, is_number
from rllib_kd.observations.masks import features_space
from rllib_kd.offline.fingerprint import WEIGHTS, fingerprint
from rllib_kd.offline.labelled_files import with_absolute_uris
from rllib_kd.paths import check_path
from rllib_kd.public import public
from rllib_kd.shrink.arena import Arena, InEnvironment, OnRows
from rllib_kd.shrink.candidates import Size, default_restarts, default_sizes, tree_sizes
from rllib_kd.shrink.outcome import Shrunk
from rllib_kd.shrink.parts import divide
from rllib_kd.shrink.progress import Progress, check_unchanged, options_of
from rllib_kd.shrink.run import Run
from rllib_kd.shrink.training import reachable, training_config
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.loading import load_teacher
from rllib_kd.terminal import say
from rllib_kd.text import plain

logger = logging.getLogger(__name__)

#: With less, Ray's start and the certificate leave no time for training.
LEAST_MINUTES = 0.5
DEFAULT_MINUTES = 10.0
#: Fewer cannot certify anything near a return ratio of 1: about ln(1/α) / (1 − keep).
_LEAST_EPISODES = 100


@public
@dataclass
class Shrink:
    """The search for the smallest student that keeps a share of its teacher's return, and its certificate.

    Without an environment, it is the smallest that agrees with its teacher on recorded rows (docs/pages/shrink.md).

    One run of `DistillDQN` trains several copies of each size side by side. Validation episodes choose the best copy of
    each size, over copies and time. Fresh episodes then test the promising ones, smallest first, until one is
    certified.

    Args:
        teacher: as for `load_teacher()`, or a `Teacher`; a list is an ensemble.
        env: as in `config.environment()`: a gymnasium id, a name registered with Tune, "path/to/file.py:Name" or
            "module:Name". None: `config` has the recorded rows (`input_`); some of them judge.
        keep: return ratio to prove, (student − random) / (teacher − random), in (0, 1]; without an environment the
            agreement with the teacher, in (0, 1).
        confidence: one run certifies a student below `keep` with a probability of at most 1 − confidence; in (0.5, 1).
            Several runs have more chances of error (docs/pages/certificates.md).
        minutes: duration of the run, ≥ 0.5; None: 10, or no limit if `env_steps` is given.
        env_steps: env steps of training, ≥ 1, of each part, instead of `minutes`: equal runs then give equal
            certificates.
        out: folder of the results, which must be empty or not exist; None: by environment and time, in `~/ray_results`.
        seed: seed of training, and of the choice of fresh episodes; ≥ 0.
        env_config: config of the environment.
        config: settings of training, by the names that `rllib train --config` takes.
        sizes: sizes to try, as `.distillation(students=...)`; None: from linear to 64 units, or shares of a
            teacher with convolutions.
        trees: whether decision trees of 4 to 64 leaves are tried beside the default sizes (docs/pages/trees.md).
        restarts: copies of each size, ≥ 1; None: 8, or 1 for images.
        episodes: most certificate episodes of each candidate, 100 to 100,000; None: 5,000, or with `minutes` and an
            environment as many as there is time for, at most 20,000.
        bounds: lowest and highest undiscounted return that an episode can have, if you know them; see
            docs/pages/certificates.md. None without an environment.
        minimize: what "smallest" means: "parameters"; "bytes" of the float32 weights, exported to safetensors;
            "int8_bytes" of all constants, exported to C with integers; "multiply_adds" of one decision; or "latency",
            the time of one decision of the safetensors file in the numpy runner on this machine, on one thread.
        certify_in_pool: whether certificate episodes of an environment "envpool/NAME" are played in envpool, too. The
            certificate is then about envpool's environment. False: in gymnasium's, which may be hundreds of times as
            slow.
        parts: into how many parts training is divided, ≥ 1, each with its own actor and states; None: on a cluster as
            many as it has free CPUs for, otherwise 1. Sizes are divided, then their copies, at most into groups of 4.

    Raises:
        ValueError: a value is out of range.
    """

    teacher: Any
    env: Any = None
    keep: float = 0.97
    confidence: float = 0.95
    minutes: float | None = None
    env_steps: int | None = None
    out: str | os.PathLike[str] | None = None
    seed: int = 0
    env_config: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] | None = None
    trees: bool = False
    restarts: int | None = None
    episodes: int | None = None
    bounds: Sequence[float] | None = None
    minimize: str = "parameters"
    parts: int | None = None
    certify_in_pool: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        self.config = with_absolute_uris(self.config)
        _check_in("keep", self.keep, 0 < self.keep <= 1, "in (0, 1]", "0.97 keeps 97 % of the return")
        is_in = 0.5 < self.confidence < 1
        _check_in("confidence", self.confidence, is_in, "in (0.5, 1)", "0.95 means 95 %")
        if self.minutes is not None and self.env_steps is not None:
            raise ValueError(
                f"minutes={self.minutes:g} and env_steps={self.env_steps} both limit the run. Set one of them."
            )
        if self.minutes is not None:
            is_enough = LEAST_MINUTES <= self.minutes < math.inf
            hint = "Ray's start and the certificate take this long already"
            _check_in("minutes", self.minutes, is_enough, f"at least {LEAST_MINUTES:g}", hint)
        elif self.env_steps is None:
            self.minutes = DEFAULT_MINUTES
        least = {"env_steps": 1, "seed": 0, "restarts": 1, "episodes": _LEAST_EPISODES, "parts": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name != "seed":
                continue
            check_integer(name, value, low=low)
            setattr(self, name, int(value))
        if self.episodes is not None and self.episodes > EPISODES_OF_A_SEED:
            raise ValueError(
                f"episodes must be at most {EPISODES_OF_A_SEED:,}, got {self.episodes:,}: the next ones are those of "
                "the next seed."
            )
        if self.bounds is not None:
            as_range(self.bounds)
        if self.sizes is not None and self.trees:
            raise ValueError("trees=True adds to the default sizes, but `sizes` sets all. Put the trees in `sizes`.")
        if self.sizes is not None and not self.sizes:
            raise ValueError("sizes is empty. Give at least one, or None for the default ones.")
        has_trees = self.trees or any(map(is_tree, (self.sizes or {}).values()))
        check_minimized(self.minimize, MINIMIZED, has_trees=has_trees)
        if self.certify_in_pool and not is_pool(self.env):
            raise ValueError(
                f"certify_in_pool=True needs an environment of envpool, such as 'envpool/LunarLander-v3', got "
                f"env={short_name(self.env)!r:.200}. Leave it out (--certify-in-pool), or name one."
            )
        if self.env is None:
            self._check_without_environment()
        self.env = settled(self.env)

    def _check_types(self) -> None:
        """Check values that the command line cannot have.

        Raises:
            ValueError: one is of another type.
        """
        for name in ("keep", "confidence", "minutes"):
            value = getattr(self, name)
            if not is_number(value) and (value is not None or name != "minutes"):
                raise ValueError(f"{name} must be a number, got {value!r:.200}.")
            if is_number(value) and not isinstance(value, int | float):  # one of numpy's, which JSON does not take
                setattr(self, name, float(value))
        for name in ("env_config", "config", "sizes"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and (value is not None or name != "sizes"):
                example = "{'small': {'fcnet_hiddens': [4]}}" if name == "sizes" else "{'lr': 0.001}"
                raise ValueError(f"{name} must be a dict such as {example}, got {value!r:.200}.")
        for name in ("trees", "certify_in_pool"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r:.200}.")
        if self.out is not None and not isinstance(self.out, str | os.PathLike):
            raise ValueError(f"out must be the path of a folder, got {self.out!r:.200}.")

    def _check_without_environment(self) -> None:
        check_without_environment(self.config, self.keep)
        for name in ("bounds", "env_config"):
            if getattr(self, name) is not None and len(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} needs an environment: --env (env=...). Leave it out.")

    def run(
        self,
        *,
        resume: bool = False,
        address: str | None = None,
        command: str | None = None,
        progress: bool = False,
    ) -> Shrunk:
        """Train, choose, certify, and write all files.

        Uses the Ray of this process, or joins or starts one. Ctrl-C or SIGTERM ends the run after the current env step
        of its episodes, or after this iteration of training; a second one ends it at once. In both cases it can be
        resumed.

        Args:
            resume: continue the run in the folder `out`, with the options that it began with. Its time counts.
            address: address of a Ray cluster to join, or "auto"; None: a local Ray is started.
            command: command to record in certificate.json.
            progress: whether to show a line on a terminal.

        Returns:
            The result, also if no student is certified. If the run was interrupted, its `is_complete` is False.

        Raises:
            ValueError: the teacher cannot be loaded or does not fit the environment; a setting is refused; the folder
                is not empty, or another run uses it; or the run to resume does not exist, or differs from this one.
        """
        options = options_of(self)
        begun = self._begun(options) if resume else {}
        if not resume and self.out is not None:
            _check_empty(Path(self.out).absolute())
        settings, teacher, arena = self._in_environment() if self.env is not None else self._on_rows()
        observation_space = arena.observation_space
        options[WEIGHTS] = fingerprint(teacher)
        if arena.rows is not None:
            options["recorded rows"] = arena.rows.fingerprint
        sizes = self._sizes(teacher, observation_space, settings)
        options["networks"] = [[size.name, plain(size.shape)] for size in sizes]  # also their order
        restarts = default_restarts(observation_space) if self.restarts is None else self.restarts
        given, by_time = (teacher, self.env, settings, sizes), self.minutes is not None
        config = training_config(*given, restarts=restarts, seed=self.seed, is_by_time=by_time)
        request = DistillDQN.default_resource_request(validate(config.copy(copy_frozen=False)))
        needs = request.required_resources
        parts = divide(sizes, restarts, begun.get("parts", self.parts or 1), seed=self.seed)
        _check_machine(len(parts), needs, address)
        with ExitStack() as stack:
            folder = self._folder(stack, resume=resume)
            stack.enter_context(alone_in(str(folder), remedy="name another folder: --out (out=...)"))
            # Read again: now it is locked.
            state: dict[str, Any] = self._begun(options) if resume else {"options": options}
            all_needs = {name: amount * len(parts) for name, amount in needs.items()}
            if len(parts) == 1 and ray_address(address):  # its main process is this one
                all_needs = {name: amount - request.bundles[0].get(name, 0.0) for name, amount in needs.items()}
            stack.enter_context(connection(all_needs, address=address))
            if self.parts is None and not resume:
                parts = divide(sizes, restarts, _free_parts(needs, address), seed=self.seed)
            state["parts"] = len(parts)
            run = Run(teacher, arena, config, sizes, settings, Progress(folder), state, self, parts)
            return run(command=command, progress=progress)

    def _in_environment(self) -> tuple[dict[str, Any], Teacher, Arena]:
        """Return the settings of training, the teacher for the environment, and the environment."""
        settings = with_env_config(self.config, self.env_config)
        settings["env_config"] = settings.get("env_config") or {}
        make_env = env_maker(self.env, settings["env_config"])
        observation_space = self._observation_space(make_env)
        teacher = self._loaded_teacher()
        (teacher,) = check_players_fit(make_env, {f"The teacher '{teacher.source}'": teacher})
        check_fresh(make_env, short_name(self.env))
        played = PlayedEnvironment(self.env, settings["env_config"])
        arena = InEnvironment(played, make_env, observation_space, in_pool=self.certify_in_pool)
        return settings, teacher, arena

    def _on_rows(self) -> tuple[dict[str, Any], Teacher, Arena]:
        """Return the settings of training, the teacher, and the rows that judge."""
        settings, teacher = dict(self.config), self._loaded_teacher()
        config = student_config(None, teacher, settings, seed=self.seed)
        rows = hold_out_of(config, settings, teacher, keep=self.keep, confidence=self.confidence)
        return {**settings, **rows.settings()}, teacher, OnRows(rows, features_space(teacher.observation_space))

    def _loaded_teacher(self) -> Teacher:
        if isinstance(self.teacher, Teacher):
            return self.teacher
        return load_teacher(self.teacher, trust_checkpoint=self.config.get("trust_checkpoint", False))

    def _observation_space(self, make_env: Any) -> Any:
        env = make_env()
        close(env)
        if isinstance(env, MultiAgentEnv):
            raise ValueError(
                f"'{short_name(self.env)}' has several agents, for which a return ratio is not defined here. Choose an "
                "environment with one agent."
            )
        return features_space(env.observation_space)

    def _begun(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of the run that is resumed, which began with the same options."""
        if self.out is None:
            raise ValueError(
                "To resume a run, give its folder, which was printed when it began: --out FOLDER (out=...)."
            )
        state = Progress(Path(self.out).absolute()).read()
        check_unchanged(Path(self.out), state["options"], options)
        return state

    def _sizes(self, teacher: Any, observation_space: Any, settings: Mapping[str, Any]) -> list[Size]:
        if self.sizes is not None:
            return [Size(name, name, shape) for name, shape in self.sizes.items()]
        sizes = default_sizes(teacher, observation_space, minimize=self.minimize)
        if self.trees:
            sizes += tree_sizes(teacher, observation_space)
        return reachable(teacher, self.env, settings, sizes, seed=self.seed)

    def _folder(self, stack: ExitStack, *, resume: bool) -> Path:
        if self.out is not None:
            folder = Path(self.out).absolute()
            if not resume:
                _check_empty(folder)
                folder.mkdir(parents=True, exist_ok=True)
            return folder
        storage = Path.home() / "ray_results"
        name = new_name(f"shrink_{'rows' if self.env is None else folder_word(short_name(self.env))}")
        folder = storage / stack.enter_context(own_folder(str(storage), name))
        say(f"note: results go to '{folder}'.")
        return folder


def begun_with(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the options of the run in a folder, as arguments of `Shrink`, to resume it.

    Raises:
        ValueError: there is no run to resume.
    """
    options = Progress(Path(folder).absolute()).read()["options"]
    return {field.name: options[field.name] for field in fields(Shrink) if field.name in options}


def _free_parts(needs: Mapping[str, float], address: str | None) -> int:
    """Return how many parts a cluster has free resources for, at least 1; without a cluster 1. Ray is connected."""
    if not ray_address(address):
        return 1
    free = ray.available_resources()
    num_parts = min((int(free.get(name, 0.0) // amount) for name, amount in needs.items() if amount), default=1)
    if num_parts < 1:
        logger.warning(
            "The cluster has no free resources for a part, which needs %s: this process trains all sizes, on this "
            "machine. To train on nodes of the cluster, also on those that it adds when they are needed, set --parts N "
            "(parts=N), with N of at least 2.",
            ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount),
        )
    return max(1, num_parts)


def _check_machine(num_parts: int, needs: Mapping[str, float], address: str | None) -> None:
    """Check that a Ray on this machine alone has the CPUs of all parts, which would otherwise wait forever.

    Raises:
        ValueError: it does not.
    """
    if num_parts == 1 or ray_address(address):
        return
    needed = num_parts * needs.get("CPU", 0.0)
    there = (
        ray.cluster_resources().get("CPU", 0.0) if ray.is_initialized() else max(os.cpu_count() or 1, MAX_SHARED_CPUS)
    )
    if needed > there:
        raise ValueError(
            f"{num_parts} parts need {needed:g} CPUs, but Ray has {there:g} here. Join a cluster with --ray-address "
            "(address=...), or begin a run with fewer --parts (parts=...)."
        )


def _check_in(name: str, value: float, is_in: bool, expected: str, hint: str) -> None:
    if not is_in:
        raise ValueError(f"{name} must be {expected}, got {value!r}: {hint}.")


def _check_empty(folder: Path) -> None:
    """Check that a folder is empty or does not exist.

    Raises:
        ValueError: it is not, or no folder.
    """
    check_path(folder)
    if Progress(folder).exists:
        raise ValueError(
            f"'{folder}' already contains a run. Continue it with --resume (resume=True), or name a new folder."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is not a folder"
        raise ValueError(f"'{folder}' {what}. Name a new folder for the results: --out (out=...).")
