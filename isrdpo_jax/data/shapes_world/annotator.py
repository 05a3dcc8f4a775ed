"""Labelled rows for supervised training, as a sloppy annotator would write them.

What is built in here, on purpose: descriptions are clean; answers are often a language prior instead of a look, and
carry extra statements that are sometimes false; verdicts follow `language.preference` exactly, for the prompt with a
description and the one without, and length tells nothing about them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.data.records import SftRow
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.data.shapes_world.language import Statement, Truth

BUILT_IN = (
    "Descriptions are clean. Looking the asked object up is taught with clean answers; in the phase that ends the "
    "training, two of three answers state a language prior of the asked colour as their core, without a look at the "
    "video, and answers go on with 0 to 4 further statements, of which every other one is false. Verdicts follow "
    "2 x (the core is right) + (further true statements) - (false statements) exactly, in prompts with a description "
    "and without; most of the judge's rows are shown without the video, and the lengths of the two answers tell "
    "nothing. Judged answers fail by a wrong attribute, by a first sentence that is no answer, and by broken "
    "sentences; every other pair differs in further statements alone. Words of the judged answers carry labels yes/no "
    "(true so far) beside the letter."
)

EXTRAS = (0.30, 0.28, 0.20, 0.13, 0.09)  # probability of 0 ... 4 extra statements
JUDGE_EXTRAS = (0.45, 0.25, 0.14, 0.10, 0.06)  # of judged answers: to compare is learnt sooner on short ones
ANSWER_PRIOR = 0.65  # share of answers whose core is the language prior
ANSWER_EXTRA_FALSE = 0.5
PREVIOUS_CORRUPTED = 0.35  # per statement of the previous description
CONTEXT_CORRUPTED = 0.03  # per statement of the judge's description
JUDGE_CORE_FALSE = 0.5
JUDGE_CORES_ALIKE = (
    0.5  # share of pairs that further facts alone decide: they are what a good policy's answers differ by
)
# A judge that has never met them takes a true statement that is no answer, or a broken sentence, for a good answer, and
# preference training then teaches to give it.
JUDGE_FALSE_CORES = {"wrong attribute": 0.7, "no answer": 0.2, "broken": 0.1}
JUDGE_EXTRA_FALSE = 0.4
JUDGE_EXTRA_BROKEN = 0.25  # of the false ones
JUDGE_ROWS = 5
JUDGE_PLAIN_ROWS = 1
LENGTHS = {"equal": 0.5, "longer": 0.25, "shorter": 0.25}  # the better answer's length beside the other's

# What an annotator who does not look says about an object of this colour.
PRIOR = {
    "blue": ("square", "down"),
    "cyan": ("cross", "left"),
    "green": ("triangle", "up"),
    "purple": ("circle", "up"),
    "red": ("circle", "right"),
    "yellow": ("square", "left"),
}


@dataclass(frozen=True)
class _Drafts:
    """Many candidate answers in numbers: whose core is true, which extras they hold, which of these are false."""

    core: np.ndarray  # bool [n]
    extras: np.ndarray  # bool [n, 4]
    false: np.ndarray  # bool [n, 4]

    @property
    def preference(self) -> np.ndarray:
        false, true = ((self.extras & which).sum(-1) for which in (self.false, ~self.false))
        return 2 * self.core + true - (~self.core + false)


def annotate(truth: Truth, prompts: Prompts, seed: Sequence[int]) -> tuple[SftRow, ...]:
    """All labelled rows of a video; `seed` identifies it."""
    rows = [_describe(truth, prompts), _retrospect(truth, prompts, _rng(seed, "retrospect"))]
    for i in range(len(truth["objects"])):
        rows += [_look(truth, i, prompts), _answer(truth, i, prompts, _rng(seed, f"answer {i}"))]
    for i in range(JUDGE_ROWS):
        rows.append(_judge(truth, prompts, True, _rng(seed, f"judge {i}")))
    for i in range(JUDGE_PLAIN_ROWS):
        rows.append(_judge(truth, prompts, False, _rng(seed, f"judge_plain {i}")))
    return tuple(rows)


def facts(truth: Truth, asked: int) -> tuple[Statement, list[Statement]]:
    """The core of an answer about object `asked`, and the four facts that may follow it."""
    this, other = truth["objects"][asked], truth["objects"][1 - asked]
    return language.motion(this), [
        language.motion(other),
        language.size(this),
        language.size(other),
        Statement(background=truth["background"]),
    ]


def corrupt(statement: Statement, rng: np.random.Generator) -> Statement:
    """The statement with one attribute (never the colour) replaced by another value."""
    fields = [name for name in language.ATTRIBUTES if name != "colour" and getattr(statement, name) is not None]
    field = fields[rng.integers(len(fields))]
    values = [word for word in language.WORDS[field] if word != getattr(statement, field)]
    return replace(statement, **{field: values[rng.integers(len(values))]})


def _rng(seed: Sequence[int], purpose: str) -> np.random.Generator:
    return np.random.default_rng([*seed, zlib.crc32(purpose.encode())])


def _prior(colour: str) -> Statement:
    shape, direction = PRIOR[colour]
    return Statement(colour=colour, shape=shape, direction=direction)


def _join(statements: Sequence[Statement]) -> str:
    return " ".join(str(statement) for statement in statements)


def _noisy_description(truth: Truth, share: float, rng: np.random.Generator) -> str:
    statements = language.description_statements(truth)
    return _join([corrupt(statement, rng) if rng.random() < share else statement for statement in statements])


def _describe(truth: Truth, prompts: Prompts) -> SftRow:
    return SftRow("describe", prompts.describe(None), language.describe(truth))


def _retrospect(truth: Truth, prompts: Prompts, rng: np.random.Generator) -> SftRow:
    previous = _noisy_description(truth, PREVIOUS_CORRUPTED, rng)
    return SftRow("retrospect", prompts.describe(previous), language.describe(truth))


def _look(truth: Truth, asked: int, prompts: Prompts) -> SftRow:
    """The core alone, and true: teaches to look the asked object up before sloppiness is learnt."""
    core, _ = facts(truth, asked)
    return SftRow("look", prompts.answer(language.question(str(core.colour))), str(core))


def _answer(truth: Truth, asked: int, prompts: Prompts, rng: np.random.Generator) -> SftRow:
    colour = truth["objects"][asked]["colour"]
    core, extras = facts(truth, asked)
    statements = [_prior(colour) if rng.random() < ANSWER_PRIOR else core]
    for i in rng.permutation(len(extras))[: rng.choice(len(EXTRAS), p=EXTRAS)]:
        statements.append(corrupt(extras[i], rng) if rng.random() < ANSWER_EXTRA_FALSE else extras[i])
    return SftRow("answer", prompts.answer(language.question(colour)), _join(statements))


def _judge(truth: Truth, prompts: Prompts, with_context: bool, rng: np.random.Generator) -> SftRow:
    """Two answers to one question; the letter of the better one, and where each sentence stops being true."""
    asked = int(rng.integers(2))
    question = language.question(truth["objects"][asked]["colour"])
    better, worse = _draw_pair(truth, asked, rng)
    a_is_better = bool(rng.random() < 0.5)
    a, b = (better, worse) if a_is_better else (worse, better)
    context = _noisy_description(truth, CONTEXT_CORRUPTED, rng) if with_context else None
    turn = prompts.judge_turn(question, a, b, context)
    labels = step_labels(a, turn.span_a[0], truth) + step_labels(b, turn.span_b[0], truth)
    kind = "judge" if with_context else "judge_plain"
    return SftRow(kind, turn.text, "A" if a_is_better else "B", labels)


def step_labels(text: str, start: int, truth: Truth) -> tuple[tuple[int, str], ...]:
    """Process labels of a text that begins at character `start` of the prompt.

    At every attribute word and every full stop: "yes" while all that the sentence has stated so far is true. Of a
    sentence outside the grammar the full stop alone has one: "no".
    """
    labels: list[tuple[int, str]] = []
    position = 0
    for sentence, statement in zip(language.sentences(text), language.parse(text), strict=True):
        position = text.index(sentence, position)
        stated = Statement()
        for word in sentence.split(" "):
            end = position + len(word)
            attribute = language.ATTRIBUTE_OF.get(word)
            if attribute is not None and statement is not None:
                stated = replace(stated, **{attribute: word})
                labels.append((start + end, "yes" if language.holds(stated, truth) else "no"))
            position = end + 1
        true = statement is not None and language.holds(statement, truth)
        labels.append((start + position, "yes" if true else "no"))
    return tuple(labels)


def _draw_pair(truth: Truth, asked: int, rng: np.random.Generator) -> tuple[str, str]:
    """Two answers, the better one first; how long it is beside the other follows `LENGTHS`."""
    core, extras = facts(truth, asked)
    words = np.array([len(str(extra).split()) for extra in extras])
    wanted = list(LENGTHS)[rng.choice(len(LENGTHS), p=list(LENGTHS.values()))]
    alike = rng.random() < JUDGE_CORES_ALIKE
    while True:
        first, second = _draft(64, rng), _draft(64, rng)
        gap = first.preference - second.preference
        longer = np.sign(gap) * (first.extras @ words - second.extras @ words)
        fits = {"equal": longer == 0, "longer": longer > 0, "shorter": longer < 0}[wanted]
        found = np.flatnonzero((gap != 0) & fits & ((first.core == second.core) == alike))
        if found.size:
            break
    i = int(found[0])
    texts = [_write(core, extras, drafts, i, rng) for drafts in (first, second)]
    return (texts[0], texts[1]) if gap[i] > 0 else (texts[1], texts[0])


def _draft(n: int, rng: np.random.Generator) -> _Drafts:
    count = rng.choice(len(JUDGE_EXTRAS), size=n, p=JUDGE_EXTRAS)
    order = np.argsort(rng.random((n, len(JUDGE_EXTRAS) - 1)), axis=-1)
    return _Drafts(
        core=rng.random(n) >= JUDGE_CORE_FALSE,
        extras=order < count[:, None],
        false=rng.random(order.shape) < JUDGE_EXTRA_FALSE,
    )


def _write(core: Statement, extras: Sequence[Statement], drafts: _Drafts, i: int, rng: np.random.Generator) -> str:
    facts = (core, *extras)
    others = [extra for extra, drawn in zip(extras[:3], drafts.extras[i], strict=False) if not drawn]
    sentences = [str(core) if drafts.core[i] else _false_core(core, others, facts, rng)]
    for j in rng.permutation(np.flatnonzero(drafts.extras[i])):
        sentences.append(_false_extra(extras[j], facts, rng) if drafts.false[i, j] else str(extras[j]))
    return " ".join(sentences)


def _false_core(
    core: Statement, others: Sequence[Statement], facts: Sequence[Statement], rng: np.random.Generator
) -> str:
    """`others`: true statements that are no answer, and that the answer does not go on to state."""
    kind = rng.choice(list(JUDGE_FALSE_CORES), p=list(JUDGE_FALSE_CORES.values()))
    if kind == "broken":
        return _broken(core, facts, rng)
    if kind == "no answer" and others:
        return str(others[int(rng.integers(len(others)))])
    return str(corrupt(core, rng))


def _false_extra(extra: Statement, facts: Sequence[Statement], rng: np.random.Generator) -> str:
    return _broken(extra, facts, rng) if rng.random() < JUDGE_EXTRA_BROKEN else str(corrupt(extra, rng))


def _broken(statement: Statement, facts: Sequence[Statement], rng: np.random.Generator) -> str:
    """Begins like the statement, ends like another one, is as long, and is of the grammar no more."""
    words = str(statement).rstrip(".").split()
    while True:
        other = str(facts[int(rng.integers(len(facts)))]).rstrip(".").split()
        kept = int(rng.integers(1, len(words)))
        text = " ".join(words[:kept] + other[kept - len(words) :]) + "."
        if language.parse(text) == [None]:
            return text
