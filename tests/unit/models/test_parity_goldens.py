"""The model against transformers' CLIP and LLaMA and a temporal tower in torch (tests/parity/make_model_goldens.py).

Four tiny models with random weights, two videos each, and two responses to each video's turn.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_programs import logits_behind, say_greedily
from published import to_params
from tiny import assert_trees_close

from isrdpo_jax.data.packing import PREFIX, PackedArrays, PairTokens, Segment, pack_pairs, pack_segments
from isrdpo_jax.models.kv_cache import KVPrefix
from isrdpo_jax.models.video_llava import Params, abstract_params, build
from isrdpo_jax.programs.dpo_step import PairBatch, pair_loss
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.programs.packed import PackedRows, packed_logprobs
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.sft_step import SftBatch, sft_step
from isrdpo_jax.programs.update import create_state
from isrdpo_jax.schema import DpoConfig, LlamaConfig, MeshConfig, ModelConfig, VisionConfig
from isrdpo_jax.sharding import make_mesh, replicated

GOLDENS = sorted((Path(__file__).parents[2] / "goldens").glob("model_*.npz"))
TOLERANCE = 1e-5  # float32 rounding leaves a tenth of it
GRADIENT_TOLERANCE = 1e-4
VIDEOS = RESPONSES = 2


@dataclass(frozen=True)
class Golden:
    """One file: what went in, in our terms, and `arrays`, what came out, under the names of the script."""

    arrays: dict[str, np.ndarray]
    config: ModelConfig
    params: Params

    def named(self, group: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(f"{group}/"): a for key, a in self.arrays.items() if key.startswith(f"{group}/")}

    @property
    def pixels(self) -> np.ndarray:
        return np.moveaxis(self.arrays["pixels"], 2, -1)

    @property
    def prefix_length(self) -> int:
        return len(self.arrays["prefix"]) + self.config.vision.tokens_per_video

    @functools.cached_property
    def pairs(self) -> list[PairTokens]:
        a = self.arrays
        rows = [(a[f"turn/{i}"], a[f"response/{i}/0"], a[f"response/{i}/1"]) for i in range(VIDEOS)]
        return [PairTokens(*(tuple(part.tolist()) for part in row)) for row in rows]

    @functools.cached_property
    def packed(self) -> tuple[PackedArrays, np.ndarray]:
        """A row per video, with both responses."""
        longest = max(len(response) for pair in self.pairs for response in (pair.chosen, pair.rejected))
        return pack_pairs(self.pairs, self.prefix_length, max(len(pair.turn) for pair in self.pairs), longest)


def model_config(case: dict) -> ModelConfig:
    def ours(published: dict) -> dict:
        names = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
        names["num_key_value_heads"] = "num_kv_heads"
        return {names.get(key, key): value for key, value in published.items()}

    vision = VisionConfig(**ours(case["vision"]), num_frames=case["num_frames"], keep_cls=case["keep_cls"])
    return ModelConfig(vision=vision, llama=LlamaConfig(**ours(case["llama"]), rope_theta=case["rope_theta"]))


@pytest.fixture(scope="module", params=GOLDENS, ids=lambda path: path.stem)
def golden(request) -> Golden:
    with np.load(request.param) as file:
        arrays = dict(file)
    config = model_config(json.loads(str(arrays["case"])))
    weights = {key.removeprefix("weights/"): array for key, array in arrays.items() if key.startswith("weights/")}
    return Golden(arrays, config, jax.tree.map(jnp.asarray, to_params(weights)))


def assert_close(ours, theirs: np.ndarray, what: str = "") -> None:
    """The largest difference within `TOLERANCE` of the largest value."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, what
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= TOLERANCE, f"{what} {difference:.3g} of the largest value"


def test_there_are_four_models_of_all_kinds():
    configs = [model_config(json.loads(str(np.load(path)["case"]))) for path in GOLDENS]
    assert len(configs) == 4
    assert {c.vision.hidden_act for c in configs} == {"gelu", "quick_gelu"}
    assert {c.vision.keep_cls for c in configs} == {True, False}
    assert len({c.llama.num_heads // c.llama.num_kv_heads for c in configs}) >= 3


def test_every_published_weight_has_its_place(golden):
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)  # noqa: E731
    assert shapes(golden.params) == shapes(abstract_params(golden.config))


def test_tower(golden):
    features = encode(golden.params, golden.pixels, config=golden.config)
    assert_close(features, golden.arrays["features"])


def test_tower_without_temporal_attention(golden):
    vision = golden.config.vision.model_copy(update={"temporal_attention": False})
    tower = golden.params["video_tower"]
    layers = {name: part for name, part in tower["layers"].items() if name != "temporal"}
    params = {**golden.params, "video_tower": {**tower, "layers": layers}}
    features = encode(params, golden.pixels, config=golden.config.model_copy(update={"vision": vision}))
    assert_close(features, golden.arrays["spatial"])


def test_projector_and_splice(golden):
    prefix_ids, s = golden.arrays["prefix"], len(golden.arrays["prefix"])
    prefix = build(golden.config, golden.params).embed_prefix(prefix_ids, golden.arrays["features"])
    table = golden.arrays["weights/llama.model.embed_tokens.weight"]
    np.testing.assert_array_equal(prefix[:, :s], np.stack([table[prefix_ids]] * VIDEOS))
    assert_close(prefix[:, s:], golden.arrays["projected"])


@functools.partial(jax.jit, static_argnames="config")
def packed_logits(params, prefix_ids, features, rows: PackedRows, *, config):
    """Logits at every position of every row, the prefix included."""
    model = build(config, params)
    x = model.embed_prefix(prefix_ids, features)
    b, p = x.shape[:2]
    x = jnp.concatenate([x, model.llama.embed(rows.tokens, x.dtype)], axis=1)
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(p), (b, p)), rows.positions], axis=1)
    segments = jnp.concatenate([jnp.zeros((b, p), jnp.int32), rows.segments], axis=1)
    return model.llama.logits(model.llama(x, positions, segments))


def test_logits_of_packed_rows(golden):
    rows, _ = golden.packed
    a = golden.arrays
    logits = packed_logits(golden.params, a["prefix"], a["features"], PackedRows(*rows), config=golden.config)
    segments = np.pad(rows.segments, ((0, 0), (golden.prefix_length, 0)), constant_values=PREFIX)
    for i, j in np.ndindex(VIDEOS, 2):
        separate = (segments[i] == PREFIX) | (segments[i] == j + 1)
        assert_close(logits[i, separate], a[f"logits/{i}/{j}"], f"video {i}, response {j}:")


def open_prefix(golden: Golden) -> KVPrefix:
    return prefill(golden.params, golden.arrays["prefix"], golden.arrays["features"], config=golden.config)


def test_logits_behind_a_cached_prefix(golden):
    """Every beginning of turn and response is one prompt."""
    width = golden.packed[0].tokens.shape[1]
    prompts = np.zeros((VIDEOS, RESPONSES, width, width), np.int32)
    lengths = np.zeros((VIDEOS, RESPONSES, width), np.int32)
    for i, pair in enumerate(golden.pairs):
        for j, response in enumerate((pair.chosen, pair.rejected)):
            n = len(pair.turn) + len(response)
            prompts[i, j, :, :n], lengths[i, j, :n] = pair.turn + response, 1 + np.arange(n)
    flat = prompts.reshape(VIDEOS, -1, width), lengths.reshape(VIDEOS, -1)
    logits = logits_behind(golden.params, open_prefix(golden), *flat, config=golden.config)
    logits = np.asarray(logits).reshape(*lengths.shape, -1)
    for i, j in np.ndindex(VIDEOS, RESPONSES):
        expected = golden.arrays[f"logits/{i}/{j}"][golden.prefix_length :]
        assert_close(logits[i, j, : len(expected)], expected, f"video {i}, response {j}:")


def test_greedy_tokens(golden):
    """The two best logits of every token are further apart than any rounding (the script sees to that)."""
    width = max(len(pair.turn) for pair in golden.pairs)
    prompts = np.array([pair.turn + (0,) * (width - len(pair.turn)) for pair in golden.pairs], np.int32)
    lengths = np.array([len(pair.turn) for pair in golden.pairs], np.int32)
    expected = np.stack([golden.arrays[f"greedy/{i}"] for i in range(VIDEOS)])
    a, new = golden.arrays, expected.shape[1]
    out = say_greedily(
        golden.params, a["prefix"], a["features"], prompts, lengths, new, config=golden.config, eos_id=-1
    )
    np.testing.assert_array_equal(out, expected)


def test_logprobs_and_their_gradient(golden):
    """From the pixels to the responses; the gradient is that of every parameter."""
    rows, mask = golden.packed

    def total(params):
        model = build(golden.config, params)
        features = model.encode(golden.pixels)
        logprobs = packed_logprobs(model, golden.arrays["prefix"], features, PackedRows(*rows))
        return jnp.where(mask, logprobs, 0.0).sum(), logprobs

    gradient, logprobs = jax.jit(jax.grad(total, has_aux=True))(golden.params)
    for i, j in np.ndindex(VIDEOS, RESPONSES):
        assert_close(logprobs[i, j][mask[i, j]], golden.arrays[f"logprobs/{i}/{j}"], f"video {i}, response {j}:")
    # No softmax sees the bias of its keys: the floor is for their gradients, which are rounding.
    assert_trees_close(gradient, to_params(golden.named("gradients")), GRADIENT_TOLERANCE, floor=1e-3)


def test_supervised_loss(golden):
    """One response at a time: transformers' loss is the mean over its tokens."""
    a, longest = golden.arrays, golden.packed[0].targets.shape[-1]
    optimizer = optax.set_to_zero()
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    state = create_state(jax.device_put(jax.tree.map(jnp.copy, golden.params), replicated(mesh)), optimizer)
    for i, j in np.ndindex(VIDEOS, RESPONSES):
        segment = Segment.of_response(a[f"turn/{i}"].tolist(), a[f"response/{i}/{j}"].tolist())
        rows, weights = pack_segments([[segment]], golden.prefix_length, golden.packed[0].tokens.shape[1], longest)
        batch = SftBatch(golden.pixels[i : i + 1], PackedRows(*rows), weights, None, None)
        state, metrics = sft_step(state, batch, a["prefix"], config=golden.config, optimizer=optimizer, text_weight=0.0)
        assert_close(metrics["loss"], a[f"loss/{i}/{j}"], f"video {i}, response {j}:")


def test_preference_loss(golden):
    rows, mask = golden.packed
    a = golden.arrays
    batch = PairBatch(a["features"], PackedRows(*rows), mask, a["reference"], np.ones(VIDEOS, np.float32))
    totals = np.array([VIDEOS, mask[:, 0].sum()], np.float32)

    @jax.jit
    def loss(llama):
        return pair_loss(llama, golden.params, a["prefix"], batch, totals, golden.config, DpoConfig(beta=0.1))[0]

    assert_close(loss(golden.params["llama"]), a["dpo_loss"])
