"""What the frozen tower makes of each video, kept on disk: computed in the first stage that sees a video, read after.

A folder belongs to one tower and one prepared split; a file in it is whole when its index is there, which is written
last. Any number of runs and processes may use it at a time: each writes files of its own, under a lock. What a killed
process was writing has no index and nobody's lock, and is removed by the next one.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from isrdpo_jax.errors import CheckpointError, RunLockedError
from isrdpo_jax.runs.atomic import read_json, write_json
from isrdpo_jax.runs.lock import RunLock
from isrdpo_jax.runs.manifest import hash_json

_OPTIONS = "group_size:1,uncompressed"  # records are read one by one, and floats hardly compress
_IDENTITY = "identity.json"
_PARTIAL, _LOCK = ".partial", ".lock"


class FeatureCache:
    """Features [n, d_vision] of videos by their ids, in the dtype that the model computes in. A context manager.

    What is put becomes readable when the cache is opened again: a file of records is read when it is closed.

    Args:
        folder: under which the folder of this identity lies.
        identity: of tower, data and dtype; all that decides what a feature is.
        shape, dtype: of the features of one video.
        limit: bytes that all files of the identity may take together; what is beyond is not kept.
        writers: processes of the run that put videos at the same time, and leave room for each other.

    Raises:
        CheckpointError: the folder belongs to another tower or data, or a file in it is not what its index says.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        shape: tuple[int, ...],
        dtype: Any,
        *,
        limit: int,
        writers: int = 1,
    ):
        self.folder = folder / hash_json(identity)[:16]
        self._shape, self._dtype, self._limit, self._writers = shape, np.dtype(dtype), limit, writers
        self._size = int(np.prod(shape)) * self._dtype.itemsize
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(identity)
        self._remove_unfinished()
        self._where: dict[str, tuple[Path, int]] = {}
        self._records: dict[Path, int] = {}
        self._readers: dict[Path, ArrayRecordReader] = {}
        self._reading = Lock()  # an engine looks videos up in the thread that loads ahead, and in its own
        for index in sorted(self.folder.glob("part-*.json")):
            path, ids = index.with_suffix(""), read_json(index)["ids"]
            self._where |= {one: (path, i) for i, one in enumerate(ids)}
            self._records[path] = len(ids)
        self._writer: ArrayRecordWriter | None = None
        self._new: list[str] = []

    def _claim(self, identity: dict[str, Any]) -> None:
        path = self.folder / _IDENTITY
        if not path.exists():
            write_json(path, identity)
        elif (found := read_json(path)) != identity:
            other = [name for name in identity if found.get(name) != identity[name]]
            raise CheckpointError(
                f"{self.folder}: these features belong to another {', '.join(other)}. Delete the folder; they are "
                "computed anew."
            )

    def _remove_unfinished(self) -> None:
        """Files without an index whose writer is dead: it has left its lock, and does not hold it."""
        for left in self.folder.glob(f"part-*{_LOCK}"):
            path = left.with_suffix("")
            with suppress(RunLockedError), RunLock(left):
                Path(f"{path}{_PARTIAL}").unlink(missing_ok=True)
                if not Path(f"{path}.json").exists():
                    path.unlink(missing_ok=True)
                left.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, video: str) -> bool:
        return video in self._where

    def get(self, video: str) -> np.ndarray | None:
        """The features of a video, if they are kept."""
        if video not in self._where:
            return None
        path, i = self._where[video]
        with self._reading:
            if path not in self._readers:
                self._readers[path] = self._open(path)
            (record,) = self._readers[path].read([i])
        return np.frombuffer(record, self._dtype).reshape(self._shape)

    def _open(self, path: Path) -> ArrayRecordReader:
        reader = None
        with suppress(ValueError, RuntimeError, OSError):
            reader = ArrayRecordReader(str(path))
        if reader is None or reader.num_records() != self._records[path] or len(reader.read([0])[0]) != self._size:
            raise CheckpointError(f"{path}: not the features that its index says. Delete {self.folder} and run again.")
        return reader

    def put(self, video: str, features: np.ndarray) -> None:
        """Keeps the features of a video, if there is room."""
        kept = len(self._where) + self._writers * (len(self._new) + 1)
        if video in self._where or video in self._new or kept * self._size > self._limit:
            return
        if self._writer is None:
            self._path = self.folder / f"part-{secrets.token_hex(8)}.array_record"
            self._lock = RunLock(Path(f"{self._path}{_LOCK}")).__enter__()
            self._writer = ArrayRecordWriter(f"{self._path}{_PARTIAL}", _OPTIONS)
        self._writer.write(np.ascontiguousarray(features, self._dtype).tobytes())
        self._new.append(video)

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.close()
        if self._writer is not None:
            self._writer.close()
            Path(f"{self._path}{_PARTIAL}").rename(self._path)
            write_json(Path(f"{self._path}.json"), {"ids": self._new})
            self._writer = None
            self._lock.path.unlink(missing_ok=True)
            self._lock.__exit__()
