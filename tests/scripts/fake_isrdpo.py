"""An `isrdpo` for tests of tpu_scripts: `run` counts its updates in the run's folder and ends as `$HOME/ends` says.

Each line of `ends` is one run: an exit code, or `sleep` (until SIGTERM, then 75). Without a line the run ends with 0.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def run(folder: Path, words: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    print("arguments", json.dumps(words), "JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS"))
    done = len(list(folder.glob("step_*.manifest.json")))
    (folder / f"step_{done}").write_text(f"weights {done}")
    (folder / f"step_{done}.manifest.json").write_text(json.dumps({"files": [f"step_{done}"]}))
    print(f"step {done} is done", flush=True)
    ends = Path.home() / "ends"
    lines = ends.read_text().split() if ends.exists() else []
    ends.write_text("\n".join(lines[1:]))
    if not lines or lines[0] != "sleep":
        return int(lines[0]) if lines else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("sleeping", flush=True)
    while True:
        time.sleep(0.05)


def main() -> int:
    words = [word for word in sys.argv[1:] if word != "--json"]
    settings = {"run.dir": "runs", "run.name": "run"} | dict(word.partition("=")[::2] for word in words if "=" in word)
    if settings.get("dpo.beta") == "-1":
        print("error: dpo.beta (override) must be greater than 0", file=sys.stderr)
        return 2
    match words:
        case ["config", "show", *_]:
            print(json.dumps({"values": {key: {"value": value} for key, value in settings.items()}}))
        case ["status", folder]:
            print(f"{folder}: {len(list(Path(folder).glob('step_*.manifest.json')))} steps")
        case ["run", *_]:
            return run(Path(settings["run.dir"]) / settings["run.name"], words[1:])
    return 0


sys.exit(main())
