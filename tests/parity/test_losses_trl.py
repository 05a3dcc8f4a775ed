"""The preference step's loss, metrics and gradient against TRL's trainer, for every loss that both have.

Twice: of given log-probs, where nothing but the losses is at work, and of a whole step of a tiny model. TRL knows label
smoothing in `robust`; the conservative DPO loss it has under the name of `aot`, whose batch is one pair.

The interpreter that has torch and TRL is `ISRDPO_TORCH_PYTHON`, or the one that runs this test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import PREFIX_IDS, TINY, assert_trees_close, pair_batch, random_features, random_pairs

from isrdpo_jax.ops.logprobs import sequence_logprobs
from isrdpo_jax.programs import dpo_step
from isrdpo_jax.programs.dpo_step import PairBatch, pair_loss, response_logprobs
from isrdpo_jax.schema import DpoConfig

SCRIPT = Path(__file__).with_name("trl_losses.py")
COUNT = 6
BATCH = pair_batch(random_pairs(COUNT), random_features(COUNT))
OURS = {
    "sigmoid": DpoConfig(beta=0.3),
    "length_desensitised": DpoConfig(beta=0.3, ld_alpha=0.4),
    "supervised_too": DpoConfig(beta=0.3, sft_weight=0.5),
    "hinge": DpoConfig(beta=0.3, loss="hinge"),
    "robust": DpoConfig(beta=0.3, loss="robust", label_smoothing=0.2),
    "ipo": DpoConfig(beta=0.3, loss="ipo"),
    "conservative": DpoConfig(beta=0.3, label_smoothing=0.2),
    "all_at_once": DpoConfig(beta=0.1, loss="robust", label_smoothing=0.1, ld_alpha=0.0, sft_weight=2.0),
}
THEIRS = {
    "sigmoid": {"beta": 0.3, "loss_type": ["sigmoid"]},
    "length_desensitised": {"beta": 0.3, "loss_type": ["sigmoid"], "ld_alpha": 0.4},
    "supervised_too": {"beta": 0.3, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "hinge": {"beta": 0.3, "loss_type": ["hinge"]},
    "robust": {"beta": 0.3, "loss_type": ["robust"], "label_smoothing": 0.2},
    "ipo": {"beta": 0.3, "loss_type": ["ipo"]},
    "conservative": {"beta": 0.3, "loss_type": ["aot"], "label_smoothing": 0.2},
    "all_at_once": {
        "beta": 0.1,
        "loss_type": ["robust", "sft"],
        "loss_weights": [1.0, 2.0],
        "label_smoothing": 0.1,
        "ld_alpha": 0.0,
    },
}
PAIRS = {name: 1 if name == "conservative" else COUNT for name in OURS}


def token_logprobs(params) -> jax.Array:
    return response_logprobs(params, PREFIX_IDS, BATCH, config=TINY)


@pytest.fixture(scope="module")
def reference(tiny_params) -> np.ndarray:
    """Token log-probs of a reference that is not the policy: float32[b, 2, m]."""
    noise = np.random.default_rng(0).normal(0, 1.5, BATCH.mask.shape).astype(np.float32)
    return np.where(BATCH.mask, token_logprobs(tiny_params) + noise, 0.0)


@pytest.fixture(scope="module")
def trl(tiny_params, reference, tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("trl")
    policy = np.asarray(token_logprobs(tiny_params))
    settings = {name: {"pairs": PAIRS[name], "arguments": THEIRS[name]} for name in THEIRS}
    np.savez(folder / "in.npz", policy=policy, reference=reference, mask=BATCH.mask, settings=json.dumps(settings))
    python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
    subprocess.run([python, str(SCRIPT), str(folder / "in.npz"), str(folder / "out.npz")], check=True)
    with np.load(folder / "out.npz") as out:
        return dict(out)


@pytest.fixture(scope="module")
def pull_back(tiny_params):
    """The gradient of the decoder's parameters, from that of the token log-probs."""
    logprobs = lambda llama: token_logprobs({**tiny_params, "llama": llama})  # noqa: E731
    return jax.vjp(logprobs, tiny_params["llama"])[1]


def batch_of(name: str, reference: np.ndarray) -> tuple[PairBatch, jax.Array]:
    """The pairs that TRL saw of this case, and the totals of their update."""
    dpo, count = OURS[name], PAIRS[name]
    sequences = sequence_logprobs(reference, BATCH.mask, dpo.ld_alpha, average=dpo.loss == "ipo")
    weights = (np.arange(COUNT) < count).astype(np.float32)
    totals = jnp.array([count, BATCH.mask[:count, 0].sum()], jnp.float32)
    return BATCH._replace(reference=sequences, weights=weights), totals


def check_metrics(name: str, sums: dict[str, jax.Array], trl: dict[str, np.ndarray], tolerance: float) -> None:
    metrics = [f"rewards/{metric}" for metric in ("chosen", "rejected", "margins", "accuracies")]
    metrics += ["logps/chosen", "logps/rejected"]
    if OURS[name].loss == "ipo":
        metrics = []  # TRL reports sums of log-probs, and we the token means that its loss is made of
    for metric in metrics:
        expected = trl[f"{name}/{metric}"]
        np.testing.assert_allclose(sums[metric] / PAIRS[name], expected, tolerance, tolerance, err_msg=metric)


@pytest.mark.parametrize("name", OURS)
def test_of_given_logprobs(tiny_params, reference, trl, monkeypatch, name):
    batch, totals = batch_of(name, reference)

    def ours(given):
        monkeypatch.setattr(dpo_step, "packed_logprobs", lambda *_: given)
        return pair_loss(tiny_params["llama"], tiny_params, PREFIX_IDS, batch, totals, TINY, OURS[name])

    (loss, sums), gradient = jax.value_and_grad(ours, has_aux=True)(token_logprobs(tiny_params))
    np.testing.assert_allclose(loss, trl[f"{name}/loss"], rtol=1e-6)
    expected = np.where(BATCH.mask, trl[f"{name}/gradient"], 0.0)  # TRL's padding is a log-prob of 0
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6)
    check_metrics(name, sums, trl, 1e-6)


@pytest.mark.parametrize("name", OURS)
def test_of_a_step(tiny_params, reference, trl, pull_back, name):
    batch, totals = batch_of(name, reference)

    def ours(llama):
        return pair_loss(llama, tiny_params, PREFIX_IDS, batch, totals, TINY, OURS[name])

    (loss, sums), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(tiny_params["llama"])
    np.testing.assert_allclose(loss, trl[f"{name}/loss"], rtol=1e-5)
    assert_trees_close(gradient, pull_back(jnp.asarray(trl[f"{name}/gradient"]))[0], 1e-4)
    check_metrics(name, sums, trl, 1e-5)
