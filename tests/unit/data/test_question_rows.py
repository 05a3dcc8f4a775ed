"""Rows of a user's file: what is read, and every way to be refused."""

import codecs
import json
from typing import get_args

import pytest

from isrdpo_jax.data.question_rows import read_rows
from isrdpo_jax.data.row_files import RowReason
from isrdpo_jax.errors import DataError

GOOD = {"video": "a.mp4", "question": "What moves?"}


def read(folder, *lines, end=b"\n"):
    path = folder / "qa.jsonl"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + end for line in lines))
    return read_rows(path)


BAD = [
    (b'{"video": "a.mp4", "question": "W\xff"}', "not_utf8", "byte 34"),
    (rb'{"video": "a.mp4", "question": "W\ud800"}', "not_utf8", "question has half a character"),
    (b'{"video": "a.mp4", "question": "What', "bad_json", "column 32"),
    (b'["a.mp4", "What?"]', "bad_json", "not a JSON object"),
    (b'{"video": ' + b"[" * 100_000, "bad_json", "not usable JSON"),
    (b'{"video": ' + b"1" * 5000 + b"}", "bad_json", "not usable JSON"),
    ({"question": "What?"}, "missing_field", "field video is missing"),
    ({"video": "a.mp4"}, "missing_field", "field question is missing"),
    ({"video": "a.mp4", "question": None}, "missing_field", "field question is missing"),
    ({"video": "", "question": "What?"}, "missing_field", "field video is empty"),
    (GOOD | {"id": " "}, "missing_field", "field id is empty"),
    ({"video": ["a.mp4"], "question": "What?"}, "wrong_type", 'field video must be a string, not ["a.mp4"]'),
    (GOOD | {"id": 7}, "wrong_type", "field id must be a string, not 7"),
    (GOOD | {"answer": False}, "wrong_type", "field answer must be a string, not false"),
    ({"video": "a.mp4", "question": ""}, "empty_question", "empty"),
    ({"video": "a.mp4", "question": " \t"}, "empty_question", "empty"),
    ({"video": "a.mp4", "question": "<video>\nWhat?"}, "video_marker", "in the question"),
    (GOOD | {"answer": "A <video>."}, "video_marker", "in the answer"),
    (GOOD | {"question": "<image>\nWhat?"}, "video_marker", "a literal <image> in the question"),
    ({"videos": ["a.mp4", "b.mp4"], "prompt": "What?"}, "several_videos", "2 videos"),
    ({"video": "a.mp4", "messages": [{"role": "user", "content": "Who?"}] * 2}, "several_turns", "2 user turns"),
    (GOOD | {"id": "first"}, "duplicate_id", "line 1 has the id 'first'"),
    (GOOD | {"id": "a.mp4#1"}, "duplicate_id", "line 2 has the id 'a.mp4#1'"),
]


@pytest.mark.parametrize(("line", "reason", "detail"), BAD, ids=[f"{case[1]}-{i}" for i, case in enumerate(BAD)])
def test_a_bad_row_is_refused_with_line_and_reason_and_the_others_stay(tmp_path, line, reason, detail):
    rows = read(tmp_path, {"video": "b.mp4", "question": "Who?", "id": "first"}, GOOD, line, GOOD | {"id": "last"})
    assert [(bad.line, bad.reason) for bad in rows.bad] == [(3, reason)]
    assert detail in rows.bad[0].detail
    assert [(row.line, row.id) for row in rows.good] == [(1, "first"), (2, "a.mp4#1"), (4, "last")]
    assert len(rows) == 4


def test_every_reason_is_covered():
    assert {reason for _, reason, _ in BAD} | {"bad_csv"} == set(get_args(RowReason))


def test_fields_are_kept_as_written(tmp_path):
    rows = read(tmp_path, {"video": "a.mp4", "question": " Wás? ", "id": "x", "answer": "", "extra": [1], "note": None})
    (row,) = rows.good
    assert (row.video, row.id, row.question, row.answer) == ("a.mp4", "x", " Wás? ", "")


def test_null_is_absent(tmp_path):
    (row,) = read(tmp_path, GOOD | {"id": None, "answer": None}).good
    assert (row.id, row.answer) == ("a.mp4#1", None)


def test_questions_of_a_video_are_numbered_under_one_id(tmp_path):
    lines = [{"video": video, "question": "What?"} for video in ("a.mp4", "b.mp4", "./a.mp4", "x//a.mp4", "x/a.mp4")]
    rows = read(tmp_path, *lines)
    assert [row.id for row in rows.good] == ["a.mp4#1", "b.mp4#1", "a.mp4#2", "x/a.mp4#1", "x/a.mp4#2"]
    assert [row.video_id for row in rows.good] == ["a.mp4", "b.mp4", "a.mp4", "x/a.mp4", "x/a.mp4"]


def test_video_ids_are_plain_and_stay_apart(tmp_path):
    names = ["my clip.mp4", "my%20clip.mp4", "my#clip.mp4", "mÿ.mp4", "../up.mp4", "/abs/olute.mp4"]
    ids = [row.video_id for row in read(tmp_path, *({"video": name, "question": "?"} for name in names)).good]
    assert ids == [
        "my%20clip.mp4", "my%2520clip.mp4", "my%23clip.mp4", "m%C3%BF.mp4", "../up.mp4", "/abs/olute.mp4",
    ]  # fmt: skip


def test_windows_files_and_blank_lines(tmp_path):
    bom, blank = codecs.BOM_UTF8 + json.dumps(GOOD).encode(), b"  "
    rows = read(tmp_path, bom, blank, b"", GOOD, end=b"\r\n")
    assert [(row.line, row.question) for row in rows.good] == [(1, "What moves?"), (4, "What moves?")] and not rows.bad


def test_a_last_line_without_an_end(tmp_path):
    assert len(read(tmp_path, GOOD, GOOD, end=b"\n").good) == 2
    (tmp_path / "qa.jsonl").write_bytes(json.dumps(GOOD).encode())
    assert len(read_rows(tmp_path / "qa.jsonl").good) == 1


def test_the_digest_is_of_the_content(tmp_path):
    first = read(tmp_path, GOOD).sha256
    assert read(tmp_path, GOOD).sha256 == first != read(tmp_path, GOOD, b"").sha256


@pytest.mark.parametrize("content", [b"", b"\n\r\n \n"])
def test_a_file_without_rows(tmp_path, content):
    (tmp_path / "qa.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="no rows"):
        read_rows(tmp_path / "qa.jsonl")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl.*No such file"):
        read_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path)


def table(folder, text, name="qa.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_rows(path)


def test_a_table(tmp_path):
    text = 'video,question,answer,caption\na.mp4,"Who, and\nwhy?",,\n\nb c.mp4,What?,A cat.,"A cat, asleep."\n'
    first, second = table(tmp_path, text).good
    assert (first.line, first.id, first.question, first.answer) == (2, "a.mp4#1", "Who, and\nwhy?", None)
    assert (second.line, second.path, second.answer) == (5, tmp_path / "b c.mp4", "A cat.")
    assert (first.caption, second.caption) == (None, "A cat, asleep.")


def test_a_row_with_too_many_cells_is_refused_and_the_others_stay(tmp_path):
    rows = table(tmp_path, "\ufeffvideo,question\na.mp4,Who, where?\na.mp4,Who?\na.mp4\n")
    assert [(bad.line, bad.reason) for bad in rows.bad] == [(2, "bad_csv"), (4, "missing_field")]
    assert [row.line for row in rows.good] == [3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'video,question\na.mp4,"Who?\n', "cannot be read behind line 2"),
        (b"video,question\na.mp4,Wh\xff\n", "line 2 is not UTF-8"),
        (b"video,question\n", "no rows"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "qa.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "qa.csv")


def test_an_array_of_rows(tmp_path):
    rows = table(tmp_path, json.dumps([GOOD, 7, GOOD]), "qa.json")
    assert [(row.line, row.id) for row in rows.good] == [(1, "a.mp4#1"), (3, "a.mp4#2")]
    assert [(bad.line, bad.reason) for bad in rows.bad] == [(2, "bad_json")]
    with pytest.raises(DataError, match="not a JSON array"):
        table(tmp_path, json.dumps(GOOD), "qa.json")


def test_a_place_of_their_own_for_videos_and_a_prefix_for_ids(tmp_path):
    (tmp_path / "qa.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"id": "7_0"}))
    rows = read_rows(tmp_path / "qa.jsonl", lambda video: tmp_path / "frames" / video, prefix="set/")
    assert [row.id for row in rows.good] == ["set/a.mp4#1", "set/7_0"]
    assert {(row.path, row.video_id) for row in rows.good} == {(tmp_path / "frames" / "a.mp4", "a.mp4")}
