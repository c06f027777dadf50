"""Small defects in long images: how well each `data.fit` finds them, and what a large image in tiles takes.

    python benchmarks/panels.py                  # panels of 4000x500, of eight rendered boards each
    python benchmarks/panels.py --memory         # one image of 8000x6000, in tiles

A panel is a strip of boards from the renderer, each a little off its place, of which one has a defect (a solder bridge,
a scratch, a missing or a misplaced part). All settings see the same panels with the same method, a bank of patches that
knows no positions. The memory is the peak of a process that loads the run and inspects the image, with map and regions.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from common import ROOT, run

BOARD, BOARDS = 500, 8
#: Good panels to fit to and to test on; each defective board is in one more.
FITTED, TESTED = 8, 12
SETTINGS = {
    "`data.resize=256 data.crop=224`": ["data.resize=256", "data.crop=224"],
    "`data.resize=[256,256]`, stretched": ["data.resize=[256,256]"],
    "`data.resize=[512,512]`, stretched": ["data.resize=[512,512]"],
    "`data.resize=[512,512] data.fit=letterbox`": ["data.resize=[512,512]", "data.fit=letterbox"],
    "`data.resize=256`, letterbox of their shape": ["data.resize=256"],
    "`data.fit=tiles`": ["data.fit=tiles"],
}
#: A bank of 2,000 patches whatever the number of patches, so that settings differ in what is seen alone.
METHOD = ["model=patchcore", "model.coreset_ratio=null", "model.coreset_size=2000", "model.embedding=joined",
          "calibration=none"]  # fmt: skip
QUIET = ["logger=none", "callbacks.pictures=null", "callbacks.report=null", "callbacks.progress=null",
         "callbacks.results.confidence.draws=0", "data.num_workers=0", "trainer.accelerator=cpu"]  # fmt: skip


def make_panels(out: Path) -> None:
    """Render boards, and lay them side by side: `panel/train/good`, `panel/test/DEFECT`, `panel/ground_truth`."""
    run([sys.executable, "-m", "oddpatch.cli.main", "data", "render", "pcb", out / "board", "--size", str(BOARD),
         "--train", "32", "--test-good", "16", "--test-per-defect", "5", "--workers", "1"])  # fmt: skip
    rng = np.random.default_rng(0)

    def panel(boards: list[Path]) -> Image.Image:
        strip = Image.new("RGB", (BOARD * BOARDS, BOARD))
        for place, board in enumerate(boards):
            strip.paste(Image.open(board).convert("RGB"), (BOARD * place, 0))
        return strip

    def drawn(folder: str) -> list[Path]:
        boards = sorted((out / "board" / folder).glob("*.png"))
        return [boards[i] for i in rng.permutation(len(boards))[:BOARDS]]

    for folder, source, count in (("train/good", "train/good", FITTED), ("test/good", "test/good", TESTED)):
        (out / "panel" / folder).mkdir(parents=True)
        for number in range(count):
            panel(drawn(source)).save(out / "panel" / folder / f"{number:03}.png")
    for board in sorted((out / "board/test").glob("*/*.png")):
        if board.parent.name == "good":
            continue
        boards, place = drawn("test/good"), int(rng.integers(BOARDS))
        boards[place] = board
        mask = np.zeros((BOARD, BOARD * BOARDS), np.uint8)
        small = Image.open(out / "board/ground_truth" / board.parent.name / f"{board.stem}_mask.png")
        mask[:, BOARD * place : BOARD * (place + 1)] = np.asarray(small.convert("L"))
        for folder, image, name in (
            ("test", panel(boards), board.name),
            ("ground_truth", Image.fromarray(mask), f"{board.stem}_mask.png"),
        ):
            (out / "panel" / folder / board.parent.name).mkdir(parents=True, exist_ok=True)
            image.save(out / "panel" / folder / board.parent.name / name)


def compare(out: Path) -> None:
    """Print a line for each setting: what is seen, AUROC of images and of each defect, CPU seconds of fit and test."""
    make_panels(out)
    for place, (name, settings) in enumerate(SETTINGS.items()):
        folder = out / f"run{place}"
        used = run([sys.executable, ROOT / "train.py", "data=custom", f"data.root={out}", "data.category=panel",
                    *METHOD, *QUIET, "data.batch_size=2", *settings, f"hydra.run.dir={folder}"])  # fmt: skip
        found = json.loads((folder / "metrics.json").read_text())
        by_kind = found["image_auroc_by_defect_type"]
        if place == 0:
            print(f"| | seen | image AUROC | {' | '.join(by_kind)} | pixel AUROC | AU-PRO | CPU s |")
            print("|---" * (6 + len(by_kind)) + "|", flush=True)
        kinds = [f"{value:.3f}" for value in by_kind.values()]
        cells = [name, f"{found['inspected']['mean']:.0%}", f"{found['image_auroc']:.3f}", *kinds,
                 *(f"{found[key]:.3f}" for key in ("pixel_auroc", "au_pro")), f"{used.cpu:.0f}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def memory(out: Path, size: tuple[int, int]) -> None:
    """Print the peak of a process that inspects one image, by a run fitted to smaller ones of the same texture."""
    from oddpatch import AnomalyDetector

    rng = np.random.default_rng(0)

    def texture(width: int, height: int, name: str) -> str:
        coarse = Image.fromarray(rng.integers(60, 200, (height // 8, width // 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(out / name, compress_level=1)
        return str(out / name)

    good = [texture(800, 600, f"{number}.png") for number in range(6)]
    settings = {"model.coreset_ratio": None, "model.coreset_size": 2000, "model.embedding": "joined",
                "data.fit": "tiles"}  # fmt: skip
    AnomalyDetector.fit(good, model="patchcore", backbone="effnet_lite0", **settings).save(out / "run")
    used = run([sys.executable, __file__, "--inspect", out / "run", texture(*size, "large.png")])
    print(f"{used.facts['size']} pixels: peak {used.memory / 1e9:.2f} GB, {used.cpu:.0f} CPU s, start-up included")


def inspect(folder: str, image: str) -> None:
    """Inspect an image in this process, in its own size: the method knows no positions."""
    from oddpatch import AnomalyDetector

    with Image.open(image) as opened:
        size = (opened.height, opened.width)
    detector = AnomalyDetector.load(folder)
    preprocess = detector.scorer.model.preprocess  # type: ignore[attr-defined]
    preprocess.frame = replace(preprocess.frame, size=size, shape=size)
    detection = detector(image)
    print(json.dumps({"score": detection.score, "size": preprocess.image_size, "regions": len(detection.regions)}))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--size", type=int, nargs=2, default=(8000, 6000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--inspect", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inspect:
        return inspect(*args.inspect)
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
    with tempfile.TemporaryDirectory() as scratch:
        if args.memory:
            memory(Path(scratch), (args.size[0], args.size[1]))
        else:
            compare(Path(scratch))


if __name__ == "__main__":
    main()
