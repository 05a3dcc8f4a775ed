"""A run from start to end: N iterations of collect, pairs, reference, optimize, evaluate.

What to do next is derived from the manifests on disk alone. A stage is done when its manifest is there, verifies, and
was made from the inputs that are there now; otherwise it is done (again), reusing the parts that are whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from isrdpo_jax import __version__
from isrdpo_jax.config import config_hash, diff_configs, dump_yaml, evaluates, load_config, semantic_hash
from isrdpo_jax.data.loader import Split, VideoSource, open_split
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.errors import ConfigError, DataError
from isrdpo_jax.evaluation.answers import ask_heldout, heldout_engine
from isrdpo_jax.evaluation.in_run import check_judge, judge_iterations, names_another_judge
from isrdpo_jax.evaluation.judging import descriptions_right, judged_correctly
from isrdpo_jax.evaluation.summary import summarise_heldout, summarise_iteration
from isrdpo_jax.runs.atomic import read_json, read_jsonl, sweep_temporaries, write_json, write_jsonl, write_text
from isrdpo_jax.runs.checkpoint import policies_to_keep, prune, remove, save_tree, sweep, tree_digest
from isrdpo_jax.runs.layout import STAGES, IterationLayout, RunLayout, Stage, manifest_path
from isrdpo_jax.runs.lock import RunLock
from isrdpo_jax.runs.manifest import Manifest, digest_of, load_verified
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.runs.processes import any_says, first_says, gather, in_first, is_first, meet, several
from isrdpo_jax.runs.shared_stages import SharedStages, content_digest
from isrdpo_jax.runs.watchdog import Watchdog
from isrdpo_jax.schema import Config
from isrdpo_jax.session import Session
from isrdpo_jax.sharding import check_batch, check_heads, make_mesh
from isrdpo_jax.stages import collect as collecting
from isrdpo_jax.stages.features import open_features
from isrdpo_jax.stages.optimize import optimize, update_count
from isrdpo_jax.stages.pair_batches import PairSet, epoch_order
from isrdpo_jax.stages.pairs import build_pairs
from isrdpo_jax.stages.parts import read_parts
from isrdpo_jax.stages.policy import Policy, open_policy
from isrdpo_jax.stages.reference import identity, load_reference, score_pairs
from isrdpo_jax.weights.policy_folder import PolicyFolder, find_policy, write_base

Truths = Mapping[str, Mapping[str, Any] | None]
Rows = list[dict[str, Any]]
Summary = dict[str, dict[str, Any]]


def run(
    config: Config,
    *,
    until: Stage | None = None,
    console: Console | None = None,
    shared: SharedStages | None = None,
) -> RunLayout:
    """Brings the run to its end, or the first iteration that is not finished up to its stage `until`.

    Several processes (`runs.processes.join`) do it together, when each of them calls this with the same config.

    Args:
        shared: the stages that other runs have made, or are making, and that need not be made again.

    Raises:
        IsrdpoError: with what to do; what is on disk stays usable and the same call goes on.
    """
    console = Console(quiet=True) if not is_first() else console or Console(stderr=True)
    layout = RunLayout(Path(config.run.dir) / config.run.name)
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.collect.batch_videos, "collect.batch_videos")
    check_batch(mesh, config.dpo.batch_size // config.dpo.accumulation_steps, "dpo.batch_size / dpo.accumulation_steps")
    prompts = load_prompts(config.prompts.dir)
    first = layout.iteration(0)
    # A run that has begun has a copy, and stands alone.
    begun = first_says(lambda: manifest_path(first.checkpoint).exists())
    start = PolicyFolder(layout.root, first.checkpoint) if begun else find_policy(config.start)
    check_heads(mesh, start.config)
    if evaluates(config):
        check_judge(config, layout, console)
    stall_s = config.processes.stall_s if several() else None  # a single process waits for nobody
    with (
        StopSignal("the same command", any_says) as stop,
        in_first(RunLock(layout.lock)),
        Watchdog(stall_s) as watchdog,
        shared or nullcontext(),
    ):
        first_says(lambda: _claim(config, layout))
        frames = start.config.vision.num_frames
        train = _open_split(config, "train", frames)
        heldout = _open_split(config, "eval", frames) if evaluates(config) else None
        settings = config_hash(config, exclude={"run.dir", "data.dir", "tracking", "evaluation.judge"})
        _check_same(config=settings, data=train.digest, prompts=prompts.digest)
        # Not before: another configuration may cure data that is refused.
        first_says(lambda: write_text(layout.config, dump_yaml(config)))
        watchdog.feed()  # not before: preparing data may take hours
        session = Session(
            config, semantic_hash(config), layout, console, stop, watchdog, prompts, train, heldout, shared
        )
        _begin(session, start, mesh)
        policy = open_policy(
            PolicyFolder(layout.root, first.checkpoint), mesh, prompts, verify=config.checkpoint.verify
        )
        if heldout:
            _evaluate(session, first, policy)
            _ask_judge(session)
        for t in range(1, config.run.iterations + 1):
            one, last = layout.iteration(t), STAGES[-1] if heldout else STAGES[-2]
            was_finished = first_says(one.manifest(last).exists)
            policy = _iteration(session, one, policy, None if was_finished else until)
            if until and not was_finished:
                break
    return layout


def _claim(config: Config, layout: RunLayout) -> None:
    """Makes sure that the config is the one that began the run, if it began; clears what killed runs left."""
    if layout.config.exists():
        began = load_config(layout.config).config
        if semantic_hash(began) != semantic_hash(config):
            differing = ", ".join(f"{key} {old!r} -> {new!r}" for key, old, new in diff_configs(began, config))
            raise ConfigError(
                f"{layout.root}: this run was begun with another configuration ({differing}). Go on with the former "
                "values, or choose another run.name."
            )
    sweep_temporaries(layout.root)
    for one in layout.iterations():
        sweep(one.root)
        sweep(one.train)


def _open_split(config: Config, split: Split, num_frames: int) -> VideoSource:
    """The split, on the disk of this process; where that is not process 0's, what is missing is prepared there, too."""
    if several():
        first_says(lambda: open_split(config, split, num_frames=num_frames).digest)
    return open_split(config, split, num_frames=num_frames)


def _check_same(**facts: str) -> None:
    """Raises:
    DataError: the processes of a run were not started alike.
    """
    said = gather(facts)
    for process, one in enumerate(said):
        if differing := [name for name in facts if one[name] != said[0][name]]:
            raise DataError(
                f"process {process} was started with another {' and '.join(differing)} than process 0. Start all "
                "processes with the same command, on the same data."
            )


def _begin(session: Session, start: PolicyFolder, mesh: jax.sharding.Mesh) -> None:
    """Copies π_1 into the run, so that the run stands alone, and says what it is made of."""
    layout, first = session.layout, session.layout.iteration(0)
    if not first_says(lambda: manifest_path(first.checkpoint).exists()):
        policy = open_policy(start, mesh, session.prompts)
        _check_same(start=policy.digest)
        model = session.config.compute.applied_to(start.config)
        first_says(lambda: write_base(layout.root, model, start.tokenizer_folder, start.unread))
        save_tree(first.checkpoint, policy.params, iteration=0, facts={"policy": policy.digest})
    first_says(lambda: _record(session, first))


def _record(session: Session, first: IterationLayout) -> None:
    """Writes what the run is made of, which may not change."""
    layout = session.layout
    facts = {
        "version": __version__,
        "start": session.config.start,
        "policy": _policy_digest(first),
        "data": session.train.digest,
        "prompts": session.prompts.digest,
        "skips": session.train.skips,
        "videos": len(session.train),
    }
    if layout.run_json.exists():
        before = read_json(layout.run_json)
        changed = [name for name in ("policy", "data", "prompts") if before[name] != facts[name]]
        if changed:
            raise DataError(
                f"{layout.root}: {' and '.join(changed)} changed since the run began. Bring the former back, or choose "
                "another run.name."
            )
    write_json(layout.run_json, facts)


def _iteration(session: Session, layout: IterationLayout, policy: Policy, until: Stage | None) -> Policy:
    """One iteration, from π_t (given) to π_{t+1} (returned; π_t itself when stopped before `optimize` by `until`)."""
    session.say(
        f"[bold]iteration {layout.index}[/] of {session.config.run.iterations}: policy init = π_{layout.index}, "
        f"reference = π_{layout.index if session.config.dpo.reference == 'previous' else 1}, data = this iteration only"
    )
    made = _collect(session, layout, policy)
    if until == "collect":
        return policy
    _pairs(session, layout, policy, made)
    if until == "pairs":
        return policy
    pairs = PairSet.of(first_says(lambda: read_jsonl(layout.pairs)), policy)
    reference = _reference_policy(session, layout, policy)
    made = _reference(session, layout, reference, pairs)
    if until == "reference":
        return policy
    policy = _optimize(session, layout, policy, reference.digest, pairs, made)
    if session.heldout and until != "optimize":
        _evaluate(session, layout, policy)
        _ask_judge(session)
    first_says(lambda: _retain(session))
    return policy


def _collect(session: Session, layout: IterationLayout, policy: Policy) -> Manifest:
    config, source = session.config, session.train
    previous = first_says(lambda: _previous_descriptions(session, layout))
    inputs = {
        "policy": policy.digest,
        "data": source.digest,
        "prompts": policy.prompts.digest,
        "tokenizer": policy.tokenizer.digest,
        "previous": first_says(lambda: _digest_of_previous(session, layout)),
    }
    if done := session.done(layout, "collect", inputs):
        return done
    ranges = collecting.batch_ranges(len(source), config.collect.batch_videos)
    videos = [[source.ids[i] for i in batch] for batch in ranges]
    made = first_says(lambda: collecting.begin(layout, videos))
    todo = {number: batch for number, batch in enumerate(ranges) if not made[number]}
    if todo:
        with open_features(policy, source, config.data) as kept:
            engine = collecting.collect_engine(policy, config, layout.index, kept)
            with session.conversation(layout, "collect", len(todo), engine) as (between, written):
                collected = collecting.collect(engine, source, todo, config, previous=previous, between=between)
                for number, rows in collected:
                    collecting.write_batch(layout, jax.process_index(), number, rows)
                    written()
    meet()
    counts = first_says(lambda: collecting.finish(layout, videos))
    folders = [layout.responses, layout.descriptions, layout.judgements]
    manifest = session.seal(layout, "collect", inputs, files=folders, counts=counts, parent=policy.digest)
    session.say(f"  collect: {_listed(counts)}")
    return manifest


def _previous_descriptions(session: Session, layout: IterationLayout) -> dict[str, str]:
    """c_{t-1} by video id; empty in the first iteration."""
    if layout.index == 1:
        return {}
    rows = read_parts(session.layout.iteration(layout.index - 1), "descriptions")
    return {row["video"]: row["text"] for row in rows}


def _digest_of_previous(session: Session, layout: IterationLayout) -> str:
    """Digest of all c_{t-1}; empty in the first iteration."""
    if layout.index == 1:
        return ""
    path = session.layout.iteration(layout.index - 1).manifest("collect")
    return content_digest(load_verified(path, session.config.checkpoint.verify), "descriptions")


def _pairs(session: Session, layout: IterationLayout, policy: Policy, collected: Manifest) -> Manifest:
    inputs = {"collect": digest_of(collected)}
    if done := session.done(layout, "pairs", inputs):
        return done

    def build() -> dict[str, int]:
        rows, counts = build_pairs(read_parts(layout, "responses"), read_parts(layout, "judgements"))
        write_jsonl(layout.pairs, rows)
        return counts

    counts = first_says(build)
    manifest = session.seal(layout, "pairs", inputs, files=[layout.pairs], counts=counts, parent=policy.digest)
    session.say(f"  pairs: {_listed(counts)}")
    session.stop.check()
    return manifest


def _reference_policy(session: Session, layout: IterationLayout, policy: Policy) -> Policy:
    """The reference: π_t, or π_1."""
    if session.config.dpo.reference == "previous" or layout.index == 1:
        return policy
    first = PolicyFolder(session.layout.root, session.layout.iteration(0).checkpoint)
    return open_policy(first, policy.mesh, session.prompts, verify=session.config.checkpoint.verify)


def _reference(session: Session, layout: IterationLayout, reference: Policy, pairs: PairSet) -> Manifest:
    config = session.config
    belongs = identity(reference.digest, reference, pairs, config.dpo)
    inputs = {"data": session.train.digest, **belongs}  # the pairs by their content, whichever run made them
    if done := session.done(layout, "reference", inputs):
        return done
    order = epoch_order(len(pairs), config.run.seed, layout.index, epoch=0)
    parts = -(-len(pairs) // config.dpo.batch_size)
    with (
        session.progress(f"{layout.index} reference", parts) as tick,
        open_features(reference, session.train, config.data) as kept,
    ):
        score_pairs(reference, session.train, pairs, order, config.dpo, layout, kept=kept, after_part=tick)
    return session.seal(layout, "reference", inputs, files=[layout.reference], parent=reference.digest, facts=belongs)


def _optimize(
    session: Session, layout: IterationLayout, policy: Policy, reference_digest: str, pairs: PairSet, made: Manifest
) -> Policy:
    config = session.config
    inputs = {"policy": policy.digest, "reference_stage": digest_of(made)}
    folder = PolicyFolder(session.layout.root, layout.checkpoint)
    done = session.done(layout, "optimize", inputs)
    if not done:
        wanted = {**made.facts, "policy": reference_digest}
        reference = first_says(lambda: load_reference(layout, pairs, made.facts, wanted))
        updates = update_count(len(pairs), config.dpo)
        with (
            session.progress(f"{layout.index} optimize", updates, saved=False) as tick,
            open_features(policy, session.train, config.data) as kept,
        ):
            params = optimize(
                policy,
                session.train,
                pairs,
                reference,
                config,
                layout,
                starts_at_reference=reference_digest == policy.digest,
                stop=session.stop,
                after_update=lambda _: tick(),
                kept=kept,
                say=lambda text: session.say(f"  {text}"),
            )
        digest = tree_digest(params)
        save_tree(layout.checkpoint, params, iteration=layout.index, facts={"policy": digest})
        rows = first_says(lambda: read_jsonl(layout.metrics))
        counts = {"updates": len(rows), "updates_refused": sum(not row["update_applied"] for row in rows)}
        session.seal(
            layout,
            "optimize",
            inputs,
            files=[layout.metrics],
            counts=counts,
            parent=policy.digest,
            facts={"policy": digest},
        )
        session.say(f"  optimize: {_listed(counts)}, loss {_loss(rows[0])} -> {_loss(rows[-1])}")
    first_says(lambda: _end_training(layout))
    session.stop.check()
    if done and first_says(lambda: _is_collected(session, layout)):
        return replace(policy, params={}, digest=done.facts["policy"])  # nothing is left to do that needs its weights
    return open_policy(folder, policy.mesh, session.prompts, verify=config.checkpoint.verify)


def _loss(row: Mapping[str, Any]) -> str:
    return "not finite" if row["loss"] is None else f"{row['loss']:.4f}"


def _end_training(layout: IterationLayout) -> None:
    """Removes the training states, when the policy has taken their place and is sealed."""
    for step in layout.train_steps():
        remove(layout.train_step(step))


def _evaluate(session: Session, layout: IterationLayout, policy: Policy) -> None:
    """Held-out answers of the policy, and (behind iteration 0) the iteration's pairs and judge."""
    config, source = session.config, session.heldout
    assert source is not None
    inputs = {
        "policy": policy.digest,
        "data": source.digest,
        "prompts": policy.prompts.digest,
        "tokenizer": policy.tokenizer.digest,
        "pairs_stage": first_says(lambda: _digest_of_pairs(session, layout)),
    }
    if session.done(layout, "evaluate", inputs):
        return
    batches = collecting.batch_ranges(len(source), config.collect.batch_videos)
    with open_features(policy, source, config.data) as kept:
        engine = heldout_engine(policy, config, kept)
        with session.conversation(layout, "evaluate", len(batches), engine) as (between, answered):
            answers, descriptions = ask_heldout(engine, source, config, between=between, after_batch=answered)
    summary = first_says(lambda: _write_evaluation(session, layout, answers, descriptions))
    session.seal(layout, "evaluate", inputs, files=[layout.evaluation], parent=policy.digest)
    session.say(f"  evaluate π_{layout.index + 1}: {_figures(summary)}")
    session.stop.check()


def _ask_judge(session: Session) -> None:
    if not names_another_judge(session.config):
        return
    if several():  # the others would wait for the first, and a watchdog for them
        session.say("  not judged: several processes make this run; `isrdpo eval` judges its answers later.")
        return
    judge_iterations(session.config, session.layout, session.console, session.say)


def _digest_of_pairs(session: Session, layout: IterationLayout) -> str:
    """Digest of the pairs' manifest, which names the collect that they were made from; empty at the start."""
    if layout.index == 0:
        return ""
    return digest_of(load_verified(layout.manifest("pairs"), session.config.checkpoint.verify))


def _write_evaluation(session: Session, layout: IterationLayout, answers: Rows, descriptions: Rows) -> Summary:
    samples = session.config.evaluation.bootstrap_samples
    summary = summarise_heldout(answers, descriptions, samples)
    if layout.index > 0:
        truths: Truths = {video.id: video.truth for video in session.train}
        correct = judged_correctly(read_parts(layout, "responses"), read_parts(layout, "judgements"), truths)
        contexts = descriptions_right(read_parts(layout, "descriptions"), truths)
        summary |= summarise_iteration(read_jsonl(layout.pairs), correct, contexts, samples)
    write_jsonl(layout.evaluation / "answers.jsonl", answers)
    write_jsonl(layout.evaluation / "descriptions.jsonl", descriptions)
    write_json(layout.evaluation / "summary.json", summary)
    return summary


def _retain(session: Session) -> None:
    """Collects policies that neither the settings nor a later iteration need. (A resumed run passes old iterations.)"""
    done = [one for one in session.layout.iterations() if manifest_path(one.checkpoint).exists()]
    kept = policies_to_keep(done[-1].index, session.config.checkpoint.keep_policies)
    prune([one.checkpoint for one in done], [session.layout.iteration(t).checkpoint for t in kept])


def _is_collected(session: Session, layout: IterationLayout) -> bool:
    """Whether the iteration's policy went when a later one was made from it."""
    later = session.layout.iteration(layout.index + 1)
    return not manifest_path(layout.checkpoint).exists() and later.manifest("optimize").exists()


def _policy_digest(layout: IterationLayout) -> str:
    return json.loads(manifest_path(layout.checkpoint).read_text())["facts"]["policy"]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def _figures(summary: Mapping[str, Mapping[str, Any]]) -> str:
    shown = ("accuracy", "false_share", "words", "description_accuracy", "judge_accuracy", "length_ratio")
    return ", ".join(
        f"{name} {summary[name]['value']:.3f}" for name in shown if summary.get(name, {}).get("value") is not None
    )
