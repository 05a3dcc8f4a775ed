"""Two processes with four devices each, against one process with eight, and against themselves."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
from tiny_run import Lab, rows, weights
from together import HEARTBEAT_S, Together, parts, run_together

from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.layout import IterationLayout

NEAR_TIE = 1e-3  # nats: less than this may tip the other way when sums are taken in another order
ONCE = ("run.iterations=1", "evaluation.enabled=false")
ONE_UPDATE = (*ONCE, "dpo.batch_size=40")


@pytest.fixture(scope="module")
def alone(lab: Lab) -> IterationLayout:
    """One process with eight devices, until one update is to be made of all pairs."""
    return lab.run("alone", *ONE_UPDATE, until="reference").layout.iteration(1)


@pytest.fixture(scope="module")
def together(lab: Lab) -> IterationLayout:
    return run_together(lab, "together", *ONCE).run.iteration(1)


def by_video(one: IterationLayout, kind: str) -> list[dict]:
    return sorted(rows(one, kind), key=lambda row: row["video"])


def test_each_process_writes_the_records_of_its_own_rows(together: IterationLayout):
    names = {f"part-{process:05d}-{batch:05d}.jsonl" for process in range(2) for batch in range(3)}
    names.remove("part-00001-00002.jsonl")  # of which it has no video
    for kind in ("responses", "descriptions", "judgements"):
        assert parts(together.root / kind) == names
    videos = [
        [{row["video"] for row in read_jsonl(together.part("judgements", process, batch))} for batch in range(batches)]
        for process, batches in enumerate((3, 2))
    ]
    assert [[len(some) for some in of_process] for of_process in videos] == [[4, 4, 4], [4, 4]]
    assert not set.union(*videos[0]) & set.union(*videos[1])


def test_two_processes_collect_what_one_does(alone: IterationLayout, together: IterationLayout):
    said = [
        [answer["tokens"] for row in by_video(one, "responses") for answer in row["responses"]]
        + [row["tokens"] for row in by_video(one, "descriptions")]
        for one in (alone, together)
    ]
    assert np.mean([a == b for a, b in zip(*said, strict=True)]) >= 0.999
    for a, b in zip(by_video(alone, "judgements"), by_video(together, "judgements"), strict=True):
        assert a["id"] == b["id"]
        assert (a["verdict"], a["reason"]) == (b["verdict"], b["reason"]) or abs(a["margin"]) < NEAR_TIE
    pairs = [[pair["id"] for pair in read_jsonl(one.pairs)] for one in (alone, together)]
    assert pairs[0] == pairs[1]
    reference = {row["id"]: (row["chosen"], row["rejected"]) for row in rows(alone, "reference")}
    assert len(reference) == len(pairs[0]) == len(rows(together, "reference"))
    for row in rows(together, "reference"):
        np.testing.assert_allclose((row["chosen"], row["rejected"]), reference[row["id"]], rtol=1e-5)


def test_two_processes_go_on_with_what_one_began_and_make_the_same_step(lab: Lab, alone: IterationLayout):
    shutil.copytree(alone.root.parent, lab.layout("handed_on").root)
    two = run_together(lab, "handed_on", *ONE_UPDATE).run.iteration(1)
    one = lab.run("alone", *ONE_UPDATE).layout.iteration(1)
    (expected,), (metrics,) = read_jsonl(one.metrics), read_jsonl(two.metrics)
    assert metrics["pairs"] == len(read_jsonl(alone.pairs)) > 30
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    start = weights(lab.layout("alone").iteration(0))
    assert distance(weights(one), weights(two)) <= 1e-5 * distance(weights(one), start)


def distance(a: Params, b: Params) -> float:
    """Norm of the difference of two policies."""
    squares = jax.tree.map(lambda x, y: float(np.square(x - y).sum()), a, b)
    return sum(jax.tree.leaves(squares)) ** 0.5


def test_killed_stopped_and_resumed_is_bitwise_undisturbed(lab: Lab, together: IterationLayout):
    """Process 1 is killed in a batch of videos; then it gets SIGTERM in an update; then both go on to the end."""
    name = "disturbed"
    die = """
import os, signal
from isrdpo_jax.stages import collect
write = collect.write_batch
def write_batch(layout, process, number, batch):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    write(layout, process, number, batch)
collect.write_batch = write_batch
"""
    killed = Together(lab, name, *ONCE, second=die)
    assert killed.seconds_to_follow(0) < 3 * HEARTBEAT_S
    codes = killed.end()
    assert codes[1] == -9 and codes[0] not in (0, 75), killed.said(0)
    one = killed.run.iteration(1)
    assert "part-00001-00000.jsonl" in parts(one.judgements) and "part-00001-00001.jsonl" not in parts(one.judgements)
    first = one.part("judgements", 1, 0).stat().st_mtime_ns

    stop = """
import os, signal
from isrdpo_jax.stages import optimize
step, made = optimize.dpo_step, []
def dpo_step(*arguments, **settings):
    made.append(1)
    if len(made) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(*arguments, **settings)
optimize.dpo_step = dpo_step
"""
    stopped = Together(lab, name, *ONCE, second=stop)
    assert stopped.end() == (75, 75), stopped.said(0) + stopped.said(1)
    assert one.part("judgements", 1, 0).stat().st_mtime_ns == first, "a finished batch was made again"
    assert "Stopped by SIGTERM" in stopped.said(1) and "Stopped by a signal to another process" in stopped.said(0)
    assert len(read_jsonl(one.metrics)) == 3 and one.train_steps()[-1] == 3
    shutil.copytree(one.root.parent, lab.layout("fewer").root)

    finished = run_together(lab, name, *ONCE)
    assert "going on behind update 3 of 5" in finished.said(0)
    assert all_records(one) == all_records(together)
    jax.tree.map(np.testing.assert_array_equal, weights(one), weights(together))

    fewer = lab.run("fewer", *ONCE)
    assert "going on behind update 3 of 5" in fewer.said
    alone = fewer.layout.iteration(1)
    losses = [[row["loss"] for row in read_jsonl(run.metrics)] for run in (alone, together)]
    assert losses[0][:3] == losses[1][:3]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), weights(alone), weights(one))


def all_records(one: IterationLayout) -> dict[str, bytes]:
    kept = ("responses", "descriptions", "judgements", "reference")
    files = [one.pairs, one.metrics, *(path for kind in kept for path in (one.root / kind).iterdir())]
    files += [one.manifest(stage) for stage in ("collect", "pairs", "reference", "optimize")]
    return {str(path.relative_to(one.root)): path.read_bytes() for path in files}
