"""What a judge is asked about an answer: the two protocols of the LLaVA-Hound evaluation, or a user's own words.

`caption`: one user message with the video's caption; an explanation and a score from 1 to 5, correct from 3 on.
`official`: system and user message, without a caption; yes or no, and a score from 0 to 5 (Video-ChatGPT's way).
The answer is cut to 256 words in both. The packaged texts are ours; the rules are the protocols'.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation.verdicts import Form
from isrdpo_jax.schema import EvaluationJudgeConfig

ANSWER_WORDS = 256  # divided by white space
_SLOT = re.compile(r"\{(caption|question|answer|prediction)\}")
_NEEDED: dict[Form, frozenset[str]] = {
    "caption": frozenset({"caption", "question", "answer", "prediction"}),
    "official": frozenset({"question", "answer", "prediction"}),
}

# The original prompts, by characters and SHA-256 (or its beginning) once white space is normalised.
ORIGINALS: dict[tuple[int, str], str] = {
    (1226, "6a2cf2b01c3ebe2810866b2dd482f909a5e38d27265c154acf5ec5f54c5ede31"): "LLaVA-Hound, caption-graded",
    (502, "79bb944a"): "LLaVA-Hound, official sets (system)",
    (675, "fcc0aa07"): "LLaVA-Hound, official sets (user)",
}


@dataclass(frozen=True)
class Item:
    """One answer to be judged, with all that a judge may be told. Joined by id; none where something is not there."""

    id: str
    video: str
    question: str
    reference: str | None
    caption: str | None
    prediction: str | None

    @property
    def is_cut(self) -> bool:
        return self.prediction is not None and len(self.prediction.split()) > ANSWER_WORDS


@dataclass(frozen=True)
class Protocol:
    """The texts of a protocol, with `{caption}`, `{question}`, `{answer}` and `{prediction}` to be filled in.

    Attributes:
        form: what is asked for, and how the reply is read.
        origin: `ours`, `own`, or the original that the user's text was recognised as.
    """

    form: Form
    system: str | None
    user: str
    origin: str

    def missing(self, item: Item) -> str | None:
        """What the texts need and the item lacks."""
        asked = set(_SLOT.findall((self.system or "") + self.user))
        if not item.prediction or not item.prediction.strip():
            return "no answer"
        if "answer" in asked and not item.reference:
            return "no reference answer"
        return "no caption" if "caption" in asked and not item.caption else None

    def messages(self, item: Item) -> list[dict[str, str]]:
        """The messages about an item that misses nothing."""
        values = {
            "caption": item.caption or "",
            "question": item.question,
            "answer": item.reference or "",
            "prediction": first_words(item.prediction or ""),
        }

        def filled(text: str) -> str:  # in one pass: what stands in an answer is never taken for a slot
            return _SLOT.sub(lambda slot: values[slot[1]], text)

        system = [{"role": "system", "content": filled(self.system)}] if self.system else []
        return [*system, {"role": "user", "content": filled(self.user)}]


def first_words(text: str) -> str:
    """The text, cut behind its first 256 words."""
    words = text.split()
    return text if len(words) <= ANSWER_WORDS else " ".join(words[:ANSWER_WORDS])


def load_protocol(judge: EvaluationJudgeConfig) -> Protocol:
    """The packaged texts, or the user's files in their place.

    Raises:
        DataError: a file cannot be read, or lacks a slot that its protocol needs.
    """
    form = judge.protocol
    if judge.prompt is None:
        packaged = files("isrdpo_jax") / "prompts" / "evaluation"
        system = (packaged / "official_system.txt").read_text(encoding="utf-8") if form == "official" else None
        user = (packaged / f"{form}.txt").read_text(encoding="utf-8")
        return Protocol(form, system and system.removesuffix("\n"), user.removesuffix("\n"), "ours")
    user = _read(judge.prompt)
    system = _read(judge.system_prompt) if judge.system_prompt else None
    if missing := _NEEDED[form] - set(_SLOT.findall((system or "") + user)):
        raise DataError(f"{judge.prompt}: the slot {{{min(missing)}}} is missing; the protocol {form} needs it.")
    names = [recognise(text) for text in (system, user) if text is not None]
    return Protocol(form, system, user, " + ".join(names) if all(names) else "own")  # type: ignore[arg-type]


def recognise(text: str) -> str | None:
    """Which original prompt a text is, white space aside."""
    normal = " ".join(text.split())
    digest = hashlib.sha256(normal.encode()).hexdigest()
    known = ((name, n, start) for (n, start), name in ORIGINALS.items())
    return next((name for name, n, start in known if len(normal) == n and digest.startswith(start)), None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the judge's prompt cannot be read ({error}).") from error
