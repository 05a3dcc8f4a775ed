"""The command line. Thin: it reads arguments, calls the floors below, and turns errors into one paragraph."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isrdpo_jax.cli_common import AsJson, ConfigPath, Model, Overrides, Visual, console, emit, say
from isrdpo_jax.cli_data import data_app
from isrdpo_jax.errors import DataError, IsrdpoError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="ISR-DPO: iterative self-retrospective preference training of video language models.",
)
config_app = typer.Typer(no_args_is_help=True, help="Configurations.")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")


def main() -> None:
    """Entry point: exit codes 0 done, 2 bad input or config, 75 stopped and resumable, 1 a fault of ours."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except IsrdpoError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


@app.command("run")
def run_command(
    config: ConfigPath,
    overrides: Overrides = None,
    until: Annotated[
        str | None,
        typer.Option(help="Stop behind this stage of the first unfinished iteration: collect, pairs, …, evaluate."),
    ] = None,
    processes: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Of several processes: how many; auto: as TPU metadata or Slurm say."),
    ] = None,
    process: Annotated[int | None, typer.Option(min=0, help="Which of them this is.")] = None,
    coordinator: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where process 0 listens.")] = None,
) -> None:
    """The main job: N iterations of ISR-DPO. The same command again resumes."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.errors import ConfigError
    from isrdpo_jax.runs.layout import STAGES

    loaded = load_config(config, overrides or ())
    if until is not None and until not in STAGES:
        raise ConfigError(f"--until {until}: the stages are {', '.join(STAGES)}.")
    from isrdpo_jax.runs.processes import is_first, joined

    with joined(processes, process, coordinator, loaded.config.processes.heartbeat_s):
        from isrdpo_jax.pipeline import run
        from isrdpo_jax.report.status import read_status

        layout = run(loaded.config, until=until, console=console)
        if is_first():
            stopped = until and read_status(layout.root)["state"] != "finished"
            told = f"is stopped behind {until}; without --until it goes on" if stopped else "is done"
            console.print(f"{layout.root} {told}. Look at it with: isrdpo report {layout.root}", highlight=False)


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
    emit(as_json, found, lambda: Console().print(status_table(found)))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN …]")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; by default the first run's report/.")] = None,
) -> None:
    """Write report/index.html: runs side by side, curves, tables, examples. Opens from file://."""
    from isrdpo_jax.report.build import build_report
    from isrdpo_jax.report.headline import headline_table
    from isrdpo_jax.report.videos import videos_of

    path = build_report(runs, out or runs[0] / "report", videos_of)
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
    emit(as_json, answer, lambda: print(answer["text"]))


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
    emit(as_json, scored, lambda: print(f"{scored['logprob']:.6f} nats over {len(scored['tokens'])} tokens"))


@app.command()
def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    iteration: Annotated[int, typer.Argument(metavar="ITER", min=1)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[judge.KEY=VALUE …]")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge an iteration's stored responses again, another way, and compare. The run's own verdicts stay."""
    from isrdpo_jax.evaluation.rejudge import rejudge

    found = rejudge(run, iteration, overrides or (), console=console)

    def show() -> None:
        table = Table("", "stored", "again")
        for name in found["stored"]:
            table.add_row(name, _cell(found["stored"][name]), _cell(found["again"][name]))
        table.add_row("same verdict", "", _cell(found["same_verdict"]))
        Console().print(table)

    emit(as_json, found, show)


@app.command()
def agree(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    iteration: Annotated[int, typer.Argument(metavar="ITER", min=1)],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="A CSV of id, label (1, 2 or tie)[, rater].")],
    as_json: AsJson = False,
) -> None:
    """How an iteration's judge, and those of `isrdpo judge`, agree with labels of people or of another judge."""
    from isrdpo_jax.evaluation.agree import agree as compare
    from isrdpo_jax.evaluation.agree import agreement_table

    found = compare(run, iteration, labels)
    emit(as_json, found, lambda: Console().print(agreement_table(found)))


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command("eval")
def eval_command(
    subject: Annotated[
        str,
        typer.Argument(metavar="MODEL|RUN|ANSWERS", help="A policy, all iterations of a run, or a JSONL of answers."),
    ],
    config: ConfigPath,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Another MODEL, RUN or ANSWERS, evaluated too; may be given again.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the evaluation; by default evaluations/<name of the config>.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer held-out questions and have the answers judged (evaluation.judge.*); stored answers are not made again."""
    from isrdpo_jax.config import load_config

    loaded = load_config(config, overrides or ())
    from isrdpo_jax.evaluation.evaluate import evaluate
    from isrdpo_jax.evaluation.tables import evaluation_tables

    folder = out or Path("evaluations") / config.stem
    summary = evaluate([*(against or ()), subject], loaded.config, folder, console)
    emit(as_json, summary, lambda: Console().print(evaluation_tables(summary)))


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    *,
    topology: Annotated[str, typer.Option(help="A TPU slice: v5e:4x4, v5p:2x2x4, v6e:16x16, tpu7x:2x2x1, …")],
    videos: Annotated[int, typer.Option(min=1, help="Videos in the data set.")] = 1000,
    questions: Annotated[int, typer.Option(min=1, help="Questions about each video.")] = 1,
    turn_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest question.")] = 64,
    response_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the longest response; by default sampling.max_new_tokens.")
    ] = None,
    description_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the longest description; by default describe.max_new_tokens.")
    ] = None,
    kept: Annotated[float, typer.Option(min=0, max=1, help="Share of the questions that give a pair.")] = 1.0,
    price: Annotated[
        float | None, typer.Option(min=0, help="US dollars per chip and hour, instead of the table's.")
    ] = None,
    sweep_mesh: Annotated[bool, typer.Option("--sweep-mesh", help="Try all meshes and remat policies.")] = False,
    run: Annotated[Path | None, typer.Option(help="A run whose measured times stand beside the planned ones.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compile every program for a TPU slice that need not be there: memory, work, time and cost. Needs libtpu."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.plan.measured import measured, planned_units
    from isrdpo_jax.plan.planner import make_plan, subject
    from isrdpo_jax.plan.sweep import sweep as sweep_meshes
    from isrdpo_jax.plan.table import measured_table, plan_tables, progress_line, sweep_line, sweep_table
    from isrdpo_jax.plan.workload import Counts

    loaded = load_config(config, overrides or ()).config
    took = measured(run) if run else None
    counts = Counts(videos, questions, turn_tokens, response_tokens, description_tokens, kept)
    planned = subject(loaded, topology, counts, price)
    if sweep_mesh:
        plans = sweep_meshes(planned, on_plan=lambda one: say(sweep_line(one)), skip=lambda why: say(f"  {why}"))
        emit(as_json, {"topology": topology, "plans": plans}, lambda: Console().print(sweep_table(plans)))
        return
    found = make_plan(planned, on_program=lambda row: say(progress_line(row)))
    if took:
        units = planned_units(found, loaded)
        found["measured"] = {stage: {**one, "planned_seconds": units[stage]} for stage, one in took.items()}

    def show() -> None:
        Console().print(plan_tables(found))
        if took:
            Console().print(measured_table(found["measured"]))

    emit(as_json, found, show)


@app.command()
def sweep(
    sweep_file: Annotated[Path, typer.Argument(metavar="SWEEP", help="Such as configs/sweeps/beta.yaml.")],
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option(help="Instead of the config that the sweep names.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the points of a grid and tabulate them; again, or on another machine: what is missing; 2 if one failed."""
    from isrdpo_jax.sweep.points import read_sweep

    grid = read_sweep(sweep_file, overrides or (), config)
    from isrdpo_jax.sweep.results import sweep_table
    from isrdpo_jax.sweep.running import run_sweep

    rows = run_sweep(grid, console)
    emit(as_json, {"sweep": grid.name, "points": rows}, lambda: Console().print(sweep_table(grid, rows)))
    say(f"{grid.root}/index.html shows the points; sweep.csv and sweep.json beside it hold their figures.")
    if failed := [row["point"] for row in rows if row["state"] not in ("done", "running")]:
        raise DataError(f"{grid.name}: {len(failed)} of {len(rows)} points are not done: {', '.join(failed)}.")


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
        say=say,
        check_tokenizer=lambda folder, model: check_tokenizer(folder, model.llama.vocab_size),
    )
    say(f'{out} is done. Ask it with: isrdpo ask {out} VIDEO "QUESTION"')


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

    export_folder(find_policy(model), out, layout=layout, dtype=dtype, force=force, say=say)
    say(f"{out} is done.")


@app.command("doctor")
def doctor_command(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Also what this config asks for.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Look at versions, devices, codecs, folders, disk and TPU environment, and say what to do; 2 if one must act."""
    from isrdpo_jax.config import load_config
    from isrdpo_jax.doctor import examine, summary, table

    findings = examine(load_config(config, overrides or ()).config if config else None)
    found = summary(findings)
    emit(as_json, found, lambda: Console().print(table(findings)))
    if not found["ok"]:
        sys.exit(DataError.exit_code)


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

    emit(as_json, {"hash": semantic_hash(loaded.config), "values": values}, show)


@config_app.command("reference")
def config_reference() -> None:
    """Every setting with its default and meaning, as Markdown: docs/configuration.md."""
    from isrdpo_jax.config_reference import reference

    print(reference())


if __name__ == "__main__":
    main()
