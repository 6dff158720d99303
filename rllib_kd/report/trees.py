"""Trees in a report: drawn, and as rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rllib_kd.report.drawing import COLOURS, FOREGROUND, MUTED, WIDTH, new_figure, svg
from rllib_kd.report.page import section
from rllib_kd.text import for_html, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rllib_kd.evaluation.result import Comparison

#: A drawing of more leaves is longer than a page; their rules are shown alone.
_MOST_DRAWN = 64
_TEXT_LENGTH = 40  # characters of a test in the drawing


def tree_section(comparisons: Sequence[Comparison]) -> str:
    """Return the card of the students that are trees; empty if there are none."""
    parts = [_part(comparison, i) for i, comparison in enumerate(comparisons) if comparison.tree is not None]
    if not parts:
        return ""
    regret = comparisons[0].regret_name
    return section(
        "trees",
        "Trees",
        "A state begins on the left; where the test holds it goes up, otherwise down. Each leaf shows its action, the "
        f"share of the student’s states that reach it, and the mean {regret} of its action there. Numbers are in the "
        "environment’s units.",
        "".join(parts),
        wide=True,
    )


def _part(comparison: Comparison, number: int) -> str:
    tree, name = comparison.tree, comparison.student.name
    assert tree is not None
    head = f"<h3>{for_html(name)}: {tree['num_leaves']} leaves, depth {tree['depth']}</h3>"
    drawn = ""
    if tree["num_leaves"] <= _MOST_DRAWN:
        title = f"Tree of {printable(name)}"
        drawing = svg(f"tree-{number}", title, partial(tree_plot, tree))
        drawn = f'<div class="scroll"><div class="broad">{drawing}</div></div>'
    return f"{head}{drawn}<details><summary>Rules</summary><pre>{for_html(tree['rules'], lines=True)}</pre></details>"


def tree_plot(tree: Mapping[str, Any]) -> Figure:
    """Draw a tree from left to right, with a line for each leaf.

    Args:
        tree: as `tree_figures()` returns it.
    """
    num_inner, leaves = len(tree["nodes"]), tree["leaves"]
    heights, depths = _places(tree)
    figure, (axes,) = new_figure(0.6 + 0.24 * len(leaves), width=2 * WIDTH)
    right = max(tree["depth"], 1)
    for node, own in enumerate(tree["nodes"]):
        for child in (own["left"], own["right"]):
            ends = right if child >= num_inner else depths[child]
            axes.plot(
                [depths[node], depths[node], ends], [heights[node], heights[child], heights[child]], color=MUTED, lw=1
            )
        text = f"{own['compared']} ≤ {float(own['threshold']):.4g}"  # the rules have all digits
        shown = text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 1] + "…"
        axes.text(depths[node] + 0.03, heights[node], printable(shown), va="center", fontsize=8, color=FOREGROUND)
    for leaf, own in enumerate(leaves):
        height, colour = heights[num_inner + leaf], COLOURS[own["action"] % len(COLOURS)]
        axes.barh(height, own["share"], left=right + 0.45, height=0.6, color=colour)
        axes.text(right + 0.05, height, f"action {own['action']}", va="center", fontsize=8, color=colour)
        told = f" {100 * own['share']:.1f} %" + ("" if own["regret"] is None else f", regret {own['regret']:.2g}")
        axes.text(right + 0.45 + own["share"], height, told, va="center", fontsize=8, color=FOREGROUND)
    axes.set_xlim(-0.05, right + 2.1)
    axes.set_ylim(len(leaves) - 0.4, -0.6)
    axes.axis("off")
    return figure


def _places(tree: Mapping[str, Any]) -> tuple[dict[int, float], dict[int, int]]:
    """Return height and depth of each node: leaves in the order of the rules, others between their children."""
    nodes = tree["nodes"]
    heights: dict[int, float] = {}
    depths: dict[int, int] = {}
    open_nodes, line = [(0, 0, False)], 0
    while open_nodes:
        node, depth, has_children = open_nodes.pop()
        depths[node] = depth
        if node >= len(nodes):
            heights[node], line = float(line), line + 1
        elif has_children:
            heights[node] = (heights[nodes[node]["left"]] + heights[nodes[node]["right"]]) / 2
        else:
            sides = [(nodes[node][side], depth + 1, False) for side in ("right", "left")]
            open_nodes += [(node, depth, True), *sides]
    return heights, depths
