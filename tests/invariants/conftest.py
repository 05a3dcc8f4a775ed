from __future__ import annotations

import pytest
from training import ONE_DEVICE, Layout


@pytest.fixture(scope="session")
def one_device(tiny_params) -> Layout:
    """All eight pairs in one micro-batch on one device."""
    return Layout(tiny_params, ONE_DEVICE, micro_batches=1)
