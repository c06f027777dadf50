"""Labels of other tools: COCO JSON, and manifests of Amazon Lookout for Vision."""

import json

import numpy as np
import pytest
from conftest import write_image
from PIL import Image
from test_converting import convert, picture, tally

from oddpatch.datatools.converting import Options, make_plans
from oddpatch.errors import ConfigError, DataError

pytest.importorskip("pycocotools")


def coco(folder, annotations, count=4, size=(8, 6), names=("scratch", "dent"), **changes):
    """`folder/a.json` with images 0.png, 1.png, ... beside it."""
    for number in range(count):
        picture(folder / f"{number}.png", size=size)
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]} for n in range(count)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
        "annotations": [{"id": n, "iscrowd": 0, **one} for n, one in enumerate(annotations)],
        **changes,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def masks(found):
    return {s.path.stem: np.asarray(Image.open(s.mask_path)) > 0 for s in found.test if s.label}


def test_polygons_rle_and_boxes(tmp_path):
    shape = np.zeros((6, 8), np.uint8)
    shape[2:4, 1:6] = 1
    flat = shape.ravel(order="F")  # columns first, runs beginning with zeros
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    from pycocotools import mask

    packed = mask.encode(np.asfortranarray(shape))
    source = coco(
        tmp_path / "parts",
        [
            {"image_id": 0, "category_id": 1, "segmentation": [[1, 2, 6, 2, 6, 4, 1, 4]]},
            {"image_id": 1, "category_id": 2, "segmentation": {"size": [6, 8], "counts": runs}},
            {"image_id": 2, "category_id": 1, "segmentation": {"size": [6, 8], "counts": packed["counts"].decode()}},
            {"image_id": 3, "category_id": 1, "bbox": [1, 2, 5, 2]},
            {"image_id": 3, "category_id": 2, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1], [7, 5, 8, 5, 8, 6, 7, 6]]},
        ],
        count=7,
    )
    found = convert("coco", source, tmp_path / "out", test_share=0.34)["parts"]
    assert len(found.train) == 2
    assert tally(found.test) == {"dent": 1, "good": 1, "mixed": 1, "scratch": 2}
    drawn = masks(found)
    for name in "012":
        np.testing.assert_array_equal(drawn[name], shape > 0, name)
    both = shape.copy()
    both[0, 0] = both[5, 7] = 1
    np.testing.assert_array_equal(drawn["3"], both > 0)
    notes = json.loads((tmp_path / "out/parts/oddpatch_manifest.json").read_text())["notes"]
    assert "1 annotation without a segmentation: the mask is the whole box." in notes


def test_images_are_found_beside_the_json_below_the_source_or_by_their_only_name(tmp_path):
    source = tmp_path / "parts"
    coco(source / "images", [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2]}])
    (source / "annotations").mkdir()
    (source / "images/a.json").rename(source / "annotations/a.json")
    found = convert("coco", source, tmp_path / "out")["parts"]
    assert len(found.train) + len(found.test) == 4
    picture(source / "more/0.png")
    with pytest.raises(DataError, match=r"image 0\.png may be .*/images/0\.png or .*/more/0\.png"):
        make_plans("coco", source, Options())


def test_a_category_called_good_is_no_defect(tmp_path):
    source = coco(tmp_path / "parts", [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2]}], names=("ok",))
    assert tally(convert("coco", source, tmp_path / "out", test_share=0)["parts"].test) == {}


@pytest.mark.parametrize(
    ("annotation", "changes", "told"),
    [
        ({"image_id": 9, "category_id": 1}, {}, "an annotation is of image 9, which it lacks"),
        ({"image_id": 0, "category_id": 7}, {}, r"cannot be read as COCO JSON \(KeyError\(7\)\)"),
        ({"image_id": 0, "category_id": 1}, {"images": [{"id": 0, "file_name": "0.png", "width": 9, "height": 6}]},
         "has 6 x 8 pixels, but its JSON says 6 x 9"),
        ({"image_id": 0, "category_id": 1}, {"images": [{"id": 0, "file_name": "../x.png", "width": 8, "height": 6}]},
         "leads out of"),
        ({"image_id": 0, "category_id": 1}, {"images": [{"id": 0, "file_name": "x.png", "width": 8, "height": 6}]},
         "image x.png is not there: put the images beside it as it names them"),
        ({"image_id": 0, "category_id": 1}, {"categories": 3}, "cannot be read as COCO JSON"),
    ],
)  # fmt: skip
def test_a_wrong_document_is_one_line(tmp_path, annotation, changes, told):
    source = coco(tmp_path / "parts", [{"bbox": [0, 0, 2, 2], **annotation}], **changes)
    with pytest.raises(DataError, match=told):
        make_plans("coco", source, Options())


@pytest.mark.parametrize(
    "shape",
    [
        [[1, 2]],
        [["a", 1, 2, 3, 4, 5]],
        [[0, 0, float("nan"), 1, 1, 1]],
        [[0, 0, 1e300, 1, 1, 1]],
        "text",
        {"counts": [48]},
        {"size": [5, 5], "counts": [25]},
        {"size": [6, 8], "counts": [1, 2, 3]},
        {"size": [6, 8], "counts": [-48, 96]},
        {"size": [6, 8], "counts": [10**9, 10**9]},
        {"size": [6, 8], "counts": "=33000a"},  # =33000a0 is a square
        {"size": [6, 8], "counts": "!!"},
    ],
)
def test_a_wrong_segmentation_is_one_line(tmp_path, shape):
    source = coco(tmp_path / "parts", [{"image_id": 0, "category_id": 1, "segmentation": shape}])
    with pytest.raises(DataError, match=r"0\.png: a segmentation cannot be read \(.*\): export it again"):
        convert("coco", source, tmp_path / "out")
    assert not (tmp_path / "out/parts").exists()


def test_without_pycocotools_it_says_what_to_install(tmp_path, monkeypatch):
    source = coco(tmp_path / "parts", [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2]}])
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"needs pycocotools: pip install 'oddpatch\[coco\]'"):
        make_plans("coco", source, Options())


def test_a_folder_without_labels_is_one_line(tmp_path):
    picture(tmp_path / "parts/0.png")
    (tmp_path / "parts/other.json").write_text("[]")
    with pytest.raises(DataError, match=r"no \*\.json with images, annotations and categories"):
        make_plans("coco", tmp_path / "parts", Options())
    with pytest.raises(DataError, match=r"no \*\.manifest with a line for each image"):
        make_plans("lookout", tmp_path / "parts", Options())


COLOURS = {
    "0": {"class-name": "BACKGROUND", "hex-color": "#ffffff", "confidence": 0.0},
    "1": {"class-name": "scratch", "hex-color": "#2ca02c", "confidence": 0.0},
    "2": {"class-name": "dent", "hex-color": "#1f77b4", "confidence": 0.0},
}


def line(path, normal, mask=None):
    """As the service's guide shows it; the label's number says nothing."""
    about = {"confidence": 1, "job-name": "labeling-job/x", "human-annotated": "yes", "creation-date": "2021-10-12"}
    content = {
        "source-ref": f"s3://bucket/parts/{path}",
        "anomaly-label": 1,
        "anomaly-label-metadata": {
            **about, "class-name": "normal" if normal else "anomaly", "type": "groundtruth/image-classification",
        },
    }  # fmt: skip
    if mask:
        content["anomaly-mask-ref"] = f"s3://bucket/parts/{mask}"
        content["anomaly-mask-ref-metadata"] = {
            **about, "internal-color-map": COLOURS, "type": "groundtruth/semantic-segmentation",
        }  # fmt: skip
    return json.dumps(content)


def lookout(folder, *patches):
    """Two manifests; each patch is a class by rows of the mask."""
    rng = np.random.default_rng(0)
    for name in ("normal/a.png", "normal/b.png", "normal/c.png", "anomaly/a.png", "anomaly/b.png", "anomaly/d.png"):
        write_image(folder / name, rng)
    for name, rows in (("a", {5: "#2ca02c"}), ("b", {3: "#2ca02c", 9: "#1f77b4"})):
        mask = np.full((48, 48, 3), 255, np.uint8)
        for row, colour in rows.items():
            mask[row, 4:9] = list(bytes.fromhex(colour[1:]))
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / f"masks/{name}.png")
    train = [line("normal/a.png", True), "", line("normal/b.png", True), line("anomaly/a.png", False, "masks/a.png")]
    test = [line("normal/c.png", True), line("anomaly/b.png", False, "masks/b.png"), line("anomaly/d.png", False)]
    (folder / "train.manifest").write_text("\n".join(train) + "\n")
    (folder / "test.manifest").write_text("\n".join(test) + "\n")
    return folder


def test_a_lookout_manifest(tmp_path):
    found = convert("lookout", lookout(tmp_path / "parts"), tmp_path / "out")["parts"]
    assert [sample.path.name for sample in found.train] == ["a.png", "b.png"]
    assert tally(found.test) == {"anomaly": 1, "good": 1, "mixed": 1, "scratch": 1}
    by_type = {s.defect_type: s.mask_path for s in found.test}
    rows = {
        kind: np.flatnonzero(np.asarray(Image.open(path)).any(1)).tolist() for kind, path in by_type.items() if path
    }
    assert rows == {"scratch": [5], "mixed": [3, 9]}
    manifest = json.loads((tmp_path / "out/parts/oddpatch_manifest.json").read_text())
    assert manifest["left_out"] == ["test.manifest: unknown suffix", "train.manifest: unknown suffix"]


def test_one_manifest_is_split_by_a_share(tmp_path):
    source = lookout(tmp_path / "parts")
    (source / "test.manifest").unlink()
    (source / "train.manifest").rename(source / "all.manifest")
    found = convert("lookout", source, tmp_path / "out", test_share=0.5)["parts"]
    assert (len(found.train), tally(found.test)) == (1, {"good": 1, "scratch": 1})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "all.manifest, line 1: is not as Lookout for Vision writes it"),
        ("[]", "all.manifest, line 1: "),
        ('{"source-ref": "s3://b/normal/a.png"}', "does not say whether the image is normal"),
        (line("normal/zz.png", True), r"s3://bucket/parts/normal/zz\.png is not there: copy it by `aws s3 cp` into"),
        (line("../../etc/passwd", True), "leads out of|is not there"),
        (line("normal/a.png", False, "normal/a.png"), "shows none of scratch, dent, in the colours of the manifest"),
        (
            line("anomaly/a.png", False, "masks/a.png").replace("#2ca02c", "green"),
            "is not as Lookout for Vision writes it",
        ),
    ],
)
def test_a_wrong_line_is_one_line(tmp_path, text, told):
    source = lookout(tmp_path / "parts")
    for name in ("train", "test"):
        (source / f"{name}.manifest").unlink()
    (source / "all.manifest").write_text(text)
    with pytest.raises(DataError, match=told) as error:
        make_plans("lookout", source, Options())
    assert "\n" not in str(error.value)
