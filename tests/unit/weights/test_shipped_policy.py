"""The start policy that ships with the package: whole, small, and with a card that says how it was made."""

from pathlib import Path

import jax

from isrdpo_jax.config import load_config
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.runs.atomic import read_json
from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.weights.policy_folder import CARD, find_policy, load_params

CONFIGS = Path(__file__).parents[3] / "configs"


def test_it_loads_and_is_what_its_card_says():
    folder = find_policy("shapes")
    card = read_json(folder.base / CARD)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    params, digest = load_params(folder, mesh)
    assert digest == card["policy"]
    assert card["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_its_card_tells_command_seed_data_time_scores_and_what_was_built_in():
    folder = find_policy("shapes")
    card = read_json(folder.base / CARD)
    assert {"command", "seed", "data", "seconds", "heldout", "built_in"} <= card.keys()
    assert {"accuracy", "false_share", "description_accuracy"} <= card["heldout"].keys()
    assert load_config(folder.base / "config.yaml").config.model == folder.config


def test_it_is_small_and_its_tokenizer_fits():
    folder = find_policy("shapes")
    assert folder.parameters.stat().st_size <= 4 * 2**20
    vocabulary = load_tokenizer(folder.tokenizer_folder).vocab_size
    assert vocabulary <= folder.config.llama.vocab_size <= 1024


def test_the_recipe_in_configs_is_the_one_that_made_it():
    made_by = load_config(find_policy("shapes").base / "config.yaml").config
    recipe = load_config(CONFIGS / "shapes_sft.yaml").config
    assert (made_by.sft, made_by.model, made_by.data.sft_videos) == (recipe.sft, recipe.model, recipe.data.sft_videos)
