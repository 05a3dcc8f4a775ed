"""The judge behind each iteration: what it costs a run when it cannot judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from jax.errors import JaxRuntimeError
from rich.console import Console

from isrdpo_jax.errors import DataError, EndpointDownError, StoppedError
from isrdpo_jax.evaluation import in_run
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.schema import Config


def ask(monkeypatch, tmp_path: Path, error: Exception) -> list[str]:
    def evaluate(*_):
        raise error

    said: list[str] = []
    monkeypatch.setattr(in_run, "evaluate", evaluate)
    in_run.judge_iterations(Config(), RunLayout(tmp_path), Console(quiet=True), said.append)
    return said


@pytest.mark.parametrize("error", [EndpointDownError, DataError, OSError, JaxRuntimeError])
def test_a_judge_that_fails_costs_its_verdicts_and_not_the_run(monkeypatch, tmp_path, error):
    (told,) = ask(monkeypatch, tmp_path, error("20 calls in a row failed."))
    assert "not judged" in told and "20 calls in a row failed." in told and "isrdpo eval" in told


def test_a_signal_ends_the_run(monkeypatch, tmp_path):
    with pytest.raises(StoppedError):
        ask(monkeypatch, tmp_path, StoppedError("SIGTERM"))
