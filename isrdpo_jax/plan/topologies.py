"""Devices of a TPU slice that need not be there, as libtpu describes them to the compiler."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from isrdpo_jax.errors import ConfigError

ABSENT_CHIPS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""The environment in which libtpu describes a slice without looking for one, beside others that have it loaded. It must
be set before JAX is imported."""

_NAME = re.compile(r"[A-Za-z0-9]+:\d+(x\d+)+")


def check_name(topology: str) -> None:
    """Raises:
    ConfigError: this is no name of a topology.
    """
    if not _NAME.fullmatch(topology):
        raise ConfigError(f"--topology {topology}: give chip and arrangement, such as v5e:4x4, v5p:2x2x4 or v6e:16x16.")


def named_chips(topology: str) -> int:
    """Chips of a slice, from its name."""
    return math.prod(int(size) for size in topology.split(":")[1].split("x"))


def describe(topology: str) -> Sequence[jax.Device]:
    """The devices of a slice. Needs `ABSENT_CHIPS` in the environment.

    Raises:
        ConfigError: libtpu is not installed, or knows no such slice.
    """
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except RuntimeError as error:  # jax.errors.JaxRuntimeError is one
        if "not installed" in str(error):
            raise ConfigError(
                "isrdpo plan compiles with the TPU compiler, and libtpu is not installed here. It needs no TPU: "
                "`pip install 'isrdpo-jax[tpu]'` (or `make setup-tpu`) installs it; Linux on x86-64 only."
            ) from error
        raise ConfigError(f"--topology {topology}: {str(error).splitlines()[0]}") from error


def chip_count(devices: Sequence[jax.Device]) -> int:
    """Chips of a slice; some generations show each of a chip's two cores as a device."""
    return len({tuple(device.coords) for device in devices})
