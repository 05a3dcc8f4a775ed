import json

import synthetic

from isrdpo_jax.report.load import Description, load_run
from isrdpo_jax.report.retrospection import Rewriting


def test_records_of_an_iteration(tmp_path):
    run = load_run(synthetic.write_run(tmp_path, "run", iterations=2))
    assert (run.name, run.planned, run.setting("dpo.beta"), run.setting("dpo.none", 7)) == ("run", 2, 0.1, 7)
    start, first, second = run.iterations
    assert (start.number, start.judgements, start.pairs, start.summary["accuracy"].count) == (0, (), None, 256)
    assert run.trained == (first, second)
    assert len(first.judgements) == synthetic.QUESTIONS and len(first.kept) == 8
    assert "judge_accuracy" in first.summary and "judge_accuracy" not in start.summary
    assert [row["step"] for row in first.metrics] == list(range(1, 15))
    assert run.notes == ()


def test_descriptions_know_what_is_new_and_what_was_cut(tmp_path):
    path = synthetic.write_run(tmp_path, "run", iterations=2)
    part = path / "iter_02/descriptions/part-00000-00000.jsonl"
    rows = [
        {"video": "v0", "text": "a b c d", "finish": "stop", "previous": "a b c e"},
        {"video": "v1", "text": "a a b", "finish": "length", "previous": None},
    ]
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_run(path).iterations[2].descriptions
    rewritten = Rewriting(words_before=4, words_after=4, reworded=1)
    assert found == (Description("v0", 4, False, 1 - 3 / 5, rewritten), Description("v1", 3, True))


def test_a_measure_without_a_value_is_absent(tmp_path):
    path = synthetic.write_run(tmp_path, "run", iterations=1)
    nothing = {"value": None, "count": 0, "low": None, "high": None}
    (path / "iter_01/evaluation/summary.json").write_text(
        json.dumps({"accuracy": nothing, "words": {"value": 3.5, "count": 2}})
    )
    summary = load_run(path).iterations[1].summary
    assert set(summary) == {"words"}
    assert (summary["words"].value, summary["words"].low) == (3.5, None)
