"""A real run on a VM that is taken away: another VM goes on with the copy in the bucket, and nothing is different."""

from __future__ import annotations

from pathlib import Path

from fake_cloud import make_checkout, open_cloud, until
from tiny import assert_trees_equal
from tiny_run import ITERATIONS, Lab, Ran, records, weights

from isrdpo_jax.runs.layout import RunLayout


def test_a_run_that_goes_on_from_the_bucket_ends_as_if_nothing_had_happened(lab: Lab, finished: Ran, tmp_path: Path):
    make_checkout(tmp_path / "checkout", lab.config.read_text(), isrdpo="-m isrdpo_jax")
    cloud = open_cloud(tmp_path, tmp_path / "checkout")
    cloud.environment.update({key: value for key, value in lab.environment().items() if key not in cloud.environment})
    words = ("--bucket", "gs://box", "--sync-every", "1", "configs/a.yaml", "run.dir=runs", "run.name=moved")
    run = RunLayout(cloud.bucket("box/runs/moved"))
    try:
        cloud.ok("create", "pod", "--zone", "us-central1-a", "--type", "v5litepod-8", "--spot")
        cloud.ok("setup", "pod")
        cloud.ok("run", "pod", *words)
        until(lambda: run.iteration(1).manifest("collect").exists(), seconds=300)
        cloud.preempt()
        assert not run.iteration(ITERATIONS).manifest("evaluate").exists(), "it was to be taken away in the middle"
        done = cloud.script("watch", "pod", "--poll", "0.5", timeout=300)
    finally:
        cloud.kill_workers()
    assert done.returncode == 0, done.stderr + cloud.log()
    assert records(run) == records(finished.layout)
    assert_trees_equal(weights(run.iteration(ITERATIONS)), weights(finished.layout.iteration(ITERATIONS)))
