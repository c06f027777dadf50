"""Settings that cannot work, told before anything is made of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf
from test_pipeline import config, tiny

from oddpatch import pipeline
from oddpatch.errors import ConfigError
from oddpatch.hydra_entry import building
from oddpatch.settings import check_area, check_seed, check_types


class Made:
    def __init__(
        self,
        rate: float = 0.1,
        count: int = 1,
        limit: float | None = None,
        flag: bool = False,
        size: int | Sequence[int] | None = None,
        rates: Sequence[float] = (),
        name: str = "a",
        path: str | Path | None = None,
        workers: int | str = "auto",
        kind: Literal["a", "b"] = "a",
        other: Any = None,
        plain=None,
    ) -> None:
        pass


Made.__module__ = "oddpatch.made"


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": 1, "count": 2, "limit": None, "flag": True, "size": [1, 2], "rates": [0.5, 1]},
        {"limit": 3, "size": 8, "name": "abc", "path": "b", "workers": "auto", "kind": "b", "other": "x", "plain": "y"},
        {"rates": OmegaConf.create([0.5, 1])},
        {"size": None, "unknown": "told by others", "rate": float("inf")},
    ],
)
def test_values_of_the_type_that_is_asked_for_pass(settings):
    check_types(Made, settings, "model")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": "abc"}, "model.rate='abc' must be a number"),
        ({"rate": True}, "model.rate=True must be a number"),
        ({"rate": None}, "model.rate=None must be a number"),
        ({"rate": float("nan")}, "model.rate=nan must be a number"),
        ({"count": "3"}, "model.count='3' must be a whole number"),
        ({"count": 1.5}, "model.count=1.5 must be a whole number"),
        ({"limit": "none"}, "model.limit='none' must be a number or null"),
        ({"flag": "yes"}, "model.flag='yes' must be true or false"),
        ({"flag": 1}, "model.flag=1 must be true or false"),
        ({"size": "large"}, "model.size='large' must be a whole number or a list of them or null"),
        ({"size": [1, "x"]}, r"model.size=\[1, 'x'\] must be a whole number or a list of them or null"),
        ({"rates": ["x"]}, r"model.rates=\['x'\] must be a list of numbers"),
        ({"rates": 5}, r"model.rates=5 must be a list of numbers, as \[5\]"),
        ({"rate": {"a": 1}}, "model.rate={'a': 1} must be a number"),
    ],
)
def test_values_of_another_type_are_told(settings, told):
    with pytest.raises(ConfigError, match=f"^{told}$"):
        check_types(Made, settings, "model")


def test_classes_of_others_are_theirs():
    check_types(type("Theirs", (Made,), {"__module__": "theirs"}), {"rate": "abc"}, "model")


@pytest.mark.parametrize(
    "setting", ["model.smoothing", "data.mask_threshold", "data.batch_size", "calibration.min_area"]
)
def test_a_text_in_place_of_a_number_is_one_line(tiles, tmp_path, setting):
    cfg = tiny(tiles, tmp_path / "run", f"{setting}=abc")
    with pytest.raises(ConfigError, match=rf"^{setting}='abc' must be a (whole )?number( or null)?$"):
        building.make(cfg[setting.partition(".")[0]], **needed(setting))


def needed(setting):
    backbone = {"channels": [8], "strides": [4]} if setting.startswith("model") else {}
    return {"mean": [0.5] * 3, "std": [0.5] * 3} if setting.startswith("data") else backbone


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "true", "abc"])
def test_a_seed_that_no_generator_takes(tmp_path, seed):
    cfg = config("train", f"seed={seed}", out=tmp_path)
    with pytest.raises(ConfigError, match=r"^seed=.* must be a whole number of 0 to 4294967295$"):
        pipeline.build(cfg)
    assert not list(tmp_path.iterdir())
    assert check_seed(0) == 0


def test_an_area_larger_than_the_map_is_told_before_the_fit(tiles, tmp_path):
    with pytest.raises(ConfigError, match=r"calibration.min_area=1024: choose 0 to 1023, as a map has 32 x 32 pixels"):
        pipeline.build(
            tiny(tiles, tmp_path / "run", "backbone=resnet18", "calibration=holdout", "calibration.min_area=1024")
        )
    check_area(1023, (32, 32), "calibration.min_area")


@pytest.mark.parametrize("setting", ["k", "num_neighbors"])
def test_more_neighbours_than_the_bank_has_are_told_before_the_fit(tiles, tmp_path, setting):
    cfg = tiny(tiles, tmp_path / "run", "backbone=resnet18", "model=patchcore", "model.coreset_ratio=0.1",
               f"model.{setting}=1000")  # fmt: skip
    run = pipeline.build(cfg)
    with pytest.raises(ConfigError, match=rf"^{setting}=1000 nearest patches, but the memory bank will hold 19: "):
        run.fit()
