"""FLOPs of one matrix product in HLO: a `dot`, or the `convolution` into which the TPU compiler turns it."""

from __future__ import annotations

import math
import re

import numpy as np

from isrdpo_jax.plan.hlo_text import Array, Instruction


def dot_flops(dot: Instruction, lhs: Array) -> float:
    """2 × elements of the result × contracted elements."""
    dims = re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or "")
    return 2.0 * dot.array.elements * math.prod(lhs.shape[int(dim)] for dim in dims)


def convolution_flops(convolution: Instruction, lhs: Array, rhs: Array) -> float:
    """2 × products that are not with padding or with the zeros of a dilation.

    A batched product becomes a window that slides over a dilated input and meets one element of it at each place, so
    that the size of the window says nothing: positions are counted one by one, as XLA's own cost analysis does.
    """
    inputs, kernel, output = re.split(r"_|->", convolution.attribute("dim_labels") or "")
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", convolution.attribute("window") or ""))

    def per_dim(name: str, default: str, count: int) -> list[str]:
        return window[name].split("x") if name in window else [default] * count

    spatial = sorted(label for label in inputs if label.isdigit())
    count = len(spatial)
    products = 1
    for label, size, stride, pad, input_dilation, kernel_dilation in zip(
        spatial,
        per_dim("size", "1", count),
        per_dim("stride", "1", count),
        per_dim("pad", "0_0", count),
        per_dim("lhs_dilate", "1", count),
        per_dim("rhs_dilate", "1", count),
        strict=True,
    ):
        products *= _meetings(
            lhs.shape[inputs.index(label)],
            convolution.array.shape[output.index(label)],
            int(size),
            int(stride),
            int(pad.split("_")[0]),
            int(input_dilation),
            int(kernel_dilation),
        )
    batch = convolution.array.shape[output.index("b")]
    features = convolution.array.shape[output.index("f")]
    return 2.0 * products * batch * features * rhs.shape[kernel.index("i")]


def _meetings(
    inputs: int, outputs: int, size: int, stride: int, pad: int, input_dilation: int, kernel_dilation: int
) -> int:
    """In one spatial dimension, pairs of an output and a kernel position that meet an input element.

    For an output that begins at s these are the k in [0, size) for which s + k · kernel_dilation is a multiple of
    input_dilation within the input: every m-th k, from the first that is one.
    """
    start = np.arange(outputs) * stride - pad
    common = math.gcd(kernel_dilation, input_dilation)
    m = input_dilation // common
    inverse = pow(kernel_dilation // common, -1, m) if m > 1 else 0
    low = np.maximum(0, -(start // kernel_dilation))
    high = np.minimum(size - 1, ((inputs - 1) * input_dilation - start) // kernel_dilation)
    first = low + (-(start // common) * inverse - low) % m
    meets = (start % common == 0) & (first <= high)
    return int(np.where(meets, (high - first) // m + 1, 0).sum())
