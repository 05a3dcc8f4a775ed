"""One writer per run: a kernel lock on the run's `lock` file, which also says who holds it.

The kernel lets go of the lock when its holder dies, however it dies, so a stale lock file never keeps anybody out.
A forked child shares the lock; worker processes should be spawned.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from isrdpo_jax.errors import CheckpointError, RunLockedError

_ATTEMPTS = 5
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Holder:
    """Who writes a run.

    Attributes:
        host: name of the machine.
        pid: process id there.
        started: when it took the lock, seconds since the epoch.
        command: its command line.
    """

    host: str
    pid: int
    started: float
    command: str

    def describe(self) -> str:
        """Host, process, age and command, for a message."""
        seconds = max(0, round(time.time() - self.started))
        minutes, hours = seconds // 60, seconds // 3600
        age = f"{hours} h {minutes % 60} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
        return f"process {self.pid} on {self.host}, for {age} (`{self.command}`)"


class RunLock:
    """Holds a run for writing: `with RunLock(layout.lock): ...`.

    Raises, on entering:
        RunLockedError: another process holds it; the message names host, process and age.
        CheckpointError: the lock file cannot be opened, or its file system has no locks.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CheckpointError(f"{self.path}: the run's lock cannot be opened ({error.strerror}).") from error
        try:
            if not self._acquire(descriptor):
                holder = _read(self.path)
                who = holder.describe() if holder else "another process"
                raise RunLockedError(
                    f"{self.path.parent}: this run is being written by {who}."
                    " Wait until it ends, stop it, or choose another run.name."
                )
            me = Holder(socket.gethostname(), os.getpid(), time.time(), shlex.join(sys.argv))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        assert self._descriptor is not None, "the lock was never taken"
        # The file stays: unlinking it would let two writers lock two files of the same name.
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def _acquire(self, descriptor: int) -> bool:
        """Tries for a moment, since a holder that was just killed, or a reader in `lock_holder`, lets go at once."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise CheckpointError(
                        f"{self.path}: the file system gives no locks ({error.strerror}); keep runs on one that does."
                    ) from error
        return False


def lock_holder(path: Path) -> Holder | None:
    """Who holds the lock file `path` now; none where nobody does, or where a dead holder left its name."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read(path)
    finally:
        os.close(descriptor)


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (ValueError, TypeError):  # the holder is just writing it
        return None
