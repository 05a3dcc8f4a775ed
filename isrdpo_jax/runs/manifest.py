"""Manifests: what a stage or a checkpoint consists of, written last.

A manifest lies beside the files that it names (relative to its own folder), each with size and SHA-256. A stage is done
when its manifest is there and verifies. Nothing in it depends on a clock, so equal runs have equal manifests wherever
their files are equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.atomic import read_json, write_json

FORMAT_VERSION = 1
"""Version of the files of a run; a run of another version is refused."""

VerifyMode = Literal["always", "size"]


@dataclass(frozen=True)
class FileDigest:
    """One file's content: SHA-256 (hex) and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What was made, from what.

    Attributes:
        stage: the stage's name, or "checkpoint".
        iteration: t.
        config_hash: hash of the configuration.
        seed: the run's seed.
        inputs: digests of what was read, by name.
        counts: how many records were made, kept, dropped for which reason.
        files: the files, by path relative to the manifest's folder.
        parent: digest of the policy that was used.
        facts: anything else worth keeping, JSON values.
        version: `FORMAT_VERSION` of the writer.
    """

    stage: str
    iteration: int
    config_hash: str = ""
    seed: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, FileDigest] = field(default_factory=dict)
    parent: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    version: int = FORMAT_VERSION


def write_manifest(
    path: Path,
    *,
    stage: str,
    iteration: int,
    files: Iterable[Path],
    config_hash: str = "",
    seed: int = 0,
    inputs: Mapping[str, str] | None = None,
    counts: Mapping[str, int] | None = None,
    parent: str | None = None,
    facts: Mapping[str, Any] | None = None,
    hashed: Mapping[str, FileDigest] | None = None,
) -> Manifest:
    """Hashes `files` and writes the manifest `path`; call it when everything else is on disk.

    Args:
        files: files and folders (with all that is in them), in the folder of `path` or below.
        hashed: further files, by path relative to that folder, whose digests are known from when they were written.

    Raises:
        CheckpointError: one of `files` is missing, or the manifest cannot be written.
    """
    manifest = Manifest(
        stage=stage,
        iteration=iteration,
        config_hash=config_hash,
        seed=seed,
        inputs=dict(inputs or {}),
        counts=dict(counts or {}),
        files=hash_files(path.parent, files) | dict(hashed or {}),
        parent=parent,
        facts=dict(facts or {}),
    )
    write_json(path, asdict(manifest) | {"digest": digest_of(manifest)})
    return manifest


def load_manifest(path: Path) -> Manifest:
    """Reads a manifest; the files that it names are not looked at.

    Raises:
        CheckpointError: missing, damaged, or of another format version.
    """
    content = read_json(path)
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        age, advice = ("newer", "upgrade isrdpo_jax") if version > FORMAT_VERSION else ("older", "start a new run")
        raise CheckpointError(
            f"{path}: written in format {version}, {age} than format {FORMAT_VERSION}, which this version reads;"
            f" {advice}, or use the version that wrote it."
        )
    try:
        digest = content.pop("digest")
        files = {name: FileDigest(**fact) for name, fact in content.pop("files").items()}
        manifest = Manifest(**content, files=files)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: this is no manifest ({error}); delete it and run again.") from error
    if digest_of(manifest) != digest:
        raise CheckpointError(f"{path}: the manifest was changed after it was written; delete it and run again.")
    return manifest


def verify(manifest: Manifest, root: Path, mode: VerifyMode = "always") -> None:
    """Compares the files under `root` with the manifest: their sizes and, in mode "always", their SHA-256.

    Raises:
        CheckpointError: names the files that are missing or differ.
    """
    sizes = {name: (root / name).stat().st_size for name in manifest.files if (root / name).is_file()}
    problems = {name: "is missing" for name in manifest.files.keys() - sizes}
    for name, size in sizes.items():
        if size != manifest.files[name].size:
            problems[name] = f"has {size:,} bytes instead of {manifest.files[name].size:,}"
    if mode == "always":
        for name, actual in hash_files(root, (root / name for name in sizes.keys() - problems.keys())).items():
            if actual != (expected := manifest.files[name]):
                problems[name] = f"was changed (SHA-256 {actual.sha256[:12]}… instead of {expected.sha256[:12]}…)"
    if problems:
        listed = "; ".join(f"{root / name} {problem}" for name, problem in sorted(problems.items())[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"The files of {manifest.stage} of iteration {manifest.iteration} are not what was written: {listed}{more}."
            " Bring them back, or delete the manifest, and run again."
        )


def load_verified(path: Path, mode: VerifyMode = "always") -> Manifest:
    """Reads a manifest and compares the files that it names. Raises as `load_manifest` and `verify`."""
    manifest = load_manifest(path)
    verify(manifest, path.parent, mode)
    return manifest


def digest_of(manifest: Manifest) -> str:
    """SHA-256 (hex) over the manifest in canonical JSON."""
    return hash_json(asdict(manifest))


def hash_json(value: Any) -> str:
    """SHA-256 (hex) over `value` in canonical JSON: keys sorted, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> FileDigest:
    """Size and SHA-256 of one file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return FileDigest(digest.hexdigest(), file.tell())
    except OSError as error:
        raise CheckpointError(f"{path}: the file cannot be read ({error.strerror}).") from error


def hash_files(root: Path, paths: Iterable[Path]) -> dict[str, FileDigest]:
    """Size and SHA-256 of files and of all files in folders, by path relative to `root`, in sorted order.

    Raises:
        CheckpointError: a path is missing or unreadable.
    """
    files = sorted({file for path in paths for file in (_files_below(path) if path.is_dir() else [path])})
    names = [file.relative_to(root).as_posix() for file in files]
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing lets go of the interpreter's lock
        return dict(zip(names, pool.map(hash_file, files), strict=True))


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
