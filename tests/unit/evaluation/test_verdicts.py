"""Replies are read strictly: one reading, or a named reason."""

import pytest

from isrdpo_jax.evaluation.verdicts import LONGEST_REPLY, read_reply


@pytest.mark.parametrize(
    ("text", "score", "correct"),
    [
        ("Explanation: It fits.\nScore: 4", 4, True),
        ("Explanation: It fits.\nScore:3", 3, True),
        ("Explanation: 45 people, of which 2 are seen.\n\n**Score:** 2", 2, False),
        ("**Explanation:** Good.\n**Score: 5**", 5, True),
        ("score: 1/5", 1, False),
        ("Explanation: x\nScore: 3.", 3, True),
        ("Explanation: x\r\nScore: 4\r\n", 4, True),
    ],
)
def test_a_caption_graded_reply_has_one_score(text, score, correct):
    verdict = read_reply("caption", text)
    assert (verdict.outcome, verdict.score, verdict.correct, verdict.reply) == ("ok", score, correct, text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("It is a good answer.", "no score"),
        ("**4**", "no score"),
        ("Explanation: x\nScore: four", "no score"),
        ("Explanation: x\nScore:", "no score"),
        ("Explanation: x\nScore: 45", "score out of range"),
        ("Explanation: x\nScore: 0", "score out of range"),
        ("Explanation: x\nScore: 6", "score out of range"),
        ("Explanation: x\nScore: -1", "score out of range"),
        ("Explanation: x\nScore: " + "4" * 5000, "score out of range"),
        ("Explanation: x\nScore: 4.8", "score not a whole number"),
        ("Explanation: x\nScore: 4.0", "score not a whole number"),
        ("Explanation: x\nScore: 4,5", "score not a whole number"),
        ("Explanation: x\nScore: 3-4", "several scores"),
        ("Explanation: x\nScore: 4/10", "several scores"),
        ("Explanation: x\nScore: 4 because it fits", "score among other words"),
        ("Explanation: x\nScore: 4\nScore: 2", "several scores"),
        ("Explanation: it deserves Score: 2, or so\nScore: 4", "score inside the explanation"),
        ("Explanation: a clear Score: 4", "score inside the explanation"),
        ("Explanation: x\nScore: ٤", "no score"),
        ("x" * (LONGEST_REPLY + 1), "too long"),
    ],
)
def test_what_is_no_caption_graded_verdict_has_a_reason(text, reason):
    verdict = read_reply("caption", text)
    assert (verdict.outcome, verdict.score, verdict.correct) == (f"invalid: {reason}", None, None)


@pytest.mark.parametrize(
    ("text", "score", "correct"),
    [
        ('{"pred": "yes", "score": 4}', 4, True),
        ("{'pred': 'no', 'score': 0}", 0, False),
        ('```json\n{"pred": "Yes", "score": "5"}\n```', 5, True),
        (" {'score': 1, 'pred': 'no',}\n", 1, False),
    ],
)
def test_an_official_reply_is_one_object(text, score, correct):
    verdict = read_reply("official", text)
    assert (verdict.outcome, verdict.score, verdict.correct) == ("ok", score, correct)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Yes, I think so. 4", "not the form that was asked for"),
        ("Here it is: {'pred': 'yes', 'score': 4}", "not the form that was asked for"),
        ("{'pred': 'yes', 'score': 4", "not the form that was asked for"),
        ("{}", "not the form that was asked for"),
        ("yes {'pred': 'no', 'score': 4}", "both answers"),
        ("{'pred': 'yes', 'score': 4}{'pred': 'no', 'score': 1}", "both answers"),
        ("{'pred': 'yes', 'pred': 'no', 'score': 4}", "both answers"),
        ("{'pred': 'yes/no', 'score': 4}", "both answers"),
        ("{'pred': 'maybe', 'score': 4}", "no answer"),
        ("{'pred': 'yesterday', 'score': 4}", "no answer"),
        ("{'score': 4}", "no answer"),
        ("{'pred': 'yes'}", "no score"),
        ("{'pred': 'yes', 'score': null}", "no score"),
        ("{'pred': 'yes', 'score': 4.8}", "score not a whole number"),
        ("{'pred': 'yes', 'score': 6}", "score out of range"),
        ("{'pred': 'yes', 'score': -1}", "score out of range"),
        ("{'pred': 'yes', 'score': 4, 'score': 5}", "several scores"),
    ],
)
def test_what_is_no_official_verdict_has_a_reason(text, reason):
    verdict = read_reply("official", text)
    assert (verdict.outcome, verdict.score, verdict.correct) == (f"invalid: {reason}", None, None)


@pytest.mark.parametrize("form", ["caption", "official"])
@pytest.mark.parametrize(("finish", "reason"), [("length", "cut off"), ("content_filter", "withheld by a filter")])
def test_a_reply_that_did_not_end_by_itself_is_not_read(form, finish, reason):
    assert read_reply(form, "Explanation: x\nScore: 4", finish).outcome == f"invalid: {reason}"
