"""Public datasets as papers report them: their categories, the images of each, and the averages that are given."""

from collections.abc import Mapping
from typing import NamedTuple


class Size(NamedTuple):
    """Images of a category."""

    train: int
    test: int


class Dataset(NamedTuple):
    """A dataset of several categories; `groups` are averaged over."""

    title: str
    categories: Mapping[str, Size]
    groups: Mapping[str, frozenset[str]]


_MVTEC_AD = {
    "bottle": Size(209, 83), "cable": Size(224, 150), "capsule": Size(219, 132), "carpet": Size(280, 117),
    "grid": Size(264, 78), "hazelnut": Size(391, 110), "leather": Size(245, 124), "metal_nut": Size(220, 115),
    "pill": Size(267, 167), "screw": Size(320, 160), "tile": Size(230, 117), "toothbrush": Size(60, 42),
    "transistor": Size(213, 100), "wood": Size(247, 79), "zipper": Size(240, 151),
}  # fmt: skip
# The one-class split of the VisA authors (split_csv/1cls.csv).
_VISA = {
    "candle": Size(900, 200), "capsules": Size(542, 160), "cashew": Size(450, 150), "chewinggum": Size(453, 150),
    "fryum": Size(450, 150), "macaroni1": Size(900, 200), "macaroni2": Size(900, 200), "pcb1": Size(904, 200),
    "pcb2": Size(901, 200), "pcb3": Size(905, 201), "pcb4": Size(904, 201), "pipe_fryum": Size(450, 150),
}  # fmt: skip
# Images of train (without those for validation) and of test_public, as the paper's table counts them.
_MVTEC_AD_2 = {
    "can": Size(412, 162), "fabric": Size(387, 156), "fruit_jelly": Size(263, 80), "rice": Size(313, 132),
    "sheet_metal": Size(137, 114), "vial": Size(291, 140), "wallplugs": Size(293, 150), "walnuts": Size(432, 150),
}  # fmt: skip
# The images of both folders, a fifth of each defect type held out: what classifiers are published on. Rounded as
# `oddpatch.datatools.splitting` does; 401/100, 295/74, 299/75, 82/20 and 347/87 were published.
_MVTEC_AD_FIFTH = {
    "hazelnut": Size(401, 100), "leather": Size(295, 74), "cable": Size(300, 74), "toothbrush": Size(82, 20),
    "pill": Size(347, 87),
}  # fmt: skip
TEXTURES = frozenset({"carpet", "grid", "leather", "tile", "wood"})

DATASETS = {
    "mvtec_ad": Dataset(
        "MVTec AD",
        _MVTEC_AD,
        {"textures": TEXTURES, "objects": frozenset(_MVTEC_AD) - TEXTURES, "average": frozenset(_MVTEC_AD)},
    ),
    "mvtec_ad2": Dataset("MVTec AD 2, test_public", _MVTEC_AD_2, {"average": frozenset(_MVTEC_AD_2)}),
    "mvtec_ad_fifth": Dataset("MVTec AD, a held-out fifth", _MVTEC_AD_FIFTH, {}),
    "visa": Dataset("VisA", _VISA, {"average": frozenset(_VISA)}),
}
#: Where everything else goes.
OWN = "own"


def dataset_of(category: str, num_test_images: int) -> str:
    """The public dataset that a category is of, or `OWN`.

    The number of test images must be that of the dataset: a folder of one's own may be called `bottle` too, and
    numbers of other images are not to be compared with published ones.
    """
    for name, dataset in DATASETS.items():
        if category in dataset.categories and dataset.categories[category].test == num_test_images:
            return name
    return OWN
