"""Draws a scene as a short clip: 16 frames of 32x32 RGB."""

from __future__ import annotations

import numpy as np

from isrdpo_jax.data.shapes_world.scene import HORIZONTAL, LANES, Object, Scene

FRAMES = 16
FPS = 8
SIDE = 32
NOISE = 8.0  # standard deviation, of 255

RGB = {
    "blue": (45, 75, 235),
    "cyan": (0, 215, 225),
    "green": (30, 165, 45),
    "purple": (175, 40, 200),
    "red": (225, 35, 35),
    "yellow": (240, 210, 10),
}
SHADES = {"bright": (205, 235), "dark": (15, 45), "grey": (110, 140)}
RADII = {"large": (7.4, 7.9), "small": (5.4, 5.9)}

_PIXEL = np.arange(SIDE, dtype=np.float32) + 0.5


def centres(thing: Object) -> tuple[np.ndarray, np.ndarray]:
    """Where an object's centre is, x and y in pixels, float32 [t] each: constant speed."""
    along = np.linspace(*thing.span, FRAMES, dtype=np.float32)
    if thing.direction in ("left", "up"):
        along = SIDE - along
    across = np.full(FRAMES, (thing.lane + 0.5) * SIDE / LANES, np.float32)
    return (along, across) if thing.direction in HORIZONTAL else (across, along)


def render(scene: Scene) -> np.ndarray:
    """Returns the clip, uint8 [t, H, W, 3]."""
    rng = np.random.default_rng(scene.noise_seed)
    frames = rng.standard_normal((FRAMES, SIDE, SIDE, 3), dtype=np.float32)
    frames *= NOISE
    clean = np.full_like(frames, rng.uniform(*SHADES[scene.background]))
    for thing in scene.objects:
        cover = _cover(thing, np.float32(rng.uniform(*RADII[thing.size])))[..., None]
        clean += cover * (np.asarray(RGB[thing.colour], np.float32) - clean)
    frames += clean
    return np.clip(np.rint(frames, out=frames), 0, 255, out=frames).astype(np.uint8)


def _cover(thing: Object, radius: np.float32) -> np.ndarray:
    """Share of every pixel that the object covers, float32 [t, H, W]: its signed distance, softened over one pixel."""
    x, y = centres(thing)
    dx = _PIXEL[None, None, :] - x[:, None, None]
    dy = _PIXEL[None, :, None] - y[:, None, None]
    if thing.shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - radius
    elif thing.shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    elif thing.shape == "cross":
        arm = 0.36 * radius
        upright = np.maximum(np.abs(dx) - arm, np.abs(dy) - radius)
        lying = np.maximum(np.abs(dx) - radius, np.abs(dy) - arm)
        distance = np.minimum(upright, lying)
    else:  # a triangle that points up: its base, and two sides that fall by two pixels for one
        sides = (2.0 * np.abs(dx) - dy - radius) / np.sqrt(np.float32(5))
        distance = np.maximum(sides, dy - 0.85 * radius)
    return np.clip(0.5 - distance, 0.0, 1.0)
