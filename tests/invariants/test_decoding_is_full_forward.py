"""What an engine says and weighs is what the whole row gives, computed at once: on one device and on several."""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import noise_video, tiny_policy

from isrdpo_jax.data.records import Video
from isrdpo_jax.models.video_llava import build
from isrdpo_jax.ops.sampling import base_key, record_keys, step_keys
from isrdpo_jax.schema import CollectConfig, MeshConfig
from isrdpo_jax.stages.dialogue import Completion, Decoding, Say, Sight, Weigh
from isrdpo_jax.stages.engine import Engine, record_hash
from isrdpo_jax.stages.policy import Policy, encode_frames

TURNS = ["What?", "Where does the red circle go?", "the red circle " * 14, "Is it?", "no"]  # two widths
NEW = 9
VIDEOS = [noise_video(name) for name in "abcde"]
SEED, ITERATION = 3, 2


@dataclass(frozen=True)
class Asked:
    """A text, and what of the policy's answer is known: tokens, or log-probs of the candidates."""

    video: Video
    request: Say | Weigh
    answer: Completion | np.ndarray


def ask_all(policy: Policy, decoding: Decoding, **collect) -> list[Asked]:
    """Every turn about every video, in ragged order: some are asked only when others have been answered."""
    engine = Engine(policy, CollectConfig(**collect), [decoding], seed=SEED, iteration=ITERATION)
    candidates = tuple(range(0, policy.config.llama.vocab_size, 7))

    def interview(number: int, video: Video):
        shifted = TURNS[number:] + TURNS[:number]
        first = [Say(turn, f"{video.id}/{turn}", decoding, "respond", number) for turn in shifted[:3]]
        then = [
            Weigh(shifted[0], candidates),
            Say(shifted[3], f"{video.id}/{shifted[3]}", decoding, "describe"),
            Weigh(shifted[4], candidates),
        ]
        said = yield first
        more = yield then
        return [Asked(video, one, answer) for one, answer in zip([*first, *then], [*said, *more], strict=True)]

    visits = [lambda i=i, video=video: (interview(i, video), Sight(video.frames)) for i, video in enumerate(VIDEOS)]
    told = dict(engine.converse(visits))
    assert sorted(told) == list(range(len(VIDEOS)))
    assert engine.tally.prefills == engine.tally.videos == len(VIDEOS)
    return [one for number in sorted(told) for one in told[number]]


@functools.partial(jax.jit, static_argnames="config")
def full_logits(params, features, prefix_ids, ids, *, config):
    """Logits at every position behind the prefix, of ids [1, n], in one forward over the whole row."""
    model = build(config, params)
    x = jnp.concatenate([model.embed_prefix(prefix_ids, features), model.llama.embed(ids, model.dtype)], axis=1)
    positions = jnp.arange(x.shape[1])[None]
    hidden = model.llama(x, positions, jnp.zeros_like(positions))
    return model.llama.logits(hidden[:, -ids.shape[1] :])[0]


def logits_behind(policy: Policy, video: Video, turn: str, said: tuple[int, ...]) -> np.ndarray:
    """float32[1 + said, v]: behind the turn, and behind each token said."""
    ids = [*policy.tokenizer.encode_turn(turn), *said]
    padded = np.zeros((1, -(-len(ids) // 64) * 64), np.int32)
    padded[0, : len(ids)] = ids
    features = encode_frames(policy, [video.frames])
    out = full_logits(policy.params, features, np.array(policy.prefix_ids), padded, config=policy.config)
    return np.asarray(out)[len(ids) - len(said) - 1 : len(ids)]


def noise(request: Say, purpose: int, tokens: int, words: int) -> np.ndarray:
    """The Gumbel noise of each token: float32[tokens, v]."""
    numbers = (jnp.array([x], jnp.uint32) for x in (purpose, record_hash(request.record), request.sample))
    key = record_keys(base_key(SEED, ITERATION), *numbers)
    keys = step_keys(jnp.broadcast_to(key, (tokens, 2)), jnp.arange(tokens))
    return np.asarray(jax.vmap(lambda one: jax.random.gumbel(one, (words,)))(keys))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("hall", [{"batch_videos": 4, "lanes": 1}, {"batch_videos": 6, "lanes": 2, "slots": 1}])
def test_tokens_and_logprobs_are_those_of_the_full_forward(policy, temperature: float, hall: dict):
    words = policy.config.llama.vocab_size
    asked = ask_all(policy, Decoding(NEW, temperature), **hall)
    assert len(asked) == 6 * len(VIDEOS)
    for one in asked:
        if isinstance(one.request, Weigh):
            (logits,) = logits_behind(policy, one.video, one.request.turn, ())
            expected = jax.nn.log_softmax(logits)[np.array(one.request.candidates)]
            np.testing.assert_allclose(one.answer, expected, atol=2e-5)
            continue
        tokens = one.answer.tokens
        logits = logits_behind(policy, one.video, one.request.turn, tokens)[:-1]
        if temperature:
            logits = logits + noise(one.request, {"respond": 0, "describe": 1}[one.request.purpose], len(tokens), words)
        assert tokens == tuple(logits.argmax(-1)), one.request
        ended = tokens[-1] == policy.tokenizer.eos_id
        assert policy.tokenizer.eos_id not in tokens[:-1]
        assert one.answer.finish == ("stop" if ended else "length")
        assert ended or len(tokens) == NEW
    assert len({token for one in asked if isinstance(one.request, Say) for token in one.answer.tokens}) > 30


@pytest.mark.parametrize("sizes", [MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, fsdp=4)])
def test_eight_devices_say_what_one_says(policy, sizes: MeshConfig):
    """Sums are rounded differently elsewhere: a token may differ where two are nearly as likely, and none does here."""
    hall = {"batch_videos": 16}
    alone = ask_all(policy, Decoding(NEW, 1.0, 0.95), **hall)
    together = ask_all(tiny_policy(sizes, devices=8), Decoding(NEW, 1.0, 0.95), **hall)
    for one, other in zip(alone, together, strict=True):
        if isinstance(one.request, Weigh):
            np.testing.assert_allclose(other.answer, one.answer, atol=2e-5)
        else:
            assert other.answer == one.answer


def test_texts_end_at_their_first_eos_and_the_others_go_on(policy):
    """An EOS that is said often: the word that is said most in free texts."""
    free = [one for one in ask_all(policy, Decoding(NEW, 1.0), batch_videos=4, lanes=1) if isinstance(one.request, Say)]
    said = [token for one in free for token in one.answer.tokens]
    eos = max(set(said), key=said.count)
    tokenizer = copy.copy(policy.tokenizer)
    tokenizer.eos_id = eos
    ended = ask_all(dataclasses.replace(policy, tokenizer=tokenizer), Decoding(NEW, 1.0), batch_videos=4, lanes=1)
    lengths = set()
    for one, other in zip(free, [one for one in ended if isinstance(one.request, Say)], strict=True):
        tokens = one.answer.tokens
        end = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        assert other.answer.tokens == tokens[:end]
        assert other.answer.finish == ("stop" if eos in tokens else "length")
        lengths.add(end)
    assert len(lengths) > 2
