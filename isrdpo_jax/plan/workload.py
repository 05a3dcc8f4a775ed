"""What one iteration works on: how many videos and questions, and how many tokens, from which all shapes follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.schema import Config, ModelConfig
from isrdpo_jax.stages.collect import VERDICT_TOKENS


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
    room = model.llama.max_positions - prefix - model.vision.tokens_per_video - VERDICT_TOKENS
    return Workload(
        videos=counts.videos,
        questions=counts.questions,
        pairs=round(counts.videos * counts.questions * counts.kept),
        prefix_tokens=prefix,
        turn_tokens=counts.turn_tokens,
        describe_tokens=describe + (description if looks_back else 0),
        judge_tokens=min(judge, room),  # longer ones are not judged
        response_tokens=response,
        description_tokens=description,
        verdict_tokens=VERDICT_TOKENS if config.judge.mode == "text" else 0,
    )
