"""LLaVA-Hound's data as its scripts lay it out: frame folders, 17k prompts, ten test sets."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from make_videos import counting_frames, save_images

from isrdpo_jax.data.datasets.llava_hound import set_of
from isrdpo_jax.data.loader import configured_splits, open_split
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config, DataConfig, HoundTestSet

FRAMES = [f"c01_{number:04d}.jpeg" for number in range(1, 6)]
SETS = get_args(HoundTestSet)
IN_PAIRS = ("msvd", "msrvtt", "tgif")  # sets whose videos have official questions too


def write_jsonl(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def preference(video: str, prompt: str, number: int) -> dict:
    return {
        "id": f"{video}_{number}",
        "video": video,
        "prompt": prompt,
        "answer": "A cat.",
        "chosen": "",
        "chosen_score": 4,
        "rejected": "A <video> of a dog.</s>",
        "rejected_score": 2,
    }


def qa_row(name: str, number: int, question: str, **more) -> dict:
    turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": "A cat."}]
    return {"id": f"{number}_1_0", "video": f"test/{name}/{number}", "conversations": turns, **more}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hound")
    videos, instructions = root / "video_data", root / "video_instruction"
    for name in ("train/v_one-Scene-006", *(f"test/{name}/{n}" for name in SETS[:7] for n in (7, 8))):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        save_images(videos / name, FRAMES)
    write_video(videos / "train" / "8467.clip.mp4", counting_frames(6, 16, 16), fps=8)
    prompts = [
        preference("v_one-Scene-006", "<video>\nWhat moves?", 0),
        preference("8467.clip", "Who sits there?\n<video>", 0),
        preference("v_one-Scene-006", "And why?", 1),
    ]
    write_jsonl(instructions / "train" / "dpo" / "sft_dpo_17k.jsonl", prompts)
    for name in SETS[:7]:
        rows = [qa_row(name, n, "What moves?", caption=f"In {name}/{n} a cat runs.") for n in (7, 8)]
        write_jsonl(instructions / "test" / f"{name}.qa.jsonl", rows)
    for name in IN_PAIRS:
        write_jsonl(instructions / "test" / f"{name}.qa.official.jsonl", [qa_row(name, 7, "What is it?")])
    return root


def config(root: Path, **fields) -> Config:
    return Config(
        data=DataConfig(dataset="llava_hound", path=str(root), dir=str(root / "prepared"), max_bad_fraction=0, **fields)
    )


def test_prompts_without_their_answers(root):
    source = open_split(config(root), "train", num_frames=4)
    assert source.ids == ["8467.clip", "v_one-Scene-006"] and source.skips == {}
    clip, scene = source
    asked = [(question.id, question.text, question.answer) for question in (*clip.questions, *scene.questions)]
    assert asked == [
        ("8467.clip_0", "Who sits there?", None),
        ("v_one-Scene-006_0", "What moves?", None),
        ("v_one-Scene-006_1", "And why?", None),
    ]
    videos = root / "video_data" / "train"
    np.testing.assert_array_equal(clip.frames, decode_video(videos / "8467.clip.mp4", 4).frames)
    np.testing.assert_array_equal(scene.frames, decode_video(videos / "v_one-Scene-006", 4).frames)


def test_all_ten_test_sets_share_their_videos(root):
    every = config(root, test_sets=SETS)
    assert configured_splits(every) == ["train", "eval"]
    source = open_split(every, "eval", num_frames=4)
    assert len(source) == 14
    videos = {video.id: video for video in source}
    asked = [question for video in source for question in video.questions]
    assert {set_of(question.id) for question in asked} == set(SETS)
    assert len(asked) == len({question.id for question in asked}) == 7 * 2 + 3
    own, official = videos["test/msvd/7"].questions
    assert (own.id, own.answer, own.caption) == ("msvd/7_1_0", "A cat.", "In msvd/7 a cat runs.")
    assert (official.id, official.text, official.caption) == ("msvd_official/7_1_0", "What is it?", None)


def test_some_of_the_test_sets(root):
    source = open_split(config(root, test_sets=("ssv2",)), "eval", num_frames=2)
    assert source.ids == ["test/ssv2/7", "test/ssv2/8"] and source[0].frames.shape[0] == 2


def test_places_name_the_file(root, tmp_path):
    folder = tmp_path / "video_instruction" / "test"
    write_jsonl(folder / "webvid.qa.jsonl", [qa_row("webvid", 7, "What moves?")])
    write_jsonl(folder / "vidal.qa.jsonl", [qa_row("vidal", 7, "What moves?"), {"video": "x"}])
    with pytest.raises(DataError) as caught:
        open_split(config(tmp_path, test_sets=("vidal", "webvid")), "eval", num_frames=4)
    assert f"vidal.qa.jsonl, {folder}/webvid.qa.jsonl: 1 of 3 rows cannot be used" in str(caught.value)
    assert f"{folder}/vidal.qa.jsonl, line 2: the field question is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "split", "message"),
    [
        ({"path": None}, "train", "data.path: not given; llava_hound needs the folder"),
        ({}, "eval", "data.test_sets: not given"),
        ({}, "sft", "no labelled rows"),
        ({"path": "nowhere"}, "train", r"nowhere/video_instruction/train/dpo/sft_dpo_17k\.jsonl"),
    ],
)
def test_what_is_not_there_is_named(root, fields, split, message):
    settings = config(root).data.model_copy(update=fields)
    with pytest.raises(DataError, match=message):
        open_split(Config(data=settings), split, num_frames=4)
