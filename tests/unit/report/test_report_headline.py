"""The terminal's headline table holds the figures of the files."""

import io
import json

import synthetic
from rich.console import Console

from isrdpo_jax.report.headline import headline_table


def test_start_and_last_of_every_run_with_count(tmp_path):
    runs = [synthetic.write_run(tmp_path, name, iterations=2, seed=i) for i, name in enumerate(("one", "two"))]
    console = Console(width=200, record=True, quiet=False, file=io.StringIO())
    console.print(headline_table(runs))
    lines = [line for line in console.export_text().splitlines() if "Accuracy" in line and "Judge" not in line]
    assert len(lines) == 2
    for run, line in zip(runs, lines, strict=True):
        start = json.loads((run / "iter_00/evaluation/summary.json").read_text())["accuracy"]
        last = json.loads((run / "iter_02/evaluation/summary.json").read_text())["accuracy"]
        assert run.name in line and "0 -> 2" in line and str(last["count"]) in line
        assert f"{100 * start['value']:.1f}" in line and f"{100 * last['value']:.1f}" in line
