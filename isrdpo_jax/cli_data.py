"""`isrdpo data …`: data sets are prepared, checked, looked at, and exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from isrdpo_jax.cli_common import AsJson, ConfigPath, Overrides, console, emit, say
from isrdpo_jax.errors import DataError

if TYPE_CHECKING:
    from isrdpo_jax.data.budget import Budget
    from isrdpo_jax.schema import Config, ModelConfig

data_app = typer.Typer(no_args_is_help=True, help="Data sets: prepare and look at them.")


@data_app.command("build")
def data_build(config: ConfigPath, overrides: Overrides = None) -> None:
    """Prepare the config's splits: decode every video once, into ArrayRecord."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.data.loader import configured_splits, open_split
    from isrdpo_jax.weights.policy_folder import find_policy

    loaded = load_config(config, overrides or ()).config
    vision = loaded.model.vision if loaded.model else find_policy(loaded.start).config.vision
    for split in configured_splits(loaded):
        source = open_split(loaded, split, num_frames=vision.num_frames)
        skipped = ", ".join(f"{reason} {n}" for reason, n in source.skips.items()) or "none"
        console.print(f"{split}: {len(source)} videos in {source.folder}; skipped: {skipped}", highlight=False)


@data_app.command("check")
def data_check(
    config: ConfigPath,
    overrides: Overrides = None,
    largest: Annotated[int, typer.Option(min=1, help="How many of the longest prompts are named.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Look for bad rows, unreadable videos and prompts that are too long, before anything is computed."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.data.check import check_data, check_table

    loaded = load_config(config, overrides or ()).config
    model, budget = _budget(loaded)
    found = check_data(loaded, budget, num_frames=model.vision.num_frames, largest=largest)
    emit(as_json, found, lambda: Console().print(check_table(found)))
    if not found["ok"]:
        sys.exit(DataError.exit_code)


@data_app.command("preview")
def data_preview(
    config: ConfigPath,
    overrides: Overrides = None,
    split: Annotated[Literal["train", "eval"], typer.Option()] = "train",
    count: Annotated[int, typer.Option(min=1, help="Videos.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Write a page instead.")] = None,
) -> None:
    """Show what the model will see: frames, rendered prompts, tokens of every part."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.data.preview import as_html, for_terminal, preview
    from isrdpo_jax.runs.atomic import write_text

    loaded = load_config(config, overrides or ()).config
    model, budget = _budget(loaded)
    frames, size = model.vision.num_frames, model.vision.image_size
    previews = preview(loaded, split, budget, num_frames=frames, image_size=size, count=count)
    if html is None:
        terminal = Console()
        terminal.print(for_terminal(previews, budget, thumbnails=terminal.is_terminal))
    else:
        write_text(html, as_html(previews, budget, f"{config.name}: {split}"))
        say(f"{html}")


def _budget(config: Config) -> tuple[ModelConfig, Budget]:
    """The model that a config runs or trains, and its context window; no device is touched."""
    from isrdpo_jax.data.budget import make_budget
    from isrdpo_jax.data.prompts import load_prompts
    from isrdpo_jax.data.tokens import load_tokenizer
    from isrdpo_jax.stages.collect import VERDICT_TOKENS
    from isrdpo_jax.weights.policy_folder import find_policy, packaged_tokenizer

    if config.model is not None:
        model, tokenizer = config.model, packaged_tokenizer(config.start)
    else:
        policy = find_policy(config.start)
        model, tokenizer = policy.config, policy.tokenizer_folder
    prompts = load_prompts(config.prompts.dir)
    return model, make_budget(config, model, prompts, load_tokenizer(tokenizer), verdict=VERDICT_TOKENS)


@data_app.command("export-pairs")
def data_export_pairs(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    iteration: Annotated[int, typer.Argument(metavar="ITER", min=1)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The JSONL to write.")],
    pair_format: Annotated[Literal["trl", "llamafactory", "ms-swift"], typer.Option("--format")] = "trl",
) -> None:
    """Write the preference pairs of an iteration for another trainer."""
    from isrdpo_jax.data.export_pairs import export_pairs

    found = export_pairs(run, iteration, out, pair_format)
    left_out = f"; {found['left_out']} left out for a literal <video> or <image>" if found["left_out"] else ""
    say(f"{out}: {found['pairs']} pairs{left_out}.")
