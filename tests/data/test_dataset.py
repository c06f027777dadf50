"""Items and batches: ground truth, unusable files, workers."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from oddpatch.data.dataset import MVTecDataset
from oddpatch.data.layout import Sample
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError, DataError
from oddpatch.types import IGNORE, Batch

SIZE = (24, 20)
PREPROCESS = Preprocess(SIZE, None, [0.5] * 3, [0.5] * 3)


@pytest.fixture
def samples(tmp_path):
    """Eight images of different sizes: good, anomalous with a mask, anomalous without one."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(8):
        height, width = 40 + 3 * number, 60 - 2 * number
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path)
        mask_path = None
        if number in (5, 6):
            mask = np.zeros((height, width), np.uint8)
            mask[: height // 2] = 255
            mask_path = tmp_path / f"{number}_mask.png"
            Image.fromarray(mask).save(mask_path)
        samples.append(Sample(path, int(number > 4), "hole" if number > 4 else "good", mask_path))
    return samples


def load(dataset, batch_size=3, workers=0):
    return list(DataLoader(dataset, batch_size, num_workers=workers, collate_fn=dataset.collate))


def joined(batches):
    image, mask, label, index = (torch.cat(part) for part in list(zip(*batches, strict=True))[:4])
    return Batch(image, mask, label, index, [p for b in batches for p in b.path])


def item_of(dataset, index):
    item = dataset[index]
    assert item is not None
    return item


def test_items(samples):
    dataset = MVTecDataset(samples, PREPROCESS)
    assert len(dataset) == 8
    item = item_of(dataset, 5)
    assert (item.label, item.index, item.path) == (1, 5, str(samples[5].path))
    assert tuple(item.image.shape) == (3, *SIZE)
    assert item.mask.dtype == torch.uint8
    expected = torch.zeros(1, *SIZE, dtype=torch.uint8)
    expected[:, :12] = 1
    assert torch.equal(item.mask, expected)
    assert item_of(dataset, 0).mask.unique().tolist() == [0], "good: nowhere"
    assert item_of(dataset, 7).mask.unique().tolist() == [IGNORE], "anomalous without a mask: not known"
    assert dataset.warnings() == dataset.skipped() == []


def test_images_of_several_sizes_make_one_batch(samples):
    (batch,) = load(MVTecDataset(samples, PREPROCESS), batch_size=8)
    assert tuple(batch.image.shape) == (8, 3, *SIZE)
    assert tuple(batch.mask.shape) == (8, 1, *SIZE)
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.label.tolist() == [0] * 5 + [1] * 3
    assert batch.index.tolist() == list(range(8))
    assert batch.path == [str(sample.path) for sample in samples]


def test_workers_and_batch_size_do_not_change_tensors(samples):
    dataset = MVTecDataset(samples, PREPROCESS)
    alone, spread = joined(load(dataset, 8, workers=0)), joined(load(dataset, 3, workers=2))
    for name in ("image", "mask", "label", "index"):
        assert torch.equal(getattr(alone, name), getattr(spread, name)), name
    assert alone.path == spread.path


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_raises_one_line(samples, workers):
    samples[2].path.write_bytes(samples[2].path.read_bytes()[:200])
    with pytest.raises(DataError) as error:
        load(MVTecDataset(samples, PREPROCESS), workers=workers)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(samples[2].path))
    assert "remove it" in message


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_corrupt_images_are_skipped_and_reported(samples, workers):
    for number in (0, 1, 2, 6):  # with batches of 3, the first has nothing left
        samples[number].path.write_bytes(b"")
    dataset = MVTecDataset(samples, PREPROCESS, on_error="skip")
    batches = load(dataset, workers=workers)
    assert [len(batch.index) for batch in batches] == [0, 3, 1]
    assert tuple(batches[0].image.shape) == (0, 3, *SIZE)
    assert tuple(batches[0].mask.shape) == (0, 1, *SIZE)
    assert (batches[0].mask.dtype, batches[0].label.dtype) == (torch.uint8, torch.int64)
    assert joined(batches).index.tolist() == [3, 4, 5, 7]
    skipped = dataset.skipped()
    assert [line.split(": ")[0] for line in skipped] == [str(samples[number].path) for number in (0, 1, 2, 6)]
    assert all("empty (0 bytes)" in line for line in skipped)


def test_file_that_can_be_read_again_is_still_reported(samples):
    content = samples[1].path.read_bytes()
    samples[1].path.unlink()
    dataset = MVTecDataset(samples, PREPROCESS, on_error="skip")
    assert dataset[1] is None
    samples[1].path.write_bytes(content)
    assert "could not be read at the time" in dataset.skipped()[0]


def test_mask_of_another_size(samples):
    Image.new("L", (7, 9)).save(samples[5].mask_path)
    with pytest.raises(DataError, match=r"the mask is 9x7 pixels but its image .* is 55x50") as error:
        MVTecDataset(samples, PREPROCESS)[5]
    assert str(samples[5].mask_path) in str(error.value)


def test_image_smaller_than_the_crop_is_named(samples):
    with pytest.raises(DataError, match="smaller than crop") as error:
        MVTecDataset(samples, Preprocess(None, 50, [0.5] * 3, [0.5] * 3))[0]
    assert str(error.value).startswith(str(samples[0].path))


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_without_defect_are_reported(samples, workers):
    Image.new("L", (50, 55)).save(samples[5].mask_path)
    corner = np.zeros((58, 48), np.uint8)
    corner[0, 0] = 255
    Image.fromarray(corner).save(samples[6].mask_path)
    preprocess = Preprocess(28, 20, [0.5] * 3, [0.5] * 3)
    dataset = MVTecDataset(samples, preprocess)
    list(DataLoader(dataset, 3, num_workers=workers, collate_fn=dataset.collate))
    empty, cropped = dataset.warnings()
    assert empty == f"1 of 2 masks: empty mask of an anomalous image ({samples[5].mask_path})"
    assert cropped == (
        "1 of 2 masks: no defect pixel is left in the part that is inspected; data.crop=null inspects all of each "
        f"image ({samples[6].mask_path})"
    )


def test_mask_threshold(samples):
    Image.fromarray(np.full((55, 50), 100, np.uint8)).save(samples[5].mask_path)
    assert item_of(MVTecDataset(samples, PREPROCESS), 5).mask.all()
    assert not item_of(MVTecDataset(samples, PREPROCESS, mask_threshold=0.5), 5).mask.any()


def test_masks_that_mark_the_background_are_reported(samples):
    inverted = 255 - np.asarray(Image.open(samples[5].mask_path))
    inverted[-3:] = 255
    Image.fromarray(inverted).save(samples[5].mask_path)
    frame = np.full((58, 48), 255, np.uint8)  # most of the border, but little of the image
    frame[1:-1, 1:-1] = frame[:, 0] = 0
    Image.fromarray(frame).save(samples[6].mask_path)
    preprocess = Preprocess(28, 20, [0.5] * 3, [0.5] * 3)
    dataset = MVTecDataset(samples, preprocess)
    list(DataLoader(dataset, 3, collate_fn=dataset.collate))
    lost, background = dataset.warnings()
    assert lost.startswith("1 of 2 masks: no defect pixel is left"), "one outcome does not hide the other"
    assert background.startswith("2 of 2 masks: more than half of the image, or of its border, counts as defect")
    assert f"({samples[5].mask_path}, {samples[6].mask_path})" in background


def test_a_defect_as_large_as_half_of_the_image_is_no_background(samples):
    for number in (5, 6):
        width, height = Image.open(samples[number].mask_path).size
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(samples[number].mask_path)
    dataset = MVTecDataset(samples, PREPROCESS)
    load(dataset)
    assert dataset.warnings() == []


@pytest.mark.parametrize("wrong", [{"on_error": "ignore"}, {"mask_threshold": 1.0}, {"mask_threshold": -0.1}])
def test_settings_that_cannot_work(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MVTecDataset([], PREPROCESS, **wrong)


def test_items_and_dataset_can_be_pickled(samples):
    dataset = pickle.loads(pickle.dumps(MVTecDataset(samples, PREPROCESS)))
    item = pickle.loads(pickle.dumps(dataset[5]))
    assert torch.equal(item.mask, dataset[5].mask)
