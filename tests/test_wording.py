"""Counts and lists as sentences need them."""

from oddpatch.wording import counted, listed


def test_a_count_agrees_with_its_noun():
    assert [counted(number, "image") for number in (0, 1, 2, 1_000_000)] == [
        "0 images", "1 image", "2 images", "1000000 images",
    ]  # fmt: skip
    assert [counted(number, "category", "categories") for number in (1, 2)] == ["1 category", "2 categories"]
    assert [counted(number, "GPU") for number in (0.5, 1.0, 8.0)] == ["0.5 GPUs", "1 GPU", "8 GPUs"]


def test_a_list_reads_as_in_a_sentence():
    assert [listed("abc"[:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]
