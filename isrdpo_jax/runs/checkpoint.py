"""Checkpoints with Orbax that can be trusted: sealed by a manifest, verified before use, restored onto any mesh.

Orbax commits a checkpoint by a rename, but reads wrong bytes without complaint, and its `save` returns before anything
is on disk. So a checkpoint counts only once its manifest (beside the folder) is written, which happens when the save
has ended; and its files are compared with the manifest before they are read.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.atomic import free_bytes, no_space, sync, sync_tree
from isrdpo_jax.runs.layout import manifest_path
from isrdpo_jax.runs.manifest import VerifyMode, load_verified, write_manifest
from isrdpo_jax.runs.processes import first_says, is_first, meet

_STEP_MANIFEST = re.compile(r"(step_(\d+))\.manifest\.json")

_PIECE_BYTES = 2**28  # of an array that is brought to every device at a time

PyTree = Any


class PendingSave:
    """A save under way, made by `start_save`; the arrays may be changed or donated meanwhile."""

    def __init__(self, path: Path, seal: Callable[[], None]):
        self.path = path
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seal-checkpoint")
        self._sealed = pool.submit(seal)
        pool.shutdown(wait=False)

    def wait(self) -> None:
        """Returns when the checkpoint counts. In a run of several processes all must call it.

        Raises:
            CheckpointError: it could not be written; nothing of it counts.
        """
        self._sealed.result()
        meet()


def start_save(path: Path, tree: PyTree, *, iteration: int, facts: Mapping[str, Any] | None = None) -> PendingSave:
    """Begins to save a pytree of arrays; it counts only when `PendingSave.wait` has returned.

    What was at `path` is replaced, and does not count from now on.

    Args:
        path: the checkpoint's folder.
        tree: arrays of `jax` or numpy in dicts, lists, tuples and named tuples.
        iteration: t, for the manifest.
        facts: JSON values for the manifest, such as the step or the policy's `tree_digest`.

    Raises:
        CheckpointError: there is not enough room, or the folder cannot be written.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    path = path.absolute()
    first_says(lambda: _make_room(path, needed))
    try:
        checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree), force=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise save_error(path, error, needed) from error

    def seal() -> None:
        try:
            with checkpointer:
                checkpointer.wait_until_finished()
            if is_first():
                sync_tree(path)
                write_manifest(manifest_path(path), stage="checkpoint", iteration=iteration, files=[path], facts=facts)
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore reports a full disk as a ValueError
            if is_first():
                sweep(path.parent)
            raise save_error(path, error, needed) from error

    return PendingSave(path, seal)


def _make_room(path: Path, needed: int) -> None:
    """Removes what is at `path`, and checks that as much fits there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(path)
        if free_bytes(path) < needed:
            raise no_space(path, needed)
    except OSError as error:
        raise save_error(path, error, needed) from error


def save_tree(path: Path, tree: PyTree, *, iteration: int, facts: Mapping[str, Any] | None = None) -> None:
    """Saves a pytree of arrays and returns when the checkpoint counts. Arguments and errors as `start_save`."""
    start_save(path, tree, iteration=iteration, facts=facts).wait()


def restore_tree(path: Path, abstract: PyTree | None = None, *, verify: VerifyMode = "always") -> PyTree:
    """Reads a checkpoint, after its files have been compared with its manifest.

    Args:
        path: the checkpoint's folder.
        abstract: what to restore onto: arrays or `jax.ShapeDtypeStruct`s whose sharding, on any mesh, says where each
            leaf goes (none: the first local device). A float leaf may be asked for in another float dtype. With no
            `abstract` at all, the tree comes back as numpy arrays in dicts and lists.
        verify: compare SHA-256 ("always") or sizes only ("size").

    Raises:
        CheckpointError: there is no counted checkpoint, a file was changed or is missing (named), or the tree differs
            from `abstract` (missing, extra and wrong-shaped keys named).
    """
    path = path.absolute()
    first_says(lambda: load_verified(manifest_path(path), verify))
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            saved = checkpointer.metadata(path).item_metadata.tree
            if abstract is None:
                arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
                return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=arguments))
            abstract = jax.tree.map(_placed, abstract)
            _compare(path, _by_key(saved), _by_key(abstract))
            arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {_first_line(error)}.") from error


@dataclass(frozen=True)
class TrainStep:
    """The newest training state that verifies.

    Attributes:
        step: the update that it is behind; 0 where there is none.
        path: its folder; none where there is none.
        refused: newer ones that did not verify, each with what is wrong with it; tell the user.
    """

    step: int
    path: Path | None
    refused: tuple[str, ...]


def newest_verified(folder: Path, *, verify: VerifyMode = "always") -> TrainStep:
    """Finds the newest training state `step_N` in `folder` that is sealed and verifies, passing over damaged ones."""
    entries = folder.iterdir() if folder.is_dir() else ()
    steps = {int(match[2]): folder / match[1] for entry in entries if (match := _STEP_MANIFEST.fullmatch(entry.name))}
    refused: list[str] = []
    for step in sorted(steps, reverse=True):
        try:
            load_verified(manifest_path(steps[step]), verify)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            return TrainStep(step, steps[step], tuple(refused))
    return TrainStep(0, None, tuple(refused))


def policies_to_keep(newest: int, keep: int) -> set[int]:
    """Iterations whose policy must stay, when iteration `newest` holds the newest one.

    The start is π_1, the reference of `dpo.reference: initial`; the newest is the parent, and the reference, of the
    next iteration. Both always stay, and `keep` policies before the newest; 0 keeps all.
    """
    if keep == 0:
        return set(range(newest + 1))
    return {0, *range(max(0, newest - keep), newest + 1)}


def prune(candidates: Iterable[Path], keep: Collection[Path]) -> list[Path]:
    """Removes checkpoints that are not in `keep`.

    Returns:
        Those that were removed.
    """
    kept = {path.resolve() for path in keep}
    doomed = [path for path in candidates if path.exists() and path.resolve() not in kept]
    for path in doomed:
        remove(path)
    return doomed


def remove(path: Path) -> None:
    """Removes a checkpoint, its manifest first, so that half a checkpoint never counts."""
    manifest = manifest_path(path)
    if manifest.exists():
        manifest.unlink()
        sync(manifest.parent)
    if path.exists():
        shutil.rmtree(path)


def sweep(folder: Path) -> int:
    """Removes what saves that were killed left in `folder`; only for the holder of the run's lock.

    Returns:
        How many there were.
    """
    stale = list(folder.glob("*.orbax-checkpoint-tmp*"))
    for path in stale:
        shutil.rmtree(path)
    return len(stale)


def tree_digest(tree: PyTree) -> str:
    """SHA-256 (hex) over path, dtype, shape and bytes of every leaf: the identity of a policy, equal in equal runs.

    (The files of a checkpoint hold times and random names, so their digests differ between equal runs.)
    """
    digest = hashlib.sha256()
    for key, leaf in sorted(_by_key(tree).items()):
        digest.update(digest_head(key, np.dtype(leaf.dtype), np.shape(leaf)))
        for piece in _pieces(leaf):
            digest.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _pieces(leaf: Any) -> Iterator[np.ndarray]:
    """An array's content in order: at once, or where parts of it are at other processes, so much as a device can hold
    beside its own part."""
    if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
        yield np.asarray(leaf)
        return
    count = leaf.shape[0]
    rows = min(count, max(1, _PIECE_BYTES * count // leaf.nbytes))
    whole = leaf.sharding.update(spec=jax.sharding.PartitionSpec())
    slice_rows = jax.jit(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, rows), out_shardings=whole)
    for start in range(0, count, rows):
        first = min(start, count - rows)
        yield np.asarray(slice_rows(leaf, first))[start - first :]


def digest_head(key: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What stands before a leaf's bytes in `tree_digest`."""
    return f"{key}\0{dtype.name}\0{shape}\0".encode()


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _by_key(tree: PyTree) -> dict[str, Any]:
    """Leaves by dotted path. A named tuple's fields go by name, as Orbax stores them."""
    return {".".join(map(_key_name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _key_name(key: Any) -> str:
    match key:
        case DictKey() | FlattenedIndexKey():
            return str(key.key)
        case SequenceKey():
            return str(key.idx)
        case GetAttrKey():
            return key.name
    raise TypeError(f"no name for the key {key!r}")


def _compare(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    both = saved.keys() & wanted.keys()
    shapes = [
        f"{key} is {tuple(saved[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(both)
        if tuple(saved[key].shape) != tuple(wanted[key].shape)
    ]
    kinds = [
        f"{key} is {np.dtype(saved[key].dtype).name} instead of {np.dtype(wanted[key].dtype).name}"
        for key in sorted(both)
        if _is_float(saved[key]) != _is_float(wanted[key])
    ]
    differences = {
        "missing": sorted(wanted.keys() - saved.keys()),
        "not expected": sorted(saved.keys() - wanted.keys()),
        "of another shape": shapes,
        "of another kind": kinds,
    }
    if any(differences.values()):
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in differences.items() if keys)
        raise CheckpointError(
            f"{path}: the checkpoint does not fit the model or optimizer that is to be restored ({listed})."
            " It was made with another configuration; use that one, or another checkpoint."
        )


def _is_float(leaf: Any) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, np.floating))


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def save_error(path: Path, error: Exception, needed: int) -> CheckpointError:
    """What to tell the user when Orbax or TensorStore could not write a checkpoint of `needed` bytes."""
    if re.search(r"No space left|RESOURCE_EXHAUSTED|File too large|quota", f"{error}", re.IGNORECASE):
        return no_space(path, needed)
    return CheckpointError(f"{path}: the checkpoint cannot be written: {_first_line(error)}; check the folder.")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
