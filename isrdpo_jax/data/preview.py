"""What the model will see of a data set: frames as the tower gets them, prompts as rendered, tokens of every part."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice

import jinja2
import numpy as np
from PIL import Image
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from isrdpo_jax.data.budget import Budget, Turn
from isrdpo_jax.data.datasets.asked_videos import decoded
from isrdpo_jax.data.loader import Split, open_split, prepared_folder, split_rows
from isrdpo_jax.data.pixels import MEAN, STD, preprocess
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.schema import Config

_THUMBNAIL = 16  # columns; a cell shows two pixels, one above the other


@dataclass(frozen=True)
class Preview:
    """One video and what is asked about it.

    Attributes:
        stored: (height, width) of the decoded frames.
        seen: uint8 [t, s, s, 3], the frames as the tower sees them, before normalisation.
        questions: with the turns that each causes.
        turns: those that the video itself causes.
    """

    id: str
    stored: tuple[int, int]
    seen: np.ndarray
    questions: tuple[tuple[Question, tuple[Turn, ...]], ...]
    turns: tuple[Turn, ...]


def preview(
    config: Config, split: Split, budget: Budget, *, num_frames: int, image_size: int, count: int
) -> list[Preview]:
    """Looks at the first videos of a split that can be used; only these are decoded if the split is not prepared."""
    found = []
    for video in islice(_videos(config, split, num_frames), count):
        questions = tuple(
            (one, tuple(budget.of_question(one.text, heldout=split != "train"))) for one in video.questions
        )
        turns = tuple(budget.of_video()) if split == "train" else ()
        height, width = video.frames.shape[1:3]
        found.append(Preview(video.id, (height, width), _seen(video.frames, image_size), questions, turns))
    return found


def _videos(config: Config, split: Split, num_frames: int) -> Iterator[Video]:
    rows = split_rows(config, split)
    if rows is None or prepared_folder(config, split, num_frames=num_frames):
        yield from open_split(config, split, num_frames=num_frames)
    else:
        yield from (video for video, _ in decoded(rows, num_frames, config.data.decode_timeout_s) if video)


def _seen(frames: np.ndarray, image_size: int) -> np.ndarray:
    return np.rint((preprocess(frames, image_size) * STD + MEAN) * 255).clip(0, 255).astype(np.uint8)


def for_terminal(previews: list[Preview], budget: Budget, *, thumbnails: bool) -> RenderableType:
    """Sizes, tokens and prompts; `thumbnails` are made of coloured half blocks."""
    parts: list[RenderableType] = []
    for one in previews:
        (height, width), (t, side) = one.stored, one.seen.shape[:2]
        parts.append(Text(f"{one.id}: {t} frames of {width} x {height}, seen as {side} x {side}", style="bold"))
        if thumbnails:
            parts.append(_thumbnails(one.seen))
        for title, turns in _sections(one):
            parts.append(Text(f"\n{title}", style="bold"))
            parts += [part for turn in turns for part in _lines(turn, budget)]
    return Group(*parts)


def _sections(one: Preview) -> Iterator[tuple[str, tuple[Turn, ...]]]:
    yield from ((f"{question.id}: {question.text}", turns) for question, turns in one.questions)
    if one.turns:
        yield "about the video itself", one.turns


def _lines(turn: Turn, budget: Budget) -> Iterator[Text]:
    *spent, left = zip(_PARTS, _sizes(turn, budget), strict=True)
    yield Text(f"  {turn.kind}: " + " + ".join(f"{size} {part}" for part, size in spent), style="cyan")
    yield Text(f"  {left[1]} of {budget.window} positions left" if left[1] >= 0 else f"  {-left[1]} too many", "cyan")
    yield Text(textwrap.indent(_rendered(turn, budget), "    "))


_PARTS = ("before the video", "video", "prompt", "still to come", "to be written", "left")


def _sizes(turn: Turn, budget: Budget) -> tuple[int, ...]:
    """Tokens of each of `_PARTS`; a negative rest does not fit."""
    return budget.prefix, budget.visual, turn.tokens, turn.later, turn.written, budget.room - turn.total


def _rendered(turn: Turn, budget: Budget) -> str:
    return f"{budget.prompts.prefix_text}<video>{budget.prompts.turn(turn.text)}"


def _thumbnails(seen: np.ndarray) -> Text:
    """All frames side by side, two pixels in a cell: ▀ in the upper one's colour on the lower one's."""
    small = [np.asarray(Image.fromarray(frame).resize((_THUMBNAIL, _THUMBNAIL))) for frame in seen]
    gap = np.zeros((_THUMBNAIL, 1, 3), np.uint8)
    strip = np.concatenate([piece for frame in small for piece in (frame, gap)], axis=1)
    text = Text(no_wrap=True)
    for upper, lower in zip(strip[::2], strip[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=_colour(above), bgcolor=_colour(below)))
        text.append("\n")
    return text


def _colour(pixel: np.ndarray) -> str:
    return f"#{pixel[0]:02x}{pixel[1]:02x}{pixel[2]:02x}"


def as_html(previews: list[Preview], budget: Budget, title: str) -> str:
    """One page that needs no other file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((files(__package__) / "preview.html.j2").read_text(encoding="utf-8"))
    videos = [
        {
            "id": one.id,
            "stored": one.stored,
            "side": one.seen.shape[1],
            "frames": [_png(frame) for frame in one.seen],
            "sections": [
                (title, [(turn.kind, _rendered(turn, budget), _sizes(turn, budget)) for turn in turns])
                for title, turns in _sections(one)
            ],
        }
        for one in previews
    ]
    return template.render(title=title, videos=videos, parts=_PARTS, window=budget.window)


def _png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
