"""A policy of ours as the judge, and exact rules where the truth is known.

The policy sees the video, and then the messages that an endpoint gets. Its reply is generated greedily and read by the
same strict rules, so that any tokenizer will do and both kinds of judges compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation.heldout import Heldout
from isrdpo_jax.evaluation.protocols import Item, Protocol
from isrdpo_jax.evaluation.reply_log import Reply, ReplyLog, call_key
from isrdpo_jax.evaluation.verdicts import OK, Verdict, read_reply
from isrdpo_jax.stages.collect import batch_ranges
from isrdpo_jax.stages.engine import Decoding, Policy, complete, encode_frames, open_prefixes


def judge_by_policy(
    policy: Policy,
    source: VideoSource,
    items: Sequence[Item],
    protocol: Protocol,
    log: ReplyLog,
    *,
    batch_videos: int,
    max_new_tokens: int,
    start: Callable[[int], Callable[[], None]],
) -> dict[str, Verdict]:
    """Verdicts by the items' ids. Replies in the log are not generated again.

    Args:
        source: the videos that the items are about.
        start: is told how many batches of videos are to be judged, and returns what is to be called behind each.
    """
    verdicts: dict[str, Verdict] = {}
    turns: dict[str, str] = {}
    room = policy.config.llama.max_positions - policy.prefix_length - max_new_tokens
    for item in items:
        turn = "" if (what := protocol.missing(item)) else "\n\n".join(m["content"] for m in protocol.messages(item))
        if what:
            verdicts[item.id] = Verdict(f"missing: {what}")
        elif len(policy.tokenizer.encode_turn(turn)) > room:
            verdicts[item.id] = Verdict("missing: room in the judge's context window")
        else:
            turns[item.id] = turn
    asked_about: dict[str, list[Item]] = {}
    for item in items:
        if item.id in turns:
            asked_about.setdefault(item.video, []).append(item)
    keys = {
        item.id: call_key(
            {
                "policy": policy.digest,
                "data": source.digest,
                "prefix": list(policy.prefix_ids),
                "video": item.video,
                "turn": turns[item.id],
                "max_new_tokens": max_new_tokens,
            }
        )
        for row in asked_about.values()
        for item in row
    }
    todo = [
        batch
        for batch in batch_ranges(len(source), batch_videos)
        if any(log.get(keys[item.id]) is None for i in batch for item in asked_about.get(source.ids[i], ()))
    ]
    tick = start(len(todo))
    places = max(map(len, asked_about.values()), default=0)
    for batch in todo:
        videos = [source[i] for i in batch]
        frames = [video.frames for video in videos]
        frames += [frames[-1]] * (batch_videos - len(frames))
        rows: list[list[Item | None]] = [
            [*asked_about.get(video.id, ()), *[None] * places][:places] for video in videos
        ] + [[None] * places] * (batch_videos - len(videos))
        said = complete(
            policy,
            open_prefixes(policy, encode_frames(policy, frames)),
            [[turns[item.id] if item else None for item in row] for row in rows],
            [[item.id if item else "" for item in row] for row in rows],
            [[0] * places] * len(rows),
            Decoding(max_new_tokens, 0.0),
            purpose="judge",
            seed=0,
            iteration=0,
        )
        log.extend(
            {
                keys[item.id]: Reply(reply.text, reply.finish)
                for row, replies in zip(rows, said, strict=True)
                for item, reply in zip(row, replies, strict=True)
                if item and reply and log.get(keys[item.id]) is None
            }
        )
        tick()
    for item_id, key in keys.items():
        reply = log.get(key)
        assert reply is not None
        verdicts[item_id] = read_reply(protocol.form, reply.text, reply.finish)
    return verdicts


def check_truth(heldout: Heldout) -> None:
    """Raises:
    DataError: the data set does not know the truth, so that no rule can judge.
    """
    if not heldout.truths:
        raise DataError(
            "evaluation.judge.kind: this data set has no exact truth; choose endpoint or policy, with "
            "evaluation.judge.model."
        )


def judge_exactly(items: Sequence[Item], heldout: Heldout) -> dict[str, Verdict]:
    """Verdicts by the rules of the embedded world: right when the core of the answer is."""

    def one(item: Item) -> Verdict:
        if item.prediction is None:
            return Verdict("missing: no answer")
        if item.video not in heldout.truths:
            return Verdict("missing: no truth")
        return Verdict(OK, language.grade(item.prediction, item.question, heldout.truths[item.video]).core)

    return {item.id: one(item) for item in items}
