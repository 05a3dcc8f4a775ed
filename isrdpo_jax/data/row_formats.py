"""Recognises the question in a row, in our own form and in those in which people keep preference data.

A row's form is known by the field that holds its question:

| field | form |
|---|---|
| `question` | ours: `video, question[, id, answer, caption]` |
| `prompt` | TRL (text or messages), LLaVA-Hound's training rows |
| `conversations` | LLaMA-Factory, LLaVA-Hound's test rows |
| `messages` | ms-swift |
| only `chosen` | TRL with the prompt inside `chosen` |

The responses of preference rows are never read: policies write their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isrdpo_jax.data.prompts import find_marker
from isrdpo_jax.data.row_files import Refused

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_PREFERENCES = {"chosen", "rejected", "rejected_response", "rejected_messages"}
_FIELDS = ("video", "question", "id", "answer", "caption")


def question_fields(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields `video`, `question`, and where there are any `id`, `answer` and `caption`; all usable strings.

    Raises:
        Refused: a field is missing or cannot be used, or the row holds several videos or questions.
    """
    present = {name: value for name, value in row.items() if value is not None}
    for field, read in _FORMS.items():
        if field in present:
            return _checked({**_names(present), **read(present)})
    raise Refused("missing_field", "the field question is missing")


def _ours(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _FIELDS if name in row}


def _prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return {"question": _without_marker(prompt)}
    return {"question": _asked(_turns("prompt", prompt))}


def _conversation(field: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        turns = _turns(field, row[field])
        found = {"question": _asked(turns)}
        answers = [text for role, text in turns if role == "assistant"]
        if answers and not row.keys() & _PREFERENCES:
            found["answer"] = answers[0]
        if "caption" in row:
            found["caption"] = row["caption"]
        return found

    return read


def _chosen(row: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(row["chosen"], str):
        raise Refused(
            "missing_field", "the field prompt is missing: where chosen is a text, nothing says where it ends"
        )
    return {"question": _asked(_turns("chosen", row["chosen"]))}


_FORMS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "question": _ours,
    "prompt": _prompt,
    "conversations": _conversation("conversations"),
    "messages": _conversation("messages"),
    "chosen": _chosen,
}


def _names(row: Mapping[str, Any]) -> dict[str, Any]:
    """The video and the id, which other people also call `videos` and `idx`, and number."""
    found = {}
    if "video" in row:
        found["video"] = row["video"]
    elif "videos" in row:
        videos = row["videos"] if isinstance(row["videos"], list) else [row["videos"]]
        if len(videos) != 1:
            raise Refused("several_videos" if videos else "missing_field", f"{len(videos)} videos; a row needs one")
        found["video"] = videos[0]
    for name in ("id", "idx"):
        if name in row and "question" not in row:
            number = isinstance(row[name], int) and not isinstance(row[name], bool)
            return {**found, "id": str(row[name]) if number else row[name]}
    return found


def _turns(field: str, value: Any) -> list[tuple[str, str]]:
    """(role, text) of every message, in either of the two spellings."""
    if not isinstance(value, list):
        raise Refused("wrong_type", f"the field {field} must be a list of messages, not {json.dumps(value)[:40]}")
    turns = []
    for message in value:
        if not isinstance(message, dict):
            raise Refused("wrong_type", f"the field {field} holds {json.dumps(message)[:40]}, which is no message")
        role = _ROLES.get(str(message.get("role", message.get("from"))))
        if role is None:
            raise Refused("wrong_type", f"the field {field} holds a message that is of neither user nor assistant")
        turns.append((role, _text(field, message.get("content", message.get("value")))))
    return turns


def _text(field: str, content: Any) -> str:
    """A message's text; its parts of other kinds (`{"type": "video"}`) only mark where these stand."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(_string(field, part.get("text")) for part in parts)
    return _string(field, content)


def _asked(turns: Sequence[tuple[str, str]]) -> str:
    questions = [text for role, text in turns if role == "user"]
    if len(questions) > 1:
        raise Refused("several_turns", f"{len(questions)} user turns; a row needs one question")
    return _without_marker(questions[0]) if questions else ""


def _without_marker(text: str) -> str:
    """In these forms `<video>` says where the video stands; ours stands in the conversation, so the mark goes."""
    return text.replace("<video>", "").strip()


def _checked(found: Mapping[str, Any]) -> dict[str, str]:
    for name in ("video", "question"):
        if name not in found:
            raise Refused("missing_field", f"the field {name} is missing")
    fields = {name: _string(name, found[name]) for name in _FIELDS if name in found}
    for name in ("video", "id"):
        if not fields.get(name, name).strip():
            raise Refused("missing_field", f"the field {name} is empty")
    if not fields["question"].strip():
        raise Refused("empty_question", "the question is empty")
    for name in ("question", "answer"):
        if marker := find_marker(fields.get(name, "")):
            raise Refused("video_marker", f"a literal {marker} in the {name} would be taken for what is seen")
    return fields


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refused("wrong_type", f"the field {name} must be a string, not {json.dumps(value)[:40]}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused("not_utf8", f"the field {name} has half a character (a lone surrogate)") from error
    return value
