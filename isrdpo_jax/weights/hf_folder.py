"""A Hugging Face checkpoint folder, local or in a bucket, read tensor by tensor.

Everything goes through fsspec, so that `gs://bucket/folder` is read like a local folder (with `gcsfs` installed).
The safetensors format is read here and not by its own package, which maps local files only: eight bytes of header
length, a JSON header, raw little-endian values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec
import ml_dtypes
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from isrdpo_jax.errors import CheckpointError

INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}
_SINGLE = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


class StoredTensor(Protocol):
    """A tensor that is read when asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def read(self) -> np.ndarray: ...


@dataclass(frozen=True)
class HfFolder:
    """The files of a folder.

    Attributes:
        name: as the user gave it.
        files: the names of the files in it, without those in folders below.
    """

    name: str
    files: frozenset[str]
    _fs: Any
    _root: str

    def local(self, file: str) -> Path | None:
        """The path of a file, where the folder is on this machine."""
        return Path(self._root) / file if isinstance(self._fs, LocalFileSystem) else None

    def size(self, file: str) -> int:
        return self._fs.size(f"{self._root}/{file}")

    def read(self, file: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` up to `end`.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return self._fs.cat_file(f"{self._root}/{file}", start, end)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.name}: there is no file {file}.") from error
        except OSError as error:
            raise CheckpointError(f"{self.name}/{file}: the file cannot be read ({error}).") from error

    def read_json(self, file: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            CheckpointError: missing, unreadable, or no JSON object.
        """
        try:
            value = json.loads(self.read(file))
        except ValueError as error:
            raise CheckpointError(f"{self.name}/{file}: not JSON ({error}); download the file again.") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.name}/{file}: a JSON object is expected.")
        return value


def open_folder(name: str) -> HfFolder:
    """Opens a folder by path or URL.

    Raises:
        CheckpointError: there is none, or what reads such URLs is not installed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(name)
        entries = fs.ls(root, detail=True)
    except ImportError as error:
        raise CheckpointError(
            f"{name}: {error}. For gs:// install gcsfs, or copy the folder to a local disk."
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{name}: there is no such folder.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: the folder cannot be listed ({error}).") from error
    files = [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] != "directory"]
    if [entry["name"].rstrip("/") for entry in entries] == [root.rstrip("/")]:
        raise CheckpointError(f"{name}: this is a file; give the folder that it lies in.")
    return HfFolder(name, frozenset(files), fs, root.rstrip("/"))


def stored_tensors(folder: HfFolder) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint, by name; only headers are read.

    Raises:
        CheckpointError: no checkpoint, a damaged shard, or shards and index that do not agree; lists every problem.
    """
    kinds = [kind for kind in ("safetensors", "bin") if {INDEX[kind], _SINGLE[kind]} & folder.files]
    if not kinds:
        have = ", ".join(sorted(folder.files)[:8]) or "nothing"
        raise CheckpointError(
            f"{folder.name}: no checkpoint there. Expected {' or '.join(_SINGLE.values())}, or shards with their index "
            f"({' or '.join(INDEX.values())}); it holds {have}."
        )
    kind = kinds[0]  # where both are there they hold the same, and safetensors needs no torch
    index = _weight_map(folder, INDEX[kind]) if INDEX[kind] in folder.files else None
    shards = sorted(set(index.values())) if index is not None else [_SINGLE[kind]]
    problems = [f"{INDEX[kind]} names {shard}, which is not there" for shard in shards if shard not in folder.files]
    if index is not None:
        unnamed = sorted(_shards_of(kind, folder.files) - set(shards))
        problems += [f"{shard} is there, and {INDEX[kind]} does not name it" for shard in unnamed]
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        if shard in folder.files:
            try:
                inside = _safetensors(folder, shard) if kind == "safetensors" else _bin(folder, shard)
            except CheckpointError as error:
                problems.append(str(error).rstrip("."))
                index = None  # what the index says of this shard cannot be compared
                continue
            problems += [f"{name} is in two shards" for name in inside.keys() & found.keys()]
            found |= inside
            if index is not None:
                named = {name for name, where in index.items() if where == shard}
                problems += [f"{shard} lacks {name}" for name in sorted(named - inside.keys())]
                problems += [
                    f"{INDEX[kind]} has no entry for {name} in {shard}" for name in sorted(inside.keys() - named)
                ]
    if problems:
        raise CheckpointError(f"{folder.name}: {'; '.join(problems)}. Download these files again.")
    return found


def _shards_of(kind: str, files: Collection[str]) -> set[str]:
    stem = _SINGLE[kind].split(".")[0]
    return {file for file in files if file.startswith(stem) and file.endswith(f".{kind}")}


def _weight_map(folder: HfFolder, file: str) -> dict[str, str]:
    weight_map = folder.read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{folder.name}/{file}: no `weight_map` from tensors to shards; download it again.")
    return weight_map


@dataclass(frozen=True)
class _Slice:
    """A tensor inside a safetensors file: its bytes are [start, end)."""

    folder: HfFolder
    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    end: int

    def read(self) -> np.ndarray:
        data = self.folder.read(self.file, self.start, self.end)
        if len(data) != self.end - self.start:
            raise CheckpointError(f"{self.folder.name}/{self.file}: the file was cut off while it was read.")
        return np.frombuffer(data, self.dtype).reshape(self.shape)


def _safetensors(folder: HfFolder, file: str) -> dict[str, StoredTensor]:
    """The tensors of one file.

    Raises:
        CheckpointError: the header is none, or the file is shorter or longer than its header says.
    """
    size = folder.size(file)
    head = folder.read(file, 0, min(size, 8))
    length = int.from_bytes(head, "little")
    if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise CheckpointError(f"{file} is no safetensors file (it begins with {_begin(folder, file, size)!r})")
    try:
        header = json.loads(folder.read(file, 8, 8 + length))
        tensors = {
            name: _entry(folder, file, name, fact, 8 + length)
            for name, fact in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file} has a damaged header ({type(error).__name__}: {error})") from error
    position = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start != position:
            raise CheckpointError(f"{file} has a damaged header (its tensors overlap or leave gaps)")
        position = tensor.end
    if size != position:
        word = "truncated" if size < position else "too long"
        raise CheckpointError(f"{file} is {word}: {size:,} bytes, and its header asks for {position:,}")
    return dict(tensors)


def _entry(folder: HfFolder, file: str, name: str, fact: Mapping[str, Any], base: int) -> _Slice:
    start, end = (base + int(offset) for offset in fact["data_offsets"])
    shape, dtype = tuple(int(n) for n in fact["shape"]), DTYPES[fact["dtype"]]
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the offsets of {name} do not fit its shape")
    return _Slice(folder, file, shape, dtype, start, end)


def _begin(folder: HfFolder, file: str, size: int) -> str:
    return folder.read(file, 0, min(size, 16)).decode("ascii", "replace")


@dataclass(frozen=True)
class _TorchTensor:
    tensor: Any  # torch.Tensor, mapped from the file

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        name = str(self.tensor.dtype).removeprefix("torch.")
        return np.dtype(getattr(ml_dtypes, name, None) or name)

    def read(self) -> np.ndarray:
        import torch

        tensor = self.tensor.contiguous()
        if tensor.dtype == torch.bfloat16:  # which torch does not hand to NumPy
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _bin(folder: HfFolder, file: str) -> dict[str, StoredTensor]:
    """The tensors of a `.bin` file, by torch's loader that unpickles tensors only.

    Raises:
        CheckpointError: torch is missing, the folder is not local, or the file holds anything but tensors.
    """
    path = folder.local(file)
    if path is None:
        raise CheckpointError(f"{file} can be read from a local disk only; copy the folder there")
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{file} was written by PyTorch, which is not installed: pip install 'isrdpo-jax[torch]', or convert the "
            "checkpoint to safetensors"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling raises whatever the bytes ask for; all of it means an unusable file
        why = str(error).split("\n")[0]
        raise CheckpointError(
            f"{file} is no PyTorch file of tensors alone, and no other is read ({type(error).__name__}: {why[:160]})"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__} and not tensors by name")
    strange = [name for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f"{file} holds other things than tensors: {', '.join(map(str, strange[:5]))}")
    return {name: _TorchTensor(tensor) for name, tensor in loaded.items()}
