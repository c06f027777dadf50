"""The cache itself: a folder of small files that any number of jobs fill, read and thin out at the same time."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from oddpatch.cache.fingerprint import hash_tensors
from oddpatch.errors import ConfigError, ResourceError
from oddpatch.files import replacing
from oddpatch.temporary import remove_leftovers

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
#: Eviction begins and ends at these shares of the size, and each job looks after having written the third, one job at
#: a time: jobs do not see each other's writes in between, and up to eight of them together stay within the size.
BEGIN, END, LOOK = 7 / 8, 3 / 4, 1 / 64


class Entry(NamedTuple):
    """Under which name an image's features are kept, and what else is known of the image once it is decoded."""

    key: str
    # Height, width, brightness and sharpness; where it is aligned, also the registration's matrix and quality.
    facts: tuple[float, ...]


class Cached(NamedTuple):
    """What is kept of an image."""

    features: list[Tensor]  # [(C_l, h_l, w_l)] in the type the backbone gave
    channels_last: list[bool]  # whether each map of a batch was laid out so: it decides in which order sums are rounded
    facts: tuple[float, ...]


class FeatureCache:
    """Feature maps of images at full precision, found by what made them: the content of the file and everything else.

    What computes the features is summed up in a fingerprint (`oddpatch.cache.fingerprint`), an image file by a hash
    of its bytes, which are read each time: a changed file, setting or weight is never served old features. A file
    appears whole or not at all; two jobs that compute the same write the same. Files hold tensors and nothing that
    could be executed, among them a hash of the others: what has changed on the disk since is computed again. Those
    used longest ago go first.

    What is kept is what the first job computed, bit for bit. Some networks round differently in a batch of another
    length (the last one of a split), so a job is to the last bit what it is without a cache where the jobs before it
    split and batched the images as it does, and equal up to float rounding where they did not.

    A cache that is too small for the images of a job is of no use to it: each goes before it is needed again.

    Args:
        folder: where the files lie; made if it does not exist. It may be shared by jobs and machines.
        max_gib: the most they may take together, in GiB.

    Raises:
        ConfigError: the size is not positive, or the folder cannot be written.

    Examples:
        >>> import torch
        >>> from oddpatch.cache.features import Entry, FeatureCache
        >>> cache = FeatureCache("features", max_gib=1)
        >>> cache.fingerprint = "of-the-backbone-and-the-preprocessing"
        >>> key = cache.key(b"the bytes of an image file")
        >>> cache.load(key) is None
        True
        >>> cache.store([Entry(key, facts=(64.0, 64.0, 0.4, 0.01))], [torch.ones(1, 8, 6, 6)])
        >>> cache.load(key).features[0].shape
        torch.Size([8, 6, 6])
    """

    def __init__(self, folder: str | Path, max_gib: float = 20.0) -> None:
        if not max_gib > 0:
            raise ConfigError(f"cache.max_gib={max_gib}: give a size above 0")
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made ({error.strerror}): set cache.folder to another") from error
        self.max_bytes = int(max_gib * 2**30)
        self.fingerprint = ""
        #: (C_l, h_l, w_l) of each map that the backbone gives of an image; None: not known, so not compared.
        self.shapes: Sequence[tuple[int, ...]] | None = None
        #: Images whose features were found.
        self.found = 0
        self._computed: list[str] = []  # keys of images whose features were not found
        self._largest = 0  # bytes of an entry
        self._unseen = self.max_bytes  # bytes written since the folder was looked at: as good as all of them
        self._works = True

    def key(self, content: bytes) -> str:
        """Name of the features of an image file with this content."""
        assert self.fingerprint, "say first what computes the features"
        return f"{self.fingerprint}/{hashlib.blake2b(content, digest_size=20).hexdigest()}"

    def load(self, key: str) -> Cached | None:
        """What is kept under `key`; None if there is nothing, or nothing usable."""
        path = self.path_of(key)
        try:
            tensors = load(path.read_bytes())
            digest = tensors.pop("digest", torch.empty(0))
            if digest.tolist() != list(hash_tensors(tensors, key)):
                raise ValueError("it has changed since it was written")
            cached = _cached(tensors, self.shapes)
            os.utime(path)  # last used now
            return cached
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s cannot be used (%s): its features are computed again", path, error)
            return None

    def store(self, entries: Sequence[Entry], features: Sequence[Tensor]) -> None:
        """Keep the features [(B, C_l, h_l, w_l)] of a batch, image by image; a full disk ends that with a warning."""
        layout = torch.tensor([feature.is_contiguous(memory_format=torch.channels_last) for feature in features])
        host = [feature.detach().cpu() for feature in features]
        self._computed += [entry.key for entry in entries]
        for number, entry in enumerate(entries):
            tensors = {str(i): feature[number].contiguous() for i, feature in enumerate(host)}
            tensors["facts"] = torch.tensor(entry.facts, dtype=torch.float64)
            tensors["channels_last"] = layout
            tensors["digest"] = torch.tensor(list(hash_tensors(tensors, entry.key)), dtype=torch.uint8)
            content = save(tensors)
            self._largest = max(self._largest, len(content))
            if not self._works or len(content) > self.max_bytes * (1 - BEGIN):
                return
            try:
                self._make_room(len(content))
                with replacing(self.path_of(entry.key), "wb") as file:
                    file.write(content)
            except (OSError, ResourceError) as error:
                log.warning("%s: no more features are cached", error)
                self._works = False
                return

    @property
    def computed(self) -> int:
        """Images whose features had to be computed."""
        return len(self._computed)

    @property
    def kept(self) -> int:
        """How many of these are in the cache still."""
        return sum(self.path_of(key).exists() for key in self._computed)

    def report(self) -> None:
        """Log what the cache was good for, and the size it would need where it is too small."""
        kept = self.kept
        log.info("cache: features of %d images found, %d computed, %d of these kept", self.found, self.computed, kept)
        if kept < self.computed and self._works:
            # Eviction leaves so much; an entry may take the rest.
            needed = max(self._largest * (self.found + self.computed) / END, self._largest / (1 - BEGIN))
            log.warning(
                "cache.max_gib=%.2g is too small for the features of this run's images, and of little use to it: give "
                "cache.max_gib=%.2g, or more where other jobs use the folder too",
                self.max_bytes / 2**30,
                1.05 * needed / 2**30,  # two digits may be rounded down
            )

    def path_of(self, key: str) -> Path:
        """File of an entry, whether it is there or not."""
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Look at the folder every so often, and drop what was used longest ago if it is nearly full."""
        self._unseen += size
        if self._unseen < self.max_bytes * LOOK:
            return
        with self._lock():
            self._evict()
        self._unseen = size

    def _evict(self) -> None:
        remove_leftovers(self.folder)
        entries = []
        for path in self.folder.rglob("*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another job was faster
                continue
            if path.suffix == SUFFIX:
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total < self.max_bytes * BEGIN:
            return
        for _, size, path in sorted(entries):
            path.unlink(missing_ok=True)
            total -= size
            if total <= self.max_bytes * END:
                break

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One job makes room at a time; who wrote on meanwhile would leave the size behind."""
        with ExitStack() as held:
            try:
                held.enter_context(FileLock(self.folder / ".lock", fallback_to_soft=False))
            except OSError:  # a file system without locks: then two may make room at once
                log.debug("%s cannot be locked", self.folder)
            yield


def _cached(tensors: dict[str, Tensor], shapes: Sequence[tuple[int, ...]] | None) -> Cached:
    """What an entry's tensors say; a `ValueError` unless they are maps of these shapes with their layout and facts."""
    facts, layout = tensors.pop("facts", torch.empty(0)), tensors.pop("channels_last", torch.empty(0))
    maps = [tensors[name] for name in map(str, range(len(tensors))) if name in tensors]
    as_expected = (
        len(maps) == len(tensors)
        and (layout.dtype, layout.shape) == (torch.bool, (len(maps),))
        and facts.dtype == torch.float64
        and facts.shape in ((4,), (14,))
        and all(one.is_floating_point() for one in maps)
        and (shapes is None or [tuple(one.shape) for one in maps] == [tuple(shape) for shape in shapes])
    )
    if not as_expected:
        raise ValueError("it is not what the backbone gives")
    return Cached(maps, layout.tolist(), tuple(facts.tolist()))


def stack(cached: Sequence[Cached]) -> list[Tensor]:
    """Feature maps [(B, C_l, h_l, w_l)] of a batch, laid out in memory as the backbone laid out its own."""
    batches = [torch.stack(maps) for maps in zip(*(it.features for it in cached), strict=True)]
    layout = (torch.channels_last if last else torch.contiguous_format for last in cached[0].channels_last)
    return [batch.contiguous(memory_format=format) for batch, format in zip(batches, layout, strict=True)]
