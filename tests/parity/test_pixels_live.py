"""Makes the pixel goldens anew with torch, and compares both the stored ones and ours with them.

The interpreter that has torch is `ISRDPO_TORCH_PYTHON`, or the one that runs this test.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isrdpo_jax.data.pixels import preprocess

SCRIPT = Path(__file__).with_name("make_pixel_goldens.py")
STORED = Path(__file__).parents[1] / "goldens" / "pixels.npz"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    out = tmp_path_factory.mktemp("goldens") / "pixels.npz"
    python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
    subprocess.run([python, str(SCRIPT), str(out)], check=True)
    with np.load(out) as arrays:
        return dict(arrays)


def test_stored_goldens_are_those_of_the_script(fresh):
    with np.load(STORED) as stored:
        assert set(stored) == set(fresh)
        for key in stored:
            np.testing.assert_allclose(stored[key], fresh[key], rtol=0, atol=1e-6, err_msg=key)


def test_ours_agrees_with_torch(fresh):
    cases = {key.split("/")[0] for key in fresh}
    assert len(cases) >= 5
    for case in cases:
        ours = preprocess(fresh[f"{case}/frames"], int(fresh[f"{case}/size"]))
        np.testing.assert_allclose(ours, fresh[f"{case}/pixels"], rtol=0, atol=1e-6, err_msg=case)
