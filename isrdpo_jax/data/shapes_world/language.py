"""What can be said about a scene, and whether it is true.

The grammar has three kinds of sentences, of descriptions and of answers:
    motion       The red circle moves left.
    size         The red object is small.
    background   The background is dark.
The size sentence leaves the shape out, so that sentences state independent facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isrdpo_jax.data.shapes_world.scene import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZES

Truth = Mapping[str, Any]  # Scene.truth

ATTRIBUTES = ("size", "colour", "shape", "direction", "background")
WORDS = dict(zip(ATTRIBUTES, (SIZES, COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS), strict=True))
ATTRIBUTE_OF = {word: attribute for attribute, words in WORDS.items() for word in words}


@dataclass(frozen=True)
class Statement:
    """A sentence of the grammar; what it does not state is None."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    direction: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        if self.background:
            return f"The background is {self.background}."
        if self.direction is None:
            return f"The {self.colour} object is {self.size}."
        return f"The {self.colour} {self.shape} moves {self.direction}."


@dataclass(frozen=True)
class Grade:
    """How an answer compares to the truth.

    Attributes:
        core: the first sentence answers the question: right colour, shape and direction.
        statements: sentences, those outside the grammar included.
        false: sentences that are not true or outside the grammar; the first one also when it is no answer.
        words: words in all.
        repeated: further true sentences that say nothing that an earlier one has not said.
    """

    core: bool
    statements: int
    false: int
    words: int
    repeated: int = 0


def question(colour: str) -> str:
    return f"What does the {colour} object do?"


def describe(truth: Truth) -> str:
    """The canonical description: motion and size of the objects by colour, then the background."""
    return " ".join(str(statement) for statement in description_statements(truth))


def description_statements(truth: Truth) -> list[Statement]:
    objects = sorted(truth["objects"], key=lambda thing: thing["colour"])
    said = [statement for thing in objects for statement in (motion(thing), size(thing))]
    return [*said, Statement(background=truth["background"])]


def motion(thing: Truth) -> Statement:
    """What an object of a scene does."""
    return Statement(colour=thing["colour"], shape=thing["shape"], direction=thing["direction"])


def size(thing: Truth) -> Statement:
    """How large an object of a scene is."""
    return Statement(colour=thing["colour"], size=thing["size"])


def sentences(text: str) -> list[str]:
    """Sentences without their full stops."""
    return [part.strip() for part in text.split(".") if part.strip()]


def parse(text: str) -> list[Statement | None]:
    """The statements of a text, one per sentence; None where a sentence is not of the grammar."""
    return [_parse_sentence(sentence) for sentence in sentences(text)]


def holds(statement: Statement, truth: Truth) -> bool:
    """Whether all that a statement says is true."""
    if statement.background:
        return statement.background == truth["background"]
    return any(
        all(stated is None or stated == thing[field] for field, stated in _about_object(statement).items())
        for thing in truth["objects"]
    )


def grade(text: str, question: str, truth: Truth) -> Grade:
    """Grades an answer to a question of the form of `question(colour)`."""
    asked = asked_colour(question)
    statements = parse(text)
    true = [statement is not None and holds(statement, truth) for statement in statements]
    first = statements[0] if statements else None
    core = first is not None and first.direction is not None and first.colour == asked and true[0]
    true = [core, *true[1:]] if true else []
    said: set[tuple[tuple[str, str], str]] = set()
    repeated = 0
    for statement, holding in zip(statements, true, strict=True):
        says = set() if statement is None else set(slots_of(statement).items())
        repeated += holding and says <= said
        said |= says
    return Grade(core, len(true), true.count(False), len(text.split()), repeated)


def preference(grade: Grade) -> int:
    """The better of two answers has the higher value: the core counts twice, every further fact once, and every false
    sentence takes one off."""
    return 2 * grade.core + (grade.statements - grade.core - grade.false - grade.repeated) - grade.false


def better_response(texts: Sequence[str], question: str, truth: Truth) -> int | None:
    """Which of two answers is truly better; None where neither is."""
    first, second = (preference(grade(text, question, truth)) for text in texts)
    return None if first == second else int(second > first)


def grade_description(text: str, truth: Truth) -> tuple[int, int]:
    """Counts (right, total) over a description: shape, direction and size of every object, and the background.

    Every sentence that fills none of these slots (outside the grammar, about an absent colour, or a repetition) counts
    as one more that is wrong.
    """
    objects = {thing["colour"]: thing for thing in truth["objects"]}
    slots = {(colour, field) for colour in objects for field in ("shape", "direction", "size")} | {("", "background")}
    total, right = len(slots), 0
    for statement in parse(text):
        stated = {} if statement is None else slots_of(statement)
        fresh = stated.keys() & slots
        slots -= fresh
        total += not fresh
        for slot in fresh:
            colour, field = slot
            right += stated[slot] == (objects[colour][field] if colour else truth[field])
    return right, total


def asked_colour(question: str) -> str:
    """The colour that a question is about.

    Raises:
        ValueError: the question is not one of this world.
    """
    match = re.fullmatch(r"What does the (\w+) object do\?", question)
    if match is None or match[1] not in COLOURS:
        raise ValueError(f"not a question of the shapes world: {question!r}")
    return match[1]


def _about_object(statement: Statement) -> dict[str, str | None]:
    return {field: getattr(statement, field) for field in ("size", "colour", "shape", "direction")}


def slots_of(statement: Statement) -> dict[tuple[str, str], str]:
    """What a statement says, by (colour, attribute); the background's colour is empty."""
    if statement.background:
        return {("", "background"): statement.background}
    fields = ((field, getattr(statement, field)) for field in ("shape", "direction", "size"))
    return {(str(statement.colour), field): value for field, value in fields if value is not None}


def _pattern(template: str) -> re.Pattern[str]:
    groups = {name: f"(?P<{name}>{'|'.join(words)})" for name, words in WORDS.items()}
    return re.compile(template.format(**groups))


_PATTERNS = (
    _pattern("The {colour} {shape} moves {direction}"),
    _pattern("The {colour} object is {size}"),
    _pattern("The background is {background}"),
)


def _parse_sentence(sentence: str) -> Statement | None:
    for pattern in _PATTERNS:
        match = pattern.fullmatch(sentence)
        if match:
            return Statement(**match.groupdict())
    return None
