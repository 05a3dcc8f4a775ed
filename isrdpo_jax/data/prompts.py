"""Prompt templates: text files, packaged or the user's own, and the conversation that surrounds them.

The conversation is Vicuna's, version 1.1: `{system} USER: <video>\\n{user turn} ASSISTANT:`, then ` {response}</s>`.
An image stands where a video stands.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from string import Formatter

from isrdpo_jax.errors import DataError

MARKERS = ("<video>", "<image>")

PLACEHOLDERS: dict[str, frozenset[str]] = {
    "system": frozenset(),
    "answer": frozenset({"question"}),
    "describe": frozenset(),
    "retrospect": frozenset({"previous"}),
    "judge": frozenset({"context", "question", "response_a", "response_b"}),
    "judge_plain": frozenset({"question", "response_a", "response_b"}),
    "rubric": frozenset({"context", "question", "response"}),
    "rubric_plain": frozenset({"question", "response"}),
}


@dataclass(frozen=True)
class JudgeTurn:
    """A user turn that asks for a verdict, and where the responses stand in it: text[start:end] of each."""

    text: str
    span_a: tuple[int, int]
    span_b: tuple[int, int]


@dataclass(frozen=True)
class Prompts:
    """The templates. Methods return user turns; `prefix_text` and `turn` place them in the conversation."""

    system: str
    answer_template: str
    describe_template: str
    retrospect_template: str
    judge_template: str
    judge_plain_template: str
    rubric_template: str
    rubric_plain_template: str

    @property
    def prefix_text(self) -> str:
        """All that stands before the video."""
        return f"{self.system} USER: "

    @staticmethod
    def turn(user_text: str) -> str:
        """All that stands between the video and the response."""
        return f"\n{user_text} ASSISTANT:"

    @property
    def digest(self) -> str:
        """SHA-256 over the texts."""
        texts = (f"{name}\0{text}\0" for name, text in sorted(asdict(self).items()))
        return hashlib.sha256("".join(texts).encode()).hexdigest()

    def answer(self, question: str) -> str:
        check_text(question, "the question")
        return _fill(self.answer_template, question=question)[0]

    def describe(self, previous: str | None) -> str:
        """Asks for a description; with a previous one, to keep, correct and complete it."""
        if previous is None:
            return self.describe_template
        return _fill(self.retrospect_template, previous=previous)[0]

    def judge(self, question: str, a: str, b: str, context: str | None) -> str:
        return self.judge_turn(question, a, b, context).text

    def judge_turn(self, question: str, a: str, b: str, context: str | None) -> JudgeTurn:
        """Asks which of the responses a and b is better; without a context, from the video alone."""
        check_text(question, "the question")
        values = {"question": question, "response_a": a, "response_b": b}
        if context is None:
            text, spans = _fill(self.judge_plain_template, **values)
        else:
            text, spans = _fill(self.judge_template, context=context, **values)
        return JudgeTurn(text, spans["response_a"], spans["response_b"])

    def rubric(self, question: str, response: str, context: str | None) -> str:
        """Asks how many of five points a response earns; without a context, from the video alone."""
        check_text(question, "the question")
        if context is None:
            return _fill(self.rubric_plain_template, question=question, response=response)[0]
        return _fill(self.rubric_template, context=context, question=question, response=response)[0]


def load_prompts(folder: str | None = None) -> Prompts:
    """Reads the packaged templates; a file of the same name in `folder` replaces one.

    Raises:
        DataError: the folder is missing or holds an unknown .txt file, or a template lacks a placeholder, has an
            unknown one, or contains a marker.
    """
    own = _own_files(folder)
    texts = {}
    for name in PLACEHOLDERS:
        packaged = files("isrdpo_jax") / "prompts" / f"{name}.txt"
        source = own.get(name, packaged)
        texts[name] = source.read_text(encoding="utf-8").removesuffix("\n")
        _check_template(name, texts[name], str(source))
    return Prompts(system=texts["system"], **{f"{name}_template": texts[name] for name in texts if name != "system"})


def check_text(text: str, where: str) -> None:
    """Refuses a text that would be taken for the video or the image.

    Raises:
        DataError: the text contains a literal `<video>` or `<image>`.
    """
    if marker := find_marker(text):
        raise DataError(f"{where}: a literal {marker} marks the place of what is seen; remove it from the text.")


def find_marker(text: str) -> str | None:
    """The first of `MARKERS` that the text contains."""
    return next((marker for marker in MARKERS if marker in text), None)


def _own_files(folder: str | None) -> dict[str, Path]:
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise DataError(f"prompts.dir: there is no folder {folder}.")
    own = {path.stem: path for path in sorted(Path(folder).glob("*.txt"))}
    unknown = own.keys() - PLACEHOLDERS.keys()
    if unknown:
        raise DataError(f"{own[min(unknown)]}: no such prompt; the prompts are {', '.join(PLACEHOLDERS)}.")
    return own


def _check_template(name: str, text: str, where: str) -> None:
    check_text(text, where)
    if not text.strip():
        raise DataError(f"{where}: the prompt is empty.")
    try:
        found = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise DataError(f"{where}: {error}; write a literal brace twice.") from error
    missing, unknown = PLACEHOLDERS[name] - set(found), set(found) - PLACEHOLDERS[name]
    if missing:
        raise DataError(f"{where}: the placeholder {{{min(missing)}}} is missing.")
    if unknown:
        raise DataError(f"{where}: unknown placeholder {{{min(unknown)}}}.")
    if len(found) != len(set(found)):
        raise DataError(f"{where}: a placeholder stands twice.")


def _fill(template: str, **values: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """Fills the placeholders; returns the text and where each value stands in it.

    What a model wrote may hold anything: tokenizers here take a marker in a text for text.
    """
    text, spans = "", {}
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field is not None:
            spans[field] = (len(text), len(text) + len(values[field]))
            text += values[field]
    return text, spans
