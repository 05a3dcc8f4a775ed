"""What was left out of a prepared data set, and why; kept beside the data as `skips.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import DataConfig

_FILE = "skips.json"
_SHOWN = 5


@dataclass(frozen=True)
class Skip:
    """A row, or a video with all its rows, that was left out.

    Attributes:
        line: the row's line in its file, or the first line that names the video.
        path: the file with the row, or the video.
        reason: a `RowReason` or a `VideoReason`.
        detail: what is wrong, for people.
        rows: how many rows are lost with it.
        file: the file with the row.
    """

    line: int
    path: str
    reason: str
    detail: str
    file: str
    rows: int = 1

    @property
    def place(self) -> str:
        """File, line, what is wrong, and the video where the row itself is fine."""
        video = "" if self.path == self.file else f"{self.path}: "
        return f"{self.file}, line {self.line}: {video}{self.detail} [{self.reason}]"


@dataclass(frozen=True)
class Skips:
    """All skips of one source.

    Attributes:
        source: the file or files with the rows.
        of: rows in the source, good and bad.
        skips: in the order of their lines.
    """

    source: str
    of: int
    skips: tuple[Skip, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Skips by reason, most frequent first; a video counts once."""
        return dict(Counter(skip.reason for skip in self.skips).most_common())

    def check(self, data: DataConfig) -> None:
        """Refuses a source with more bad rows or videos than the configuration allows.

        The share that is compared is that of rows lost, by themselves or with their video.

        Raises:
            DataError: there is a skip and `on_bad_record` is `fail`, or the share exceeds `max_bad_fraction`.
        """
        if data.on_bad_record == "fail" and self.skips:
            raise DataError(
                f"{self.skips[0].place}. Repair it, or skip and count such records with data.on_bad_record=skip."
            )
        lost = sum(skip.rows for skip in self.skips)
        if lost / self.of > data.max_bad_fraction:
            raise DataError(
                f"{self._summary(lost)}; data.max_bad_fraction allows a share of {data.max_bad_fraction:g}."
                f" {self._first()} Repair them, or raise data.max_bad_fraction."
            )
        if lost == self.of:
            raise DataError(f"{self._summary(lost)}; there is nothing to train or evaluate on. {self._first()}")

    def _summary(self, lost: int) -> str:
        counts = ", ".join(f"{reason} {count}" for reason, count in self.counts.items())
        return f"{self.source}: {lost} of {self.of} rows cannot be used, by themselves or for their video ({counts})"

    def _first(self) -> str:
        places = [skip.place for skip in self.skips[:_SHOWN]]
        return f"{'The first' if len(self.skips) > _SHOWN else 'They are'}: {'; '.join(places)}."

    def write(self, folder: Path) -> None:
        content = {
            "counts": self.counts,
            "rows": [asdict(skip) for skip in self.skips],
            "total": len(self.skips),
            "source": self.source,
            "of": self.of,
        }
        (folder / _FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_skips(folder: Path) -> Skips | None:
    """What was left out of the data in `folder`; None if their builder leaves nothing out."""
    path = folder / _FILE
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return Skips(content["source"], content["of"], tuple(Skip(**row) for row in content["rows"]))
