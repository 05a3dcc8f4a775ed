"""How many positions of the context window a prompt takes: what is there, what will be, and what may be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.data.tokens import Tokenizer
from isrdpo_jax.schema import Config, ModelConfig

PromptKind = Literal["answer", "describe", "retrospect", "judge"]

# What stands in a prompt for texts that a policy is still to write.
PREVIOUS, CONTEXT, RESPONSE_A, RESPONSE_B = "‹c_{t-1}›", "‹c_t›", "‹response A›", "‹response B›"


@dataclass(frozen=True)
class Turn:
    """A user turn and its tokens.

    Attributes:
        text: as rendered, with placeholders (`‹…›`) for what is not written yet.
        tokens: of the turn without these.
        later: of what will stand at the placeholders, at most.
        written: of what the policy may write behind the turn.
    """

    kind: PromptKind
    text: str
    tokens: int
    later: int
    written: int

    @property
    def total(self) -> int:
        return self.tokens + self.later + self.written


@dataclass(frozen=True)
class Budget:
    """The context window of a policy, and how prompts fill it.

    Attributes:
        window: positions.
        prefix: tokens before the video.
        visual: tokens of the video.
        verdict: tokens that are kept free for a verdict behind the judge's prompt.
    """

    config: Config
    prompts: Prompts
    tokenizer: Tokenizer
    window: int
    prefix: int
    visual: int
    verdict: int

    @property
    def room(self) -> int:
        """Positions behind the video; negative where the video alone does not fit."""
        return self.window - self.prefix - self.visual

    def of_question(self, question: str, *, heldout: bool = False) -> Iterator[Turn]:
        """The turns that a question causes; a held-out one is answered and not judged by the policy."""
        config, prompts = self.config, self.prompts
        written = config.evaluation.max_new_tokens if heldout else config.sampling.max_new_tokens
        answer = prompts.answer(question)
        yield Turn("answer", answer, self._tokens(answer), 0, written)
        if not heldout and config.judge.asks_policy:
            told = config.judge.context != "none"
            text, responses = self._judge(question, RESPONSE_A, RESPONSE_B, CONTEXT if told else None)
            bare, _ = self._judge(question, "", "", "" if told else None)
            later = responses * config.sampling.max_new_tokens + told * config.describe.max_new_tokens
            yield Turn("judge", text, self._tokens(bare), later, self.verdict)

    def of_video(self) -> Iterator[Turn]:
        """The turns that every training video causes."""
        config, prompts = self.config, self.prompts
        written = config.describe.max_new_tokens
        if config.judge.describes:
            text = prompts.describe(None)
            yield Turn("describe", text, self._tokens(text), 0, written)
        if config.judge.context == "retrospective" and config.run.iterations > 1:
            yield Turn("retrospect", prompts.describe(PREVIOUS), self._tokens(prompts.describe("")), written, written)

    def _judge(self, question: str, a: str, b: str, context: str | None) -> tuple[str, int]:
        """The turn that asks for a verdict, and how many responses stand in it."""
        if self.config.judge.mode == "rubric":
            return self.prompts.rubric(question, a, context), 1
        return self.prompts.judge(question, a, b, context), 2

    def _tokens(self, turn: str) -> int:
        return len(self.tokenizer.encode_turn(turn))


def make_budget(config: Config, model: ModelConfig, prompts: Prompts, tokenizer: Tokenizer, *, verdict: int) -> Budget:
    prefix, visual = len(tokenizer.encode_prefix(prompts)), model.vision.tokens_per_video
    return Budget(config, prompts, tokenizer, model.llama.max_positions, prefix, visual, verdict)
