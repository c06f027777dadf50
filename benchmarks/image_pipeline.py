"""Rows of preparing an image: decode a 900x900 PNG and resize it, against the decoder alone and the usual way.

python benchmarks/run.py --only pipeline
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common import Options, Row, Used, alternate, compare, timed
from oddpatch.data.decoding import read_planes
from oddpatch.data.host import HostPreprocess
from oddpatch.data.transforms import Preprocess

MEAN = STD = (0.5, 0.5, 0.5)


def usual(path: str) -> Tensor:
    """OpenCV, then torch: the same antialiased resize, crop and normalisation (1, 3, 224, 224)."""
    image = torch.from_numpy(cv2.cvtColor(np.asarray(cv2.imread(path)), cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None]
    resized = F.interpolate(image.float().div_(255), size=(256, 256), mode="bilinear", antialias=True)
    return (resized[:, :, 16:240, 16:240] - MEAN[0]) / STD[0]


def decoder(path: str) -> None:
    """Pillow, and nothing else."""
    with Image.open(path) as image:
        image.load()


def rows(options: Options) -> Iterator[Row]:
    """With torch, and without as artifacts do it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = [str(path) for path in sorted((options.images() / "test").rglob("*.png"))][: 4 if options.quick else 40]
    preprocess = Preprocess(256, 224, MEAN, STD)
    host = HostPreprocess(**dict(preprocess.settings()))
    ways: dict[str, Callable[[str], object]] = {
        "torch": lambda path: preprocess(preprocess.read(path), None),
        "NumPy": lambda path: host(host.read(path)),
        "decoder": decoder,
        "OpenCV's decoder": cv2.imread,
        "our decoder": lambda path: read_planes(path),
        "usual": usual,
    }

    def over_files(way: Callable[[str], object]) -> Callable[[], Used]:
        return lambda: timed(lambda: [way(path) for path in files] and None)

    for way in ways.values():
        way(files[0])
    used = alternate({name: over_files(way) for name, way in ways.items()}, options.rounds)
    apart = float((preprocess(preprocess.read(files[0]), None) - usual(files[0])[0]).abs().max())
    note = f"the pixels differ by {apart:.1e} at most"

    def milliseconds(it: Used) -> float:
        return 1000 * it.cpu / len(files)

    what = "decode + resize a 900x900 PNG"
    for name in ("torch", "NumPy"):
        for against, side, target, told in (
            ("the decoder alone (Pillow)", "decoder", 1.15, ""),
            ("OpenCV's decoder alone", "OpenCV's decoder", None, ""),
            ("our decoder alone (kornia-rs)", "our decoder", None, ""),
            ("OpenCV + F.interpolate", "usual", 1.0 if name == "torch" else None, note if name == "torch" else ""),
        ):
            yield compare(f"{what}, {name}", against, used[name], used[side], target, take=milliseconds,
                          unit="CPU ms", note=told)  # fmt: skip
    yield _large(options)


def _large(options: Options) -> Row:
    """A whole large image of noise, where resizing weighs more than decoding."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (2000, 2000, 3), np.uint8)).permute(2, 0, 1)  # as it is decoded
    preprocess = Preprocess(256, 224, MEAN, STD)

    def other() -> Tensor:
        return F.interpolate(image[None].float().div_(255), size=(256, 256), mode="bilinear", antialias=True)

    sides = {"ours": lambda: timed(lambda: preprocess(image, None)), "theirs": lambda: timed(other)}
    alternate(sides, 1)
    used = alternate(sides, options.rounds)
    return compare("resize 2000x2000 pixels to 224", "F.interpolate", used["ours"], used["theirs"], 1.0,
                   take=lambda it: 1000 * it.cpu, unit="CPU ms")  # fmt: skip
