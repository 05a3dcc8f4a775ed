"""What a judge's reply says, read strictly: a verdict, or the named reason why there is none.

A reply that leaves room for two readings has none: it is counted under its reason, and never guessed or scored 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Form = Literal["caption", "official"]

OK = "ok"
LONGEST_REPLY = 65536  # characters
PASS_SCORE = 3  # caption-graded: an answer is correct from here on (LLaVA-Hound's rule)


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one answer.

    Attributes:
        outcome: `ok`; `invalid: …`, the reply cannot be read; `failed: …`, the call brought no reply; `missing: …`,
            nothing could be asked.
        correct, score: of an `ok` verdict; exact rules give no score.
        reply: what the judge said, or what went wrong with the call.
    """

    outcome: str
    correct: bool | None = None
    score: int | None = None
    reply: str | None = None

    @property
    def ok(self) -> bool:
        return self.outcome == OK


def read_reply(form: Form, text: str, finish: str | None = "stop") -> Verdict:
    """The verdict in a reply.

    Args:
        form: what was asked for: `caption`, the lines `Explanation: …` and `Score: 1 … 5`; `official`, an object with
            `pred` (yes, no) and `score` (0 … 5), in JSON or as Python writes it.
        text: the reply.
        finish: why the judge ended, as OpenAI's `finish_reason`.
    """
    if finish == "length":
        return _invalid("cut off", text)
    if finish == "content_filter":
        return _invalid("withheld by a filter", text)
    if not text.strip():
        return _invalid("empty", text)
    if len(text) > LONGEST_REPLY:
        return _invalid("too long", text[:1000])
    return _read_caption(text) if form == "caption" else _read_official(text)


_LABEL = re.compile(r"\bscore\b[\s*_]*[:=]", re.IGNORECASE)
_SCORE_LINE = re.compile(r"^[\s*_#>]*score[ \t*_]*[:=][ \t*_]*(.*?)[\s*_]*$", re.IGNORECASE | re.MULTILINE)


def _read_caption(text: str) -> Verdict:
    labels, lines = _LABEL.findall(text), _SCORE_LINE.findall(text)
    if not labels:
        return _invalid("no score", text)
    if len(lines) > 1:
        return _invalid("several scores", text)
    if len(labels) > 1 or not lines:
        return _invalid("score inside the explanation", text)
    score = _whole_number(re.sub(r"(?<=[0-9])\s*/\s*5$", "", lines[0].removesuffix(".")), 1, 5)
    return _invalid(score, text) if isinstance(score, str) else Verdict(OK, score >= PASS_SCORE, score, text)


_FENCE = re.compile(r"\A```\w*\n(.*)\n```\Z", re.DOTALL)
_OBJECT = re.compile(r"\A\{([^{}]*)\}\Z")
_ENTRY = re.compile(r"""\s*(['"])(\w+)\1\s*:\s*(?:(['"])([^'"]*)\3|([^'"\s]+))\s*""")


def _read_official(text: str) -> Verdict:
    bare = text.strip()
    if fenced := _FENCE.match(bare):
        bare = fenced[1].strip()
    found = _OBJECT.match(bare)
    entries = [_ENTRY.fullmatch(part) for part in found[1].rstrip(" \n,").split(",")] if found else []
    values = [(entry[2].lower(), (entry[4] or entry[5] or "").strip()) for entry in entries if entry]
    if not values or len(values) != len(entries):
        both = {word.lower() for word in re.findall(r"\b(?:yes|no)\b", text, re.IGNORECASE)}
        return _invalid("both answers" if len(both) == 2 else "not the form that was asked for", text)
    answers = [value.lower() for name, value in values if name == "pred"]
    scores = [value for name, value in values if name == "score"]
    if not answers or not scores:
        return _invalid("no answer" if not answers else "no score", text)
    if len(set(answers)) > 1 or {"yes", "no"} <= set(re.findall(r"\w+", answers[0])):
        return _invalid("both answers", text)
    if answers[0] not in ("yes", "no"):
        return _invalid("no answer", text)
    if len(scores) > 1:
        return _invalid("several scores", text)
    score = _whole_number(scores[0], 0, 5)
    return _invalid(score, text) if isinstance(score, str) else Verdict(OK, answers[0] == "yes", score, text)


def _whole_number(text: str, low: int, high: int) -> int | str:
    """The number, or why it is none."""
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text) if len(text) < 4 and low <= int(text) <= high else "score out of range"
    if re.fullmatch(r"[+-]?[0-9]*[.,][0-9]+(\s*/\s*[0-9]+)?", text):
        return "score not a whole number"
    numbers = re.findall(r"[0-9]+", text)
    return "no score" if not numbers else "several scores" if len(numbers) > 1 else "score among other words"


def _invalid(reason: str, reply: str) -> Verdict:
    return Verdict(f"invalid: {reason}", reply=reply)
