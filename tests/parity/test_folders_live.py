"""Makes the checkpoint folders anew with torch and transformers: the stored ones are these, and these are imported.

The interpreter that makes them is `ISRDPO_TORCH_PYTHON`, or the one that runs this test, which needs torch itself to
import `.bin` shards.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from folder_goldens import (
    FOLDERS,
    Imported,
    check_answer,
    check_generated,
    check_logits,
    check_score,
    import_golden,
)

from isrdpo_jax.weights.hf_folder import open_folder, stored_tensors

SCRIPT = Path(__file__).with_name("make_folder_goldens.py")
NAMES = sorted(path.name for path in FOLDERS.iterdir())


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("folders")
    python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
    subprocess.run([python, str(SCRIPT), str(out)], check=True)
    return out


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_the_script_makes_these_files(fresh):
    assert files(fresh) == files(FOLDERS)


@pytest.mark.parametrize("name", NAMES)
def test_stored_folders_are_those_of_the_script(fresh, name):
    stored, made = (stored_tensors(open_folder(str(root / name / "checkpoint"))) for root in (FOLDERS, fresh))
    assert stored.keys() == made.keys()
    for key in stored:
        assert stored[key].dtype == made[key].dtype, key
        np.testing.assert_array_equal(stored[key].read(), made[key].read(), err_msg=key)
    assert pieces(FOLDERS / name) == pieces(fresh / name)


def pieces(folder: Path) -> list[tuple[str, float]]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "checkpoint" / "tokenizer.model"))
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size())]


@pytest.mark.parametrize("name", NAMES)
def test_stored_figures_are_those_of_the_script(fresh, name):
    with np.load(FOLDERS / name / "expected.npz") as stored, np.load(fresh / name / "expected.npz") as made:
        assert set(stored) == set(made)
        for key in stored:
            if np.issubdtype(stored[key].dtype, np.float32):
                size = max(1.0, np.abs(stored[key]).max())
                np.testing.assert_allclose(made[key], stored[key], rtol=0, atol=1e-5 * size, err_msg=key)
            else:
                np.testing.assert_array_equal(made[key], stored[key], err_msg=key)


@pytest.fixture(scope="module", params=NAMES)
def imported(request, fresh, tmp_path_factory) -> Imported:
    return import_golden(fresh / request.param, tmp_path_factory.mktemp(request.param))


def test_import_says_what_torch_says(imported):
    check_score(imported)
    check_answer(imported)
    for kind in imported.golden.kinds:
        check_logits(imported, kind)
        check_generated(imported, kind)
