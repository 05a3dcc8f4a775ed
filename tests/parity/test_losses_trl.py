"""The preference step's loss, metrics and gradient against TRL's trainer, on the log-probs of a tiny model.

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
from isrdpo_jax.programs.dpo_step import pair_loss, response_logprobs
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
}
THEIRS = {
    "sigmoid": {"beta": 0.3, "loss_type": ["sigmoid"]},
    "length_desensitised": {"beta": 0.3, "loss_type": ["sigmoid"], "ld_alpha": 0.4},
    "supervised_too": {"beta": 0.3, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "hinge": {"beta": 0.3, "loss_type": ["hinge"]},
    "robust": {"beta": 0.3, "loss_type": ["robust"], "label_smoothing": 0.2},
    "ipo": {"beta": 0.3, "loss_type": ["ipo"]},
}


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
    np.savez(folder / "in.npz", policy=policy, reference=reference, mask=BATCH.mask, settings=json.dumps(THEIRS))
    python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
    subprocess.run([python, str(SCRIPT), str(folder / "in.npz"), str(folder / "out.npz")], check=True)
    with np.load(folder / "out.npz") as out:
        return dict(out)


@pytest.fixture(scope="module")
def pull_back(tiny_params):
    """The gradient of the decoder's parameters, from that of the token log-probs."""
    logprobs = lambda llama: token_logprobs({**tiny_params, "llama": llama})  # noqa: E731
    return jax.vjp(logprobs, tiny_params["llama"])[1]


@pytest.mark.parametrize("name", OURS)
def test_loss_metrics_and_gradient_are_those_of_trl(tiny_params, reference, trl, pull_back, name):
    dpo = OURS[name]
    sequences = sequence_logprobs(reference, BATCH.mask, dpo.ld_alpha, average=dpo.loss == "ipo")
    batch = BATCH._replace(reference=sequences)
    totals = jnp.array([COUNT, BATCH.mask[:, 0].sum()], jnp.float32)

    def ours(llama):
        return pair_loss(llama, tiny_params, PREFIX_IDS, batch, totals, TINY, dpo)

    (loss, sums), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(tiny_params["llama"])
    np.testing.assert_allclose(loss, trl[f"{name}/loss"], rtol=1e-5)
    assert_trees_close(gradient, pull_back(jnp.asarray(trl[f"{name}/gradient"]))[0], 1e-4)
    if dpo.loss == "ipo":
        return  # TRL reports sums of log-probs, and we the token means that its loss is made of
    for metric in ("chosen", "rejected", "margins", "accuracies"):
        expected = trl[f"{name}/rewards/{metric}"]
        np.testing.assert_allclose(sums[f"rewards/{metric}"] / COUNT, expected, rtol=1e-5, atol=1e-5, err_msg=metric)
    for side in ("chosen", "rejected"):
        np.testing.assert_allclose(sums[f"logps/{side}"] / COUNT, trl[f"{name}/logps/{side}"], rtol=1e-5, err_msg=side)
