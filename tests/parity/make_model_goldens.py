"""Makes `tests/goldens/model_<k>.npz`: transformers' CLIP and LLaMA, and the temporal tower in torch. Nothing of ours.

    python tests/parity/make_model_goldens.py [FOLDER]

Computed in float64, where transformers does not itself go down to float32 (norms, softmax, rotary angles). Each file
holds a tiny random model, its inputs and its outputs, in float32 but for the weights, which are float16:

    case                       JSON: the model's sizes (`CASES`)
    weights/NAME               by the names of the published checkpoint, under `video_tower.`, `mm_projector.`, `llama.`
    gradients/NAME             of the summed log-probs of all responses, through decoder, projector and tower
    pixels                     [b, t, 3, S, S]
    spatial, features          [b, n, d_vision] of the per-frame tower (transformers alone), and with temporal attention
    projected                  [b, n, d] of `features`
    prefix                     int[s], the text before each video
    turn/I, response/I/J       int[...], what follows video I, and its responses J
    logits/I/J, logprobs/I/J   [s + n + turn + response, v] and [response]
    loss/I/J                   transformers' own loss, with every label but the response's tokens ignored
    reference                  [i, j] log-probs of a made-up reference policy, in nats
    dpo_loss                   sigmoid DPO of the pairs (response 0 chosen, 1 rejected), their mean
    greedy/I                   int[64], what the decoder says behind turn I
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

CASES = {
    "model_0": {
        "seed": 0,
        "keep_cls": False,
        "num_frames": 4,
        "vision": {
            "image_size": 16,
            "patch_size": 8,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "hidden_act": "gelu",
        },
        "llama": {
            "vocab_size": 60,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "rope_theta": 10000.0,
    },
    "model_1": {
        "seed": 100,
        "keep_cls": True,
        "num_frames": 3,
        "vision": {
            "image_size": 18,
            "patch_size": 6,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "hidden_act": "quick_gelu",
        },
        "llama": {
            "vocab_size": 50,
            "hidden_size": 24,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
        "rope_theta": 10000.0,
    },
    "model_2": {
        "seed": 32,
        "keep_cls": True,
        "num_frames": 2,
        "vision": {
            "image_size": 12,
            "patch_size": 3,
            "hidden_size": 12,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "hidden_act": "gelu",
        },
        "llama": {
            "vocab_size": 70,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
        "rope_theta": 500.0,
    },
    "model_3": {
        "seed": 103,
        "keep_cls": False,
        "num_frames": 8,
        "vision": {
            "image_size": 20,
            "patch_size": 10,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "hidden_act": "quick_gelu",
        },
        "llama": {
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 28,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "rope_theta": 10000.0,
    },
}
EPS = 1e-5
VIDEOS, RESPONSES = 2, 2
IGNORED = -100  # transformers' label for what is not predicted
NEW_TOKENS = 64
BETA = 0.1
CLEAR = 1e-3  # between the two best logits of every greedy token, so that no rounding decides


class TemporalAttention(nn.Module):
    """Attention with biases of the frames at each position: x [positions, t, d]."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(d, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


def add_temporal_parts(tower: CLIPVisionModel, num_frames: int) -> None:
    """Gives every layer the parts that the published video tower has besides CLIP's, under their names."""
    d = tower.config.hidden_size
    for layer in tower.encoder.layers:
        layer.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, d))
        layer.temporal_attn = TemporalAttention(d, tower.config.num_attention_heads)
        layer.temporal_layer_norm1 = nn.LayerNorm(d, eps=EPS)


def temporal_features(tower: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """The last layer but one of the tower with its temporal parts: pixels [b, t, 3, S, S] -> [b, t, positions, d]."""
    b, t = pixels.shape[:2]
    x = tower.pre_layrnorm(tower.embeddings(pixels.flatten(0, 1)))
    n, d = x.shape[1:]
    for layer in tower.encoder.layers[:-1]:
        over_time = x.view(b, t, n, d).permute(0, 2, 1, 3).reshape(b * n, t, d)
        over_time = over_time + layer.temporal_embedding
        over_time = over_time + layer.temporal_attn(layer.temporal_layer_norm1(over_time))
        x = over_time.view(b, n, t, d).permute(0, 2, 1, 3).reshape(b * t, n, d)
        x = layer(x, attention_mask=None)
    return x.view(b, t, n, d)


def randomize(model: nn.Module, rng: np.random.Generator) -> None:
    """Random float16 values everywhere: no bias is 0 and no scale is 1."""
    for name, parameter in sorted(model.named_parameters()):
        values = rng.normal(size=parameter.shape)
        if "embed" in name:
            values *= 0.03  # small, as trained ones are: the norms' eps then matters
        elif parameter.ndim == 1:
            values = 0.2 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values /= np.sqrt(parameter.shape[1])
        parameter.data = torch.from_numpy(values.astype(np.float16).astype(np.float64))


def build(case: dict) -> nn.ModuleDict:
    rope = {"rope_type": "default", "rope_theta": case["rope_theta"]}
    vision = CLIPVisionConfig(**case["vision"], layer_norm_eps=EPS, attn_implementation="eager")
    llama = LlamaConfig(
        **case["llama"],
        rms_norm_eps=EPS,
        rope_parameters=rope,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    tower = CLIPVisionModel(vision)
    add_temporal_parts(tower, case["num_frames"])
    d = llama.hidden_size
    projector = nn.Sequential(nn.Linear(vision.hidden_size, d), nn.GELU(), nn.Linear(d, d))
    parts = {"video_tower": tower, "mm_projector": projector, "llama": LlamaForCausalLM(llama)}
    return nn.ModuleDict(parts).eval()


def check_silent_temporal_parts(tower: CLIPVisionModel, pixels: torch.Tensor, spatial: torch.Tensor) -> None:
    """With nothing to add, the tower above is transformers' own."""
    kept = {name: value.clone() for name, value in tower.state_dict().items()}
    for layer in tower.encoder.layers:
        for silent in (layer.temporal_embedding, *layer.temporal_attn.out_proj.parameters()):
            silent.data.zero_()
    torch.testing.assert_close(temporal_features(tower, pixels), spatial, rtol=0, atol=1e-6)
    tower.load_state_dict(kept)


def greedy(llama: LlamaForCausalLM, embeddings: torch.Tensor) -> np.ndarray:
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    out = llama.generate(inputs_embeds=embeddings[None], return_dict_in_generate=True, output_logits=True, **options)
    best = torch.cat(out.logits).topk(2).values
    gap = float((best[:, 0] - best[:, 1]).min())
    if gap < CLEAR:
        raise SystemExit(f"two logits are only {gap:.1e} apart; choose another seed")
    return out.sequences[0].numpy()


def dpo_loss(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of -log sigmoid(beta ((chosen - rejected) - (their reference's)))."""
    margin = policy.diff(dim=1) - reference.diff(dim=1)  # rejected - chosen
    return -torch.nn.functional.logsigmoid(-BETA * margin).mean()


def make(case: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(case["seed"])
    model = build(case)
    randomize(model, rng)
    tower, projector, llama = model["video_tower"], model["mm_projector"], model["llama"]
    side, first = case["vision"]["image_size"], 0 if case["keep_cls"] else 1
    pixels = rng.normal(size=(VIDEOS, case["num_frames"], 3, side, side)).astype(np.float32)
    pixels = torch.from_numpy(pixels.astype(np.float64))

    with torch.no_grad():
        spatial = tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[-2]
        spatial = spatial.unflatten(0, (VIDEOS, -1))
        check_silent_temporal_parts(tower, pixels, spatial)
    features = temporal_features(tower, pixels)[:, :, first:].flatten(1, 2)
    projected = projector(features)

    def text(low: int, high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, case["llama"]["vocab_size"], rng.integers(low, high + 1)))

    embed = llama.get_input_embeddings()
    prefix = text(3, 6)
    arrays = {
        "case": np.array(json.dumps(case)),
        "pixels": pixels,
        "spatial": spatial[:, :, first:].flatten(1, 2),
        "features": features,
        "projected": projected,
        "prefix": prefix,
    }
    summed = torch.zeros(VIDEOS, RESPONSES)
    for i in range(VIDEOS):
        turn = arrays[f"turn/{i}"] = text(2, 7)
        asked = torch.cat([embed(prefix), projected[i], embed(turn)])
        with torch.no_grad():
            arrays[f"greedy/{i}"] = greedy(llama, asked)
        for j in range(RESPONSES):
            response = text(2, 9)
            labels = torch.cat([torch.full((len(asked),), IGNORED), response])
            out = llama(inputs_embeds=torch.cat([asked, embed(response)])[None], labels=labels[None])
            logits = out.logits[0]
            predicting = logits[len(asked) - 1 : -1].log_softmax(-1)
            logprobs = predicting.gather(-1, response[:, None])[:, 0]
            arrays |= {f"response/{i}/{j}": response, f"logits/{i}/{j}": logits, f"logprobs/{i}/{j}": logprobs}
            arrays[f"loss/{i}/{j}"] = out.loss
            summed[i, j] = logprobs.sum()
    reference = arrays["reference"] = summed.detach() + torch.from_numpy(rng.normal(0.0, 3.0, summed.shape))
    arrays["dpo_loss"] = dpo_loss(summed.detach(), reference)
    summed.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:  # nothing depends on the tower's last layer and last norm
            arrays |= {f"weights/{name}": parameter.half(), f"gradients/{name}": parameter.grad}
    return {key: stored(value) for key, value in arrays.items()}


def stored(value: torch.Tensor | np.ndarray) -> np.ndarray:
    array = value.detach().numpy() if torch.is_tensor(value) else value
    return array.astype(np.float32) if array.dtype == np.float64 else array


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "goldens"
    torch.set_default_dtype(torch.float64)
    for name, case in CASES.items():
        np.savez_compressed(folder / f"{name}.npz", **make(case))


if __name__ == "__main__":
    main()
