import json
import re
import shutil

import pytest
import synthetic
from page import Page

from isrdpo_jax.errors import DataError
from isrdpo_jax.report.build import build_report
from isrdpo_jax.report.videos import Videos


def build(runs, tmp_path, videos=synthetic.videos):
    path = build_report(runs, tmp_path / "report", videos)
    assert path == tmp_path / "report" / "index.html"
    return Page(path.read_text(encoding="utf-8"))


def rows(folder, kind):
    return read(sorted((folder / kind).glob("*.jsonl")))


def read(paths):
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_page_loads_nothing_from_elsewhere(page):
    assert page.loads
    assert all(address.startswith("#") for address in page.loads)
    assert not any("src" in script for script in page.of("script")) and not page.of("link")


def test_every_drawing_has_a_text_and_every_id_is_unique(page):
    drawings = [svg for svg in page.of("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) == 7 + 2 + 4 and all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
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


def test_what_stands_in_the_page_is_escaped(runs, tmp_path):
    evil = '</script><script>alert("x")</script> & <img src=http://example.com/x.png>'
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text().replace("start: shapes", f"start: {json.dumps(evil)}"))
    renamed = runs[0].rename(runs[0].with_name("a <img> & c"))
    page = build([renamed], tmp_path)
    assert len(page.of("script")) == 2 and not page.of("img")
    assert evil in page.text and "a <img> & c" in page.sections["settings"]


def test_without_frames_or_evaluation(tmp_path):
    run = synthetic.write_run(tmp_path, "quiet", evaluation=False)
    page = build([run], tmp_path, videos=lambda run: Videos())
    assert not list(tmp_path.rglob("*.png"))
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
        page = build(runs, tmp_path)
        assert said in page.sections["pairs"]
        assert f"unfinished: 2 of 3 iterations done; 3 is {said}" in page.text


def test_a_run_that_has_just_begun(tmp_path):
    run = synthetic.write_run(tmp_path, "new", iterations=1)
    shutil.rmtree(run / "iter_00")
    shutil.rmtree(run / "iter_01")
    page = build([run], tmp_path)
    assert "unfinished: 0 of 1 iterations done" in page.text
    assert "No question is judged yet." in page.sections["examples"]


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


def test_other_judges_of_the_same_responses_stand_below_the_run_s_own(runs, tmp_path):
    synthetic.write_rejudged(runs[0], 2, {"video": "blank"}, turned=2)
    synthetic.write_rejudged(runs[0], 2, {"context": "none", "video": "shuffled"}, turned=8)
    judge = build(runs, tmp_path).sections["judge"]
    second = judge.split("its own")[2]  # the run's own judge, then the two others by name
    _, shuffled, blank = re.split("context none, video shuffled|video blank", second)
    assert [re.findall(r"([\d.]+) %", line)[-1] for line in (shuffled, blank)] == ["0.0", "75.0"]


def test_agreement_with_labels_is_shown(runs, tmp_path):
    figures = {"value": 0.625, "count": 8, "low": 0.25, "high": 0.875}
    judges = {"the run's own": {"equal": figures, "kappa": figures | {"value": -0.2}, "decided": {"value": None}}}
    folder = runs[1] / "iter_03/agreement"
    folder.mkdir()
    (folder / "people.json").write_text(json.dumps({"raters": {"ann <b>": {"judges": judges}}}))
    (folder / "torn.json").write_text("{")
    page = build(runs, tmp_path)
    row = "self 3 ann <b> the run's own 62.5 % [25.0, 87.5] n = 8 −0.200 [+0.250, +0.875] n = 8 –"
    assert row in page.sections["judge"] and "agreement/torn.json: 1 unreadable record" in page.text


def test_speed_is_told_where_it_was_measured(runs, tmp_path):
    (runs[1] / "iter_01/speed.jsonl").unlink()
    for t in (2, 3):
        (runs[1] / f"iter_{t:02d}/speed.jsonl").write_text('{"stage": "collect"}\n')
    page = build(runs, tmp_path)
    assert "2 collect 10 2.00 135.0 75 % 1.10 0 % 0 % 0 %" in page.sections["speed"]
    assert "self Not measured yet." in page.sections["speed"] and "speed.jsonl" in page.text


def test_the_ledger_compares_held_out_answers_with_the_baseline(page):
    ledger = page.sections["lengths"].partition("Held-out answers")[2]
    assert "“More” is against self" in ledger and ledger.count("n = 6 the baseline") == 4
    for t in range(4):  # run isr has seed 0: 12.5 words; the baseline says 2 t more
        more = "0.00 [0.00, 0.00]" if t == 0 else f"−{2 * t}.00 [−{2 * t}.00, −{2 * t}.00]"
        assert f"{t} 12.5 [10.5, 14.5] n = 6 {more.replace('0.00', '+0.00') if t == 0 else more} n = 3" in ledger


def test_retrospection_is_told_or_why_there_is_none(page):
    told = page.sections["retrospection"]
    assert "1 The first: there is none before." in told and told.count("The judge uses no description.") == 3
    assert "2 6 12.0 → 12.0 0.0 % 50.0 % 6 of 12 50.0 % 6 of 12 0.0 % 0 of 12 0.0 % 0 of 12" in told


def test_settings_that_differ_are_marked(page):
    settings = page.sections["settings"]
    assert "judge.context retrospective none differs" in settings
    assert "run.seed 0 1 differs" in settings
    assert "dpo.beta 0.1 0.1 judge" not in settings.replace("differs", "") and "run.name" not in settings


def test_the_page_does_not_depend_on_the_clock(whole_runs, tmp_path):
    first = build_report(whole_runs, tmp_path / "one", synthetic.videos).read_bytes()
    assert build_report(whole_runs, tmp_path / "two", synthetic.videos).read_bytes() == first


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        build_report([tmp_path / "nothing"], tmp_path, synthetic.videos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a config.yaml nor an iteration"):
        build_report([tmp_path / "empty"], tmp_path, synthetic.videos)
