"""What judges said, kept by everything that went into the question: nothing is asked, or paid, twice.

One JSONL row per reply, synced before its caller asks on: a killed evaluation loses at most the calls in flight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isrdpo_jax.runs.atomic import append_jsonl, read_jsonl, truncate_jsonl
from isrdpo_jax.runs.manifest import hash_json


@dataclass(frozen=True)
class Reply:
    """What a judge said. `finish` as OpenAI's `finish_reason`; tokens as its `usage`, none where it gave none."""

    text: str
    finish: str | None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def call_key(call: Mapping[str, Any]) -> str:
    """SHA-256 of all that goes into a call, as canonical JSON."""
    return hash_json(call)


class ReplyLog:
    """The replies in a file. A torn last line, which a power cut can leave, is dropped on opening.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        truncate_jsonl(path, lambda row: True)
        rows = read_jsonl(path) if path.exists() else []
        self._replies = {row.pop("key"): Reply(**row) for row in rows}

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def extend(self, replies: Mapping[str, Reply]) -> None:
        """Keeps replies; they are on disk on return."""
        append_jsonl(self.path, *(_row(key, reply) for key, reply in replies.items()))
        self._replies.update(replies)


def _row(key: str, reply: Reply) -> dict[str, Any]:
    return {"key": key, **asdict(reply)}
