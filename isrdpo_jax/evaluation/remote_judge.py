"""Judging through an endpoint: many calls at a time, each question asked once, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isrdpo_jax.errors import EndpointDownError
from isrdpo_jax.evaluation.endpoint import Endpoint, Failure, check_base_url
from isrdpo_jax.evaluation.protocols import Item, Protocol
from isrdpo_jax.evaluation.reply_log import Reply, ReplyLog, call_key
from isrdpo_jax.evaluation.verdicts import Verdict, read_reply
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.schema import EvaluationJudgeConfig

_HOPELESS = 20  # so many calls in a row that failed for good: nobody is there


@dataclass(frozen=True)
class Judged:
    """Verdicts by the items' ids, and what they took (`calls`, JSON)."""

    verdicts: dict[str, Verdict]
    calls: dict[str, Any]


def judge_remotely(
    items: Sequence[Item],
    protocol: Protocol,
    judge: EvaluationJudgeConfig,
    log: ReplyLog,
    *,
    stop: StopSignal,
    start: Callable[[int], Callable[[], None]],
    backoff_s: float = 1.0,
) -> Judged:
    """Asks for a verdict on every item. Calls that failed are not kept: the next evaluation tries them again.

    Args:
        log: replies that are there are not asked for again.
        start: is told how many calls there are to make, and returns what is to be called behind each.
        backoff_s: first pause between two tries, seconds; it doubles.

    Raises:
        ConfigError: the server refuses the key, the address or the model.
        StoppedError: a signal came. EndpointDownError: one call after another failed. What was judged is kept.
    """
    verdicts = {item.id: Verdict(f"missing: {what}") for item in items if (what := protocol.missing(item))}
    calls = {item.id: request(protocol, judge, item) for item in items if item.id not in verdicts}
    keys = {item_id: _key(judge, call) for item_id, call in calls.items()}
    todo = {keys[item_id]: call for item_id, call in calls.items() if log.get(keys[item_id]) is None}
    cached = len(set(keys.values())) - len(todo)
    failures, tries = asyncio.run(_ask(todo, judge, log, stop, start(len(todo)), backoff_s)) if todo else ({}, 0)
    stop.check()
    for item_id, key in keys.items():
        reply = log.get(key)
        if reply is not None:
            verdicts[item_id] = read_reply(protocol.form, reply.text, reply.finish)
        else:
            verdicts[item_id] = Verdict(f"failed: {failures[key].reason}", reply=failures[key].detail)
    replies = [reply for key in set(keys.values()) if (reply := log.get(key)) is not None]
    return Judged(verdicts, {"asked": len(todo), "from_cache": cached, "requests": tries, **usage(replies, judge)})


def request(protocol: Protocol, judge: EvaluationJudgeConfig, item: Item) -> dict[str, Any]:
    """The body of a call: greedy, and no limit on the reply's length, as the protocols ask."""
    return {"model": judge.model, "messages": protocol.messages(item), "temperature": 0, "top_p": 1}


def usage(replies: Sequence[Reply], judge: EvaluationJudgeConfig) -> dict[str, Any]:
    """Tokens of the replies as the server counted them, what they cost, and which models answered."""
    counted = [
        (reply.prompt_tokens, reply.completion_tokens)
        for reply in replies
        if reply.prompt_tokens is not None and reply.completion_tokens is not None
    ]
    prompt, completion = sum(one for one, _ in counted), sum(one for _, one in counted)
    priced = judge.input_price is not None and judge.output_price is not None
    cost = (prompt * (judge.input_price or 0) + completion * (judge.output_price or 0)) / 1e6 if priced else None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "without_usage": len(replies) - len(counted),
        "cost": cost,
        "models": sorted({reply.model for reply in replies if reply.model}),
    }


def _key(judge: EvaluationJudgeConfig, call: Mapping[str, Any]) -> str:
    return call_key({"url": check_base_url(judge.base_url), "body": call})


async def _ask(
    todo: Mapping[str, Mapping[str, Any]],
    judge: EvaluationJudgeConfig,
    log: ReplyLog,
    stop: StopSignal,
    tick: Callable[[], None],
    backoff_s: float,
) -> tuple[dict[str, Failure], int]:
    """Makes all calls; returns the failures by key, and the number of requests sent."""
    failures: dict[str, Failure] = {}
    waiting = iter(todo.items())  # shared by the workers
    in_a_row = 0
    writing, unwritten = asyncio.Lock(), dict[str, Reply]()

    async def keep(key: str, reply: Reply) -> None:
        """On disk on return; whoever holds the lock writes for all that wait, with one sync."""
        unwritten[key] = reply
        async with writing:
            if key in unwritten:
                replies = dict(unwritten)
                unwritten.clear()
                await asyncio.to_thread(log.extend, replies)

    async def work(endpoint: Endpoint) -> None:
        nonlocal in_a_row
        for key, call in waiting:
            if stop.requested:
                return
            outcome = await endpoint.ask(call)
            if isinstance(outcome, Reply):
                in_a_row = 0
                await keep(key, outcome)
            else:
                failures[key] = outcome
                in_a_row += outcome.again
                if in_a_row >= _HOPELESS:
                    raise EndpointDownError(
                        f"{judge.base_url}: {in_a_row} calls in a row failed (the last: {outcome.reason}, "
                        f"{outcome.detail!r}). What was judged is kept; run the same command again when it answers."
                    )
            tick()

    async with Endpoint(judge, backoff_s) as endpoint:
        workers = [asyncio.create_task(work(endpoint)) for _ in range(min(judge.concurrency, len(todo)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return failures, endpoint.tries
