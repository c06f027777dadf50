import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from oddpatch.figures.canvas import DPI, MAX_BYTES, Sheet
from oddpatch.figures.curves import draw_curves
from oddpatch.figures.drawing import KINDS, Look, draw_example, draw_overview
from oddpatch.metrics import rank, rank_pixels
from oddpatch.results.examples import DRAWN_PER_TYPE, Candidates, Example
from oddpatch.types import IGNORE

LOOK = Look(low=1.0, high=9.0, threshold=5.0, threshold_name="some rule (oracle)", image_threshold=4.0)
CYAN = (0, 229, 255)


def example(score=6.0, label=1, defect_type="scratch", index=0, size=(64, 64), mapped=True, mask="box", **changes):
    height, width = size
    values = np.full(size, 1.0, dtype=np.float32)
    values[height // 4 : height // 2, width // 4 : width // 2] = score
    masks = {
        "box": (values > 1).astype(np.uint8),
        "none": np.full(size, IGNORE, dtype=np.uint8),
        "good": np.zeros(size, dtype=np.uint8),
    }
    settings = {
        "image": np.full((*size, 3), 120, dtype=np.uint8),
        "mask": masks[mask],
        "anomaly_map": values if mapped else None,
        "score": score,
        "label": label,
        "defect_type": defect_type,
        "index": index,
        "path": f"/data/{defect_type}/{index:03}.png",
    }
    return Example(**{**settings, **changes})


def pixels(sheet, path):
    sheet.save(path)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def texts(sheet):
    found = [artist.get_text() for artist in sheet.figure.texts]
    return found + [text.get_text() for axes in sheet.figure.axes for text in axes.texts]


def panels(sheet):
    """Boxes of the pictures and axes on a sheet, in pixels, row by row from the upper left corner."""
    frames = [artist for artist in sheet.figure.artists if isinstance(artist, Rectangle)]
    boxes = [artist.get_window_extent() for artist in (*frames, *sheet.figure.axes)]
    return sorted(boxes, key=lambda box: (-round(box.y1), box.x0))


def assert_nothing_clipped(sheet):
    renderer = sheet.figure.canvas.get_renderer()
    artists = [*sheet.figure.texts, *(text for axes in sheet.figure.axes for text in axes.texts)]
    artists += [label for axes in sheet.figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    for artist in artists:
        box = artist.get_window_extent(renderer)
        assert box.x0 >= -1, artist
        assert box.y0 >= -1, artist
        assert box.x1 <= sheet.width * DPI + 1, artist
        assert box.y1 <= sheet.height * DPI + 1, artist


def share_of(picture, color, tolerance=30):
    return np.all(np.abs(picture.astype(int) - color) < tolerance, axis=-1).mean()


def test_picture_says_what_is_known(tmp_path):
    sheet = draw_example(example(), LOOK, "miss", 2)
    picture = pixels(sheet, tmp_path / "a.png")
    said = " ".join(texts(sheet))
    for part in ("scratch / 000", "score 6: found", "threshold 4 (F1-max, oracle)", "some rule (oracle)", "no. 2"):
        assert part in said
    assert "anomalous image with the lowest score" in said
    assert picture.shape == (round(sheet.height * DPI), round(sheet.width * DPI), 3)
    assert len(panels(sheet)) == 5  # image, mask, heat, outline, colour bar


@pytest.mark.parametrize(
    ("score", "label", "verdict"), [(4.0, 1, "found"), (3.9, 1, "missed"), (4.0, 0, "false alarm"), (3.9, 0, "passed")]
)
def test_verdict_is_that_of_the_threshold(score, label, verdict):
    assert LOOK.verdict(example(score, label)) == verdict
    assert Look().verdict(example(score, label)) == ""


def test_heat_rises_with_the_anomaly_value_and_leaves_normal_parts_visible():
    colors = LOOK.heat(np.array([[-5.0, 1.0, 3.0, 7.0, 9.0, 99.0]], dtype=np.float32))[0]
    brightness = colors[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert colors[0, 3] == colors[1, 3] == 0
    assert (np.diff(brightness[1:5]) > 0).all()
    assert (np.diff(colors[:, 3]) >= 0).all()
    assert colors[:, 3].max() < 1
    assert np.array_equal(colors[4], colors[5])


def test_scale_does_not_depend_on_the_example(tmp_path):
    weak, strong = (draw_example(example(score), LOOK, "miss", 1) for score in (2.0, 400.0))
    bars = [[label.get_text() for label in sheet.figure.axes[-1].get_yticklabels()] for sheet in (weak, strong)]
    assert bars[0] == bars[1] == ["1", "≥9", "5"]


@pytest.mark.parametrize(("score", "outlined"), [(4.9, False), (5.1, True), (5.0, True)])
def test_outline_is_drawn_where_the_map_reaches_the_threshold(tmp_path, score, outlined):
    look = Look(low=1.0, high=9.0, threshold=5.0, threshold_name="t")
    sheet = draw_example(example(score), look, "miss", 1)
    picture = pixels(sheet, tmp_path / "a.png")
    panel = panels(sheet)[3]
    height = picture.shape[0]
    inside = picture[height - int(panel.y1) : height - int(panel.y0), int(panel.x0) : int(panel.x1)]
    assert (share_of(inside, CYAN) > 0) == outlined


def test_outline_is_closed_at_the_border_of_the_image(tmp_path):
    everywhere = example(anomaly_map=np.full((64, 64), 8, dtype=np.float32))
    sheet = draw_example(everywhere, LOOK, "miss", 1)
    picture = pixels(sheet, tmp_path / "a.png")
    panel = panels(sheet)[3]
    left = picture[picture.shape[0] - int(panel.y1) + 20 : picture.shape[0] - int(panel.y0) - 20, int(panel.x0) :][
        :, :8
    ]
    assert share_of(left, CYAN, 60) > 0.1


def test_no_threshold_no_outline():
    sheet = draw_example(example(), Look(low=1, high=9), "typical", 1)
    assert len(panels(sheet)) == 4
    assert not any("outline" in text for text in texts(sheet))


@pytest.mark.parametrize(("mask", "note"), [("none", "no mask"), ("good", "no defect"), ("box", "")])
def test_mask_panel_tells_unknown_from_empty(mask, note):
    sheet = draw_example(example(mask=mask), LOOK, "miss", 1)
    within = panels(sheet)[1]
    said = [text for text in sheet.figure.texts if within.contains(*text.get_window_extent().get_points().mean(0))]
    assert [text.get_text() for text in said if text.get_text()] == [note] * bool(note)


def test_image_only_method_gets_the_image_alone(tmp_path):
    sheet = draw_example(example(mapped=False), Look(image_threshold=4.0), "miss", 1)
    pixels(sheet, tmp_path / "a.png")
    assert len(panels(sheet)) == 1
    assert_nothing_clipped(sheet)
    overview = draw_overview({"miss": [example(mapped=False)]}, Look(), "title")
    assert len(panels(overview)) == 1


def test_warning_is_printed_on_everything():
    look = Look(warning="random weights: not a result")
    pixels_ = rank_pixels(np.arange(16.0).reshape(1, 4, 4), np.eye(4, dtype=np.uint8)[None])
    sheets = [
        draw_example(example(), look, "miss", 1),
        draw_overview({"miss": [example()]}, look, "title"),
        *draw_curves(rank([1.0, 2, 3], [0, 1, 1]), pixels_, [0.3], look.warning).values(),
    ]
    assert len(sheets) == 5
    for sheet in sheets:
        assert look.warning in texts(sheet)


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (200, 40), (16, 300)])
@pytest.mark.parametrize("name", ["plain", "a$b_{$^", "瓶子_划痕", "x" * 200])
def test_any_name_and_any_shape_fits(tmp_path, size, name):
    anomalous = example(defect_type=name, size=size, path=f"/data/{name}/{name}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sheet in (draw_example(anomalous, LOOK, "miss", 1), draw_overview({"miss": [anomalous] * 3}, LOOK, name)):
            assert_nothing_clipped(sheet)
    pixels(sheet, tmp_path / "a.png")


def test_long_text_is_shortened_to_the_room_it_has():
    sheet = Sheet(4, 1)
    sheet.write(0.1, 0.5, "word " * 100, room=2.0)
    artist = sheet.figure.texts[0]
    assert artist.get_text().endswith("…")
    assert 1.7 * DPI < artist.get_window_extent().width <= 2.0 * DPI


def test_files_stay_small_even_of_noise(tmp_path):
    generator = np.random.default_rng(0)
    noisy = [
        example(image=generator.integers(0, 256, (224, 224, 3), dtype=np.uint8), size=(224, 224), index=i)
        for i in range(4)
    ]
    chosen = dict.fromkeys(KINDS, noisy)
    for sheet in (draw_example(noisy[0], LOOK, "miss", 1), draw_overview(chosen, LOOK, "title")):
        picture = pixels(sheet, tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size < MAX_BYTES
        assert picture.std() > 20


def test_overview_shows_every_example_by_kind():
    chosen = {kind: [example(index=i) for i in range(6)] for kind in KINDS}
    sheet = draw_overview(chosen, LOOK, "bottle, PaDiM")
    assert len(panels(sheet)) == len(KINDS) * 6 * 2
    said = texts(sheet)
    assert [heading for _, heading in KINDS.values()] == [
        text for text in said if text in dict(KINDS.values()).values()
    ]
    assert said.count("scratch/003  6  found") == len(KINDS)
    assert_nothing_clipped(sheet)


def test_the_same_picture_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        draw_example(example(), LOOK, "miss", 1).save(tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_curves_are_those_of_the_metrics(tmp_path):
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=60), generator.integers(0, 2, 60)
    maps, masks = generator.normal(size=(4, 16, 16)), np.zeros((4, 16, 16), dtype=np.uint8)
    masks[:, 2:6, 3:8] = 1
    maps[masks == 1] += 1
    images, ranking = rank(scores, labels), rank_pixels(maps, masks)
    sheets = draw_curves(images, ranking, [0.3, 0.05])
    assert list(sheets) == ["roc", "precision_recall", "pro"]
    for name, sheet in sheets.items():
        pixels(sheet, tmp_path / f"{name}.png")
        assert_nothing_clipped(sheet)
    lines = {
        line.get_label(): np.asarray(line.get_xydata()) for axes in sheets["roc"].figure.axes for line in axes.lines
    }
    area = np.trapezoid(
        lines[f"image, AUROC {images.auroc():.4f}"][:, 1], lines[f"image, AUROC {images.auroc():.4f}"][:, 0]
    )
    assert area == pytest.approx(images.auroc())
    labels_ = [line.get_label() for line in sheets["pro"].figure.axes[0].lines]
    assert f"AU-PRO {ranking.au_pro(0.3):.4f} up to 0.3" in labels_
    assert f"AU-PRO {ranking.au_pro(0.05):.4f} up to 0.05" in labels_
    f1, threshold = images.f1_max()
    marked = next(
        line for line in sheets["precision_recall"].figure.axes[0].lines if f"{f1:.4f}" in str(line.get_label())
    )
    recall, precision = np.asarray(marked.get_xydata())[0]
    assert 2 * precision * recall / (precision + recall) == pytest.approx(f1)
    assert precision == pytest.approx((labels[scores >= threshold] == 1).mean())


def test_curves_that_cannot_be_are_absent():
    images, ranking = (
        rank([1.0, 2], [0, 1]),
        rank_pixels(np.arange(4.0).reshape(1, 2, 2), np.eye(2, dtype=np.uint8)[None]),
    )
    assert list(draw_curves(images, None, [0.3])) == ["roc", "precision_recall"]
    assert list(draw_curves(None, ranking, [0.3])) == ["roc", "precision_recall", "pro"]
    assert draw_curves(None, None, [0.3]) == {}


# -- which images are shown -------------------------------------------------------------------------------------------


def stream(count, types=("good", "scratch", "dent")):
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 40, count) / 2.0  # with ties
    for index, score in enumerate(scores.tolist()):
        name = types[index % len(types)]
        yield example(score, int(name != "good"), name, index, size=(4, 4))


def by_type(examples):
    scores: dict[Any, Any] = {}
    for it in examples:
        scores.setdefault(it.defect_type, []).append(it.score)
    return scores


def chosen_indices(candidates, scores):
    return {kind: [it.index for it in examples] for kind, examples in candidates.choose(scores).items()}


def test_worst_are_the_worst_in_any_order():
    examples = list(stream(200))
    anomalous = sorted((it for it in examples if it.label), key=lambda it: (it.score, it.index))
    good = sorted((it for it in examples if not it.label), key=lambda it: (-it.score, it.index))
    expected = {"miss": [it.index for it in anomalous[:3]], "false_alarm": [it.index for it in good[:3]]}
    results = []
    for order in (examples, examples[::-1], np.random.default_rng(2).permutation(np.array(examples, dtype=object))):
        candidates = Candidates(3, 4)
        for it in order:
            candidates.add(it)
        results.append(chosen_indices(candidates, by_type(examples)))
    assert results[0] == results[1] == results[2]
    assert {kind: results[0][kind] for kind in expected} == expected


def test_typical_are_nearest_to_the_median_and_of_every_type():
    examples = list(stream(3 * DRAWN_PER_TYPE))  # so few that all are drawn
    candidates = Candidates(0, 3)
    for it in examples:
        candidates.add(it)
    scores = by_type(examples)
    typical = candidates.choose(scores)["typical"]
    assert [it.defect_type for it in typical] == ["good", "dent", "scratch"]
    for it in typical:
        middle = np.median(scores[it.defect_type])
        assert abs(it.score - middle) == min(abs(score - middle) for score in scores[it.defect_type])


def test_typical_are_none_that_are_shown_already_and_go_round_the_types():
    examples = list(stream(12))
    candidates = Candidates(2, 9)
    for it in examples:
        candidates.add(it)
    chosen = candidates.choose(by_type(examples))
    assert sorted(it.index for kind in chosen.values() for it in kind) == list(range(12))
    assert [it.defect_type for it in chosen["typical"]][:6] == ["good", "dent", "scratch"] * 2


def test_what_is_kept_does_not_grow_with_the_number_of_images():
    candidates, kept = Candidates(4, 4), []
    for it in stream(2000):
        candidates.add(it)
        pools = (candidates.misses, candidates.false_alarms, *candidates.by_type.values())
        kept.append(sum(len(pool.examples()) for pool in pools))
    assert max(kept) <= 2 * 4 + 3 * DRAWN_PER_TYPE


def test_images_of_several_devices_give_the_choice_of_one():
    examples = list(stream(100))
    one, shards = Candidates(4, 6), [Candidates(4, 6) for _ in range(3)]
    for it in examples:
        one.add(it)
        shards[it.index % 3].add(it)
        shards[0].add(it if it.index < 3 else examples[0])  # a sampler that pads shows some twice
    merged = Candidates(4, 6)
    merged.merge(shards)
    assert chosen_indices(merged, by_type(examples)) == chosen_indices(one, by_type(examples))


def test_nothing_is_kept_if_nothing_is_wanted():
    candidates = Candidates(0, 0)
    for it in stream(10):
        candidates.add(it)
    assert candidates.choose(by_type(stream(10))) == {}
