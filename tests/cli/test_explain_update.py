"""`oddpatch explain` and `oddpatch update` on tiny runs of PatchCore: what they write, and how they fail."""

import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset, write_image
from narrowing import present
from PIL import Image
from test_pipeline import config, tiny, tiny_backbone  # noqa: F401

from oddpatch import factory, pipeline
from oddpatch.checkpoint import read_checkpoint
from oddpatch.cli import main as cli
from oddpatch.data.decoding import read_image
from oddpatch.data.light import Light
from oddpatch.data.transforms import Placement, Preprocess
from oddpatch.errors import ConfigError
from oddpatch.inference import update
from oddpatch.inference.explain import find_matches, most_anomalous, patch_box, pixel_of
from oddpatch.inference.update import new_version
from oddpatch.models.patchcore import PatchCore
from oddpatch.results.examples import Box, Match

GRID, PATCHES = (8, 8), 64  # of 32 x 32 pixels at stride 4


def fit(cfg):
    job = pipeline.build(cfg)
    job.fit()
    job.save()
    return job.folder


def patchcore_of(model):
    assert isinstance(model.detector, PatchCore)
    return model.detector


def patchcore_config(tiles, out, *overrides):
    return config(
        "train", "data=mvtec", f"data.root={tiles}", "data.category=tile", "data.resize=32", "data.crop=32",
        "data.batch_size=5", "data.num_workers=0", "callbacks.progress=null", "callbacks.pictures=null",
        "backbone.weights=random", "trainer.accelerator=cpu", "model=patchcore", "model.coreset_ratio=0.5",
        "model.finest_stride=4", *overrides, out=out,
    )  # fmt: skip


def patchcore(tiles, out, *overrides):
    return fit(patchcore_config(tiles, out, *overrides))


@pytest.fixture
def run(tiles, tmp_path, tiny_backbone):  # noqa: F811
    return patchcore(tiles, tmp_path / "run")


def oddpatch(monkeypatch, capsys, *arguments):
    """Exit code, output and error of the command line."""
    monkeypatch.setattr("sys.argv", ["oddpatch", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return (exit_.value.code or 0, *capsys.readouterr())


def fails(monkeypatch, capsys, *arguments):
    """The one line that a command ends with."""
    code, _, told = oddpatch(monkeypatch, capsys, *arguments)
    assert code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return told


# -- explain ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_names_its_training_images(run):
    names = read_checkpoint(run / "checkpoints/fitted.ckpt")["oddpatch"]["train_images"]
    assert names == [f"tile/train/good/{i:03}.png" for i in range(12)]


def test_explain_writes_a_picture_and_names_the_images(run, tiles, monkeypatch, capsys):
    out = run / "why.png"
    code, told, _ = oddpatch(
        monkeypatch, capsys, "explain", run, tiles / "tile/test/spot/000.png", "--out", out, "--top", 2
    )
    assert code == 0
    assert (
        len(re.findall(r"^\d  distance [\d.e+-]+  nearest normal patch in tile/train/good/\d{3}\.png$", told, re.M))
        == 2
    )
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > 700
    assert (picture == [0xC4, 0x16, 0x1C]).all(axis=2).sum() > 50  # boxes of patches
    assert (picture == [0x1F, 0x8F, 0x3A]).all(axis=2).sum() > 50  # boxes of normal patches


def test_matches_are_the_nearest_patches_of_all_training_images(tiles, tmp_path, tiny_backbone):  # noqa: F811
    folder = patchcore(tiles, tmp_path / "all", "model.selector=none", "model.embedding=joined")
    model, about = factory.restore(folder)
    detector: Any = model.detector

    def patches(path):
        return detector.embed(model.backbone(model.preprocess(read_image(path))[None])).flatten(0, 2)

    test = tiles / "tile/test/spot/001.png"
    with torch.no_grad():
        bank = torch.cat([patches(tiles / name) for name in about["train_images"]])
        distances, nearest = torch.cdist(patches(test).double(), bank.double()).min(dim=1)
    matches = find_matches(model, patchcore_of(model), model.preprocess(read_image(test)), about["train_images"])
    assert len(matches) == PATCHES
    np.testing.assert_allclose([m.distance for m in matches], distances, rtol=1e-4)
    assert [m.train_image for m in matches] == [about["train_images"][i // PATCHES] for i in nearest.tolist()]
    assert [m.normal for m in matches] == [patch_box(i % PATCHES, GRID, (32, 32)) for i in nearest.tolist()]
    assert matches[9].patch == Box(4, 4, 4, 4)


def test_a_given_patch_is_shown_beside_its_nearest_normal_ones(run, tiles, monkeypatch, capsys):
    test = tiles / "tile/test/spot/001.png"  # 48 x 48 pixels, 8 x 8 patches
    code, told, _ = oddpatch(
        monkeypatch, capsys, "explain", run, test, "--patch", "47,20", "--top", 2, "--out", run / "given.png"
    )
    assert code == 0
    model, about = factory.restore(run)
    detector: Any = model.detector
    with torch.no_grad():
        embedded = detector.embed(model.backbone(model.preprocess(read_image(test))[None]))[0]  # (h, w, D)
        given = embedded[20 * GRID[0] // 48, 47 * GRID[1] // 48]
        expected = torch.linalg.vector_norm(detector.memory_bank.double() - given.double(), dim=1)
    found, nearest = [float(it) for it in re.findall(r"distance ([\d.e+-]+)", told)], expected.topk(2, largest=False)
    np.testing.assert_allclose(found, nearest.values, rtol=1e-5)
    names = [about["train_images"][image] for image in detector.source[nearest.indices, 0].tolist()]
    assert re.findall(r"patch in (\S+)", told) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--patch", "48,0"], "the image has 48x48 pixels: choose 0,0 to 47,47"),
        (["--patch", "3;4"], "give a pixel of the image as X,Y"),
        (["--patch", "1,1", "--gif"], "leave one of them out"),
    ],
)
def test_a_patch_that_is_not_there(run, tiles, monkeypatch, capsys, given, message):
    told = fails(monkeypatch, capsys, "explain", run, tiles / "tile/test/spot/001.png", *given)
    assert message in told


def test_a_pixel_of_the_file_is_found_in_the_crop():
    preprocess = Preprocess(resize=32, crop=16, mean=[0.5] * 3, std=[0.2] * 3)
    placement = Placement((64, 64), Light(0.5, 0.1))
    assert pixel_of((32, 20), preprocess, placement) == pytest.approx((8.25, 2.25))
    with pytest.raises(ConfigError, match="inspects nothing there"):
        pixel_of((3, 20), preprocess, placement)


def test_the_oddest_patch_lies_on_the_defect(run, tiles):
    model, about = factory.restore(run)
    mask = np.asarray(Image.open(tiles / "tile/ground_truth/spot/000_mask.png").resize((32, 32)))
    image = model.preprocess(read_image(tiles / "tile/test/spot/000.png"))
    box = most_anomalous(find_matches(model, patchcore_of(model), image, about["train_images"]), 1, 8)[0].patch
    near = mask[max(int(box.top) - 4, 0) : int(box.top) + 8, max(int(box.left) - 4, 0) : int(box.left) + 8]
    assert near.any()


def test_boxes_cover_the_image():
    boxes = [patch_box(place, (3, 4), (30, 60)) for place in range(12)]
    assert boxes[0] == Box(0, 0, 15, 10)
    assert boxes[7] == Box(45, 10, 15, 10)
    assert boxes[11] == Box(45, 20, 15, 10)


def test_oddest_patches_are_apart():
    row = [Match(Box(4 * i, 0, 4, 4), Box(0, 0, 4, 4), "a.png", d) for i, d in enumerate([1, 5, 9, 8, 2, 6])]
    assert [m.distance for m in most_anomalous(row, 3, 12)] == [9, 6]
    assert [m.distance for m in most_anomalous(row, 3, 4)] == [9, 8, 6]


def test_explain_as_an_animation_shows_every_patch(run, tiles, monkeypatch, capsys):
    out = run / "why.gif"
    code, told, _ = oddpatch(
        monkeypatch, capsys, "explain", run, tiles / "tile/test/good/000.png", "--gif", "--out", out
    )
    assert code == 0
    assert str(out) in told
    with Image.open(out) as opened:
        animation: Any = opened
        assert animation.n_frames == PATCHES
        assert animation.size == (80, 48)  # image, patches of 16 pixels one over the other, training image
        animation.seek(PATCHES - 1)
        last = np.asarray(animation.convert("RGB")).astype(int)
    assert last[29, 28, 0] - last[29, 28, 1] > 100  # the corner of the last patch's red box


def test_training_images_that_are_gone_are_grey_and_told(tmp_path, tiles, tiny_backbone, monkeypatch, capsys):  # noqa: F811
    data = tmp_path / "data"
    shutil.copytree(tiles, data)
    run = patchcore(data, tmp_path / "run")
    data.rename(tmp_path / "moved")
    image = tmp_path / "moved/tile/test/spot/000.png"
    for options in (["--out", run / "a.png"], ["--gif", "--out", run / "a.gif"]):
        code, _, told = oddpatch(monkeypatch, capsys, "explain", run, image, *options)
        assert code == 0
        assert re.fullmatch(r"\d+ training images? not in .*/data, such as tile/train/.*: set --data-root\n", told)
    code, _, told = oddpatch(
        monkeypatch, capsys, "explain", run, image, "--out", run / "b.png", "--data-root", tmp_path / "moved"
    )
    assert (code, told) == (0, "")


def without_names(run):
    path = run / "checkpoints/fitted.ckpt"
    content = read_checkpoint(path)
    content["oddpatch"]["train_images"] = content["oddpatch"]["held_out"] = []
    path.unlink()  # the tensors are mapped from the old file, which must not be written over
    torch.save(content, path)


def test_explain_says_in_one_line_what_is_wrong(run, tiles, monkeypatch, capsys):
    image = tiles / "tile/test/spot/000.png"
    assert "--top=0: choose at least 1" in fails(monkeypatch, capsys, "explain", run, image, "--top", 0)
    assert "no such file" in fails(monkeypatch, capsys, "explain", run, tiles / "none.png")
    without_names(run)
    assert "does not name its training images" in fails(monkeypatch, capsys, "explain", run, image)


def test_a_method_without_a_memory_bank_is_refused(tiles, tmp_path, tiny_backbone, monkeypatch, capsys):  # noqa: F811
    run = fit(tiny(tiles, tmp_path / "padim"))
    for command, other in (("explain", tiles / "tile/test/spot/000.png"), ("update", tiles / "tile/test/good")):
        told = fails(monkeypatch, capsys, command, run, other)
        assert f"fitted with PaDiM, which keeps no memory bank of patches: {command} takes a run of PatchCore" in told


# -- update -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def more(tmp_path):
    rng = np.random.default_rng(5)
    for i in range(3):
        write_image(tmp_path / f"more/new{i}.png", rng, defect=True)
    return tmp_path / "more"


def test_update_writes_a_new_version_beside_the_old(run, more, tiles, monkeypatch, capsys):
    old = (run / "checkpoints/fitted.ckpt").read_bytes()
    code, told, _ = oddpatch(monkeypatch, capsys, "update", run, more, "--batch-size", 2)
    assert code == 0
    assert "3 images added, 0 files left out; the memory bank held 384 patches and holds 384" in told
    assert (run / "checkpoints/fitted.ckpt").read_bytes() == old
    new = run.with_name("run-v2")
    model, about = factory.restore(new)
    assert about["train_images"][:12] == [f"tile/train/good/{i:03}.png" for i in range(12)]
    assert about["train_images"][12:] == [str(more / f"new{i}.png") for i in range(3)]
    assert about["updates"] == [{"run": str(run), "folder": str(more), "images": 3, "left_out": []}]

    before, _ = factory.restore(run)
    image = model.preprocess(read_image(more / "new0.png"))[None]
    with torch.no_grad():
        assert model(image).score < 0.5 * before(image).score
    # What the bank holds of the new images is what the backbone gives there.
    detector: Any = model.detector
    index = (detector.source[:, 0] == 12).nonzero()[:, 0]
    with torch.no_grad():
        patches = detector.embed(model.backbone(image)).flatten(0, 2)
    torch.testing.assert_close(detector.memory_bank[index], patches[detector.source[index, 1]])

    code, told, _ = oddpatch(monkeypatch, capsys, "explain", new, more / "new0.png", "--out", new / "a.png")
    assert code == 0
    assert "/more/new" in told


def test_an_updated_run_can_be_tested_and_updated_again(run, more, tmp_path, monkeypatch, capsys):
    oddpatch(monkeypatch, capsys, "update", run, more)
    again = pipeline.rebuild(
        config("eval", f"run={tmp_path}/run-v2", "callbacks.progress=null", "callbacks.pictures=null",
               "trainer.accelerator=cpu", "+data.num_workers=0", out=tmp_path / "again")
    )  # fmt: skip
    again.test()
    assert again.module.result.metrics["image_auroc"] > 0.5
    code, _, _ = oddpatch(monkeypatch, capsys, "update", tmp_path / "run-v2", more, "--coreset-size", 100)
    assert code == 0
    model, about = factory.restore(tmp_path / "run-v3")
    assert len(patchcore_of(model).memory_bank) == 100
    assert [step["images"] for step in about["updates"]] == [3, 3]
    assert len(about["train_images"]) == 18


def test_thresholds_are_set_anew_on_the_held_out_images(more, tmp_path, tiny_backbone, monkeypatch, capsys):  # noqa: F811
    make_dataset(tmp_path / "data", good=42)
    overrides = ["model=patchcore", "calibration=holdout", "calibration.min_area=7"]
    cfg = tiny(tmp_path / "data", tmp_path / "calibrated", *overrides)
    job = pipeline.build(cfg)
    job.fit()
    job.calibrate()
    job.save()
    code, told, _ = oddpatch(monkeypatch, capsys, "update", tmp_path / "calibrated", more)
    assert code == 0
    assert "set again on 20 good images" in told
    model, about = factory.restore(tmp_path / "calibrated-v2")
    held = [tmp_path / "data" / name for name in about["held_out"]]
    assert len(held) == 20
    with torch.no_grad():
        scores, maps = model(torch.stack([model.preprocess(read_image(path)) for path in held]))
    torch.testing.assert_close(model.calibration.image_scores, scores.double().sort().values)
    eighth = maps.flatten(1).sort(descending=True).values[:, 7]
    torch.testing.assert_close(model.calibration.pixel_scores, eighth.double().sort().values)
    assert not torch.equal(model.calibration.image_scores, job.module.model.calibration.image_scores)

    held[0].unlink()
    _, told, _ = oddpatch(monkeypatch, capsys, "update", tmp_path / "calibrated", more)
    assert "thresholds removed" in told
    model, _ = factory.restore(tmp_path / "calibrated-v3")
    assert model.calibration.thresholds() == {}
    assert f"{held[0]} is missing" in model.calibration.absent


def test_each_image_is_left_out_of_the_bank_to_set_thresholds_again(more, tmp_path, tiny_backbone, monkeypatch, capsys):  # noqa: F811
    make_dataset(tmp_path / "data", good=9)
    job = pipeline.build(tiny(tmp_path / "data", tmp_path / "left", "model=patchcore"))
    job.fit()
    job.calibrate()
    job.save()
    for version, count in ((2, 12), (3, 15)):
        source = tmp_path / ("left" if version == 2 else "left-v2")
        code, told, _ = oddpatch(monkeypatch, capsys, "update", source, more)
        assert code == 0
        assert f"set again on {count} good images" in told
        model, about = factory.restore(tmp_path / f"left-v{version}")
        assert len(about["held_out"]) == count
        detector: Any = model.detector
        scores = []
        for i, name in enumerate(about["train_images"]):
            features = model.backbone(model.preprocess(read_image(tmp_path / "data" / name))[None])
            queries = detector.embed(features).flatten(0, 2)
            bank = detector.memory_bank[detector.source[:, 0] != i]
            scores.append(float(torch.cdist(queries.double(), bank.double()).min(1).values.max()))
        torch.testing.assert_close(model.calibration.image_scores, torch.tensor(scores).double().sort().values)


def test_images_that_the_fit_skipped_do_not_stop_an_update(more, tmp_path, tiny_backbone, monkeypatch, capsys):  # noqa: F811
    make_dataset(tmp_path / "data")
    (tmp_path / "data/tile/train/good/003.png").write_bytes(b"")
    job = pipeline.build(patchcore_config(tmp_path / "data", tmp_path / "run", "data.on_error=skip"))
    job.fit()
    job.calibrate()
    job.save()
    code, told, error = oddpatch(monkeypatch, capsys, "update", job.folder, more)
    assert code == 0, error
    assert "on 14 good images" in told  # 11 of the 12, and 3 more
    again = oddpatch(monkeypatch, capsys, "update", tmp_path / "run-v2", more)
    assert "on 17 good images" in again[1]


def test_an_update_that_was_killed_leaves_nothing_that_stops_the_next(run, more, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new"
    with monkeypatch.context() as killed:
        killed.setattr("os.getpid", lambda: 2**22 + 1)  # no process has that number
        killed.setattr("torch.save", lambda *_: (_ for _ in ()).throw(SystemExit))
        killed.setattr("tempfile.TemporaryDirectory._rmtree", lambda *_, **__: None)  # nobody cleans up
        killed.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        oddpatch(monkeypatch, capsys, "update", run, more, "--out", out)
    assert not out.exists()
    (draft,) = tmp_path.glob(".new.*.draft")
    assert list(draft.rglob(".fitted.ckpt.*.partial"))
    code, _, told = oddpatch(monkeypatch, capsys, "update", run, more, "--out", out)
    assert (code, told) == (0, "")
    assert not draft.exists()
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["fitted.ckpt"]


def test_two_updates_at_once_make_two_versions(run, more, monkeypatch, capsys):
    original = update.restore_memory_bank

    def restore(*args, **kwargs):
        (run.parent / "run-v2").mkdir(exist_ok=True)  # another process is faster
        return original(*args, **kwargs)

    monkeypatch.setattr(update, "restore_memory_bank", restore)
    code, told, _ = oddpatch(monkeypatch, capsys, "update", run, more)
    assert code == 0
    assert f"written: {run.parent / 'run-v3'}" in told
    assert (run.parent / "run-v3" / factory.CHECKPOINT).is_file()
    assert not list((run.parent / "run-v2").iterdir())


def test_update_looks_into_every_folder_and_says_what_it_leaves_out(run, more, tmp_path, monkeypatch, capsys):
    (more / "monday/early").mkdir(parents=True)
    (more / "new1.png").rename(more / "monday/new1.png")
    (more / "new2.png").rename(more / "monday/early/new2.png")
    (more / "monday").rename(tmp_path / "monday")
    (more / "monday").symlink_to(tmp_path / "monday")
    (more / "x.xyz").touch()
    code, told, warned = oddpatch(monkeypatch, capsys, "update", run, more)
    assert code == 0
    assert "3 images added, 1 file left out" in told
    assert warned == f"warning: 1 left out, unknown suffix: {more}/x.xyz\n"
    _, about = factory.restore(run.with_name("run-v2"))
    assert about["updates"][0]["left_out"] == [f"{more}/x.xyz: unknown suffix"]


def test_update_refuses_masks_among_the_images(run, more, monkeypatch, capsys):
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(more / "new1_mask.png")
    told = fails(monkeypatch, capsys, "update", run, more)
    assert "new1_mask.png looks like the mask of new1.png beside it" in told
    assert not run.with_name("run-v2").exists()


def test_update_says_in_one_line_what_is_wrong(run, more, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, wanted in (
        ([run, tmp_path / "empty"], "empty holds no image"),
        ([run, tmp_path / "absent"], "absent is no folder"),
        ([run, more, "--out", run], "exists and is not overwritten"),
        ([run, more, "--coreset-size", 0], "--coreset-size=0: choose at least 1"),
        ([run, more, "--coreset-size", 10**6], "but there are 576 patches"),
        ([tmp_path / "nothing", more], "does not exist: give the folder of a finished run"),
    ):
        assert wanted in fails(monkeypatch, capsys, "update", *arguments)
    (more / "new1.png").write_bytes(b"")
    assert "new1.png" in fails(monkeypatch, capsys, "update", run, more)
    without_names(run)
    assert "does not name its training images" in fails(monkeypatch, capsys, "update", run, more)
    assert not run.with_name("run-v2").exists()


def test_versions_are_counted_up(tmp_path):
    for name in ("run", "run-v2", "other-v7"):
        (tmp_path / name).mkdir()
    assert new_version(tmp_path / "run", None) == tmp_path / "run-v3"
    assert new_version(tmp_path / "run-v2", None) == tmp_path / "run-v3"
    assert new_version(tmp_path / "other-v7", None) == tmp_path / "other-v8"
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        new_version(tmp_path / "run", tmp_path / "run-v2")


def test_the_commands_are_registered():
    assert {"explain", "update"} <= {present(command.callback).__name__ for command in cli.app.registered_commands}
