"""Where everything of a run lies. Pure paths: nothing here reads or writes, except the helpers that list a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Stage = Literal["collect", "pairs", "reference", "optimize", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""The stages of one iteration, in order."""

PartKind = Literal["responses", "descriptions", "judgements", "reference"]

_ITERATION = re.compile(r"iter_(\d{2,})")
_STEP = re.compile(r"step_(\d{8,})")


def manifest_path(path: Path) -> Path:
    """The manifest that seals the file or folder `path`; it lies beside it and is written last."""
    return path.with_name(path.name + ".manifest.json")


def batch_of(part: Path) -> int:
    """The number of the batch whose records a part holds."""
    return int(part.stem.rpartition("-")[2])


@dataclass(frozen=True)
class IterationLayout:
    """One iteration's folder. Iteration t makes π_{t+1} from π_t; iteration 0 holds the start, π_1.

    Attributes:
        root: the folder `iter_TT`.
        index: t.
    """

    root: Path
    index: int

    @property
    def responses(self) -> Path:
        return self.root / "responses"

    @property
    def descriptions(self) -> Path:
        return self.root / "descriptions"

    @property
    def judgements(self) -> Path:
        return self.root / "judgements"

    @property
    def pairs(self) -> Path:
        return self.root / "pairs.jsonl"

    @property
    def rejudged(self) -> Path:
        """What other judges said of the stored responses."""
        return self.root / "rejudged"

    @property
    def agreement(self) -> Path:
        """How the judges agree with labels that a user brought."""
        return self.root / "agreement"

    @property
    def reference(self) -> Path:
        return self.root / "reference"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def speed(self) -> Path:
        """How the dialogues of `collect` and `evaluate` went: a row per session. No stage is made from it."""
        return self.root / "speed.jsonl"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def checkpoint(self) -> Path:
        """The policy that this iteration made."""
        return self.root / "checkpoint"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    def manifest(self, stage: Stage) -> Path:
        """The file whose presence (and truth) says that `stage` is done."""
        return manifest_path(self.root / stage)

    def part(self, kind: PartKind, process: int, batch: int) -> Path:
        """The records of one batch, written by one process."""
        return self.root / kind / f"part-{process:05d}-{batch:05d}.jsonl"

    def parts(self, kind: PartKind) -> list[Path]:
        """The parts that are on disk, in order of process and batch."""
        return sorted((self.root / kind).glob("part-*.jsonl"))

    def train_step(self, step: int) -> Path:
        """The training state behind update `step`."""
        return self.train / f"step_{step:08d}"

    def train_steps(self) -> list[int]:
        """Steps whose training state is on disk, whole or not, in order."""
        return _numbers(self.train, _STEP)


@dataclass(frozen=True)
class RunLayout:
    """A run's folder.

    Attributes:
        root: the folder `runs/NAME`.
    """

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def judged(self) -> Path:
        """What the judge of `evaluation.judge` said of the held-out answers; laid out as by `isrdpo eval`."""
        return self.root / "judged"

    def iteration(self, t: int) -> IterationLayout:
        """The folder of iteration t >= 0."""
        return IterationLayout(self.root / f"iter_{t:02d}", t)

    def iterations(self) -> list[IterationLayout]:
        """The iterations whose folder is on disk, in order."""
        return [self.iteration(t) for t in _numbers(self.root, _ITERATION)]


def _numbers(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for entry in folder.iterdir() if (match := pattern.fullmatch(entry.name)))
