"""Weights & Biases gets every row, and whatever happens to it, training and its metrics go on."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.metrics import MetricsWriter
from isrdpo_jax.runs.wandb_log import WandbRun


class FakeWandb:
    """A module `wandb` that remembers what it is told, or fails at one of its calls."""

    Settings = SimpleNamespace

    def __init__(self, fails_at: str = ""):
        self.fails_at = fails_at
        self.said: list[tuple] = []

    def init(self, **told):
        self._do("init", told)
        return SimpleNamespace(
            log=lambda values, step: self._do("log", (step, values)), finish=lambda: self._do("finish", None)
        )

    def _do(self, call, value):
        if call == self.fails_at:
            raise ConnectionError("the network is down")
        self.said.append((call, value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "beta" / "iter_03"
    made.mkdir(parents=True)
    return made


def train(folder: Path, start: int = 0) -> None:
    told = WandbRun("videos", folder, {"dpo": {"beta": 0.1}})
    with MetricsWriter(folder / "metrics.jsonl", resumed_step=start, wandb=told) as metrics:
        for step in (start + 1, start + 2):
            metrics.write(step, {"loss": step / 2})


def test_it_is_told_every_row(folder, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(folder)
    (_, told), *rows = fake.said
    assert rows == [("log", (1, {"loss": 0.5})), ("log", (2, {"loss": 1.0})), ("finish", None)]
    assert (told["project"], told["group"], told["name"]) == ("videos", "beta", "beta/iter_03")
    assert told["config"] == {"dpo": {"beta": 0.1}}
    assert max(told["settings"].login_timeout, told["settings"].init_timeout, told["settings"].finish_timeout) <= 60


def test_a_resumed_training_goes_on_under_the_same_id(folder, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(folder)
    train(folder, start=1)
    first, second = (value["id"] for call, value in fake.said if call == "init")
    assert first == second and len(first) == 16


@pytest.mark.parametrize("fails_at", ["import", "init", "log", "finish"])
def test_it_can_never_stop_the_run(folder, monkeypatch, caplog, fails_at):
    monkeypatch.setitem(sys.modules, "wandb", None if fails_at == "import" else FakeWandb(fails_at))
    with caplog.at_level(logging.WARNING):
        train(folder)
    assert [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")] == [0.5, 1.0]
    (record,) = caplog.records
    reason = "ModuleNotFoundError" if fails_at == "import" else "ConnectionError: the network is down"
    assert record.getMessage().startswith("Weights & Biases is switched off") and reason in record.getMessage()
