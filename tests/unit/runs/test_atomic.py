from __future__ import annotations

import os
from pathlib import Path

import pytest

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs import atomic

ROWS = [{"id": "a", "text": "grün\u2028\ud800"}, {"id": "b", "value": 5e-7}]


def test_files_come_back_as_written_in_folders_that_are_made(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "file"
    atomic.write_text(path, "old")
    atomic.write_bytes(path, b"\x00new")
    assert path.read_bytes() == b"\x00new" and os.listdir(path.parent) == ["file"]
    atomic.write_json(path, {"b": [1, None], "a": "é"})
    assert atomic.read_json(path) == {"b": [1, None], "a": "é"}
    assert path.read_text().index('"b"') < path.read_text().index('"a"')
    atomic.write_jsonl(path, ROWS)
    assert atomic.read_jsonl(path) == ROWS
    atomic.write_jsonl(path, [])
    assert atomic.read_jsonl(path) == []


def test_files_get_the_permissions_that_the_umask_gives(tmp_path: Path):
    former = os.umask(0o022)
    try:
        atomic.write_text(tmp_path / "file", "x")
    finally:
        os.umask(former)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path):
    atomic.write_jsonl(tmp_path / "rows", ROWS)
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_jsonl(tmp_path / "rows", [*ROWS, {"loss": float("nan")}])
    with pytest.raises(ValueError, match="JSON"):
        atomic.append_jsonl(tmp_path / "rows", {"loss": float("inf")})
    assert atomic.read_jsonl(tmp_path / "rows") == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        (b'{"a": 1}\n\n{"a": 2}\n', "line 2: not JSON"),
        (b'{"a": 1}\n[1]\n', "line 2: expected a JSON object"),
        (b'{"a": 1}\n{"a": NaN}\n', "line 2: not JSON .*NaN"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2: not JSON"),
        (b'{"a": 1}\n{"a": 2}', "line 2: the line was cut off"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path}, {message}"):
        atomic.read_jsonl(path)


def test_bad_and_missing_json_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no.json: the file is missing"):
        atomic.read_json(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text('{\n"a": }')
    with pytest.raises(CheckpointError, match="bad.json, line 2: not JSON"):
        atomic.read_json(tmp_path / "bad.json")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        atomic.read_json(tmp_path)


def test_what_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/below: the file cannot be written \(File exists\)"):
        atomic.write_text(tmp_path / "file" / "below", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"folder: the file cannot be written \(Is a directory\)"):
        atomic.write_text(tmp_path / "folder", "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("tail", [b'{"step": 3', b'{"step": 3}', b"\0" * 70000, b'{"step": ' + b"3" * 200_000])
def test_a_torn_last_line_is_dropped_before_appending(tmp_path: Path, tail: bytes):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        atomic.append_jsonl(path, {"step": step})
    with open(path, "ab") as file:
        file.write(tail)
    atomic.append_jsonl(path, {"step": 3})
    assert atomic.read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"ste')
    atomic.append_jsonl(path, {"step": 1})
    assert atomic.read_jsonl(path) == [{"step": 1}]


@pytest.mark.parametrize(("tail", "dropped"), [(b"", 1), (b'{"step": 4', 2), (b"\0\0\0\n", 2)])
def test_truncation_drops_refused_rows_and_the_torn_tail(tmp_path: Path, tail: bytes, dropped: int):
    path = tmp_path / "metrics.jsonl"
    atomic.write_jsonl(path, [{"step": step} for step in (1, 2, 3)])
    with open(path, "ab") as file:
        file.write(tail)
    assert atomic.truncate_jsonl(path, lambda row: row["step"] <= 2) == dropped
    assert atomic.read_jsonl(path) == [{"step": 1}, {"step": 2}]
    inode = path.stat().st_ino
    assert atomic.truncate_jsonl(path, lambda row: True) == 0
    assert path.stat().st_ino == inode, "a file that needs no repair is left alone"


def test_truncation_repairs_no_line_in_the_middle(tmp_path: Path):
    assert atomic.truncate_jsonl(tmp_path / "none", lambda row: True) == 0
    path = tmp_path / "rows"
    path.write_bytes(b'{"step": 1}\nxx\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="rows, line 2: not JSON"):
        atomic.truncate_jsonl(path, lambda row: True)


def test_only_our_temporary_files_are_swept(tmp_path: Path):
    stale = tmp_path / "iter_01" / ".pairs.jsonl.0123456789abcdef.tmp"
    others = [tmp_path / ".notes.tmp", tmp_path / "a.0123456789abcdef.tmp", tmp_path / "pairs.jsonl"]
    stale.parent.mkdir()
    for path in (stale, *others):
        path.touch()
    assert atomic.sweep_temporaries(tmp_path) == 1
    assert not stale.exists() and all(path.exists() for path in others)


def test_free_bytes_of_a_path_that_is_not_there_yet(tmp_path: Path):
    assert atomic.free_bytes(tmp_path / "not" / "yet") > 0
