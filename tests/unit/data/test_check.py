"""`data check`: what a run would meet in its data, with nothing computed and nothing prepared."""

import json

import pytest
from make_videos import counting_frames

from isrdpo_jax.data import check
from isrdpo_jax.data.budget import make_budget
from isrdpo_jax.data.check import check_data
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config, LlamaConfig, ModelConfig, VisionConfig
from isrdpo_jax.weights.policy_folder import packaged_tokenizer

MODEL = ModelConfig(
    vision=VisionConfig(image_size=32, patch_size=16, num_frames=4),
    llama=LlamaConfig(max_positions=200),
)
LONG = "What does the red circle do? " * 20


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "a.mp4", counting_frames(6, 16, 16), fps=8)
    return tmp_path


def config(folder, rows, **sections):
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset": "video_qa", "path": str(folder / "qa.jsonl"), "dir": str(folder / "prepared")}
    return Config.model_validate(
        {
            "data": data | sections.pop("data", {}),
            "sampling": {"max_new_tokens": 10},
            "describe": {"max_new_tokens": 20},
            **sections,
        }
    )


def look(config, largest=2):
    tokenizer = load_tokenizer(packaged_tokenizer("shapes"))
    budget = make_budget(config, MODEL, load_prompts(), tokenizer, verdict=8)
    return budget, check_data(config, budget, num_frames=4, largest=largest)


def test_rows_videos_and_duplicates_are_counted_and_nothing_is_prepared(folder):
    rows = [
        {"video": "a.mp4", "question": "Who?", "id": "first"},
        {"video": "gone.mp4", "question": "Who?"},
        {"video": "a.mp4", "question": "Who?", "id": "first"},
        {"video": "a.mp4"},
        {"video": "gone.mp4", "question": "Why?"},
    ]
    _, found = look(config(folder, rows, data={"max_bad_fraction": 0.9}))
    train = found["splits"]["train"]
    assert found["ok"] and found["splits"].keys() == {"train"}
    assert (train["rows"], train["usable"], train["videos"], train["usable_videos"]) == (5, 1, 2, 1)
    assert train["skips"]["counts"] == {"missing": 1, "duplicate_id": 1, "missing_field": 1}
    assert [(skip["line"], skip["rows"]) for skip in train["skips"]["rows"]] == [(2, 2), (3, 1), (4, 1)]
    assert [skip["line"] for skip in train["duplicate_ids"]] == [3]
    assert not (folder / "prepared").exists()


def test_what_a_run_would_refuse_is_a_problem(folder):
    rows = [{"video": "a.mp4", "question": "Who?"}, {"video": "gone.mp4", "question": "Who?"}]
    _, found = look(config(folder, rows))
    (problem,) = found["problems"]
    assert not found["ok"] and problem.startswith("train: ") and "1 of 2 rows cannot be used" in problem


def test_the_longest_prompts_are_named_and_those_that_do_not_fit_counted(folder):
    rows = [{"video": "a.mp4", "question": text} for text in ("Who?", LONG, "Who moves, and where?")]
    budget, found = look(config(folder, rows))
    prompts = found["splits"]["train"]["prompts"]
    assert found["room"] == 200 - found["prefix"] - 4 * 4 == budget.room
    first, second = prompts["answer"]["largest"]
    assert (first["id"], second["id"], prompts["answer"]["count"], prompts["answer"]["over"]) == (
        "a.mp4#2", "a.mp4#3", 3, 1,
    )  # fmt: skip
    tokens = len(budget.tokenizer.encode_turn(LONG))
    assert (first["tokens"], first["later"], first["written"], first["total"]) == (tokens, 0, 10, tokens + 10)
    judged = prompts["judge"]["largest"][1]
    assert (judged["later"], judged["written"]) == (2 * 10 + 20, 8)
    (problem,) = found["problems"]
    assert "1 of 3 answer prompts" in problem and f"a.mp4#2 needs {tokens + 10}" in problem


def test_a_judgement_that_does_not_fit_costs_its_pair_only(folder):
    _, found = look(config(folder, [{"video": "a.mp4", "question": "Who?"}], sampling={"max_new_tokens": 60}))
    assert found["splits"]["train"]["prompts"]["judge"]["over"] == 1 and found["ok"]


@pytest.mark.parametrize(
    ("judge", "iterations", "kinds"),
    [
        ("retrospective", 2, {"describe", "retrospect", "answer", "judge"}),
        ("retrospective", 1, {"describe", "answer", "judge"}),
        ("fresh", 2, {"describe", "answer", "judge"}),
        ("none", 2, {"answer", "judge"}),
    ],
)
def test_prompts_that_a_run_has(folder, judge, iterations, kinds):
    rows = [{"video": "a.mp4", "question": "Who?"}]
    _, found = look(config(folder, rows, judge={"context": judge}, run={"iterations": iterations}))
    assert found["splits"]["train"]["prompts"].keys() == kinds


def test_held_out_questions_are_only_answered(folder):
    rows = [{"video": "a.mp4", "question": "Who?"}]
    _, found = look(config(folder, rows, data={"eval_path": str(folder / "qa.jsonl")}))
    heldout = found["splits"]["eval"]["prompts"]
    assert heldout.keys() == {"answer"} and heldout["answer"]["largest"][0]["written"] == 1024
    assert [problem.partition(":")[0] for problem in found["problems"]] == ["eval"]


def test_a_prepared_split_is_not_decoded_again(folder, monkeypatch):
    settings = config(folder, [{"video": "a.mp4", "question": "Who?"}, {"video": "b.mp4", "question": "Who?"}])
    lenient = settings.model_copy(update={"data": settings.data.model_copy(update={"max_bad_fraction": 0.5})})
    open_split(lenient, "train", num_frames=4)
    monkeypatch.setattr(check, "decoded", lambda *_: pytest.fail("decoded"))
    _, found = look(lenient)
    assert found["splits"]["train"]["skips"]["counts"] == {"missing": 1} and found["ok"]


def test_the_embedded_world(folder):
    data = {"dataset": "shapes_world", "path": None, "train_videos": 2, "eval_videos": 0}
    train = look(config(folder, [], data=data))[1]["splits"]["train"]
    assert (train["source"], train["rows"], train["usable_videos"]) == ("generated", 4, 2)


def test_no_file(folder):
    settings = config(folder, [{"video": "a.mp4", "question": "Who?"}], data={"path": "nowhere.jsonl"})
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        look(settings)
