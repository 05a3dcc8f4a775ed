"""Files that are wholly there or not at all, and JSON in one fixed form.

A file is written under a temporary name in its own folder, synced, renamed, and the folder is synced: whoever looks
sees the old file or the new one, also after a crash or a power cut. A writer that was killed leaves at most a temporary
file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from isrdpo_jax.errors import CheckpointError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, data: bytes) -> None:
    """Makes `path` hold exactly `data`; missing folders are made.

    Raises:
        CheckpointError: it cannot be written (full disk: with the bytes needed and free); the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise write_error(path, error, len(data)) from error


def write_text(path: Path, text: str) -> None:
    """Makes `path` hold exactly `text`, as UTF-8. Raises as `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Makes `path` hold `value` as JSON, indented, keys in the order given. Raises as `write_bytes`.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON does not have.
    """
    write_bytes(path, (json.dumps(value, allow_nan=False, indent=1) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Makes `path` hold one JSON object per row, keys in the order given. Raises as `write_json`."""
    write_bytes(path, b"".join(map(_line, rows)))


def append_jsonl(path: Path, *rows: Mapping[str, Any]) -> None:
    """Adds rows and syncs them once; a torn line that a crash left at the end is dropped first. Raises as `write_json`.

    Should the disk be full, the file is cut back to the rows that it had.
    """
    lines = b"".join(map(_line, rows))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = _cut_torn_tail(descriptor)
            try:
                _write_all(descriptor, lines)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync(path.parent)
    except OSError as error:
        raise write_error(path, error, len(lines)) from error


def truncate_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Drops the rows that `keep` refuses and a torn last line. A missing file has no rows.

    Returns:
        How many lines were dropped.

    Raises:
        CheckpointError: a line before the last is not a JSON object, or the file cannot be written.
    """
    if not path.exists():
        return 0
    *lines, tail = read_bytes(path).split(b"\n")
    if lines and not tail and not _is_row(lines[-1]):  # a power cut can leave blocks of zeros behind the last sync
        tail = lines.pop()
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1)]
    kept = [row for row in rows if keep(row)]
    dropped = len(rows) - len(kept) + bool(tail)
    if dropped:
        write_jsonl(path, kept)
    return dropped


def read_bytes(path: Path) -> bytes:
    """The content of a file of ours.

    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is missing; run the command that writes it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: the file cannot be read ({error.strerror}).") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        CheckpointError: missing, unreadable, or not JSON (with the line).
    """
    return _parse(path, 0, read_bytes(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file.

    Raises:
        CheckpointError: missing or unreadable, a line that is not a JSON object, or a torn last line (with the line).
    """
    *lines, tail = read_bytes(path).split(b"\n")
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1)]
    if tail:
        raise CheckpointError(f"{path}, line {len(lines) + 1}: the line was cut off; delete the file and run again.")
    return rows


def sweep_temporaries(folder: Path) -> int:
    """Removes the temporary files that killed writers left under `folder`; only for the holder of the run's lock.

    Returns:
        How many there were.
    """
    stale = [path for path in folder.rglob(".*.tmp") if _TEMPORARY.fullmatch(path.name)]
    for path in stale:
        path.unlink()
    return len(stale)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes everything below `folder` survive a power cut, where others wrote it."""
    for path in (folder, *folder.rglob("*")):
        sync(path)


def free_bytes(path: Path) -> int:
    """Bytes free where `path` is or would be."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def write_error(path: Path, error: OSError, needed: int) -> CheckpointError:
    """What to tell the user when `needed` bytes could not be written to `path`."""
    if error.errno in _NO_SPACE:
        return no_space(path, needed)
    return CheckpointError(f"{path}: the file cannot be written ({error.strerror}); check the folder and run again.")


def no_space(path: Path, needed: int) -> CheckpointError:
    """What to tell the user when `path` finds no room."""
    return CheckpointError(
        f"{path}: no space left for it: {needed:,} bytes needed, {free_bytes(path):,} free (a quota or a limit on file"
        " sizes may allow less). Nothing half-written was left; make room and run the same command again."
    )


def _line(row: Mapping[str, Any]) -> bytes:
    # ASCII with escapes: a lone surrogate survives, and no character inside a row looks like the end of a line.
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    row = _parse(path, number, line)
    if not isinstance(row, dict):
        raise CheckpointError(f"{path}, line {number}: expected a JSON object; delete the file and run again.")
    return row


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parse(path: Path, number: int, text: bytes) -> Any:
    """Parses `text`, which is line `number` of `path`, or the whole file where `number` is 0."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        line = number or getattr(error, "lineno", 1)
        raise CheckpointError(f"{path}, line {line}: not JSON ({error}); delete the file and run again.") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _cut_torn_tail(descriptor: int) -> int:
    """Drops what lies behind the last newline; returns the size that is left, bytes."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        if newline := os.pread(descriptor, end - start, start).rfind(b"\n") + 1:
            end = start + newline
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
