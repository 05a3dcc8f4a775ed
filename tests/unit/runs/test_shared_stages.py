"""A stage that a sibling has finished is taken; one that it is making is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from isrdpo_jax.config import dump_yaml, leaves
from isrdpo_jax.runs import shared_stages
from isrdpo_jax.runs.atomic import write_jsonl, write_text
from isrdpo_jax.runs.layout import RunLayout, Stage
from isrdpo_jax.runs.manifest import load_manifest, load_verified, write_manifest
from isrdpo_jax.runs.shared_stages import WITHOUT_PART, SharedStages, shared_from, stage_identity
from isrdpo_jax.schema import CollectConfig, Config, DpoConfig, JudgeConfig, RunConfig

INPUTS = {"policy": "p", "data": "d", "previous": ""}
CONFIG = Config()


def with_beta(beta: float) -> Config:
    return Config(dpo=DpoConfig(beta=beta))


def collected(root: Path, name: str, config: Config = CONFIG, iteration: int = 1, inputs=INPUTS, **facts) -> RunLayout:
    """A run that has finished its collect."""
    run = RunLayout(root / name)
    write_text(run.config, dump_yaml(config))
    one = run.iteration(iteration)
    for kind in ("responses", "descriptions", "judgements"):
        write_jsonl(one.part(kind, 0, 0), [{"video": "v", "kind": kind}])
    folders = [one.responses, one.descriptions, one.judgements]
    write_manifest(
        one.manifest("collect"),
        stage="collect",
        iteration=iteration,
        files=folders,
        config_hash="theirs",
        inputs=inputs,
        counts={"questions": 1},
        facts=facts,
    )
    return run


def look(root: Path, siblings, config: Config = CONFIG, iteration: int = 1, inputs=INPUTS, name: str = "mine"):
    """What a run that needs the collect is told, and the stages that it shares."""
    shared = SharedStages(root / "claims", siblings)
    one = RunLayout(root / name).iteration(iteration)
    return shared.take_or_claim(config, one, "collect", inputs, "mine"), shared


def test_what_a_sibling_has_made_is_copied_and_says_whose_it_is(tmp_path: Path):
    theirs = collected(tmp_path, "theirs", with_beta(0.3))
    (taken, ours), _ = look(tmp_path, [RunLayout(tmp_path / "nowhere"), theirs])
    assert taken and not ours
    path = RunLayout(tmp_path / "mine").iteration(1).manifest("collect")
    assert load_verified(path) == taken
    assert (taken.config_hash, taken.inputs, taken.counts) == ("mine", INPUTS, {"questions": 1})
    assert (
        shared_from(taken) == "theirs/iter_01"
        and shared_from(load_manifest(theirs.iteration(1).manifest("collect"))) is None
    )
    mine, copied = (run.iteration(1).parts("responses")[0] for run in (RunLayout(tmp_path / "mine"), theirs))
    assert mine.read_bytes() == copied.read_bytes() and mine.stat().st_ino != copied.stat().st_ino

    write_text(RunLayout(tmp_path / "mine").config, dump_yaml(CONFIG))
    (again, _), _ = look(tmp_path, [RunLayout(tmp_path / "mine")], name="third")
    assert again and shared_from(again) == "theirs/iter_01", "the one that made it, not the one that it was copied from"


@pytest.mark.parametrize(
    ("config", "inputs", "iteration"),
    [
        (Config(run=RunConfig(seed=1)), INPUTS, 1),
        (Config(judge=JudgeConfig(tie_margin=0.1)), INPUTS, 1),
        (CONFIG, INPUTS | {"policy": "another"}, 1),
        (CONFIG, INPUTS | {"more": "m"}, 1),
        (CONFIG, INPUTS, 2),
    ],
)
def test_what_differs_in_anything_that_matters_is_not_shared(tmp_path: Path, config, inputs, iteration):
    theirs = collected(tmp_path, "theirs")
    (taken, ours), shared = look(tmp_path, [theirs], config, iteration, inputs)
    assert taken is None and ours
    shared.release()


def test_every_setting_counts_but_those_that_are_named():
    """A setting that the schema gets later counts, until somebody has thought about it."""
    keys = [key for key, _ in leaves(CONFIG)]
    for stage, without in WITHOUT_PART.items():
        ignored = {key for key in keys if any(key == one or key.startswith(f"{one}.") for one in without)}
        assert without == {one for one in without if any(k == one or k.startswith(f"{one}.") for k in keys)}, stage
        assert {"run.seed", "start", "sampling.top_k" if stage == "collect" else "compute.dtype"} & ignored == set()
    assert "dpo.batch_size" not in WITHOUT_PART["reference"] and "dpo.lora" not in WITHOUT_PART["reference"]


@pytest.mark.parametrize("stage", WITHOUT_PART)
def test_beta_has_no_part_before_the_training(stage: Stage):
    assert stage_identity(with_beta(0.1), stage, 1, {}) == stage_identity(with_beta(0.2), stage, 1, {})


@pytest.mark.parametrize(
    ("more", "same"), [({"slots": 5}, True), ({"int8_prefixes": True}, False), ({"turn_tokens": 9}, False)]
)
def test_what_has_a_part_in_an_answer_has_one_in_its_evaluation(more, same):
    one, other = (stage_identity(Config(collect=CollectConfig(**some)), "evaluate", 0, {}) for some in ({}, more))
    assert (one == other) == same


def test_a_damaged_stage_is_not_shared_and_leaves_nothing(tmp_path: Path, caplog):
    theirs = collected(tmp_path, "theirs")
    write_jsonl(theirs.iteration(1).part("responses", 0, 0), [{"video": "v", "kind": "RESPONSES"}])
    (taken, ours), shared = look(tmp_path, [theirs])
    assert taken is None and ours
    assert "cannot be shared" in caplog.text
    assert not list((tmp_path / "mine").rglob("*.json*"))
    shared.release()


def test_parts_of_its_own_give_way_to_the_whole(tmp_path: Path):
    theirs, mine = collected(tmp_path, "theirs"), RunLayout(tmp_path / "mine")
    write_jsonl(mine.iteration(1).part("responses", 3, 0), [{"video": "v", "kind": "begun"}])
    look(tmp_path, [theirs])
    assert [path.name for path in mine.iteration(1).parts("responses")] == ["part-00000-00000.jsonl"]


def test_a_copy_that_is_cut_short_never_looks_done(tmp_path: Path, monkeypatch):
    """Judgements say that a batch is done: they come last, and the manifest behind them."""
    theirs, mine = collected(tmp_path, "theirs"), RunLayout(tmp_path / "mine").iteration(1)
    made, copied = load_manifest(theirs.iteration(1).manifest("collect")), []

    def cut(path: Path, data: bytes) -> None:
        copied.append(path.parent.name)
        assert not mine.manifest("collect").exists()
        if len(copied) == len(made.files):
            raise KeyboardInterrupt
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(shared_stages, "write_bytes", cut)
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path, [theirs])
    assert copied == ["responses", "descriptions", "judgements"]
    assert not mine.parts("judgements") and not mine.manifest("collect").exists()


def test_only_one_run_makes_a_stage_and_the_others_wait_for_it(tmp_path: Path):
    theirs = RunLayout(tmp_path / "theirs")
    (_, ours), making = look(tmp_path, [], name="theirs")
    assert ours
    assert look(tmp_path, [theirs], with_beta(0.3))[0] == (None, False)
    other = Config(run=RunConfig(seed=1))
    (_, elsewhere), another = look(tmp_path, [theirs], other, name="other")
    assert elsewhere, "a stage that is another one is not waited for"
    another.release()

    collected(tmp_path, "theirs")
    making.release()
    taken, ours = look(tmp_path, [theirs], with_beta(0.3))[0]
    assert taken and not ours


def test_a_claim_goes_with_its_holder(tmp_path: Path):
    with SharedStages(tmp_path / "claims", []) as shared:
        one = RunLayout(tmp_path / "a").iteration(1)
        assert shared.take_or_claim(CONFIG, one, "collect", INPUTS, "") == (None, True)
    (_, ours), again = look(tmp_path, [])
    assert ours
    again.release()


def test_a_digest_of_content_does_not_know_who_made_it(tmp_path: Path):
    theirs, others = collected(tmp_path, "a"), collected(tmp_path, "b", with_beta(0.3), iteration=2)
    a, b = (
        load_manifest(theirs.iteration(1).manifest("collect")),
        load_manifest(others.iteration(2).manifest("collect")),
    )
    assert shared_stages.content_digest(a, "descriptions") == shared_stages.content_digest(b, "descriptions")
    assert shared_stages.content_digest(a, "descriptions") != shared_stages.content_digest(a, "responses")
