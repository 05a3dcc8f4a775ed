"""`isrdpo doctor`: looks at what a run needs of its machine, and says what to do about what is missing.

Devices are looked for in a process of their own, with a time limit: the search hangs where a TPU is held by another
process, and it must not start a backend in this one.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import av
import jax
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from isrdpo_jax.data.loader import configured_splits, prepared_folder, split_rows
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.errors import IsrdpoError, VideoError
from isrdpo_jax.models.video_llava import abstract_params
from isrdpo_jax.runs.atomic import free_bytes
from isrdpo_jax.schema import Config, ModelConfig
from isrdpo_jax.weights.policy_folder import find_policy

State = Literal["ok", "hint", "mend"]

_DECODERS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp9": ("vp9",),
    "av1": ("libdav1d", "libaom-av1"),
    "mpeg4": ("mpeg4",),
}
_PROBE = (
    "import jax, json; d = jax.devices(); "
    "print(json.dumps({'platform': d[0].platform, 'kind': d[0].device_kind, 'count': len(d)}))"
)
_PROBE_LIMIT_S = 120.0
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        state: `mend`: a run will fail or crawl; `hint`: worth knowing.
        what: what was found.
        do: what to do about it; empty if nothing.
    """

    topic: str
    state: State
    what: str
    do: str = ""


def examine(config: Config | None = None) -> list[Finding]:
    """Looks at the machine, and at what a config asks of it."""
    devices, problem = _devices()
    findings = [*_versions(), *_device_findings(devices, problem), *_accelerators(devices), *_processes(), *_codecs()]
    return [*findings, *(_configured(config, devices) if config else ())]


def summary(findings: list[Finding]) -> dict[str, Any]:
    """{"ok", "findings"}: ok if there is nothing to mend."""
    return {"ok": all(one.state != "mend" for one in findings), "findings": [asdict(one) for one in findings]}


def table(findings: list[Finding]) -> Table:
    colours = {"ok": "green", "hint": "yellow", "mend": "bold red"}
    shown = Table("topic", "", "found", "what to do")
    for one in findings:
        shown.add_row(one.topic, Text(one.state, style=colours[one.state]), Text(one.what), Text(one.do))
    return shown


def _versions() -> Iterator[Finding]:
    """Python, and every requirement against its bounds."""
    python = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("versions", "mend", f"Python {python}", "Use Python 3.11 or 3.12; delete .venv and `make setup`.")
    wrong = [problem for line in _requirements() if (problem := _unmet(Requirement(line)))]
    if wrong:
        yield Finding("versions", "mend", "; ".join(wrong), "Install what requirements.txt asks for: `make setup`.")
    else:
        jax_version = metadata.version("jax")
        yield Finding("versions", "ok", f"Python {python}, jax {jax_version}, all requirements within their bounds")


def _requirements() -> list[str]:
    """As installed; in a checkout that is not, those of its requirements.txt."""
    try:
        return [line for line in metadata.requires("isrdpo-jax") or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        file = Path(__file__).parents[1] / "requirements.txt"
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def _unmet(requirement: Requirement) -> str | None:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is not {requirement.specifier}"


def _devices() -> tuple[dict[str, Any] | None, str]:
    """What JAX finds: {"platform", "kind", "count"}, or why it finds nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"JAX found no device within {_PROBE_LIMIT_S:g} s"
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["JAX ended without a word"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def _device_findings(devices: dict[str, Any] | None, problem: str) -> Iterator[Finding]:
    if devices is None:
        advice = "End other processes that hold the device, or set JAX_PLATFORMS (cpu, tpu, cuda) to what is there."
        yield Finding("devices", "mend", problem, advice)
    else:
        yield Finding("devices", "ok", f"{devices['count']} x {devices['kind']} ({devices['platform']})")


def _accelerators(devices: dict[str, Any] | None) -> Iterator[Finding]:
    """Whether chips, their libraries and the environment go together."""
    chips, libtpu = _chips(), find_spec("libtpu") is not None
    platforms = os.environ.get("JAX_PLATFORMS", "")
    variables = sorted(name for name in os.environ if name.startswith("TPU_"))
    platform = devices["platform"] if devices else None
    if libtpu and not chips and not platforms:
        state: State = "hint" if devices else "mend"
        what = "libtpu is installed and no TPU is attached: JAX goes looking for one"
        yield Finding("tpu", state, what, "export JAX_PLATFORMS=cpu (or cuda)")
    if chips and not libtpu:
        what = f"{len(chips)} chips ({chips[0]} …) and no libtpu"
        yield Finding("tpu", "mend", what, "Install the extra: pip install 'isrdpo-jax[tpu]'.")
    closed = [str(chip) for chip in chips if not os.access(chip, os.R_OK | os.W_OK)]
    if closed:
        what = f"{closed[0]} cannot be opened by this user"
        yield Finding("tpu", "mend", what, "Run as root, or give the user access to the device files.")
    if chips and libtpu and platform not in (None, "tpu"):
        what = f"{len(chips)} TPU chips are attached and JAX uses {platform} (JAX_PLATFORMS={platforms or 'unset'})"
        yield Finding("tpu", "hint", what, "unset JAX_PLATFORMS")
    if chips and "TPU_SKIP_MDS_QUERY" in os.environ:
        what = "TPU_SKIP_MDS_QUERY is set: it is for compiling without a TPU, and there is one"
        yield Finding("tpu", "mend", what, f"unset {' '.join(variables)}")
    elif variables := [name for name in variables if name not in _SET_BY_JAX]:
        yield Finding("tpu", "ok", ", ".join(f"{name}={os.environ[name]}" for name in variables))
    if Path("/dev/nvidia0").exists() and platform == "cpu" and platforms != "cpu":
        what = "an NVIDIA GPU is attached and JAX uses the CPU"
        yield Finding("gpu", "mend", what, "Install the extra: pip install 'isrdpo-jax[cuda]'.")


_SET_BY_JAX = ("TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH")  # where no TPU is, and where libtpu is installed


def _chips() -> list[Path]:
    """Device files of TPU chips: up to v4 /dev/accel0 …, from v5 on /dev/vfio/0 …"""
    return sorted([*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")])


def _processes() -> Iterator[Finding]:
    """What the environment says of several hosts or processes."""
    hosts = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    tasks = next((int(os.environ[name]) for name in _COUNTS if os.environ.get(name, "").isdecimal()), 1)
    count = max(len(hosts), tasks)
    if count > 1:
        what = f"this is one of {count} processes or hosts"
        do = "Start `isrdpo run --processes auto` on all of them (tpu_scripts/run.sh does); run.dir must be shared."
        yield Finding("processes", "hint", what, do)


_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def _codecs() -> Iterator[Finding]:
    there = av.codecs_available
    missing = [name for name, decoders in _DECODERS.items() if not there.intersection(decoders)]
    if missing:
        do = "Install av from PyPI (its wheels bring FFmpeg), not against a system's FFmpeg: pip install --force av"
        yield Finding("codecs", "mend", f"no decoder for {', '.join(missing)}", do)
    else:
        yield Finding("codecs", "ok", f"decoders for {', '.join(_DECODERS)}")


def _configured(config: Config, devices: dict[str, Any] | None) -> Iterator[Finding]:
    run, data = Path(config.run.dir), Path(config.data.dir)
    for name, folder in (("run.dir", run), ("data.dir", data)):
        yield _writable(name, folder)
    if devices:
        yield from _mesh(config, devices["count"])
    try:
        model = config.model or find_policy(config.start).config
    except IsrdpoError as error:
        yield Finding("start", "mend", str(error), "Set `start`, or make the policy first (isrdpo import, isrdpo sft).")
        return
    try:
        prepared = _prepared_bytes(config, model)
    except IsrdpoError as error:
        yield Finding("data", "mend", str(error), "`isrdpo data check CONFIG` says more.")
        prepared = 0
    yield from _room({run: run_bytes(config, model), data: prepared})


def _writable(name: str, folder: Path) -> Finding:
    if "://" in str(folder) or str(folder).startswith("gs:/"):
        return Finding("folders", "hint", f"{name}: {folder} is not on a disk of this machine", "It was not looked at.")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Finding("folders", "ok", f"{name}: {folder} can be written")
    except OSError as error:
        do = f"Set {name} to a folder that you may write, or change its permissions."
        return Finding("folders", "mend", f"{name}: {existing} cannot be written ({error.strerror})", do)


def _mesh(config: Config, count: int) -> Iterator[Finding]:
    sizes = list(config.mesh.model_dump().values())
    fixed = math.prod(size for size in sizes if size != -1)
    fits = count % fixed == 0 if -1 in sizes else count == fixed
    if not fits:
        what = f"the mesh {config.mesh.model_dump()} does not cover {count} devices"
        yield Finding("mesh", "mend", what, "Include a file of configs/mesh/, or leave one size at -1.")


def run_bytes(config: Config, model: ModelConfig) -> int:
    """What a run keeps at its largest: float32 policies, and two training states of masters and two moments."""
    params = abstract_params(model)
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    trained = sum(leaf.size for leaf in jax.tree.leaves(params["llama"])) * 4
    keep = config.checkpoint.keep_policies
    policies = config.run.iterations + 1 if keep == 0 else min(config.run.iterations + 1, keep + 2)
    return policies * size + (0 if config.dpo.lora else 2 * 3 * trained)


def _prepared_bytes(config: Config, model: ModelConfig) -> int:
    """What is still to be prepared, as if all videos had the size of the first one."""
    frames, needed = model.vision.num_frames, 0
    for split in configured_splits(config):
        rows = split_rows(config, split)
        if rows is None or not rows.good or prepared_folder(config, split, num_frames=frames):
            continue
        try:
            needed += len(rows.videos) * decode_video(rows.good[0].path, frames).frames.nbytes
        except VideoError:  # what is wrong with it, `isrdpo data check` says
            continue
    return needed


def _room(needed: dict[Path, int]) -> Iterator[Finding]:
    """Compares with what is free, disk by disk."""
    by_disk: dict[int, tuple[list[Path], int]] = {}
    for folder, size in needed.items():
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        folders, so_far = by_disk.get(existing.stat().st_dev, ([], 0))
        by_disk[existing.stat().st_dev] = ([*folders, folder], so_far + size)
    for folders, size in by_disk.values():
        free = free_bytes(folders[0])
        what = f"{', '.join(map(str, folders))}: about {size / _GIB:.1f} GiB needed, {free / _GIB:.1f} GiB free"
        if size > free:
            yield Finding("disk", "mend", what, "Make room, or lower checkpoint.keep_policies (0 keeps all policies).")
        else:
            yield Finding("disk", "ok", what)
