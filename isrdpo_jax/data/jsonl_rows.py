"""Reads a user's questions about videos: JSONL, one object a line, each row checked on its own.

A row is `{"video": path, "question": str, "id"?: str, "answer"?: str}`; other keys are ignored, and null is absent.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from isrdpo_jax.data.prompts import find_marker
from isrdpo_jax.errors import DataError

RowReason = Literal[
    "not_utf8",  # bytes that are no UTF-8, or an escaped half of a character
    "bad_json",  # the line is not a JSON object
    "missing_field",  # no video or no question, or an empty video or id
    "wrong_type",  # a field that is not a string
    "empty_question",  # nothing but white space
    "video_marker",  # a literal <video> or <image> in the question or the answer
    "duplicate_id",  # an earlier row has the same id
]

_REQUIRED = ("video", "question")
_OPTIONAL = ("id", "answer")


@dataclass(frozen=True)
class Row:
    """A question about a video.

    Attributes:
        line: its line in the file, from 1.
        video: the path as written, relative to the file's folder.
        video_id: the path without `.` and doubled slashes, percent-encoded where a key may not be plain.
        id: as written, or `<video_id>#<n>` for the n-th question of the video, from 1.
    """

    line: int
    video: str
    video_id: str
    id: str
    question: str
    answer: str | None


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be used, and why."""

    line: int
    reason: RowReason
    detail: str


@dataclass(frozen=True)
class JsonlRows:
    """All rows of a file.

    Attributes:
        path: the file.
        good: usable rows, in the order of the file.
        bad: the others, in the order of the file.
        sha256: of the file's content.
    """

    path: Path
    good: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.good) + len(self.bad)


class _Refused(Exception):
    def __init__(self, reason: RowReason, detail: str):
        super().__init__(detail)
        self.reason: RowReason = reason
        self.detail = detail


def read_rows(path: Path) -> JsonlRows:
    """Reads and checks every row; blank lines are no rows, and lines may end with CRLF.

    Raises:
        DataError: the file is missing, cannot be read, or holds no row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file with the questions cannot be read ({error.strerror}).") from error
    good: list[Row] = []
    bad: list[BadRow] = []
    lines_of_ids: dict[str, int] = {}
    questions_of: Counter[str] = Counter()
    for line, text in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            fields = _fields(text)
            video_id = quote(str(PurePosixPath(fields["video"])))
            questions_of[video_id] += 1
            row_id = fields.get("id", f"{video_id}#{questions_of[video_id]}")
            if row_id in lines_of_ids:
                raise _Refused("duplicate_id", f"line {lines_of_ids[row_id]} has the id {row_id!r} already")
        except _Refused as refused:
            bad.append(BadRow(line, refused.reason, refused.detail))
        else:
            lines_of_ids[row_id] = line
            good.append(Row(line, fields["video"], video_id, row_id, fields["question"], fields.get("answer")))
    if not good and not bad:
        raise DataError(f'{path}: no rows; write one {{"video": …, "question": …}} a line.')
    return JsonlRows(path, tuple(good), tuple(bad), hashlib.sha256(content).hexdigest())


def _fields(text: bytes) -> dict[str, str]:
    """The fields of a line that are there; all of them usable strings."""
    found = {name: value for name, value in _parse(text).items() if value is not None}
    for name in _REQUIRED:
        if name not in found:
            raise _Refused("missing_field", f"the field {name} is missing")
    fields = {name: _string(name, found[name]) for name in (*_REQUIRED, *_OPTIONAL) if name in found}
    for name in ("video", "id"):
        if not fields.get(name, name).strip():
            raise _Refused("missing_field", f"the field {name} is empty")
    if not fields["question"].strip():
        raise _Refused("empty_question", "the question is empty")
    for name in ("question", "answer"):
        if marker := find_marker(fields.get(name, "")):
            raise _Refused("video_marker", f"a literal {marker} in the {name} would be taken for what is seen")
    return fields


def _parse(text: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise _Refused("not_utf8", f"byte {error.start + 1} of the line is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _Refused("bad_json", f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise _Refused("bad_json", f"not usable JSON: {error}") from error
    if not isinstance(row, dict):
        raise _Refused("bad_json", "not a JSON object")
    return row


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused("wrong_type", f"the field {name} must be a string, not {json.dumps(value)[:40]}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refused("not_utf8", f"the field {name} has half a character (a lone surrogate)") from error
    return value
