"""The search space of a sweep: config settings, each with one of Ray Tune's domains, its unit and its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain

from rllib_kd.algorithm.algorithm import DistillDQNConfig
from rllib_kd.algorithm.defaults import FOR_VECTORS
from rllib_kd.checkpoints.uris import expanded
from rllib_kd.environments.failures import described, users_errors
from rllib_kd.environments.run_files import run_file
from rllib_kd.networks.mixed_space import has_images
from rllib_kd.public import public
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import Q_VALUES, Outputs

#: Settings that Population Based Training may change while a student learns: none shapes the network or its state.
POPULATION_SETTINGS = ("kd_coeff", "temperature", "lr")
#: Settings of the space that trees do not have.
OF_NETWORKS = frozenset({"loss", "temperature", "lr", "training_intensity", "td_coeff"})
#: Settings that the sweep sets for each student.
_OWN = {
    "teacher": "set --teacher (teacher=...)",
    "env": "set --env (env=...)",
    "seed": "each student has its own. Set --seed (seed=...)",
    "students": "a setting is one student. Search 'fcnet_hiddens' or 'compression'",
    "patience": "students are compared after the same number of env steps. Set --env-steps (env_steps=...)",
}


@public
def search_space(teacher: Teacher, *, median_gap: float, env_steps: int) -> dict[str, Domain]:
    """Return the search space of a sweep: every setting that affects how small a student can be.

    Keys are names of config settings (`lr`, `loss`, …), or of a model config (`fcnet_hiddens`). Add, replace or drop
    entries as you like. A setting that the drawn loss does not read (`temperature` with `mse`) is left out of the
    student's config.

    Args:
        teacher: the teacher of all students; its network decides how sizes are drawn.
        median_gap: median action gap (best − next lower output) over states that the teacher visits, > 0, return units
            or nats.
        env_steps: training length of each student, > 0.

    Returns:
        Setting → one of Ray Tune's domains.
    """
    auto, _ = DistillDQNConfig().temperatures(median_gap, teacher.outputs)
    has_q_values = teacher.outputs == Q_VALUES  # an actor-critic has nothing else to learn than which action to take
    space = _student_size(teacher) | {
        # "kl" and "nll" learn which action to take, and need little capacity. "reverse_kl" needs one good action of
        # several: better for very small students on some tasks, much worse on others. "mse" learns Q-values, for a
        # student that later learns by itself.
        "loss": tune.choice(["kl", "reverse_kl", "nll", *(["mse"] if has_q_values else [])]),
        # Return units; for "kl" and "reverse_kl". Around a tenth of the action gap: a third of it hardly differs from
        # the greedy action, ten times as much shows which mistakes are cheap, and blurs the best action. For
        # actor-critics around 1, their own policy.
        "temperature": tune.loguniform(auto / 3, auto * 10),
        # Adam's, with averaged weights. Lower: small students do not converge within the budget; higher: they
        # oscillate.
        "lr": tune.loguniform(5e-4, 2e-2),
        # β, share of the teacher's actions, over env steps: from its states to the student's own, or half way. Late:
        # the student sees good states for longer; early, or never the teacher's (0): it learns sooner to correct its
        # own mistakes.
        "teacher_fraction": tune.choice(
            [0.0, *([[0, 1.0], [round(share * env_steps), end]] for end in (0.0, 0.5) for share in (0.25, 1.0))]
        ),
        # Replay ratio, rows learned from / env steps sampled: gradient steps for the same env steps, in proportion to
        # the time that a trial takes.
        "training_intensity": tune.loguniform(8.0, 64.0),
    }
    # Weight of RLlib's TD loss beside the distillation loss (1): 0 is pure imitation, with averaged weights; more lets
    # a student improve on what it cannot imitate, and costs a pass of a target network.
    return space | ({"td_coeff": tune.choice([0.0, 0.1])} if has_q_values else {})


def _student_size(teacher: Teacher) -> dict[str, Domain]:
    first = teacher.members[0]  # of an ensemble
    model_config = first.model_config or {}
    if has_images(first.input_space) or model_config.get("conv_filters"):
        # Student parameters / teacher parameters: the teacher's convolutions with fewer channels.
        return {"compression": tune.loguniform(0.005, 0.2)}
    # Units of each hidden layer. [] is linear, the smallest network; two layers represent functions that one layer with
    # as many parameters cannot.
    return {"fcnet_hiddens": tune.choice([[], [2], [4], [8], [16], [32], [64], [8, 8], [16, 16], [32, 32]])}


def read_space(path: str) -> Callable[..., Mapping[str, Domain]]:
    """Return the `search_space()` of a Python file, which is run.

    Args:
        path: path of the file, like `tuning/search_space.py`.

    Raises:
        ValueError: there is no such file, it raises, or it defines no `search_space()`.
    """
    file = expanded(path)
    if not file.is_file():
        raise ValueError(f"--space: there is no file '{path}'.")
    space = run_file(file).get("search_space")
    if not callable(space):
        raise ValueError(f"--space: '{path}' defines no search_space(). tuning/search_space.py is an example.")
    return space


def drawn_space(
    function: Callable[..., Mapping[str, Domain]], teacher: Teacher, *, median_gap: float, env_steps: int
) -> dict[str, Domain]:
    """Return the space of a function like `search_space()`, which may be the user's own.

    Raises:
        ValueError: it raises, or returns something else than settings with Tune's domains.
    """
    try:
        space = function(teacher, median_gap=median_gap, env_steps=env_steps)
    except ValueError:
        raise
    except users_errors() as error:
        raise ValueError(f"search_space() raised an error: {described(error)}") from error
    if not isinstance(space, Mapping):
        raise ValueError(f"search_space() must return settings with domains: {{'lr': ...}}, got {space!r:.200}.")
    for name, domain in space.items():
        if not (isinstance(name, str) and isinstance(domain, Domain)):
            raise ValueError(
                f"search_space() must return names of settings with Tune's domains, like tune.choice([...]), got "
                f"{name!r}: {domain!r:.200}. Fix other settings in the config."
            )
    check_not_own(space, "search space")
    return dict(space)


def check_not_own(settings: Mapping[str, Any], where: str) -> None:
    """Check that settings have none that the sweep itself sets for each student.

    Raises:
        ValueError: they have one, or are no dict.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"The {where} of a sweep must be a dict such as {{'lr': 0.001}}, got {settings!r:.200}.")
    for name, remedy in _OWN.items():
        if name in settings:
            raise ValueError(f"The setting '{name}' cannot be in the {where} of a sweep: {remedy}.")


def population_space(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """Return the part of a space that Population Based Training may vary, and the weight of the distillation loss."""
    # A factor: Adam divides by the gradient's size, so that it counts only beside a TD loss (`td_coeff` > 0).
    return {"kd_coeff": tune.loguniform(0.1, 10.0)} | {k: v for k, v in space.items() if k in POPULATION_SETTINGS}


def default_points(
    space: Mapping[str, Domain], *, median_gap: float, env_steps: int, outputs: Outputs = Q_VALUES
) -> list[dict[str, Any]]:
    """Return the package's defaults at every size of the space, as far as they lie in it, to start a search with.

    Only `teacher_fraction` is not the default, which names env steps: it falls to 0.5 in a quarter of `env_steps`.
    Empty if an entry of the space has no default here.
    """
    defaults: dict[str, Any] = {
        "loss": "kl",
        "temperature": DistillDQNConfig().temperatures(median_gap, outputs)[0],
        "lr": FOR_VECTORS["lr"],
        "teacher_fraction": [[0, 1.0], [round(0.25 * env_steps), 0.5]],
        "training_intensity": FOR_VECTORS["training_intensity"],
        "td_coeff": 0.0,
    }
    sizes = space.get("fcnet_hiddens")
    if not isinstance(sizes, Categorical) or set(space) - {"fcnet_hiddens", *defaults}:
        return []
    if not all(domain.is_valid(defaults[name]) for name, domain in space.items() if name != "fcnet_hiddens"):
        return []
    point = {name: defaults[name] for name in space if name != "fcnet_hiddens"}
    return [{"fcnet_hiddens": size, **point} for size in sizes.categories]
