"""FLOPs that an iteration's programs cannot do without, from the model's sizes alone.

Counted are matrix products at positions that are needed with a shared prefix: half of causal attention, no padding,
nothing that is computed again, no gradients of frozen parts. A multiply and an add are two.
"""

from __future__ import annotations

from dataclasses import dataclass

from isrdpo_jax.plan.workload import Workload
from isrdpo_jax.schema import ModelConfig, VisionConfig


@dataclass(frozen=True)
class Flops:
    """products: with parameters. attention: of queries with keys, and of weights with values."""

    products: float
    attention: float

    @property
    def total(self) -> float:
        return self.products + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.attention + other.attention)

    def __mul__(self, times: float) -> Flops:
        return Flops(times * self.products, times * self.attention)


class UsefulFlops:
    """Of the whole program, over all devices."""

    def __init__(self, model: ModelConfig, work: Workload):
        self._model, self._work = model, work
        self._visual = model.vision.tokens_per_video
        self._prefix = work.prefix_length

    def encode(self, videos: int) -> Flops:
        return _tower(self._model.vision) * videos

    def prefill(self, videos: int) -> Flops:
        """Keys and values of all layers; what the last layer would say is not wanted."""
        others = self._decoder(self._prefix, 0, self._model.llama.num_layers - 1)
        return (self._projector() + others + self._keys(self._prefix)) * videos

    def read(self, rows: int, turn: int) -> Flops:
        """Rows of a prompt of `turn` tokens behind a prefix, each with the logits of what comes next; of the last layer
        keys and values are wanted, and what it says at the last position."""
        others = self._decoder(turn, self._prefix, self._model.llama.num_layers - 1)
        last = self._keys(turn - 1) + self._decoder(1, self._prefix + turn - 1, 1)
        return (others + last + self._head(1)) * rows

    def decode(self, tokens: float) -> Flops:
        """Tokens that are as far into their texts as those of the whole iteration are on average."""
        whole = Flops(0.0, 0.0)
        for texts, turn, new in self._work.said:
            whole += (self._decoder(new - 1, self._prefix + turn) + self._head(new - 1)) * texts
        return whole * (tokens / max(1, self._work.decoded))

    def pair_forward(self, pairs: int) -> Flops:
        """One row per pair: the prefix and the user turn once, and two responses behind them."""
        response, shared = self._work.response_tokens, self._prefix + self._work.turn_tokens
        behind = (self._decoder(response, shared) + self._head(response)) * 2
        return (self._projector() + self._decoder(shared, 0) + behind) * pairs

    def preference_step(self, pairs: int, *, adapters: bool) -> Flops:
        """Forward and backward. The projector is frozen; with adapters the decoder's matrices are, too, so that their
        inputs get gradients and they get none. The adapters' own products are a few per cent and left out."""
        forward = self.pair_forward(pairs)
        projector = self._projector().products * pairs
        trained = forward.products - projector
        return Flops(projector + trained * (2 if adapters else 3), 3 * forward.attention)

    def _projector(self) -> Flops:
        d = self._model.llama.hidden_size
        return Flops(2.0 * self._visual * (self._model.vision.hidden_size * d + d * d), 0.0)

    def _keys(self, positions: int) -> Flops:
        """Keys and values of one layer."""
        llama = self._model.llama
        return Flops(2.0 * positions * llama.hidden_size * 2 * llama.num_kv_heads * llama.head_dim, 0.0)

    def _decoder(self, positions: int, behind: int, layers: int | None = None) -> Flops:
        """Consecutive positions, each of which sees `behind` others, the earlier ones and itself; in all layers."""
        llama = self._model.llama
        d, q, kv = llama.hidden_size, llama.num_heads * llama.head_dim, llama.num_kv_heads * llama.head_dim
        layer = d * (2 * q + 2 * kv) + 3 * d * llama.intermediate_size
        seen = positions * behind + positions * (positions + 1) / 2
        return Flops(2.0 * layer * positions, 4.0 * q * seen) * (llama.num_layers if layers is None else layers)

    def _head(self, predictions: int) -> Flops:
        return Flops(2.0 * self._model.llama.hidden_size * self._model.llama.vocab_size * predictions, 0.0)


def _tower(vision: VisionConfig) -> Flops:
    """One video."""
    d, t, n = vision.hidden_size, vision.num_frames, vision.patches_per_frame + 1
    layer = Flops(2.0 * (4 * d * d + 2 * d * vision.intermediate_size) * n * t, 4.0 * d * n * n * t)
    if vision.temporal_attention:
        layer += Flops(2.0 * 4 * d * d * n * t, 4.0 * d * t * t * n)
    patches = Flops(2.0 * 3 * vision.patch_size**2 * d * vision.patches_per_frame * t, 0.0)
    return layer * vision.layers_built + patches
