"""Links of the pages: relative ones lead within the repository, and the site has what they lead to.

The pages are flat in docs/pages. Some other Markdown files become pages too; every other file that is linked is copied
to `files/` in the site, under its path in the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import notebooks

ROOT = Path(__file__).parents[1]
PAGES = "docs/pages"
#: Other files that are pages of the site, by their names there: Markdown, and the notebook.
OUTSIDE = {
    "README.md": "index.md",
    "SECURITY.md": "untrusted_files.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/pages/own_environment.ipynb": "own_environment.md",
    "docs/results/README.md": "measured.md",
    "docs/results/sizes/README.md": "measured_sizes.md",
    **{
        f"docs/results/{page.name}": f"measured_{page.name}"
        for page in sorted((ROOT / "docs" / "results").glob("*.md"))
        if page.name != "README.md"
    },
}

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(?=[#)])")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def targets(markdown: str, origin: str) -> Iterator[str]:
    """Yield the files that a page links, as paths in the repository.

    Args:
        markdown: text of the page.
        origin: path of the page in the repository.
    """
    found: list[str] = []
    _each_link(markdown, lambda link: found.append(_target(link, origin)) or link)  # type: ignore[func-returns-value]
    yield from found


def for_site(markdown: str, origin: str) -> str:
    """Return the page with links to where their targets are in the site.

    Args:
        markdown: text of the page.
        origin: path of the page in the repository.
    """
    return _each_link(markdown, lambda link: place_in_site(_target(link, origin)))


def place_in_site(path: str) -> str:
    """Return where the site has a file of the repository."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    return path.removeprefix(f"{PAGES}/") if path.startswith(f"{PAGES}/") else f"files/{path}"


def text(path: str) -> str:
    """Return the Markdown of a page; of a notebook, what the site shows of it.

    Args:
        path: path in the repository.
    """
    content = (ROOT / path).read_text()
    return notebooks.as_markdown(content) if path.endswith(".ipynb") else content


def copied() -> list[str]:
    """Return the linked files that are no pages, as paths in the repository."""
    pages = [f"{PAGES}/{page.name}" for page in sorted((ROOT / PAGES).glob("*.md"))]
    linked = {target for page in (*pages, *OUTSIDE) for target in targets(text(page), page)}
    return sorted(path for path in linked if place_in_site(path).startswith("files/"))


def _target(link: str, origin: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _each_link(markdown: str, change: Callable[[str], str]) -> str:
    parts = _CODE.split(markdown)  # every second one is code
    parts[::2] = [_LINK.sub(lambda match: change(match[1]), part) for part in parts[::2]]
    return "".join(parts)
