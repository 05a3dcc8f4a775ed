"""The page itself: nothing fails, nothing comes from elsewhere, it fits, it can be read in light and dark."""

from __future__ import annotations

import pytest
import synthetic

from isrdpo_jax.report.build import build_report

WIDTHS = {"phone": 390, "laptop": 1280, "wall": 2200}
CONTRAST = """() => {
  const channel = c => (c /= 255, c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgba = text => text.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg, noscript, .skip") || !e.checkVisibility()) continue;
    if (![...e.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(e.outerHTML.slice(0, 120));
  }
  return faint;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = [synthetic.write_run(root, "isr"), synthetic.write_run(root, "self", context="none", seed=1)]
    return build_report(runs, tmp_path_factory.mktemp("report"), synthetic.videos)


def test_nothing_is_asked_of_a_network(report, visit):
    tab = visit(report)
    tab.page.wait_for_load_state("networkidle")
    assert tab.asked and all(url.startswith(("file:", "data:")) for url in tab.asked)
    assert tab.page.title() == "ISR-DPO: isr, self"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(report, visit, scheme):
    page = visit(report, color_scheme=scheme).page
    page.locator("#examples").scroll_into_view_if_needed()
    page.wait_for_selector(".card")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 380) == (scheme == "light")
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_fits_its_window(report, visit, width):
    page = visit(report, viewport={"width": width, "height": 900}).page
    page.locator("#examples").scroll_into_view_if_needed()
    page.wait_for_selector(".card")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_every_section(report, visit):
    page = visit(report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(10):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.hash || ''"))
    assert {"#headline", "#judge", "#examples", "#settings"} <= seen
