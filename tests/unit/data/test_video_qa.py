"""A user's own videos and questions: what is prepared, what is skipped and counted, and when to stop."""

import json
import os

import numpy as np
import pytest
import test_bad_videos
from make_videos import counting_frames, save_images

from isrdpo_jax.data import loader
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config, DataConfig

BAD_ROWS = [
    ({"video": "a.mp4"}, "missing_field"),
    ({"video": "a.mp4", "question": "Who?", "id": "a.mp4#1"}, "duplicate_id"),
    ({"video": "a.mp4", "question": " "}, "empty_question"),
    ({"video": "a.mp4", "question": "Look at <video>."}, "video_marker"),
    ({"video": "a.mp4", "question": "Who?", "answer": "The <video> shows me."}, "video_marker"),
]
BAD_VIDEOS = [
    (test_bad_videos.missing, "missing"),
    (test_bad_videos.zero_bytes, "empty"),
    (test_bad_videos.text_as_mp4, "not_a_video"),
    (test_bad_videos.truncated_plain, "not_a_video"),
    (test_bad_videos.truncated_faststart, "short_decode"),
    (test_bad_videos.audio_only, "no_video_stream"),
    (test_bad_videos.no_stream, "zero_frames"),
]


def ask(video, **fields):
    return {"video": video, "question": "What moves?"} | fields


def write_rows(folder, rows):
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config(folder, **fields):
    settings = {"path": str(folder / "qa.jsonl"), "max_bad_fraction": 1.0} | fields
    return Config(data=DataConfig(dataset="video_qa", dir=str(folder / "prepared"), **settings))


def prepare(folder, rows, **fields):
    write_rows(folder, rows)
    return open_split(config(folder, **fields), "train", num_frames=4)


def nothing_is_prepared(folder):
    return not [path for path in (folder / "prepared").rglob("*") if path.is_file() and path.name != "lock"]


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "a.mp4", counting_frames(6, 16, 16), fps=8)
    return tmp_path


def test_each_video_comes_once_with_its_questions_in_the_order_of_ids(folder):
    write_video(folder / "one frame.mp4", counting_frames(1, 20, 16), fps=8)
    save_images(folder / "frames", ["1.png", "2.png", "3.png"])
    rows = [
        ask("one frame.mp4", id="q-one"),
        ask("frames", answer="Nothing."),
        ask("a.mp4"),
        ask("frames", question="How many?"),
    ]
    source = prepare(folder, rows, max_bad_fraction=0.0)
    assert source.ids == ["a.mp4", "frames", "one%20frame.mp4"] and source.skips == {}
    for video_id, name, video in zip(source.ids, ["a.mp4", "frames", "one frame.mp4"], source, strict=True):
        assert video.id == video_id and video.truth is None and video.sft_rows == ()
        np.testing.assert_array_equal(video.frames, decode_video(folder / name, 4).frames)
    asked = [[(question.id, question.text, question.answer) for question in video.questions] for video in source]
    assert asked == [
        [("a.mp4#1", "What moves?", None)],
        [("frames#1", "What moves?", "Nothing."), ("frames#2", "How many?", None)],
        [("q-one", "What moves?", None)],
    ]


def test_every_kind_of_bad_row_and_video_is_skipped_and_counted(folder):
    videos = []
    for number, (make, _) in enumerate(BAD_VIDEOS):
        (folder / str(number)).mkdir()
        videos.append(str(make(folder / str(number)).relative_to(folder)))
    rows = [ask("a.mp4"), *(row for row, _ in BAD_ROWS), *map(ask, videos), ask(videos[0], question="Again?")]
    source = prepare(folder, rows)
    assert source.ids == ["a.mp4"] and [question.id for question in source[0].questions] == ["a.mp4#1"]
    reasons = [reason for _, reason in (*BAD_ROWS, *BAD_VIDEOS)]
    assert source.skips == {reason: reasons.count(reason) for reason in reasons}

    stored = json.loads((source.folder / "skips.json").read_text())
    assert stored["counts"] == source.skips and stored["total"] == 12 and stored["of"] == 14
    assert [(row["line"], row["reason"]) for row in stored["rows"]] == list(enumerate(reasons, 2))
    assert {row["path"] for row in stored["rows"][:5]} == {str(folder / "qa.jsonl")}
    assert [row["path"] for row in stored["rows"][5:]] == [str(folder / video) for video in videos]
    assert [row["rows"] for row in stored["rows"][5:7]] == [2, 1]
    assert all(row["detail"] for row in stored["rows"])


def test_too_many_bad_records_stop_with_counts_and_places(folder):
    rows = [ask("a.mp4")] * 17 + [ask("gone.mp4"), {"video": "a.mp4"}, ask("gone.mp4")]
    with pytest.raises(DataError) as caught:
        prepare(folder, rows, max_bad_fraction=0.1)
    message = str(caught.value)
    assert "qa.jsonl: 3 of 20 rows cannot be used" in message and "(missing 1, missing_field 1)" in message
    assert f"qa.jsonl, line 18: {folder / 'gone.mp4'}: no such file or folder [missing]" in message
    assert "qa.jsonl, line 19: the field question is missing [missing_field]" in message
    assert nothing_is_prepared(folder)
    assert len(prepare(folder, rows, max_bad_fraction=0.15)) == 1


def test_bad_rows_alone_stop_before_anything_is_decoded(folder, monkeypatch):
    from isrdpo_jax.data.datasets import asked_videos

    monkeypatch.setattr(asked_videos, "decode_many", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"7 of 8 .*The first: \S*, line 2: [^;]*(; \S*, line \d: [^;]*){4}\. Repair"):
        prepare(folder, [ask("a.mp4")] + [ask("a.mp4", id=3)] * 7, max_bad_fraction=0.8)
    assert nothing_is_prepared(folder)


def test_no_usable_video(folder):
    with pytest.raises(DataError, match="nothing to train or evaluate on"):
        prepare(folder, [ask("gone.mp4")])
    assert nothing_is_prepared(folder)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"video": "a.mp4"}, r"qa\.jsonl, line 2: the field question is missing \[missing_field\]"),
        (ask("gone.mp4"), r"qa\.jsonl, line 2: .*gone\.mp4: no such file or folder \[missing\]"),
    ],
)
def test_fail_names_file_and_line(folder, row, place):
    with pytest.raises(DataError, match=place):
        prepare(folder, [ask("a.mp4"), row], on_bad_record="fail")
    assert nothing_is_prepared(folder)


def test_a_stricter_setting_holds_for_data_that_is_prepared(folder, monkeypatch):
    prepare(folder, [ask("a.mp4"), ask("gone.mp4")])
    monkeypatch.setattr(loader, "_prepare", lambda builder: pytest.fail("built again"))
    for stricter in ({"on_bad_record": "fail"}, {"max_bad_fraction": 0.4}):
        with pytest.raises(DataError, match="line 2"):
            open_split(config(folder, **stricter), "train", num_frames=4)
    assert open_split(config(folder), "train", num_frames=4).skips == {"missing": 1}


def test_a_change_is_prepared_anew_and_nothing_else(folder, monkeypatch):
    first = prepare(folder, [ask("a.mp4"), ask("late.mp4")])
    with monkeypatch.context() as patch:
        patch.setattr(loader, "_prepare", lambda builder: pytest.fail("built again"))
        again = open_split(config(folder), "train", num_frames=4)
        assert (again.folder, again.digest, again.skips) == (first.folder, first.digest, {"missing": 1})

    write_video(folder / "late.mp4", counting_frames(3, 16, 16), fps=8)
    appeared = open_split(config(folder), "train", num_frames=4)
    assert appeared.ids == ["a.mp4", "late.mp4"] and appeared.skips == {}

    write_video(folder / "a.mp4", 255 - counting_frames(6, 16, 16), fps=8)
    replaced = open_split(config(folder), "train", num_frames=4)
    np.testing.assert_array_equal(replaced[0].frames, decode_video(folder / "a.mp4", 4).frames)
    assert replaced.digest != appeared.digest

    asked = prepare(folder, [ask("a.mp4", question="And now?"), ask("late.mp4")])
    assert asked[0].questions[0].text == "And now?"
    shorter = open_split(config(folder), "train", num_frames=2)
    assert shorter[0].frames.shape == (2, 16, 16, 3)
    assert len({source.folder for source in (first, appeared, replaced, asked, shorter)}) == 5


def test_an_image_rewritten_in_place_is_a_change(folder):
    image = save_images(folder / "frames", ["1.png", "2.png"]) / "2.png"
    first = prepare(folder, [ask("frames")])
    before = (folder / "frames").stat()
    image.write_bytes(image.read_bytes())
    os.utime(image, ns=(0, 1))
    assert (folder / "frames").stat().st_mtime_ns == before.st_mtime_ns
    assert open_split(config(folder), "train", num_frames=4).folder != first.folder


def test_the_time_limit_reaches_the_decoder(folder):
    with pytest.raises(DataError, match=r"line 1: .*a\.mp4: not decoded after 1e-06 s \[timeout\]"):
        prepare(folder, [ask("a.mp4")], decode_timeout_s=1e-6)


def test_eval_reads_its_own_file(folder):
    write_rows(folder, [ask("a.mp4", id="held-out")])
    (folder / "qa.jsonl").rename(folder / "eval.jsonl")
    source = open_split(config(folder, eval_path=str(folder / "eval.jsonl")), "eval", num_frames=4)
    assert [question.id for question in source[0].questions] == ["held-out"]


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "data.path: not given"), ("eval", "data.eval_path: not given"), ("sft", "no labelled rows")],
)
def test_splits_that_are_not_there(folder, split, message):
    with pytest.raises(DataError, match=message):
        open_split(config(folder, path=None), split, num_frames=4)
