"""What a policy is asked in a dialogue, and what it answers.

A dialogue is a generator: it yields requests, all at once what does not depend on each other, and is sent the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Purpose = Literal["respond", "describe", "judge", "evaluate"]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; temperature 0 is greedy. A text ends behind the first of the strings in `stop`."""

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Say:
    """A user turn to be continued. record, sample, purpose: what its randomness belongs to."""

    turn: str
    record: str
    decoding: Decoding
    purpose: Purpose
    sample: int = 0


@dataclass(frozen=True)
class Weigh:
    """A user turn, and tokens of which one may come next: the answer is their log-probs, float32[candidates].

    Attributes:
        begun: tokens with which the reply begins, before that one.
    """

    turn: str
    candidates: tuple[int, ...]
    begun: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sight:
    """What is looked at.

    Attributes:
        frames: uint8 [t, H, W, 3], or [H, W, 3] of an image.
        id: the video's, under which its features are kept; empty = they are not.
    """

    frames: np.ndarray
    id: str = ""


@dataclass(frozen=True)
class Look:
    """From now on the dialogue is about this; there is no answer."""

    sight: Sight


@dataclass(frozen=True)
class Completion:
    """What was said, and why it ended.

    Attributes:
        text: stripped, and without the stop string.
        tokens: to the end, that is EOS, or what says the stop string, where finish is `stop`.
        finish: `length`: max_new_tokens came first. `too_long`: the turn does not fit into the context window, or into
            a slot, and nothing was said.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length", "too_long"]


Asked = Sequence[Say | Weigh] | Look
Dialogue = Generator[Asked, Any, Any]
Visit = Callable[[], tuple[Dialogue, Sight]]
"""Loads a video: the dialogue about it and what there is to see. Called ahead of time, in another thread."""
