"""The files of a run: certificate.json, README.md, and shrink.html, a page that requests nothing."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_kd.certificates.agreement import agreement_means, note_on
from rllib_kd.certificates.certificate import RETURN_RATIO, Measured
from rllib_kd.export.certificate_card import write_certificate_card
from rllib_kd.export.units import UNITS
from rllib_kd.paths import replace_file
from rllib_kd.report.drawing import FOREGROUND, MUTED, as_drawn, colour_of, new_figure, place_legend, svg, use_log_axis
from rllib_kd.report.page import page, section
from rllib_kd.shrink.outcome import CERTIFICATE, Shrunk, ShrunkStudent, cost_text, share_text, untested
from rllib_kd.shrink.pictures import Strip
from rllib_kd.text import for_html, number, printable, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOWEST_SHOWN = -0.5  # return ratio; copies below it are drawn there


def write(result: Shrunk, folder: Path) -> None:
    """Write shrink.html, README.md, and certificate.json, which comes last: a folder with it has all results."""
    content = result.to_dict()
    text = json.dumps(content, indent=1, allow_nan=False)
    write_page(result, folder, None)
    write_certificate_card(folder, content)
    replace_file(folder / CERTIFICATE, f"{text}\n".encode())


def write_page(result: Shrunk, folder: Path, strip: Strip | None) -> None:
    """Write shrink.html.

    Args:
        result: the result.
        folder: where to.
        strip: pictures of the student that was found; None: there are none.
    """
    replace_file(folder / "shrink.html", _page(result, strip).encode())


def _page(result: Shrunk, strip: Strip | None) -> str:
    title, lead = _head(result)
    body = f'<p class="lead">{for_html(lead)}</p>\n<section class="card" id="verdict">'
    body += f"<p>{for_html(result.verdict)}</p>"
    if result.certified is not None:
        body += f"<pre>{for_html(result.export_command)}</pre>"
    body += "</section>\n"
    if not result.students:
        return page(title, body)
    body += '<div class="plots">' + section(
        "front",
        plot_title := f"Size and {'return' if result.rows is None else 'agreement'}",
        "Each dot is a copy at a round of validation. Left is smaller (the scale is logarithmic), up is better. The "
        "line is the best of each size. Validation chose the best, so that it is too high as an estimate.",
        svg("front-plot", plot_title, partial(front_plot, result)),
    )
    tested = result.certified or next((one for one in reversed(result.students) if one.returns), None)
    if tested is not None:
        body += section(
            "episodes",
            *_of_the_certificate(tested, result),
            svg("episodes-plot", result.measured.name, partial(episodes_plot, tested, result.measured)),
        )
    body += "</div>\n" + ("" if strip is None else _pictures(result, strip))
    body += f'<section class="card" id="sizes"><div class="scroll">{_table(result)}</div></section>\n'
    body += f'<section class="card" id="words"><h2>What the certificate means</h2>{_words(result)}</section>'
    return page(title, body)


def _head(result: Shrunk) -> tuple[str, str]:
    """Return the page's title and its first sentence."""
    teacher = f"Teacher: {printable(result.teacher)}, {_teacher_size(result)}"
    if result.rows is None:
        title = f"{printable(result.env)}: the smallest student that keeps the return"
        random = number(result.random_return)
        return title, f"{teacher}mean return {number(result.teacher_return)}. A random policy's is {random}."
    numbers = [f"{result.rows[part]['units']:,} {result.rows['unit']}" for part in ("choice", "certificate")]
    title = f"{printable(result.env)}: the smallest student that agrees with its teacher"
    return title, f"{teacher}no environment. {numbers[0]} chose, {numbers[1]} certify. {note_on(result.rows['unit'])}"


def _pictures(result: Shrunk, strip: Strip) -> str:
    assert result.best is not None  # whose pictures these are
    if strip.missing:
        return section("pictures", "One episode", for_html(strip.missing), "", wide=True)
    shown = "".join(
        f'<figure><img src="{src}" alt="step {step}"><figcaption>step {step:,}</figcaption></figure>'
        for step, src in strip.frames
    )
    how_to_read = (
        f"The {for_html(result.best.label)} student in the episode with seed {strip.seed}: return "
        f"{number(strip.episode_return)}."
    )
    return section("pictures", "One episode", how_to_read, f'<div class="strip">{shown}</div>', wide=True)


def _teacher_size(result: Shrunk) -> str:
    known = math.isfinite(result.teacher_parameters)
    return f"{result.teacher_parameters:,} parameters, " if known else ""


def front_plot(result: Shrunk) -> Figure:
    """Plot cost against validation return ratio, of every copy at every round, and the best of each size."""
    figure, (axes,) = new_figure(3.4)
    axes.axhline(1.0, color=FOREGROUND, linestyle="--", linewidth=1, zorder=1, label="teacher")
    axes.axhline(result.keep, color=FOREGROUND, linestyle="-.", linewidth=0.8, zorder=1, label=f"{result.keep:g}")
    costs = {one.name: one.cost(result.minimize) for one in result.students}
    copies = [(costs[size], value) for size, value in result.copies]
    if copies:
        sizes, ratios = zip(*copies, strict=True)
        shown = [max(value, _LOWEST_SHOWN) for value in as_drawn(ratios)]
        dots: dict[str, Any] = {"s": 9, "alpha": 0.45, "linewidths": 0, "zorder": 2}
        axes.scatter(sizes, shown, color=MUTED, label="copy", **dots)
    best: dict[float, float] = {}  # two sizes may have as many parameters
    for one in sorted(result.students, key=lambda one: costs[one.name]):
        cost = costs[one.name]
        best[cost] = max(best.get(cost, _LOWEST_SHOWN), one.validation_ratio)
    axes.plot(list(best), list(best.values()), color=colour_of(0), marker="o", markersize=5, label="best", zorder=3)
    if (student := result.certified) is not None:
        mark: dict[str, Any] = {"marker": "*", "markersize": 15, "linestyle": "none", "zorder": 4}
        cost = costs[student.name]
        axes.plot(cost, best[cost], color=colour_of(1), label="certified", **mark)
    use_log_axis(axes, [*(size for size, _ in copies), *best])
    axes.set_xlabel("latency (ms)" if result.minimize == "latency" else UNITS[result.minimize])
    axes.set_ylabel(result.measured.name)
    place_legend(figure, axes)
    return figure


def _of_the_certificate(student: ShrunkStudent, result: Shrunk) -> tuple[str, str]:
    """Return the head of the certificate's plot, and how to read it."""
    whose, label = "a random policy on the same seeds, sorted.", for_html(student.label)
    if result.rows is None:
        return "Episodes of the certificate", f"Returns of the {label} student, the teacher and {whose}"
    what = "share of the states in which it takes the teacher's action"
    return "Held-out rows of the certificate", f"Of the {label} student in {result.rows['unit']}: {what}, sorted."


def episodes_plot(student: ShrunkStudent, measured: Measured = RETURN_RATIO) -> Figure:
    """Plot the sorted returns of the certificate's episodes, a line for each policy; or the student's agreements."""
    figure, (axes,) = new_figure(3.4)
    colours = {"student": colour_of(1), "teacher": FOREGROUND, "random": MUTED}
    shown = student.returns if measured == RETURN_RATIO else {"student": student.returns["student"]}
    for name, returns in shown.items():
        share = [100 * (i + 0.5) / len(returns) for i in range(len(returns))]
        axes.plot(share, as_drawn(sorted(returns)), color=colours[name], label=name, linewidth=1.6)
    axes.set_xlabel("share of episodes (%)" if measured == RETURN_RATIO else "share of held-out units (%)")
    axes.set_ylabel("return, sorted" if measured == RETURN_RATIO else "agreement, sorted")
    place_legend(figure, axes)
    return figure


def _table(result: Shrunk) -> str:
    own = [] if result.minimize == "parameters" else [UNITS[result.minimize]]
    played = ("validation ratio", "validation episodes", "certificate episodes", "ratio")
    if result.rows is not None:
        played = ("agreement in choice", "units of choice", "units of certificate", "agreement")
    heads = ("parameters", "% of teacher", *own, *played)
    head = '<th scope="col">student</th>' + "".join(f'<th scope="col">{name}</th>' for name in heads)
    lines = []
    for student in result.students:
        found = student.certificate
        cells = [
            f"{student.num_parameters:,}",
            share_text(student, result),
            *(cost_text(student, result.minimize) for _ in own),
            ratio(student.validation_ratio),
            f"{len(student.validation_returns):,}",
            "–" if found is None else f"{found.num_episodes:,}",
            "–" if found is None or found.return_ratio is None else ratio(found.return_ratio),
        ]
        reason = untested(student, result) if found is None else found.reason
        cells_html = "".join(f"<td>{text}</td>" for text in cells)
        name = ("★ " if student.is_certified else "") + student.label
        lines.append(
            f'<tr><th scope="row">{for_html(name)}</th>{cells_html}<td class="words">{for_html(reason)}</td></tr>'
        )
    return (
        f'<table><thead><tr>{head}<th scope="col" class="words">result</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _words(result: Shrunk) -> str:
    return "".join(f"<p>{for_html(text)}</p>" for text in _meaning(result))


def _meaning(result: Shrunk) -> list[str]:
    """Return what the certificate means, in paragraphs."""
    alpha = 1 - result.confidence
    if result.rows is not None:
        return [*agreement_means(result.rows["unit"], result.keep, alpha), note_on(result.rows["unit"])]
    words = [
        "The return ratio is (student − random) / (teacher − random) of the mean undiscounted returns. The probability "
        f"that this run certifies a student with a ratio below {result.keep:g} is at most {100 * alpha:.3g} %, for all "
        "candidates together.",
        f"Candidates are tested from the smallest to the largest by their {result.minimize.replace('_', ' ')}, in an "
        "order that is fixed before the first of these episodes. No training and no choice used their seeds.",
    ]
    if result.facts.get("certify_in_pool"):
        words.append("All of these episodes were played in envpool's environment, and say nothing of gymnasium's.")
    tested = [student.certificate for student in result.students if student.certificate is not None]
    if tested and not tested[-1].are_bounds_stated and tested[-1].bounds is not None:
        low, high = tested[-1].bounds
        words.append(
            f"This holds on the condition that no return is outside of {number(low)} to {number(high)}: the range of "
            "all returns in this run, with a margin below. State the possible range with --bounds if a failure can be "
            "worse, or a success better."
        )
    return words
