"""Judging an iteration's stored responses again, another way: `isrdpo judge`.

The run's own records stay as they are; the new verdicts are kept beside them, for the report and for `isrdpo agree`:

    iter_TT/rejudged/<what differs>.jsonl .json      rows as in judgements/; the judge's settings and its figures
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from isrdpo_jax.config import load_config
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.records import Video
from isrdpo_jax.errors import ConfigError, DataError
from isrdpo_jax.evaluation.judging import judged_correctly
from isrdpo_jax.runs.atomic import write_json, write_jsonl
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.stages.collect import (
    Row,
    check_judged_video,
    collect_engine,
    judge,
    judgement_row,
    look_elsewhere,
    make_case,
    say_description,
    true_context,
)
from isrdpo_jax.stages.dialogue import Completion, Dialogue, Sight
from isrdpo_jax.stages.parts import read_parts
from isrdpo_jax.stages.policy import open_policy
from isrdpo_jax.weights.policy_folder import PolicyFolder


def rejudge(run: Path, iteration: int, overrides: Iterable[str], console: Console) -> dict[str, Any]:
    """Verdicts of π_t on its own stored responses under other `judge.*` settings, beside the stored ones.

    A retrospective context is the stored c_t; a fresh one is described anew.

    Returns:
        {"judge": settings, "changed": those that differ from the run's, "stored": figures, "again": figures,
        "same_verdict": share, "kept": the file of the new judgements, "rows": the new judgements}.

    Raises:
        ConfigError: an override is not of the section `judge`. DataError: the iteration was not collected.
    """
    overrides = list(overrides)
    if foreign := [text for text in overrides if not text.startswith("judge.")]:
        raise ConfigError(f"{foreign[0]}: only judge.KEY=VALUE can be changed; the responses are the stored ones.")
    layout = RunLayout(run)
    stored_layout = layout.iteration(iteration)
    if not stored_layout.manifest("collect").exists():
        raise DataError(f"{stored_layout.root}: no finished collect to judge again.")
    config = load_config(layout.config, overrides).config
    settings, ours = (one.judge.model_dump() for one in (config, load_config(layout.config).config))
    changed = {key: value for key, value in settings.items() if value != ours[key]}
    mesh = make_mesh(config.mesh)
    folder = PolicyFolder(layout.root, layout.iteration(iteration - 1).checkpoint)
    policy = open_policy(folder, mesh, load_prompts(config.prompts.dir), verify=config.checkpoint.verify)
    source = open_split(config, "train", num_frames=policy.config.vision.num_frames)
    responses = {row["id"]: row for row in read_parts(stored_layout, "responses")}
    contexts = {row["video"]: _completion(row) for row in read_parts(stored_layout, "descriptions")}
    fresh = config.judge.context == "fresh" or (config.judge.context == "retrospective" and not contexts)
    check_judged_video(source, config.judge)
    engine = collect_engine(policy, config, iteration)

    def interview(i: int, video: Video) -> Dialogue:
        context: Completion | None = None
        if fresh:
            (context,) = yield [say_description(policy, video, config, None)]
        elif config.judge.context == "retrospective" and video.id in contexts:
            context = contexts[video.id]
        elif config.judge.context == "truth":
            context = true_context(video)
        yield from look_elsewhere(source, i, video, config.judge)
        cases = [make_case(question, _pair(responses[question.id]), context, config) for question in video.questions]
        judged = yield from judge(policy, video, cases, config.judge)
        return [
            judgement_row(video, question, case.context, judgement)
            for question, case, judgement in zip(video.questions, cases, judged, strict=True)
        ]

    def visit(i: int) -> tuple[Dialogue, Sight]:
        video = source[i]
        return interview(i, video), Sight(video.frames, video.id)

    talks = engine.converse([partial(visit, i) for i in range(len(source))])
    told = dict(track(talks, "judge", total=len(source), console=console, transient=True))
    again = [row for i in range(len(source)) for row in told[i]]
    truths = {video.id: video.truth for video in source}
    stored = read_parts(stored_layout, "judgements")
    before = {row["id"]: row["verdict"] for row in stored}
    both = [(before[row["id"]], row["verdict"]) for row in again if None not in (before[row["id"]], row["verdict"])]

    def figures(rows: list[Row]) -> dict[str, Any]:
        right = [row["correct"] for row in judged_correctly(list(responses.values()), rows, truths)]
        odds = [row["log_odds"] for row in rows if row["log_odds"]]
        return {
            "verdicts": sum(row["verdict"] is not None for row in rows),
            "orders_agree": sum(a * b > 0 for a, b in odds) / len(odds) if odds else None,
            "accuracy": sum(right) / len(right) if right else None,
            "accuracy_count": len(right),
        }

    same = sum(a == b for a, b in both) / len(both) if both else None
    kept = stored_layout.rejudged / ("_".join(f"{key}-{value}" for key, value in changed.items()) or "unchanged")
    facts = {
        "judge": settings,
        "changed": changed,
        "stored": figures(stored),
        "again": figures(again),
        "same_verdict": same,
        "kept": f"{kept}.jsonl",
    }
    write_jsonl(kept.with_name(f"{kept.name}.jsonl"), again)
    write_json(kept.with_name(f"{kept.name}.json"), facts)
    return facts | {"rows": again}


def _pair(row: Row) -> tuple[Completion, Completion]:
    first, second = map(_completion, row["responses"])
    return first, second


def _completion(row: Row) -> Completion:
    return Completion(row["text"], tuple(row["tokens"]), row["finish"])
