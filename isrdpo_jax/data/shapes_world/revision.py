"""How one description became the next, against the truth: what was kept, corrected, spoiled, added and dropped."""

from __future__ import annotations

from dataclasses import dataclass

from isrdpo_jax.data.shapes_world.language import Truth, parse, sentences, slots_of

Slot = tuple[str, str]  # (colour, attribute); a sentence outside the grammar is a slot of its own


@dataclass(frozen=True)
class Revision:
    """Counts of what two descriptions of a video state, one attribute of one object each.

    Attributes:
        corrected: wrong before, right now.
        spoiled: right before, wrong now.
        changed: wrong before, wrong in another way now.
    """

    kept_right: int = 0
    kept_wrong: int = 0
    corrected: int = 0
    spoiled: int = 0
    changed: int = 0
    added_right: int = 0
    added_wrong: int = 0
    dropped_right: int = 0
    dropped_wrong: int = 0

    @property
    def before(self) -> tuple[int, int]:
        """(right, all) that the old description states."""
        right = self.kept_right + self.spoiled + self.dropped_right
        return right, right + self.kept_wrong + self.corrected + self.changed + self.dropped_wrong

    @property
    def after(self) -> tuple[int, int]:
        """(right, all) that the new description states."""
        right = self.kept_right + self.corrected + self.added_right
        return right, right + self.kept_wrong + self.spoiled + self.changed + self.added_wrong


def revision(previous: str, new: str, truth: Truth) -> Revision:
    """Counts what became of all that either description of a video states."""
    before, after = _stated(previous), _stated(new)
    right = _right(truth)
    counts = dict.fromkeys(Revision.__dataclass_fields__, 0)
    for slot in before.keys() | after.keys():
        was, now = (None if slot not in said else said[slot] == right.get(slot) for said in (before, after))
        if was is None:
            kind = "added_right" if now else "added_wrong"
        elif now is None:
            kind = "dropped_right" if was else "dropped_wrong"
        elif before[slot] == after[slot]:
            kind = "kept_right" if was else "kept_wrong"
        else:
            kind = "spoiled" if was else "corrected" if now else "changed"
        counts[kind] += 1
    return Revision(**counts)


def _stated(text: str) -> dict[Slot, str]:
    """Every slot that a text fills; where it says two things of one, the first counts."""
    stated: dict[Slot, str] = {}
    for sentence, statement in zip(sentences(text), parse(text), strict=True):
        found = {("", sentence): ""} if statement is None else slots_of(statement)
        stated = found | stated
    return stated


def _right(truth: Truth) -> dict[Slot, str]:
    fields = ("shape", "direction", "size")
    right = {(thing["colour"], field): thing[field] for thing in truth["objects"] for field in fields}
    return right | {("", "background"): truth["background"]}
