"""Scenes: two shapes that move across a background, and what keeps the splits apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Split = Literal["train", "eval", "sft"]
SPLITS: tuple[str, ...] = get_args(Split)

COLOURS = ("blue", "cyan", "green", "purple", "red", "yellow")  # told apart on every background
SHAPES = ("circle", "cross", "square", "triangle")
DIRECTIONS = ("down", "left", "right", "up")
SIZES = ("large", "small")
BACKGROUNDS = ("bright", "dark", "grey")
HORIZONTAL = ("left", "right")

LANES = 2
SPAN = ((0, 5), (16, 28))  # pixels: ranges of the begin and the end of a track
_BUCKETS = 16


@dataclass(frozen=True)
class Object:
    """A moving shape. `lane` and `span` are nuisance: they change pixels, not meaning.

    Attributes:
        lane: which of `LANES` parallel tracks it follows.
        span: where it is first and last seen, pixels from the edge that it comes from.
    """

    colour: str
    shape: str
    direction: str
    size: str
    lane: int
    span: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """Two objects of different colours, sorted by colour; the second is drawn over the first.

    Attributes:
        noise_seed: seed of radius, shade and pixel noise.
    """

    objects: tuple[Object, Object]
    background: str
    noise_seed: int

    @property
    def truth(self) -> dict[str, Any]:
        """What a viewer can state about the scene, as JSON."""
        fields = ("colour", "shape", "direction", "size")
        objects = [{field: getattr(thing, field) for field in fields} for thing in self.objects]
        return {"objects": objects, "background": self.background}


def scene_key(scene: Scene) -> str:
    """Digest (16 hex digits) of what the scene means; scenes that differ in pixels only share it."""
    words = [scene.background]
    for thing in scene.objects:
        words += [thing.colour, thing.shape, thing.direction, thing.size]
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).hexdigest()


def split_of(key: str) -> Split:
    """The one split that scenes of this key may appear in: 2/16 eval, 2/16 train, 12/16 sft."""
    bucket = int(key, 16) % _BUCKETS
    return "eval" if bucket < 2 else "train" if bucket < 4 else "sft"


def sample_scenes(split: Split, n: int, seed: int) -> list[Scene]:
    """Draws n scenes of a split.

    Keys are distinct until every meaning of the split has been drawn once, so that a longer list begins with a shorter
    one of the same seed.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    scenes: list[Scene] = []
    seen: set[str] = set()
    attempts = 0
    while len(scenes) < n:
        scene = _draw(rng)
        key = scene_key(scene)
        if split_of(key) != split:
            continue
        attempts += 1
        if key in seen and attempts <= 20 * n:  # a split has thousands of meanings; past that, repeat
            continue
        seen.add(key)
        scenes.append(scene)
    return scenes


def _draw(rng: np.random.Generator) -> Scene:
    """A scene from the whole world; on parallel tracks, objects take different lanes and do not hide each other."""
    colours = sorted(rng.choice(COLOURS, size=2, replace=False).tolist())
    shapes = rng.integers(len(SHAPES), size=2)
    directions = rng.integers(len(DIRECTIONS), size=2)
    sizes = rng.integers(len(SIZES), size=2)
    first, second = (DIRECTIONS[i] for i in directions)
    parallel = (first in HORIZONTAL) == (second in HORIZONTAL)
    lanes = rng.choice(LANES, size=2, replace=not parallel)
    spans = [[int(rng.integers(low, high + 1)) for low, high in SPAN] for _ in range(2)]
    objects = [
        Object(
            colour=colours[i],
            shape=SHAPES[shapes[i]],
            direction=DIRECTIONS[directions[i]],
            size=SIZES[sizes[i]],
            lane=int(lanes[i]),
            span=(spans[i][0], spans[i][1]),
        )
        for i in range(2)
    ]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Scene(objects=(objects[0], objects[1]), background=background, noise_seed=int(rng.integers(2**31)))
