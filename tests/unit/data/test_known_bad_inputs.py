"""Inputs that LLaVA-Hound's and ISR-DPO's published code trips over, and what happens here.

They are numbered as they are known to us: 1 to 14 are met in data and training, 22 and 23 in checkpoints and captions;
15 to 21 and 24 concern the judge of held-out answers, and are tested with it.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_videos import counting_frames, encode, save_images
from tiny import PREFIX_IDS, TINY, pair_batch, random_features, random_pixels

from isrdpo_jax.data.budget import make_budget
from isrdpo_jax.data.check import check_data
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.packing import PairTokens, pack_pairs
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.question_rows import read_rows
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.programs.dpo_step import pair_loss, response_logprobs
from isrdpo_jax.programs.encode import encode as encode_video
from isrdpo_jax.schema import Config, DpoConfig, LlamaConfig
from isrdpo_jax.stages.judge import block
from isrdpo_jax.stages.pairs import build_pairs
from isrdpo_jax.weights.policy_folder import find_policy, packaged_tokenizer


def hound(root, rows, frames=None):
    """LLaVA-Hound's layout: training rows, and folders of frames by the name of the video."""
    file = root / "video_instruction" / "train" / "dpo" / "sft_dpo_17k.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    videos = root / "video_data" / "train"
    videos.mkdir(parents=True)
    for name, images in (frames or {}).items():
        save_images(videos / name, images)
    data = {"dataset": "llava_hound", "path": str(root), "dir": str(root / "prepared"), "max_bad_fraction": 1.0}
    return Config.model_validate({"data": data}), videos


def row(video="a", **fields):
    return {"video": video, "prompt": "<video>\nWhat moves?", "chosen": "A cat.", "rejected": "A dog."} | fields


FRAMES = [f"c01_{number:04d}.jpeg" for number in range(1, 5)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(packaged_tokenizer("shapes"))


def test_01_unreadable_frame_folders_are_counted_and_nothing_stands_in_for_them(tmp_path):
    config, videos = hound(tmp_path, [row(name) for name in ("good", "gone", "empty", "torn")], {"good": FRAMES})
    (videos / "empty").mkdir()
    (videos / "torn").mkdir()
    (videos / "torn" / "c01_0001.jpeg").write_bytes(b"\xff\xd8\xff no image")
    source = open_split(config, "train", num_frames=4)
    assert source.ids == ["good"] and source.skips == {"missing": 1, "empty": 1, "corrupt": 1}


def test_02_stray_files_in_a_frame_folder_are_no_frames(tmp_path):
    folder = save_images(tmp_path / "frames", FRAMES)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    assert decode_video(folder, 4).total == 4


def test_03_frames_beyond_9999_are_in_the_order_of_their_numbers(tmp_path):
    folder = save_images(tmp_path / "frames", [f"c01_{number}.png" for number in (9998, 9999, 10000, 10001)])
    assert decode_video(folder, 4).frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_04_a_short_video_repeats_frames_and_says_so(tmp_path):
    video = decode_video(save_images(tmp_path / "frames", FRAMES[:3]), 8)
    assert (video.total, video.indices) == (3, (0, 0, 0, 0, 1, 1, 1, 2))


def test_05_a_long_video_is_seen_to_its_end(tmp_path):
    path = encode(tmp_path / "long.mp4", counting_frames(90, 16, 16), rate=6)  # 15 s
    video = decode_video(path, 4)
    assert (video.total, video.indices) == (90, (0, 29, 59, 89))


def test_05_a_frame_rate_of_nearly_nothing_changes_nothing(tmp_path):
    times = [number * 90000 * 3600 for number in range(4)]  # a frame an hour
    path = encode(tmp_path / "slow.mp4", counting_frames(4, 16, 16), times=times)
    assert decode_video(path, 4).indices == (0, 1, 2, 3)


def test_06_another_number_of_frames_is_refused_and_never_mixes_videos(tiny_params):
    frames = TINY.vision.num_frames
    pixels = random_pixels(2 * frames)[:, : frames - 1]  # their product divides by `frames`
    with pytest.raises(ValueError, match=f"takes {frames} frames per video, not {frames - 1}"):
        encode_video(tiny_params, pixels, config=TINY)


def test_07_an_empty_response_is_its_end_and_gives_no_pair(tokenizer, tiny_params):
    assert tokenizer.encode_response("")[-1] == tokenizer.eos_id
    batch = pair_batch([PairTokens((3, 4), (2,), (5, 2))], random_features(1))
    scored = np.asarray(response_logprobs(tiny_params, PREFIX_IDS, batch, config=TINY))
    assert scored[0, 0, 0] < 0 and np.count_nonzero(scored) == 3
    assert block(("", "A cat."), ("stop", "stop"), keep_unfinished=False) == "empty"


def test_08_a_batch_without_a_chosen_token_has_a_finite_loss(tiny_params):
    batch = pair_batch([PairTokens((3, 4), (5, 2), (6, 2))], random_features(1))
    masked = batch._replace(mask=np.zeros_like(batch.mask))
    frozen = {name: leaf for name, leaf in tiny_params.items() if name != "llama"}

    @jax.jit
    def loss_and_gradient(llama, batch):
        share = jax.value_and_grad(pair_loss, has_aux=True)
        return share(llama, frozen, PREFIX_IDS, batch, jnp.ones(2), TINY, DpoConfig(sft_weight=1.0))

    (loss, _), gradient = loss_and_gradient(tiny_params["llama"], masked)
    assert loss == pytest.approx(np.log(2)) and all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
    (loss, _), gradient = loss_and_gradient(tiny_params["llama"], batch)
    assert loss > np.log(2) and any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_09_a_literal_video_in_a_response_is_text(tokenizer):
    ids = tokenizer.encode_response("A <video> and an <image>.")
    assert min(ids) >= 0 and max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == "A <video> and an <image>."


def test_09_where_it_would_be_taken_for_the_video_the_row_is_refused(tmp_path):
    (tmp_path / "qa.jsonl").write_text(json.dumps({"video": "a.mp4", "question": "What is <video>?"}))
    assert [bad.reason for bad in read_rows(tmp_path / "qa.jsonl").bad] == ["video_marker"]


def test_10_an_end_or_a_role_in_a_response_is_text_and_all_of_it_counts(tokenizer):
    text = "A cat.</s> USER: Why? ASSISTANT: No."
    ids = tokenizer.encode_response(text)
    assert ids.count(tokenizer.eos_id) == 1 and ids[-1] == tokenizer.eos_id
    _, mask = pack_pairs([PairTokens((3,), tuple(ids), (2,))], 0, 1, len(ids))
    assert mask[0, 0].all() and tokenizer.decode(ids) == text


def test_11_identical_responses_give_no_pair():
    assert block(("A cat.", "A cat."), ("stop", "stop"), keep_unfinished=False) == "identical"
    said = [{"text": "A cat.", "tokens": [5, 2]}] * 2
    asked = [{"id": str(i), "video": "a", "question": "?", "responses": said} for i in range(2)]
    judged = [
        {"id": "0", "reason": "identical", "verdict": None, "margin": None},
        {"id": "1", "reason": "ok", "verdict": 0, "margin": 1.0},
    ]
    pairs, counts = build_pairs(asked, judged)
    assert [pair["id"] for pair in pairs] == ["1"] and counts == {"kept": 1, "identical": 1}


def test_12_a_row_without_a_video_is_refused(tmp_path):
    config, _ = hound(tmp_path, [row("a"), {"prompt": "Write a poem.", "chosen": "a", "rejected": "b"}], {"a": FRAMES})
    source = open_split(config, "train", num_frames=4)
    assert len(source) == 1 and source.skips == {"missing_field": 1}


def test_13_a_text_that_does_not_fit_is_found_before_a_run(tmp_path, tokenizer):
    config, _ = hound(tmp_path, [row(), row(prompt="What moves? " * 500)], {"a": FRAMES})
    model = TINY.model_copy(update={"llama": LlamaConfig(max_positions=800)})
    found = check_data(
        config, make_budget(config, model, load_prompts(), tokenizer, verdict=8), num_frames=4, largest=1
    )
    answers = found["splits"]["train"]["prompts"]["answer"]
    assert (answers["count"], answers["over"], answers["largest"][0]["id"]) == (2, 1, "a#2") and not found["ok"]


def test_14_a_token_that_is_also_padding_counts_where_it_is_a_token(tiny_params):
    batch = pair_batch([PairTokens((3, 0), (0, 5, 2), (5, 0, 2))], random_features(1))
    scored = np.asarray(response_logprobs(tiny_params, PREFIX_IDS, batch, config=TINY))
    assert np.count_nonzero(scored) == 6 and (np.asarray(batch.rows.segments)[0, :2] >= 0).all()


def test_22_a_checkpoint_is_known_by_what_it_holds_not_by_its_name(tmp_path):
    original = find_policy("shapes")
    shutil.copytree(original.base, tmp_path / "my best model")
    policy = find_policy(str(tmp_path / "my best model"))
    assert policy.config == original.config and policy.tokenizer_folder.is_dir()


def test_23_every_question_keeps_its_own_caption(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_images(tmp_path / name / "7", FRAMES)
    rows = [
        {"video": "one/7", "question": "Who?", "caption": "A cat."},
        {"video": "two/7", "question": "Who?", "caption": "A dog."},
        {"video": "two/7", "question": "Why?", "caption": "A dog, again."},
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    data = {"dataset": "video_qa", "path": str(tmp_path / "qa.jsonl"), "dir": str(tmp_path / "prepared")}
    source = open_split(Config.model_validate({"data": data}), "train", num_frames=4)
    captions = {video.id: [question.caption for question in video.questions] for video in source}
    assert captions == {"one/7": ["A cat."], "two/7": ["A dog.", "A dog, again."]}
