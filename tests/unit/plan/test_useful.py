"""Useful FLOPs from the model's sizes are what the programs do, less what they do in vain."""

from __future__ import annotations

import jax
import pytest
from tiny import TINY

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.models.video_llava import abstract_params
from isrdpo_jax.plan.hlo_cost import count
from isrdpo_jax.plan.programs import iteration_programs
from isrdpo_jax.plan.useful import UsefulFlops
from isrdpo_jax.plan.workload import Counts, Workload, make_workload
from isrdpo_jax.schema import CollectConfig, Config, DescribeConfig, DpoConfig, LoraConfig, MeshConfig, SamplingConfig
from isrdpo_jax.sharding import make_mesh

VIDEOS, TURN, RESPONSE, DESCRIPTION = 2, 32, 16, 32  # all as wide as their buckets: nothing is padded
CONFIG = Config(
    sampling=SamplingConfig(max_new_tokens=RESPONSE),
    describe=DescribeConfig(max_new_tokens=DESCRIPTION),
    collect=CollectConfig(batch_videos=VIDEOS),
    dpo=DpoConfig(batch_size=4, accumulation_steps=2),
)
MODEL = TINY.model_copy(update={"llama": TINY.llama.model_copy(update={"max_positions": 512})})
LLAMA, VISUAL = MODEL.llama, MODEL.vision.tokens_per_video
PER_PAIR = 4 * LLAMA.hidden_size * LLAMA.num_layers  # FLOPs of a query with a key, and of its weight with a value


@pytest.fixture(scope="module")
def work() -> Workload:
    return make_workload(CONFIG, MODEL, load_prompts(), Counts(8, turn_tokens=TURN), lambda text: 16)


@pytest.fixture(scope="module")
def programs(work) -> dict:
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    return {one.name: one for one in iteration_programs(CONFIG, MODEL, work, mesh)}


@pytest.fixture(scope="module")
def executed(programs):
    return lambda name: count(programs[name].lower().compile().as_text()).flops


def test_the_tower_does_nothing_in_vain(programs, executed):
    assert executed("encode") == programs["encode"].useful.total


def test_dense_attention_of_a_prefix_does_both_halves(work, programs, executed):
    useful, positions = programs["prefill"].useful, work.prefix_tokens + VISUAL
    assert useful.attention == VIDEOS * PER_PAIR * positions * (positions + 1) / 2
    assert executed("prefill") == useful.products + VIDEOS * PER_PAIR * positions**2


def test_a_packed_pair_has_its_prefix_once(work, programs, executed):
    positions = work.prefix_tokens + VISUAL + TURN + 2 * RESPONSE
    useful = programs["reference"].useful
    assert executed("reference") == useful.products + 2 * PER_PAIR * positions**2
    assert useful.attention < 0.6 * 2 * PER_PAIR * positions**2


def test_decoding_reads_prompt_and_tokens_behind_the_prefix(work, programs, executed):
    """The last token is drawn and not read, and of the prompts only one logit each is needed to begin."""
    rows, own, columns = VIDEOS * 2, TURN + RESPONSE, work.prefix_tokens + VISUAL + TURN + RESPONSE
    useful = programs["respond"].useful
    dense = rows * PER_PAIR * (TURN * (work.prefix_tokens + VISUAL + TURN) + RESPONSE * columns)
    head = rows * 2 * LLAMA.hidden_size * LLAMA.vocab_size
    assert executed("respond") == useful.products + dense + head
    assert useful.attention < dense
    assert own < columns


def test_a_step_is_three_forwards_but_for_what_is_frozen(work, programs):
    flops, step = UsefulFlops(MODEL, work), programs["dpo_step"].useful
    forward, frozen = flops.pair_forward(4), flops.preference_step(4, adapters=True)
    projector = 4 * 2 * VISUAL * (MODEL.vision.hidden_size * LLAMA.hidden_size + LLAMA.hidden_size**2)
    assert step.products == 3 * forward.products - 2 * projector
    assert frozen.products == 2 * forward.products - projector
    assert step.attention == frozen.attention == 3 * forward.attention


def test_a_step_executes_the_update_of_all_micro_batches(programs, executed):
    useful = programs["dpo_step"].useful
    assert useful.total < executed("dpo_step") < 3 * useful.total


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["encode", "prefill", "respond", "describe", "judge", "reference", "dpo_step"]),
        ({"dpo": DpoConfig(batch_size=4)}, [..., "judge", "encode_pairs", "reference", "dpo_step"]),
        ({"dpo": CONFIG.dpo.model_copy(update={"lora": LoraConfig(rank=2)})}, [..., "judge", "reference", "dpo_step"]),
        (
            {"judge": CONFIG.judge.model_copy(update={"context": "none", "mode": "text"})},
            ["encode", "prefill", "respond", "judge", "reference", "dpo_step"],
        ),
    ],
)
def test_a_plan_has_the_programs_that_a_run_calls(work, changes, names):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    programs = iteration_programs(CONFIG.model_copy(update=changes), MODEL, work, mesh)
    if names[0] is ...:
        names = ["encode", "prefill", "respond", "describe", *names[1:]]
    assert [one.name for one in programs] == names


def test_adapters_need_less_memory_and_every_program_lowers_with_them(work):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])

    def step(lora):
        config = CONFIG.model_copy(update={"dpo": CONFIG.dpo.model_copy(update={"lora": lora})})
        return iteration_programs(config, MODEL, work, mesh)[-1]

    whole, adapters = step(None), step(LoraConfig(rank=2))
    assert adapters.live_bytes < whole.live_bytes
    assert adapters.lower().as_text() != whole.lower().as_text()


def test_a_step_starts_beside_the_policy_that_it_trains_a_copy_of(work):
    """State: parameters and two moments. Held besides: the parameters again, and π_1 where that is the reference."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])

    def live(reference: str) -> int:
        config = CONFIG.model_copy(update={"dpo": CONFIG.dpo.model_copy(update={"reference": reference})})
        return iteration_programs(config, MODEL, work, mesh)[-1].live_bytes

    whole = abstract_params(MODEL)
    size, decoder = (sum(4 * x.size for x in jax.tree.leaves(tree)) for tree in (whole, whole["llama"]))
    batch = live("previous") - size - 3 * decoder
    assert 0 < batch < size
    assert live("initial") == live("previous") + size
