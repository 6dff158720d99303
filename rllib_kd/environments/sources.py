"""The source of the user's own modules, which travels with an environment to processes on other disks."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from rllib_kd.environments.failures import is_installed
from rllib_kd.environments.imports import place, replace_folder

_MAX_BYTES = 2**24  # of all files
_OWN = __name__.partition(".")[0]


@dataclass(frozen=True)
class Sources:
    """The Python files of some folders.

    Args:
        files: folder from which they are imported → path below it → content.
    """

    files: Mapping[str, Mapping[str, bytes]]

    @classmethod
    def of(cls, given: Iterable[Path]) -> Sources:
        """Return files of the user's own, and the modules in the same folders that are loaded by now.

        Installed modules are left out: every node has them.

        Args:
            given: absolute paths of files.

        Raises:
            ValueError: they are too large.
        """
        loaded = list(filter(None, map(own_file, list(sys.modules.values()))))
        files: dict[str, dict[str, bytes]] = {}
        for file in given:
            root = place(file)[0]
            below = {file, *_package_files(root, file), *(each for each in loaded if each.is_relative_to(root))}
            files[str(root)] = {str(each.relative_to(root)): each.read_bytes() for each in sorted(below)}
        size = sum(len(content) for folder in files.values() for content in folder.values())
        if size > _MAX_BYTES:
            raise ValueError(
                f"The modules in {', '.join(map(repr, files))} have {size:,} bytes of source, expected at most "
                f"{_MAX_BYTES:,}. Install them as a package on every node."
            )
        return cls(files)

    def digests(self) -> dict[str, str]:
        """Return for each file, by its path, a text that is equal for equal content."""
        return {
            os.path.join(folder, name): hashlib.sha256(content).hexdigest()[:16]
            for folder, files in self.files.items()
            for name, content in files.items()
        }

    def provide(self) -> None:
        """Write those files that this machine lacks, or has with another content, to a temporary folder, once."""
        for folder, files in self.files.items():
            if folder not in _provided and not all(_is_same(Path(folder, name), files[name]) for name in files):
                other = tempfile.mkdtemp(prefix="rllib_kd-environment-")
                atexit.register(shutil.rmtree, other, ignore_errors=True)
                for name, content in files.items():
                    path = Path(other, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                replace_folder(folder, other)
            _provided.add(folder)


#: Folders that this process has already looked at.
_provided: set[str] = set()


def own_file(module: ModuleType | None) -> Path | None:
    """Return the Python file of a module of the user's own; None for installed modules."""
    file, name = getattr(module, "__file__", None), getattr(module, "__name__", "")
    if not isinstance(file, str) or not file.endswith(".py") or name in ("__main__", "__mp_main__"):
        return None
    path = Path(os.path.abspath(file))
    return None if is_installed(path) or name.split(".")[0] == _OWN or not path.is_file() else path


def _package_files(root: Path, file: Path) -> Iterable[Path]:
    """Yield the `__init__.py` files between a folder and a file."""
    for folder in file.parents:
        if folder == root or not folder.is_relative_to(root):
            return
        if (init := folder / "__init__.py").is_file():
            yield init


def _is_same(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
