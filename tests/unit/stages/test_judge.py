"""The judge's rules, proven with judges that always say A, always say B, or know the truth."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.schema import JudgeConfig
from isrdpo_jax.stages.judge import (
    Case,
    Judgement,
    block,
    both_orders,
    decide,
    each_alone,
    judge_by_coin,
    judge_by_letters,
    judge_by_rubric,
    judge_by_text,
    judge_by_truth,
    parse_verdict,
)

PROMPTS = load_prompts()
TRUE, FALSE = "The circle moves left.", "The circle moves right."
# Two videos; the second has one question less. In both orders of "which response is the true one".
CASES = [
    [Case("Where to?", (TRUE, FALSE), "a context"), Case("And then?", (FALSE, TRUE), None)],
    [Case("Where to?", (FALSE, TRUE), "another context"), None],
]
TRUTH = [[0, 1], [1, None]]

Opinion = Callable[[str, str], float]  # (shown as A, shown as B) -> nats in favour of A


def shown(turn: str) -> tuple[str, str]:
    return re.search(r"Response A: (.*)\nResponse B: (.*)\n", turn).groups()


def by_letters(opinion: Opinion, cases=CASES, **settings) -> list[list[Judgement | None]]:
    def judge(case: Case) -> Judgement:
        odds = np.array([opinion(*shown(turn)) for turn in both_orders(case, PROMPTS)])
        logprobs = np.stack([-np.logaddexp(0, -odds), -np.logaddexp(0, odds)], -1)
        return judge_by_letters(logprobs, JudgeConfig(**settings))

    return [[case and judge(case) for case in row] for row in cases]


def by_text(answer: Callable[[str, str], str], cases=CASES, **settings) -> list[list[Judgement | None]]:
    def judge(case: Case) -> Judgement:
        first, second = (answer(*shown(turn)) for turn in both_orders(case, PROMPTS))
        return judge_by_text((first, second), JudgeConfig(mode="text", **settings))

    return [[case and judge(case) for case in row] for row in cases]


def by_rubric(score: Callable[[str], list[float]], cases=CASES, **settings) -> list[list[Judgement | None]]:
    """A judge that gives each response probabilities of the scores 1 to 5."""

    def judge(case: Case) -> Judgement:
        with np.errstate(divide="ignore"):
            said = [np.log(score(re.search(r"Response: (.*)\n", turn)[1])) for turn in each_alone(case, PROMPTS)]
        return judge_by_rubric(said, JudgeConfig(mode="rubric", **settings))

    return [[case and judge(case) for case in row] for row in cases]


def verdicts(judgements) -> list[list[int | None]]:
    return [[one and one.verdict for one in row] for row in judgements]


def reasons(judgements) -> set[str]:
    return {one.reason for row in judgements for one in row if one}


def always_a(a: str, b: str) -> float:
    return 2.0


def always_b(a: str, b: str) -> float:
    return -2.0


def oracle(a: str, b: str) -> float:
    return 1.0 if a == TRUE else -1.0


def letter(opinion: Opinion) -> Callable[[str, str], str]:
    return lambda a, b: "A" if opinion(a, b) > 0 else "B"


@pytest.mark.parametrize("inconsistent", ["average", "drop"])
def test_the_oracle_is_right_in_both_orders_and_both_modes(inconsistent: str):
    letters, text = by_letters(oracle, inconsistent=inconsistent), by_text(letter(oracle), inconsistent=inconsistent)
    assert verdicts(letters) == verdicts(text) == TRUTH
    assert reasons(letters) == reasons(text) == {"ok"}
    for row, truths in zip(letters, TRUTH, strict=True):
        for one, truth in zip(row, truths, strict=True):
            if one:
                sign = 1 if truth == 0 else -1
                np.testing.assert_allclose([*one.log_odds, one.margin], sign * np.ones(3), atol=1e-9)


@pytest.mark.parametrize("opinion", [always_a, always_b])
@pytest.mark.parametrize(("inconsistent", "reason"), [("average", "tie"), ("drop", "inconsistent")])
def test_a_judge_that_names_one_place_only_never_picks_a_winner(opinion: Opinion, inconsistent: str, reason: str):
    for judged in (by_letters(opinion, inconsistent=inconsistent), by_text(letter(opinion), inconsistent=inconsistent)):
        assert reasons(judged) == {reason}
        assert verdicts(judged) == [[None, None], [None, None]]


@pytest.mark.parametrize("bias", [-3.0, 3.0])
def test_averaging_takes_the_bias_of_place_out(bias: float):
    """A judge that says A (or B) every time, but less firmly where it is false, is right after both orders."""

    def biased(a: str, b: str) -> float:
        return bias + 0.5 * oracle(a, b)

    assert verdicts(by_letters(biased)) == TRUTH
    assert reasons(by_letters(biased, inconsistent="drop")) == {"inconsistent"}


def test_a_small_margin_is_a_tie_and_a_margin_at_the_limit_is_not():
    assert reasons(by_letters(oracle, tie_margin=1.1)) == {"tie"}
    assert verdicts(by_letters(oracle, tie_margin=0.9)) == TRUTH
    assert decide((0.5, 0.5), JudgeConfig(tie_margin=0.5)).reason == "ok"
    assert decide((0.5, 0.4), JudgeConfig(tie_margin=0.5)) == Judgement(None, "tie", (0.5, 0.4), 0.45)


def test_an_exact_tie_has_no_winner_without_a_tie_margin():
    assert decide((0.0, 0.0), JudgeConfig()).verdict is None
    assert decide((1.0, -1.0), JudgeConfig()) == Judgement(None, "tie", (1.0, -1.0), 0.0)


@pytest.mark.parametrize("odds", [(np.nan, 1.0), (1.0, np.inf)])
def test_odds_that_are_not_finite_are_invalid(odds: tuple[float, float]):
    assert decide(odds, JudgeConfig()).reason == "invalid"


@pytest.mark.parametrize("said", ["neither", "", "A red circle moves left."])
def test_text_that_names_no_letter_is_invalid_and_not_a_tie(said: str):
    def half(a: str, b: str) -> str:
        return "A" if a == TRUE else said

    for answer in (half, lambda a, b: said):
        judged = by_text(answer)
        assert reasons(judged) == {"invalid"}
        assert verdicts(judged) == [[None, None], [None, None]]
        assert judged[0][0].texts is not None


def test_what_the_text_judge_said_is_kept_in_the_order_of_the_questions():
    judged = by_text(letter(oracle))
    assert [one.texts for row in judged for one in row if one] == [("A", "B"), ("B", "A"), ("B", "A")]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", "A"),
        (" B\n", "B"),
        ("A.", "A"),
        ("(B)", "B"),
        ("(A) because it moves left", None),
        ("B, since", "B"),
        ("A: it moves", "A"),
        ("B is better", "B"),
        ("A\nB", "A"),
        ("", None),
        ("a", None),
        ("Apple", None),
        ("AB", None),
        ("C", None),
        ("A bird flies", None),
        ("Neither A nor B", None),
    ],
)
def test_parse_verdict(text: str, verdict: str | None):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("texts", "finishes", "keep_unfinished", "reason"),
    [
        ((TRUE, FALSE), ("stop", "stop"), False, None),
        ((TRUE, TRUE), ("stop", "stop"), False, "identical"),
        ((TRUE, " "), ("stop", "stop"), False, "empty"),
        (("", ""), ("stop", "stop"), False, "empty"),
        ((TRUE, FALSE), ("stop", "length"), False, "unfinished"),
        ((TRUE, FALSE), ("stop", "length"), True, None),
        (("", ""), ("too_long", "too_long"), True, "too_long"),
    ],
)
def test_what_blocks_a_pair(texts, finishes, keep_unfinished, reason):
    assert block(texts, finishes, keep_unfinished) == reason


def fair(response: str) -> list[float]:
    """Four points for what is true and two for what is false; one time in five it says something else."""
    return [0, 0, 0, 0.8, 0] if response == TRUE else [0, 0.8, 0, 0, 0]


def test_the_higher_score_wins():
    judged = by_rubric(fair)
    assert verdicts(judged) == TRUTH and reasons(judged) == {"ok"}
    assert judged[0][0] == Judgement(
        0, "ok", None, pytest.approx(2), None, pytest.approx((4, 2)), pytest.approx((0.8, 0.8))
    )
    assert judged[0][1].scores == pytest.approx((2, 4)) and judged[0][1].margin == pytest.approx(-2)


def test_a_score_is_the_mean_of_all_that_the_judge_might_say():
    """So responses differ whose likeliest score is the same, and how often it says a score at all has no part in it."""
    judged = by_rubric(lambda response: [0, 0, 0.2, 0.5, 0.3] if response == TRUE else [0, 0.01, 0.02, 0.05, 0.02])
    assert verdicts(judged) == TRUTH
    assert judged[0][0].scores == pytest.approx((4.1, 3.8)) and judged[0][0].said_score == pytest.approx((1.0, 0.1))


def test_equal_scores_are_a_tie_and_a_small_difference_is_one_where_it_is_asked_for():
    assert reasons(by_rubric(lambda response: [0, 0, 1, 0, 0])) == {"tie"}
    assert reasons(by_rubric(fair, tie_margin=2.1)) == {"tie"}
    assert verdicts(by_rubric(fair, tie_margin=1.9)) == TRUTH


@pytest.mark.parametrize("nothing", [[0.0] * 5, [np.nan] * 5])
def test_a_judge_that_cannot_say_a_score_is_invalid_and_not_a_tie(nothing: list[float]):
    for score in (lambda response: nothing, lambda response: nothing if response == TRUE else fair(response)):
        judged = by_rubric(score)
        assert reasons(judged) == {"invalid"} and verdicts(judged) == [[None, None], [None, None]]


SCENE = {
    "objects": [{"colour": "red", "shape": "circle", "direction": "left", "size": "small"}],
    "background": "dark",
}
RIGHT, WRONG = "The red circle moves left.", "The red circle moves up."


def test_the_truth_prefers_what_is_true_and_ties_where_nothing_is_better():
    def verdict(*responses: str, blocked=None) -> tuple[int | None, str]:
        judged = judge_by_truth(Case("What does the red object do?", responses, None, blocked), SCENE)
        return judged.verdict, judged.reason

    assert verdict(RIGHT, WRONG) == (0, "ok") and verdict(WRONG, RIGHT) == (1, "ok")
    assert verdict(f"{RIGHT} The background is grey.", RIGHT) == (1, "ok")
    assert verdict(f"{RIGHT} The background is dark.", RIGHT) == (0, "ok"), "a further fact counts"
    assert verdict(f"{RIGHT} {RIGHT}", RIGHT) == (None, "tie"), "a repetition does not"


def test_the_coin_is_fair_and_falls_the_same_way_twice():
    cases = [Case("Where to?", (RIGHT, WRONG), None) for _ in range(1000)]
    tossed = [judge_by_coin(case, f"question {i}").verdict for i, case in enumerate(cases)]
    assert tossed == [judge_by_coin(case, f"question {i}").verdict for i, case in enumerate(cases)]
    assert np.mean(tossed) == pytest.approx(0.5, abs=0.05)
    swapped = [judge_by_coin(Case("Where to?", (WRONG, RIGHT), None), f"question {i}").verdict for i in range(1000)]
    assert np.mean(np.equal(tossed, swapped)) == pytest.approx(0.5, abs=0.05), "it does not know the responses"


def test_the_rubric_shows_one_response_at_a_time():
    first, second = each_alone(Case("Where to?", (TRUE, FALSE), "a context"), PROMPTS)
    assert TRUE in first and FALSE not in first and "a context" in first and "from 1 to 5" in first
    assert FALSE in second and TRUE not in second and "a context" in second
    assert "Description" not in PROMPTS.rubric("Why?", "So.", None)


def test_each_order_shows_the_context_and_swaps_the_responses():
    for case in CASES[0]:
        first, second = both_orders(case, PROMPTS)
        assert shown(first) == case.responses and shown(second) == case.responses[::-1]
        assert ("a context" in first) is ("a context" in second) is (case.context is not None)
