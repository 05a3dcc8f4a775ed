"""All tests run on the CPU, with eight faked devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tiny_params():
    """Parameters of `tiny.TINY`."""
    from tiny import TINY, random_params

    return random_params(TINY)
