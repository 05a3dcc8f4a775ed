"""The dialogue about a video, held by hand: what is asked, in which order, and what becomes of the answers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_policy import noise_video

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config, JudgeConfig, SamplingConfig
from isrdpo_jax.stages.collect import Rows, check_judged_video, interview
from isrdpo_jax.stages.dialogue import Completion, Look, Say, Weigh

PROMPTS = load_prompts()
POLICY = SimpleNamespace(prompts=PROMPTS, tokenizer=SimpleNamespace(letter_ids=(5, 6)))
VIDEOS = [noise_video("a"), noise_video("b")]
CONTEXT = Completion("A red circle.", (4, 2), "stop")


def said(text: str, finish: str = "stop") -> Completion:
    return Completion(text, tuple(text.encode()), finish)


def hold(answers: list, previous: str | None = None, **judge) -> tuple[list, Rows]:
    """The dialogue about the first video when it is given these answers: all that was asked, and its rows."""
    config = Config(judge=JudgeConfig(**judge), sampling=SamplingConfig(max_new_tokens=9))
    dialogue = interview(POLICY, VIDEOS, 0, VIDEOS[0], config, previous)
    asked = [next(dialogue)]
    try:
        for answer in answers:
            asked.append(dialogue.send(answer))
    except StopIteration as end:
        assert len(asked) == len(answers)
        return asked, end.value
    raise AssertionError(f"the dialogue waits for an answer to {asked[-1]}")


FOUR = [said("left"), said("right"), said("up"), said("down")]
LETTERS = [np.log([0.8, 0.2]), np.log([0.3, 0.7]), np.log([0.1, 0.9]), np.log([0.6, 0.4])]


def test_two_responses_a_question_and_a_description_come_first_and_then_both_orders():
    (first, second), rows = hold([[*FOUR, CONTEXT], LETTERS], previous="A blue one.")
    assert [(one.record, one.sample, one.purpose) for one in first] == [
        ("a/0", 0, "respond"),
        ("a/0", 1, "respond"),
        ("a/1", 0, "respond"),
        ("a/1", 1, "respond"),
        ("a", 0, "describe"),
    ]
    assert [one.turn for one in first[:2]] == [PROMPTS.answer("What is in part 0?")] * 2
    assert first[4].turn == PROMPTS.describe("A blue one.")
    question = VIDEOS[0].questions[0].text
    assert [one.turn for one in second[:2]] == [
        PROMPTS.judge(question, "left", "right", CONTEXT.text),
        PROMPTS.judge(question, "right", "left", CONTEXT.text),
    ]
    assert {one.candidates for one in second} == {(5, 6)}
    assert [(row["id"], row["verdict"]) for row in rows.judgements] == [("a/0", 0), ("a/1", 1)]
    np.testing.assert_allclose(rows.judgements[0]["log_odds"], [np.log(4), np.log(7 / 3)])
    assert [row["id"] for row in rows.responses] == ["a/0", "a/1"]
    assert [one["text"] for one in rows.responses[0]["responses"]] == ["left", "right"]
    assert rows.descriptions == [
        {"video": "a", "text": "A red circle.", "tokens": [4, 2], "finish": "stop", "previous": "A blue one."}
    ]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((said("same"), said("same")), "identical"),
        ((said("left"), said(" ")), "empty"),
        ((said("left"), said("right", "length")), "unfinished"),
        ((said("", "too_long"), said("", "too_long")), "too_long"),
    ],
)
def test_what_is_blocked_is_not_asked_and_costs_that_record_alone(pair, reason: str):
    (_, second), rows = hold([[*pair, *FOUR[2:], CONTEXT], LETTERS[:2]])
    assert len(second) == 2 and all("up" in one.turn for one in second)
    assert [(row["reason"], row["verdict"]) for row in rows.judgements] == [(reason, None), ("ok", 0)]


def test_where_nothing_is_to_be_judged_nothing_is_asked():
    asked, rows = hold([[said("x"), said("x"), said("y"), said("y"), CONTEXT]])
    assert len(asked) == 1 and {row["reason"] for row in rows.judgements} == {"identical"}


def test_a_description_that_could_not_be_made_costs_the_pairs_of_that_video():
    _, rows = hold([[*FOUR, said("", "too_long")]], previous="word " * 9)
    assert {row["reason"] for row in rows.judgements} == {"no_context"}
    assert rows.descriptions[0]["finish"] == "too_long"


@pytest.mark.parametrize("previous", [None, ""])
def test_without_a_former_description_it_is_described_afresh(previous: str | None):
    (first, _), _ = hold([[*FOUR, CONTEXT], LETTERS], previous=previous)
    assert first[-1].turn == PROMPTS.describe(None) and "None" not in first[-1].turn


def test_a_fresh_context_does_not_look_back_and_none_is_not_described():
    (first, _), _ = hold([[*FOUR, CONTEXT], LETTERS], previous="A blue one.", context="fresh")
    assert first[-1].turn == PROMPTS.describe(None)
    (bare, second), rows = hold([FOUR, LETTERS], context="none")
    assert len(bare) == 4 and rows.descriptions == []
    assert second[0].turn == PROMPTS.judge(VIDEOS[0].questions[0].text, "left", "right", None)


def test_a_verdict_that_does_not_fit_is_too_long_and_the_others_count():
    _, rows = hold([[*FOUR, CONTEXT], [None, LETTERS[1], *LETTERS[2:]]])
    assert [row["reason"] for row in rows.judgements] == ["too_long", "ok"]
    text = [said("A"), said("B"), said("", "too_long"), said("A")]
    (_, second), rows = hold([[*FOUR, CONTEXT], text], mode="text")
    assert all(isinstance(one, Say) and one.purpose == "judge" for one in second)
    assert [one.sample for one in second] == [0, 1, 0, 1]
    assert [row["reason"] for row in rows.judgements] == ["ok", "too_long"]


def test_controls_show_the_judge_something_else():
    for video, frames in (("blank", np.zeros_like(VIDEOS[0].frames)), ("shuffled", VIDEOS[1].frames)):
        (first, look, second), _ = hold([[*FOUR, CONTEXT], [], LETTERS], video=video)
        assert isinstance(first[0], Say) and isinstance(second[0], Weigh)
        assert isinstance(look, Look)
        np.testing.assert_array_equal(look.sight.frames, frames)


def test_another_video_needs_another_video():
    with pytest.raises(DataError, match="only one"):
        check_judged_video(VIDEOS[:1], JudgeConfig(video="shuffled"))
    check_judged_video(VIDEOS, JudgeConfig(video="shuffled"))
