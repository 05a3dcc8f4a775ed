"""Judging through a real HTTP server that limits, fails, dawdles, lies and dies."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, Handler, completion, refusal

from isrdpo_jax.errors import ConfigError, EndpointDownError, StoppedError
from isrdpo_jax.evaluation import endpoint
from isrdpo_jax.evaluation.endpoint import check_base_url, retry_after
from isrdpo_jax.evaluation.protocols import Item, load_protocol
from isrdpo_jax.evaluation.remote_judge import Judged, judge_remotely
from isrdpo_jax.evaluation.reply_log import ReplyLog
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.schema import EvaluationJudgeConfig

COUNT = 10_000
KEY = "sk-very+secret/0123456789"
GOOD = completion("Explanation: fits.\nScore: 4", prompt_tokens=100, completion_tokens=10)


def items(count: int) -> list[Item]:
    return [
        Item(f"q{i}", f"v{i // 2}", f"Question {i}?", "A cat.", "A cat sits.", f"Answer {i}.") for i in range(count)
    ]


def judged(server: ChatServer, log: Path, asked: list[Item], **settings) -> Judged:
    judge = EvaluationJudgeConfig(kind="endpoint", model="judge", base_url=server.url, **settings)
    how = {"stop": StopSignal(), "start": lambda total: lambda: None, "backoff_s": 0.01}
    return judge_remotely(asked, load_protocol(judge), judge, ReplyLog(log), **how)


def judge_with(handler: Handler, log: Path, count: int = 1, **settings) -> tuple[Judged, ChatServer]:
    with ChatServer(handler) as server:
        return judged(server, log / "replies.jsonl", items(count), **settings), server


def outcomes(found: Judged) -> list[str]:
    return [verdict.outcome for verdict in found.verdicts.values()]


def first_then(*first: Answer) -> Handler:
    """The first answers to every call, one after the other, then a good one."""
    return lambda body, times: first[times] if times < len(first) else GOOD


def test_a_call_is_what_the_protocol_says(tmp_path):
    found, server = judge_with(first_then(), tmp_path)
    (body,) = server.bodies
    assert {key: body[key] for key in body if key != "messages"} == {"model": "judge", "temperature": 0, "top_p": 1}
    assert "Answer 0." in body["messages"][0]["content"]
    assert (found.verdicts["q0"].outcome, found.verdicts["q0"].score) == ("ok", 4)


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(429),
        refusal(500),
        refusal(502),
        refusal(503),
        refusal(408),
        Answer(b"<html>busy</html>"),
        Answer(b""),
        Answer(b'{"error": {"message": "overloaded", "code": 503}}'),
        Answer(b'{"choices": []}'),
        Answer(b"[1]"),
        Answer(b'{"choices": [{"message": {"content": 4}}]}'),
        Answer(b"[" * 50_000),
        Answer(b"", drop=True),
        Answer(b"", delay=0.6),
    ],
)
def test_trouble_that_passes_is_tried_again(tmp_path, trouble):
    found, server = judge_with(first_then(trouble, trouble), tmp_path, count=3, timeout_s=0.3)
    assert outcomes(found) == ["ok"] * 3
    assert found.calls["requests"] == len(server.bodies) == 9


@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [
        (refusal(429), "failed: rate limit"),
        (refusal(500), "failed: server error 500"),
        (Answer(b"<html>"), "failed: not JSON"),
        (Answer(b'{"error": {"message": "no"}}'), "failed: error object"),
        (Answer(b'{"choices": [{}]}'), "failed: not a chat completion"),
        (Answer(b"", drop=True), "failed: no connection"),
        (Answer(b"", delay=0.6), "failed: timeout"),
        (Answer(GOOD.body, drip=0.05), "failed: timeout"),  # always something, never all
    ],
)
def test_trouble_that_stays_has_a_name_and_a_bounded_number_of_tries(tmp_path, trouble, outcome):
    found, server = judge_with(lambda body, times: trouble, tmp_path, attempts=3, timeout_s=0.2)
    assert (outcomes(found), len(server.bodies)) == ([outcome], 3)
    assert (found.verdicts["q0"].score, found.verdicts["q0"].correct) == (None, None)


@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [
        (refusal(400), "failed: refused with 400"),
        (Answer(b" " * (endpoint.LARGEST_BODY + 1)), "failed: reply too large"),
        (refusal(429, Retry_After="100000"), "failed: rate limit"),
    ],
)
def test_what_trying_again_cannot_help_is_not_tried_again(tmp_path, trouble, outcome):
    found, server = judge_with(lambda body, times: trouble, tmp_path)
    assert (outcomes(found), len(server.bodies)) == ([outcome], 1)


@pytest.mark.parametrize("text", [None, "", "Score: 9", "Explanation: x\nScore: 4.8"])
def test_a_reply_that_cannot_be_read_is_kept_and_not_asked_for_again(tmp_path, text):
    handler: Handler = lambda body, times: completion(text)  # noqa: E731
    first, server = judge_with(handler, tmp_path)
    assert outcomes(first)[0].startswith("invalid: ") and len(server.bodies) == 1
    with ChatServer(handler) as server:
        judged(server, tmp_path / "replies.jsonl", items(1))
        calls = judged(server, tmp_path / "replies.jsonl", items(1)).calls
    assert (calls["asked"], calls["from_cache"], len(server.bodies)) == (0, 1, 1)


def test_retry_after_is_waited_for_by_everybody(tmp_path):
    times: list[float] = []

    def handler(body, seen):
        times.append(time.monotonic())
        return refusal(429, Retry_After="0.7") if len(times) == 1 else GOOD

    found, _ = judge_with(handler, tmp_path, count=6, concurrency=1)
    assert outcomes(found) == ["ok"] * 6
    assert times[1] - times[0] >= 0.7
    assert found.calls["requests"] == 7


def test_retry_after_is_read_in_both_forms():
    assert retry_after("3") == 3 and retry_after("-3") == 0
    assert 28 < (retry_after(formatdate(time.time() + 30, usegmt=True)) or 0) <= 30
    assert [retry_after(header) for header in (None, "soon", "nan", "inf")] == [None] * 4


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "check the key in $JUDGE_KEY; it is not set"), (403, "key"), (404, "model"), (302, "url")],
)
def test_a_server_that_refuses_key_address_or_model_stops_at_once(tmp_path, monkeypatch, status, hint):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with ChatServer(lambda body, times: refusal(status, Location="http://127.0.0.1:1/")) as server:
        with pytest.raises(ConfigError, match=str(status)) as error:
            judged(server, tmp_path / "replies.jsonl", items(50), key_variable="JUDGE_KEY", concurrency=2)
        assert hint in str(error.value)
        assert len(server.bodies) <= 2


def test_a_server_that_is_not_there_stops_the_evaluation_and_keeps_what_was_judged(tmp_path):
    with ChatServer(lambda body, times: GOOD if "Question 3?" in str(body) else refusal(500)) as server:
        with pytest.raises(EndpointDownError, match="20 calls in a row failed.*server error 500"):
            judged(server, tmp_path / "replies.jsonl", items(60), attempts=1, concurrency=4)
        server.handler = first_then()
        found = judged(server, tmp_path / "replies.jsonl", items(60))
    assert outcomes(found) == ["ok"] * 60 and found.calls["from_cache"] == 1


def test_failed_calls_are_asked_again_the_next_time_and_only_they(tmp_path):
    with ChatServer(lambda body, times: refusal(500) if "Question 2?" in str(body) else GOOD) as server:
        first = judged(server, tmp_path / "replies.jsonl", items(6), attempts=2)
        assert [outcome for outcome in outcomes(first) if outcome != "ok"] == ["failed: server error 500"]
        server.handler = first_then()
        again = judged(server, tmp_path / "replies.jsonl", items(6))
    assert outcomes(again) == ["ok"] * 6
    assert (again.calls["asked"], again.calls["from_cache"]) == (1, 5)


def test_what_is_the_same_call_is_asked_once(tmp_path):
    twins = [Item(name, "v", "What?", "A cat.", "A cat sits.", "A cat.") for name in ("a", "b", "c")]
    with ChatServer(first_then()) as server:
        found = judged(server, tmp_path / "replies.jsonl", twins)
    assert outcomes(found) == ["ok"] * 3 and len(server.bodies) == 1


def test_the_cache_holds_for_the_same_call_only(tmp_path):
    with ChatServer(first_then()) as server:
        for settings in ({}, {"concurrency": 3, "attempts": 2}, {"protocol": "official"}):
            judged(server, tmp_path / "replies.jsonl", items(4), **settings)
        assert len(server.bodies) == 8
        changed = [Item(**{**item.__dict__, "prediction": item.prediction + "!"}) for item in items(4)]
        judged(server, tmp_path / "replies.jsonl", changed)
        assert len(server.bodies) == 12
    with ChatServer(first_then()) as server:
        judged(server, tmp_path / "replies.jsonl", items(4))
        assert len(server.bodies) == 4


def test_a_torn_last_reply_is_asked_for_again(tmp_path):
    log = tmp_path / "replies.jsonl"
    with ChatServer(first_then()) as server:
        judged(server, log, items(4))
        log.write_bytes(log.read_bytes()[:-20])
        assert judged(server, log, items(4)).calls["asked"] == 1
    assert len(ReplyLog(log)._replies) == 4


def test_items_that_lack_something_are_not_asked_about(tmp_path):
    lacking = [Item("a", "v", "What?", "A cat.", None, "A cat."), Item("b", "v", "What?", "A cat.", "A cat.", None)]
    with ChatServer(first_then()) as server:
        found = judged(server, tmp_path / "replies.jsonl", lacking)
    assert outcomes(found) == ["missing: no caption", "missing: no answer"] and server.bodies == []
    assert found.calls["asked"] == 0


def test_tokens_and_cost_are_those_of_the_replies(tmp_path):
    prices = {"input_price": 2.0, "output_price": 10.0}
    handler: Handler = lambda body, times: completion("Score: 3") if "Question 0?" in str(body) else GOOD  # noqa: E731
    found, _ = judge_with(handler, tmp_path, count=5, **prices)
    assert (found.calls["prompt_tokens"], found.calls["completion_tokens"]) == (400, 40)
    assert found.calls["without_usage"] == 1
    assert found.calls["cost"] == pytest.approx((400 * 2 + 40 * 10) / 1e6)
    assert found.calls["models"] == ["judge-1"]


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(0)
    echo = json.dumps({"error": {"message": f"quota of {KEY} used up"}}).encode()
    told = completion(f"Explanation: your key is {KEY}.\nScore: 4")

    def handler(body, times):
        return Answer(echo, 429) if "Question 0?" in str(body) else told

    found, server = judge_with(handler, tmp_path, count=3, key_variable="JUDGE_KEY", attempts=2)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert outcomes(found) == ["failed: rate limit", "ok", "ok"]
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "your key is [key]" in written
    assert KEY not in written + caplog.text + str(found)
    assert "[key]" in str(found.verdicts["q0"].reply)


def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-se cret")
    with ChatServer(first_then()) as server, pytest.raises(ConfigError, match="JUDGE_KEY") as error:
        judged(server, tmp_path / "replies.jsonl", items(1), key_variable="JUDGE_KEY")
    assert "cret" not in str(error.value)


def test_without_a_key_none_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, server = judge_with(first_then(), tmp_path)
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "address", ["localhost:8000", "ftp://host/v1", "http://", "https://u:p@host/v1", "http://h?k=v"]
)
def test_an_address_that_cannot_be_used_is_refused(address):
    with pytest.raises(ConfigError, match="base_url"):
        check_base_url(address)


def test_ten_thousand_judgements_at_concurrency_64_lose_none(tmp_path):
    """Each is asked once and comes back to its own question, though every tenth is first refused."""

    def handler(body, times):
        number = int(body["messages"][0]["content"].split("Question ")[1].split("?")[0])
        if number % 10 == 0 and times == 0:
            return refusal(503)
        said = completion(f"Explanation: about {number}.\nScore: {1 + number % 5}")
        return replace(said, delay=0.005)  # so that calls pile up

    with ChatServer(handler) as server:
        found = judged(server, tmp_path / "replies.jsonl", items(COUNT), concurrency=64)
    assert {item_id: verdict.score for item_id, verdict in found.verdicts.items()} == {
        f"q{i}": 1 + i % 5 for i in range(COUNT)
    }
    assert all(f"about {i}." in str(found.verdicts[f"q{i}"].reply) for i in range(COUNT))
    assert len(server.bodies) == found.calls["requests"] == COUNT + COUNT // 10
    assert 32 < server.most_at_once <= 64
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == COUNT


def test_a_request_to_stop_ends_between_two_calls(tmp_path):
    stop = StopSignal()
    judge = EvaluationJudgeConfig(kind="endpoint", model="judge", concurrency=1)

    def handler(body, times):
        if len(server.bodies) == 3:
            stop._received = signal.SIGTERM
        return GOOD

    with ChatServer(handler) as server:
        judge = judge.model_copy(update={"base_url": server.url})
        with pytest.raises(StoppedError, match="SIGTERM"):
            log = ReplyLog(tmp_path / "replies.jsonl")
            judge_remotely(items(9), load_protocol(judge), judge, log, stop=stop, start=lambda total: lambda: None)
    assert len(server.bodies) == len(ReplyLog(tmp_path / "replies.jsonl")._replies) == 3
