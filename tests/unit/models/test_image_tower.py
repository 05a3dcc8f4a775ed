"""The image tower: what it computes, where it stands in the model, and a response scored behind what it saw."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from tiny import PREFIX_IDS, TINY, TINY_WITH_IMAGES, random_params, random_pixels
from tiny_policy import with_words
from written_out import erf_gelu, float64, linear, llama, video_tower

from isrdpo_jax.data.images import preprocess_image
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.models.video_llava import abstract_params, build
from isrdpo_jax.programs.encode import encode, encode_images
from isrdpo_jax.schema import ModelConfig, VisionConfig
from isrdpo_jax.stages.questions import score_response
from isrdpo_jax.weights.policy_folder import packaged_tokenizer, write_policy

IMAGES = random_pixels(2, TINY.model_copy(update={"vision": TINY_WITH_IMAGES.image}), seed=1)[:, 0]


@pytest.fixture(scope="module")
def params():
    return random_params(TINY_WITH_IMAGES)


def test_it_is_the_per_frame_tower(params):
    tower = float64(params["image_tower"])
    expected = [video_tower(image[None], tower, TINY_WITH_IMAGES.image) for image in IMAGES]
    found = encode_images(params, IMAGES, config=TINY_WITH_IMAGES)
    assert found.shape == (2, 9, 16)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_it_is_there_exactly_when_the_config_has_one(params):
    assert abstract_params(TINY_WITH_IMAGES).keys() - abstract_params(TINY).keys() == {"image_tower"}
    without = {name: part for name, part in params.items() if name != "image_tower"}
    assert without.keys() == abstract_params(TINY).keys()
    with pytest.raises(ValueError, match="no image tower"):
        encode_images(without, IMAGES, config=TINY)


def test_it_is_published_with_303_million_parameters():
    image = VisionConfig(num_frames=1, temporal_attention=False)
    tower = abstract_params(ModelConfig(image=image))["image_tower"]
    d, mlp = 1024, 4096  # the last layer and the norm behind it are not built
    last_layer = 4 * (d * d + d) + 2 * d * mlp + mlp + d + 4 * d
    assert sum(leaf.size for leaf in jax.tree.leaves(tower)) == 303_179_776 - last_layer - 2 * d
    assert image.tokens_per_video == 256


def test_videos_do_not_notice_it(params):
    pixels = random_pixels(2)
    without = {name: part for name, part in params.items() if name != "image_tower"}
    np.testing.assert_array_equal(encode(params, pixels, config=TINY_WITH_IMAGES), encode(without, pixels, config=TINY))


def test_both_towers_share_the_projector(params):
    model = build(TINY_WITH_IMAGES, params)
    features = encode_images(params, IMAGES, config=TINY_WITH_IMAGES)
    prefix = model.embed_prefix(PREFIX_IDS, features)
    assert prefix.shape == (2, len(PREFIX_IDS) + 9, TINY.llama.hidden_size)
    np.testing.assert_allclose(prefix[:, len(PREFIX_IDS) :], model.projector(features), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 8}, "num_frames 1"),
        ({"temporal_attention": True}, "temporal_attention false"),
        ({"hidden_size": 32}, r"image\.hidden_size 32 is not vision\.hidden_size 16"),
    ],
)
def test_what_no_image_tower_can_be_is_refused(change, message):
    sizes = TINY_WITH_IMAGES.model_dump()
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({**sizes, "image": {**sizes["image"], **change}})


def test_a_response_behind_an_image_has_the_log_probs_of_the_description(tmp_path):
    """`isrdpo score`, with everything from the pixels on computed anew in float64."""
    config = with_words(TINY_WITH_IMAGES)
    params = random_params(config, seed=3)
    write_policy(tmp_path / "policy", config, packaged_tokenizer("shapes"), params, {})
    image = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    scored = score_response(str(tmp_path / "policy"), tmp_path / "image.png", "What is it?", "A red circle.")

    p, tokenizer = float64(params), load_tokenizer(packaged_tokenizer("shapes"))
    turn, response = tokenizer.encode_turn("What is it?"), tokenizer.encode_response("A red circle.")
    assert scored["tokens"] == response
    features = video_tower(preprocess_image(image, config.image.image_size)[None], p["image_tower"], config.image)
    visual = linear(erf_gelu(linear(features, p["projector"]["linear1"])), p["projector"]["linear2"])
    words = p["llama"]["embedding"]
    row = [words[tokenizer.encode_prefix(load_prompts())], visual, words[turn], words[response]]
    hidden = llama(np.concatenate(row), p["llama"], config.llama)
    logits = hidden[-len(response) - 1 : -1] @ p["llama"]["head"]
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    expected = logprobs[np.arange(len(response)), response]
    np.testing.assert_allclose(scored["per_token"], expected, rtol=1e-4, atol=1e-4)
    assert scored["logprob"] == pytest.approx(expected.sum(), rel=1e-4)
