"""Write model cards: README.md has a part for each file, and a README.md of others stays as it is."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rllib_kd.locks import locked
from rllib_kd.paths import replace_file

_MARK = "<!-- rllib_kd model card {} -->\n"
_MARKS = re.compile(r"^<!-- rllib_kd model card [0-9a-f]{16} -->\n", re.MULTILINE)
_MAX_BYTES = 2**20  # of a README.md that is read; ours have a few thousand


def write_card(file: Path, text: str) -> Path | None:
    """Write a part of the README.md beside a file, in place of an older part for the same file.

    If the README.md there was not written by this function, the card is `NAME.md` beside the file.

    Args:
        file: the file that the card describes, or a folder that it describes from inside.
        text: Markdown.

    Returns:
        The path of the card; None if neither can be written without replacing a file of others.
    """
    folder = file if file.is_dir() else file.parent
    readme = folder / "README.md"
    with locked(readme, wait=True):  # exports that end at the same time would drop each other's parts
        for path in (readme, folder / f"{file.name}.md"):
            if (parts := _own_parts(path)) is not None:
                parts[_key(file)] = text.rstrip("\n") + "\n"
                replace_file(path, "\n".join(_MARK.format(key) + part for key, part in parts.items()).encode())
                return path
    return None


def _key(file: Path) -> str:
    """Return a text without characters of the file's name, which a comment in HTML could not hold."""
    return hashlib.sha256(file.name.encode(errors="surrogatepass")).hexdigest()[:16]


def _own_parts(path: Path) -> dict[str, str] | None:
    """Return the parts of a README.md that this package wrote, {} if there is no file, None for a file of others."""
    if not path.exists() and not path.is_symlink():
        return {}
    if not path.is_file() or path.is_symlink() or path.stat().st_size > _MAX_BYTES:
        return None
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    if _MARKS.match(text) is None:
        return None
    starts = [match.start() for match in _MARKS.finditer(text)]
    parts = [text[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    length = len(_MARK.format("0" * 16))
    return {part[length - 21 : length - 5]: part[length:].rstrip("\n") + "\n" for part in parts}
