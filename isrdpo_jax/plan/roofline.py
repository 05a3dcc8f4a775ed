"""The least time that a program can take on a chip: each of its three resources at its peak, beside the others."""

from __future__ import annotations

from typing import Literal

from isrdpo_jax.plan.chips import Chip

Bound = Literal["compute", "hbm", "ici"]


def roofline(
    chip: Chip, flops: float, hbm_bytes: float, ici_bytes: float, *, devices_per_chip: int = 1
) -> tuple[float, Bound]:
    """Seconds, and what bounds them: matrix units, memory bandwidth, or the interconnect between chips.

    Args:
        flops, hbm_bytes, ici_bytes: of one device, which has an equal share of its chip.
    """
    seconds: dict[Bound, float] = {
        "compute": flops / chip.flops,
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "ici": ici_bytes / chip.ici_bandwidth,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return devices_per_chip * seconds[bound], bound
