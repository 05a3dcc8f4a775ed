"""Pairs in the forms of other trainers, which we read back as questions."""

import json

import pytest

from isrdpo_jax.config import dump_yaml
from isrdpo_jax.data.export_pairs import export_pairs
from isrdpo_jax.data.question_rows import read_rows
from isrdpo_jax.errors import DataError
from isrdpo_jax.runs.atomic import read_jsonl, write_jsonl, write_text
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.schema import Config

PAIRS = [
    {"id": "q-1", "video": "my%20clip.mp4", "question": "Who?", "chosen": "A cat.", "rejected": "A dog."},
    {"id": "q-2", "video": "a.mp4", "question": "Why?", "chosen": "A <video>.", "rejected": "It is late."},
]


@pytest.fixture
def run(tmp_path):
    rows = [{"video": name, "question": "Who?"} for name in ("my clip.mp4", "a.mp4")]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "answer.txt").write_text("Say it: {question}\n")
    layout = RunLayout(tmp_path / "run")
    sections = {
        "data": {"dataset": "video_qa", "path": str(tmp_path / "qa.jsonl")},
        "prompts": {"dir": str(tmp_path / "prompts")},
    }
    write_text(layout.config, dump_yaml(Config.model_validate(sections)))
    write_jsonl(layout.iteration(1).pairs, PAIRS)
    layout.iteration(1).manifest("pairs").touch()
    return layout


def message(role, text):
    return {"role": role, "content": text}


def test_each_form(run, tmp_path):
    video, asked = str(tmp_path / "my clip.mp4"), "Say it: Who?"
    rows = {
        "trl": {
            "prompt": [message("user", asked)],
            "chosen": [message("assistant", "A cat.")],
            "rejected": [message("assistant", "A dog.")],
        },
        "llamafactory": {
            "conversations": [{"from": "human", "value": f"<video>{asked}"}],
            "chosen": {"from": "gpt", "value": "A cat."},
            "rejected": {"from": "gpt", "value": "A dog."},
        },
        "ms-swift": {
            "messages": [message("user", f"<video>{asked}"), message("assistant", "A cat.")],
            "rejected_response": "A dog.",
        },
    }
    for name, expected in rows.items():
        out = tmp_path / "out" / f"{name}.jsonl"
        assert export_pairs(run.root, 1, out, name) == {"pairs": 1, "left_out": 1}
        assert read_jsonl(out) == [{"id": "q-1", **expected, "videos": [video]}]
        (row,) = read_rows(out).good
        assert (row.id, row.question, str(row.path), row.answer) == ("q-1", asked, video, None)


def test_an_iteration_without_pairs(run, tmp_path):
    write_jsonl(run.iteration(2).pairs, PAIRS)  # not finished: no manifest
    with pytest.raises(DataError, match="iter_02: this iteration has no finished pairs"):
        export_pairs(run.root, 2, tmp_path / "out.jsonl", "trl")
