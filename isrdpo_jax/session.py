"""What stays the same while a run is written, and how its stages are found finished or sealed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import sleep
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.errors import DataError
from isrdpo_jax.runs.atomic import append_jsonl
from isrdpo_jax.runs.layout import IterationLayout, RunLayout, Stage
from isrdpo_jax.runs.manifest import Manifest, load_verified, write_manifest
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.runs.processes import first_says, is_first, meet
from isrdpo_jax.runs.shared_stages import WITHOUT_PART, SharedStages, shared_from
from isrdpo_jax.runs.watchdog import Watchdog
from isrdpo_jax.schema import Config
from isrdpo_jax.stages.engine import Engine

_PAUSE_S = 1.0  # between two looks at a sibling that is making what this run needs


@dataclass(frozen=True)
class Session:
    """What stays the same while a run is written."""

    config: Config
    config_hash: str
    layout: RunLayout
    console: Console
    stop: StopSignal
    watchdog: Watchdog
    prompts: Prompts
    train: VideoSource
    heldout: VideoSource | None
    shared: SharedStages | None = None

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, title: str, total: int, *, saved: bool = True) -> Iterator[Callable[[], None]]:
        """A progress bar, whose tick stands behind a unit of work.

        Args:
            saved: each unit is saved at its tick, which therefore honours a request to stop.
        """
        with self._bar(title, total) as advance:

            def tick() -> None:
                advance()
                self.watchdog.feed()
                if saved:
                    self.stop.check()

            yield tick

    @contextmanager
    def conversation(
        self, layout: IterationLayout, stage: Stage, batches: int, engine: Engine
    ) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
        """A progress bar over an engine's dialogues; how they went is kept, also when they are stopped.

        Yields:
            What is to be called behind every program, in all processes alike: what is not written then is said again.
            And what is to be called behind every batch that is written.
        """

        def between() -> None:
            self.watchdog.feed()
            self.stop.check()

        try:
            with self._bar(f"{layout.index} {stage}", batches) as advance:
                yield between, advance
        finally:
            if is_first():
                append_jsonl(layout.speed, {"stage": stage, **engine.tally.figures()})

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)

    def done(self, layout: IterationLayout, stage: Stage, inputs: Mapping[str, str]) -> Manifest | None:
        """The manifest of a finished stage, if it was made from these inputs; here, or by a run that shares it.

        Raises:
            CheckpointError: a file of the stage is not what was written.
            DataError: it was made from other inputs.
        """
        self.watchdog.feed()
        done = first_says(lambda: self._done(layout, stage, inputs))
        return done or (self._taken(layout, stage, inputs) if self.shared and stage in WITHOUT_PART else None)

    def _taken(self, layout: IterationLayout, stage: Stage, inputs: Mapping[str, str]) -> Manifest | None:
        """The manifest of a stage that a sibling has made, once it is in place here; none when it is ours to make."""
        shared, waiting = self.shared, False
        assert shared is not None
        while True:
            taken, ours = first_says(lambda: shared.take_or_claim(self.config, layout, stage, inputs, self.config_hash))
            if taken:
                self.say(f"  {stage}: shared from {shared_from(taken)}")
            if taken or ours:
                return taken
            if not waiting:
                self.say(f"  {stage}: another run of the sweep is making it; waiting for that")
            waiting = True
            sleep(_PAUSE_S)
            self.watchdog.feed()
            self.stop.check()

    def _done(self, layout: IterationLayout, stage: Stage, inputs: Mapping[str, str]) -> Manifest | None:
        path = layout.manifest(stage)
        if not path.exists():
            return None
        manifest = load_verified(path, self.config.checkpoint.verify)
        if manifest.inputs != dict(inputs) or manifest.config_hash != self.config_hash:
            changed = [name for name in inputs if manifest.inputs.get(name) != inputs[name]] or ["config"]
            raise DataError(
                f"{path}: this stage was made from others ({', '.join(changed)}). Delete iteration {layout.index} and "
                "the ones behind it to do them again."
            )
        return manifest

    def seal(self, layout: IterationLayout, stage: Stage, inputs: Mapping[str, str], **facts: Any) -> Manifest:
        """Writes the manifest of a stage, when all processes have written what is theirs."""
        self.watchdog.feed()
        meet()

        def write() -> Manifest:
            manifest = write_manifest(
                layout.manifest(stage),
                stage=stage,
                iteration=layout.index,
                config_hash=self.config_hash,
                seed=self.config.run.seed,
                inputs=inputs,
                **facts,
            )
            if self.shared:
                self.shared.release()
            return manifest

        return first_says(write)
