"""Loads an exported folder with transformers and says what it computes. Nothing of ours.

    python tests/parity/load_port.py FOLDER INPUTS.npz OUTPUTS.npz

INPUTS: pixels [t, 3, S, S], before int[...], after int[...]: the tokens around the video. OUTPUTS: logits, the names of
missing and unexpected tensors, the tokens of `a <video> b`, and the pixels of a black image.
"""

import sys

import numpy as np
import torch
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration, VideoLlavaImageProcessor


def main() -> None:
    folder, inputs, outputs = sys.argv[1:]
    model, info = VideoLlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    with np.load(inputs) as arrays:
        pixels, before, after = (torch.from_numpy(arrays[name]) for name in ("pixels", "before", "after"))
    visual = torch.full((model.config.video_seq_length,), model.config.video_token_index)
    ids = torch.cat([before, visual, after])[None]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, pixel_values_videos=pixels[None]).logits[0]
    size = model.config.vision_config.image_size
    images = VideoLlavaImageProcessor.from_pretrained(folder)  # the one for videos wants torchvision, and is alike
    image = images(np.zeros((size, 2 * size, 3), np.uint8), return_tensors="np")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    strange = [
        f"{kind} {name}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]
    ]
    np.savez(
        outputs,
        logits=logits.numpy(),
        strange=np.array(strange, dtype=str),
        text=np.array(tokenizer("a <video> b").input_ids),
        tokens=np.array(tokenizer.convert_tokens_to_ids(["<image>", "<video>", tokenizer.pad_token])),
        pixels=image["pixel_values"] if "pixel_values" in image else image["pixel_values_images"],
        eos=np.array(model.generation_config.eos_token_id),
    )


if __name__ == "__main__":
    main()
