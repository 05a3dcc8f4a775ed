"""`isrdpo run` as two processes with four CPU devices each."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from tiny_run import Lab

LIMIT_S = 600  # for a whole run, on a busy machine
HEARTBEAT_S = 10


class Together:
    """Two processes that make a run.

    Args:
        overrides: of the config.
        second: Python that process 1 runs first: what happens to it.
    """

    def __init__(self, lab: Lab, name: str, *overrides: str, second: str = "", second_override: str = "run.seed=0"):
        self.run = lab.layout(name)
        self.logs = [lab.root / f"{name}.{i}.log" for i in range(2)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = lab.environment() | {
            "JAX_NUM_CPU_DEVICES": "4",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        }
        arguments = ["run", str(lab.config), f"run.name={name}", f"processes.heartbeat_s={HEARTBEAT_S}", *overrides]
        self.children = []
        for i, (first, more) in enumerate((("", "run.seed=0"), (second, second_override))):
            code = f"{first}\nfrom isrdpo_jax.cli import main\nmain()"
            flags = ["--processes", "2", "--process", str(i), "--coordinator", address]
            with open(self.logs[i], "w") as log:
                command = [sys.executable, "-c", code, *arguments, more, *flags]
                child = subprocess.Popen(command, env=environment, cwd=lab.root, stdout=log, stderr=log)
            self.children.append(child)

    def end(self) -> tuple[int, int]:
        """Both exit codes."""
        try:
            first, second = (child.wait(timeout=LIMIT_S) for child in self.children)
        finally:
            for child in self.children:
                child.kill()
                child.wait()
        return first, second

    def said(self, process: int) -> str:
        return self.logs[process].read_text()

    def seconds_to_follow(self, process: int) -> float:
        """How long this process lives on when the other one has ended."""
        self.children[1 - process].wait(timeout=LIMIT_S)
        began = time.monotonic()
        self.children[process].wait(timeout=LIMIT_S)
        return time.monotonic() - began


def run_together(lab: Lab, name: str, *overrides: str) -> Together:
    """A run of two processes to its end."""
    pair = Together(lab, name, *overrides)
    assert pair.end() == (0, 0), pair.said(0) + pair.said(1)
    return pair


def parts(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
