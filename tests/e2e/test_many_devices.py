"""The same run over eight devices."""

from __future__ import annotations

import jax
import numpy as np
from tiny_run import Lab, rows, weights

from isrdpo_jax.runs.atomic import read_jsonl

NEAR_TIE = 1e-3  # nats: less than this may tip the other way when sums are taken in another order


def test_eight_devices_make_the_pairs_of_one(lab: Lab, retrospective):
    assert len(jax.devices()) == 8
    many = lab.run("many", "mesh.fsdp=8", "run.iterations=1", "evaluation.enabled=false").layout.iteration(1)
    one = retrospective.run.layout.iteration(1)
    said = {
        name: [answer["tokens"] for row in rows(run, "responses") for answer in row["responses"]]
        + [row["tokens"] for row in rows(run, "descriptions")]
        for name, run in (("one", one), ("many", many))
    }
    equal = np.mean([a == b for a, b in zip(said["one"], said["many"], strict=True)])
    assert equal >= 0.999
    for a, b in zip(rows(one, "judgements"), rows(many, "judgements"), strict=True):
        assert a["id"] == b["id"]
        assert (a["verdict"], a["reason"]) == (b["verdict"], b["reason"]) or abs(a["margin"]) < NEAR_TIE
        if a["log_odds"]:
            np.testing.assert_allclose(a["log_odds"], b["log_odds"], atol=NEAR_TIE)
    reference = {row["id"]: (row["chosen"], row["rejected"]) for row in rows(one, "reference")}
    for row in rows(many, "reference"):
        np.testing.assert_allclose((row["chosen"], row["rejected"]), reference[row["id"]], rtol=1e-5)
    losses = [[row["loss"] for row in read_jsonl(run.metrics)] for run in (one, many)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), weights(one), weights(many))
