"""The results of one policy, and of a student compared with its teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rllib_kd.evaluation.played_environment import described
from rllib_kd.text import (
    cell,
    count_of_episodes,
    finite_or_none,
    how_many,
    means_and_intervals,
    number,
    percent,
    printable,
    ratio,
    rendered,
)


@dataclass(frozen=True)
class PolicyReport:
    """A policy's size, returns and latency."""

    name: str
    returns: list[float] = field(repr=False)  # of each episode, undiscounted
    return_mean: float
    return_ci95: float  # half width of the 95 % confidence interval of the mean (Student's t)
    num_parameters: float | None = None  # that act: without target networks
    latency_ms: float | None = None  # median of one forward pass of one observation, on one thread


@dataclass(frozen=True)
class Comparison:
    """A student compared with its teacher.

    `confusion_on_..._states[i][j]` counts the states in which the teacher chooses action i and the student action j. If
    the teacher finds the student's action as good as its own, up to rounding, j counts as its choice, too. Agreement is
    the share on the diagonal.
    """

    env: str
    num_episodes: int
    epsilon: float  # share of random actions that teacher and student played with
    teacher: PolicyReport
    student: PolicyReport
    random: PolicyReport
    return_ratio: float  # (student − random) / (teacher − random); NaN if the teacher is no better than random
    compression: float  # student parameters / teacher parameters
    agreement_on_teacher_states: float  # share of states in which both choose the same, or an equally good, action
    agreement_on_student_states: float
    q_regret_on_teacher_states: float  # mean of max_a Q_T(s, a) − Q_T(s, a_S), in `regret_unit`, ≥ 0
    q_regret_on_student_states: float
    confusion_on_teacher_states: list[list[int]] = field(repr=False)  # [A][A], counts
    confusion_on_student_states: list[list[int]] = field(repr=False)
    env_config: dict[str, Any] = field(default_factory=dict)  # of the environment; what is not JSON, as a text
    regret_unit: str = "return units"  # or "nats", of log-probabilities instead of Q-values, if the teacher gives those
    #: Of a student that is a tree, as `tree_figures()` returns it; None of any other.
    tree: dict[str, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON; values that are not finite are None."""
        return finite_or_none(asdict(self))

    @property
    def played_in(self) -> str:
        """Return the environment, with its config."""
        return described(self.env, self.env_config)

    @property
    def regret_name(self) -> str:
        """Return the name of the regret, with its unit if that is not the usual one."""
        return "regret in nats" if self.regret_unit == "nats" else "Q-regret"

    @property
    def conditions(self) -> str:
        """Return the number of episodes, and ε."""
        return f"{count_of_episodes(self.num_episodes)} each, same seeds" + (
            f", ε = {self.epsilon:g}" if self.epsilon else ""
        )

    def __str__(self) -> str:
        """Return a table of at most 80 columns."""
        from rich.table import Table

        conditions = self.conditions if self.env_config else f"{self.env}, {self.conditions}"
        table = Table(title=cell(conditions, "table.title"))
        table.add_column("")
        for name in ("teacher", self.student.name, "student / teacher"):
            table.add_column(cell(name), justify="right")
        teacher, student = self.teacher, self.student
        table.add_row(
            "return, mean ± 95 % CI",
            *means_and_intervals([(report.return_mean, report.return_ci95) for report in (teacher, student)]),
            f"{ratio(self.return_ratio)}*",
        )
        table.add_row(
            "parameters",
            *(how_many(report.num_parameters) for report in (teacher, student)),
            f"{percent(self.compression)} %",
        )
        if self.tree is not None:
            table.add_row("leaves, depth", "", f"{self.tree['num_leaves']}, {self.tree['depth']}", "")
        if teacher.latency_ms and student.latency_ms:
            table.add_row(
                "latency, batch of 1",
                *(f"{1e3 * report.latency_ms:.0f} µs" for report in (teacher, student) if report.latency_ms),
                f"{student.latency_ms / teacher.latency_ms:.2f}",
            )
        table.add_row(
            "agreement on its states",
            *(f"{100 * a:.1f} %" for a in (self.agreement_on_teacher_states, self.agreement_on_student_states)),
            "",
        )
        table.add_row(
            f"{self.regret_name} on its states",
            *(f"{regret:.3g}" for regret in (self.q_regret_on_teacher_states, self.q_regret_on_student_states)),
            "",
        )
        random_return = number(self.random.return_mean, self.random.return_ci95)
        table.caption = f"* return ratio, where a random policy ({random_return}) counts as 0"
        return (f"played in {printable(self.played_in)}\n" if self.env_config else "") + rendered(table)
