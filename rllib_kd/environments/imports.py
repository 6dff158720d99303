"""Imports of the user's own files and modules, whose folders come last on the path.

The folder of a file, and the working folder for a module, become importable, also in the processes of a local Ray. A
`tree.py` or `random.py` there must not take the place of an installed module: RLlib itself imports one named `tree`.
"""

from __future__ import annotations

import importlib
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from rllib_kd.environments.failures import described, users_errors
from rllib_kd.paths import check_path, tidied

#: Folders that were made importable, in this order.
_own_folders: list[str] = []
#: Modules of files, by their paths: files may change, or go, while a process runs.
_imported: dict[str, ModuleType] = {}
#: Folders that hold the files of another machine's folders, by these.
_replaced: dict[str, str] = {}


def is_file_name(name: str) -> bool:
    """Return whether text names a Python file rather than a module."""
    return name.endswith(".py") or os.sep in name


def absolute(name: str) -> str:
    """Return a file with its absolute path, and a module as it is."""
    if not is_file_name(name):
        return name
    check_path(name)
    return tidied(os.path.join(os.getcwd(), os.path.expanduser(name)))


def import_own(name: str) -> ModuleType:
    """Import a file or a module, once for each process.

    Args:
        name: absolute path of a `.py` file; or the name of a module.

    Raises:
        ValueError: there is none, or it raises; the message has the reason, and the line in the user's code.
    """
    try:
        if is_file_name(name):
            if name not in _imported:
                _imported[name] = _import_file(Path(name))
            return _imported[name]
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # another module, which this one imports
            raise ValueError(f"'{name}' cannot be imported: {described(error)}. Install it.") from error
        raise ValueError(
            f"There is no module '{name}': {error}. Install it, or name its file: path/to/{name.split('.')[-1]}.py."
        ) from error
    except users_errors() as error:
        if isinstance(error, _NoFileError):
            raise ValueError(str(error)) from None
        raise ValueError(f"'{name}' cannot be imported: {described(error)}") from error


class _NoFileError(ValueError):
    """There is no such file."""


def _import_file(path: Path) -> ModuleType:
    found = there if (there := _elsewhere(path)).is_file() else path
    if not found.is_file():
        what = "is a folder" if found.is_dir() else "does not exist"
        raise _NoFileError(f"The file '{path}' {what}. Expected a Python file.")
    root, name = place(found)
    make_importable(str(root))
    importlib.invalidate_caches()
    loaded = sys.modules.get(name)
    if _is_at(getattr(loaded, "__file__", None), found):
        assert loaded is not None
        return loaded
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):  # its parent is another package
        spec = None
    if loaded is None and spec is not None and _is_at(spec.origin, found):
        return importlib.import_module(name)
    return _loaded_as(f"{path.stem}_{zlib.crc32(str(path).encode(errors='replace')):08x}", found)  # the name is taken


def _elsewhere(path: Path) -> Path:
    """Return where this process has the file of another machine."""
    for folder, other in _replaced.items():
        if path.is_relative_to(folder):
            return Path(other) / path.relative_to(folder)
    return path


def place(path: Path) -> tuple[Path, str]:
    """Return the folder from which a file is imported, and its name there: packages around it are part of the name."""
    root, name = path.parent, path.stem
    while (root / "__init__.py").is_file() and root.parent != root:
        root, name = root.parent, f"{root.name}.{name}"
    return root, name.removesuffix(".__init__")


def _is_at(file: str | None, path: Path) -> bool:
    return file is not None and os.path.exists(file) and os.path.samefile(file, path)


def _loaded_as(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"it is not a Python file, whose name ends in .py: {path}")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# --- Folders on the path ----------------------------------------------------------------------------------------------


def make_importable(folder: str) -> None:
    """Append a folder to the path of this process, and of the processes of a local Ray that starts later.

    PYTHONPATH stands before installed modules. A folder that has modules of their names is left out there;
    `setup_hook()` appends it in Ray's processes.
    """
    if folder not in _own_folders:
        _own_folders.append(folder)
        if not shadowing(folder):
            paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            if folder not in paths:
                os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, folder]))
    if folder not in sys.path:
        sys.path.append(folder)


def replace_folder(folder: str, other: str) -> None:
    """Let `import_own()` find the files of a folder of another machine in `other`, which becomes importable."""
    _replaced[folder] = other
    make_importable(other)


def shadowing(folder: str) -> list[str]:
    """Return the names of modules in a folder that this process imports from elsewhere, such as installed ones."""
    names: list[str] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return names
    for entry in entries:
        name, ending = os.path.splitext(entry.name)
        is_package = not ending and os.path.isfile(os.path.join(entry.path, "__init__.py"))
        if (ending == ".py" or is_package) and name.isidentifier() and _is_elsewhere(name, folder):
            names.append(name)
    return names


def _is_elsewhere(name: str, folder: str) -> bool:
    if name in sys.builtin_module_names:  # which no file can replace
        return False
    spec = getattr(sys.modules.get(name), "__spec__", None) or PathFinder.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    return not Path(os.path.realpath(spec.origin)).is_relative_to(os.path.realpath(folder))


def setup_hook() -> Callable[[], None] | None:
    """Return a function for Ray's `worker_process_setup_hook`; None if its processes do not need it.

    Ray itself puts the working folder before all others in its processes. The function lets the same modules win there
    as in this process.
    """
    folders = list(dict.fromkeys([*_own_folders, os.getcwd()]))
    names = sorted({name for folder in folders for name in shadowing(folder)})
    if not names:
        return None
    own_folders = list(_own_folders)

    def append_own_folders() -> None:
        from rllib_kd.environments.imports import InstalledFirst

        InstalledFirst.install(names, folders, own_folders)

    return append_own_folders


class InstalledFirst:
    """A finder of modules for which some folders come last, wherever they stand on the path.

    Args:
        names: the modules.
        folders: the folders.
    """

    def __init__(self, names: Sequence[str], folders: Sequence[str]):
        self._names = frozenset(names)
        self._folders = {os.path.realpath(folder) for folder in folders}

    @classmethod
    def install(cls, names: Sequence[str], folders: Sequence[str], appended: Sequence[str] = ()) -> None:
        """Let the folders come last in this process, and append some of them to its path."""
        sys.path.extend(folder for folder in appended if folder not in sys.path)
        index = next((i for i, finder in enumerate(sys.meta_path) if finder is PathFinder), len(sys.meta_path))
        sys.meta_path.insert(index, cls(names, folders))

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of an installed module; None leaves it to the finders behind."""
        if name not in self._names:
            return None
        return PathFinder.find_spec(name, [p for p in sys.path if os.path.realpath(p) not in self._folders])
