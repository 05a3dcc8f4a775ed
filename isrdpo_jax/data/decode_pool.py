"""Decodes many videos in worker processes, so that a decoder that hangs or crashes costs one video and not the run.

Workers are fresh Python processes that import the decoder and nothing else: safe beside JAX's threads, and independent
of how the parent was started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from isrdpo_jax.data.frames import DecodedVideo
from isrdpo_jax.errors import VideoError

# Videos in work or waiting to be handed out, per worker: bounds memory behind a slow video.
_AHEAD = 3
# A worker that takes too long is killed by its own alarm. One that outlives the alarm by this many seconds hangs in the
# kernel (a dead network disk) and is abandoned.
_GRACE_S = 5.0
_START_LIMIT_S = 120.0
_ROOT = str(Path(__file__).parents[2])


def decode_many(
    paths: Sequence[str | Path], num_frames: int, timeout_s: float, workers: int | None = None
) -> Iterator[DecodedVideo | VideoError]:
    """Decodes videos in parallel and yields, in the order of `paths`, each video or the error that it met.

    Args:
        paths: video files or folders of images.
        num_frames: frames per video (t).
        timeout_s: seconds that one video may take; then its decoder is killed and the error's reason is `timeout`.
        workers: processes; by default one per available core.

    Raises:
        RuntimeError: a worker process cannot start.
    """
    results: dict[int, DecodedVideo | VideoError] = {}
    pool: list[_Worker] = []
    handed_out = 0
    try:
        pool.extend(_Worker() for _ in range(min(workers or _available_cores(), len(paths))))
        for due in range(len(paths)):
            while due not in results:
                for worker in pool:
                    if worker.idle and handed_out < min(len(paths), due + _AHEAD * len(pool)):
                        worker.give(handed_out, str(paths[handed_out]), num_frames, timeout_s)
                        handed_out += 1
                for worker in _wait([worker for worker in pool if not worker.idle]):
                    taken = worker.take()
                    if taken is not None:
                        index, result = taken
                        results[index] = result
            yield results.pop(due)
    finally:
        for worker in pool:
            worker.kill()


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _wait(busy: list[_Worker]) -> list[_Worker]:
    """Those workers that have answered, died, or are overdue; blocks until there is one."""
    earliest = min(worker.deadline for worker in busy)
    answered = wait([worker.connection for worker in busy], timeout=max(earliest - time.monotonic(), 0))
    return [worker for worker in busy if worker.connection in answered or worker.deadline <= time.monotonic()]


class _Worker:
    """One decoding process: starting, idle, or busy with one video."""

    def __init__(self) -> None:
        self._launch()

    def _launch(self) -> None:
        self.connection, theirs = Pipe()
        search_path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "isrdpo_jax.data.decode_worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": search_path},
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C is the parent's to handle
        )
        theirs.close()
        self._started = False
        self._task: tuple[int, str, float] | None = None
        self.deadline = time.monotonic() + _START_LIMIT_S

    @property
    def idle(self) -> bool:
        return self._started and self._task is None

    def give(self, index: int, path: str, num_frames: int, timeout_s: float) -> None:
        """Hands over the video at `index`."""
        self._task = index, path, timeout_s
        self.deadline = time.monotonic() + timeout_s + _GRACE_S
        with suppress(ConnectionError):  # a process that died while idle is found when its answer is read
            self.connection.send((path, num_frames, timeout_s))

    def take(self) -> tuple[int, DecodedVideo | VideoError] | None:
        """The index and result of the video at hand, once answered or overdue; None if the process has only started."""
        answer = self._receive()
        if self._task is None:
            if answer is None:
                raise RuntimeError("A process that decodes videos could not start; its own message is above.")
            self._started = True
            return None
        index, path, timeout_s = self._task
        self._task = None
        return index, answer if answer is not None else self._replace(path, timeout_s)

    def _receive(self) -> Any:
        """What the process sent; None if it is dead or overdue."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except (EOFError, ConnectionError):
            return None

    def _replace(self, path: str, timeout_s: float) -> VideoError:
        """Starts another process in place of one that is dead or overdue, and says what the video did to it."""
        closed = self.connection.poll()  # nothing can be read but the end: the process is gone
        code = self._process.wait() if closed else -signal.SIGALRM
        self.kill()
        self._launch()
        if code == -signal.SIGALRM:
            return VideoError(path, "timeout", f"not decoded after {timeout_s:g} s")
        return VideoError(path, "corrupt", f"the decoder crashed (exit code {code})")

    def kill(self) -> None:
        self._process.kill()
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
