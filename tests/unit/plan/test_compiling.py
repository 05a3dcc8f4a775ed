"""Memory, refusals and fingerprints of one program, on this machine's compiler."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from isrdpo_jax.plan.compiling import bytes_asked_for, compile_program, fingerprint
from isrdpo_jax.plan.programs import Program
from isrdpo_jax.plan.useful import Flops

REFUSALS = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.70G) exceeds "
    "available HBM (15.75G).": int(16.70 * 2**30),
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.34G of 15.75G "
    "hbm. Exceeded hbm capacity by 4.59G.": int(20.34 * 2**30),
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.": 0,
    "INTERNAL: the compiler is confused": None,
}
X = jax.ShapeDtypeStruct((64, 32), jnp.float32)


def program(function=lambda x: x @ x.T, live_bytes: int = 0) -> Program:
    return Program("encode", lambda: jax.jit(function).lower(X), live_bytes, Flops(128.0, 64.0))


class Refusing:
    """A lowered program whose compiler refuses."""

    def __init__(self, message: str):
        self._message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self._message)


@pytest.mark.parametrize("message", REFUSALS)
def test_the_bytes_that_a_compiler_names(message):
    assert bytes_asked_for(message) == REFUSALS[message]


def test_a_program_without_room_is_an_answer():
    message = next(iter(REFUSALS))
    found = compile_program(Program("dpo_step", lambda: Refusing(message), 0, Flops(32.0, 0.0)), 16)  # type: ignore
    assert (found.fits_compiler, found.hbm_bytes, found.flops) == (False, REFUSALS[message], 2.0)


def test_any_other_failure_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="confused"):
        compile_program(Program("encode", lambda: Refusing("INTERNAL: confused"), 0, Flops(0, 0)), 1)  # type: ignore


def test_memory_adds_up_and_counts_what_a_run_holds_besides():
    alone, beside = compile_program(program(), 1), compile_program(program(live_bytes=1_000_000), 1)
    assert alone.argument_bytes == 64 * 32 * 4
    assert alone.held_bytes == 0
    assert alone.hbm_bytes == alone.argument_bytes + alone.temp_bytes >= (64 * 32 + 64 * 64) * 4
    assert beside.held_bytes == 1_000_000 - beside.argument_bytes
    assert beside.hbm_bytes == alone.hbm_bytes + beside.held_bytes


def test_flops_are_an_equal_share_and_what_is_executed_is_counted():
    found = compile_program(program(), 4)
    assert found.flops == (128 + 64) / 4
    assert found.executed_flops == 2 * 64 * 64 * 32


def test_a_fingerprint_is_of_what_is_computed_not_of_where_it_is_written():
    here = compile_program(program(), 1).fingerprint
    assert compile_program(program(lambda x: x @ x.T), 1).fingerprint == here
    assert compile_program(program(lambda x: x @ (x.T + 1)), 1).fingerprint != here


def test_a_fingerprint_leaves_out_the_tables_of_sources():
    text = 'HloModule m\n\nFileNames\n1 "/somewhere/a.py"\n\nENTRY %e () -> f32[] {\n  x, metadata={op_name="f"}\n}\n'
    assert fingerprint(text) == fingerprint(text.replace("somewhere/a.py", "else/b.py").replace('"f"', '"g"'))
