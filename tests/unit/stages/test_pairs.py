"""Pairs are joined by id, and everything that gives none has a counted reason."""

from __future__ import annotations

import random

import pytest

from isrdpo_jax.errors import DataError
from isrdpo_jax.stages.pairs import build_pairs


def response(question: str) -> dict:
    both = [{"text": f"{question} says {i}", "tokens": [10 + i, 2], "finish": "stop"} for i in (0, 1)]
    return {"id": question, "video": f"video of {question}", "question": f"{question}?", "responses": both}


def judgement(question: str, verdict: int | None, reason: str = "ok", margin: float | None = 1.5) -> dict:
    return {"id": question, "verdict": verdict, "reason": reason, "margin": margin}


RESPONSES = [response(question) for question in "abcdef"]
JUDGEMENTS = [
    judgement("a", 0),
    judgement("b", 1, margin=-0.5),
    judgement("c", None, "tie", 0.0),
    judgement("d", None, "identical", None),
    judgement("e", 1, margin=-2.0),
    judgement("f", None, "tie", 0.0),
]


def test_the_chosen_response_is_the_verdicts():
    pairs, _ = build_pairs(RESPONSES, JUDGEMENTS)
    assert [(pair["id"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("a", "a says 0", "a says 1"),
        ("b", "b says 1", "b says 0"),
        ("e", "e says 1", "e says 0"),
    ]
    assert [(pair["chosen_tokens"], pair["rejected_tokens"]) for pair in pairs] == [
        ([10, 2], [11, 2]),
        ([11, 2], [10, 2]),
        ([11, 2], [10, 2]),
    ]
    assert [pair["margin"] for pair in pairs] == [1.5, 0.5, 2.0]  # of the winner over the loser
    assert all((pair["video"], pair["question"]) == (f"video of {pair['id']}", f"{pair['id']}?") for pair in pairs)


def test_what_gives_no_pair_is_counted_by_reason():
    _, counts = build_pairs(RESPONSES, JUDGEMENTS)
    assert counts == {"kept": 3, "identical": 1, "tie": 2}
    assert sum(counts.values()) == len(RESPONSES)


def test_the_order_of_the_judgements_does_not_matter():
    for seed in range(5):
        shuffled = random.Random(seed).sample(JUDGEMENTS, len(JUDGEMENTS))
        assert build_pairs(RESPONSES, shuffled) == build_pairs(RESPONSES, JUDGEMENTS)


def test_pairs_come_in_the_order_of_the_responses():
    pairs, counts = build_pairs(RESPONSES[::-1], JUDGEMENTS)
    assert [pair["id"] for pair in pairs] == ["e", "b", "a"]
    assert counts["kept"] == 3


def test_a_response_without_a_judgement_is_an_error():
    with pytest.raises(DataError, match="question b: it was answered but not judged"):
        build_pairs(RESPONSES, [JUDGEMENTS[0], *JUDGEMENTS[2:]])


def test_no_pair_at_all_is_an_error_that_says_why():
    with pytest.raises(DataError, match=r"0 of 3 questions gave a pair \(identical 1, tie 2\).*sampling\.temperature"):
        build_pairs([RESPONSES[i] for i in (2, 3, 5)], JUDGEMENTS)
    with pytest.raises(DataError, match="0 of 0 questions"):
        build_pairs([], [])
