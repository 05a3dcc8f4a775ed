"""The tokenizer of the shapes world: every word of the world and of the packaged prompts is one token.

`python -m isrdpo_jax.data.shapes_world.vocabulary FOLDER` writes it anew.
"""

from __future__ import annotations

import sys
from itertools import product

from isrdpo_jax.data.prompts import Prompts, load_prompts
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.data.shapes_world.language import Statement
from isrdpo_jax.data.shapes_world.scene import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZES
from isrdpo_jax.data.tokens import train_tokenizer

LIMIT = 1024


def words() -> list[str]:
    """Words of the world's sentences and verdicts, and their other-case forms."""
    sentences = [str(statement).rstrip(".") for statement in _statements()]
    sentences += [language.question(colour).rstrip("?") for colour in COLOURS]
    found = {word for sentence in sentences for word in sentence.split()} | {"A", "B", "yes", "no"}
    return sorted(found | {word.capitalize() for word in found} | {word.lower() for word in found})


def texts(prompts: Prompts) -> list[str]:
    """All that the tokenizer is trained on."""
    a, b, question, context = (str(Statement(background=BACKGROUNDS[0])),) * 4
    turns = [
        prompts.answer(question),
        prompts.describe(None),
        prompts.describe(context),
        prompts.judge(question, a, b, context),
        prompts.judge(question, a, b, None),
    ]
    spaced = [f". {word}" for word in words()]  # behind something, a word carries its leading space
    return [prompts.prefix_text, *(prompts.turn(turn) for turn in turns), *spaced]


def main(out: str) -> None:
    train_tokenizer(texts(load_prompts()), LIMIT, out)


def _statements() -> list[Statement]:
    objects = [Statement(*thing) for thing in product(SIZES, COLOURS, SHAPES, DIRECTIONS)]
    motions = [Statement(colour=thing.colour, shape=thing.shape, direction=thing.direction) for thing in objects]
    sizes = [Statement(colour=thing.colour, size=thing.size) for thing in objects]
    return [*objects, *motions, *sizes, *(Statement(background=shade) for shade in BACKGROUNDS)]


if __name__ == "__main__":
    main(sys.argv[1])
