"""Zip archives and PyTorch's weight files as data: nothing is extracted to disk, and sizes are checked in advance."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import CheckpointError, Name, as_checkpoint_error, names_in
from rllib_kd.text import first_line

_MAX_RATIO = 20  # unpacked / packed bytes: weights hardly compress, and the text beside them is small
_MAX_RATIO_OF_LARGE = 4  # beyond `MAX_UNPACKED`
_MAX_SMALL = 2**20  # bytes that may be unpacked from anything
#: Other compressions may claim a dictionary of any size.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

#: Types of weights. PyTorch's own list is longer, and has `bytearray`, which allocates any size that it is given.
_WEIGHT_NAMES = frozenset(
    {
        Name("collections", "OrderedDict"),
        Name("torch._utils", "_rebuild_parameter"),
        Name("torch._utils", "_rebuild_tensor_v2"),
        *(
            Name("torch", f"{kind}Storage")
            for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
        ),
    }
)

_NUMPY_BYTES = Name("_codecs", "encode")  # in pickles of numpy's numbers
_REMEDY = "Save the weights of the module alone, with torch.save(module.state_dict(), path)."
_WEIGHT_FILES = re.compile(r"data\.pkl|data/\d+|byteorder|version")


class Archive:
    """A zip archive in memory.

    Args:
        content: content of the file.
        where: its path, for messages.

    Raises:
        CheckpointError: it is not a zip archive.
    """

    def __init__(self, content: bytes, where: str):
        self._where = where
        if content.count(b"PK\1\2") > limits.MAX_ARCHIVE_ENTRIES:  # before each takes memory of its own
            raise CheckpointError(f"'{where}' was refused: it contains more than {limits.MAX_ARCHIVE_ENTRIES} files.")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
            self.names = frozenset(self._zip.namelist())
        except Exception as error:  # zipfile has several, and those of struct
            raise CheckpointError(
                f"'{where}' cannot be read: it is not a whole zip archive ({error}). Is the file complete?"
            ) from error
        self._num_bytes = len(content)

    def read(self, name: str) -> bytes:
        """Return the content of one of its files, by its exact name.

        Raises:
            CheckpointError: the file is missing or broken, or would unpack to far more bytes than the archive has.
        """
        with as_checkpoint_error(
            lambda error: (
                f"'{self._where}' cannot be read: '{name}' in it is broken or missing ({error}). Is the file complete?"
            )
        ):
            info = self._zip.getinfo(name)
            if info.compress_type not in COMPRESSIONS:
                raise CheckpointError(f"'{self._where}' was refused: '{name}' in it is packed in an uncommon way.")
            packed = min(info.compress_size, self._num_bytes)
            ratio = _MAX_RATIO if _MAX_RATIO * packed <= limits.MAX_UNPACKED else _MAX_RATIO_OF_LARGE
            if info.file_size > max(_MAX_SMALL, ratio * packed):
                raise CheckpointError(
                    f"'{self._where}' was refused: '{name}' in it would unpack from {info.compress_size} to "
                    f"{info.file_size} bytes."
                )
            with self._zip.open(info) as file:
                return file.read(info.file_size)

    def holds_only_itself(self) -> bool:
        """Return whether its files are stored without compression, and fit in it: as PyTorch writes it, and no bomb."""
        infos = self._zip.infolist()
        is_stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
        return is_stored and sum(info.file_size for info in infos) <= self._num_bytes


def is_pt2(names: Iterable[str]) -> bool:
    """Return whether a zip archive with these files is a program of `torch.export`: of today's layout, or older."""
    return any(name.endswith(("/models/model.json", "serialized_exported_program.json")) for name in names)


def is_torchscript(names: frozenset[str]) -> bool:
    """Return whether a zip archive with these files is a TorchScript program; PyTorch's weight files have no code."""
    return any(name.split("/")[1:2] in (["code"], ["constants.pkl"]) for name in names)


def read_weights(content: bytes, where: str) -> Any:
    """Read a file of `torch.save()`, if it is data: tensors, numbers and texts in plain containers.

    Args:
        content: content of the file.
        where: its path, for messages.

    Raises:
        CheckpointError: it is not a whole file of PyTorch (1.6 or newer), or contains more than data.
    """
    archive = Archive(content, where)
    if not archive.holds_only_itself():
        raise CheckpointError(f"'{where}' was refused: its parts are packed, or larger than itself.")
    pickles = [name for name in archive.names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"'{where}' contains {len(pickles)} pickles; one of weights was expected.")
    if others := names_in(archive.read(pickles[0]), where) - _WEIGHT_NAMES:
        numpys = {name for name in others if name.module.partition(".")[0] == "numpy"}
        if numpys and others <= numpys | {_NUMPY_BYTES}:
            raise CheckpointError(
                f"'{where}' was refused: it contains numbers or arrays of numpy, which weights do not need. Save "
                "float(x) or x.tolist() instead; or save the weights alone, with torch.save(module.state_dict(), path)."
            )
        raise CheckpointError(
            f"'{where}' was refused: it calls '{min(map(str, others))}', which weights do not need. {_REMEDY}"
        )
    try:
        return torch.load(_repacked(archive, pickles[0]), map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file fails in many ways
        raise CheckpointError(
            f"'{where}' was refused or is broken: {first_line(error)}. It must contain only weights, as data. {_REMEDY}"
        ) from error


def _repacked(archive: Archive, pickle_name: str) -> IO[bytes]:
    """Return an archive of the checked parts only: PyTorch might find others in the original."""
    folder = pickle_name.removesuffix("data.pkl")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in sorted(archive.names):
            if _WEIGHT_FILES.fullmatch(name.removeprefix(folder)):
                target.writestr(f"weights/{name.removeprefix(folder)}", archive.read(name))
    buffer.seek(0)
    return buffer


def as_tensors(weights: Any, where: str) -> dict[str, Tensor]:
    """Return a state dict as plain tensors of 32-bit floats.

    Raises:
        CheckpointError: it contains something else.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(
            f"'{where}' contains a {type(weights).__name__}. Expected the weights of a module by name."
        )
    if len(weights) > limits.MAX_WEIGHTS:
        raise CheckpointError(f"'{where}' was refused: it has {len(weights)} weights.")
    tensors = {}
    claimed, held = 0, 0  # bytes
    storages: set[int] = set()
    for name, tensor in weights.items():
        is_plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not is_plain:
            shown = repr(name[:100]) if isinstance(name, str) else f"({type(name).__name__})"
            raise CheckpointError(f"'{where}' was refused: its weight {shown} is not a plain tensor.")
        # Tensors may claim any shape over few bytes, by strides of zero, and share them.
        claimed += tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage()
        held += 0 if storage.data_ptr() in storages else storage.nbytes()
        storages.add(storage.data_ptr())
        if claimed > held:
            raise CheckpointError(
                f"'{where}' was refused: its weight {name!r} claims more numbers than there are, or shares those of "
                "another weight."
            )
        if tensor.element_size() < 2:
            raise CheckpointError(f"'{where}' was refused: its weight {name!r} has numbers of one byte.")
        tensors[name] = tensor.detach().float().contiguous()
    return tensors
