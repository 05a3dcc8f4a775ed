import json

import numpy as np
import pytest
import synthetic
from page import read_data

from isrdpo_jax.report import examples
from isrdpo_jax.report.build import build_report
from isrdpo_jax.report.videos import Videos


def rows(run, t, kind):
    return [json.loads(line) for path in (run / f"iter_{t:02d}" / kind).glob("*.jsonl") for line in path.open()]


def shown(data, t, run):
    """id -> (figures, texts) of a run's questions at iteration t."""
    texts = [example for name in data if name.startswith(f"t{t:02d}-") for example in data[name][run]]
    ids = [id for id, *_ in data["questions"]["questions"]]
    return {
        id: (figures, example)
        for id, figures, example in zip(ids, data[f"t{t:02d}"][run], texts, strict=True)
        if figures
    }


def test_every_question_is_there_with_all_of_it(data, whole_runs):
    assert len(data["questions"]["questions"]) == synthetic.QUESTIONS
    for run, folder in enumerate(whole_runs):
        for t in (1, 2, 3):
            found = shown(data, t, run)
            told = {row["video"]: row for row in rows(folder, t, "descriptions")}
            kept = {json.loads(line)["id"] for line in (folder / f"iter_{t:02d}/pairs.jsonl").open()}
            verdicts = {row["id"]: row for row in rows(folder, t, "judgements")}
            for row in rows(folder, t, "responses"):
                (margin, verdict, reason, flips, longest, wrong, _), example = found.pop(row["id"])
                judged, description = verdicts[row["id"]], told.get(row["video"], {})
                assert example["responses"] == [[one["text"], one["finish"] == "stop"] for one in row["responses"]]
                assert example["orders"] == judged["log_odds"] and (verdict, reason) == (
                    judged["verdict"],
                    judged["reason"],
                )
                assert margin == (None if judged["margin"] is None else pytest.approx(judged["margin"], abs=1e-4))
                assert flips == (len(judged["log_odds"]) == 2 and np.prod(judged["log_odds"]) < 0)
                assert longest == max(len(one["text"].split()) for one in row["responses"]) and wrong is None
                assert example["kept"] == (row["id"] in kept)
                assert (example["description"], example["previous"]) == (
                    description.get("text"),
                    description.get("previous"),
                )
            assert found == {}


def test_pages_hold_fifty_questions(tmp_path):
    run = synthetic.write_run(tmp_path, "run", iterations=1, questions=120)
    data = read_data(build_report([run], tmp_path / "report", synthetic.videos))
    assert [len(data[f"t01-{page:04d}"][0]) for page in range(3)] == [50, 50, 20] and "t01-0003" not in data
    assert len(shown(data, 1, 0)) == 120


def test_a_question_stands_beside_itself_only(tmp_path):
    runs = [synthetic.write_run(tmp_path, name, iterations=1) for name in ("one", "other")]
    for path in (runs[1] / "iter_01/responses").glob("*.jsonl"):
        path.write_text(path.read_text().replace("why, in video v0", "how, in video v0"))
    data = read_data(build_report(runs, tmp_path / "report", synthetic.videos))
    sides = {tuple(key): (one, other) for (*key, _), one, other in zip(data["questions"]["questions"], *data["t01"])}  # noqa: B905
    alone = {key: (bool(one), bool(other)) for key, (one, other) in sides.items() if key[1] == "v0"}
    assert sorted(alone.values()) == [(False, True)] * 2 + [(True, False)] * 2
    assert all(one and other for key, (one, other) in sides.items() if key[1] != "v0")


def test_wrong_verdicts_are_known_where_the_truth_is(tmp_path):
    run = synthetic.write_run(tmp_path, "run", iterations=1)
    thing = {"colour": "red", "shape": "circle", "direction": "left", "size": "small"}
    truth = {"objects": [thing, thing | {"colour": "blue"}], "background": "dark"}
    for path in (run / "iter_01/responses").glob("*.jsonl"):
        told = [json.loads(line) for line in path.open()]
        for row in told:
            row["question"] = "What does the red object do?"
            for one, way in zip(row["responses"], ("left", "up"), strict=True):
                one["text"] = f"The red circle moves {way}."
        path.write_text("".join(json.dumps(row) + "\n" for row in told))
    truths = {f"v{i}": truth for i in range(synthetic.QUESTIONS // 2)}
    data = read_data(build_report([run], tmp_path / "report", lambda run: Videos(synthetic.frames, truths)))
    for (_, verdict, *_, wrong, _), _ in shown(data, 1, 0).values():
        assert wrong == verdict  # the first response is the true one
    assert {figures[5] for figures, _ in shown(data, 1, 0).values()} == {None, 0, 1}


def test_videos_of_telling_questions_come_first_when_not_all_fit(tmp_path):
    run = synthetic.write_run(tmp_path, "run", iterations=1)
    report = build_report([run], tmp_path / "report", synthetic.videos, max_strips=2)
    data = read_data(report)
    strips = {strip[0]: video for _, video, _, strip in data["questions"]["questions"] if strip}
    assert len(strips) == 2 == len(list(report.parent.glob("data-*/*.png")))
    clearest = max(shown(data, 1, 0).values(), key=lambda one: abs(one[0][0] or 0) if one[0][1] is not None else 0)
    assert clearest in [found for id, found in shown(data, 1, 0).items() if f"v{int(id[1:]) // 2}" in strips.values()]


def test_a_new_report_takes_the_place_of_the_old_data(runs, tmp_path):
    build_report(runs, tmp_path / "report", synthetic.videos)
    (old,) = (tmp_path / "report").glob("data-*")
    build_report(runs, tmp_path / "report", synthetic.videos)
    assert [old] == list((tmp_path / "report").glob("data-*"))
    build_report(runs[:1], tmp_path / "report", synthetic.videos)
    (new,) = (tmp_path / "report").glob("data-*")
    assert new != old


def test_a_report_that_fails_leaves_the_old_one_whole(runs, tmp_path, monkeypatch):
    page = build_report(runs, tmp_path / "report", synthetic.videos)
    before = sorted(path.name for path in page.parent.rglob("*"))
    monkeypatch.setattr(examples, "_digest", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_report(runs[:1], tmp_path / "report", synthetic.videos)
    assert sorted(path.name for path in page.parent.rglob("*")) == before
