"""All questions of the runs as data beside the page: small columns to filter and sort by, texts in pages of their own.

    data-<digest>/questions.js     every question once: id, video, text, strip
                  t03.js           iteration 3: a row of figures per question and run
                  t03-0007.js      iteration 3: the texts of questions 7 x PAGE to 8 x PAGE - 1, of all runs
                  0012.png         a strip of frames

A page on `file://` may load scripts but fetch nothing, so that each file is a script that hands over one JSON value.
The files are written aside and renamed together; the digest in the folder's name keeps a page and its data together.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from isrdpo_jax.report.load import Iteration, Judgement, Notes, Run, read_rows
from isrdpo_jax.report.strips import Strip, make_strip
from isrdpo_jax.report.videos import Videos

PAGE = 50  # questions whose texts lie in one file
MAX_STRIPS = 1000  # videos shown; a strip of large frames takes about 100 kB
T = TypeVar("T")
Key = tuple[str, str, str]  # only the same question (id, text) about the same video stands beside itself


@dataclass(frozen=True)
class Written:
    """Where the data lies, and what the page must know before it loads any of it."""

    folder: str
    questions: int
    iterations: tuple[int, ...]
    strips: int
    videos: int


def write_examples(out: Path, runs: Sequence[Run], videos: Sequence[Videos], max_strips: int = MAX_STRIPS) -> Written:
    """Writes the data of every judged question of the runs.

    Args:
        out: the report's folder; the data comes into a new folder in it, which takes its name when it is whole.
        runs: the runs side by side.
        videos: what is known of each run's videos.
        max_strips: videos shown at most; those of the most telling questions come first.
    """
    part = out / f".data.{secrets.token_hex(8)}.tmp"
    part.mkdir(parents=True)
    try:
        keys = sorted({_key(j) for run in runs for i in run.trained for j in i.judgements})
        numbers = sorted({iteration.number for run in runs for iteration in run.trained if iteration.judgements})
        strips = _write_strips(part, runs, videos, max_strips)
        _put(part, "questions", {"questions": [[*key, strips.get(key)] for key in keys]})
        for number in numbers:
            iterations = [next((i for i in run.trained if i.number == number), None) for run in runs]
            figures = [{} if i is None else _figures(i) for i in iterations]
            _put(part, f"t{number:02d}", [[found.get(key) for key in keys] for found in figures])
            texts = [{} if i is None else _texts(i, found) for i, found in zip(iterations, figures, strict=True)]
            for page, start in enumerate(range(0, len(keys), PAGE)):
                shown = [[found.get(key) for key in keys[start : start + PAGE]] for found in texts]
                _put(part, f"t{number:02d}-{page:04d}", shown)
        folder = f"data-{_digest(part)}"
        if not (out / folder).exists():
            part.rename(out / folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    found = {video for _, video, _ in keys}
    return Written(folder, len(keys), tuple(numbers), len(list((out / folder).glob("*.png"))), len(found))


def remove_other_data(out: Path, folder: str) -> None:
    """Removes the data of earlier reports, once the page no longer names it."""
    for path in out.glob("data-*"):
        if path.name != folder:
            shutil.rmtree(path)


def _key(judgement: Judgement) -> Key:
    return judgement.id, judgement.video, judgement.question


def _put(folder: Path, name: str, value: Any) -> None:
    # ASCII with escapes: right in whatever encoding a browser takes the file to have.
    script = f"put({json.dumps(name)}, {json.dumps(value, separators=(',', ':'), allow_nan=False)});\n"
    (folder / f"{name}.js").write_text(script, encoding="ascii")


def _digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        sha.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()[:12]


def _figures(iteration: Iteration) -> dict[Key, list[Any]]:
    """Per question: margin, verdict, reason, whether the orders disagree, longest response, whether the verdict is
    wrong (None where nobody knows), how much the description changed."""
    change = {description.video: description.change for description in iteration.descriptions}

    def row(j: Judgement) -> list[Any]:
        wrong = None if j.better is None or j.verdict is None else int(j.verdict != j.better)
        longest = max(j.words) if j.words else None
        return [_short(j.margin), j.verdict, j.reason, int(turned(j)), longest, wrong, _short(change.get(j.video))]

    return {_key(judgement): row(judgement) for judgement in iteration.judgements}


def turned(judgement: Judgement) -> bool:
    """Whether the two orders prefer different responses."""
    return len(judgement.log_odds) == 2 and judgement.log_odds[0] * judgement.log_odds[1] < 0


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _texts(iteration: Iteration, figures: Mapping[Key, list[Any]]) -> dict[Key, dict[str, Any]]:
    """Second pass over the files: what each question shows."""
    layout, ids, videos = iteration.layout, {key[0] for key in figures}, {key[1] for key in figures}
    verdicts = _rows(layout.parts("judgements"), "id", ids, _verdict)
    descriptions = _rows(layout.parts("descriptions"), "video", videos, lambda row: (row["text"], row.get("previous")))
    result = {}
    for id, (video, question, responses) in _rows(layout.parts("responses"), "id", ids, _responses).items():
        description, previous = descriptions.get(video, (None, None))
        result[id, video, question] = {
            "figures": figures[id, video, question],
            "responses": responses,
            **verdicts[id],
            "kept": None if iteration.pairs is None else id in iteration.kept,
            "description": description,
            "previous": previous,
        }
    return result


def _rows(paths: list[Path], key: str, wanted: Collection[str], parse: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    # What does not parse was counted when the run was loaded.
    rows = read_rows(paths, lambda row: (row[key], parse(row) if row[key] in wanted else None), Notes())
    return {id: parsed for id, parsed in rows if parsed is not None}


def _responses(row: dict[str, Any]) -> tuple[str, str, list[tuple[str, bool]]]:
    first, second = row["responses"]
    return row["video"], row["question"], [(one["text"], one["finish"] == "stop") for one in (first, second)]


def _verdict(row: dict[str, Any]) -> dict[str, Any]:
    orders = [float(odds) for odds in row.get("log_odds") or () if odds is not None]
    return {"orders": orders, "said": row.get("texts") or [], "scores": row.get("scores") or []}


def _write_strips(folder: Path, runs: Sequence[Run], videos: Sequence[Videos], limit: int) -> dict[Key, list[Any]]:
    """Key -> [file, frames, of, width, height, pixelated] of its video, as far as there are frames and room."""
    at_hand: dict[tuple[int, str], list[Any] | None] = {}
    strips: dict[Key, list[Any]] = {}
    count = 0
    for home, judgement in _by_turns([_telling(i) for run in runs for i in run.trained], runs):
        key, place = _key(judgement), (home, judgement.video)
        if key in strips:
            continue
        if place not in at_hand:
            strip = make_strip(videos[home].frames(judgement.video)) if count < limit else None
            at_hand[place] = None if strip is None else _save(folder / f"{count:04d}.png", strip)
            count += strip is not None
        if (found := at_hand[place]) is not None:
            strips[key] = found
    return strips


def _save(path: Path, strip: Strip) -> list[Any]:
    path.write_bytes(strip.png)
    return [path.name, strip.frames, strip.of, strip.width, strip.height, int(strip.pixelated)]


def _by_turns(telling: Sequence[Iterator[Judgement]], runs: Sequence[Run]) -> Iterator[tuple[int, Judgement]]:
    """The questions of all iterations by turns, each with its run's index."""
    homes = [index for index, run in enumerate(runs) for _ in run.trained]
    for row in zip_longest(*telling):
        yield from ((home, judgement) for home, judgement in zip(homes, row, strict=True) if judgement is not None)


def _telling(iteration: Iteration) -> Iterator[Judgement]:
    """By turns: the clearest verdicts, swaps that turned them, rewritten descriptions, questions without a pair."""
    change = {description.video: description.change or 0.0 for description in iteration.descriptions}
    judged = iteration.judgements
    columns = (
        sorted((j for j in judged if j.verdict is not None), key=lambda j: -abs(j.margin or 0.0)),
        sorted((j for j in judged if turned(j)), key=lambda j: -min(map(abs, j.log_odds))),
        sorted((j for j in judged if change.get(j.video)), key=lambda j: -change[j.video]),
        [j for j in judged if j.verdict is None],
    )
    yield from (judgement for row in zip_longest(*columns) for judgement in row if judgement is not None)
