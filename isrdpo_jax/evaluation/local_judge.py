"""A policy of ours as the judge, and exact rules where the truth is known.

The policy sees the video, and then the messages that an endpoint gets. Its reply is generated greedily and read by the
same strict rules, so that any tokenizer will do and both kinds of judges compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.packing import bucket
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation.heldout import Heldout
from isrdpo_jax.evaluation.protocols import Item, Protocol
from isrdpo_jax.evaluation.reply_log import Reply, ReplyLog, call_key
from isrdpo_jax.evaluation.verdicts import OK, Verdict, read_reply
from isrdpo_jax.schema import CollectConfig
from isrdpo_jax.stages.dialogue import Decoding, Dialogue, Say, Sight
from isrdpo_jax.stages.engine import Engine
from isrdpo_jax.stages.policy import Policy


def judge_by_policy(
    policy: Policy,
    source: VideoSource,
    items: Sequence[Item],
    protocol: Protocol,
    log: ReplyLog,
    *,
    collect: CollectConfig,
    max_new_tokens: int,
    start: Callable[[int], Callable[[], None]],
) -> dict[str, Verdict]:
    """Verdicts by the items' ids. Replies in the log are not generated again.

    Args:
        source: the videos that the items are about.
        collect: how many videos are held at a time.
        start: is told how many videos are to be judged about, and returns what is to be called behind each.
    """
    verdicts: dict[str, Verdict] = {}
    turns: dict[str, str] = {}
    room = policy.config.llama.max_positions - policy.prefix_length - max_new_tokens
    for item in items:
        turn = "" if (what := protocol.missing(item)) else "\n\n".join(m["content"] for m in protocol.messages(item))
        if what:
            verdicts[item.id] = Verdict(f"missing: {what}")
        elif bucket(len(policy.tokenizer.encode_turn(turn))) > room:
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
    new = {video: [one for one in some if log.get(keys[one.id]) is None] for video, some in asked_about.items()}
    unasked = {video: some for video, some in new.items() if some}
    todo = [i for i, video in enumerate(source.ids) if video in unasked]
    tick = start(len(todo))
    if todo:
        how = Decoding(max_new_tokens, 0.0)

        def interview(items: Sequence[Item]) -> Dialogue:
            said = yield [Say(turns[item.id], item.id, how, "judge") for item in items]
            return {keys[item.id]: Reply(one.text, one.finish) for item, one in zip(items, said, strict=True)}

        def visit(i: int) -> tuple[Dialogue, Sight]:
            return interview(unasked[source.ids[i]]), Sight(source[i].frames, source.ids[i])

        for _, replies in Engine(policy, collect, [how]).converse([partial(visit, i) for i in todo]):
            log.extend(replies)
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
