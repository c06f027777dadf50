"""The rendered circuit boards: the images that the page works with when there are no others."""

from pathlib import Path

from filelock import FileLock

from oddpatch import __version__
from oddpatch.data.layout import Sample, scan
from oddpatch.pool import Progress

CATEGORY = "pcb"
#: How many boards are rendered: good ones to learn from and to test on, and defective ones of each type.
TRAIN, TEST_GOOD, TEST_PER_DEFECT = 100, 20, 5
#: Where they are kept, so that they are rendered once.
CACHE = Path("~/.cache/oddpatch/demo")


def root(cache: Path) -> Path:
    """The folder of these boards in a cache; other versions of oddpatch may render others."""
    return cache.expanduser() / f"boards-{__version__}-{TRAIN}-{TEST_GOOD}-{TEST_PER_DEFECT}"


def render(root: Path, progress: Progress | None = None) -> None:
    """Render the boards into `root`, unless they are there; of several processes one does, and the others wait.

    Raises:
        ResourceError: they cannot be written.
    """
    from oddpatch.scenes.dataset import render_dataset

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if not (root / CATEGORY).exists():
            render_dataset(
                root / CATEGORY, CATEGORY, train=TRAIN, test_good=TEST_GOOD, test_per_defect=TEST_PER_DEFECT,
                progress=progress,
            )  # fmt: skip


def good_images(root: Path) -> Path:
    """Folder of the boards to learn from."""
    return root / CATEGORY / "train/good"


def test_images(root: Path) -> list[Sample]:
    """The boards to inspect, with what is known of them."""
    return scan(root, CATEGORY).test
