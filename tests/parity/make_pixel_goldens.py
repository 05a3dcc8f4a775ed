"""Makes `tests/goldens/pixels.npz`: the published pixel pipeline in torch, on seeded frames. Imports nothing of ours.

    python tests/parity/make_pixel_goldens.py [OUT.npz]

Per case the file holds `NAME/frames` uint8 [t, h, w, 3], `NAME/size` and `NAME/pixels` float32 [t, s, s, 3].
"""

import sys
from pathlib import Path

import numpy as np
import torch

# name: (frames, height, width, side of the square)
CASES = {
    "landscape": (2, 54, 96, 24),
    "portrait": (1, 121, 67, 32),
    "odd": (1, 95, 131, 33),
    "half_pixel_crop_even": (1, 40, 42, 20),
    "half_pixel_crop_odd": (1, 40, 46, 20),
    "square": (2, 24, 24, 24),
    "square_shrunk": (1, 71, 71, 40),
    "landscape_of_the_right_height": (1, 32, 57, 32),
    "upscaled": (1, 20, 31, 41),
    "far_columns": (1, 5, 2700, 4),
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pipeline(frames: np.ndarray, size: int) -> np.ndarray:
    """Scale, normalise, resize the short side without antialiasing, crop the centre."""
    video = torch.from_numpy(frames).permute(3, 0, 1, 2).to(torch.float32) / 255.0  # c t h w
    mean = torch.tensor(MEAN)[:, None, None, None]
    std = torch.tensor(STD)[:, None, None, None]
    video = (video - mean) / std
    height, width = video.shape[-2:]
    if width < height:
        target = (int(np.floor(float(height) / width * size)), size)
    else:
        target = (size, int(np.floor(float(width) / height * size)))
    video = torch.nn.functional.interpolate(video, size=target, mode="bilinear", align_corners=False)
    top = round((target[0] - size) / 2.0)
    left = round((target[1] - size) / 2.0)
    return video[:, :, top : top + size, left : left + size].permute(1, 2, 3, 0).numpy()


def main() -> None:
    default = Path(__file__).parents[1] / "goldens" / "pixels.npz"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    rng = np.random.default_rng(20240704)
    arrays = {}
    for name, (count, height, width, size) in CASES.items():
        frames = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        arrays |= {f"{name}/frames": frames, f"{name}/size": np.int64(size), f"{name}/pixels": pipeline(frames, size)}
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main()
