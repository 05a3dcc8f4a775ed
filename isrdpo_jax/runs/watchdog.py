"""Ends a process whose work stands still: it may wait for another one that lives, and does nothing, for ever."""

from __future__ import annotations

import faulthandler


class Watchdog:
    """Ends this process with code 1 when a unit of work takes too long; the stacks of all threads go to stderr first.

    Args:
        limit_s: seconds that a unit of work may take, compilation included; none = nothing is watched.
    """

    def __init__(self, limit_s: float | None):
        self._limit_s = limit_s

    def __enter__(self) -> Watchdog:
        return self

    def feed(self) -> None:
        """Call it at the start, and behind every unit of work."""
        if self._limit_s is not None:
            faulthandler.dump_traceback_later(self._limit_s, exit=True)

    def __exit__(self, *_: object) -> None:
        if self._limit_s is not None:
            faulthandler.cancel_dump_traceback_later()
