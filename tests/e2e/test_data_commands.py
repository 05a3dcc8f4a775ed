"""LLaVA-Hound's layout from check to run, and the data commands as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from tiny_run import Lab, Ran

from isrdpo_jax.data.question_rows import read_rows
from isrdpo_jax.runs.atomic import read_json, read_jsonl
from isrdpo_jax.schema import HoundTestSet

SETS = get_args(HoundTestSet)


def frames(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(1, 6):
        pixels = rng.integers(0, 256, (24, 33, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"c01_{number:04d}.jpeg")


def rows(file: Path, lines: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def hound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with a damaged and a missing video, two questions per training video, and all test sets."""
    root = tmp_path_factory.mktemp("hound")
    names = ["v_one-Scene-006", "v_two-Scene-001", "S7oDXq"]
    for number, name in enumerate(names):
        frames(root / "video_data" / "train" / name, number)
    (root / "video_data" / "train" / "torn").mkdir()
    (root / "video_data" / "train" / "torn" / "c01_0001.jpeg").write_bytes(b"torn")
    asked = [
        (name, question) for name in (*names, "torn", "gone") for question in ("What moves?", "What is behind it?")
    ]
    rows(
        root / "video_instruction" / "train" / "dpo" / "sft_dpo_17k.jsonl",
        [
            {"video": video, "prompt": f"<video>\n{question}", "chosen": "", "rejected": "<video>", "answer": "A cat."}
            for video, question in asked
        ],
    )
    for number, name in enumerate(SETS):
        plain = name.removesuffix("_official")
        if plain == name:
            frames(root / "video_data" / "test" / name / "7", number)
        turns = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A cat."}]
        row = {"id": "7_0", "video": f"test/{plain}/7", "conversations": turns}
        suffix = "qa" if plain == name else "qa.official"
        caption = {"caption": "A cat runs."} if plain == name else {}
        rows(root / "video_instruction" / "test" / f"{plain}.{suffix}.jsonl", [row | caption])
    return root


@pytest.fixture
def settings(hound: Path, lab: Lab) -> list[str]:
    sets = f"data.test_sets=[{', '.join(SETS)}]"
    return ["data.dataset=llava_hound", f"data.path={hound}", sets, "data.max_bad_fraction=0.5", "run.iterations=1"]


def test_check_finds_what_a_run_would_meet(lab: Lab, settings: list[str], isrdpo):
    checked = isrdpo("data", "check", lab.config, *settings, "--json")
    found = json.loads(checked.out)
    assert checked.code == 0 and found["ok"] and found["splits"].keys() == {"train", "eval"}
    train = found["splits"]["train"]
    assert (train["rows"], train["usable"], train["skips"]["counts"]) == (10, 6, {"corrupt": 1, "missing": 1})
    shown = " ".join(isrdpo("data", "check", lab.config, *settings).out.split())
    assert "6 of 10 rows and 3 of 5 videos can be used" in shown and "nothing to mend" in shown


def test_check_ends_with_2_where_a_run_would_stop(lab: Lab, settings: list[str], isrdpo):
    strict = isrdpo("data", "check", lab.config, *settings, "data.max_bad_fraction=0.1")
    assert strict.code == 2 and "4 of 10 rows cannot be used" in " ".join(strict.out.split())


def test_preview(lab: Lab, settings: list[str], isrdpo, tmp_path: Path):
    shown = isrdpo("data", "preview", lab.config, *settings, "--split", "eval", "--count", "1")
    assert shown.code == 0 and "4 frames of 33 x 24, seen as 32 x 32" in shown.out
    page = tmp_path / "page.html"
    assert isrdpo("data", "preview", lab.config, *settings, "--html", page).code == 0
    assert page.read_text(encoding="utf-8").count("data:image/png;base64,") == 3 * 4


def test_build_and_run(lab: Lab, settings: list[str], isrdpo, one_device):
    built = isrdpo("data", "build", lab.config, *settings)
    assert built.code == 0 and "train: 3 videos" in built.err and "eval: 7 videos" in built.err
    run = lab.run("hound", *settings).layout
    answers = read_jsonl(run.iteration(1).evaluation / "answers.jsonl")
    assert {row["id"] for row in answers} == {f"{name}/7_0" for name in SETS}
    assert read_json(run.iteration(1).manifest("collect"))["counts"]["questions"] == 6
    status = json.loads(isrdpo("status", run.root, "--json").out)
    assert (status["state"], status["skipped"]) == ("finished", {"corrupt": 1, "missing": 1})


@pytest.mark.parametrize("form", ["trl", "llamafactory", "ms-swift"])
def test_exported_pairs_are_read_back_as_questions(finished: Ran, isrdpo, tmp_path: Path, form: str):
    out = tmp_path / "pairs.jsonl"
    assert isrdpo("data", "export-pairs", finished.layout.root, "1", out, "--format", form).code == 0
    pairs, read = read_jsonl(finished.layout.iteration(1).pairs), read_rows(out)
    assert [(row.id, row.question) for row in read.good] == [(pair["id"], pair["question"]) for pair in pairs]
    assert all(
        row.path.is_file() and row.path.stem == pair["video"] for row, pair in zip(read.good, pairs, strict=True)
    )


def test_eval_answers_all_test_sets(lab: Lab, settings: list[str], isrdpo, one_device, tmp_path: Path):
    judge = ["evaluation.judge.kind=policy", f"evaluation.judge.model={lab.policy}"]
    out = tmp_path / "evaluation"
    said = isrdpo("eval", lab.policy, lab.config, *settings, *judge, "--out", out, "--json")
    (row,) = json.loads(said.out)["rows"]
    assert row["total"] == len(SETS)
    assert row["outcomes"]["missing: no caption"] == 3  # of the official sets
    answers = read_jsonl(Path(row["answers"]))
    assert {answer["id"] for answer in answers} == {f"{name}/7_0" for name in SETS}
