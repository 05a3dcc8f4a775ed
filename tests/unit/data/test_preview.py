"""`data preview`: the frames and prompts that a model sees."""

import base64
import io
import json
import re

import numpy as np
import pytest
from make_videos import counting_frames
from PIL import Image
from rich.console import Console

from isrdpo_jax.data import preview as preview_module
from isrdpo_jax.data.budget import make_budget
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.preview import as_html, for_terminal, preview
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.schema import Config, ModelConfig
from isrdpo_jax.weights.policy_folder import packaged_tokenizer


@pytest.fixture
def config(tmp_path):
    write_video(tmp_path / "a.mp4", counting_frames(6, 16, 24), fps=8)
    write_video(tmp_path / "b.mp4", counting_frames(6, 16, 16), fps=8)
    rows = [
        {"video": "gone.mp4", "question": "Who?"},
        {"video": "a.mp4", "question": "Is <b> bold?"},
        {"video": "b.mp4", "question": "Who?"},
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset": "video_qa", "path": str(tmp_path / "qa.jsonl"), "dir": str(tmp_path), "max_bad_fraction": 1.0}
    return Config.model_validate({"data": data})


def budget_of(config):
    return make_budget(config, ModelConfig(), load_prompts(), load_tokenizer(packaged_tokenizer("shapes")), verdict=8)


def look(config, count=1, size=16):
    return preview(config, "train", budget_of(config), num_frames=3, image_size=size, count=count)


def test_frames_are_cropped_as_the_tower_sees_them(config, tmp_path):
    (one,) = look(config)
    stored = decode_video(tmp_path / "a.mp4", 3).frames
    assert (one.id, one.stored, one.seen.shape) == ("a.mp4", (16, 24), (3, 16, 16, 3))
    np.testing.assert_array_equal(one.seen, stored[:, :, 4:20])  # the centre: nothing is scaled at this size


def test_a_prepared_split_is_read(config, monkeypatch):
    assert len(look(config, count=9)) == 2
    open_split(config, "train", num_frames=3)
    monkeypatch.setattr(preview_module, "decoded", lambda *_: pytest.fail("decoded"))
    assert [one.id for one in look(config, count=9)] == ["a.mp4", "b.mp4"]


def test_parts_add_up_to_the_window(config):
    (one,), budget = look(config), budget_of(config)
    ((question, turns),) = one.questions
    answer, judge = turns
    assert (question.text, answer.text) == ("Is <b> bold?", "Is <b> bold?")
    assert budget.prefix == len(budget.tokenizer.encode_prefix(budget.prompts)) and budget.visual == 2048
    assert answer.tokens == len(budget.tokenizer.encode_turn("Is <b> bold?"))
    assert "‹c_t›" in judge.text and [turn.kind for turn in one.turns] == ["describe", "retrospect"]
    assert preview_module._sizes(answer, budget)[-1] == 4096 - budget.prefix - 2048 - answer.tokens - 256


def test_in_the_terminal(config):
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True, color_system="truecolor").print(
        for_terminal(look(config), budget_of(config), thumbnails=True)
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert (
        "a.mp4: 3 frames of 24 x 16, seen as 16 x 16" in text and "USER: <video>\n    Is <b> bold? ASSISTANT:" in text
    )
    assert text.count("▀") == 8 * (16 + 1) * 3
    assert "▀" not in str(for_terminal(look(config), budget_of(config), thumbnails=False))


def test_as_a_page(config):
    previews = look(config, count=2)
    page = as_html(previews, budget_of(config), "mine")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 6
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))))
    np.testing.assert_array_equal(first, previews[0].seen[0])
    assert "Is &lt;b&gt; bold?" in page and "<b>" not in page and "http" not in page
