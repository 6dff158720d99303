"""Markdown in which names from outside stay text: code spans and code blocks that they cannot end."""

from __future__ import annotations

import re

from rllib_kd.text import one_line, printable

_MAX_NAME = 300  # characters of a name or a path


def code(text: object, *, limit: int | None = _MAX_NAME) -> str:
    """Return text as a code span, in one line.

    Its delimiter is longer than any run of backticks in the text, so that Markdown and HTML in it have no meaning.

    Args:
        text: text from anywhere.
        limit: characters, as in `printable()`.
    """
    content = one_line(text, limit=limit) or " "
    fence = "`" * (_longest_run(content) + 1)
    pad = " " if content[0] in "` " or content[-1] in "` " else ""
    return f"{fence}{pad}{content}{pad}{fence}"


def code_block(language: str, text: str) -> str:
    """Return lines of text as a code block, which no line of it can end."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{printable(text, lines=True)}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
