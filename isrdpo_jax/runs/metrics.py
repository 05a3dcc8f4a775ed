"""Training metrics: one JSON row per update, and the same for TensorBoard and, where asked for, Weights & Biases."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from isrdpo_jax.runs.atomic import append_jsonl, truncate_jsonl
from isrdpo_jax.runs.wandb_log import WandbLog, WandbRun

log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends rows to a JSONL file, each synced, and to TensorBoard event files and Weights & Biases.

    The JSONL file is part of the run: what cannot be written stops it. The others are a convenience: the first
    failure of one is logged as one warning and switches it off.

    Args:
        path: the JSONL file. Rows behind `resumed_step` are dropped, since those updates are done again.
        resumed_step: the update from which training goes on; 0 at the start.
        tensorboard: folder for event files; none = no TensorBoard.
        wandb: what Weights & Biases is told of the run; none = it is not asked.
    """

    def __init__(
        self,
        path: Path,
        *,
        resumed_step: int = 0,
        tensorboard: Path | None = None,
        wandb: WandbRun | None = None,
    ):
        self._path = path
        truncate_jsonl(path, keep=lambda row: row["step"] <= resumed_step)
        self._others: dict[str, _TensorBoard | WandbLog] = {}
        if tensorboard is not None:
            self._open("TensorBoard", lambda: _TensorBoard(tensorboard, resumed_step))
        if wandb is not None:
            self._open("Weights & Biases", lambda: WandbLog(wandb))

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Adds one row. Numbers that are not finite become null in JSON (which has no NaN).

        Args:
            step: the update, counted from 1.
            values: whole numbers stay whole; anything else is made a float.

        Raises:
            CheckpointError: the row cannot be written.
        """
        append_jsonl(self._path, {"step": step} | {name: _number(value) for name, value in values.items()})
        for name, other in list(self._others.items()):
            try:
                other.write(step, values)
            except Exception as error:  # whatever it is, it must not stop the run
                self._give_up(name, error)

    def close(self) -> None:
        for name, other in list(self._others.items()):
            try:
                other.close()
            except Exception as error:  # whatever it is, it must not stop the run
                self._give_up(name, error)
        self._others = {}

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str, make: Callable[[], _TensorBoard | WandbLog]) -> None:
        try:
            self._others[name] = make()
        except Exception as error:  # whatever it is, it must not stop the run
            self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self._others.pop(name, None)
        reason = f"{type(error).__name__}: {error}"
        log.warning("%s is switched off, metrics go on in %s: %s", name, self._path, reason)


class _TensorBoard:
    """An event file, written in this thread: `SummaryWriter` hands events to a thread through a queue of ten, and would
    block the run for ever once that thread had died of a full disk."""

    def __init__(self, folder: Path, resumed_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar = Event, scalar
        self._writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
        # Tells TensorBoard to forget points of an earlier file at this step and later.
        session = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=session))

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        for name, value in values.items():
            summary = self._scalar(name, float(value))
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _number(value: SupportsFloat) -> int | float | None:
    """`value` as JSON knows it."""
    number = np.asarray(value).item()
    return number if isinstance(number, int) or math.isfinite(number) else None
