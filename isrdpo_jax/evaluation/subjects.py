"""Who is evaluated: policies, the iterations of a run, or answers in a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from isrdpo_jax.config import load_config
from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Video
from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation.answers import Row, answer_rows, answering, say_answers
from isrdpo_jax.runs.atomic import append_jsonl, read_json, read_jsonl, truncate_jsonl
from isrdpo_jax.runs.layout import IterationLayout, RunLayout, manifest_path
from isrdpo_jax.runs.manifest import hash_file, hash_json, load_manifest, load_verified
from isrdpo_jax.schema import Config
from isrdpo_jax.stages.dialogue import Dialogue, Sight
from isrdpo_jax.stages.engine import Engine
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.weights.policy_folder import CARD, PolicyFolder, find_policy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """Somebody whose answers are judged: a policy, an iteration of a run (a policy that may have answered already), or
    a file with answers.

    Attributes:
        name: as people call it.
    """

    name: str
    policy: PolicyFolder | None = None
    iteration: IterationLayout | None = None
    file: Path | None = None


def find_subjects(name: str) -> list[Subject]:
    """What a user names: a JSONL file with answers; a run, which stands for all its iterations; or a policy.

    Raises:
        DataError, CheckpointError: there is nothing of this name.
    """
    path = Path(name)
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise DataError(f"{name}: there is no such file with answers.")
        return [Subject(name, file=path)]
    run = RunLayout(path)
    if run.run_json.is_file():
        there = run.iterations()
        if gone := [one.root.name for one in there if one.manifest("optimize").is_file() and not _is_usable(one)]:
            log.warning("%s: left out, for neither policy nor answers were kept: %s.", name, ", ".join(gone))
        return [_iteration(name, run, one) for one in there if _is_usable(one)] or _nothing(name)
    if RunLayout(path.parent).run_json.is_file() and path.is_dir():
        run = RunLayout(path.parent)
        one = next((one for one in run.iterations() if one.root.name == path.name), None)
        if one and _is_usable(one):
            return [_iteration(str(path.parent), run, one)]
    return [Subject(name, policy=find_policy(name))]


def _iteration(run_name: str, run: RunLayout, one: IterationLayout) -> Subject:
    policy = PolicyFolder(run.root, one.checkpoint) if manifest_path(one.checkpoint).is_file() else None
    return Subject(f"{run_name}/{one.root.name}", policy=policy, iteration=one)


def _is_usable(one: IterationLayout) -> bool:
    return manifest_path(one.checkpoint).is_file() or one.manifest("evaluate").is_file()


def _nothing(name: str) -> list[Subject]:
    raise DataError(f"{name}: this run has no policy and no answers yet; start it with `isrdpo run`.")


def policy_digest(folder: PolicyFolder) -> str:
    """The digest of a policy's parameters as its card or manifest has it; nothing is loaded."""
    if folder.parameters.is_file():
        return read_json(folder.base / CARD)["policy"]
    return load_manifest(manifest_path(folder.parameters)).facts["policy"]


def answers_of(
    subject: Subject,
    source: VideoSource,
    asked: Sequence[Sequence[str]],
    config: Config,
    prompts_digest: str,
    folder: Path,
    open_it: Callable[[PolicyFolder], Policy],
    start: Callable[[int], Callable[[], None]],
) -> Path:
    """The file with the subject's answers to all questions of a split; what it lacks is answered now.

    A run's stored answers are used where they belong to the same data, prompts and settings. A killed call goes on
    behind the last whole batch.

    Args:
        asked: the ids of the questions about each video of the source.
        folder: where answers are kept, under a name that holds the identity of policy, data, prompts and settings.
        open_it: loads the policy; called only if there is something to answer.
        start: is told how many batches are to be answered, and returns what is to be called behind each.

    Raises:
        DataError: the run's policy was not kept and its stored answers are others; or the file is no answers.
    """
    if subject.file:
        return _copied(subject, folder, read_answers(subject.file), {"file": hash_file(subject.file).sha256})
    about = {"data": source.digest, "prompts": prompts_digest, **_how(config)}
    stored = subject.iteration and _stored(subject.iteration, about)
    if stored:
        return _copied(subject, folder, *stored)
    if subject.policy is None:
        raise DataError(
            f"{subject.name}: its policy was not kept (checkpoint.keep_policies), and its stored answers belong to "
            "other data, prompts, evaluation.max_new_tokens or collect settings. Take another iteration, or the run's "
            "own config."
        )
    path = folder / _file_name(subject, about | {"policy": policy_digest(subject.policy)})
    truncate_jsonl(path, lambda row: True)
    answered = {row["id"] for row in read_jsonl(path)} if path.exists() else set()
    todo = [i for i, questions in enumerate(asked) if not answered.issuperset(questions)]
    if not todo:
        return path
    engine, tick = Engine(open_it(subject.policy), config.collect, [answering(config.evaluation)]), start(len(todo))

    def interview(video: Video) -> Dialogue:
        return answer_rows(video, (yield say_answers(engine.policy, video, config.evaluation)))

    def visit(i: int) -> tuple[Dialogue, Sight]:
        video = source[i]
        return interview(video), Sight(video.frames, video.id)

    for _, rows in engine.converse([partial(visit, i) for i in todo]):
        append_jsonl(path, *(row for row in rows if row["id"] not in answered))
        tick()
    return path


def read_answers(path: Path) -> list[Row]:
    """Rows with `id` and `text`, from a file of ours or from LLaVA-Hound's inference (`model_prediction`).

    A failed prediction has no text. Raises:
        DataError: a row has no id, or no answer in either form, or an id stands twice.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    for line, row in enumerate(read_jsonl(path), 1):
        prediction = row.get("model_prediction")
        if isinstance(prediction, dict):
            text = prediction.get("message") if prediction.get("status") == "success" else None
        elif "text" in row:
            text = row["text"]
        else:
            raise DataError(f"{path}, line {line}: neither `text` nor `model_prediction`; these are no answers.")
        if not isinstance(row.get("id"), str) or not isinstance(text, str | None):
            raise DataError(f"{path}, line {line}: an answer needs a text, and an id that is a string.")
        if row["id"] in seen:
            raise DataError(f"{path}, line {line}: the id {row['id']!r} stands twice; answers are joined by id.")
        seen.add(row["id"])
        rows.append(row | {"text": text})
    return rows


def _stored(one: IterationLayout, about: dict[str, Any]) -> tuple[list[Row], dict[str, Any]] | None:
    """The answers that a run kept, and their identity, if they are about the same."""
    if not one.manifest("evaluate").is_file():
        return None
    manifest = load_verified(one.manifest("evaluate"))
    run = RunLayout(one.root.parent)
    how = _how(load_config(run.config).config)
    kept = {"data": manifest.inputs["data"], "prompts": read_json(run.run_json)["prompts"], **how}
    if kept != about:
        return None
    return read_jsonl(one.evaluation / "answers.jsonl"), kept | {"policy": manifest.inputs["policy"]}


def _how(config: Config) -> dict[str, Any]:
    """The settings that have a part in an answer."""
    collect = config.collect
    limits = {"max_new_tokens": config.evaluation.max_new_tokens, "turn_tokens": collect.turn_tokens}
    return {**limits, "int8_prefixes": collect.int8_prefixes}


def _copied(subject: Subject, folder: Path, rows: list[Row], identity: dict[str, Any]) -> Path:
    path = folder / _file_name(subject, identity)
    have = {row["id"] for row in read_jsonl(path)} if path.exists() else set()
    if lacking := [row for row in rows if row["id"] not in have]:
        append_jsonl(path, *lacking)
    return path


def _file_name(subject: Subject, identity: dict[str, Any]) -> str:
    name = "-".join(Path(subject.name.removesuffix(".jsonl")).parts[-2:]).strip("/.")
    return f"{name}-{hash_json(identity)[:12]}.jsonl"
