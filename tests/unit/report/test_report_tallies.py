import dataclasses
from pathlib import Path

import pytest

from isrdpo_jax.data.shapes_world.revision import Revision
from isrdpo_jax.report.load import Description, Iteration, Judgement
from isrdpo_jax.report.retrospection import Rewriting
from isrdpo_jax.report.tallies import Share, judge_panel, lengths, pair_counts, retrospection, same_verdict, speed
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.stages.tally import Tally


def judgement(id, log_odds=(), verdict=None, reason="ok", words=None, better=None):
    margin = sum(log_odds) / len(log_odds) if log_odds else None
    return Judgement(id, "v", "why?", tuple(log_odds), margin, verdict, reason, words, better)


def iteration(judgements=(), pairs=None, descriptions=()):
    return Iteration(IterationLayout(Path("iter_01"), 1), (), tuple(judgements), tuple(descriptions), pairs)


def test_a_judge_that_always_says_a_flips_always():
    # y1 is A in order 1 (log-odds for y1 positive) and B in order 2 (negative).
    panel = judge_panel([judgement(str(i), (2.0, -2.0), reason="tie") for i in range(4)])
    assert (panel.flips.value, panel.says_a.value, panel.ties.value) == (1.0, 1.0, 1.0)
    assert (panel.judged, panel.says_a.count) == (4, 8)


def test_a_judge_that_always_says_b():
    panel = judge_panel([judgement("0", (-2.0, 2.0), reason="tie")])
    assert (panel.flips.value, panel.says_a.value) == (1.0, 0.0)


def test_a_judge_that_looks_at_the_responses():
    panel = judge_panel([judgement("0", (1.0, 2.0), 0), judgement("1", (-1.0, -2.0), 1)])
    assert (panel.flips.value, panel.says_a.value, panel.margin.value) == (0.0, 0.5, 1.5)


def test_longer_wins_counts_decided_pairs_of_unequal_length():
    panel = judge_panel(
        [
            judgement("long", (1.0, 1.0), 0, words=(9, 4)),
            judgement("short", (1.0, 1.0), 0, words=(4, 9)),
            judgement("short too", (-1.0, -1.0), 1, words=(9, 4)),
            judgement("equal", (1.0, 1.0), 0, words=(5, 5)),
            judgement("tie", (0.0, 0.0), None, "tie", words=(5, 9)),
        ]
    )
    assert panel.longer_wins.value == pytest.approx(1 / 3)
    assert panel.longer_wins.count == 3


def test_what_was_not_asked_is_no_verdict():
    panel = judge_panel([judgement("0", reason="identical"), judgement("1", reason="invalid")])
    assert panel.judged == 1
    assert (panel.invalid.value, panel.flips.value, panel.flips.count) == (1.0, None, 0)


def test_right_counts_verdicts_where_one_response_is_better():
    judged = [
        judgement("right", (1.0, 1.0), 0, better=0),
        judgement("wrong", (1.0, 1.0), 0, better=1),
        judgement("wrong too", (-1.0, -1.0), 1, better=0),
        judgement("equal", (1.0, 1.0), 0),
        judgement("tie", (0.0, 0.0), None, "tie", better=1),
    ]
    assert judge_panel(judged).right == Share(1 / 3, 3)


def test_same_verdict_joins_by_id():
    ours = [judgement("a", (1.0, 1.0), 0), judgement("b", (1.0, 1.0), 0), judgement("c", (1.0, 1.0), 0)]
    theirs = [judgement("b", (1.0, 1.0), 1), judgement("a", (1.0, 1.0), 0), judgement("c", reason="tie")]
    assert same_verdict(ours, theirs) == Share(0.5, 2)
    assert same_verdict(ours, []) == Share(None, 0)


def test_retrospection_counts_descriptions_that_saw_one_before():
    described = [
        Description("first", 3, False),
        Description("same", 2, False, 0.0, Rewriting(2, 2, kept=1), Revision(kept_right=2)),
        Description("new", 4, False, 0.5, Rewriting(3, 4, reworded=1, added=1), Revision(corrected=1, added_wrong=1)),
    ]
    found = retrospection(iteration(descriptions=described))
    assert (found.descriptions, found.unchanged) == (2, Share(0.5, 2))
    assert found.rewriting == Rewriting(5, 6, kept=1, reworded=1, added=1)
    assert found.revision == Revision(kept_right=2, corrected=1, added_wrong=1)
    assert (found.revision.before, found.revision.after) == ((2, 3), (3, 4))
    assert retrospection(iteration(descriptions=described[:1])).revision is None
def test_scores_are_verdicts_without_orders():
    scored = [
        Judgement("0", "v", "why?", (), 1.5, 0, "ok", (3, 4)),
        Judgement("1", "v", "why?", (), 0.0, None, "tie", (3, 4)),
    ]
    panel = judge_panel([*scored, judgement("2", reason="identical")])
    assert (panel.judged, panel.ties.value, panel.margin.value, panel.flips.count) == (2, 0.5, 0.75, 0)


def test_pair_counts_add_up():
    judged = [judgement("0", (1.0, 1.0), 0), judgement("1", (1.0, 1.0), 0), judgement("2", reason="tie")]
    judged.append(judgement("3", reason="unheard of"))
    counts = pair_counts(iteration(judged, pairs=(("0", 3, 4),)))
    assert (counts.questions, counts.kept, counts.reasons["tie"], counts.other) == (4, 1, 1, 2)
    assert counts.kept + sum(counts.reasons.values()) + counts.other == counts.questions
    assert pair_counts(iteration(judged)).kept is None


def test_lengths():
    ledger = lengths(
        iteration(
            pairs=(("0", 12, 10), ("1", 6, 2)),
            descriptions=(Description("v", 8, False, None), Description("w", 10, True, 0.5)),
        )
    )
    assert (ledger.chosen, ledger.rejected, ledger.ratio) == (9.0, 6.0, 1.5)
    assert (ledger.description.value, ledger.cut.value, ledger.cut.count) == (9.0, 0.5, 2)
    assert lengths(iteration()).ratio is None


def test_speed_is_that_of_all_sessions_of_a_stage_together():
    sessions = (("collect", Tally(slot_steps=100, decoded=20, seconds=4.0)), ("evaluate", Tally(videos=3, prefills=3)))
    more = ("collect", Tally(slot_steps=300, decoded=180, seconds=1.0))
    figures = speed(dataclasses.replace(iteration(), speed=(*sessions, more)))
    assert list(figures) == ["collect", "evaluate"]
    assert (figures["collect"]["slot_use"], figures["collect"]["tokens_per_second"]) == (0.5, 40.0)
    assert figures["evaluate"]["prefills_per_video"] == 1.0
    assert speed(iteration()) == {}
