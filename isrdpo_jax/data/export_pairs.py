"""Writes the preference pairs of an iteration in the forms that other trainers read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from isrdpo_jax.config import load_config
from isrdpo_jax.data.loader import split_rows
from isrdpo_jax.data.prompts import find_marker, load_prompts
from isrdpo_jax.errors import DataError
from isrdpo_jax.runs.atomic import read_jsonl, write_jsonl
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.schema import Config

PairFormat = Literal["trl", "llamafactory", "ms-swift"]
Row = dict[str, Any]


def export_pairs(run: Path, iteration: int, out: Path, pair_format: PairFormat) -> dict[str, int]:
    """Writes JSONL: {"pairs": written, "left_out": with a literal marker, which those trainers would take for a video}.

    The prompt is the user turn that the policy was asked, and a video is named by its absolute path.

    Raises:
        DataError: the iteration has no pairs.
    """
    layout = RunLayout(run)
    one = layout.iteration(iteration)
    if not one.manifest("pairs").is_file():
        raise DataError(f"{one.root}: this iteration has no finished pairs; `isrdpo status {run}` says how far it is.")
    config = load_config(layout.config).config
    prompts, path_of = load_prompts(config.prompts.dir), _paths(config)
    pairs = read_jsonl(one.pairs)
    written = [
        _FORMATS[pair_format](pair, prompts.answer(pair["question"]), path_of(pair["video"]))
        for pair in pairs
        if not find_marker(pair["chosen"] + pair["rejected"])
    ]
    write_jsonl(out, written)
    return {"pairs": len(written), "left_out": len(pairs) - len(written)}


def _paths(config: Config) -> Callable[[str], str]:
    """From a video's id to its absolute path."""
    rows = split_rows(config, "train")
    if rows is not None:
        known = {row.video_id: row.path for row in rows.good}
        return lambda video: os.path.abspath(known.get(video, Path(unquote(video))))
    rendered = {path.stem: path for path in sorted(Path(config.data.dir).glob("shapes_world/videos/*/*.mp4"))}
    return lambda video: os.path.abspath(rendered.get(video, Path(video)))


def _trl(pair: Mapping[str, Any], prompt: str, video: str) -> Row:
    def said(role: str, text: str) -> list[Row]:
        return [{"role": role, "content": text}]

    return {
        "id": pair["id"],
        "prompt": said("user", prompt),
        "chosen": said("assistant", pair["chosen"]),
        "rejected": said("assistant", pair["rejected"]),
        "videos": [video],
    }


def _llamafactory(pair: Mapping[str, Any], prompt: str, video: str) -> Row:
    return {
        "id": pair["id"],
        "conversations": [{"from": "human", "value": f"<video>{prompt}"}],
        "chosen": {"from": "gpt", "value": pair["chosen"]},
        "rejected": {"from": "gpt", "value": pair["rejected"]},
        "videos": [video],
    }


def _ms_swift(pair: Mapping[str, Any], prompt: str, video: str) -> Row:
    return {
        "id": pair["id"],
        "messages": [
            {"role": "user", "content": f"<video>{prompt}"},
            {"role": "assistant", "content": pair["chosen"]},
        ],
        "rejected_response": pair["rejected"],
        "videos": [video],
    }


_FORMATS: dict[PairFormat, Callable[[Mapping[str, Any], str, str], Row]] = {
    "trl": _trl,
    "llamafactory": _llamafactory,
    "ms-swift": _ms_swift,
}
