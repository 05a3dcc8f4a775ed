import json
import shutil

import numpy as np
import pytest
import synthetic
from page import Page

from isrdpo_jax.errors import DataError
from isrdpo_jax.report.build import build_report


def build(runs, tmp_path, frames=synthetic.frames, **options):
    path = build_report(runs, tmp_path / "report", frames, **options)
    assert path == tmp_path / "report" / "index.html"
    return Page(path.read_text(encoding="utf-8"))


def rows(folder, kind):
    return read(sorted((folder / kind).glob("*.jsonl")))


def read(paths):
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_page_loads_nothing_from_elsewhere(page):
    assert page.loads
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.loads)
    assert not page.of("script") and not page.of("link")


def test_every_picture_has_a_text_and_every_id_is_unique(page):
    assert len(page.of("img")) == 3 * synthetic.QUESTIONS and all("frames" in image["alt"] for image in page.of("img"))
    drawings = [svg for svg in page.of("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) == 7 + 4 and all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in page.loads if address.startswith("#")} <= set(ids)


def test_numbers_are_those_of_the_files(page, whole_runs):
    for run in whole_runs:
        for t in (0, 3):
            summary = json.loads((run / f"iter_{t:02d}/evaluation/summary.json").read_text())
            for key, entry in summary.items():
                if key not in ("chosen_words", "rejected_words"):
                    assert entry["value"] in page.values, key
        for t in (1, 2, 3):
            judged = [row for row in rows(run / f"iter_{t:02d}", "judgements") if row["log_odds"]]
            flips = sum(row["log_odds"][0] * row["log_odds"][1] < 0 for row in judged) / len(judged)
            assert any(value == pytest.approx(flips) for value in page.values)
    headline = page.sections["headline"]
    assert "35.4 % [32.4, 38.4] n = 256" in headline  # the start of run isr: 0.3541 ± 0.03 of 256
    assert "62.8 % [59.8, 65.8] n = 256 +27.4 points better" in headline  # 0.3541 + 3 * 0.0913
    assert "72.0 % [69.0, 75.0] n = 431 iteration 1" in headline  # judge accuracy has no value at the start
    assert "4,784" in headline


def test_counts_per_reason(page):
    kept, tie, identical, unfinished, invalid, inconsistent, empty, other = 8, 1, 1, 1, 0, 1, 0, 0
    row = f"done 12 {kept} {tie} {identical} {unfinished} {invalid} {inconsistent} {empty} {other}"
    assert page.sections["pairs"].count(row) == 6


def test_texts_are_escaped(runs, tmp_path):
    evil = '<script>alert("x")</script> & <img src=http://example.com/x.png>'
    folder = runs[0] / "iter_01"
    for path in [*folder.glob("*/part-*.jsonl"), folder / "pairs.jsonl"]:
        path.write_text(path.read_text().replace("The red circle moves left.", json.dumps(evil)[1:-1]))
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text().replace("start: shapes", f"start: {json.dumps(evil)}"))
    page = build(runs, tmp_path)
    assert not page.of("script") and not page.of("b")[0].get("src")
    assert all(address.startswith(("#", "data:image/png")) for address in page.loads)
    assert evil in page.text
    assert "What does the red object do & why, in video" in page.text


def test_an_example_shows_all_of_it(page, whole_runs):
    examples = page.sections["examples"]
    for t in (1, 2, 3):
        for row in rows(whole_runs[0] / f"iter_{t:02d}", "responses"):
            assert row["question"] in examples
            assert all(response["text"] in examples for response in row["responses"])
        for row in rows(whole_runs[0] / f"iter_{t:02d}", "judgements"):
            assert all(odds in page.values for odds in row["log_odds"])
    assert examples.count("✓ chosen") == examples.count("✗ rejected") == 2 * 3 * 8
    for reason in (
        "a tie",
        "the responses are identical",
        "a response hit the length limit",
        "the two orders disagree",
    ):
        assert examples.count(f"no pair: {reason}") == 2 * 3
    assert "c 1 → c 2" in examples and "c 1 , the first" in examples
    assert "This run's judge uses no description." in examples
    assert page.of("del") and page.of("ins")


def test_the_badge_stands_at_the_text_that_won(page, whole_runs):
    for row in read(sorted(whole_runs[0].glob("iter_*/pairs.jsonl"))):
        for badge, text in (("✓ chosen", row["chosen"]), ("✗ rejected", row["rejected"])):
            assert f"{badge} {len(text.split())} words {text}" in page.sections["examples"]


def test_the_same_question_is_followed_through_all_iterations(whole_runs, tmp_path):
    page = build(whole_runs, tmp_path, max_examples=1)
    questions = page.sections["examples"].split("followed through all iterations")[1:]
    assert len(questions) == 3
    assert len({question.split("?")[0] for question in questions}) == 1
    assert all("chosen" in question for question in questions)  # one with verdicts tells more


def test_without_frames_or_evaluation(tmp_path):
    run = synthetic.write_run(tmp_path, "quiet", evaluation=False)
    page = build([run], tmp_path, frames=lambda run_dir, video: None)
    assert not page.of("img")
    assert "The frames of this video are not at hand." in page.text
    assert "There are no two evaluations to compare yet." in page.text
    assert page.sections["curves"].count("Nothing measured yet.") == 7


def test_stages_cut_off_anywhere(runs, tmp_path):
    """The second run is stopped ever earlier; every state gives a page that says so."""
    cuts = [
        (["evaluation", "evaluate.manifest.json"], "in progress: evaluate"),
        (["checkpoint", "metrics.jsonl", "optimize.manifest.json"], "in progress: optimize"),
        (["reference", "reference.manifest.json"], "in progress: reference"),
        (["pairs.jsonl", "pairs.manifest.json"], "in progress: pairs"),
        (["judgements/part-00000-00001.jsonl", "collect.manifest.json"], "in progress: collect"),
        (["judgements"], "in progress: collect"),
        (["responses", "descriptions"], "in progress: collect"),
    ]
    for paths, said in cuts:
        for path in (runs[0] / "iter_03" / name for name in paths):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        page = build(runs, tmp_path, max_examples=1)
        assert said in page.sections["pairs"]
        assert f"unfinished: 2 of 3 iterations done; 3 is {said}" in page.text
    assert "This run has no such question in this iteration." in page.sections["examples"]


def test_a_verdict_before_its_pair_is_built(tmp_path):
    run = synthetic.write_run(tmp_path, "early", iterations=1)
    for name in ("pairs.jsonl", "pairs.manifest.json", "optimize.manifest.json", "evaluate.manifest.json"):
        (run / "iter_01" / name).unlink()
    examples = build([run], tmp_path).sections["examples"]
    assert "✓ preferred" in examples and "✓ chosen" not in examples and "no pair:" not in examples


def test_a_run_that_has_just_begun(tmp_path):
    run = synthetic.write_run(tmp_path, "new", iterations=1)
    shutil.rmtree(run / "iter_00")
    shutil.rmtree(run / "iter_01")
    page = build([run], tmp_path)
    assert "unfinished: 0 of 1 iterations done" in page.text
    assert "No iteration begun." in page.sections["examples"]


def test_torn_and_foreign_lines_are_counted_not_fatal(runs, tmp_path):
    for kind in ("responses", "judgements", "descriptions"):
        path = runs[0] / f"iter_02/{kind}/part-00000-00000.jsonl"
        path.write_text(path.read_text() + '{"id": "q99"}\n[1, 2]\n{"id": "q1", "vid')
    (runs[0] / "iter_02/evaluation/summary.json").write_text("{")
    page = build(runs, tmp_path)
    assert "iter_02/judgements/part-00000-00000.jsonl: 3 unreadable records left out" in page.text
    assert "iter_02/evaluation/summary.json: 1 unreadable record left out" in page.text


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    first = synthetic.write_run(tmp_path / "a", "same", iterations=1)
    second = synthetic.write_run(tmp_path / "b", "same", iterations=1)
    page = build([first, second], tmp_path)
    assert str(first) in page.sections["headline"] and str(second) in page.sections["headline"]


def test_settings_that_differ_are_marked(page):
    settings = page.sections["settings"]
    assert "judge.context retrospective none differs" in settings
    assert "run.seed 0 1 differs" in settings
    assert "dpo.beta 0.1 0.1 judge" not in settings.replace("differs", "") and "run.name" not in settings


def test_the_page_does_not_depend_on_the_clock(whole_runs, tmp_path):
    first = build_report(whole_runs, tmp_path / "one", synthetic.frames, max_examples=1).read_bytes()
    assert build_report(whole_runs, tmp_path / "two", synthetic.frames, max_examples=1).read_bytes() == first


def test_large_frames_keep_the_page_small(tmp_path):
    run = synthetic.write_run(tmp_path, "large", iterations=1)
    noise = np.random.default_rng(0).integers(0, 256, (16, 224, 398, 3), dtype=np.uint8)
    path = build_report([run], tmp_path / "report", lambda run_dir, video: noise)
    assert path.stat().st_size < 4 * 200_000 + 200_000


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        build_report([tmp_path / "nothing"], tmp_path, synthetic.frames)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a config.yaml nor an iteration"):
        build_report([tmp_path / "empty"], tmp_path, synthetic.frames)


def test_a_verdict_by_scores_is_shown_as_their_difference(runs, tmp_path):
    for part in (runs[0] / "iter_01/judgements").glob("*.jsonl"):
        scored = [row | {"log_odds": None, "margin": 1.25, "verdict": 0, "reason": "ok"} for row in read([part])]
        part.write_text("".join(json.dumps(row) + "\n" for row in scored))
    shown = build(runs[:1], tmp_path)
    assert "Score 1 − score 2" in shown.text and 1.25 in shown.values
    assert "Not judged: ok" not in shown.text
