"""Which good images are fitted to where they are to be few."""

import logging

import pytest
from test_datamodule import make, write_category

from oddpatch.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    write_category(tmp_path / "part", train=12)
    return tmp_path


def names(data):
    data.setup("fit")
    assert len(data.fitted) == len(data.train_samples)
    assert len(data.test_samples) == 5
    return [sample.path.name for sample in data.train_samples]


def test_a_seed_takes_its_block_of_the_sorted_list(root, caplog):
    ordered = ["0.png", "1.png", "10.png", "11.png", "2.png", "3.png", "4.png", "5.png"]
    caplog.set_level(logging.INFO)
    assert names(make(root, shots=4)) == ordered[:4]
    assert "data.shots=4: fitted to 0.png, 1.png, 10.png, 11.png of 12 good images" in caplog.text
    assert names(make(root, shots=4, shots_seed=1)) == ordered[4:]


def test_a_draw_depends_on_the_seed_alone(root):
    drawn = [names(make(root, shots=3, shots_seed=seed, shots_rule="shuffle")) for seed in (0, 0, 1, 99)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(few)) == 3 for few in drawn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 13}, r"data\.shots=13 and there are 12 good images: lower it"),
        ({"shots": 5, "shots_seed": 2}, r"asks for good images 10 to 14 and there are 12: set it to at most 1"),
        ({"shots": 0}, r"data\.shots=0 must be a whole number of at least 1"),
        ({"shots": 1, "shots_seed": -1}, r"data\.shots_seed=-1 must be a whole number"),
        ({"shots": 1, "shots_rule": "first"}, r"data\.shots_rule='first' is not known: choose block or shuffle"),
    ],
)
def test_what_cannot_be_is_refused(root, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(root, **settings).setup("fit")


def test_there_are_no_shots_of_test_images_or_of_defects(root):
    data = make(root, shots=2)
    data.setup("fit")
    with pytest.raises(ConfigError, match=r"data\.shots=2 good images, where it is fitted to test images"):
        data.fit_to_test_images()
    data = make(root, shots=2)
    data.learns_from_defects = True
    with pytest.raises(ConfigError, match=r"data\.shots=2 is for methods that learn from good images alone"):
        data.setup("fit")
