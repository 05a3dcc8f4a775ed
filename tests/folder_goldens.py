"""The tiny checkpoints of tests/goldens/folders (tests/parity/make_folder_goldens.py), imported as a user does."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from isrdpo_jax.programs.generate import generate
from PIL import Image
from typer.testing import CliRunner

from isrdpo_jax import cli
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.models.video_llava import build
from isrdpo_jax.programs.encode import encode, encode_images
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.stages.policy import Policy, open_policy

FOLDERS = Path(__file__).parent / "goldens" / "folders"
TOLERANCE = 1e-5  # float32 rounding leaves a tenth of it
Kind = Literal["video", "image"]


@dataclass(frozen=True)
class FolderGolden:
    """A checkpoint, and `arrays`, what torch says of it, under the names of the script."""

    folder: Path
    arrays: dict[str, np.ndarray]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @functools.cached_property
    def case(self) -> dict[str, Any]:
        return json.loads(str(self.arrays["case"]))

    @property
    def kinds(self) -> list[Kind]:
        return ["video", "image"] if self.case["images"] else ["video"]

    @property
    def settings(self) -> list[str]:
        """What an import must be told: float32 matmuls, and the heads, which the original layout leaves out."""
        heads = self.case["vision"]["num_attention_heads"]
        given = ["compute_dtype=float32"]
        if self.folder.name.startswith("llava_llama"):
            given += [f"vision.num_heads={heads}", f"image.num_heads={heads}"]
        return [word for setting in given for word in ("--set", setting)]

    def write_frames(self, folder: Path) -> Path:
        folder.mkdir()
        for number, frame in enumerate(self.arrays["frames"]):
            Image.fromarray(frame).save(folder / f"frame_{number}.png")
        return folder


def load_golden(folder: Path) -> FolderGolden:
    with np.load(folder / "expected.npz") as file:
        return FolderGolden(folder, dict(file))


def isrdpo(*arguments: object) -> str:
    """Runs a command in this process and returns its standard output."""
    ended = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


@dataclass(frozen=True)
class Imported:
    """A golden folder after `isrdpo import`, and a folder of its frames."""

    golden: FolderGolden
    folder: Path
    frames: Path

    @functools.cached_property
    def policy(self) -> Policy:
        mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
        return open_policy(str(self.folder), mesh, load_prompts())

    def features(self, kind: Kind) -> jax.Array:
        """Of the pixels that torch saw."""
        a, policy = self.golden.arrays, self.policy
        if kind == "video":
            return encode(policy.params, np.moveaxis(a["pixels"], 1, -1)[None], config=policy.config)
        return encode_images(policy.params, np.moveaxis(a["image_pixels"], 0, -1)[None], config=policy.config)


def import_golden(folder: Path, scratch: Path) -> Imported:
    golden = load_golden(folder)
    isrdpo("import", golden.checkpoint, scratch / "policy", *golden.settings)
    return Imported(golden, scratch / "policy", golden.write_frames(scratch / "frames"))


def assert_close(ours, theirs: np.ndarray, what: str = "") -> None:
    """The largest difference within `TOLERANCE` of the largest value."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, what
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= TOLERANCE, f"{what} {difference:.3g} of the largest value"


def check_score(imported: Imported) -> None:
    """`isrdpo score`, from PNG files and strings to the log-prob."""
    golden = imported.golden
    prompt, response = golden.case["prompt"], golden.case["response"]
    said = json.loads(isrdpo("score", imported.folder, imported.frames, prompt, response, "--json"))
    assert said["tokens"] == golden.arrays["response"].tolist()
    assert_close(said["logprob"], golden.arrays["video/logprob"])
    assert_close(said["per_token"], golden.arrays["video/logprobs"])


def check_answer(imported: Imported) -> None:
    """`isrdpo ask`, greedily."""
    expected = imported.golden.arrays["video/greedy"].tolist()
    prompt, length = imported.golden.case["prompt"], ("--max-new-tokens", len(expected))
    said = json.loads(isrdpo("ask", imported.folder, imported.frames, prompt, *length, "--json"))
    assert said["tokens"] == expected and said["finish"] == "length"


def check_logits(imported: Imported, kind: Kind) -> None:
    """From pixels to logits, at every position that the golden file holds."""
    a, policy = imported.golden.arrays, imported.policy
    behind, expected = np.concatenate([a["turn"], a["response"]]), a[f"{kind}/logits"]
    logits = _logits(policy.params, a["prefix"], imported.features(kind), behind, config=policy.config)
    assert_close(logits[-len(expected) :], expected)


def check_generated(imported: Imported, kind: Kind) -> None:
    """From pixels to greedy tokens."""
    a, policy = imported.golden.arrays, imported.policy
    expected, turn = a[f"{kind}/greedy"], a["turn"]
    prefix = prefill(policy.params, a["prefix"], imported.features(kind), config=policy.config)
    out = generate(
        policy.params,
        prefix,
        turn[None, None],
        np.array([[len(turn)]], np.int32),
        jax.random.split(jax.random.key(0), (1, 1)),
        config=policy.config,
        max_new_tokens=len(expected),
        eos_id=policy.tokenizer.eos_id,
        temperature=0.0,
    )
    np.testing.assert_array_equal(out.tokens[0, 0], expected)


@functools.partial(jax.jit, static_argnames="config")
def _logits(params, prefix_ids, features, behind, *, config):
    """[n, v], the causal forward of one row: text, features, text."""
    model = build(config, params)
    x = model.embed_prefix(prefix_ids, features)
    x = jnp.concatenate([x, model.llama.embed(behind, x.dtype)[None]], axis=1)
    positions = jnp.arange(x.shape[1])[None]
    return model.llama.logits(model.llama(x, positions, jnp.zeros_like(positions)))[0]
