"""How c_t comes from c_{t-1}, by the text alone: statements kept, reworded, added and dropped.

A statement is a sentence. One that is in both descriptions word by word is kept; of the others, those that share at
least half of their words with one that went are reworded; the rest is added or dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ALIKE = 0.5  # words in common over words in either
_END = re.compile(r"(?<=[.!?。])\s+")


@dataclass(frozen=True)
class Rewriting:
    """Counts over one description, or over many."""

    words_before: int = 0
    words_after: int = 0
    kept: int = 0
    reworded: int = 0
    added: int = 0
    dropped: int = 0

    @property
    def after(self) -> int:
        """Statements of the new descriptions."""
        return self.kept + self.reworded + self.added

    @property
    def before(self) -> int:
        """Statements of the old ones."""
        return self.kept + self.reworded + self.dropped


def rewriting(previous: str, new: str) -> Rewriting:
    """Counts what became of the statements of one description."""
    before, after = Counter(statements(previous)), Counter(statements(new))
    kept = before & after
    gone, fresh = list((before - kept).elements()), list((after - kept).elements())
    reworded = _alike(gone, fresh)
    return Rewriting(
        words_before=len(previous.split()),
        words_after=len(new.split()),
        kept=kept.total(),
        reworded=reworded,
        added=len(fresh) - reworded,
        dropped=len(gone) - reworded,
    )


def statements(text: str) -> list[str]:
    """The sentences of a text, blanks collapsed, lower case."""
    return [" ".join(part.lower().split()) for part in _END.split(text) if part.strip()]


def _alike(gone: Sequence[str], fresh: Sequence[str]) -> int:
    """How many statements that went have one of their own among the new; the most alike are matched first."""
    old, new = [set(text.split()) for text in gone], [set(text.split()) for text in fresh]
    found = [(len(a & b) / len(a | b), i, j) for i, a in enumerate(old) for j, b in enumerate(new)]
    matched_old: set[int] = set()
    matched_new: set[int] = set()
    for likeness, i, j in sorted(found, key=lambda one: (-one[0], one[1:])):
        if likeness >= ALIKE and i not in matched_old and j not in matched_new:
            matched_old.add(i)
            matched_new.add(j)
    return len(matched_old)
