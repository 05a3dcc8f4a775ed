"""The examples: found by filters and keys, shown with frames, verdicts and differences; texts are only texts."""

from __future__ import annotations

import json
import time

import pytest
import synthetic

from isrdpo_jax.report.build import build_report

MANY = 10_000
EVIL = '<img src=x onerror="alert(1)"><b>bold</b> </script>'
INTERACTIVE_S = 30.0  # from opening the page to 10,000 questions filtered; about one when nothing else runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [synthetic.write_run(root, "isr"), synthetic.write_run(root, "self", context="none", seed=1)]


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    return build_report(runs, tmp_path_factory.mktemp("report"), synthetic.videos)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """10,000 questions about 5,000 videos."""
    run = synthetic.write_run(tmp_path_factory.mktemp("many"), "many", iterations=2, questions=MANY)
    return build_report([run], tmp_path_factory.mktemp("large"), synthetic.videos, max_strips=40)


def open_examples(visit, report, **options):
    tab = visit(report, **options)
    tab.page.locator("#examples").scroll_into_view_if_needed()
    tab.page.wait_for_selector(".card")
    return tab


def ids(page):
    return page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.id)")


def judged(run, t):
    return [json.loads(line) for path in (run / f"iter_{t:02d}/judgements").glob("*.jsonl") for line in path.open()]


def test_frames_show(report, visit):
    page = open_examples(visit, report).page
    images = page.locator("img.strip")
    assert images.count() == 10
    images.evaluate_all("images => Promise.all(images.map(image => image.decode()))")
    assert set(images.evaluate_all("images => images.map(image => image.naturalWidth)")) == {8 * 32 + 7}
    assert all("8 of 8 frames" in text for text in images.evaluate_all("images => images.map(image => image.alt)"))


def test_the_filters_filter(report, runs, visit):
    page = open_examples(visit, report).page
    everything = judged(runs[0], 3)
    turned = {row["id"] for row in everything if row["log_odds"] and row["log_odds"][0] * row["log_odds"][1] < 0}
    assert page.locator("#iteration").input_value() == "3" and "1–10 of 12 questions" in page.inner_text("#found")
    page.select_option("#judge-run", "0")
    page.select_option("#show", "flips")
    page.wait_for_function("count => document.querySelectorAll('.card').length === count", arg=len(turned))
    assert 0 < len(turned) < 10 and set(ids(page)) == turned
    page.select_option("#show", "dropped")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 4")
    assert set(ids(page)) == {row["id"] for row in everything if row["verdict"] is None}
    assert page.locator(".side").first.inner_text().count("no pair:") == 1
    page.select_option("#show", "kept")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 8")
    margins = {row["id"]: abs(row["margin"] or 0) for row in everything}
    assert ids(page) == sorted(ids(page), key=lambda id: -margins[id])
    page.select_option("#show", "all")
    page.fill("#search", "Q1")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 3")
    assert set(ids(page)) == {"q1", "q10", "q11"}
    page.fill("#search", "nothing like this")
    page.wait_for_selector("text=No question is like this.")
    assert ids(page) == []


def test_a_card_tells_what_the_files_hold(report, runs, visit):
    page = open_examples(visit, report).page
    page.fill("#search", "q0")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 1")
    (pair,) = [row for row in map(json.loads, (runs[0] / "iter_03/pairs.jsonl").open()) if row["id"] == "q0"]
    ours, baseline = page.locator(".side").all_inner_texts()
    for badge, text in (("✓ chosen", pair["chosen"]), ("✗ rejected", pair["rejected"])):
        assert f"{badge} {len(text.split())} words {text}" in " ".join(ours.split())
    (verdict,) = [row for row in judged(runs[0], 3) if row["id"] == "q0"]
    for odds in verdict["log_odds"]:
        assert f"{odds:+.2f}".replace("-", "−") in ours
    assert "This run's judge uses no description." in baseline
    assert page.locator(".side").first.locator("del").all_inner_texts() == ["up"]
    assert page.locator(".side").first.locator("ins").all_inner_texts() == ["down"]


def test_a_rubric_s_verdict_shows_the_points_of_both_responses(tmp_path, visit):
    run = synthetic.write_run(tmp_path / "runs", "rubric")
    for path in (run / "iter_03/judgements").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.open()]
        for row in rows:
            if row["verdict"] is not None:
                scores = [4.25, 3.0] if row["verdict"] == 0 else [1.5, 3.0]
                row |= {"log_odds": None, "scores": scores, "said_score": [0.9, 0.9], "margin": scores[0] - scores[1]}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = open_examples(visit, build_report([run], tmp_path / "report", synthetic.videos)).page
    page.select_option("#show", "kept")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 8")
    told = [" ".join(text.split()) for text in page.locator(".side").all_inner_texts()]
    first = "points of each response Response 1 4.25 Response 2 3.00 Difference +1.25 → response 1"
    second = "points of each response Response 1 1.50 Response 2 3.00 Difference −1.50 → response 2"
    assert all((first in text) != (second in text) for text in told)
    assert any(first in text for text in told) and any(second in text for text in told)


def test_one_question_through_all_iterations(report, visit):
    page = open_examples(visit, report).page
    page.select_option("#beside", "0")
    page.wait_for_selector(".side:nth-child(3)")
    heads = page.locator(".card").first.locator(".side > .head").all_inner_texts()
    assert [" ".join(head.split())[:15] for head in heads] == [f"isr iteration {t}" for t in (1, 2, 3)]
    assert "the first" in page.locator(".card .side").first.inner_text()


def test_keys(report, visit):
    page = open_examples(visit, report).page
    focused = "document.activeElement.dataset.id"
    first, second, *_ = shown = ids(page)
    for key, there in (("j", first), ("j", second), ("k", first)):
        page.keyboard.press(key)
        assert page.evaluate(focused) == there
    page.keyboard.press("n")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 2")
    assert not set(ids(page)) & set(shown) and page.is_disabled("#next")
    page.keyboard.press("k")  # the page before, from behind
    page.keyboard.press("k")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 10")
    page.keyboard.press("/")
    page.keyboard.type("jk q3")
    assert page.evaluate("document.activeElement.id") == "search" and page.input_value("#search") == "jk q3"


def test_texts_are_only_texts(tmp_path, visit):
    run = synthetic.write_run(tmp_path, "run", iterations=2)
    for path in run.glob("iter_*/*/part-*.jsonl"):
        path.write_text(path.read_text().replace("The red circle moves left.", json.dumps(EVIL)[1:-1]))
        path.write_text(path.read_text().replace("A red circle moves left", json.dumps(EVIL)[1:-1]))
        path.write_text(path.read_text().replace("What does the red", json.dumps(EVIL)[1:-1]))
    page = open_examples(visit, build_report([run], tmp_path / "report", synthetic.videos)).page
    page.locator("img.strip").first.wait_for()
    assert page.locator(".card img:not(.strip)").count() == 0
    assert "bold" not in page.locator(".card b").all_inner_texts()
    assert all(EVIL in text for text in page.locator(".card h4, .response p").all_inner_texts())
    assert page.locator(".description").first.inner_text().count("<b>bold</b>") == 1


def test_data_that_is_gone_is_said(report, tmp_path, browser):
    alone = tmp_path / "index.html"
    alone.write_bytes(report.read_bytes())
    page = browser.new_page()
    page.goto(alone.as_uri())
    page.locator("#examples").scroll_into_view_if_needed()
    page.wait_for_selector("#cards >> text=it belongs beside this page")
    page.close()


def test_ten_thousand_questions(large, visit):
    assert large.stat().st_size < 300_000
    began = time.monotonic()
    tab = visit(large)
    assert not [url for url in tab.asked if url.endswith(".js")]  # nothing before a reader comes near
    tab.page.locator("#examples").scroll_into_view_if_needed()
    tab.page.wait_for_selector(".card")
    assert "of 10,000 questions" in tab.page.inner_text("#found")
    tab.page.select_option("#show", "flips")
    tab.page.wait_for_function("() => !document.querySelector('#found').textContent.includes('10,000')")
    took = time.monotonic() - began
    assert took < INTERACTIVE_S, took
    scripts = [url.rpartition("/")[2] for url in tab.asked if url.endswith(".js")]
    assert len(scripts) == len(set(scripts)) and 3 <= len(scripts) <= 2 + 2 * 10
    assert len(list(large.parent.glob("data-*/*.js"))) == 1 + 2 + 2 * 200
    tab.page.keyboard.press("n")
    tab.page.wait_for_function("() => document.querySelector('#found').textContent.startsWith('11–20')")
