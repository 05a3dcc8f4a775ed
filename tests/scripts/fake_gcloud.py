"""A `gcloud` for tests: records its calls, keeps one pod and one bucket in a folder, and plays what is asked of it.

It is put on the PATH as `gcloud`. In the folder `$FAKE_CLOUD`:
    calls.jsonl    one list of words per call, as received
    pod.json       {"vm": state or null, "request": state or null, "workers": n}
    play.json      what to play, taken from the front of each list: {"create": [stderr text or null, …],
                   "describe": [state, …] (of the VM; it stays in the last one), "ssh_down": [worker, …]}
    worker-0/ …    the workers' home folders; `ssh` runs its command there, `scp` copies there
    bucket/        gs://bucket/…
Options that gcloud does not have are refused with exit code 2, as gcloud does.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

CLOUD = Path(os.environ["FAKE_CLOUD"])
WHERE = {"--zone", "--project"}
OPTIONS = {
    "queued-resources create": WHERE | {"--node-id", "--accelerator-type", "--runtime-version", "--spot"},
    "tpu-vm create": WHERE | {"--accelerator-type", "--version", "--spot"},
    "queued-resources describe": WHERE | {"--format"},
    "tpu-vm describe": WHERE | {"--format"},
    "queued-resources delete": WHERE | {"--force", "--quiet"},
    "tpu-vm delete": WHERE | {"--quiet"},
    "tpu-vm ssh": WHERE | {"--worker", "--command"},
    "tpu-vm scp": WHERE | {"--worker"},
    "storage rsync": {"--recursive", "--exclude", "--delete-unmatched-destination-objects"},
    "storage cp": set(),
    "storage ls": set(),
}


def read(name: str) -> dict[str, Any]:
    path = CLOUD / name
    return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, value: dict[str, Any]) -> None:
    """Whole or not at all: calls of several workers read it meanwhile."""
    half = CLOUD / f"half-{os.getpid()}"
    half.write_text(json.dumps(value))
    half.replace(CLOUD / name)


def error(text: str, code: int = 1) -> NoReturn:
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    sys.exit(code)


def played(name: str) -> Any:
    """The next thing to play, or None; each is played once, however many call at a time."""
    with open(CLOUD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        play = read("play.json")
        if not play.get(name):
            return None
        found = play[name].pop(0)
        write("play.json", play)
        return found


def local(place: str) -> Path:
    return CLOUD / "bucket" / place.removeprefix("gs://") if place.startswith("gs://") else Path(place)


def copy(source: Path, target: Path) -> None:
    """An object appears when it is whole, whoever is killed meanwhile."""
    half = CLOUD / f"half-{os.getpid()}"
    shutil.copyfile(source, half)
    target.parent.mkdir(parents=True, exist_ok=True)
    half.replace(target)


def create(kind: str) -> None:
    pod = read("pod.json")
    if failure := played("create"):
        error(failure)
    if pod.get("vm") or pod.get("request"):
        error("ALREADY_EXISTS: the resource already exists")
    pod["vm"] = "READY"
    pod["request"] = "ACTIVE" if kind == "queued-resources" else None
    for worker in range(pod["workers"]):
        (CLOUD / f"worker-{worker}").mkdir()
    write("pod.json", pod)


def describe(kind: str, options: dict[str, str]) -> None:
    pod = read("pod.json")
    if kind == "tpu-vm" and "ipAddress" not in options["--format"] and (state := played("describe")):
        pod["vm"] = None if state == "MISSING" else state
        write("pod.json", pod)
    state = pod.get("vm" if kind == "tpu-vm" else "request")
    if state is None:
        error("NOT_FOUND: Resource 'projects/p/locations/z/nodes/pod' was not found")
    values = {
        "value(state)": state,
        "value(state.state)": state,
        "value(networkEndpoints[].ipAddress)": ";".join(f"10.0.0.{n}" for n in range(pod["workers"])),
    }
    print(values[options["--format"]])


def delete(kind: str) -> None:
    pod = read("pod.json")
    if pod.get("vm" if kind == "tpu-vm" else "request") is None:
        error("NOT_FOUND: was not found")
    if kind == "tpu-vm" and pod.get("request"):
        error("FAILED_PRECONDITION: the node belongs to a queued resource")
    write("pod.json", pod | {"vm": None, "request": None})
    for home in CLOUD.glob("worker-*"):
        kill_all(home)
        shutil.rmtree(home)


def kill_all(home: Path) -> None:
    """What the loss of a machine does to its processes."""
    pid = home / "isrdpo_run" / "pid"
    if pid.exists():
        subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], stderr=subprocess.DEVNULL, check=False)


def workers(pod: dict[str, Any], chosen: str) -> list[int]:
    if pod.get("vm") != "READY":
        error(f"the TPU VM is in state {pod.get('vm')}")
    return list(range(pod["workers"])) if chosen == "all" else [int(chosen)]


def ssh(options: dict[str, str]) -> None:
    down = read("play.json").get("ssh_down", [])

    def one(worker: int) -> int:
        if worker in down:
            print(f"Retrying: SSH command error: worker {worker}", file=sys.stderr)
            return 255
        home = CLOUD / f"worker-{worker}"
        environment = os.environ | {"HOME": str(home), "HOSTNAME": f"t1v-w-{worker}"}
        return subprocess.run(["bash", "-c", options["--command"]], cwd=home, env=environment, check=False).returncode

    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(one, workers(read("pod.json"), options["--worker"])))
    sys.exit(next(filter(None, codes), 0))


def scp(words: list[str], options: dict[str, str]) -> None:
    source, destination = words
    for worker in workers(read("pod.json"), options["--worker"]):
        shutil.copy(source, CLOUD / f"worker-{worker}" / destination.partition(":")[2])


def rsync(words: list[str], options: dict[str, str]) -> None:
    source, destination = map(local, words)
    excluded = re.compile(options["--exclude"]) if "--exclude" in options else None

    def files(folder: Path) -> dict[str, Path]:
        found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return {name: path for name, path in found.items() if not (excluded and excluded.match(name))}

    if not source.is_dir():
        error(f"Did not find existing container at: {words[0]}")
    ours, theirs = files(source), files(destination)
    for name, path in ours.items():
        copy(path, destination / name)
    if "--delete-unmatched-destination-objects" in options:
        for name in theirs.keys() - ours.keys():
            theirs[name].unlink()


def main() -> None:
    words = sys.argv[1:]
    with open(CLOUD / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    if words[:2] == ["compute", "tpus"]:
        words = words[2:]
    command = " ".join(words[:2])
    if command not in OPTIONS:
        error(f"Invalid choice: {command}", 2)
    options = dict(word.partition("=")[::2] for word in words[2:] if word.startswith("--"))
    if unknown := options.keys() - OPTIONS[command]:
        error(f"unrecognized arguments: {' '.join(unknown)}", 2)
    rest = [word for word in words[2:] if not word.startswith("--")]
    kind, verb = words[:2]
    if failure := played(command):
        error(failure)
    match verb:
        case "create":
            create(kind)
        case "describe":
            describe(kind, options)
        case "delete":
            delete(kind)
        case "ssh":
            ssh(options)
        case "scp":
            scp(rest, options)
        case "rsync":
            rsync(rest, options)
        case "cp":
            copy(local(rest[0]), local(rest[1]))
        case "ls":
            if not local(rest[0]).exists():
                error("One or more URLs matched no objects.")
            print("\n".join(str(path) for path in local(rest[0]).iterdir()))


main()
