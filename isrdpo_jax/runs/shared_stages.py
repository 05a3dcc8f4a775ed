"""What several runs would make alike is made once: a stage that a sibling run has finished is copied into place.

A stage's identity is what it was made from (the inputs in its manifest, all digests of content) and the settings that
have a part in it. Of the settings, all count but those that are known to have none: a key that the schema gets later
counts until it is named here. A copy is as good as what the run would have made itself; it stands alone, and its
manifest says whose it is (`shared_from`).

Siblings may be at work at the same time, also on other machines: whoever makes a stage holds the claim of its identity,
a kernel lock that goes with its holder, and the others wait for what comes of it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from isrdpo_jax.config import config_hash, load_config
from isrdpo_jax.errors import CheckpointError, ConfigError, RunLockedError
from isrdpo_jax.runs.atomic import read_bytes, write_bytes
from isrdpo_jax.runs.layout import IterationLayout, PartKind, RunLayout, Stage
from isrdpo_jax.runs.lock import RunLock
from isrdpo_jax.runs.manifest import Manifest, hash_json, load_manifest, verify, write_manifest
from isrdpo_jax.schema import Config

SHARED_FROM = "shared_from"

_NOWHERE = frozenset({"run.name", "run.dir", "run.iterations", "data.dir", "checkpoint", "processes", "sft", "model"})
# Of the preference loss, the reference's log-probs know the settings that `stages.reference.identity` digests.
_BEHIND_THE_REFERENCE = frozenset(
    {"dpo.beta", "dpo.loss", "dpo.label_smoothing", "dpo.sft_weight", "dpo.ld_alpha", "dpo.reference", "dpo.epochs"}
    | {"dpo.learning_rate", "dpo.warmup_fraction", "dpo.weight_decay", "dpo.b1", "dpo.b2", "dpo.eps", "dpo.clip_norm"}
    | {"dpo.max_bad_updates"}
)
# The rest of collect has a part in held-out answers, too: rounded prefixes, turns that are too long.
_HOW_MANY_AT_A_TIME = frozenset({"collect.batch_videos", "collect.slots", "collect.lanes", "collect.memory_gib"})
WITHOUT_PART: Mapping[Stage, frozenset[str]] = {
    "collect": _NOWHERE | {"evaluation", "dpo"},
    "reference": _NOWHERE | {"evaluation"} | _BEHIND_THE_REFERENCE,
    "evaluate": _NOWHERE | {"evaluation.judge", "dpo", "judge", "sampling"} | _HOW_MANY_AT_A_TIME,
}
"""The stages that are shared, and the settings that have no part in what they make."""


def stage_identity(config: Config, stage: Stage, iteration: int, inputs: Mapping[str, str]) -> str:
    """Digest of all that determines what a stage makes."""
    settings = config_hash(config, exclude=WITHOUT_PART[stage])
    return hash_json({"stage": stage, "iteration": iteration, "settings": settings, "inputs": dict(inputs)})


class SharedStages:
    """The stages that a run shares with its siblings. As a context manager, it lets go of a claim that is left.

    Args:
        claims: the folder of the claims; the same for all siblings.
        siblings: the runs to take from; those that do not exist (yet) have nothing to give.
    """

    def __init__(self, claims: Path, siblings: Sequence[RunLayout]):
        self._claims = claims
        self._siblings = tuple(siblings)
        self._held: RunLock | None = None

    def __enter__(self) -> SharedStages:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take_or_claim(
        self, config: Config, layout: IterationLayout, stage: Stage, inputs: Mapping[str, str], own_hash: str
    ) -> tuple[Manifest | None, bool]:
        """Looks for the stage among the siblings.

        Args:
            own_hash: the hash of the run's configuration, for the manifest.

        Returns:
            Its manifest, when a sibling had it and it is now in place; and else whether it is for this run to make:
            then the claim is held until `release`. (None, False) says that a sibling is making it.
        """
        identity = stage_identity(config, stage, layout.index, inputs)
        if found := self._take(identity, layout, stage, inputs, own_hash):
            return found, False
        claim = RunLock(self._claims / f"{identity}.lock")
        try:
            claim.__enter__()
        except RunLockedError:
            return None, False
        self._held = claim
        if found := self._take(identity, layout, stage, inputs, own_hash):  # it was finished in between
            self.release()
            return found, False
        return None, True

    def release(self) -> None:
        """Lets go of the claim, if one is held: the stage is sealed, or will not be."""
        if self._held is not None:
            self._held.__exit__()
            self._held = None

    def _take(
        self, identity: str, layout: IterationLayout, stage: Stage, inputs: Mapping[str, str], own_hash: str
    ) -> Manifest | None:
        for sibling, made in self._made(identity, layout, stage, inputs):
            source = sibling.iteration(layout.index)
            try:
                _copy(source, layout, made)
                verify(made, layout.root)
            except CheckpointError as error:
                _discard(layout, made)
                logging.warning("%s cannot be shared: %s", source.manifest(stage), error)
                continue
            origin = made.facts.get(SHARED_FROM, f"{sibling.root.name}/{source.root.name}")
            return write_manifest(
                layout.manifest(stage),
                stage=stage,
                iteration=layout.index,
                files=(),
                config_hash=own_hash,
                seed=made.seed,
                inputs=inputs,
                counts=made.counts,
                parent=made.parent,
                facts=made.facts | {SHARED_FROM: origin},
                hashed=made.files,
            )
        return None

    def _made(
        self, identity: str, layout: IterationLayout, stage: Stage, inputs: Mapping[str, str]
    ) -> Iterator[tuple[RunLayout, Manifest]]:
        """The siblings that have finished the same stage, with their manifests."""
        for sibling in self._siblings:
            path = sibling.iteration(layout.index).manifest(stage)
            if not path.exists():
                continue
            try:
                made = load_manifest(path)
                if made.inputs == dict(inputs) and identity == stage_identity(
                    load_config(sibling.config).config, stage, layout.index, made.inputs
                ):
                    yield sibling, made
            except (CheckpointError, ConfigError) as error:  # for the sibling's own run to stop at
                logging.warning("%s cannot be shared: %s", path, error)


def shared_from(manifest: Manifest) -> str | None:
    """Run and iteration that made the stage, where it was not the manifest's own: `beta-0.1/iter_01`."""
    return manifest.facts.get(SHARED_FROM)


def content_digest(manifest: Manifest, folder: str) -> str:
    """Digest of a stage's files in `folder` alone: the same whatever run or configuration made them."""
    return hash_json({name: file.sha256 for name, file in manifest.files.items() if name.startswith(f"{folder}/")})


def _copy(source: IterationLayout, layout: IterationLayout, made: Manifest) -> None:
    """Copies a stage's files in the order in which it wrote them: what says that a batch is done comes last."""
    _discard(layout, made)
    for name in sorted(made.files, key=_order):
        write_bytes(layout.root / name, read_bytes(source.root / name))


def _order(name: str) -> tuple[int, str]:
    kinds = get_args(PartKind)
    kind = name.split("/")[0]
    return kinds.index(kind) if kind in kinds else len(kinds), name


def _discard(layout: IterationLayout, made: Manifest) -> None:
    """Removes what lies where the files of a stage go: what the run itself had begun, perhaps in other parts."""
    for kind in {name.split("/")[0] for name in made.files}:
        shutil.rmtree(layout.root / kind, ignore_errors=True)
