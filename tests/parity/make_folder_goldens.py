"""Makes `tests/goldens/folders/CASE/`: tiny checkpoints as they are published, and what torch says. Nothing of ours.

    python tests/parity/make_folder_goldens.py [FOLDER]

Two kinds of folder, with random weights:

* `video_llava_*`: transformers' own `VideoLlavaForConditionalGeneration`, saved by itself. Its forward pass is the
  expectation, class tokens included (the real sizes give 2056 visual tokens).
* `llava_llama_*`: the original layout of Video-LLaVA, LLaVA-Hound and ISR-DPO, with temporal attention, an image tower,
  rotary buffers, and the last layers and norms that nobody reads. The expectation is transformers' CLIP and LLaMA and
  the temporal tower of `make_model_goldens.py`, without class tokens (2048 visual tokens).

Computed in float64 from the stored weights. `checkpoint/` is the folder; `expected.npz` holds

    case                       JSON: the sizes (`CASES`), `prompt`, `response`
    frames                     uint8 [frames, h, w, 3] of a video, from which the model sees some
    prefix, turn, response     int[...], the conversation around the video, by the sentencepiece library
    pixels                     [t, 3, S, S], the frames that the model sees
    image_pixels               [3, S, S] of an image, where the case has images
    KIND/...                   KIND is `video` or `image`, what stands before the turn:
        logits                 [1 + response, v], from the turn's last position on
        logprobs, logprob      [response], and their sum: EOS is counted
        loss                   transformers' own, with every label but the response's tokens ignored
        greedy                 int[64], what the decoder says behind the turn
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import llama_tokenizer
import numpy as np
import torch
from make_model_goldens import (
    CLEAR,
    EPS,
    IGNORED,
    NEW_TOKENS,
    build,
    check_silent_temporal_parts,
    randomize,
    stored,
    temporal_features,
)
from make_pixel_goldens import pipeline
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    PreTrainedModel,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers.utils import logging

PIECES = 384  # of the tokenizer
CASES = {
    "video_llava_float32": {
        "seed": 1,
        "dtype": "float32",
        "further_rows": 64,  # of the embedding, behind the tokenizer's pieces, as 32064 of 32000
        "images": False,
        "num_frames": 3,
        "frames": [5, 20, 31],
        "vision": {
            "image_size": 12,
            "patch_size": 4,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "hidden_act": "gelu",
        },
        "llama": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "rope_theta": 10000.0,
    },
    "video_llava_bfloat16": {
        "seed": 3,
        "dtype": "bfloat16",
        "further_rows": 3,
        "images": True,
        "num_frames": 2,
        "frames": [2, 27, 20],
        "vision": {
            "image_size": 20,
            "patch_size": 5,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "hidden_act": "gelu",
        },
        "llama": {
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
        "rope_theta": 500.0,
    },
    "llava_llama_safetensors": {
        "seed": 5,
        "dtype": "bfloat16",
        "further_rows": 0,
        "images": True,
        "num_frames": 4,
        "frames": [9, 22, 22],
        "vision": {
            "image_size": 16,
            "patch_size": 8,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
        },
        "llama": {
            "hidden_size": 24,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
        "rope_theta": 10000.0,
    },
    "llava_llama_bin": {
        "seed": 3,
        "dtype": "float16",
        "further_rows": 0,
        "images": False,
        "num_frames": 8,
        "frames": [3, 16, 25],
        "vision": {
            "image_size": 12,
            "patch_size": 6,
            "hidden_size": 12,
            "intermediate_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_act": "gelu",
        },
        "llama": {
            "hidden_size": 16,
            "intermediate_size": 28,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "rope_theta": 10000.0,
    },
}
PROMPT = "What does the naïve dog do in 2 minutes?\nSay it in few words."
RESPONSE = "It runs after 36 red balls, and then it sleeps."
SYSTEM = Path(__file__).parents[2] / "isrdpo_jax" / "prompts" / "system.txt"
SYSTEM_SHA256 = "1fa69e2371b762d1882b0bd98d284f312a36c27add732016e12e52586f98a9f5"  # Vicuna's, version 1.1
SHARDS = 3

Ask = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # ids behind the video or image -> inputs of the model


def figures(model: PreTrainedModel, ask: Ask, turn: torch.Tensor, response: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything under KIND."""
    inputs = ask(torch.cat([turn, response]))
    length = next(inputs[name] for name in ("inputs_embeds", "input_ids") if name in inputs).shape[1]
    labels = torch.full((1, length), IGNORED)
    labels[0, -len(response) :] = response
    out = model(**inputs, labels=labels)
    logits = out.logits[0, -len(response) - 1 :]
    logprobs = logits[:-1].log_softmax(-1).gather(-1, response[:, None])[:, 0]
    figures = {"logits": logits, "logprobs": logprobs, "logprob": logprobs.sum(), "loss": out.loss}
    return figures | {"greedy": greedy(model, ask(turn))}


def greedy(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    out = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=llama_tokenizer.EOS,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(out.logits).topk(2).values
    gap = float((best[:, 0] - best[:, 1]).min())
    if gap < CLEAR or len(best) < NEW_TOKENS:
        raise SystemExit(f"{len(best)} tokens, two logits are {gap:.1e} apart; choose another seed")
    return out.sequences[0, -NEW_TOKENS:]


def rounded(model: nn.Module, case: dict) -> nn.Module:
    """Random weights that the case's dtype holds exactly, in float64; rotary frequencies are no weights."""
    randomize(model, np.random.default_rng(case["seed"]))
    for parameter in model.parameters():
        parameter.data = parameter.to(getattr(torch, case["dtype"])).to(torch.float64)
    return model.eval()


def video_llava(folder: Path, case: dict, prefix: torch.Tensor) -> tuple[PreTrainedModel, Callable]:
    """Transformers' model, saved, and per kind of pixels how it is asked."""
    image, video = PIECES, PIECES + 1
    patches = (case["vision"]["image_size"] // case["vision"]["patch_size"]) ** 2
    counts = {"image": patches, "video": case["num_frames"] * (patches + 1)}
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**case["vision"], layer_norm_eps=EPS),
        text_config=LlamaConfig(
            **case["llama"],
            vocab_size=PIECES + case["further_rows"],
            rms_norm_eps=EPS,
            rope_parameters={"rope_type": "default", "rope_theta": case["rope_theta"]},
            max_position_embeddings=512,
            pad_token_id=PIECES + 2,
        ),
        image_token_index=image,
        video_token_index=video,
        image_seq_length=counts["image"],
        video_seq_length=counts["video"],
        attn_implementation="eager",
    )
    model = rounded(VideoLlavaForConditionalGeneration(config), case)
    saved = copy.deepcopy(model).to(getattr(torch, case["dtype"]))
    saved.save_pretrained(folder, max_shard_size="1GB" if case["dtype"] == "float32" else "30KB")

    def ask(kind: str, pixels: torch.Tensor) -> Ask:
        visual = torch.full((counts[kind],), {"image": image, "video": video}[kind])
        name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]

        def inputs(behind: torch.Tensor) -> dict[str, torch.Tensor]:
            ids = torch.cat([prefix, visual, behind])[None]
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), name: pixels[None]}

        return inputs

    return model, ask


def llava_llama(folder: Path, case: dict, prefix: torch.Tensor) -> tuple[PreTrainedModel, Callable]:
    """The original's parts, saved under its names, and per kind of pixels how they are asked."""
    model = build({**case, "llama": {**case["llama"], "vocab_size": PIECES + case["further_rows"]}})
    model["image_tower"] = CLIPVisionModel(model["video_tower"].config)
    model = rounded(model, case)
    towers, llama = {"video": model["video_tower"], "image": model["image_tower"]}, model["llama"]
    write_original(folder, case, model)

    def ask(kind: str, pixels: torch.Tensor) -> Ask:
        frames = pixels if kind == "video" else pixels[None]
        spatial = towers[kind](frames, output_hidden_states=True).hidden_states[-2]
        if kind == "video":
            check_silent_temporal_parts(towers["video"], frames[None], spatial[None])
            spatial = temporal_features(towers["video"], frames[None])[0]
        visual = model["mm_projector"](spatial[:, 1:].flatten(0, 1))  # no class tokens
        embed = llama.get_input_embeddings()
        return lambda behind: {"inputs_embeds": torch.cat([embed(prefix), visual, embed(behind)])[None]}

    return llama, ask


def write_original(folder: Path, case: dict, model: nn.ModuleDict) -> None:
    """Shards, their index, and `config.json`."""
    places = {
        "video_tower": "model.video_tower.video_tower.",
        "image_tower": "model.image_tower.image_tower.",
        "mm_projector": "model.mm_projector.",
        "llama": "",
    }
    dtype = getattr(torch, case["dtype"])
    tensors = {
        places[part] + name: tensor.to(dtype).contiguous()
        for part, module in model.items()
        for name, tensor in module.state_dict().items()
    }
    llama, vision = case["llama"], case["vision"]
    size = llama["hidden_size"] // llama["num_attention_heads"]
    frequencies = (case["rope_theta"] ** -(torch.arange(0, size, 2) / size)).to(torch.float32)
    pickled = case["dtype"] == "float16"
    layers = [""] if pickled else [f"layers.{i}.self_attn." for i in range(llama["num_hidden_layers"])]
    for where in layers:  # one buffer of the decoder, or one in each layer, as transformers had it before
        tensors[f"model.{where}rotary_emb.inv_freq"] = frequencies.clone()

    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    weight_map = {}
    for number in range(SHARDS):
        name = f"{stem}-{number + 1:05d}-of-{SHARDS:05d}.{suffix}"
        shard = {key: tensors[key] for key in sorted(tensors)[number::SHARDS]}
        weight_map |= dict.fromkeys(shard, name)
        if pickled:
            torch.save(shard, folder / name)
        else:
            save_file(shard, folder / name, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{stem}.{suffix}.index.json", index)
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "X": ["Image", "Video"],
        "vocab_size": PIECES + case["further_rows"],
        **llama,
        "hidden_act": "silu",
        "rms_norm_eps": EPS,
        "max_position_embeddings": 512,
        "rope_theta": case["rope_theta"],
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": case["dtype"],
        "transformers_version": "4.36.2",
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "mm_image_tower": "LanguageBind/LanguageBind_Image",
        "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
        "mm_use_x_patch_token": False,
        "mm_use_x_start_end": False,
        "freeze_mm_mlp_adapter": True,
        "use_mm_proj": True,
    }
    write_json(folder / "config.json", config)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def make(name: str, case: dict, folder: Path) -> None:
    system = SYSTEM.read_text(encoding="utf-8").removesuffix("\n")
    assert hashlib.sha256(system.encode()).hexdigest() == SYSTEM_SHA256
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    llama_tokenizer.train(checkpoint, [system, *llama_tokenizer.TEXTS], PIECES)
    encoded = llama_tokenizer.encode(checkpoint, system, PROMPT, RESPONSE)
    prefix, turn, response = (torch.tensor(ids) for ids in encoded)

    rng = np.random.default_rng(case["seed"])
    frames = rng.integers(0, 256, (*case["frames"], 3), dtype=np.uint8)
    seen = np.linspace(0, len(frames) - 1, case["num_frames"]).astype(int)
    side = case["vision"]["image_size"]
    pixels = {"video": np.moveaxis(pipeline(frames[seen], side), -1, 1)}
    if case["images"]:
        pixels["image"] = rng.normal(size=(3, side, side)).astype(np.float32)
    model, ask = (video_llava if name.startswith("video_llava") else llava_llama)(checkpoint, case, prefix)

    arrays = {
        "case": np.array(json.dumps({**case, "prompt": PROMPT, "response": RESPONSE})),
        "frames": frames,
        "prefix": prefix,
        "turn": turn,
        "response": response,
        "pixels": pixels["video"],
    }
    if case["images"]:
        arrays["image_pixels"] = pixels["image"]
    for kind, values in pixels.items():
        asked = ask(kind, torch.from_numpy(values).to(torch.float64))
        arrays |= {f"{kind}/{key}": value for key, value in figures(model, asked, turn, response).items()}
    np.savez_compressed(folder / "expected.npz", **{key: stored(value) for key, value in arrays.items()})


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "goldens" / "folders"
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    logging.disable_progress_bar()
    for name, case in CASES.items():
        shutil.rmtree(out / name, ignore_errors=True)
        make(name, case, out / name)


if __name__ == "__main__":
    main()
