"""Makes `tests/goldens/images.npz`: the published image pipeline in torch, on seeded images. Imports nothing of ours.

    python tests/parity/make_image_goldens.py [OUT.npz]

Resized in float64, where torch's antialiasing weights are exact to 1e-7 (in float32 to 1e-5). Per case the file holds
`NAME/image` uint8 [h, w, 3], `NAME/size` and `NAME/pixels` float32 [s, s, 3].
"""

import sys
from pathlib import Path

import numpy as np
import torch
from make_pixel_goldens import MEAN, STD

# name: (height, width, side of the square)
CASES = {
    "landscape": (54, 96, 24),
    "portrait": (121, 68, 32),
    "odd_padding": (40, 47, 20),
    "even_padding": (47, 41, 20),
    "square": (71, 71, 40),
    "square_of_the_right_size": (24, 24, 24),
    "wide_of_the_right_size": (9, 24, 24),
    "upscaled": (20, 31, 41),
    "a_line": (1, 90, 14),
    "a_pixel": (1, 1, 8),
}


def pipeline(image: np.ndarray, size: int) -> np.ndarray:
    """Pad to a square with the mean colour, scale, resize (bicubic, antialiased), normalise."""
    height, width = image.shape[:2]
    side = max(height, width)
    colour = torch.tensor([int(x * 255) for x in MEAN], dtype=torch.uint8)
    square = colour.expand(side, side, 3).clone()
    if width > height:
        top = (width - height) // 2
        square[top : top + height] = torch.from_numpy(image)
    else:
        left = (height - width) // 2
        square[:, left : left + width] = torch.from_numpy(image)
    pixels = (square.permute(2, 0, 1).to(torch.float64) / 255.0)[None]
    pixels = torch.nn.functional.interpolate(
        pixels, size=(size, size), mode="bicubic", align_corners=False, antialias=True
    )
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return ((pixels[0] - mean) / std).permute(1, 2, 0).to(torch.float32).numpy()


def main() -> None:
    default = Path(__file__).parents[1] / "goldens" / "images.npz"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    rng = np.random.default_rng(20240704)
    arrays = {}
    for name, (height, width, size) in CASES.items():
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        arrays |= {f"{name}/image": image, f"{name}/size": np.int64(size), f"{name}/pixels": pipeline(image, size)}
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main()
