"""Asking a policy about videos: one prefix per video, any number of prompts behind it.

Shapes come from the caller's batch and from buckets of the prompts' widths, so each bucket is compiled once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isrdpo_jax.data.packing import bucket
from isrdpo_jax.data.pixels import preprocess
from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.data.tokens import Tokenizer, load_tokenizer
from isrdpo_jax.errors import DataError
from isrdpo_jax.models.kv_cache import KVCache
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.ops.sampling import record_keys
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.programs.generate import generate
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.score import next_token_logprobs
from isrdpo_jax.runs.manifest import VerifyMode
from isrdpo_jax.runs.processes import most
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.stages.shares import fetch_own, put_batch, put_whole
from isrdpo_jax.weights.policy_folder import PolicyFolder, find_policy, load_params

Purpose = Literal["respond", "describe", "judge", "evaluate"]
_PURPOSES: dict[Purpose, int] = {"respond": 0, "describe": 1, "judge": 2, "evaluate": 3}


@dataclass(frozen=True)
class Policy:
    """A model ready to be asked: parameters on a mesh, its tokenizer, the prompts. `digest` identifies the weights."""

    config: ModelConfig
    params: Params = field(repr=False)
    tokenizer: Tokenizer
    prompts: Prompts
    mesh: Mesh
    digest: str

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode_prefix(self.prompts))

    @property
    def prefix_length(self) -> int:
        """Positions before the user turn about a video: s text tokens and the visual tokens."""
        return len(self.prefix_ids) + self.config.vision.tokens_per_video

    def check_fits(self, prefix_length: int, tokens: int, what: str) -> None:
        """Raises:
        DataError: when `tokens` behind a prefix of a video or an image exceed the context window.
        """
        limit = self.config.llama.max_positions - prefix_length
        if tokens > limit:
            raise DataError(f"{what}: {tokens} tokens, and the context window leaves {limit} behind the visual tokens.")


@dataclass(frozen=True)
class Completion:
    """tokens include EOS when finish is `stop`; `length` means that max_new_tokens came first."""

    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0


def record_hash(record_id: str) -> int:
    """A stable 32-bit number of a record's id, for its sampling keys."""
    return int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:4], "little")


def encode_frames(policy: Policy, frames: Sequence[np.ndarray]) -> jax.Array:
    """uint8 frames [t, H, W, 3] of each video of this process -> features [b, n, d_vision] of the batch."""
    size = policy.config.vision.image_size
    pixels = np.stack([preprocess(one, size) for one in frames])
    return encode(policy.params, put_batch(policy.mesh, pixels), config=policy.config)


def open_prefixes(policy: Policy, features: jax.Array) -> KVCache:
    """The KV prefix of each video, to be read by all that follows."""
    ids = put_whole(policy.mesh, np.asarray(policy.prefix_ids, np.int32))
    return prefill(policy.params, ids, features, config=policy.config)


def complete(
    policy: Policy,
    prefixes: KVCache,
    turns: Sequence[Sequence[str | None]],
    ids: Sequence[Sequence[str]],
    samples: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    purpose: Purpose,
    seed: int,
    iteration: int,
) -> list[list[Completion | None]]:
    """Continue the user turns turns[b][r] of this process behind their prefixes; None marks an empty place.

    Args:
        ids, samples: the record and the number of the sample, from which each row's key is made.
    """
    prompts, lengths = _encode_turns(policy, turns, prefixes, decoding.max_new_tokens, "prompt and response")
    record = np.array([[record_hash(one) for one in row] for row in ids], np.uint32)
    keys = record_keys(seed, iteration, _PURPOSES[purpose], jnp.asarray(record), jnp.asarray(samples, dtype=jnp.uint32))
    eos = policy.tokenizer.eos_id
    out = generate(
        policy.params,
        prefixes,
        put_batch(policy.mesh, prompts),
        put_batch(policy.mesh, lengths),
        _put_keys(policy.mesh, keys),
        config=policy.config,
        max_new_tokens=decoding.max_new_tokens,
        eos_id=eos,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
    )
    tokens, counts, finished = (fetch_own(policy.mesh, array) for array in out)

    def one(i: int, j: int) -> Completion | None:
        if turns[i][j] is None:
            return None
        row = tuple(int(token) for token in tokens[i, j, : counts[i, j]])
        return Completion(policy.tokenizer.decode(row), row, "stop" if finished[i, j] else "length")

    return [[one(i, j) for j in range(len(turns[i]))] for i in range(len(turns))]


def letter_logprobs(policy: Policy, prefixes: KVCache, turns: Sequence[Sequence[str | None]]) -> np.ndarray:
    """log p(A), log p(B) behind each user turn: float32[b, r, 2]; rows of None are meaningless."""
    return _next_logprobs(policy, prefixes, turns, (), policy.tokenizer.letter_ids)


def score_logprobs(policy: Policy, prefixes: KVCache, turns: Sequence[Sequence[str | None]]) -> np.ndarray:
    """Log-probs of the scores 1 to 5 behind each user turn: float32[b, r, 5]; rows of None are meaningless."""
    return _next_logprobs(policy, prefixes, turns, *policy.tokenizer.score_ids)


def _next_logprobs(
    policy: Policy,
    prefixes: KVCache,
    turns: Sequence[Sequence[str | None]],
    before: Sequence[int],
    candidates: Sequence[int],
) -> np.ndarray:
    """Log-probs of tokens behind each user turn and the tokens `before`: float32[b, r, candidates]."""
    prompts, lengths = _encode_turns(policy, turns, prefixes, 1, "judge prompt", before)
    letters = put_whole(policy.mesh, np.asarray(candidates, np.int32))
    out = next_token_logprobs(
        policy.params,
        prefixes,
        put_batch(policy.mesh, prompts),
        put_batch(policy.mesh, lengths),
        letters,
        config=policy.config,
    )
    return fetch_own(policy.mesh, out)


def _encode_turns(
    policy: Policy,
    turns: Sequence[Sequence[str | None]],
    prefixes: KVCache,
    room: int,
    what: str,
    behind: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """int32[b, r, m] left-aligned tokens and int32[b, r] lengths; empty places have length 0.

    All processes give their arrays the width of the longest turn of any.

    Args:
        behind: further tokens behind every turn.

    Raises:
        DataError: that turn, and `room` tokens more, exceed the context window behind the prefix.
    """
    encoded = [[[] if t is None else [*policy.tokenizer.encode_turn(t), *behind] for t in row] for row in turns]
    longest = most(max(len(ids) for row in encoded for ids in row))
    policy.check_fits(prefixes.length, longest + room, what)
    width = bucket(longest)
    prompts = np.zeros((len(encoded), len(encoded[0]), width), np.int32)
    for i, row in enumerate(encoded):
        for j, ids in enumerate(row):
            prompts[i, j, : len(ids)] = ids
    return prompts, np.array([[len(ids) for ids in row] for row in encoded], np.int32)


def _put_keys(mesh: Mesh, keys: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(put_batch(mesh, jax.random.key_data(keys)))


def open_policy(name: str | PolicyFolder, mesh: Mesh, prompts: Prompts, *, verify: VerifyMode = "always") -> Policy:
    """The policy that a user names (see `weights.policy_folder`), on the mesh."""
    folder = find_policy(name) if isinstance(name, str) else name
    params, digest = load_params(folder, mesh, verify=verify)
    model = folder.config.on(mesh.devices.flat[0].platform)
    return Policy(model, params, load_tokenizer(folder.tokenizer_folder), prompts, mesh, digest)
