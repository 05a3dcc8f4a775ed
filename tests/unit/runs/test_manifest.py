from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.runs.manifest import (
    FORMAT_VERSION,
    FileDigest,
    Manifest,
    digest_of,
    hash_file,
    hash_files,
    load_manifest,
    load_verified,
    verify,
    write_manifest,
)

FACTS = dict(
    config_hash="c0", seed=7, inputs={"data": "d1"}, counts={"kept": 3, "tie": 1}, parent="p2", facts={"x": [1.5]}
)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    iteration = RunLayout(tmp_path).iteration(1)
    for batch in range(2):
        path = iteration.part("responses", 0, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"abc" * (batch + 1))
    iteration.pairs.write_bytes(b"pairs")
    manifest = iteration.manifest("pairs")
    write_manifest(manifest, stage="pairs", iteration=1, files=[iteration.responses, iteration.pairs], **FACTS)
    return manifest


def test_a_manifest_comes_back_and_names_every_file(stage: Path):
    manifest = load_verified(stage)
    assert manifest.files == {
        "pairs.jsonl": FileDigest(hashlib.sha256(b"pairs").hexdigest(), 5),
        "responses/part-00000-00000.jsonl": FileDigest(hashlib.sha256(b"abc").hexdigest(), 3),
        "responses/part-00000-00001.jsonl": FileDigest(hashlib.sha256(b"abcabc").hexdigest(), 6),
    }
    assert {name: getattr(manifest, name) for name in FACTS} == FACTS
    assert (manifest.stage, manifest.iteration, manifest.version) == ("pairs", 1, FORMAT_VERSION)


def test_equal_content_gives_equal_manifests_whenever_written(stage: Path, tmp_path: Path):
    before = stage.read_bytes()
    files = [tmp_path / "iter_01" / "pairs.jsonl", tmp_path / "iter_01" / "responses"]
    again = write_manifest(stage, stage="pairs", iteration=1, files=files, **FACTS)
    assert stage.read_bytes() == before and digest_of(again) == json.loads(before)["digest"]


def test_the_digest_depends_on_every_field_but_not_on_the_order_of_keys():
    base = Manifest("pairs", 1, counts={"a": 1, "b": 2})
    assert digest_of(base) == digest_of(Manifest("pairs", 1, counts={"b": 2, "a": 1}))
    changes = dict(
        stage="x", iteration=2, config_hash="x", seed=1, inputs={"a": "b"}, counts={}, files={"f": FileDigest("0", 1)},
        parent="x", facts={"a": 1}, version=2,
    )  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(Manifest)}
    digests = {digest_of(dataclasses.replace(base, **{name: value})) for name, value in changes.items()}
    assert len(digests | {digest_of(base)}) == len(changes) + 1


def test_changed_truncated_and_missing_files_are_named(stage: Path):
    parts = stage.parent / "responses"
    (parts / "part-00000-00000.jsonl").write_bytes(b"abd")
    (parts / "part-00000-00001.jsonl").write_bytes(b"abcab")
    (stage.parent / "pairs.jsonl").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_verified(stage)
    for expected in (
        f"{parts}/part-00000-00000.jsonl was changed (SHA-256 ",
        f"{parts}/part-00000-00001.jsonl has 5 bytes instead of 6",
        f"{stage.parent}/pairs.jsonl is missing",
    ):
        assert expected in str(caught.value)


def test_mode_size_sees_sizes_only(stage: Path):
    manifest = load_manifest(stage)
    (stage.parent / "pairs.jsonl").write_bytes(b"pears")
    verify(manifest, stage.parent, "size")
    with pytest.raises(CheckpointError, match="pairs.jsonl was changed"):
        verify(manifest, stage.parent, "always")
    (stage.parent / "pairs.jsonl").write_bytes(b"pear")
    with pytest.raises(CheckpointError, match="pairs.jsonl has 4 bytes instead of 5"):
        verify(manifest, stage.parent, "size")


@pytest.mark.parametrize(("version", "words"), [(FORMAT_VERSION + 1, "newer than"), (0, "older than")])
def test_another_format_version_is_refused_with_both_numbers(stage: Path, version: int, words: str):
    stage.write_text(json.dumps({"version": version, "anything": "else"}))
    with pytest.raises(CheckpointError, match=f"format {version}, {words} format {FORMAT_VERSION}"):
        load_manifest(stage)


def test_a_manifest_that_was_changed_is_refused(stage: Path):
    stage.write_text(stage.read_text().replace('"kept": 3', '"kept": 4'))
    with pytest.raises(CheckpointError, match="the manifest was changed"):
        load_manifest(stage)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"version": 1, "digest": "", "files": {"a": {}}}', '{"digest": "x", "files": 3}']
)
def test_what_is_no_manifest_is_refused(stage: Path, content: str):
    stage.write_text(content)
    with pytest.raises(CheckpointError, match="this is no manifest"):
        load_manifest(stage)


def test_a_file_that_is_not_there_cannot_be_sealed(stage: Path):
    before = stage.read_bytes()
    with pytest.raises(CheckpointError, match="nothing.jsonl: the file cannot be read"):
        write_manifest(stage, stage="pairs", iteration=1, files=[stage.parent / "nothing.jsonl"])
    assert stage.read_bytes() == before


def test_hashes_of_files_and_folders(tmp_path: Path):
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    (tmp_path / "folder" / "deeper" / "b").write_bytes(b"b")
    (tmp_path / "folder" / "a").write_bytes(b"")
    digests = hash_files(tmp_path, [tmp_path / "folder"])
    assert list(digests) == ["folder/a", "folder/deeper/b"]
    assert digests["folder/a"] == hash_file(tmp_path / "folder" / "a") == FileDigest(hashlib.sha256().hexdigest(), 0)
