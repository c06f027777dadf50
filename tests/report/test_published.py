"""Published numbers: what the package holds, and which runs they may be put beside."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished_runs import MVTEC, PATCHCORE, WIDE_RESNET, write_run
from narrowing import present

from oddpatch.report.columns import columns_of
from oddpatch.report.datasets import TEXTURES
from oddpatch.report.published import NAMES, matches, protocol_of, published
from oddpatch.report.runs import find_runs, read_run
from oddpatch.report.table import build_report, difference, is_within, published_value

ROOT = Path(__file__).parents[2]
PADIM = {"_target_": "oddpatch.models.padim.PaDiM", "num_features": 550, "epsilon": 0.01, "smoothing": 4.0}


def entry(variant, source):
    return next(e for e in published() if e.variant == variant and any(s.source_id == source for s in e.sources))


def variants(run):
    return [match.published.variant for match in matches(run)[0]]


def test_values_are_fractions_and_every_number_has_a_source():
    assert len(published()) > 150
    for one in published():
        assert one.sources
        assert all(0 <= value <= 1 and math.isfinite(value) for value in one.values.values()), one.variant
    paper = entry("PatchCore-10%", "patchcore_paper")
    assert paper.values["mvtec_ad", "average", "image_auroc"] == 0.99
    assert paper.values["mvtec_ad", "average", "au_pro"] == 0.935


def test_printed_averages_agree_with_their_categories():
    """Those that do not were left out, so that no difference is taken to a misprint."""
    groups = {"average": set(MVTEC), "textures": set(TEXTURES), "objects": set(MVTEC) - TEXTURES}
    checked = 0
    for one in published():
        for (dataset, group, metric), printed in one.values.items():
            if dataset != "mvtec_ad" or group not in groups:
                continue
            keys = [(dataset, category, metric) for category in groups[group]]
            found = [one.values[key] for key in keys if key in one.values]
            if len(found) == len(keys):
                assert abs(sum(found) / len(found) - printed) <= 0.0011, (one.variant, group, metric)
                checked += 1
    assert checked > 80


def test_every_protocol_belongs_to_a_variant_and_names_real_settings():
    """A misspelt setting would make a variant match nothing, or everything."""
    known = {"augmentation"}
    for module, name in (
        ("padim", "PaDiM"),
        ("patchcore", "PatchCore"),
        ("spade", "SPADE"),
        ("gaussian", "GaussianAD"),
        ("cam", "CAM"),
        ("banks", "MemoryBanks"),
        ("subspacead", "SubspaceAD"),
        ("rad", "RAD"),
        ("mh_patchcore", "MHPatchCore"),
        ("musc", "MuSc"),
        ("dfm", "DFM"),
    ):
        found = pytest.importorskip(f"oddpatch.models.{module}")
        known |= {f"model.{p}" for p in getattr(found, name).__init__.__annotations__}
    known |= {"backbone.layers", "backbone.tap", "data.resize", "data.crop", "data.interpolation"}
    known |= {"data.shots", "data.shots_rule", "data.views"}
    comparable = [one for one in published() if one.same or one.told]
    assert len(comparable) > 50
    for one in comparable:
        assert {*one.same, *one.told} <= known, one.variant
        assert any(one.method in names for names in NAMES.values())


def test_patchcore_matches_by_its_coreset_ratio_papers_first(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    assert variants(run)[0] == "PatchCore-10%"
    assert "IM224_WR50_L2-3_P01_D1024-1024_PS-3_AN-1" in variants(run)
    assert not any("1%" in name.replace("-10%", "") or "25%" in name for name in variants(run))
    other = read_run(write_run(tmp_path / "b", model={**PATCHCORE, "coreset_ratio": 0.05}))
    found, reason = matches(other)
    assert not found
    assert "PatchCore-10% needs model.coreset_ratio=0.1" in reason


def test_differences_of_protocol_are_told(tmp_path):
    run = read_run(write_run(tmp_path / "a", num_train_images=167))
    amazon = next(match for match in matches(run)[0] if match.published.variant.startswith("IM224"))
    assert "selector approximate_greedy there, greedy here" in amazon.differences  # a default, not in the config
    assert "projection_dim 128 there, none here" in amazon.differences
    assert "fitted to 167 of 209 training images of bottle here" in amazon.differences
    assert not any(told.startswith(("layers", "resize", "crop")) for told in amazon.differences)
    backbone = {**WIDE_RESNET, "name": "wide_resnet50_2.racm_in1k"}
    data = {"interpolation": "bicubic", "roi": "x.png"}
    run = read_run(write_run(tmp_path / "b", model=PADIM, backbone=backbone, data=data))
    paper = next(match for match in matches(run)[0] if match.published.variant == "WR50-Rd550")
    assert set(paper.differences) == {
        "map interpolation bicubic there, bilinear here", "weights wide_resnet50_2.racm_in1k here", "data.roi here",
    }  # fmt: skip


def test_one_paper_read_in_two_places_is_one_publication(tmp_path):
    run = read_run(write_run(tmp_path / "a", model=PADIM))
    (paper,) = (match.published for match in matches(run)[0] if match.published.variant == "WR50-Rd550")
    assert len(paper.sources) == 2
    assert paper.values["mvtec_ad", "bottle", "pixel_auroc"] == 0.983
    assert paper.values["mvtec_ad", "average", "image_auroc"] == 0.953


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"weights": "random"}, "random weights"),
        ({"category": "housing"}, "not a public dataset"),
        ({"num_test_images": 12}, "bottle of MVTec AD has 83 test images"),
        ({"backbone": {**WIDE_RESNET, "name": "mobilenetv3_large_100.ra_in1k"}}, "no published numbers of PatchCore"),
        ({"data": {"crop": 320}}, ""),
    ],
)
def test_what_must_not_be_compared_is_not_and_says_why(tmp_path, changed, told):
    found, reason = matches(read_run(write_run(tmp_path / "a", **changed)))
    assert told in reason
    assert bool(found) == (told == "")


def test_a_classifier_is_compared_on_a_held_out_fifth_and_nothing_else_is(tmp_path):
    cam = {"_target_": "oddpatch.models.cam.CAM", "trained_layers": 3}
    backbone: dict[str, Any] = {"_target_": "oddpatch.backbones.torchvision.TorchvisionBackbone", "name": "vgg16"}
    backbone |= {"layers": ["features.29"], "weights": "pretrained"}
    data = {"resize": [224, 224], "crop": None, "split": "split.json"}
    of_fifth = {"num_train_images": 347, "num_test_images": 87}  # of pill
    run = read_run(write_run(tmp_path / "a", "pill", model=cam, backbone=backbone, data=data, **of_fifth))
    ((match,), why) = matches(run)
    assert (match.published.variant, why) == ("80/20 stratified split", "")
    assert match.differences == ("data.split here", "another draw of the held-out fifth; images not normalised")
    assert published_value(match, "mvtec_ad_fifth", "pill", ["pill"], "balanced_accuracy") == 0.817
    assert columns_of([run])[0].value("mvtec_ad_fifth", "pill", "image_auroc")
    other = read_run(write_run(tmp_path / "b", "pill", model=cam, backbone=backbone, data=data))
    assert matches(other)[0] == [match], "its category is of the dataset, though no number of it was published"
    assert published_value(match, "mvtec_ad", "pill", ["pill"], "balanced_accuracy") is None


def test_the_image_size_must_be_the_same_where_it_is_stated(tmp_path):
    folder = write_run(tmp_path / "a")
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"image_size": [224, 224]', '"image_size": [320, 320]'))
    assert matches(read_run(folder))[0] == []
    folder = write_run(tmp_path / "b", model={**PATCHCORE, "num_neighbors": 9})
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"image_size": [224, 224]', '"image_size": [256, 256]'))
    (only,) = matches(read_run(folder))[0]
    assert only.differences[0] == "image size not stated there"


def test_layers_that_the_detector_leaves_out_do_not_count(tmp_path):
    assert protocol_of(read_run(write_run(tmp_path / "a"))).settings["backbone.layers"] == [2, 3]
    assert protocol_of(read_run(write_run(tmp_path / "b", model=PADIM))).settings["backbone.layers"] == [1, 2, 3]


def test_ensembles_and_transformers_are_named_as_published(tmp_path):
    names = ("wide_resnet101_2.tv_in1k", "resnext101_32x8d.tv_in1k", "densenet201.tv_in1k")
    members = {name.partition(".")[0]: {"_partial_": True, "name": name} for name in names}
    member = {**PATCHCORE, "_partial_": True, "coreset_ratio": 0.01, "embedding_dim": 384, "layer_dim": 1024}
    model = {"_target_": "oddpatch.models.ensemble.EnsembleDetector", "maps": [2, 2, 2], "member": member}
    backbone = {"_target_": "oddpatch.backbones.ensemble.EnsembleBackbone", "members": members}
    run = read_run(write_run(tmp_path / "a", model=model, backbone=backbone))
    assert set(protocol_of(run).backbone.split("+")) == {"wide_resnet101_2", "resnext101", "densenet201"}
    assert variants(run) == ["IM224_Ensemble_L2-3_P001_D1024-384_PS-3_AN-1"]
    vit = {"_target_": "oddpatch.backbones.timm.TimmBackbone", "name": "vit_base_patch16_224.orig_in21k", "layers": [3]}
    detector = {**PATCHCORE, "num_neighbors": 9, "patch_size": 1, "embedding": "joined", "finest_stride": 1}
    run = read_run(write_run(tmp_path / "b", model=detector, backbone={**vit, "tap": "norm2"}))
    assert variants(run) == ["layer 3"]


def test_a_table_marks_what_is_within_the_tolerance(tmp_path):
    write_run(tmp_path / "bottle", "bottle", image_auroc=0.991)  # published 1.000
    write_run(tmp_path / "cable", "cable", image_auroc=0.983)  # published 0.994
    report = build_report(find_runs([tmp_path]), ["image_auroc"], with_published=True, tolerance=0.01)
    position = next(i for i, h in enumerate(report.grids[0].headings) if "patchcore_paper" in h.label)
    cells = {row.name: row.cells[position] for row in report.grids[0].rows}
    assert (cells["bottle"].text, cells["bottle"].within) == ("1.000 -0.009 ✓", True)
    assert (cells["cable"].text, cells["cable"].within) == ("0.994 -0.011 ✗", False)
    assert (cells["average"].text, cells["average"].within) == ("0.990", None)  # ours is of 2 of 15
    assert is_within(0.94 - 0.95, 0.01)


def test_au_pro_of_another_limit_is_not_compared(tmp_path):
    for limit in (0.3, 0.05):
        folder = tmp_path / str(limit)
        write_run(folder / "run", au_pro=0.95, fpr_limits=(limit,))
        report = build_report(find_runs([folder]), ["au_pro"], with_published=True)
        (column,) = columns_of(find_runs([folder]))
        match = matches(column.runs[0])[0][0]
        theirs = published_value(match, "mvtec_ad", "bottle", ["bottle"], "au_pro")
        ours = column.value("mvtec_ad", "bottle", "au_pro")
        assert (difference(column, ours, present(theirs), "au_pro") is None) == (limit == 0.05)
        assert any("integrated to 0.05" in note for note in report.notes) == (limit == 0.05)


def test_an_average_that_was_not_printed_is_the_mean_of_its_categories(tmp_path):
    run = read_run(write_run(tmp_path / "a", model={**PADIM, "num_features": 100},
                             backbone={**WIDE_RESNET, "name": "resnet18.tv_in1k"}))  # fmt: skip
    match = next(m for m in matches(run)[0] if m.published.sources[0].source_id == "xiahaifeng_padim")
    values = [match.published.values["mvtec_ad", name, "pixel_auroc"] for name in TEXTURES]
    assert ("mvtec_ad", "textures", "pixel_auroc") not in match.published.values
    found = published_value(match, "mvtec_ad", "textures", sorted(TEXTURES), "pixel_auroc")
    assert found == pytest.approx(sum(values) / 5)


def test_no_mean_is_published_where_a_category_is_missing(tmp_path, monkeypatch):
    for category in sorted(TEXTURES):
        write_run(tmp_path / category, category, model={**PADIM, "num_features": 100}, pixel_auroc=0.95,
                  backbone={**WIDE_RESNET, "name": "resnet18.tv_in1k"})  # fmt: skip
    runs = find_runs([tmp_path])
    match = next(m for m in matches(runs[0])[0] if m.published.sources[0].source_id == "xiahaifeng_padim")

    def textures(values):
        given = replace(match, published=replace(match.published, values=values))
        monkeypatch.setattr("oddpatch.report.table.matches", lambda _: ([given], ""))
        (grid,) = build_report(runs, ["pixel_auroc"], with_published=True).grids
        (row,) = [row for row in grid.rows if row.name == "textures"]
        return row.cells

    whole = match.published.values
    assert textures(whole)[1].value is not None
    without = {key: value for key, value in whole.items() if key[1] != "wood"}
    assert len(without) < len(whole)
    ours, theirs = textures(without)
    assert ours.text == "0.9500"
    assert (theirs.text, theirs.value, theirs.within, theirs.note) == ("-", None, None, "not published")
