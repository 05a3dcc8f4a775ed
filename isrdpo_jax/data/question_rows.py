"""The questions of one or several files, each row checked on its own, with the video that each is about."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from isrdpo_jax.data.row_files import Refused, RowReason, read_row_file
from isrdpo_jax.data.row_formats import question_fields

Locate = Callable[[str], Path]


@dataclass(frozen=True)
class Row:
    """A question about a video.

    Attributes:
        file, line: where it stands; lines count from 1.
        video: the path as written.
        path: where the video lies.
        video_id: the path as written without `.` and doubled slashes, percent-encoded where a key may not be plain.
        id: as written, or `<video_id>#<n>` for the n-th question of the video, from 1.
        caption: a description of the video by others, which only a judge of answers may see.
    """

    file: Path
    line: int
    video: str
    path: Path
    video_id: str
    id: str
    question: str
    answer: str | None
    caption: str | None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    file: Path
    line: int
    reason: RowReason
    detail: str


@dataclass(frozen=True)
class QuestionRows:
    """All rows of the files.

    Attributes:
        files: where they stand.
        good: usable rows, in order.
        bad: the others, in order.
        sha256: of the files' content.
    """

    files: tuple[Path, ...]
    good: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.good) + len(self.bad)

    @property
    def source(self) -> str:
        """The files' names, for people."""
        return ", ".join(map(str, self.files))

    @property
    def videos(self) -> dict[str, list[Row]]:
        """The usable rows of each video by its id, both in order."""
        videos: dict[str, list[Row]] = {}
        for row in self.good:
            videos.setdefault(row.video_id, []).append(row)
        return videos


def read_rows(path: Path, locate: Locate | None = None, prefix: str = "") -> QuestionRows:
    """Reads and checks every row of a file.

    Args:
        path: JSONL, CSV or a JSON array, by its suffix.
        locate: where a video of a written path lies; by default relative to the file's folder.
        prefix: stands before every id.

    Raises:
        DataError: the file is missing, cannot be read, or holds no row.
    """
    locate = locate or path.parent.joinpath
    content = read_row_file(path)
    good: list[Row] = []
    bad: list[BadRow] = []
    lines_of_ids: dict[str, int] = {}
    questions_of: Counter[str] = Counter()
    for line, raw in content.rows:
        try:
            if isinstance(raw, Refused):
                raise raw
            fields = question_fields(raw)
            video_id = quote(str(PurePosixPath(fields["video"])))
            questions_of[video_id] += 1
            row_id = prefix + fields.get("id", f"{video_id}#{questions_of[video_id]}")
            if row_id in lines_of_ids:
                raise Refused("duplicate_id", f"line {lines_of_ids[row_id]} has the id {row_id!r} already")
        except Refused as refused:
            bad.append(BadRow(path, line, refused.reason, refused.detail))
            continue
        lines_of_ids[row_id] = line
        video, question = fields["video"], fields["question"]
        answer, caption = fields.get("answer"), fields.get("caption")
        good.append(Row(path, line, video, locate(video), video_id, row_id, question, answer, caption))
    return QuestionRows((path,), tuple(good), tuple(bad), content.sha256)


def join_rows(parts: Sequence[QuestionRows]) -> QuestionRows:
    """The rows of several files; their ids have prefixes that keep them apart."""
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    files = tuple(file for part in parts for file in part.files)
    good = tuple(row for part in parts for row in part.good)
    return QuestionRows(files, good, tuple(row for part in parts for row in part.bad), digest)
