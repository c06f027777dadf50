"""The page, click by click, without a browser: what it shows is what `oddpatch predict` says."""

import gc
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_dataset, restore_tiny_backbone, use_tiny_backbone
from narrowing import present
from patience import PATIENCE
from PIL import Image
from typer.testing import CliRunner

import oddpatch
from oddpatch.cli.main import app
from oddpatch.demo import server, sessions, uploads
from oddpatch.demo.boards import Boards

APP = Path(oddpatch.__file__).parent / "demo/app.py"


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Of PatchCore on tiles, with a tiny backbone; its category has test images."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        settings = {"data.resize": 48, "data.num_workers": 0}
        tile = make_dataset(folder / "data", good=8, test_good=3, defects=2)
        oddpatch.AnomalyDetector.fit(tile, model="patchcore", **settings).save(folder / "housing")
    return folder / "housing"


@pytest.fixture
def page(real_page, monkeypatch):
    """As `real_page`; every backbone of a run is the tiny one."""
    restore_tiny_backbone(monkeypatch)
    return real_page


@pytest.fixture
def real_page(tmp_path, monkeypatch):
    """Opens the page: `page(run)`; `page.folder` is that of all sessions."""
    testing = pytest.importorskip("streamlit.testing.v1")
    monkeypatch.setattr(server, "sessions", sessions.Sessions())

    def open_page(run=None):
        setting = sessions.Setting(tmp_path / "sessions", Boards(str(tmp_path / "cache"), 6, 2, 1), run and str(run))
        setting.folder.mkdir(exist_ok=True)
        monkeypatch.setattr(server, "setting", setting, raising=False)
        return testing.AppTest.from_file(str(APP), default_timeout=PATIENCE).run()

    opens: Any = open_page
    opens.folder = tmp_path / "sessions"
    return opens


def as_files(folder):
    return [(path.name, path.read_bytes(), "image/png") for path in sorted(folder.glob("*.png"))]


def counts(page):
    return {metric.label: metric.value for metric in page.metric}


def verdicts(page):
    """Of the buttons of the gallery, in order."""
    return [button.label for button in page.button if str(button.key).startswith("look ")]


def texts(page):
    return " ".join(element.value for kind in ("markdown", "caption", "warning") for element in page.get(kind))


def test_a_run_is_shown_with_what_predict_says_of_its_test_images(page, run):
    opened = page(run)
    assert not opened.exception
    session = opened.session_state["session"]
    shown = {one.item.path: one for one in session.found}
    assert len(shown) == 3 + 2 * 2
    told = CliRunner().invoke(app, ["predict", str(run), *map(str, shown)], catch_exceptions=False)
    records = {record["path"]: record for record in map(json.loads, told.stdout.splitlines())}
    assert len(records) == len(shown)
    for path, one in shown.items():
        expected = {**records[str(path)], "path": one.item.name}
        assert {**one.record, "latency_ms": 0} == {**expected, "latency_ms": 0}
    alarms = {path for path, one in shown.items() if records[str(path)]["is_anomalous"]}
    found = sum(shown[path].item.label == 1 for path in alarms)
    assert counts(opened) == {
        "Defects found": f"{found} of 4", "Defects missed": str(4 - found),
        "False alarms": f"{len(alarms) - found} of 3", "Good parts passed": str(3 - len(alarms) + found),
    }  # fmt: skip
    assert opened.slider(key="threshold").value == records[str(next(iter(shown)))]["threshold"]


def test_the_slider_moves_the_counts_and_the_verdicts_and_goes_back(page, run):
    opened = page(run)
    before, own = counts(opened), opened.slider(key="threshold").value
    scores = sorted(one.score for one in opened.session_state["session"].found)
    opened.slider(key="threshold").set_value((scores[0] + scores[1]) / 2).run()
    assert not opened.exception
    labels = [one.item.label for one in opened.session_state["session"].found]
    lowest = min(opened.session_state["session"].found, key=lambda one: one.score)
    assert lowest.item.label == 0
    assert counts(opened)["Defects found"] == f"{sum(labels)} of 4"
    assert counts(opened)["False alarms"] == "2 of 3"
    assert sum("false alarm" in verdict for verdict in verdicts(opened)) == 2
    opened.segmented_control(key="kind").set_value("False alarms").run()
    assert len(verdicts(opened)) == 2
    opened.segmented_control(key="kind").set_value("All").run()
    opened.button(key="reset").click().run()
    assert opened.slider(key="threshold").value == own
    assert counts(opened) == before


def test_one_part_is_shown_with_its_regions_and_the_nearest_good_patches(page, run):
    opened = page(run)
    first = next(button for button in opened.button if str(button.key).startswith("look "))
    first.click().run()
    assert not opened.exception
    assert counts(opened)["Decision"] == "anomalous"
    assert counts(opened)["Truth"] == "defective"
    assert "p-value" in counts(opened)
    assert len(opened.dataframe) == 1
    assert opened.dataframe[0].value["pixels"].iloc[0] > 0
    captions = [caption for image in opened.get("image") for caption in image.captions]
    assert sum(caption.startswith("odd patch, distance") for caption in captions) == 3
    assert sum(caption.startswith("nearest good patch, in 00") for caption in captions) == 3


def test_uploads_are_inspected_and_a_label_makes_them_count(page, run, tiles):
    opened = page(run)
    before = counts(opened)
    opened.file_uploader(key="parts").set_value(as_files(tiles / "tile/test/spot"))
    opened.radio(key="label").set_value("defective")
    next(button for button in opened.button if button.label == "Inspect").click().run()
    assert not opened.exception
    assert counts(opened)["Defects found"].endswith(" of 8")
    assert before["Defects found"].endswith(" of 4")
    opened.file_uploader(key="parts").set_value(as_files(tiles / "tile/test/good"))
    opened.radio(key="label").set_value("not known")
    next(button for button in opened.button if button.label == "Inspect").click().run()
    assert counts(opened)["Anomalous, truth unknown"].endswith(" of 5")
    assert counts(opened)["Defects found"].endswith(" of 8")


def test_how_much_of_the_images_is_inspected_is_said(page, run):
    opened = page(run)
    assert "in part" not in texts(opened)
    session = opened.session_state["session"]
    session.found[0].record["inspected"] = 0.3
    opened.run()
    assert f"1 of {len(session.found)} images were inspected in part" in texts(opened)


def test_hostile_uploads_are_refused_by_name_and_touch_nothing_outside_the_session(page, run):
    opened = page(run)
    outside = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, "PNG")
    opened.file_uploader(key="parts").set_value(
        [
            ("../../../escape.png", file.getvalue(), "image/png"),
            ("page.html", b"<script>alert(1)</script>", "image/png"),
            ("cut.png", file.getvalue()[:60], "image/png"),
            ("**[x](http://y)**.png", b"no image", "image/png"),
        ]
    )
    next(button for button in opened.button if button.label == "Inspect").click().run()
    assert not opened.exception
    refused = [warning.value for warning in opened.warning]
    assert len(refused) == 3
    assert "page\\.html\\: no image by its name" in refused[0]
    assert "**[x]" not in refused[2]  # shown as it is, not as a link
    session = opened.session_state["session"]
    assert [path.name for path in session.folder.rglob("*") if path.is_file()] == ["00000.png"]
    assert {path.name for path in page.folder.iterdir()} == {session.folder.name}
    assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == outside


def test_a_part_that_cannot_be_inspected_is_named_and_the_others_are_shown(page, run, monkeypatch):
    monkeypatch.setattr(uploads, "read_planes", lambda *_, **__: None)  # what suits no method is seen later
    opened = page(run)
    deep = io.BytesIO()
    Image.fromarray(np.full((40, 40), 1.5, np.float32)).save(deep, "TIFF")
    opened.file_uploader(key="parts").set_value([("deep.tif", deep.getvalue(), "image/tiff")])
    next(button for button in opened.button if button.label == "Inspect").click().run()
    assert not opened.exception
    assert any("deep\\.tif\\: float values" in warning.value for warning in opened.warning)
    assert str(page.folder) not in texts(opened)


def test_files_that_were_turned_away_while_being_sent_are_counted_in_a_line(page, run, tiles):
    opened = page(run)
    opened.session_state["session"].turned_away = 9500
    opened.file_uploader(key="parts").set_value(as_files(tiles / "tile/test/spot"))
    next(button for button in opened.button if button.label == "Inspect").click().run()
    assert [warning.value.partition("\\:")[0] for warning in opened.warning] == ["9500 files refused while being sent"]
    assert opened.session_state["session"].turned_away == 0


def test_more_visitors_than_there_is_room_for_are_asked_to_wait(page, run, monkeypatch):
    monkeypatch.setattr(sessions, "SESSIONS", 0)
    opened = page(run)
    assert "people are using this demo" in opened.warning[0].value
    assert not opened.metric


def test_own_images_need_five_good_ones_before_anything_is_fitted(page, tiles):
    opened = page()
    opened.segmented_control(key="source").set_value("My own images").run()
    assert opened.button(key="fit").disabled
    opened.file_uploader(key="good").set_value(as_files(tiles / "tile/train/good")[:4])
    next(button for button in opened.button if button.label == "Add").click().run()
    assert opened.button(key="fit").disabled
    assert "Add 1 more image" in texts(opened)
    masks = as_files(tiles / "tile/ground_truth/spot")[:1]
    assert masks[0][0] == "000_mask.png"
    opened.file_uploader(key="good").set_value([*as_files(tiles / "tile/train/good")[4:6], *masks])
    next(button for button in opened.button if button.label == "Add").click().run()
    assert not opened.exception
    assert not opened.button(key="fit").disabled
    assert "mask of 000" in opened.warning[0].value.replace("\\", "")
    assert len(list(page.folder.glob("*/good/*"))) == 6  # which is what is fitted to
    assert "6 good images" in opened.success[0].value


class Finished:
    """A fit that has ended: with the run of the tests, or an error."""

    def __init__(self, run, error=None):
        self.run, self.error, self.running, self.done, self.total, self.what = run, error, False, 1, 1, "fitting"
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


def fitted(page, tiles, monkeypatch, make):
    """The page after six good images were uploaded and fitted to, by what `make` returns for Fit's arguments."""
    from oddpatch.demo import page as module

    asked = []

    def fit(images, settings, run, boards=None):
        asked.append((images, settings, run, boards))
        return make(run)

    monkeypatch.setattr(module, "Fit", fit)
    opened = page()
    opened.segmented_control(key="source").set_value("My own images").run()
    opened.file_uploader(key="good").set_value(as_files(tiles / "tile/train/good")[:6])
    next(button for button in opened.button if button.label == "Add").click().run()
    opened.selectbox(key="method").set_value("patchcore").run()
    opened.button(key="fit").click().run()
    return opened, asked[0]


def test_what_was_chosen_is_fitted_and_the_choice_stays(page, run, tiles, monkeypatch):
    opened, (images, settings, folder, boards) = fitted(page, tiles, monkeypatch, lambda _: Finished(run))
    assert not opened.exception
    assert (settings["model"], settings["backbone"], boards) == ("patchcore", "effnet_lite0", None)
    assert len(list(images.iterdir())) == 6
    assert folder.parent == opened.session_state["session"].folder
    assert opened.selectbox(key="method").value == "patchcore"
    assert opened.segmented_control(key="source").value == "My own images"
    assert not opened.metric  # nothing to inspect yet
    opened.file_uploader(key="parts").set_value(as_files(tiles / "tile/test/spot"))
    next(button for button in opened.button if button.label == "Inspect").click().run()
    assert counts(opened)["Anomalous, truth unknown"].endswith(" of 4")
    assert len(list(images.iterdir())) == 6  # what is inspected is not learned from


def test_an_error_of_a_fit_is_one_line_with_the_name_that_was_uploaded(page, tiles, monkeypatch):
    def fail(run):
        return Finished(run, f"{run.parent}/good/00002.png: is damaged: replace it")

    opened, _ = fitted(page, tiles, monkeypatch, fail)
    assert [warning.value for warning in opened.warning] == ["002\\.png\\: is damaged\\: replace it"]
    assert not opened.button(key="fit").disabled


def test_a_fit_is_cancelled(page, tiles, monkeypatch):
    def never(run):
        fit = Finished(run)
        fit.running = True
        return fit

    opened, _ = fitted(page, tiles, monkeypatch, never)
    fit = opened.session_state["session"].fit
    assert opened.button(key="fit").disabled
    opened.button(key="cancel").click().run()
    assert fit.cancelled
    assert opened.session_state["session"].fit is None
    assert not opened.button(key="fit").disabled


@pytest.mark.slow
def test_boards_are_rendered_fitted_and_inspected(real_page):
    opened = real_page()
    opened.button(key="fit").click().run()
    fit = opened.session_state["session"].fit
    while fit.running:
        time.sleep(0.2)
    opened.run()
    assert fit.error is None
    opened.run()  # the fit is taken over in one turn, and images are inspected in the next
    assert not opened.exception
    assert counts(opened)["Defects found"].endswith(" of 4")


def test_the_folder_of_a_session_goes_with_it(tmp_path):
    opened = sessions.Sessions()
    session = present(opened.open("a", tmp_path))
    assert session.folder.stat().st_mode & 0o777 == 0o700
    (session.folder / "good").mkdir()
    fit: Any = Finished(session.folder)
    session.fit = fit
    folder = session.folder
    assert len(opened) == 1
    assert folder.is_dir()
    del session
    gc.collect()
    assert len(opened) == 0
    assert not folder.exists()
    assert fit.cancelled


def test_a_session_takes_so_many_files_and_bytes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "FILES", 3)
    monkeypatch.setattr(sessions, "BYTES", 100)
    session = present(sessions.Sessions().open("a", tmp_path))
    assert [session.expect(str(number), 10) for number in range(6)] == [True] * 4 + [False] * 2
    assert session.turned_away == 2
    assert session.expect("0", 10)  # sent once more
    session.waiting.clear()
    assert [session.expect(str(number), 60) for number in range(3)] == [True, True, False]
