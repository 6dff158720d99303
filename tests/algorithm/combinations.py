"""Which features combine: docs/pages/combinations.md, derived from the checks of configs, teachers and students.

For each pair of features, a config with both passes through the checks of `DistillDQN.setup()`, without Ray.

    python -m tests.algorithm.combinations   # writes the page
    python -m tests.algorithm.trained_pairs  # trains all pairs that it allows, in some ten minutes
"""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES

from rllib_kd import DistillDQNConfig, Teacher, load_teacher
from rllib_kd.algorithm.checks.labels import check_labels
from rllib_kd.algorithm.fit import check_fit
from rllib_kd.algorithm.settings import apply_settings
from rllib_kd.algorithm.students import Students, StudentSize, new_student, shape_students
from rllib_kd.algorithm.teachers import Teachers
from rllib_kd.networks.dqn_module import count_parameters, support_of
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "combinations.md"
AGENTS = ("left", "right")
ATOMS = {"num_atoms": 5, "v_min": 0.0, "v_max": 9.0}
TD = {"td_coeff": 1.0}


class Feature(NamedTuple):
    """A feature, how a user sets it, and the settings by name that have it, with others that it needs."""

    name: str
    how: str
    settings: dict[str, Any]


FEATURES = [
    Feature(
        "several agents",
        "`.multi_agent(...)`",
        {"policies": {*AGENTS}, "policy_mapping_fn": lambda agent, *_, **__: AGENTS[agent]},
    ),
    Feature("no teacher", "`teacher=None`, with TD", {"teacher": None, "teacher_outputs": None, **TD}),
    Feature("actor-critic", '`teacher="ppo.zip"`', {"teacher_outputs": "log_probs"}),
    Feature(
        "actor-critic that draws its actions",
        "`teacher_explores`",
        {"teacher_outputs": "log_probs", "teacher_explores": True},
    ),
    Feature("ensemble of Q-values", "`teacher=[A, B]`", {"teacher": 2, "ensemble": "q"}),
    Feature("ensemble of policies", '`ensemble="policy"`', {"teacher": 2, "ensemble": "policy", "temperature": 1.0}),
    Feature("C51", '`loss="categorical"`', {"teacher_atoms": 5, "loss": "categorical", **ATOMS}),
    Feature("value loss", '`loss="mse"` or `"huber"`', {"loss": "mse"}),
    Feature("TD beside distillation", "`td_coeff`", TD),
    Feature("QDagger", '`kd_coeff="qdagger"`, with TD', {"kd_coeff": "qdagger", "evaluation_interval": 1, **TD}),
    Feature("value gate", "`value_gate`, with TD", {"value_gate": True, **TD}),
    Feature("gap weighting", "`gap_weighting`", {"gap_weighting": True}),
    Feature("feature matching", "`feature_coeff`", {"feature_coeff": 0.01}),
    Feature("size by compression", "`compression`", {"compression": 0.1}),
    Feature("preset student", '`student="linear"`', {"student": "linear"}),
    Feature("tree", '`student={"tree": {...}}`', {"student": {"tree": {"max_leaf_nodes": 8}}}),
    Feature("recurrent student", "`use_lstm`", {"model_config": {"use_lstm": True, "lstm_cell_size": 8}}),
    Feature(
        "family of students",
        "`students={...}`",
        {"students": {"a": {"fcnet_hiddens": [8]}, "b": {"fcnet_hiddens": [4]}}},
    ),
    Feature("restarts", "`restarts`", {"restarts": 2}),
    Feature("first weights from the teacher", '`init="teacher"`', {"init": "teacher"}),
    Feature("labels of some states", "`label_fraction`", {"label_fraction": 0.25}),
    Feature("prioritized replay", "`alpha`, `beta`", {"replay_buffer_config": {"alpha": 0.6, "beta": 0.4}}),
    Feature(
        "custom connectors", "`env_to_module_connector`", {"env_to_module_connector": lambda *_, **__: MeanStdFilter()}
    ),
    Feature("weights of 8 bits", '`quantize="int8"`', {"quantize": "int8"}),
    Feature("recorded rows", "`input_`", {"input_": "/rows"}),
    Feature("recording", "`output`", {"output": "/rows"}),
    Feature("remote EnvRunners", "`num_env_runners`", {"num_env_runners": 2}),
    Feature("several Learners", "`num_learners`", {"num_learners": 2}),
]


def refusal(*features: Feature) -> str | None:
    """Return the first sentence of the error for a config with these features; None if there is no error."""
    both = settings_of(*features)
    for name, value in [item for feature in features for item in feature.settings.items()]:
        if both[name] != value:
            return f"Both set `{name.partition('_outputs')[0]}`, to different values."
    try:
        _check(both)
    except ValueError as error:
        return re.split(r"(?<=[.?])\s+(?=[A-Z`'])", str(error))[0]
    return None


def settings_of(*features: Feature) -> dict[str, Any]:
    """Return the settings of features together; of one that several set, the last one's."""
    return {name: value for feature in features for name, value in feature.settings.items()}


def config_of(settings: dict[str, Any]) -> DistillDQNConfig:
    """Return a config with these settings, and a teacher of their kind."""
    settings = {"teacher": 1, "teacher_atoms": 1, "teacher_outputs": "q_values"} | settings
    kind = settings.pop("teacher_atoms"), settings.pop("teacher_outputs")
    settings["teacher"] = _teacher(settings["teacher"], *kind)
    if "policies" in settings and settings["teacher"] is not None:
        settings["teacher"] = dict.fromkeys(AGENTS, settings["teacher"])
    if not settings.keys() & {"compression", "student", "students"}:
        # Quick: no search for widths.
        settings["model_config"] = {"fcnet_hiddens": [8], **settings.get("model_config", {})}
    config = DistillDQNConfig().environment("CartPole-v1")
    config.distillation(teacher=settings.pop("teacher"))
    return apply_settings(config, settings)


def _check(settings: dict[str, Any]) -> None:
    """Check a config as `DistillDQN.setup()` does."""
    config, is_multi_agent = config_of(settings), "policies" in settings
    config.validate()
    config.get_evaluation_config_object().validate()  # as RLlib does when it counts CPUs
    teachers = Teachers.load(config, None)
    check_labels(config, teachers)
    shape_students(config, teachers)
    modules = AGENTS if is_multi_agent else tuple(config.members) or ("default_policy",)
    spaces = dict.fromkeys((INPUT_ENV_SINGLE_SPACES, "default_policy", *modules), (CARTPOLE_OBS, CARTPOLE_ACTIONS))
    students = {name: new_student(config, spaces, name) for name in modules}
    sizes = {name: StudentSize(count_parameters(student), support_of(student)) for name, student in students.items()}
    groups = config.student_groups(modules)
    check_fit(config, teachers, Students({group: {n: sizes[n] for n in groups[group]} for group in groups}), spaces)


@cache
def _teacher(number: int | None, atoms: int, outputs: Any) -> Any:
    """Return no teacher, one, or an ensemble; of return distributions if there are several atoms."""
    if number is None:
        return None
    teacher = load_teacher("cartpole") if atoms == 1 else Teacher(make_q_module(**ATOMS))
    teacher.source = "A"  # on the page: no path of this machine
    teacher.outputs = outputs  # as those of an actor-critic of the same layers
    return teacher if number == 1 else [teacher] * number


def allowed() -> list[tuple[Feature, Feature]]:
    """Return the pairs that the page allows."""
    rows = [line.split("|")[3:-1] for line in PAGE.read_text().splitlines() if re.match(r"\| [A-Z]+ \|", line)]
    pairs = combinations(range(len(FEATURES)), 2)
    return [(FEATURES[i], FEATURES[j]) for i, j in pairs if rows[i][j].strip() == "✓"]


def page() -> str:
    """Return the page: a matrix of all pairs, and the reasons of those that do not combine."""
    pairs = combinations(range(len(FEATURES)), 2)
    refused = {(i, j): reason for i, j in pairs if (reason := refusal(FEATURES[i], FEATURES[j]))}
    numbers = {reason: number for number, reason in enumerate(dict.fromkeys(refused.values()), 1)}
    letters = [*ascii_uppercase, *(f"A{letter}" for letter in ascii_uppercase)][: len(FEATURES)]
    rows = [f"| | feature | {' | '.join(letters)} |", f"|---|---|{'---|' * len(FEATURES)}"]
    for i, feature in enumerate(FEATURES):
        reasons = [refused.get((min(i, j), max(i, j))) for j in range(len(FEATURES))]
        cells = [str(numbers[reason]) if reason else "" if i == j else "✓" for j, reason in enumerate(reasons)]
        rows.append(f"| {letters[i]} | {feature.name}: {feature.how} | {' | '.join(cells)} |")
    legend = "A number: the two are refused when the algorithm is built, with this error:"
    return "\n".join([_HEAD, *rows, "", legend, "", *(f"{number}. {reason}" for reason, number in numbers.items()), ""])


_HEAD = """# Which features combine

<!-- Written by `python -m tests.algorithm.combinations`, which asks the checks themselves. Do not edit. -->

✓: both can be set in one config. Teachers and students are MLPs here; [What works with what](what_combines.md) has the
limits of single features.
"""

if __name__ == "__main__":
    PAGE.write_text(page())
