"""The examples of an iteration: which questions to show, their texts, the video as a strip, the description's edits."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from isrdpo_jax.report.load import Iteration, Judgement, Notes, Run, count_words, read_rows

Frames = Callable[[Path, str], np.ndarray | None]
T = TypeVar("T")
MAX_FRAMES = 8
MAX_SIDE = 112  # pixels of a frame inside a strip
PIXELATED_BELOW = 64  # a smaller frame is enlarged with crisp pixels


@dataclass(frozen=True)
class Verdict:
    """One question's judgement. `orders` are the log-odds for y1 in the two orders; `texts` what the judge wrote."""

    orders: tuple[float, ...]
    margin: float | None
    winner: int | None
    reason: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """One question in one run and iteration. `differences` are (kind, words) with kind same | removed | added."""

    run: int
    responses: tuple[str, str]
    finished: tuple[bool, bool]
    verdict: Verdict | None
    kept: bool | None
    description: str | None
    previous: str | None
    differences: tuple[tuple[str, str], ...]

    @property
    def words(self) -> tuple[int, int]:
        """Words of the two responses."""
        return count_words(self.responses[0]), count_words(self.responses[1])


@dataclass(frozen=True)
class Card:
    """One question about one video, with what every run made of it. `picked` says why it is shown."""

    id: str
    video: str
    question: str
    picked: str
    strip: Strip | None
    runs: tuple[Example | None, ...]


@dataclass(frozen=True)
class Strip:
    """Frames side by side as a PNG data URI; sizes in pixels of the image."""

    source: str
    frames: int
    of: int
    width: int
    height: int
    pixelated: bool


def cards(runs: Sequence[Run], number: int, frames: Frames, limit: int) -> list[Card]:
    """The examples of iteration `number`, the same question of all runs on one card.

    Args:
        runs: the runs side by side.
        number: the iteration, from 1.
        frames: gives a video's frames, uint8 [t, H, W, 3], or None when it cannot.
        limit: how many questions at most.
    """
    iterations = [next((i for i in run.iterations if i.number == number), None) for run in runs]
    picked = _pick(runs, iterations, limit)
    found = [{} if iteration is None else _read(i, iteration, picked) for i, iteration in enumerate(iterations)]
    result = []
    for id, reason in picked.items():
        # Only runs that asked the same question about the same video stand beside each other.
        home = next((i for i, rows in enumerate(found) if id in rows), None)
        if home is None:
            continue
        video, question = found[home][id][0]
        examples = tuple(rows[id][1] if id in rows and rows[id][0] == (video, question) else None for rows in found)
        shown = strip(frames(runs[home].path, video))
        result.append(Card(id, video, question, reason, shown, examples))
    return result


def strip(frames: np.ndarray | None) -> Strip | None:
    """At most `MAX_FRAMES` frames side by side; large ones are made smaller, small ones stay as they are.

    Args:
        frames: uint8 [t, H, W, 3], or None.

    Returns:
        The strip, or None without frames.
    """
    if frames is None or not len(frames):
        return None
    t = len(frames)
    chosen = frames[np.linspace(0, t - 1, min(t, MAX_FRAMES)).round().astype(int)]
    height, width = chosen.shape[1:3]
    scale = min(1.0, MAX_SIDE / height)
    small = [Image.fromarray(frame) for frame in chosen]
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = [image.resize(size, Image.Resampling.LANCZOS) for image in small]
    wide, high = small[0].size
    gap = max(1, high // 32)
    sheet = Image.new("RGBA", (len(small) * (wide + gap) - gap, high))
    for i, image in enumerate(small):
        sheet.paste(image, (i * (wide + gap), 0))
    if scale < 1:
        sheet = sheet.quantize(128, Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Strip(source, len(small), t, *sheet.size, pixelated=high < PIXELATED_BELOW)


def word_differences(old: str, new: str) -> tuple[tuple[str, str], ...]:
    """How `old` became `new`, word by word: ("same" | "removed" | "added", words) in reading order."""
    before, after = old.split(), new.split()
    result: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            result.append(("same", " ".join(after[c:d])))
            continue
        if a < b:
            result.append(("removed", " ".join(before[a:b])))
        if c < d:
            result.append(("added", " ".join(after[c:d])))
    return tuple(result)


def _pick(runs: Sequence[Run], iterations: Sequence[Iteration | None], limit: int) -> dict[str, str]:
    """Question id -> why it is shown: in turn one that is followed over all iterations, then the telling ones."""
    present = [iteration for iteration in iterations if iteration is not None and iteration.judgements]
    if not present:
        return {}
    followed = ((id, "followed through all iterations") for id in _followed(runs))
    telling = (_telling(iteration) for iteration in present)
    # By turns between the runs, so that each of them contributes.
    by_turns = (item for row in zip_longest(*telling) for item in row if item is not None)
    known = {judgement.id for iteration in present for judgement in iteration.judgements}
    picked: dict[str, str] = {}
    for id, reason in chain((item for item in followed if item[0] in known), by_turns):
        if len(picked) >= limit:
            break
        picked.setdefault(id, reason)
    return picked


def _followed(runs: Sequence[Run]) -> list[str]:
    """One question that every iteration of every run asked; that with most verdicts, then the first by hash."""
    asked = [{j.id: j.verdict is not None for j in i.judgements} for run in runs for i in run.trained if i.judgements]
    everywhere = set.intersection(*(set(ids) for ids in asked)) if asked else set()
    return sorted(everywhere, key=lambda id: (-sum(ids[id] for ids in asked), _hash(id)))[:1]


def _telling(iteration: Iteration) -> Iterator[tuple[str, str]]:
    """By turns: a clear verdict, a swap that turned it, a rewritten description, a question without a pair."""
    judged = sorted((judgement for judgement in iteration.judgements), key=lambda judgement: _hash(judgement.id))
    kept = iteration.kept
    change = {description.video: description.change or 0.0 for description in iteration.descriptions}
    clear = sorted((j for j in judged if j.id in kept), key=lambda j: -abs(j.margin or 0.0))
    turned = sorted((j for j in judged if _turned(j)), key=lambda j: -min(abs(odds) for odds in j.log_odds))
    rewritten = sorted((j for j in judged if change.get(j.video, 0) > 0), key=lambda j: -change[j.video])
    dropped = [j for j in judged if j.reason != "ok"]
    columns = (
        [(j.id, "a clear verdict") for j in clear],
        [(j.id, "the two orders disagree") for j in turned],
        [(j.id, "the description changed much") for j in rewritten],
        [(j.id, "gave no pair") for j in dropped],
    )
    seen: set[str] = set()
    for item in (item for row in zip_longest(*columns) for item in row if item is not None):
        if item[0] not in seen:
            seen.add(item[0])
            yield item


def _turned(judgement: Judgement) -> bool:
    return len(judgement.log_odds) == 2 and judgement.log_odds[0] * judgement.log_odds[1] < 0


def _read(index: int, iteration: Iteration, ids: Collection[str]) -> dict[str, tuple[tuple[str, str], Example]]:
    """Second pass over the files: id -> ((video, question), example)."""
    layout = iteration.layout
    responses = _rows(layout.parts("responses"), "id", ids, _responses)
    verdicts = _rows(layout.parts("judgements"), "id", ids, _verdict)
    videos = {video for video, *_ in responses.values()}
    descriptions = _rows(layout.parts("descriptions"), "video", videos, lambda row: (row["text"], row.get("previous")))
    result = {}
    for id, (video, question, texts, finished) in responses.items():
        description, previous = descriptions.get(video, (None, None))
        example = Example(
            run=index,
            responses=texts,
            finished=finished,
            verdict=verdicts.get(id),
            kept=None if iteration.pairs is None else id in iteration.kept,
            description=description,
            previous=previous,
            differences=word_differences(previous, description) if previous and description is not None else (),
        )
        result[id] = ((video, question), example)
    return result


def _rows(paths: list[Path], key: str, wanted: Collection[str], parse: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    # What does not parse was counted when the run was loaded.
    rows = read_rows(paths, lambda row: (row[key], parse(row) if row[key] in wanted else None), Notes())
    return {id: parsed for id, parsed in rows if parsed is not None}


def _responses(row: dict[str, Any]) -> tuple[str, str, tuple[str, str], tuple[bool, bool]]:
    first, second = row["responses"]
    finished = (first["finish"] == "stop", second["finish"] == "stop")
    return row["video"], row["question"], (first["text"], second["text"]), finished


def _verdict(row: dict[str, Any]) -> Verdict:
    return Verdict(
        orders=tuple(float(odds) for odds in row.get("log_odds") or () if odds is not None),
        margin=row.get("margin"),
        winner=row.get("verdict"),
        reason=row["reason"],
        texts=tuple(row.get("texts") or ()),
    )


def _hash(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()
