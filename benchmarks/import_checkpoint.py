"""How fast and in how much memory a 7B checkpoint is imported, beside a plain copy of its files.

    python benchmarks/import_checkpoint.py FOLDER [--runs 3] [--quick] [--json]

Writes a synthetic checkpoint with the names, shapes and dtype of LLaVA-Hound 7B (1341 tensors, 14.93 GB in bfloat16)
into FOLDER once, then alternates `cp` and `isrdpo import`, each with an empty page cache where the system allows that,
and each until its files are on disk. FOLDER needs 31 GB; `--quick` is a model of the same kind with four layers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from isrdpo_jax.schema import LlamaConfig, ModelConfig, VisionConfig
from isrdpo_jax.weights.hf_config import write_config
from isrdpo_jax.weights.layouts import published_tensors, unread_tensors
from isrdpo_jax.weights.policy_folder import packaged_tokenizer

SHARD_BYTES = 4_950_000_000
MEMORY_LIMIT = 4e9  # bytes, anonymous
TIME_LIMIT = 2.0  # of the copy's


def hound(layers: int | None) -> ModelConfig:
    """LLaVA-Hound 7B; with `layers` given, that many in each part."""
    vision, llama = VisionConfig(), LlamaConfig()
    if layers is not None:
        vision = vision.model_copy(update={"num_layers": layers})
        llama = llama.model_copy(update={"num_layers": layers})
    image = vision.model_copy(update={"num_frames": 1, "temporal_attention": False})
    return ModelConfig(vision=vision, image=image, llama=llama, compute_dtype="bfloat16")


def write_checkpoint(folder: Path, config: ModelConfig) -> None:
    """Random values of the size of trained ones; a shard is written once it is full."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    block = (0.02 * rng.standard_normal(1 << 22, np.float32)).astype(ml_dtypes.bfloat16)
    shapes = {one.name: one.shape for one in published_tensors(config, "original")}
    shapes |= {name: shape for name, (_, shape) in unread_tensors(config, "original").items()}
    total = 2 * sum(int(np.prod(shape)) for shape in shapes.values())
    count = -(-total // SHARD_BYTES)
    weight_map: dict[str, str] = {}
    inside: dict[str, np.ndarray] = {}

    def flush() -> None:
        file = f"model-{len(set(weight_map.values())) + 1:05d}-of-{count:05d}.safetensors"
        save_file(inside, str(folder / file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(inside, file))
        inside.clear()

    for name, shape in shapes.items():
        if sum(one.nbytes for one in inside.values()) + 2 * np.prod(shape) > total / count:
            flush()
        inside[name] = np.resize(block, shape)
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    described = write_config(config, "original", "bfloat16", {"bos": 1, "eos": 2, "pad": 0})
    published = {key: value for key, value in described.items() if not key.endswith("tower_config")}
    (folder / "config.json").write_text(json.dumps(published))
    for file in packaged_tokenizer("shapes").iterdir():
        shutil.copyfile(file, folder / file.name)
    print(f"{folder}: {len(shapes)} tensors, {total:,} bytes", file=sys.stderr)


def empty_page_cache() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds until all is on disk, and the peak of anonymous memory, bytes (sampled 20 times a second)."""
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    os.sync()
    return time.monotonic() - began, 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config, case = (hound(4), "4 layers") if args.quick else (hound(None), "7B")
    source = args.folder / f"hound-{case.replace(' ', '-')}"
    if not (source / "config.json").exists():
        shutil.rmtree(source, ignore_errors=True)
        write_checkpoint(source, config)
    out = args.folder / "out"
    mine, theirs, peaks, cold = [], [], [], True
    for _ in range(args.runs):
        for times, command in (
            (theirs, ["cp", "-r", str(source), str(out)]),
            (mine, [sys.executable, "-m", "isrdpo_jax", "import", str(source), str(out)]),
        ):
            shutil.rmtree(out, ignore_errors=True)
            cold &= empty_page_cache()
            seconds, peak = measure(command)
            times.append(seconds)
            if times is mine:
                peaks.append(peak)
            print(f"{command[0] if times is theirs else 'import'}: {seconds:.1f} s", file=sys.stderr)
    shutil.rmtree(out, ignore_errors=True)
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    seconds, peer = statistics.median(mine), statistics.median(theirs)
    rows = [
        {
            "case": f"{case}: time",
            "ours": seconds,
            "peer": peer,
            "ratio": peer / seconds,
            "floor": 1 / TIME_LIMIT,
            "unit": "s",
        },
        {
            "case": f"{case}: bandwidth",
            "ours": size / seconds / 1e6,
            "peer": size / peer / 1e6,
            "ratio": peer / seconds,
            "floor": 1 / TIME_LIMIT,
            "unit": "MB/s",
        },
        {
            "case": f"{case}: peak anonymous memory",
            "ours": max(peaks) / 1e9,
            "peer": None,
            "ratio": MEMORY_LIMIT / max(peaks),
            "floor": 1.0,
            "unit": "GB",
        },
    ]
    rows = [{**row, "runs": args.runs} for row in rows]
    if args.json:
        print(json.dumps({"name": "import_checkpoint", "bytes": size, "cold": cold, "rows": rows}))
        return
    print(f"{size:,} bytes, {args.runs} runs each, page cache {'emptied' if cold else 'as it was'}; peer: cp")
    for row in rows:
        ours, peer_value = f"{row['ours']:.2f}", "–" if row["peer"] is None else f"{row['peer']:.2f}"
        verdict = f"ratio {row['ratio']:.2f}, floor {row['floor']}"
        print(f"{row['case']:34} {ours:>8} {peer_value:>8} {row['unit']:5} {verdict}")


if __name__ == "__main__":
    main()
