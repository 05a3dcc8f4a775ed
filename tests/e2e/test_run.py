"""A whole run by the command line: what it leaves on disk, what it says, what can be asked of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tiny import assert_trees_equal
from tiny_run import ITERATIONS, QUESTIONS, VIDEOS, Lab, Ran, on_one_device, records, rows, weights

from isrdpo_jax.runs.atomic import read_json, read_jsonl
from isrdpo_jax.runs.layout import STAGES, RunLayout, manifest_path
from isrdpo_jax.runs.manifest import load_verified
from isrdpo_jax.weights.policy_folder import CARD

TRAINED = range(1, ITERATIONS + 1)


def test_every_stage_is_sealed_and_knows_its_parent(finished: Ran, lab: Lab):
    run = finished.layout
    assert [one.index for one in run.iterations()] == [0, *TRAINED]
    policies = [load_verified(manifest_path(one.checkpoint)).facts["policy"] for one in run.iterations()]
    assert policies[0] == read_json(run.run_json)["policy"] == read_json(lab.policy / CARD)["policy"]
    assert len(set(policies)) == ITERATIONS + 1
    for t in TRAINED:
        manifests = {stage: load_verified(run.iteration(t).manifest(stage)) for stage in STAGES}
        assert len({manifest.config_hash for manifest in manifests.values()}) == 1
        assert {stage: manifest.iteration for stage, manifest in manifests.items()} == dict.fromkeys(STAGES, t)
        parents = [manifest.parent for manifest in manifests.values()]
        assert parents == [policies[t - 1]] * 4 + [policies[t]]
        assert manifests["optimize"].facts["policy"] == policies[t]
    leftovers = [path for path in run.root.rglob("*") if re.search(r"\.tmp|orbax-checkpoint-tmp|partial", path.name)]
    assert leftovers == [] and [run.iteration(t).train_steps() for t in TRAINED] == [[]] * ITERATIONS


def test_the_records_are_those_of_the_contract(finished: Ran):
    for t in TRAINED:
        one = finished.layout.iteration(t)
        responses, judgements, pairs = rows(one, "responses"), rows(one, "judgements"), read_jsonl(one.pairs)
        assert len(responses) == len(judgements) == QUESTIONS and len(rows(one, "descriptions")) == VIDEOS
        assert [row["id"] for row in responses] == [row["id"] for row in judgements]
        for row in responses:
            assert list(row) == ["id", "video", "question", "responses"] and len(row["responses"]) == 2
            for said in row["responses"]:
                assert list(said) == ["text", "tokens", "finish"] and 1 <= len(said["tokens"]) <= 8
                assert (said["tokens"][-1] == 2) == (said["finish"] == "stop")
        for row in judgements:
            if row["reason"] == "ok":
                assert row["margin"] == pytest.approx(sum(row["log_odds"]) / 2)
                assert row["verdict"] == (0 if row["margin"] > 0 else 1)
            else:
                assert row["verdict"] is None
        ok = {row["id"]: row for row in judgements if row["reason"] == "ok"}
        assert [pair["id"] for pair in pairs] == [row["id"] for row in responses if row["id"] in ok]
        said = {row["id"]: row["responses"] for row in responses}
        for pair in pairs:
            verdict = ok[pair["id"]]["verdict"]
            chosen, rejected = said[pair["id"]][verdict], said[pair["id"]][1 - verdict]
            assert (pair["chosen"], pair["chosen_tokens"]) == (chosen["text"], chosen["tokens"])
            assert (pair["rejected"], pair["rejected_tokens"]) == (rejected["text"], rejected["tokens"])
        assert {row["id"] for row in rows(one, "reference")} == {pair["id"] for pair in pairs}
        metrics = read_jsonl(one.metrics)
        assert [row["step"] for row in metrics] == list(range(1, -(-len(pairs) // 8) + 1))
        assert sum(row["pairs"] for row in metrics) == len(pairs) and all(row["update_applied"] for row in metrics)


def test_training_starts_where_the_reference_is(finished: Ran):
    checks = re.findall(r"first batch: max \|margin\| (\S+), loss (\S+) \(margin 0 gives (\S+) ", finished.said)
    assert len(checks) == ITERATIONS
    for t, (margin, loss, expected) in zip(TRAINED, checks, strict=True):
        first = read_jsonl(finished.layout.iteration(t).metrics)[0]
        assert float(margin) <= 0.1 * 1e-6 * first["max_abs_logp"]
        assert float(loss) == float(expected) == pytest.approx(np.log(2), abs=1e-6)


def test_training_changes_the_decoder_alone(finished: Ran):
    first, last = (weights(finished.layout.iteration(t)) for t in (0, ITERATIONS))
    for name in first.keys() - {"llama"}:
        assert_trees_equal(first[name], last[name])
    assert not np.array_equal(first["llama"]["head"], last["llama"]["head"])


def test_evaluation_measures_every_policy_on_the_same_heldout_questions(finished: Ran):
    asked = []
    for t in (0, *TRAINED):
        one = finished.layout.iteration(t)
        answers = read_jsonl(one.evaluation / "answers.jsonl")
        summary = read_json(one.evaluation / "summary.json")
        asked.append([row["id"] for row in answers])
        assert summary["accuracy"]["value"] == np.mean([row["grade"]["core"] for row in answers])
        assert summary["accuracy"]["count"] == len(answers) == 24
        assert all({"value", "count", "low", "high"} <= set(figure) for figure in summary.values())
        assert ("judge_accuracy" in summary) == ("length_ratio" in summary) == (t > 0)
        if t:
            pairs = read_jsonl(one.pairs)
            chosen, rejected = (sum(len(pair[side].split()) for pair in pairs) for side in ("chosen", "rejected"))
            assert summary["length_ratio"]["value"] == pytest.approx(chosen / rejected)
    assert asked[0] == asked[1] == asked[2]
    assert not set(asked[0]) & {row["id"] for row in rows(finished.layout.iteration(1), "responses")}


def test_status_tells_what_was_kept_and_dropped(finished: Ran, lab: Lab, isrdpo):
    status = lab.answer("status", finished.layout.root)
    assert (status["state"], status["iteration"], status["next_stage"]) == ("finished", ITERATIONS, None)
    assert status["skipped"] == {} and status["videos"] == VIDEOS and status["holder"] is None
    assert status["data"] == read_json(finished.layout.run_json)["data"]
    for t, row in zip(TRAINED, status["rows"][1:], strict=True):
        assert row["done"] == list(STAGES) and (row["policy"], row["reference"]) == (f"π_{t}", f"π_{t}")
        assert row["kept"] + sum(row["dropped"].values()) == QUESTIONS
        assert row["kept"] == len(read_jsonl(finished.layout.iteration(t).pairs))
    table = isrdpo("status", finished.layout.root)
    assert table.code == 0 and "finished" in table.out and f"{VIDEOS} videos" in table.out


def test_the_report_shows_every_iteration(finished: Ran, isrdpo):
    assert isrdpo("report", finished.layout.root).code == 0
    page = finished.layout.report.read_text(encoding="utf-8")
    assert "http" not in page.split("</head>")[0] and f"finished: {ITERATIONS} iterations" in page
    (data,) = finished.layout.report.parent.glob("data-*")
    assert len(list(data.glob("*.png"))) == VIDEOS
    for t in TRAINED:
        shown = (data / f"t{t:02d}-0000.js").read_text()
        assert all(json.dumps(row["text"]) in shown for row in rows(finished.layout.iteration(t), "descriptions"))


@pytest.mark.parametrize("model", ["", "iter_00", "iter_01"])
def test_any_policy_of_the_run_answers_and_scores(finished: Ran, lab: Lab, isrdpo, model: str):
    policy = finished.layout.root / model
    answered = isrdpo("ask", policy, lab.video, "What does the red thing do?", "--max-new-tokens", 6, "--json")
    assert answered.code == 0
    answer = json.loads(answered.out)
    assert 1 <= len(answer["tokens"]) <= 6 and answer["finish"] in ("stop", "length")
    assert isrdpo("ask", policy, lab.video, "What does the red thing do?", "--max-new-tokens", 6).out == (
        answer["text"] + "\n"
    )
    scored = isrdpo("score", policy, lab.video, "What moves?", "A red circle.", "--json")
    assert scored.code == 0
    score = json.loads(scored.out)
    assert score["logprob"] == pytest.approx(sum(score["per_token"]), rel=1e-5)
    assert len(score["per_token"]) == len(score["tokens"]) and score["tokens"][-1] == 2
    assert max(score["per_token"]) < 0


def test_the_run_stands_for_its_newest_policy(finished: Ran, lab: Lab, isrdpo):
    def score(model: str) -> float:
        scored = isrdpo("score", finished.layout.root / model, lab.video, "What moves?", "A red circle.", "--json")
        return json.loads(scored.out)["logprob"]

    assert score("") == score("iter_02") != score("iter_01")


def test_json_is_all_that_stdout_gets(finished: Ran, lab: Lab):
    question = "What does the red thing do?"
    assert set(lab.answer("ask", finished.layout.root, lab.video, question)) == {"text", "finish", "tokens"}
    scored = lab.answer("score", finished.layout.root / "iter_01", lab.video, question, "A red circle.")
    assert set(scored) == {"logprob", "tokens", "per_token"}
    judged = lab.answer("judge", finished.layout.root, 1, "judge.video=blank")
    assert judged["stored"]["verdicts"] == sum(row["verdict"] is not None for row in stored_judgements(finished.layout))
    assert [row["id"] for row in judged["rows"]] == [row["id"] for row in stored_judgements(finished.layout)]
    assert [row["log_odds"] for row in judged["rows"]] != [
        row["log_odds"] for row in stored_judgements(finished.layout)
    ]
    kept = finished.layout.iteration(1).rejudged / "video-blank.jsonl"
    assert judged["kept"] == str(kept) and read_jsonl(kept) == judged["rows"]


def stored_judgements(run: RunLayout) -> list[dict]:
    return rows(run.iteration(1), "judgements")


def test_judging_again_the_same_way_gives_the_same(finished: Ran, one_device, isrdpo):
    again = json.loads(isrdpo("judge", finished.layout.root, 1, "--json").out)
    assert again["stored"] == again["again"] and again["same_verdict"] == 1
    for row, stored in zip(again["rows"], stored_judgements(finished.layout), strict=True):
        assert row["log_odds"] == (stored["log_odds"] and pytest.approx(stored["log_odds"], abs=1e-4))


def test_a_finished_run_is_left_alone(finished: Ran, lab: Lab):
    def state() -> dict:
        files = [path for one in finished.layout.iterations() for path in one.root.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    assert len(before) > 60
    lab.isrdpo("run", lab.config, "run.name=finished")
    assert state() == before
    assert lab.answer("status", finished.layout.root)["state"] == "finished"


def test_another_configuration_is_refused_with_the_difference(finished: Ran, lab: Lab, isrdpo):
    before = records(finished.layout)
    refused = isrdpo("run", lab.config, "run.name=finished", "dpo.beta=0.2", "judge.context=fresh")
    assert refused.code == 2 and "dpo.beta 0.1 -> 0.2" in refused.err
    assert "judge.context 'retrospective' -> 'fresh'" in refused.err
    assert records(finished.layout) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "nowhere", "VIDEO", "Why?"], "nowhere: no policy there"),
        (["ask", "RUN", "gone.mp4", "Why?"], "gone.mp4: no such file or folder [missing]"),
        (["ask", "RUN", "CONFIG", "Why?"], "[not_a_video]"),
        (["ask", "RUN", "VIDEO", " "], "the question is empty"),
        (["score", "RUN/iter_09", "VIDEO", "Why?", "Because."], "no finished policy"),
        (["judge", "RUN", 7, "judge.video=blank"], "no finished collect"),
        (["judge", "RUN", 1, "dpo.beta=1"], "only judge.KEY=VALUE"),
        (["run", "gone.yaml"], "gone.yaml"),
        (["run", "CONFIG", "start=nowhere", "run.name=none"], "nowhere: no policy there"),
        (["run", "CONFIG", "dpo.betta=1"], "did you mean dpo.beta?"),
        (["run", "CONFIG", "--until", "lunch"], "the stages are collect, pairs, reference, optimize, evaluate"),
        (["status", "nowhere"], "there is no run here"),
        (["report", "nowhere"], "nowhere"),
        (["sweep", "gone.yaml"], "gone.yaml"),
    ],
    ids=lambda value: " ".join(map(str, value[:3])) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_answered_by_one_paragraph(finished: Ran, lab: Lab, isrdpo, arguments: list, words: str):
    there = {"RUN": finished.layout.root, "RUN/iter_09": finished.layout.root / "iter_09"}
    there |= {"VIDEO": lab.video, "CONFIG": lab.config}
    said = isrdpo(*(there.get(argument, argument) for argument in arguments))
    assert said.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and words in said.err


def test_a_mistake_shows_no_traceback_in_a_process_of_its_own(lab: Lab):
    said = lab.isrdpo("run", lab.config, "dpo.beta=-1", code=2)
    assert said.stderr.count("\n") == 1 and "dpo.beta" in said.stderr


def test_a_run_with_kept_features_is_the_run_without(lab: Lab, finished: Ran, monkeypatch: pytest.MonkeyPatch):
    """All stages read what the first one kept. Training then has features of the collect's batches, not of its own:
    log-probs differ by their rounding."""
    on_one_device(monkeypatch)
    run = lab.run("kept", "data.feature_cache=1", "run.iterations=1", "dpo.learning_rate=1e-3")
    one, other = run.layout.iteration(1), finished.layout.iteration(1)
    for kind in ("responses", "descriptions", "judgements"):
        assert rows(one, kind) == rows(other, kind)
    assert one.pairs.read_bytes() == other.pairs.read_bytes()
    scored = [{row["id"]: (row["chosen"], row["rejected"]) for row in rows(it, "reference")} for it in (one, other)]
    assert scored[0].keys() == scored[1].keys()
    for key, values in scored[0].items():
        np.testing.assert_allclose(values, scored[1][key], rtol=1e-5)
    kept = lab.root.glob("data/features/*/part-*.json")
    assert sorted(len(json.loads(path.read_text())["ids"]) for path in kept) == [12, VIDEOS]


def test_until_stops_behind_a_stage_of_the_first_unfinished_iteration(lab: Lab):
    def made(until: str | None) -> list[list[str]]:
        run = lab.run("until", until=until).layout
        return [[stage for stage in STAGES if one.manifest(stage).exists()] for one in run.iterations()]

    begun = [[STAGES[-1]], list(STAGES)]
    assert made("evaluate") == begun
    assert made("collect") == made("collect") == [*begun, ["collect"]]
    elsewhere = lab.policy.rename(lab.root / "moved")
    try:
        assert made(None) == [*begun, list(STAGES)], "a run that has begun stands alone"
    finally:
        elsewhere.rename(lab.policy)
