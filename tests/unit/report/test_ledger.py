from pathlib import Path

import pytest

from isrdpo_jax.report.ledger import HELD_OUT, baseline_of, ledger
from isrdpo_jax.report.load import Answer, Iteration, Run
from isrdpo_jax.runs.layout import IterationLayout


def run(context, *iterations, dataset="video_qa"):
    made = [Iteration(IterationLayout(Path(), t), (), answers=tuple(answers)) for t, answers in enumerate(iterations)]
    return Run("run", Path(), {"judge": {"context": context}, "data": {"dataset": dataset}}, tuple(made), ())


def test_the_baseline_is_the_judge_without_descriptions():
    ours, fresh, plain = run("retrospective"), run("fresh"), run("none")
    assert baseline_of([ours, plain, fresh]) == 1 and baseline_of([ours, fresh]) == 0


def test_answers_are_joined_by_id_not_by_place():
    ours = run("retrospective", [Answer("a", "v", 4), Answer("b", "w", 9), Answer("only ours", "x", 50)])
    plain = run("none", [Answer("b", "w", 10), Answer("a", "v", 8), Answer("only theirs", "y", 70)])
    (entry,) = ledger(ours, plain)
    assert (entry.test_set, entry.iteration, entry.words.value, entry.words.count) == (HELD_OUT, 0, 21.0, 3)
    assert (entry.more.value, entry.more.count) == (pytest.approx((4 - 8 + 9 - 10) / 2), 2)
    assert entry.more.low <= entry.more.value <= entry.more.high


def test_test_sets_are_apart():
    answers = [Answer("webvid/1", "v", 4), Answer("msvd/1", "w", 9), Answer("webvid/2", "x", 6)]
    found = ledger(run("retrospective", answers, answers, dataset="llava_hound"), None)
    told = [(entry.test_set, entry.iteration, entry.words.value, entry.more) for entry in found]
    assert told == [("msvd", 0, 9.0, None), ("msvd", 1, 9.0, None), ("webvid", 0, 5.0, None), ("webvid", 1, 5.0, None)]


def test_a_baseline_that_stopped_earlier():
    ours = run("retrospective", [Answer("a", "v", 4)], [Answer("a", "v", 6)])
    found = ledger(ours, run("none", [Answer("a", "v", 3)]))
    assert [entry.more and entry.more.value for entry in found] == [1.0, None]
