"""What `isrdpo export --layout hub` writes is loaded by transformers, whole, and computes what the policy does."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny import TINY, random_params
from tiny_policy import with_words

from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.models.video_llava import build
from isrdpo_jax.ops.attention import PREFIX
from isrdpo_jax.weights.export_hf import export_folder
from isrdpo_jax.weights.policy_folder import find_policy, packaged_tokenizer, write_policy

SCRIPT = Path(__file__).with_name("load_port.py")
TOWER = TINY.vision.model_copy(update={"temporal_attention": False, "keep_cls": True, "num_heads": 4})
IMAGES = TOWER.model_copy(update={"num_frames": 1, "keep_cls": False})
MODEL = with_words(TINY.model_copy(update={"vision": TOWER, "image": IMAGES}))


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params, before, pixels, after, *, config):
    model = build(config, params)
    x = model.embed_prefix(before, model.encode(pixels))
    x = jnp.concatenate([x, model.llama.embed(after, x.dtype)[None]], axis=1)
    n = x.shape[1]
    segments = jnp.full((1, n), PREFIX)  # one text, seen causally
    return model.llama.logits(model.llama(x, jnp.arange(n)[None], segments))[0]


def test_transformers_loads_the_port_and_computes_the_same(tmp_path):
    params, rng = random_params(MODEL), np.random.default_rng(0)
    write_policy(tmp_path / "policy", MODEL, packaged_tokenizer("shapes"), params, {})
    export_folder(
        find_policy(str(tmp_path / "policy")), tmp_path / "hf", layout="hub", dtype="float32", say=lambda text: None
    )
    side, t = TOWER.image_size, TOWER.num_frames
    inputs = {
        "pixels": rng.normal(size=(t, 3, side, side)).astype(np.float32),
        "before": rng.integers(3, 300, 4),
        "after": rng.integers(3, 300, 6),
    }
    np.savez(tmp_path / "in.npz", **inputs)
    python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
    paths = [str(tmp_path / name) for name in ("hf", "in.npz", "out.npz")]
    subprocess.run([python, str(SCRIPT), *paths], check=True)
    with np.load(tmp_path / "out.npz") as out:
        assert out["strange"].tolist() == []
        expected, text, tokens, pixels, eos = (out[name] for name in ("logits", "text", "tokens", "pixels", "eos"))
    pixels_ours = np.moveaxis(inputs["pixels"], 1, -1)[None]
    ours = logits_of(params, inputs["before"], pixels_ours, inputs["after"], config=MODEL)
    old = MODEL.llama.vocab_size
    assert expected.shape[1] % 64 == 0 and expected.shape[1] >= old + 3
    assert np.abs(ours - expected[:, :old]).max() <= 1e-5 * np.abs(expected).max()
    described = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert tokens.tolist() == [
        described[f"{name}"] for name in ("image_token_index", "video_token_index", "pad_token_id")
    ]
    assert (text == described["video_token_index"]).sum() == 1
    assert pixels.shape == (1, 3, side, side)
    assert eos == load_tokenizer(tmp_path / "hf").eos_id
