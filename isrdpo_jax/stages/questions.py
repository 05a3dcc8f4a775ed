"""One question, or one response, about one video or image: `isrdpo ask` and `isrdpo score`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from isrdpo_jax.data.images import is_image, preprocess_image, read_image
from isrdpo_jax.data.packing import PairTokens, bucket, pack_pairs
from isrdpo_jax.data.prompts import check_text, load_prompts
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.errors import DataError
from isrdpo_jax.programs.dpo_step import PairBatch, response_logprobs
from isrdpo_jax.programs.encode import encode_images
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.schema import CollectConfig, MeshConfig
from isrdpo_jax.sharding import make_mesh, replicated
from isrdpo_jax.stages.dialogue import Decoding, Dialogue, Say, Sight
from isrdpo_jax.stages.engine import Engine
from isrdpo_jax.stages.policy import Policy, encode_frames, open_policy
from isrdpo_jax.stages.shares import put_batch

log = logging.getLogger(__name__)


def _open(model: str, prompts_dir: str | None) -> Policy:
    """The policy on one device: a single question does not split."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    return open_policy(model, mesh, load_prompts(prompts_dir))


def _look(policy: Policy, path: Path) -> tuple[np.ndarray, bool]:
    """What the policy is to see of a video or an image, uint8, and whether it is for the image tower: [H, W, 3].

    A model without an image tower sees an image as a video that stands still: [t, H, W, 3].
    """
    config = policy.config
    if not is_image(path):
        return decode_video(path, config.vision.num_frames).frames, False
    image = read_image(path)
    if config.image is not None:
        return image, True
    log.warning("%s: the model has no image tower, so the image is seen as a video that stands still.", path)
    return np.broadcast_to(image, (config.vision.num_frames, *image.shape)), False


def _features(policy: Policy, seen: np.ndarray, image: bool) -> jax.Array:
    """Features [1, n, d_vision]."""
    config = policy.config
    if not image:
        return encode_frames(policy, [seen])
    assert config.image is not None
    pixels = preprocess_image(seen, config.image.image_size)
    return encode_images(policy.params, put_batch(policy.mesh, pixels[None]), config=config)


def answer_question(
    model: str,
    path: Path,
    question: str,
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    prompts_dir: str | None = None,
) -> dict[str, Any]:
    """Answers a question about a video or an image: {"text", "finish", "tokens"}.

    Raises:
        VideoError, DataError, CheckpointError: what is wrong with the video or image, the question or the model.
    """
    if not question.strip():
        raise DataError("the question is empty.")
    check_text(question, "the question")
    policy = _open(model, prompts_dir)
    turn = policy.prompts.answer(question)
    seen, image = _look(policy, path)
    ids = policy.tokenizer.encode_turn(turn)
    room = policy.config.llama.max_positions - policy.prefix_length_of(image=image) - bucket(len(ids))
    if room < 1:
        raise DataError(f"the question leaves no room for an answer in {policy.config.llama.max_positions} positions.")
    how = Decoding(min(max_new_tokens, room), temperature)
    one = CollectConfig(batch_videos=1, lanes=1, slots=1, turn_tokens=len(ids))
    engine = Engine(policy, one, [how], seed=seed, image=image)

    def interview() -> Dialogue:
        (answer,) = yield [Say(turn, question, how, "respond")]
        return answer

    ((_, answer),) = engine.converse([lambda: (interview(), Sight(seen))])
    return {"text": answer.text, "finish": answer.finish, "tokens": list(answer.tokens)}


def score_response(
    model: str, path: Path, prompt: str, response: str, *, prompts_dir: str | None = None
) -> dict[str, Any]:
    """The log-prob of a response, EOS counted: {"logprob", "tokens", "per_token"}, in nats."""
    check_text(prompt, "the prompt")
    check_text(response, "the response")
    policy = _open(model, prompts_dir)
    turn, tokens = policy.tokenizer.encode_turn(prompt), tuple(policy.tokenizer.encode_response(response))
    features = _features(policy, *_look(policy, path))
    prefix_length = len(policy.prefix_ids) + features.shape[1]
    policy.check_fits(prefix_length, len(turn) + len(tokens), "prompt and response")
    pair = PairTokens(tuple(turn), tokens, tokens[-1:])  # scored like a pair; the other side is a bare EOS
    rows, mask = pack_pairs([pair], prefix_length, bucket(len(turn), 16), bucket(len(tokens), 16))
    batch = PairBatch(features, PackedRows(*rows), mask, np.zeros((1, 2), np.float32), np.ones(1, np.float32))
    ids = jax.device_put(np.asarray(policy.prefix_ids, np.int32), replicated(policy.mesh))
    scored = np.asarray(response_logprobs(policy.params, ids, batch, config=policy.config))[0, 0, : len(tokens)]
    return {"logprob": float(scored.sum()), "tokens": list(tokens), "per_token": [float(value) for value in scored]}
