"""Links the first use of each term on a page to the glossary."""

from __future__ import annotations

import html
import re

#: Text in these is left as it is.
_KEPT = {"a", "code", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "script", "style", "svg", "nav", "button", "label"}
_TAG = re.compile(r"(<[^>]*>)")


def terms(markdown: str) -> dict[str, str]:
    """Return the anchors of the glossary's terms, by spelling, in lower case.

    A heading is `## Term` or `## Term (other spelling, another one)`.

    Args:
        markdown: text of the glossary.
    """
    found = {}
    for heading in re.findall(r"^## (.+)$", markdown, re.MULTILINE):
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        spellings = re.fullmatch(r"([^(]+?)(?: \((.*)\))?", heading)
        assert spellings is not None, heading
        for spelling in (spellings[1], *(spellings[2] or "").split(", ")):
            if spelling:
                found[spelling.lower()] = anchor
    return found


def with_links(content: str, anchors: dict[str, str], glossary: str) -> str:
    """Return HTML in which the first use of each term leads to the glossary.

    Args:
        content: HTML of one page.
        anchors: anchors by spelling, as from `terms()`; spellings with one anchor are one term.
        glossary: address of the glossary.
    """
    spellings = sorted(anchors, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w/.-])({'|'.join(map(re.escape, spellings))})s?(?![\w/-])", re.IGNORECASE)
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        anchor = anchors[match[1].lower()]
        if anchor in seen:
            return match[0]
        seen.add(anchor)
        return f'<a class="term" href="{html.escape(glossary)}#{anchor}">{match[0]}</a>'

    parts, open_tags = _TAG.split(content), 0
    for i, part in enumerate(parts):
        if i % 2:
            name = re.match(r"</?(\w*)", part)
            if name is not None and name[1].lower() in _KEPT and not part.endswith("/>"):
                open_tags += -1 if part.startswith("</") else 1
        elif not open_tags:
            parts[i] = pattern.sub(link, part)
    return "".join(parts)
