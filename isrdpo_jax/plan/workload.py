"""What one iteration works on: how many videos and questions, and how many tokens, from which all shapes follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isrdpo_jax.data.packing import bucket
from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.schema import Config, ModelConfig
from isrdpo_jax.stages.collect import RESPONSES, VERDICT_TOKENS
from isrdpo_jax.stages.hall import longest_turn

SLOT_USE = 0.85
"""Share of the steps of decoding slots that say a token: the floor that `benchmarks/collect.py` holds it to."""


@dataclass(frozen=True)
class Counts:
    """What is expected of the data. Tokens are those of the longest text of a kind, since shapes are made for it.

    Attributes:
        videos: in the data set. questions: about each video.
        turn_tokens: of a user turn with its question.
        response_tokens, description_tokens: EOS included; None = as long as the config allows.
        kept: share of the questions that give a pair.
    """

    videos: int
    questions: int = 1
    turn_tokens: int = 64
    response_tokens: int | None = None
    description_tokens: int | None = None
    kept: float = 1.0


@dataclass(frozen=True)
class Workload:
    """Sizes of an iteration, in tokens before any padding.

    Attributes:
        prefix_tokens: the text before the video.
        turn_tokens, describe_tokens, judge_tokens: user turns that ask for an answer, a description, a verdict.
        response_tokens, description_tokens: what is decoded behind the first two.
        verdict_tokens: what is decoded behind the third; 0 when the judge's letters are scored.
        prefix_length: positions before a user turn, the video's included.
        describes: whether videos are described.
    """

    videos: int
    questions: int
    pairs: int
    prefix_tokens: int
    turn_tokens: int
    describe_tokens: int
    judge_tokens: int
    response_tokens: int
    description_tokens: int
    verdict_tokens: int
    prefix_length: int
    describes: bool

    @property
    def describes_apart(self) -> bool:
        """Whether turns that ask for a description are read by a program of their own, because of their width."""
        return self.describes and bucket(self.describe_tokens) != bucket(self.turn_tokens)

    @property
    def said(self) -> tuple[tuple[int, int, int], ...]:
        """Texts of each kind in an iteration: how many, tokens of their turn, tokens that are said."""
        asked = self.videos * self.questions
        kinds = [(RESPONSES * asked, self.turn_tokens, self.response_tokens)]
        if self.describes:
            kinds.append((self.videos, self.describe_tokens, self.description_tokens))
        if self.verdict_tokens:
            kinds.append((2 * asked, self.judge_tokens, self.verdict_tokens))
        return tuple(kinds)

    @property
    def decoded(self) -> int:
        """Tokens that slots say in an iteration; the first of a text is drawn where its turn is read."""
        return sum(texts * (new - 1) for texts, _, new in self.said)


def estimated_tokens(text: str) -> int:
    """Tokens of a text where there is no tokenizer: four characters each, about what LLaMA's has for English."""
    return -(-len(text) // 4)


def make_workload(
    config: Config, model: ModelConfig, prompts: Prompts, counts: Counts, tokens_of: Callable[[str], int]
) -> Workload:
    """The sizes that the stages of a run would meet.

    Args:
        tokens_of: how many tokens a text has.
    """
    response = min(counts.response_tokens or config.sampling.max_new_tokens, config.sampling.max_new_tokens)
    description = min(counts.description_tokens or config.describe.max_new_tokens, config.describe.max_new_tokens)
    prefix = 1 + tokens_of(prompts.prefix_text)  # BOS
    looks_back, is_told = config.judge.context == "retrospective", config.judge.context != "none"
    describe = tokens_of(prompts.turn(prompts.describe("" if looks_back else None)))
    context, alone = "" if is_told else None, config.judge.mode == "rubric"
    asked = prompts.rubric("", "", context) if alone else prompts.judge("", "", "", context)
    judge = tokens_of(prompts.turn(asked)) + counts.turn_tokens
    judge += (1 if alone else 2) * response + (description if is_told else 0)
    length = prefix + model.vision.tokens_per_video
    room = model.llama.max_positions - length

    def answered(tokens: int, new: int) -> int:
        """A longer turn is left out."""
        return min(tokens, longest_turn(config.collect, room), (room - new) // bucket(1) * bucket(1))

    says_verdict = config.judge.mode == "text"
    weighed = (room - 1) // bucket(1) * bucket(1)
    return Workload(
        videos=counts.videos,
        questions=counts.questions,
        pairs=round(counts.videos * counts.questions * counts.kept),
        prefix_tokens=prefix,
        turn_tokens=answered(counts.turn_tokens, response),
        describe_tokens=answered(describe + (description if looks_back else 0), description),
        judge_tokens=answered(judge, VERDICT_TOKENS) if says_verdict else min(judge, weighed),
        response_tokens=response,
        description_tokens=description,
        verdict_tokens=VERDICT_TOKENS if says_verdict else 0,
        prefix_length=length,
        describes=is_told,
    )
