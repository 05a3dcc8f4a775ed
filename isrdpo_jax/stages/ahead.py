"""Videos loaded ahead of time, a few at a time, so that memory is bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from isrdpo_jax.stages.dialogue import Dialogue, Sight, Visit

Seen = TypeVar("Seen")


class Ahead(Generic[Seen]):
    """Visits in their order, loaded a few ahead of time in one other thread, so that memory is bounded."""

    def __init__(self, visits: Sequence[Visit], depth: int, prepare: Callable[[Sight], Seen]):
        self._visits, self._depth, self._prepare = visits, depth, prepare
        self._begun = self._taken = 0
        self._loading: deque[Future] = deque()

    @property
    def left(self) -> int:
        return len(self._visits) - self._taken

    def take(self) -> tuple[int, Dialogue, Seen]:
        """Waits for the next one: its number, its dialogue, and what the policy sees."""
        dialogue, seen = self._loading.popleft().result()
        number, self._taken = self._taken, self._taken + 1
        self._fill()
        return number, dialogue, seen

    def _load(self, visit: Visit) -> tuple[Dialogue, Seen]:
        dialogue, sight = visit()
        return dialogue, self._prepare(sight)

    def _fill(self) -> None:
        while self._begun < len(self._visits) and len(self._loading) < self._depth:
            self._loading.append(self._pool.submit(self._load, self._visits[self._begun]))
            self._begun += 1

    def __enter__(self) -> Ahead[Seen]:
        self._pool = ThreadPoolExecutor(1, "video")
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
