from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from tiny_run import Lab, Ran, on_one_device

from isrdpo_jax import cli
from isrdpo_jax.stages import collect, engine


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    on_one_device(monkeypatch)


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def isrdpo(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The command line without a process of its own."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["isrdpo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Said(ended.value.code or 0, *capfd.readouterr())

    return run


@dataclass(frozen=True)
class Heard:
    """A run and what its policies were asked while it collected.

    Attributes:
        described: (iteration, turn) of every description.
        judged: every turn whose answer letters were weighed.
    """

    run: Ran
    described: list[tuple[int, str]]
    judged: list[str]


@pytest.fixture(scope="session")
def listen(lab: Lab) -> Callable[..., Heard]:
    """Makes a run on one device of this process, and listens."""

    def run(name: str, *overrides: str, **options: object) -> Heard:
        described: list[tuple[int, str]] = []
        judged: list[str] = []

        def complete(policy, prefixes, turns, ids, samples, decoding, *, purpose, seed, iteration):
            if purpose == "describe":
                described.extend((iteration, turn) for turn in said(turns))
            return engine.complete(
                policy, prefixes, turns, ids, samples, decoding, purpose=purpose, seed=seed, iteration=iteration
            )

        def letter_logprobs(policy, prefixes, turns):
            judged.extend(said(turns))
            return engine.letter_logprobs(policy, prefixes, turns)

        with pytest.MonkeyPatch.context() as patch:
            on_one_device(patch)
            patch.setattr(collect, "complete", complete)
            patch.setattr(collect, "letter_logprobs", letter_logprobs)
            return Heard(lab.run(name, *overrides, **options), described, judged)

    return run


def said(turns: object) -> Iterator[str]:
    return (turn for row in turns for turn in row if turn is not None)


@pytest.fixture(scope="session")
def retrospective(lab: Lab, listen: Callable[..., Heard]) -> Heard:
    """The run that all variants are compared with."""
    return listen("retrospective")
