"""Pointing at a picture of report.html shows the value of the map there, at the width of a desk and of a phone."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import make_dataset, use_tiny_backbone
from narrowing import present
from test_pipeline import run, tiny

from oddpatch.factory import restore
from oddpatch.report.html import CELLS, readable

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Where pictures of the page go, if a folder is named, to be looked at.
SHOTS = os.environ.get("ODDPATCH_SHOTS")


def test_a_large_map_keeps_its_peaks():
    values = np.random.default_rng(0).random((300, 500), dtype=np.float32)
    values[123, 456] = 7
    found = readable(values)
    assert (found["rows"], found["columns"], found["size"]) == (48, CELLS, (500, 300))
    assert found["high"] == 7
    small = readable(values[:20, :30])
    assert (small["rows"], small["columns"]) == (20, 30)


def test_an_even_map_can_be_read():
    assert readable(np.full((4, 4), 2, np.float32))["low"] == 2


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("hover")
    make_dataset(root)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "run", pictures=True))
        yield root


#: Of pictures that come in as one scrolls, a late one would push on those below it after their place was measured.
LOAD = "Promise.all([...document.images].map(one => { one.loading = 'eager'; return one.decode(); }))"


@pytest.mark.system
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make test-system installs it")
@pytest.mark.parametrize("width", [1280, 400])
def test_pointing_at_a_picture_tells_the_value_of_the_map(report, width):
    playwright = pytest.importorskip("playwright.sync_api")
    model, _ = restore(report / "run")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"file://{report}/run/report.html")
        page.evaluate(LOAD)
        article = page.locator("article", has=page.locator("[data-map]")).first
        name = article.locator("header b").inner_text().replace(" / ", "/")
        with torch.inference_mode():
            prepared, _ = model.preprocess.prepare(report / f"tile/test/{name}.png")
            expected = model(prepared[None]).anomaly_map[0, 0].numpy()
        for picture in ("image", "anomaly map"):
            img = article.get_by_alt_text(picture, exact=True)
            img.scroll_into_view_if_needed()
            box = img.bounding_box()
            page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.7 * box["height"])
            told = re.fullmatch(r"([\d.e+-]+) at (\d+), (\d+)", article.locator("output").inner_text())
            value, x, y = present(told).groups()
            assert (int(x), int(y)) == (int(0.3 * 32), int(0.7 * 32))
            assert float(value) == pytest.approx(expected[int(y), int(x)], abs=0.006 * float(expected.max()))
            assert article.locator("i").count() == article.locator("img.read").count() == 4
        if SHOTS:
            article.screenshot(path=f"{SHOTS}/hover-{width}.png")
            page.screenshot(path=f"{SHOTS}/report-{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.mouse.move(0, 0)
        assert article.locator("output").inner_text() == ""
        assert article.locator("i").count() == 0
        assert not complaints
        browser.close()
