"""The processes that make a run together: how they join, and how they agree.

All that is decided from the disk, process 0 decides, and tells the others: file systems that hosts share may show them
different moments. Whatever is asked here, all processes must ask, in the same order.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from isrdpo_jax.errors import ConfigError, IsrdpoError

T = TypeVar("T")

_LEAVE_S = 10  # that a process which fails waits for the others to fail likewise, before it ends without them


def join(processes: str | None, process: int | None, coordinator: str | None, heartbeat_s: int) -> None:
    """Makes this process one of several; with no arguments it stays alone. Call it before JAX touches a device.

    Args:
        processes: how many there are, or `auto`: number and addresses are as the cluster says (TPU metadata, Slurm).
        process: which of them this is, from 0.
        coordinator: HOST:PORT at which process 0 can be reached by all.
        heartbeat_s: a process that is not heard of for so long counts as dead, and the others end.

    Raises:
        ConfigError: the arguments are not complete, or the cluster says nothing.
    """
    given = (process, coordinator)
    if processes is None and given == (None, None):
        return
    # The signals are ours (`preemption.StopSignal`): JAX's own service would take SIGTERM away from us.
    jax.config.update("jax_enable_preemption_service", False)
    initialize = partial(
        jax.distributed.initialize, heartbeat_timeout_seconds=heartbeat_s, shutdown_timeout_seconds=heartbeat_s
    )
    if processes == "auto" and given == (None, None):
        try:
            initialize()
        except ValueError as error:
            raise ConfigError(
                f"--processes auto: no cluster says how many processes there are ({error}). Give --processes N "
                "--process I --coordinator HOST:PORT, or nothing for a single process."
            ) from error
        return
    if processes is None or not processes.isdecimal() or process is None or coordinator is None:
        raise ConfigError(
            "Several processes need --processes N --process I --coordinator HOST:PORT, or --processes auto alone."
        )
    if not process < int(processes):
        raise ConfigError(f"--process {process}: of {processes} processes, the last one is {int(processes) - 1}.")
    initialize(coordinator, int(processes), process)


@contextmanager
def joined(processes: str | None, process: int | None, coordinator: str | None, heartbeat_s: int) -> Iterator[None]:
    """Runs what it contains as one of several processes (arguments and errors as of `join`).

    An error of all of them ends them all, each with its exit code. Others cannot learn of an error of this one alone
    while they wait for its part of a computation, so it ends without them, and they by the missing heartbeat.
    """
    join(processes, process, coordinator, heartbeat_s)
    try:
        yield
    except BaseException as error:
        if several():
            timer = threading.Timer(_LEAVE_S, os._exit, (getattr(error, "exit_code", 1),))
            timer.daemon = True
            timer.start()
        raise


def several() -> bool:
    """Whether this process has joined others; does not touch a device."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is process 0, which alone writes what is not a process's own part."""
    return not several() or jax.process_index() == 0


def first_says(decide: Callable[[], T]) -> T:
    """What `decide` gives in process 0, where alone it is called; if it raises an `IsrdpoError`, all processes do."""
    if not several():
        return decide()
    outcome: tuple[Any, IsrdpoError | None] = (None, None)
    if is_first():
        try:
            outcome = (decide(), None)
        except IsrdpoError as refusal:
            outcome = (None, refusal)
    said = np.frombuffer(pickle.dumps(outcome), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(said.size)))
    content = multihost_utils.broadcast_one_to_all(_padded(said[:size], size))
    result, error = pickle.loads(content[:size].tobytes())
    if error is not None:
        raise error
    return result


@contextmanager
def in_first(context: AbstractContextManager) -> Iterator[None]:
    """Enters `context` in process 0 alone; if it cannot be entered there, all raise."""
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context)

        first_says(enter)
        yield


def gather(value: T) -> list[T]:
    """What every process says, in order of the processes."""
    if not several():
        return [value]
    said = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(said.size))
    contents = multihost_utils.process_allgather(_padded(said, int(sizes.max())))
    return [pickle.loads(content[:size].tobytes()) for content, size in zip(contents, sizes, strict=True)]


def any_says(flag: bool) -> bool:
    """Whether it is true in any process."""
    return flag if not several() else bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def most(number: int) -> int:
    """The largest of all processes' numbers."""
    return number if not several() else int(np.max(multihost_utils.process_allgather(np.int32(number))))


def meet() -> None:
    """Returns when all processes have come here."""
    if several():
        multihost_utils.sync_global_devices("meet")


def _padded(content: np.ndarray, size: int) -> np.ndarray:
    """Room for `size` bytes, in one of few lengths, each of which is compiled once."""
    room = np.zeros(1 << max(10, (size - 1).bit_length()), np.uint8)
    room[: content.size] = content
    return room
