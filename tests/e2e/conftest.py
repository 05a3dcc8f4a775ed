from __future__ import annotations

import sys
from collections.abc import Callable
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
        monkeypatch.setenv("COLUMNS", "200")  # however long the folders' names are
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

        class Listening(engine.Engine):
            """The engine, and what it is asked."""

            def __init__(self, *arguments, iteration: int = 0, **settings):
                super().__init__(*arguments, iteration=iteration, **settings)
                self.iteration = iteration

            def _go_on(self, guest):
                ended = super()._go_on(guest)
                for turn in guest.waiting:
                    if isinstance(turn.asked, engine.Weigh):
                        judged.append(turn.asked.turn)
                    elif turn.asked.purpose == "describe":
                        described.append((self.iteration, turn.asked.turn))
                return ended

        with pytest.MonkeyPatch.context() as patch:
            on_one_device(patch)
            patch.setattr(collect, "Engine", Listening)
            return Heard(lab.run(name, *overrides, **options), described, judged)

    return run


@pytest.fixture(scope="session")
def retrospective(lab: Lab, listen: Callable[..., Heard]) -> Heard:
    """The run that all variants are compared with."""
    return listen("retrospective")
