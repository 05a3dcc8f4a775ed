"""`isrdpo sft`: a start policy from labelled data, in one command, resumable, measured, with a card that says how."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from isrdpo_jax.config import dump_yaml, load_config, semantic_hash
from isrdpo_jax.data.loader import VideoSource, open_split
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.shapes_world import annotator
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.evaluation.answers import ask_heldout, heldout_engine
from isrdpo_jax.evaluation.summary import summarise_heldout
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.programs.update import TrainState, create_state
from isrdpo_jax.runs.atomic import sweep_temporaries, write_text
from isrdpo_jax.runs.checkpoint import newest_verified, prune, restore_tree, save_tree, sweep, tree_digest
from isrdpo_jax.runs.layout import IterationLayout, RunLayout, manifest_path
from isrdpo_jax.runs.lock import RunLock
from isrdpo_jax.runs.manifest import load_manifest
from isrdpo_jax.runs.metrics import MetricsWriter
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.runs.wandb_log import WandbRun
from isrdpo_jax.schema import Config
from isrdpo_jax.sharding import check_batch, check_heads, make_mesh
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.stages.sft import initial_params, phase_batches, phase_optimizer, tokenise, train_phase
from isrdpo_jax.weights.policy_folder import CARD, packaged_tokenizer, write_policy


def train_start_policy(config: Config, console: Console | None = None) -> Path:
    """Trains tower, projector and decoder through the phases of `sft.phases`, and writes a policy folder.

    The tokenizer is the packaged one that `start` names.

    Returns:
        The folder: `policy/` in the run's folder.

    Raises:
        ConfigError: no model, one with an image tower, no phases, or a run of this name with other settings.
        StoppedError: on request, behind a saved state.
    """
    console = console or Console(stderr=True)
    if config.model is None or not config.sft.phases:
        raise ConfigError(
            "sft needs a `model` section and at least one entry of `sft.phases`; see configs/shapes_sft.yaml."
        )
    if config.model.image is not None:
        raise ConfigError(
            "model.image: supervised training shows videos only, so an image tower would stay random. Leave it out; "
            "`isrdpo ask` then sees an image as a video that stands still."
        )
    layout = RunLayout(Path(config.run.dir) / config.run.name)
    folder = layout.root / "policy"
    with StopSignal("the same command") as stop, RunLock(layout.lock):
        _claim(config, layout)
        if (folder / CARD).exists():
            return folder
        mesh = make_mesh(config.mesh)
        check_heads(mesh, config.model)
        for number, phase in enumerate(config.sft.phases):
            check_batch(mesh, phase.batch_videos, f"sft.phases[{number}].batch_videos")
            check_batch(mesh, phase.text_rows, f"sft.phases[{number}].text_rows")
        model = config.model.on(mesh.devices.flat[0].platform)
        prompts, tokenizer_folder = load_prompts(config.prompts.dir), packaged_tokenizer(config.start)
        tokenizer = load_tokenizer(tokenizer_folder)
        if tokenizer.vocab_size > config.model.llama.vocab_size:
            raise ConfigError(f"model.llama.vocab_size is below the tokenizer's {tokenizer.vocab_size} tokens.")
        source = open_split(config, "sft", num_frames=config.model.vision.num_frames)
        heldout = open_split(config, "eval", num_frames=config.model.vision.num_frames)
        policy = Policy(model, {}, tokenizer, prompts, mesh, "")
        params, seconds = _train(config, policy, source, layout.iteration(0), stop, console)
        digest = tree_digest(params)
        trained = Policy(model, params, tokenizer, prompts, mesh, digest)
        engine, nothing = heldout_engine(trained, config), lambda: None
        answers, descriptions = ask_heldout(engine, heldout, config, between=nothing, after_batch=nothing)
        scores = summarise_heldout(answers, descriptions, config.evaluation.bootstrap_samples)
        card = {
            "command": "isrdpo sft config.yaml",
            "built_in": annotator.BUILT_IN,
            "seed": config.run.seed,
            "data": source.digest,
            "videos": len(source),
            "seconds": round(seconds),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "heldout": scores,
        }
        write_text(folder / "config.yaml", dump_yaml(config))
        write_policy(folder, config.model, tokenizer_folder, params, card)
    return folder


def _claim(config: Config, layout: RunLayout) -> None:
    if layout.config.exists() and semantic_hash(load_config(layout.config).config) != semantic_hash(config):
        raise ConfigError(f"{layout.root} was begun with another configuration; choose another run.name.")
    sweep_temporaries(layout.root)
    sweep(layout.iteration(0).train)
    write_text(layout.config, dump_yaml(config))


def _train(
    config: Config, policy: Policy, source: VideoSource, layout: IterationLayout, stop: StopSignal, console: Console
) -> tuple[Params, float]:
    """All phases, from the newest training state on disk.

    Returns:
        The parameters, and the seconds that training took, over all sittings.
    """
    sft, model = config.sft, policy.config
    videos = [source[i] for i in range(len(source))]
    params = initial_params(model, policy.mesh, config.run.seed)
    found = newest_verified(layout.train, verify=config.checkpoint.verify)
    for problem in found.refused:
        console.print(problem, highlight=False)
    facts: dict[str, Any] = load_manifest(manifest_path(found.path)).facts if found.path else {"seconds": 0.0}
    began, before = time.monotonic() - facts["seconds"], 0
    project = config.tracking.wandb
    wandb = WandbRun(project, layout.root, config.model_dump(mode="json")) if project else None
    with MetricsWriter(
        layout.metrics, resumed_step=found.step, tensorboard=layout.tensorboard, wandb=wandb
    ) as writer:
        for number, phase in enumerate(sft.phases):
            if found.step > before + phase.steps:
                before += phase.steps
                continue
            segments = tokenise(
                videos, policy.tokenizer, label_weight=sft.step_label_weight, verdict_weight=phase.verdict_weight
            )
            optimizer = phase_optimizer(phase, sft)
            state = create_state(params, optimizer)
            done = max(0, found.step - before)
            if done and found.path:
                state = restore_tree(found.path, state, verify=config.checkpoint.verify)
                console.print(f"going on behind step {found.step}", highlight=False)

            def on_step(
                state: TrainState, metrics: dict, before: int = before, phase=phase, number: int = number
            ) -> None:
                step = before + int(state.step)
                last = int(state.step) == phase.steps
                if step % sft.log_every == 0 or last:
                    measured = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    writer.write(step, measured)
                    console.print(
                        f"phase {number + 1} of {len(sft.phases)}, step {int(state.step)} of {phase.steps}: "
                        f"loss {measured['loss']:.4f}, {time.monotonic() - began:.0f} s",
                        highlight=False,
                    )
                if step % config.checkpoint.every_steps == 0 or last or stop.requested:
                    path = layout.train_step(step)
                    save_tree(path, state, iteration=0, facts={"seconds": time.monotonic() - began})
                    prune([layout.train_step(n) for n in layout.train_steps()], [path])
                    stop.check()

            batches = phase_batches(
                phase,
                number,
                config.run.seed,
                segments,
                lambda i: videos[i].frames,
                prefix_length=policy.prefix_length,
                image_size=model.vision.image_size,
                first_step=done,
            )
            state = train_phase(
                state,
                batches,
                phase,
                optimizer,
                config=model,
                prefix_ids=policy.prefix_ids,
                mesh=policy.mesh,
                on_step=on_step,
            )
            params, before = state.params, before + phase.steps
    return params, time.monotonic() - began
