"""The reference that `data.align=auto` chooses, against the cameras that the images were rendered by."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_datamodule import make

from oddpatch.data.reference import choose_reference
from oddpatch.errors import DataError
from oddpatch.scenes import load_scene
from oddpatch.scenes.optics import Camera, Light

pytestmark = pytest.mark.slow

SIZE, COUNT = 224, 6


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """A category of good boards, each by its own camera; and the homographies from board to pixels."""
    folder = tmp_path_factory.mktemp("auto") / "part/train/good"
    folder.mkdir(parents=True)
    scene, rng, matrices = load_scene("pcb")(SIZE, 0), np.random.default_rng(5), []
    for i in range(COUNT):
        camera = Camera.draw(rng)
        matrices.append(camera.matrix(SIZE, SIZE))
        Image.fromarray(scene.render(scene.specimen(rng), Light.draw(rng), camera)[0]).save(folder / f"{i}.png")
    return sorted(folder.iterdir()), matrices


def corners(matrix):
    points = np.array([[x, y, 1.0] for x in (0, SIZE - 1) for y in (0, SIZE - 1)]).T
    moved = matrix @ points
    return (moved / moved[2])[:2]


def shifts(matrices, target):
    """Mean distance of the corners between one camera and each of the others."""
    onto = [matrices[target] @ np.linalg.inv(m) for i, m in enumerate(matrices) if i != target]
    return [np.linalg.norm(corners(m) - corners(np.eye(3)), axis=0).mean() for m in onto]


def test_the_middle_one_is_chosen(boards):
    paths, matrices = boards
    found = choose_reference(paths)
    middle = min(range(COUNT), key=lambda i: np.mean(shifts(matrices, i)))
    assert found.path == paths[middle]
    assert (found.registered, found.probes, found.reason) == (COUNT - 1, COUNT - 1, "")
    assert found.shift == pytest.approx(np.median(shifts(matrices, middle)), abs=0.7)
    again = choose_reference(paths)
    assert found.alignment is not None
    assert again.alignment is not None
    assert again.alignment.settings() == found.alignment.settings()


def test_a_stranger_neither_becomes_the_reference_nor_prevents_it(boards, tmp_path):
    stranger = tmp_path / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(stranger)
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = choose_reference([stranger, *boards[0], tmp_path / "broken.png"])
    assert found.path in boards[0]
    assert (found.registered, found.probes) == (COUNT - 1, COUNT)


@pytest.mark.parametrize(("moved", "reason"), [(True, "0 of 5 training images register"), (False, "of each other")])
def test_images_are_left_as_they_are(boards, tmp_path, caplog, moved, reason):
    """Of a texture no two images show the same place; copies lie alike already."""
    folder = tmp_path / "part/train/good"
    folder.mkdir(parents=True)
    for i in range(6):
        texture = np.random.default_rng(i).integers(0, 255, (SIZE // 8, SIZE // 8, 3), np.uint8)
        image = Image.fromarray(texture).resize((SIZE, SIZE)) if moved else Image.open(boards[0][0])
        image.save(folder / f"{i}.png")
    data = make(tmp_path, align="auto")
    with caplog.at_level("WARNING"):
        data.setup()
    (line,) = [r.message for r in caplog.records if "align" in r.message]
    assert line.startswith("data.align=auto: images are not aligned, because ")
    assert reason in line
    assert data.preprocess.alignment is None
    assert data.reference.to_dict()["reference"] is None


def test_one_image_has_nothing_to_register_to(boards):
    assert choose_reference(boards[0][:1]).reason == "fewer than two training images can be compared"


def test_the_data_are_prepared_with_it(boards, caplog):
    paths, _ = boards
    root = paths[0].parents[3]
    data, named = make(root, align="auto"), make(root, align=choose_reference(paths).path)
    with caplog.at_level("INFO"):
        for module in (data, named):
            module.setup()
    assert f"images are moved onto {data.reference.path}" in caplog.text
    assert data.preprocess.settings() == named.preprocess.settings()
    assert torch.equal(data.train_image(3), named.train_image(3))
    assert named.reference is None
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(
        paths[0].with_name("z.png")
    )
    again = make(root, align="auto")
    again.setup()
    with pytest.raises(DataError, match=r"z\.png: registers to the reference image with quality 0\.\d\d"):
        again.train_image(COUNT)
