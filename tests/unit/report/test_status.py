"""How long a run still takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isrdpo_jax.report.status import _remaining
from isrdpo_jax.runs.layout import RunLayout, manifest_path


@pytest.mark.parametrize(("kept", "hours"), [([0, 1, 2, 3], 6), ([0, 6, 7, 8], 1), ([0, 7, 8, 9], 0)])
def test_the_pace_is_that_of_iterations_and_not_of_the_policies_that_are_kept(tmp_path: Path, kept, hours):
    run = RunLayout(tmp_path)
    assert _remaining(run, 9) is None
    for t in kept:
        path = manifest_path(run.iteration(t).checkpoint)
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (3600 * t, 3600 * t))
    assert _remaining(run, 9) == 3600 * hours
