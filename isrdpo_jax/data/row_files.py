"""Reads the rows of a file with questions, unjudged: JSONL, CSV, or one JSON array."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isrdpo_jax.errors import DataError

RowReason = Literal[
    "not_utf8",  # bytes that are no UTF-8, or an escaped half of a character
    "bad_json",  # the line is not a JSON object
    "bad_csv",  # more cells than the head of the table has names
    "missing_field",  # no video or no question, or an empty video or id
    "wrong_type",  # a field that is not a string
    "empty_question",  # nothing but white space
    "video_marker",  # a literal <video> or <image> where it would be taken for what is seen
    "several_videos",  # one video per row
    "several_turns",  # one question per row
    "duplicate_id",  # an earlier row has the same id
]


class Refused(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: RowReason, detail: str):
        super().__init__(detail)
        self.reason: RowReason = reason
        self.detail = detail


RawRow = Mapping[str, Any] | Refused


@dataclass(frozen=True)
class RowFile:
    """What a file holds.

    Attributes:
        rows: of each row its line, and its fields or why it has none. In a JSON array, where lines mean nothing, the
            number of the row stands for the line.
        sha256: of the content.
    """

    rows: tuple[tuple[int, RawRow], ...]
    sha256: str


def read_row_file(path: Path) -> RowFile:
    """Reads `.csv`, `.json` (an array), and any other suffix as JSONL; lines may end with CRLF, blank ones are no rows.

    Raises:
        DataError: the file is missing, cannot be read, or holds no row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file with the questions cannot be read ({error.strerror}).") from error
    readers: dict[str, Callable[[bytes], Iterator[tuple[int, RawRow]]]] = {".csv": _csv, ".json": _array}
    read = readers.get(path.suffix.lower(), _jsonl)
    try:
        rows = tuple(read(content.removeprefix(codecs.BOM_UTF8)))
    except Refused as refused:
        raise DataError(f"{path}: {refused.detail}.") from refused
    if not rows:
        raise DataError(f'{path}: no rows; write one {{"video": …, "question": …}} a line.')
    return RowFile(rows, hashlib.sha256(content).hexdigest())


def _jsonl(content: bytes) -> Iterator[tuple[int, RawRow]]:
    for line, text in enumerate(content.split(b"\n"), 1):
        if text.strip():
            yield line, _attempt(_object, text)


def _attempt(read: Callable[[bytes], Mapping[str, Any]], text: bytes) -> RawRow:
    try:
        return read(text)
    except Refused as refused:
        return refused


def _object(text: bytes) -> Mapping[str, Any]:
    row = _parse(text)
    if not isinstance(row, dict):
        raise Refused("bad_json", "not a JSON object")
    return row


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise Refused("not_utf8", f"byte {error.start + 1} of the line is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise Refused("bad_json", f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise Refused("bad_json", f"not usable JSON: {error}") from error


def _array(content: bytes) -> Iterator[tuple[int, RawRow]]:
    rows = _parse(content)
    if not isinstance(rows, list):
        raise Refused("bad_json", "not a JSON array of rows; name a file with one row a line .jsonl")
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else Refused("bad_json", "not a JSON object")


def _csv(content: bytes) -> Iterator[tuple[int, RawRow]]:
    """Rows of a table whose first line names the fields; an empty cell is an absent field."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Refused("not_utf8", f"line {line} is not UTF-8; save the table as UTF-8") from error
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = [name.strip() for name in next(table, [])]
        line = table.line_num + 1
        for cells in table:
            if any(cell.strip() for cell in cells):
                yield line, _row(head, cells)
            line = table.line_num + 1
    except csv.Error as error:
        raise Refused("bad_csv", f"the table cannot be read behind line {table.line_num}: {error}") from error


def _row(head: list[str], cells: list[str]) -> RawRow:
    if len(cells) > len(head):
        detail = f"{len(cells)} cells under {len(head)} names; put quotation marks around a text with commas"
        return Refused("bad_csv", detail)
    return {name: cell for name, cell in zip(head, cells, strict=False) if cell}
