"""A run that trains adapters: what changes, by how much, and that a stopped one goes on."""

from __future__ import annotations

import signal

import jax
import numpy as np
from tiny import assert_trees_equal
from tiny_run import Lab, weights

from isrdpo_jax.runs.atomic import read_jsonl

SETTINGS = ("run.iterations=1", "evaluation.enabled=false", "dpo.lora={rank: 2, alpha: 4, targets: [q, v, down]}")


def test_adapters_change_their_targets_by_a_low_rank_and_nothing_else(lab: Lab):
    done = lab.isrdpo("run", lab.config, "run.name=lora", *SETTINGS)
    assert "first batch: max |margin| 0" in done.stderr
    run = lab.layout("lora")
    before, after = (weights(run.iteration(t)) for t in (0, 1))
    assert jax.tree.structure(before) == jax.tree.structure(after), "no adapter is left in the policy"
    changes = jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), before, after)
    layers = changes["llama"].pop("layers")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(changes)), "embedding, head, norms, towers, projector"
    for name, module in layers.items():
        kernel = module.get("kernel")
        if name not in ("q", "v", "down"):
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(module)), name
            continue
        for layer in kernel:
            values = np.linalg.svd(layer, compute_uv=False)
            assert values[0] > 1e-5 and values[2] < 1e-3 * values[0], (name, values[:4])
    steps = read_jsonl(run.iteration(1).metrics)
    assert all(row["update_applied"] for row in steps) and steps[0]["grad_norm"] > 0

    stopped = lab.start("run", lab.config, "run.name=lora_stopped", *SETTINGS, "checkpoint.every_steps=1")
    one = lab.layout("lora_stopped").iteration(1)
    while stopped.poll() is None and not one.metrics.exists():
        pass
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=300)
    assert stopped.returncode in (0, 75)
    lab.isrdpo("run", lab.config, "run.name=lora_stopped", *SETTINGS, "checkpoint.every_steps=1")
    assert_trees_equal(weights(one), after)
