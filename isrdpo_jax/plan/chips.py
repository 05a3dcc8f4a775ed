"""What a TPU chip can do and what it costs: the published figures of each generation.

Sources: the system architecture pages of Cloud TPU (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x), read in
2026, whose interconnect bandwidth counts both directions (what a chip can receive is half of it); Google's announcement
of Ironwood for the memory bandwidth of tpu7x, which was not looked up again.
"""

from __future__ import annotations

from dataclasses import dataclass

from isrdpo_jax.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        flops: bf16 FLOP/s.
        hbm_bytes: capacity.
        hbm_bandwidth: bytes/s.
        ici_bandwidth: bytes/s that it can receive over all links to its neighbours.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float


CHIPS = {  # by `jax.Device.device_kind`
    "TPU v5 lite": Chip("v5e", 197e12, 16 * GIB, 819e9, 400e9 / 2),
    "TPU v5": Chip("v5p", 459e12, 95 * GIB, 2765e9, 1200e9 / 2),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * GIB, 1638e9, 800e9 / 2),
    "TPU7x": Chip("tpu7x", 2307e12, 192 * GIB, 7370e9, 1200e9 / 2),
}

PRICES_AS_OF = "2025-02"
PRICES = {"v5e": 1.20, "v5p": 4.20, "v6e": 2.70}
"""US dollars per chip and hour, on demand, in the cheapest US region (cloud.google.com/tpu/pricing); the one of v6e was
not looked up again. `--price` sets what you pay."""


def chip_of(device_kind: str) -> Chip:
    """Raises:
    ConfigError: no figures are known for such a chip.
    """
    if device_kind not in CHIPS:
        known = ", ".join(chip.name for chip in CHIPS.values())
        raise ConfigError(f"--topology: no figures are known for the chip {device_kind!r}. Known are {known}.")
    return CHIPS[device_kind]
