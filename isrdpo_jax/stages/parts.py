"""Parts: what a stage has made of each batch, one file per process, and which batches are done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.layout import IterationLayout, PartKind, batch_of

_LAG_S = 120.0  # that a shared file system may take to show a file (NFS keeps what it knows of a folder for a minute)

Row = dict[str, Any]


def read_parts(layout: IterationLayout, kind: PartKind) -> list[Row]:
    """All rows of a kind, in the order of their videos, whichever processes wrote them."""
    rows = [row for part in layout.parts(kind) for row in read_jsonl(part)]
    return sorted(rows, key=lambda row: row["video"])


def finished(layout: IterationLayout, kind: PartKind, key: str, wanted: Sequence[Collection[str]]) -> list[bool]:
    """Whether the parts of each batch hold all its records, whichever processes wrote them.

    Args:
        key: under which a row names its record. wanted: the records of each batch.
    """
    found: list[set[str]] = [set() for _ in wanted]
    for part in layout.parts(kind):
        if (number := batch_of(part)) < len(found):
            found[number].update(row[key] for row in read_jsonl(part))
    return [set(records) <= there for records, there in zip(wanted, found, strict=True)]


def discard_unfinished(layout: IterationLayout, kinds: Sequence[PartKind], done: Sequence[bool]) -> None:
    """Removes the parts of batches that are not done: other processes than before may write them again."""
    for kind in kinds:
        for part in layout.parts(kind):
            if not (batch_of(part) < len(done) and done[batch_of(part)]):
                part.unlink()


def wait_for_all(are_done: Callable[[], list[bool]], what: Path) -> None:
    """Returns when all batches are done, which they are when all processes have said so, once the disk shows it.

    Raises:
        CheckpointError: it does not.
    """
    until = monotonic() + _LAG_S
    while not all(done := are_done()):
        if monotonic() > until:
            raise CheckpointError(
                f"{what}: {done.count(False)} of {len(done)} batches are not to be seen here, although all processes "
                "have written theirs. All processes must see one run folder: give run.dir on a shared file system."
            )
        sleep(1)
