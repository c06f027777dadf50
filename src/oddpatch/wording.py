"""Counts and lists in plain English."""

from collections.abc import Iterable, Sequence


def counted(number: float, noun: str, plural: str = "") -> str:
    """A number with its noun, "1 image" or "2 images"; `plural` where that is not the noun with an s.

    >>> counted(1, "mask"), counted(0, "mask"), counted(2, "patch", "patches"), counted(0.5, "GPU")
    ('1 mask', '0 masks', '2 patches', '0.5 GPUs')
    """
    told = number if isinstance(number, int) else format(number, "g")
    return f"{told} {noun if number == 1 else plural or f'{noun}s'}"


def some(names: Iterable[object], limit: int = 3) -> str:
    """The first of many names.

    >>> some("ab"), some([1, 2, 3, 4])
    ('a, b', '1, 2, 3, ...')
    """
    told = [str(name) for name in names]
    return ", ".join(told[:limit]) + (", ..." if len(told) > limit else "")


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence.

    >>> listed(["image AUROC"]), listed(["a", "b", "c"])
    ('image AUROC', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
