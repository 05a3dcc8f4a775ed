"""Stopping on request: the first signal asks the run to finish the unit at hand, the second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from isrdpo_jax.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Turns SIGTERM and SIGINT into a question that the run asks between two units of work.

    Used as a context manager in the main thread; the former handlers come back on leaving. Everything on disk is at
    all times such that the same command resumes, so a second signal may exit on the spot, with the same exit code.

    Args:
        command: the command that resumes, for the message.
        any_of_all: whether something is true in any of the processes of a run (`processes.any_says`). Any of them may
            get the signal, and all stop at the same place: where one asks, all must ask.
    """

    def __init__(self, command: str = "the same command", any_of_all: Callable[[bool], bool] = bool):
        self._command = command
        self._any = any_of_all
        self._received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come, to this process or to one that it has joined."""
        return self._any(self._received is not None)

    def check(self) -> None:
        """Call between two units of work, when the last one is saved.

        Raises:
            StoppedError: a signal has come.
        """
        if self.requested:
            signal_name = self._received.name if self._received else "a signal to another process"
            raise StoppedError(
                f"Stopped by {signal_name}; all finished work is saved. Run {self._command} again to go on."
            )

    def __enter__(self) -> StopSignal:
        self._former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(StoppedError.exit_code)
        self._received = signal.Signals(number)
        outer = getattr(self._former.get(self._received), "__self__", None)
        if isinstance(outer, StopSignal):  # what is being done ends, and what it is a part of, too
            outer._received = self._received
        note = f"\n{self._received.name}: finishing the work at hand, then saving; once more to exit at once.\n"
        with contextlib.suppress(OSError):  # nobody may be reading stderr any more
            os.write(2, note.encode())
