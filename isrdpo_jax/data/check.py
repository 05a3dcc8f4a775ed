"""What a run would meet in its data, found before anything is computed: bad rows, unreadable videos, long prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from isrdpo_jax.data.budget import Budget, PromptKind, Turn
from isrdpo_jax.data.datasets.asked_videos import decoded, row_skips
from isrdpo_jax.data.loader import Split, configured_splits, open_split, prepared_folder, split_rows
from isrdpo_jax.data.skips import Skip, Skips, read_skips
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config

# Prompts of these kinds that do not fit stop a run; a judgement that does not fit costs its pair only.
STOPPING: frozenset[PromptKind] = frozenset({"answer", "describe", "retrospect"})


def check_data(config: Config, budget: Budget, *, num_frames: int, largest: int) -> dict[str, Any]:
    """Checks the splits of a config: {"ok", "problems", "window", "prefix", "visual", "room", "splits"}.

    Every video of a split that is not prepared yet is decoded, and not kept.

    Args:
        num_frames: frames per video (t) that the policy sees.
        largest: how many of the longest prompts are named.

    Raises:
        DataError: the rows of a split are not there.
    """
    if config.judge.mode == "letters":
        _ = budget.tokenizer.letter_ids  # refuses a tokenizer that splits them
    if config.judge.mode == "rubric":
        _ = budget.tokenizer.score_ids
    splits = {split: _check(config, split, budget, num_frames, largest) for split in configured_splits(config)}
    problems = [f"{name}: {problem}" for name, split in splits.items() for problem in split["problems"]]
    return {
        "ok": not problems,
        "problems": problems,
        "window": budget.window,
        "prefix": budget.prefix,
        "visual": budget.visual,
        "room": budget.room,
        "splits": splits,
    }


def _check(config: Config, split: Split, budget: Budget, num_frames: int, largest: int) -> dict[str, Any]:
    rows = split_rows(config, split)
    if rows is None:
        source = open_split(config, split, num_frames=num_frames)
        asked = [(video.id, question.id, question.text) for video in source for question in video.questions]
        name, videos, skips = "generated", len(source), Skips("generated", len(asked), ())
    else:
        asked = [(row.video_id, row.id, row.question) for row in rows.good]
        name, videos = rows.source, len(rows.videos)
        skips = _prepared(config, split, num_frames) or row_skips(
            rows, *(skip for _, skip in decoded(rows, num_frames, config.data.decode_timeout_s) if skip)
        )
    lost = [skip for skip in skips.skips if skip.path != skip.file]
    prompts = _prompts(asked, budget, split, largest)
    return {
        "source": name,
        "rows": skips.of,
        "usable": skips.of - sum(skip.rows for skip in skips.skips),
        "videos": videos,
        "usable_videos": videos - len(lost),
        "skips": {"counts": skips.counts, "rows": [asdict(skip) for skip in skips.skips]},
        "duplicate_ids": [asdict(skip) for skip in skips.skips if skip.reason == "duplicate_id"],
        "prompts": prompts,
        "problems": [*_refusal(skips, config), *_too_long(prompts, budget.room)],
    }


def _prepared(config: Config, split: Split, num_frames: int) -> Skips | None:
    """What was left out when the split was prepared, if it is."""
    folder = prepared_folder(config, split, num_frames=num_frames)
    return read_skips(folder) if folder else None


def _prompts(
    asked: Iterable[tuple[str, str, str]], budget: Budget, split: Split, largest: int
) -> dict[PromptKind, dict[str, Any]]:
    """Of each kind of prompt: how many, how many do not fit, and the longest, longest first."""
    found: dict[PromptKind, list[dict[str, Any]]] = {}
    for video, question, turn in _turns(asked, budget, split):
        sizes = {"tokens": turn.tokens, "later": turn.later, "written": turn.written, "total": turn.total}
        found.setdefault(turn.kind, []).append({"id": question, "video": video, **sizes})
    return {
        kind: {
            "count": len(turns),
            "over": sum(turn["total"] > budget.room for turn in turns),
            "largest": sorted(turns, key=lambda turn: (-turn["total"], str(turn["id"])))[:largest],
        }
        for kind, turns in found.items()
    }


def _turns(
    asked: Iterable[tuple[str, str, str]], budget: Budget, split: Split
) -> Iterator[tuple[str | None, str | None, Turn]]:
    if split == "sft":  # its rows are labelled, and asked by nobody
        return
    if split == "train":
        yield from ((None, None, turn) for turn in budget.of_video())
    for video, question, text in asked:
        yield from ((video, question, turn) for turn in budget.of_question(text, heldout=split != "train"))


def check_table(found: dict[str, Any]) -> Group:
    """The findings of `check_data` for the terminal."""
    parts: list[RenderableType] = [
        f"The context window has {found['window']} positions: {found['prefix']} before the video, {found['visual']} of"
        f" the video, {found['room']} behind it."
    ]
    for name, split in found["splits"].items():
        parts.append(
            f"{name}: {split['usable']} of {split['rows']} rows and {split['usable_videos']} of {split['videos']} "
            f"videos can be used ({split['source']})"
        )
        parts += [f"  {_place(skip)}" for skip in split["skips"]["rows"]]
        table = Table("prompt", "count", "too long", "longest", "positions: prompt + to come + written")
        for kind, prompts in split["prompts"].items():
            for i, turn in enumerate(prompts["largest"]):
                first = (kind, str(prompts["count"]), str(prompts["over"])) if i == 0 else ("", "", "")
                sizes = f"{turn['total']} = {turn['tokens']} + {turn['later']} + {turn['written']}"
                table.add_row(*first, Text(turn["id"] or "about every video"), sizes)
        parts.append(table)
    parts += [f"to mend: {problem}" for problem in found["problems"]] or ["nothing to mend"]
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def _place(skip: dict[str, Any]) -> str:
    return Skip(**skip).place


def _refusal(skips: Skips, config: Config) -> list[str]:
    try:
        skips.check(config.data)
    except DataError as error:
        return [str(error)]
    return []


def _too_long(prompts: dict[PromptKind, dict[str, Any]], room: int) -> Iterator[str]:
    for kind, found in prompts.items():
        if kind in STOPPING and found["over"]:
            longest = found["largest"][0] if found["largest"] else {}
            place = f" ({longest['id']} needs {longest['total']})" if longest.get("id") else ""
            yield (
                f"{found['over']} of {found['count']} {kind} prompts and what is written behind them exceed the {room} "
                f"positions behind the video{place}. Shorten or remove them, or lower max_new_tokens."
            )
