"""What all commands share: their usual arguments, and how they answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/shapes.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE …]", help="Override values, such as dpo.beta=0.2.")
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A packaged policy, a policy folder, a run, or a run's iter_TT.")
]
Visual = Annotated[
    Path, typer.Argument(metavar="VIDEO|IMAGE", help="A video file, a folder of frames, or an image file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]

console = Console(stderr=True)


def emit(as_json: bool, value: dict[str, Any], show: Callable[[], None]) -> None:
    """Answers on stdout: one JSON object, or what `show` prints for people."""
    if as_json:
        print(json.dumps(value, allow_nan=False))
    else:
        show()


def say(text: str) -> None:
    """Tells the user something on stderr, as it is."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)
