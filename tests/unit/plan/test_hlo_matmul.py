"""Windows are counted position by position, in closed form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isrdpo_jax.plan.hlo_matmul import convolution_flops
from isrdpo_jax.plan.hlo_text import Array, Instruction

SMALL = st.integers(1, 6)


def one_dimension(inputs: int, outputs: int, window: str) -> float:
    """FLOPs of a convolution with one spatial dimension and one feature each way."""
    out = Array("f32", (1, 1, outputs))
    convolution = Instruction("c", "convolution", (out,), (), f", window={{{window}}}, dim_labels=bf0_io0->bf0")
    return convolution_flops(convolution, Array("f32", (1, 1, inputs)), Array("f32", (1, 1, 1)))


@settings(max_examples=300, deadline=None)
@given(SMALL, SMALL, SMALL, SMALL, st.integers(-4, 6), SMALL, SMALL)
def test_products_are_those_that_meet_an_input(inputs, outputs, size, stride, pad, input_dilation, kernel_dilation):
    places = {i * input_dilation for i in range(inputs)}
    met = sum(o * stride - pad + k * kernel_dilation in places for o in range(outputs) for k in range(size))
    window = f"size={size} stride={stride} pad={pad}_0 lhs_dilate={input_dilation} rhs_dilate={kernel_dilation}"
    assert one_dimension(inputs, outputs, window) == 2 * met


@pytest.mark.parametrize("batch", [2, 66_560, 10_000_000])
def test_a_large_batch_as_a_window_takes_no_memory(batch):
    window = f"size={batch} stride={batch - 1} lhs_dilate={batch}"
    assert one_dimension(batch, batch, window) == 2 * batch


def test_without_a_window_it_is_a_plain_product():
    convolution = Instruction("c", "convolution", (Array("f32", (3, 5)),), (), ", dim_labels=bf_io->bf")
    assert convolution_flops(convolution, Array("f32", (3, 7)), Array("f32", (7, 5))) == 2 * 3 * 5 * 7
