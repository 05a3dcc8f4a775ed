"""How an engine's dialogues went, in counts and seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Tally:
    """What an engine did.

    Attributes:
        steps, slot_steps, decoded: steps of decoding, times slots, and tokens said in them; over all processes.
        videos, prefills, prompts, prompt_tokens, prompt_positions: what this process had read; positions with padding.
        seconds: of all. waited_s: for a video to be loaded. idle_s: with nothing for the devices to do.
    """

    steps: int = 0
    slot_steps: int = 0
    decoded: int = 0
    videos: int = 0
    prefills: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    prompt_positions: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    idle_s: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        """Of two sessions."""
        return Tally(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Tally)))

    def figures(self) -> dict[str, float | int]:
        """With shares: of slot steps that said a token, of read positions that are padding, of time without work."""
        return {
            **vars(self),
            "tokens_per_second": self.decoded / self.seconds if self.seconds else 0.0,
            "slot_use": self.decoded / self.slot_steps if self.slot_steps else 0.0,
            "prefills_per_video": self.prefills / self.videos if self.videos else 0.0,
            "padding_share": 1 - self.prompt_tokens / self.prompt_positions if self.prompt_positions else 0.0,
            "waiting_share": self.waited_s / self.seconds if self.seconds else 0.0,
            "idle_share": self.idle_s / self.seconds if self.seconds else 0.0,
        }
