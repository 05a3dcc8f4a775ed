"""Makes the model goldens anew with torch and transformers, and compares the stored ones with them.

The interpreter that has both is `ISRDPO_TORCH_PYTHON`, or the one that runs this test.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("make_model_goldens.py")
STORED = Path(__file__).parents[1] / "goldens"
NAMES = sorted(path.name for path in STORED.glob("model_*.npz"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("goldens")
    python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
    subprocess.run([python, str(SCRIPT), str(out)], check=True)
    return out


def test_the_script_makes_these_files(fresh):
    assert sorted(path.name for path in fresh.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_stored_goldens_are_those_of_the_script(fresh, name):
    with np.load(STORED / name) as stored, np.load(fresh / name) as made:
        assert set(stored) == set(made)
        for key in stored:
            if np.issubdtype(stored[key].dtype, np.float32):
                size = max(1.0, np.abs(stored[key]).max())
                np.testing.assert_allclose(made[key], stored[key], rtol=0, atol=1e-5 * size, err_msg=key)
            else:
                np.testing.assert_array_equal(made[key], stored[key], err_msg=key)
