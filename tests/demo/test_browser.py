"""The page in a browser, at the width of a desk and of a phone: upload, fit, inspect, slide, look."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make test-system installs it"),
]
#: Where pictures of the page go, if a folder is named, to be looked at.
SHOTS = os.environ.get("ODDPATCH_SHOTS")
PATIENCE = 240_000  # milliseconds: what is waited for comes, however slow the machine is
playwright.expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of `oddpatch demo` with few boards, and the folder of its temporary files."""
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    boards = f"Boards({str(folder / 'boards')!r}, 12, 3, 1)"
    code = f"from oddpatch.demo import server; server.serve(None, {port}, server.{boards})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder), "HOME": str(folder)}
    )
    for _ in range(2400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", folder
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE / 1000)
    assert not list(folder.glob("oddpatch-demo-*"))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900), (400, 850)], ids=["desk", "phone"])
def page(request, browser, served):
    """The page in a window of its own; nothing may go wrong in it, or be asked of another server."""
    address, _ = served
    opened = browser.new_page(viewport=dict(zip(("width", "height"), request.param, strict=True)))
    opened.set_default_timeout(PATIENCE)
    wrong, asked = [], []
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    opened.width = request.param[0]
    yield opened
    opened.close()
    assert not [text for text in wrong if "413" not in text]
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked


def shoot(page, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(SHOTS) / f"{name}-{page.width}.png")


def fits_the_window(page):
    """Nothing is cut off at the right."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def number_of(page, label):
    return page.get_by_test_id("stMetric").filter(has_text=label).get_by_test_id("stMetricValue").inner_text()


#: Remembers the most metrics of one label that were ever on the page at a time.
WATCH = """label => {
    window.most = 0;
    const count = () => {
        const metrics = [...document.querySelectorAll('[data-testid="stMetric"]')];
        window.most = Math.max(window.most, metrics.filter(one => one.textContent.includes(label)).length);
    };
    new MutationObserver(count).observe(document.body, {childList: true, subtree: true});
}"""


def upload(page, files):
    # A form that was sent is emptied when its run ends, and files that are given before that with it.
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    playwright.expect(page.get_by_test_id("stFileChip")).to_have_count(0)
    page.locator("input[type=file]").last.set_input_files(files)
    page.get_by_test_id("stFileChip").first.wait_for()
    playwright.expect(page.get_by_test_id("stFileChipIconSpinner")).to_have_count(0)


def test_boards_are_fitted_inspected_and_looked_at(page):
    page.get_by_role("button", name="Fit").wait_for()
    assert fits_the_window(page)
    shoot(page, "begin")
    page.get_by_role("button", name="Fit").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.get_by_test_id("stProgress").first.wait_for()
    shoot(page, "fit")
    page.get_by_text("Defects found").wait_for()
    assert number_of(page, "Defects found").endswith(" of 4")
    assert number_of(page, "False alarms").endswith(" of 3")
    assert fits_the_window(page)
    shoot(page, "found")
    page.evaluate(WATCH, "Defects found")
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("Home")
    page.get_by_text("Back to it").wait_for()
    playwright.expect(page.get_by_test_id("stMetric").filter(has_text="Defects found").last).to_contain_text("4 of 4")
    playwright.expect(page.get_by_test_id("stMetric").filter(has_text="False alarms").last).to_contain_text("3 of 3")
    assert page.evaluate("window.most") == 1, "old numbers stood beside the new ones"
    page.get_by_role("button", name="Back to it").click()
    page.get_by_text("Back to it").wait_for(state="detached")
    page.locator(".st-key-gallery").get_by_test_id("stButton").first.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Nearest good patches").wait_for()
    playwright.expect(dialog).to_contain_text("PaDiM, which keeps no memory bank")
    assert fits_the_window(page)
    shoot(page, "part")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_own_images_are_uploaded_fitted_and_inspected_and_others_are_refused(page, served, tmp_path):
    tile = make_dataset(tmp_path, good=8, test_good=2, defects=2)
    before = {path for path in served[1].rglob("*") if "/oddpatch-demo-" not in str(path)}
    page.get_by_text("My own images").click()
    upload(page, sorted((tile / "train/good").glob("*.png")))
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("8 good images to learn from").wait_for()

    noise = np.random.default_rng(0).integers(0, 255, (3600, 3600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "huge.bmp")  # 39 MB
    (tmp_path / "note.png").write_text("no image")
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    (tmp_path / "cut.png").write_bytes((tile / "train/good/000.png").read_bytes()[:500])
    upload(page, [tmp_path / name for name in ("huge.bmp", "note.png", "page.html", "cut.png")])
    page.get_by_text("File must be 32").first.wait_for()
    shoot(page, "huge")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("page.html: no image by its name").wait_for()
    page.get_by_text("note.png: not an image").wait_for()
    page.get_by_text("cut.png: truncated").wait_for()
    # Of the file that the browser kept back nothing is left but what stands there before and after.
    playwright.expect(page.get_by_text("huge.bmp")).to_have_count(0)
    assert page.get_by_text("send no file of more than 32 MB").first.is_visible()
    shoot(page, "refused")

    page.get_by_role("combobox").first.click()
    page.get_by_role("option", name="PatchCore", exact=True).click()
    page.get_by_role("button", name="Fit").click()
    page.get_by_text("These parts are").wait_for()
    upload(page, sorted((tile / "test/spot").glob("*.png")))
    page.get_by_text("defective", exact=True).click()
    page.get_by_role("button", name="Inspect").click()
    page.get_by_text("Defects found").wait_for()
    assert number_of(page, "Defects found") == "2 of 2"
    page.locator(".st-key-gallery").get_by_test_id("stButton").first.get_by_role("button").click()
    page.get_by_role("dialog").get_by_text("odd patch, distance").first.wait_for()
    assert fits_the_window(page)
    shoot(page, "own-part")
    after = {path for path in served[1].rglob("*") if "/oddpatch-demo-" not in str(path)}
    assert {path for path in after - before if path.is_file() and ".cache" not in path.parts} == set()
