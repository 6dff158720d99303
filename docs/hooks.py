"""What mkdocs does beyond its plugins: files of the repository, generated reference, links to the glossary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import generated
import glossary
import links

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

GLOSSARY = links.ROOT / links.PAGES / "glossary.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the notebook, and Markdown files from outside of docs/pages, as pages; copy the other linked files."""
    from mkdocs.structure.files import File

    for path, name in links.OUTSIDE.items():
        text = links.for_site(links.text(path), path)
        files.append(File.generated(config, name, content=text))
    for path in links.copied():
        files.append(File.generated(config, links.place_in_site(path), abs_src_path=str(links.ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Put generated reference into its places, and lead links to files of the repository."""
    if page.file.generated_by is not None:
        return markdown
    return generated.filled(links.for_site(markdown, f"{links.PAGES}/{page.file.src_uri}"))


def on_page_content(html: str, page: Page, **kwargs: Any) -> str:
    """Link the first use of each term."""
    if page.file.src_uri == GLOSSARY.name:
        return html
    return glossary.with_links(html, glossary.terms(GLOSSARY.read_text()), "glossary.html")
