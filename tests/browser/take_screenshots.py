"""The README's pictures: `python tests/browser/take_screenshots.py runs/shapes/report/index.html docs`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from chromium import chromium
from PIL import Image

COLOURS = 256


def main(report: str, out: str) -> None:
    address = Path(report).resolve().as_uri()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 1290}, color_scheme="light", reduced_motion="reduce")
        page.goto(address)
        page.locator("#headline").evaluate("heading => heading.scrollIntoView()")
        _save(page.screenshot(), Path(out) / "report.png")
        page = browser.new_page(viewport={"width": 1200, "height": 970}, color_scheme="dark", reduced_motion="reduce")
        page.goto(address)
        page.locator("#examples").scroll_into_view_if_needed()
        page.wait_for_selector(".card")
        page.select_option("#iteration", "2")
        page.select_option("#show", "flips")
        page.wait_for_function("() => document.querySelector('.card .head').textContent.includes('iteration 2')")
        page.locator("#examples").evaluate("heading => heading.scrollIntoView()")
        page.locator("img.strip").first.evaluate("image => image.decode()")
        _save(page.screenshot(), Path(out) / "report_examples.png")


def _save(png: bytes, path: Path) -> None:
    """With a palette: a third of the size, and no difference to see."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, kmeans=4, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
