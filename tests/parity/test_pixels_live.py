"""Makes the pixel goldens anew with torch, and compares both the stored ones and ours with them.

The interpreter that has torch is `ISRDPO_TORCH_PYTHON`, or the one that runs this test.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isrdpo_jax.data.images import preprocess_image
from isrdpo_jax.data.pixels import preprocess

HERE = Path(__file__).parent
GOLDENS = {  # file: (the script that makes it, what is seen, our pipeline)
    "pixels.npz": ("make_pixel_goldens.py", "frames", preprocess),
    "images.npz": ("make_image_goldens.py", "image", preprocess_image),
}


@pytest.fixture(scope="module", params=GOLDENS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def fresh(name, tmp_path_factory):
    out = tmp_path_factory.mktemp("goldens") / name
    python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
    subprocess.run([python, str(HERE / GOLDENS[name][0]), str(out)], check=True)
    with np.load(out) as arrays:
        return dict(arrays)


def test_stored_goldens_are_those_of_the_script(name, fresh):
    with np.load(HERE.parent / "goldens" / name) as stored:
        assert set(stored) == set(fresh)
        for key in stored:
            np.testing.assert_allclose(stored[key], fresh[key], rtol=0, atol=1e-6, err_msg=key)


def test_ours_agrees_with_torch(name, fresh):
    _, seen, ours = GOLDENS[name]
    cases = {key.split("/")[0] for key in fresh}
    assert len(cases) >= 5
    for case in cases:
        pixels = ours(fresh[f"{case}/{seen}"], int(fresh[f"{case}/size"]))
        np.testing.assert_allclose(pixels, fresh[f"{case}/pixels"], rtol=0, atol=1e-6, err_msg=case)
