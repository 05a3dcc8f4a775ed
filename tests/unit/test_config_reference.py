from pathlib import Path

import pytest

from isrdpo_jax.config import leaves
from isrdpo_jax.config_reference import reference
from isrdpo_jax.schema import Config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_that_of_the_schema():
    assert PAGE.read_text(encoding="utf-8") == reference() + "\n", (
        "run: isrdpo config reference > docs/configuration.md"
    )


def test_every_setting_is_there():
    page = reference()
    assert [key for key, _ in leaves(Config()) if f"| `{key}` |" not in page and f"## {key}\n" not in page] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `run.iterations` | integer >= 1 | `9` | N: how often the policy is improved. The paper uses nine. |",
        "| `dpo.clip_norm` | number > 0 or none | none | Global-norm clipping; none = off. |",
        "| `mesh.fsdp` | integer >= -1 | `-1` |  |",
        "| `dpo.lora.rank` | integer >= 1 | `64` | r; LLaVA-Hound's, where its recipe is told to use adapters. |",
        "| `sampling.top_p` | number > 0 and <= 1 | `0.95` |  |",
    ],
)
def test_rows(row):
    assert row in reference().splitlines()
