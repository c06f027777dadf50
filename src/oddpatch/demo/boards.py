"""The rendered circuit boards: the images that the page works with when there are no others."""

from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from oddpatch import __version__
from oddpatch.data.layout import Sample, scan
from oddpatch.pool import Progress

CATEGORY = "pcb"
#: Types of defects that are rendered.
DEFECTS = 4


class Boards(NamedTuple):
    """How many boards there are, and where."""

    cache: str
    train: int = 100  # good ones to learn from
    test_good: int = 20
    test_per_defect: int = 5

    @property
    def root(self) -> Path:
        """Folder of the category; other versions of oddpatch may render other boards."""
        numbers = "-".join(map(str, self[1:]))
        return Path(self.cache).expanduser() / f"boards-{__version__}-{numbers}"

    @property
    def good_images(self) -> Path:
        """Folder of those to learn from."""
        return self.root / CATEGORY / "train/good"

    def test_images(self) -> list[Sample]:
        """Those to inspect, with what is known of them."""
        return scan(self.root, CATEGORY).test

    def render(self, progress: Progress | None = None) -> None:
        """Render them unless they are there; of several processes one does, and the others wait.

        Raises:
            ResourceError: they cannot be written.
        """
        from oddpatch.scenes.dataset import render_dataset

        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            if not (self.root / CATEGORY).exists():
                render_dataset(
                    self.root / CATEGORY, CATEGORY, train=self.train, test_good=self.test_good,
                    test_per_defect=self.test_per_defect, progress=progress,
                )  # fmt: skip


#: What the page works with: kept, so that they are rendered once.
STANDARD = Boards("~/.cache/oddpatch/demo")
