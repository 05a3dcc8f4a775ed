"""Reading an image, and the image pipeline against goldens that torch made (tests/parity/make_image_goldens.py)."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isrdpo_jax.data.images import PADDING, is_image, preprocess_image, read_image
from isrdpo_jax.data.pixels import MEAN, STD
from isrdpo_jax.errors import VideoError

GOLDENS = Path(__file__).parents[2] / "goldens" / "images.npz"
CASES = sorted({key.split("/")[0] for key in np.load(GOLDENS)})


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_torch(case):
    with np.load(GOLDENS) as goldens:
        ours = preprocess_image(goldens[f"{case}/image"], int(goldens[f"{case}/size"]))
        expected = goldens[f"{case}/pixels"]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_a_wide_image_lies_in_the_middle_of_the_mean_colour():
    image = noise(3, 8, 3)
    seen = np.rint((preprocess_image(image, 8) * STD + MEAN) * 255)
    np.testing.assert_array_equal(PADDING, (122, 116, 104))
    np.testing.assert_array_equal(seen[2:5], image)
    np.testing.assert_array_equal(seen[[0, 1, 5, 6, 7]], np.broadcast_to(PADDING, (5, 8, 3)))


def test_shrinking_averages():
    """With antialiasing, a fine pattern becomes its mean."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    seen = preprocess_image(stripes, 8) * STD + MEAN
    np.testing.assert_allclose(seen[1:-1], 0.5, atol=0.01)


def test_overshoot_is_not_clipped():
    edge = np.zeros((10, 10, 3), np.uint8)
    edge[:, 5:] = 255
    seen = preprocess_image(edge, 37) * STD + MEAN
    assert seen.max() > 1.03 and seen.min() < -0.03


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(noise(5, 7).astype(np.uint16)).save(path)
    else:
        Image.fromarray(noise(5, 7, 3)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (5, 7, 3) and image.dtype == np.uint8


def test_a_lossless_image_is_read_exactly(tmp_path):
    image = noise(5, 7, 3)
    Image.fromarray(image).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image)


def torn(path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.write_bytes(b""), "corrupt"),
        (lambda path: path.write_text("<html>not found</html>"), "corrupt"),
        (lambda path: path.write_bytes(b"P6\n5 wide\n255\n"), "corrupt"),
        (torn, "corrupt"),
        (lambda path: path.mkdir(), "unreadable"),
    ],
    ids=["missing", "nothing", "text", "header", "torn", "folder"],
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_cannot_be_read_says_why(tmp_path, spoil, reason, suffix):
    path = tmp_path / f"image.{suffix}"
    spoil(path)
    with pytest.raises(VideoError) as error:
        read_image(path)
    assert (error.value.path, error.value.reason) == (str(path), reason)


def test_an_image_is_told_by_its_name(tmp_path):
    (tmp_path / "frames.png").mkdir()
    assert is_image(Path("a.JPG")) and is_image(Path("b.webp"))
    assert not any(map(is_image, (Path("a.mp4"), Path("a.gif"), Path("jpg"), tmp_path / "frames.png")))
