"""The settings of an iteration, each in a whole run: what the policies are asked, and what comes of it."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from rich.console import Console
from tiny_run import ITERATIONS, QUESTIONS, VIDEOS, Lab, Ran, records, rows, weights

from isrdpo_jax.config import load_config
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.evaluation.rejudge import rejudge
from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.layout import STAGES, IterationLayout
from isrdpo_jax.runs.manifest import load_manifest
from isrdpo_jax.stages.questions import score_response
from isrdpo_jax.weights.policy_folder import find_policy

PROMPTS = load_prompts()
ONCE = ("run.iterations=1", "evaluation.enabled=false")


def texts(one: IterationLayout) -> dict[str, str]:
    """Descriptions by video."""
    return {row["video"]: row["text"] for row in rows(one, "descriptions")}


def judge_turns(run: Ran, iterations: int) -> list[str]:
    """What the judge is to be asked, from the records: both orders of every pair that it saw, with the context."""
    turns = []
    for t in range(1, iterations + 1):
        one = run.layout.iteration(t)
        for asked, judged in zip(rows(one, "responses"), rows(one, "judgements"), strict=True):
            if judged["log_odds"]:
                first, second = (said["text"] for said in asked["responses"])
                turns += [
                    PROMPTS.judge(asked["question"], *order, judged["context"])
                    for order in ((first, second), (second, first))
                ]
    return turns


def same_answers(run: Ran, other: Ran) -> bool:
    one, two = run.layout.iteration(1), other.layout.iteration(1)
    return rows(one, "responses") == rows(two, "responses")


def log_odds(run: Ran) -> np.ndarray:
    """float[n, 2] of the first iteration; NaN where nothing was judged."""
    return np.array([row["log_odds"] or [np.nan] * 2 for row in rows(run.layout.iteration(1), "judgements")])


def test_retrospection_shows_the_former_description(retrospective):
    first, second = (retrospective.run.layout.iteration(t) for t in (1, 2))
    assert [row["previous"] for row in rows(first, "descriptions")] == [None] * VIDEOS
    former = texts(first)
    assert {row["video"]: row["previous"] for row in rows(second, "descriptions")} == former
    assert [turn for t, turn in retrospective.described if t == 1] == [PROMPTS.describe(None)] * VIDEOS
    assert [turn for t, turn in retrospective.described if t == 2] == [
        PROMPTS.describe(former[video] or None) for video in texts(second)
    ]
    for one in (first, second):
        assert {row["video"]: row["context"] for row in rows(one, "judgements")} == texts(one)
    assert sorted(retrospective.judged) == sorted(judge_turns(retrospective.run, ITERATIONS))


def test_fresh_never_shows_it(retrospective, listen):
    fresh = listen("fresh", "judge.context=fresh", "evaluation.enabled=false")
    assert [turn for _, turn in fresh.described] == [PROMPTS.describe(None)] * VIDEOS * ITERATIONS
    first, second = (fresh.run.layout.iteration(t) for t in (1, 2))
    assert texts(first) == texts(retrospective.run.layout.iteration(1))
    assert texts(second) != texts(retrospective.run.layout.iteration(2))
    assert {row["video"]: row["context"] for row in rows(second, "judgements")} == texts(second)


def test_self_rewarding_describes_nothing_and_judges_without_context(retrospective, listen):
    bare = listen("bare", "judge.context=none", *ONCE)
    one = bare.run.layout.iteration(1)
    assert bare.described == [] and rows(one, "descriptions") == []
    assert {row["context"] for row in rows(one, "judgements")} == {None}
    assert sorted(bare.judged) == sorted(judge_turns(bare.run, 1)) and bare.judged
    assert same_answers(bare.run, retrospective.run)


def test_verdicts_by_text(retrospective, listen):
    run = listen("text", "judge.mode=text", *ONCE).run
    assert same_answers(run, retrospective.run)
    judged = [row for row in rows(run.layout.iteration(1), "judgements") if "texts" in row]
    for row in judged:
        letters = [re.match(r"[AB](?=[.,:;\n]|$)", text.strip()) for text in row["texts"]]
        if all(letters):
            points = sum(1 if letter[0] == favours else -1 for letter, favours in zip(letters, "AB", strict=True))
            expected = ("tie", None) if points == 0 else ("ok", 0 if points > 0 else 1)
        else:
            expected = ("invalid", None)
        assert (row["reason"], row["verdict"]) == expected, row["texts"]
    assert {"ok", "tie"} <= {row["reason"] for row in judged}  # what is invalid depends on the weights
    assert len(read_jsonl(run.layout.iteration(1).pairs)) == sum(row["reason"] == "ok" for row in judged)


def test_verdicts_by_a_score_for_each_response(lab: Lab, retrospective, one_device, tmp_path):
    # The packaged rubric is longer than the tiny policy's context window.
    (tmp_path / "rubric.txt").write_text("Description: {context}\nQuestion: {question}\nResponse: {response}\nPoints?")
    run = lab.run("rubric", "judge.mode=rubric", f"prompts.dir={tmp_path}", *ONCE)
    assert same_answers(run, retrospective.run)
    one, prompts = run.layout.iteration(1), load_prompts(str(tmp_path))
    scored = [row for row in rows(one, "judgements") if "scores" in row]
    assert len(scored) > QUESTIONS / 4
    for row in scored:
        first, second = row["scores"]
        assert 1 <= min(first, second) <= max(first, second) <= 5 and row["log_odds"] is None
        assert (row["verdict"], row["margin"]) == (0 if first > second else 1, first - second)
    assert len(read_jsonl(one.pairs)) == sum(row["verdict"] is not None for row in rows(one, "judgements"))

    judged = scored[0]
    (asked,) = (row for row in rows(one, "responses") if row["id"] == judged["id"])
    (video,) = lab.root.glob(f"data/*/videos/train_*/{judged['video']}.mp4")
    turn = prompts.rubric(asked["question"], asked["responses"][1]["text"], judged["context"])
    of_each = [score_response(str(run.layout.root / "iter_00"), video, turn, str(n))["per_token"] for n in range(1, 6)]
    said = np.exp([one[-2] for one in of_each])  # the last one is EOS
    np.testing.assert_allclose(said.sum(), judged["said_score"][1], rtol=1e-4)
    np.testing.assert_allclose(said @ np.arange(1, 6) / said.sum(), judged["scores"][1], rtol=1e-4)


def test_verdicts_of_a_coin_ask_no_policy(retrospective, listen):
    coin = listen("coin", "judge.mode=random", "judge.context=none", *ONCE)
    assert coin.judged == coin.described == [] and same_answers(coin.run, retrospective.run)
    one = coin.run.layout.iteration(1)
    verdicts = [row["verdict"] for row in rows(one, "judgements") if row["reason"] == "ok"]
    assert set(verdicts) == {0, 1} and len(read_jsonl(one.pairs)) == len(verdicts)


def test_the_true_description_is_the_data_sets(lab: Lab, retrospective, listen):
    told = listen("told", "judge.context=truth", *ONCE)
    one = told.run.layout.iteration(1)
    assert told.described == [] and rows(one, "descriptions") == [] and same_answers(told.run, retrospective.run)
    config = load_config(told.run.layout.config).config
    truths = {video.id: language.describe(video.truth) for video in open_split(config, "train", num_frames=4)}
    assert {row["video"]: row["context"] for row in rows(one, "judgements")} == truths
    assert sorted(told.judged) == sorted(judge_turns(told.run, 1)) and told.judged


@pytest.mark.parametrize("video", ["blank", "shuffled"])
def test_the_controls_change_what_the_judge_sees_and_nothing_else(
    lab: Lab, retrospective, listen, one_device, video: str
):
    run = listen(video, f"judge.video={video}", *ONCE).run
    assert same_answers(run, retrospective.run)
    assert texts(run.layout.iteration(1)) == texts(retrospective.run.layout.iteration(1))
    seen, control = log_odds(retrospective.run), log_odds(run)
    np.testing.assert_array_equal(np.isnan(seen), np.isnan(control))
    assert (np.abs(seen - control)[~np.isnan(seen)] > 1e-5).mean() > 0.8
    again = rejudge(retrospective.run.layout.root, 1, [f"judge.video={video}"], Console(quiet=True))
    np.testing.assert_allclose(
        [row["log_odds"] or [np.nan] * 2 for row in again["rows"]], control, rtol=1e-4, atol=1e-5
    )


def test_a_run_may_stop_behind_each_stage(lab: Lab, retrospective, one_device):
    for done, stage in enumerate(STAGES[:-1], 1):
        one = lab.run("staged", until=stage).layout.iteration(1)
        assert [one.manifest(each).exists() for each in STAGES] == [True] * done + [False] * (5 - done)
    assert not lab.layout("staged").iteration(2).root.exists()
    assert records(lab.run("staged").layout) == records(retrospective.run.layout)


def test_another_process_makes_the_same_run(finished: Ran, retrospective):
    one, two = finished.layout.iteration(1), retrospective.run.layout.iteration(1)
    assert rows(one, "responses") == rows(two, "responses") and texts(one) == texts(two)
    assert [pair["chosen"] for pair in read_jsonl(one.pairs)] == [pair["chosen"] for pair in read_jsonl(two.pairs)]


def test_a_later_goal_goes_on_and_old_policies_are_collected(lab: Lab, retrospective, one_device):
    short = lab.run("longer", "run.iterations=1", "checkpoint.keep_policies=1").layout
    assert len(short.iterations()) == 2
    for goal in (2, 3, 3):
        long = lab.run("longer", f"run.iterations={goal}", "checkpoint.keep_policies=1").layout
    kept = [one.index for one in long.iterations() if one.checkpoint.exists()]
    assert kept == [0, 2, 3] and find_policy(str(long.root)).parameters == long.iteration(3).checkpoint
    first_two = {name: text for name, text in records(long).items() if not name.startswith("iter_03")}
    assert first_two == records(retrospective.run.layout)


def test_the_first_policy_as_reference(lab: Lab, retrospective, one_device):
    run = lab.run("initial", "dpo.reference=initial", "evaluation.enabled=false")
    parents = [load_manifest(run.layout.iteration(t).manifest("reference")).parent for t in (1, 2)]
    start = load_manifest(run.layout.iteration(1).manifest("collect")).parent
    assert parents == [start, start]
    assert run.said.count("first batch: max |margin|") == 1, "in the second iteration the reference is another policy"
    assert read_jsonl(run.layout.iteration(2).metrics)[0]["max_abs_margin"] > 1e-3
    assert same_answers(run, retrospective.run)


LOSSES = {  # the loss of margin 0 at beta 0.1
    "dpo.loss=sigmoid dpo.label_smoothing=0.1": np.log(2),
    "dpo.loss=robust dpo.label_smoothing=0.1": np.log(2),
    "dpo.loss=hinge": 1.0,
    "dpo.loss=ipo": 25.0,
    "dpo.ld_alpha=0.5 dpo.clip_norm=0.5": np.log(2),
    "dpo.accumulation_steps=2": np.log(2),
    "dpo.sft_weight=0.5": None,  # and the chosen responses' cross-entropy
}


@functools.cache
def flat(one: IterationLayout) -> np.ndarray:
    return weights(one)["llama"]["head"].ravel()


@pytest.mark.parametrize("settings", LOSSES)
def test_every_loss_trains_from_its_value_at_margin_zero(lab: Lab, retrospective, one_device, settings: str):
    run = lab.run(re.sub(r"[^a-z0-9]+", "-", settings), *settings.split(), *ONCE)
    metrics = read_jsonl(run.layout.iteration(1).metrics)
    first, expected = metrics[0], LOSSES[settings]
    assert f"first batch: max |margin| {first['max_abs_margin']:.3g}" in run.said
    assert first["max_abs_margin"] <= 0.1 * 1e-6 * first["max_abs_logp"]
    if expected is None:
        tokens = [len(pair["chosen_tokens"]) for pair in read_jsonl(run.layout.iteration(1).pairs)]
        shares = [0.5 * -8 * first["logps/chosen"] / (8 * count) for count in (min(tokens), max(tokens))]
        assert min(shares) <= first["loss"] - np.log(2) <= max(shares)
    else:
        assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert all(row["update_applied"] and np.isfinite(row["loss"]) for row in metrics)
    assert metrics[-1]["max_abs_margin"] > 0
    trained, usual = flat(run.layout.iteration(1)), flat(retrospective.run.layout.iteration(1))
    if settings == "dpo.accumulation_steps=2":
        np.testing.assert_allclose(trained, usual, atol=1e-4)
    else:
        assert np.abs(trained - usual).max() > 1e-4
