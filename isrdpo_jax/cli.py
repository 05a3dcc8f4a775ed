"""The command line. Thin: it reads arguments, calls the floors below, and turns errors into one paragraph."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isrdpo_jax.errors import IsrdpoError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="ISR-DPO: iterative self-retrospective preference training of video language models.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: prepare and look at them.")
config_app = typer.Typer(no_args_is_help=True, help="Configurations.")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

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


def main() -> None:
    """Entry point: exit codes 0 done, 2 bad input or config, 75 stopped and resumable, 1 a fault of ours."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except IsrdpoError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


def _emit(as_json: bool, value: dict[str, Any], show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(value, allow_nan=False))
    else:
        show()


@app.command("run")
def run_command(
    config: ConfigPath,
    overrides: Overrides = None,
    until: Annotated[
        str | None, typer.Option(help="Stop behind this stage: collect, pairs, reference, optimize, evaluate.")
    ] = None,
) -> None:
    """The main job: N iterations of ISR-DPO. The same command again resumes."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.errors import ConfigError
    from isrdpo_jax.runs.layout import STAGES

    loaded = load_config(config, overrides or ())
    if until is not None and until not in STAGES:
        raise ConfigError(f"--until {until}: the stages are {', '.join(STAGES)}.")
    from isrdpo_jax.pipeline import run

    layout = run(loaded.config, until=until, console=console)
    console.print(f"{layout.root} is done. Look at it with: isrdpo report {layout.root}", highlight=False)


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train a start policy from labelled data; the same command again resumes."""
    from isrdpo_jax.config import load_config

    loaded = load_config(config, overrides or ())
    from isrdpo_jax.start_policy import train_start_policy

    folder = train_start_policy(loaded.config, console=console)
    console.print(f'{folder} is done. Ask it with: isrdpo ask {folder} VIDEO "QUESTION"', highlight=False)


@app.command()
def status(run: Annotated[Path, typer.Argument(metavar="RUN")], as_json: AsJson = False) -> None:
    """Where a run stands: iteration, stage, what was kept and dropped and why, which policy, reference and data."""
    from isrdpo_jax.report.status import read_status, status_table

    found = read_status(run)
    _emit(as_json, found, lambda: Console().print(status_table(found)))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN …]")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; by default the first run's report/.")] = None,
) -> None:
    """Write report/index.html: runs side by side, curves, tables, examples. Opens from file://."""
    from isrdpo_jax.report.build import build_report
    from isrdpo_jax.report.frames import frames_of
    from isrdpo_jax.report.headline import headline_table

    path = build_report(runs, out or runs[0] / "report", frames_of)
    Console().print(headline_table(runs))
    console.print(f"{path}", highlight=False, soft_wrap=True)


@app.command()
def ask(
    model: Model,
    video: Visual,
    question: Annotated[str, typer.Argument()],
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    prompts: Annotated[str | None, typer.Option(help="Folder with prompt files of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a video or an image."""
    from isrdpo_jax.stages.questions import answer_question

    answer = answer_question(
        model, video, question, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens, prompts_dir=prompts
    )
    _emit(as_json, answer, lambda: print(answer["text"]))


@app.command()
def score(
    model: Model,
    video: Visual,
    prompt: Annotated[str, typer.Argument(help="The bare user turn; the template is added.")],
    response: Annotated[str, typer.Argument(help="Leading space and EOS are added; EOS counts.")],
    prompts: Annotated[str | None, typer.Option(help="Folder with prompt files of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """The summed log-prob of a response, and that of each of its tokens (nats)."""
    from isrdpo_jax.stages.questions import score_response

    scored = score_response(model, video, prompt, response, prompts_dir=prompts)
    _emit(as_json, scored, lambda: print(f"{scored['logprob']:.6f} nats over {len(scored['tokens'])} tokens"))


@app.command()
def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    iteration: Annotated[int, typer.Argument(metavar="ITER", min=1)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[judge.KEY=VALUE …]")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge an iteration's stored responses again, another way, and compare. Changes nothing in the run."""
    from isrdpo_jax.evaluation.rejudge import rejudge

    found = rejudge(run, iteration, overrides or (), console=console)

    def show() -> None:
        table = Table("", "stored", "again")
        for name in found["stored"]:
            table.add_row(name, _cell(found["stored"][name]), _cell(found["again"][name]))
        table.add_row("same verdict", "", _cell(found["same_verdict"]))
        Console().print(table)

    _emit(as_json, found, show)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command()
def sweep(
    sweep_file: Annotated[Path, typer.Argument(metavar="SWEEP", help="Such as configs/sweeps/beta.yaml.")],
) -> None:
    """Run the points of a grid in order and tabulate them; the same command again does only what is missing."""
    from isrdpo_jax.sweep import run_sweep, sweep_table

    rows = run_sweep(sweep_file, console=console)
    Console().print(sweep_table(rows))


@app.command("import")
def import_command(
    source: Annotated[str, typer.Argument(metavar="HF_DIR", help="A folder with config.json, weights and tokenizer.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The policy folder to make.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Such as vision.hidden_act=quick_gelu.")
    ] = None,
) -> None:
    """Make a policy of a Video-LLaVA, LLaVA-Hound or ISR-DPO checkpoint, in any of its published layouts."""
    from isrdpo_jax.data.tokens import check_tokenizer
    from isrdpo_jax.weights.import_hf import import_folder

    import_folder(
        source,
        out,
        settings=settings or (),
        say=_say,
        check_tokenizer=lambda folder, model: check_tokenizer(folder, model.llama.vocab_size),
    )
    _say(f'{out} is done. Ask it with: isrdpo ask {out} VIDEO "QUESTION"')


@app.command("export")
def export_command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="HF_DIR", help="The folder to make.")],
    layout: Annotated[
        Literal["original", "hub"], typer.Option(help="As Video-LLaVA writes it, or its transformers port.")
    ] = "original",
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of all tensors.")] = "bfloat16",
    force: Annotated[bool, typer.Option(help="Write the port although it computes something else.")] = False,
) -> None:
    """Write a policy as a folder that the Hugging Face world loads."""
    from isrdpo_jax.weights.export_hf import export_folder
    from isrdpo_jax.weights.policy_folder import find_policy

    export_folder(find_policy(model), out, layout=layout, dtype=dtype, force=force, say=_say)
    _say(f"{out} is done.")


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


@data_app.command("build")
def data_build(config: ConfigPath, overrides: Overrides = None) -> None:
    """Prepare the config's splits: decode every video once, into ArrayRecord."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.data.loader import open_split
    from isrdpo_jax.weights.policy_folder import find_policy

    loaded = load_config(config, overrides or ()).config
    vision = loaded.model.vision if loaded.model else find_policy(loaded.start).config.vision
    wanted = {"train": True, "eval": bool(loaded.data.eval_path), "sft": False}
    if loaded.data.dataset == "shapes_world":
        wanted = {"train": loaded.model is None, "eval": loaded.data.eval_videos > 0, "sft": loaded.data.sft_videos > 0}
    for split in ("train", "eval", "sft"):
        if wanted[split]:
            source = open_split(loaded, split, num_frames=vision.num_frames)
            skipped = ", ".join(f"{reason} {n}" for reason, n in source.skips.items()) or "none"
            console.print(f"{split}: {len(source)} videos in {source.folder}; skipped: {skipped}", highlight=False)


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """All values of a config, and where each comes from."""
    from isrdpo_jax.config import leaves, load_config, semantic_hash

    loaded = load_config(config, overrides or ())
    values = {key: {"value": value, "origin": loaded.origins[key]} for key, value in leaves(loaded.config)}

    def show() -> None:
        table = Table("key", "value", "origin", title=f"semantic hash {semantic_hash(loaded.config)[:16]}")
        for key, entry in values.items():
            table.add_row(key, json.dumps(entry["value"], ensure_ascii=False), entry["origin"])
        Console().print(table)

    _emit(as_json, {"hash": semantic_hash(loaded.config), "values": values}, show)


if __name__ == "__main__":
    main()
