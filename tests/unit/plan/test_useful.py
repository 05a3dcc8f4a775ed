"""Useful FLOPs from the model's sizes are what the programs do, less what they do in vain."""

from __future__ import annotations

import math

import jax
import pytest
from jax.sharding import Mesh
from tiny import TINY

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.models.unstacked import abstract_unstacked
from isrdpo_jax.models.video_llava import abstract_params
from isrdpo_jax.plan.hlo_cost import count
from isrdpo_jax.plan.programs import Program, iteration_programs, planned_hall
from isrdpo_jax.plan.useful import UsefulFlops
from isrdpo_jax.plan.workload import SLOT_USE, Counts, Workload, make_workload
from isrdpo_jax.schema import CollectConfig, Config, DescribeConfig, DpoConfig, LoraConfig, MeshConfig, SamplingConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.stages.collect import decodings
from isrdpo_jax.stages.engine import PROMPTS, steps_of
from isrdpo_jax.stages.hall import SPARE, Hall

LANES, TURN, RESPONSE, DESCRIPTION = 2, 32, 16, 32  # all as wide as their buckets: nothing is padded
CONFIG = Config(
    sampling=SamplingConfig(max_new_tokens=RESPONSE),
    describe=DescribeConfig(max_new_tokens=DESCRIPTION),
    collect=CollectConfig(batch_videos=2 * LANES, lanes=LANES, turn_tokens=96),
    dpo=DpoConfig(batch_size=4, accumulation_steps=2),
)
MODEL = TINY.model_copy(update={"llama": TINY.llama.model_copy(update={"max_positions": 512})})
LLAMA, VISUAL = MODEL.llama, MODEL.vision.tokens_per_video
TRAINING = ["reference", "dpo_step"]
REST = ["decode", "judge", *TRAINING]
PER_PAIR = 4 * LLAMA.hidden_size * LLAMA.num_layers  # FLOPs of a query with a key, and of its weight with a value


def planned(config: Config, work: Workload, mesh: Mesh) -> list[Program]:
    return iteration_programs(config, MODEL, work, mesh, planned_hall(config, MODEL, work, mesh))


@pytest.fixture(scope="module")
def work() -> Workload:
    return make_workload(CONFIG, MODEL, load_prompts(), Counts(8, turn_tokens=TURN), lambda text: 16)


@pytest.fixture(scope="module")
def programs(work) -> dict:
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    return {one.name: one for one in planned(CONFIG, work, mesh)}


@pytest.fixture(scope="module")
def executed(programs):
    return lambda name: count(programs[name].lower().compile().as_text()).flops


def test_the_tower_does_nothing_in_vain(programs, executed):
    assert executed("encode") == programs["encode"].useful.total


def test_dense_attention_of_a_prefix_does_both_halves(work, programs, executed):
    useful, positions = programs["prefill"].useful, work.prefix_tokens + VISUAL
    layers = (LLAMA.num_layers - 1) / LLAMA.num_layers  # nobody attends in the last one
    assert useful.attention == layers * LANES * PER_PAIR * positions * (positions + 1) / 2
    assert executed("prefill") == useful.products + layers * LANES * PER_PAIR * positions**2


def test_a_packed_pair_has_its_prefix_once(work, programs, executed):
    positions = work.prefix_tokens + VISUAL + TURN + 2 * RESPONSE
    useful = programs["reference"].useful
    assert executed("reference") == useful.products + 2 * PER_PAIR * positions**2
    assert useful.attention < 0.6 * 2 * PER_PAIR * positions**2


def test_a_prompt_is_read_behind_the_prefix_of_its_video(work, programs, executed):
    useful, rows = programs["read"].useful, LANES * PROMPTS
    queries = TURN - (TURN - 1) / LLAMA.num_layers  # in the last layer only the last position looks back
    assert useful.attention < rows * PER_PAIR * queries * (work.prefix_length + TURN)
    assert executed("read") == useful.products + rows * PER_PAIR * queries * (work.prefix_length + TURN)


def test_decoding_counts_its_steps_and_weighs_both_videos_of_a_bay(work, programs, executed):
    """A loop that may end early counts to its bound; a slot looks at both videos, at its own columns and at itself."""
    steps, slots, columns = steps_of(decodings(CONFIG)), LANES * CollectConfig().slots, 96 + DESCRIPTION
    useful = programs["decode"].useful
    products = useful.products / SLOT_USE
    dense = steps * slots * PER_PAIR * (2 * work.prefix_length + columns + 1)
    assert products + 0.98 * dense < executed("decode") < products + 1.02 * dense
    assert count(programs["decode"].lower().compile().as_text()).unknown_loops == 0
    assert useful.attention < dense / 2


def test_decoded_tokens_are_useful_as_the_texts_of_the_iteration_are_long(work):
    """Two responses and a description of a video; the first token of a text is drawn by what reads its turn."""
    flops, texts = UsefulFlops(MODEL, work), work.videos
    assert work.decoded == texts * (2 * (RESPONSE - 1) + DESCRIPTION - 1)
    layers = flops.decode(work.decoded).attention / PER_PAIR

    def seen(turn: int, new: int) -> float:
        return sum(work.prefix_length + turn + i for i in range(1, new))

    assert layers == pytest.approx(texts * (2 * seen(TURN, RESPONSE) + seen(work.describe_tokens, DESCRIPTION)))
    assert flops.decode(100).total == pytest.approx(flops.decode(work.decoded).total * 100 / work.decoded)


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
        ({}, ["read", "describe", *REST]),
        ({"dpo": DpoConfig(batch_size=4)}, ["read", "describe", "decode", "judge", "encode_pairs", *TRAINING]),
        ({"dpo": CONFIG.dpo.model_copy(update={"lora": LoraConfig(rank=2)})}, ["read", "describe", *REST]),
        ({"judge": CONFIG.judge.model_copy(update={"context": "none", "mode": "text"})}, ["read", *REST]),
    ],
)
def test_a_plan_has_the_programs_that_a_run_calls(changes, names):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    config = CONFIG.model_copy(update=changes)
    work = make_workload(config, MODEL, load_prompts(), Counts(8, turn_tokens=TURN), lambda text: 16)
    programs = planned(config, work, mesh)
    assert [one.name for one in programs] == ["unstack", "encode", "prefill", "place", *names]
    assert programs[4 + names.index("judge")].lower()


def test_collect_holds_policy_copy_prefixes_and_slots_in_every_program(work, programs):
    """float32 parameters, the decoder again in the compute dtype, and keys and values of all videos and slots."""
    parameters = sum(4 * x.size for x in jax.tree.leaves(abstract_params(MODEL)))
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    copy = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_unstacked(MODEL, mesh)))
    caches = planned_hall(CONFIG, MODEL, work, mesh).bytes_on_device(MODEL, mesh, work.prefix_length, 96 + DESCRIPTION)
    held = parameters + copy + caches
    for name in ("encode", "prefill", "place", "read", "describe", "decode", "judge"):
        assert held <= programs[name].live_bytes < 1.5 * held, name
    assert programs["unstack"].live_bytes == pytest.approx(held - copy, rel=0.01)


def test_a_hall_is_what_was_asked_for_unless_memory_is_named(work):
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    asked = planned_hall(CONFIG, MODEL, work, mesh)
    size = asked.bytes_on_device(MODEL, mesh, work.prefix_length, 96 + DESCRIPTION)
    assert (asked.videos, asked.lanes) == (2 * LANES, LANES)
    scarce = CONFIG.model_copy(
        update={"collect": CONFIG.collect.model_copy(update={"memory_gib": 0.9 * size / 2**30})}
    )
    assert planned_hall(scarce, MODEL, work, mesh).videos == LANES


def test_a_planned_device_holds_what_it_has_room_for_beside_parameters_and_a_prefix_that_arrives(work):
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    asked = planned_hall(CONFIG, MODEL, work, mesh)
    own, columns = work.prefix_length, 96 + DESCRIPTION
    params = abstract_params(MODEL), abstract_unstacked(MODEL, mesh)
    needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
    needed += asked.bytes_on_device(MODEL, mesh, own, columns)
    needed += Hall(LANES, 1, 1, 0).bytes_on_device(MODEL, mesh, own, 0)
    enough = math.ceil(needed / (1 - SPARE)) + 1
    assert planned_hall(CONFIG, MODEL, work, mesh, enough) == asked
    tenth = asked.bytes_on_device(MODEL, mesh, own, columns) // 10
    fewer = planned_hall(CONFIG, MODEL, work, mesh, enough - tenth)
    assert fewer.videos == LANES < asked.videos
    assert planned_hall(CONFIG, MODEL, work, mesh, 1) == fewer  # the smallest, of which the plan says what is missing


def test_adapters_need_less_memory_and_every_program_lowers_with_them(work):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])

    def step(lora):
        config = CONFIG.model_copy(update={"dpo": CONFIG.dpo.model_copy(update={"lora": lora})})
        return planned(config, work, mesh)[-1]

    whole, adapters = step(None), step(LoraConfig(rank=2))
    assert adapters.live_bytes < whole.live_bytes
    assert adapters.lower().as_text() != whole.lower().as_text()


def test_a_step_starts_beside_the_policy_that_it_trains_a_copy_of(work):
    """State: parameters and two moments. Held besides: the parameters again, and π_1 where that is the reference."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])

    def live(reference: str) -> int:
        config = CONFIG.model_copy(update={"dpo": CONFIG.dpo.model_copy(update={"reference": reference})})
        return planned(config, work, mesh)[-1].live_bytes

    whole = abstract_params(MODEL)
    size, decoder = (sum(4 * x.size for x in jax.tree.leaves(tree)) for tree in (whole, whole["llama"]))
    batch = live("previous") - size - 3 * decoder
    assert 0 < batch < size
    assert live("initial") == live("previous") + size
