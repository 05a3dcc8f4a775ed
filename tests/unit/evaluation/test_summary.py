"""Figures are ratios of sums with their denominators."""

import pytest

from isrdpo_jax.evaluation.summary import summarise_heldout, summarise_iteration


def answer(video: str, text: str, **grade) -> dict:
    row = {"id": video, "video": video, "text": text, "finish": "stop"}
    return row | ({"grade": grade} if grade else {})


def test_false_share_is_false_statements_over_statements_not_a_mean_of_shares():
    answers = [
        answer("a", "one two", core=True, statements=1, false=1, words=2),
        answer("b", "one two three four", core=False, statements=3, false=0, words=4),
    ]
    descriptions = [{"video": "a", "text": "x", "finish": "stop", "grade": {"right": 3, "total": 4}}]
    figures = summarise_heldout(answers, descriptions, samples=50)
    assert figures["false_share"]["value"] == pytest.approx(1 / 4) and figures["false_share"]["count"] == 4
    assert figures["false_per_answer"]["value"] == pytest.approx(1 / 2)
    assert figures["accuracy"]["value"] == pytest.approx(1 / 2) and figures["accuracy"]["count"] == 2
    assert figures["words"]["value"] == pytest.approx(3)
    assert figures["description_accuracy"]["value"] == pytest.approx(3 / 4)


def test_without_truth_only_lengths_are_reported():
    figures = summarise_heldout([answer("a", "one two")], [], samples=50)
    assert set(figures) == {"words", "unfinished"}


def test_length_ratio_is_chosen_words_over_rejected_words():
    pairs = [
        {"video": "a", "chosen": "one", "rejected": "one two three"},
        {"video": "b", "chosen": "one two three", "rejected": "one"},
    ]
    figures = summarise_iteration(pairs, [], [], samples=50)
    assert figures["length_ratio"]["value"] == pytest.approx(1.0)
    assert figures["chosen_words"]["value"] == pytest.approx(2.0)
    assert figures["judge_accuracy"] == {"value": None, "count": 0, "low": None, "high": None}
