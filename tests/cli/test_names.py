"""Names of files and folders that hold control characters, through every command that prints some."""

import contextlib
import logging
import sys

import hostile
import pytest
from conftest import make_dataset

from oddpatch.cli import main as cli
from oddpatch.factory import CHECKPOINT

#: In a name: it would clear the terminal, and begin a line of its own.
EVIL = "e\x1b[2J\nvil"
COMMANDS = {
    "predict": lambda p: ("predict", p / f"run{EVIL}", p / EVIL / "tile/test", "--save", "mask",
                          "--out", p / f"saved{EVIL}"),
    "explain": lambda p: ("explain", p / f"run{EVIL}", p / EVIL / f"tile/test/spot/{EVIL}.png",
                          "--out", p / f"{EVIL}.png"),
    "update": lambda p: ("update", p / f"run{EVIL}", p / EVIL / "tile/test/good", "--out", p / f"new{EVIL}"),
    "report": lambda p: ("report", p / f"nothing{EVIL}"),
    "compare": lambda p: ("compare", p / f"run{EVIL}", p / f"nothing{EVIL}"),
    "check": lambda p: ("data", "check", p / EVIL, "tile", "--fix", p / f"fixed{EVIL}"),
    "check all": lambda p: ("data", "check", p / EVIL, "tile", "--verbose"),
    "stats": lambda p: ("data", "stats", p / EVIL, "tile", "--out", p / f"{EVIL}.png"),
    "split": lambda p: ("data", "split", p / EVIL / "tile", p / f"{EVIL}.json", "--folds", "2"),
    "convert": lambda p: ("data", "convert", "folder", p / EVIL / "tile/test", p / f"made{EVIL}", "--category", "new"),
    "extract": lambda p: ("data", "extract-good", p / EVIL / "tile/test/good", p / f"good{EVIL}"),
    "align": lambda p: ("data", "align", p / EVIL / "tile", p / f"aligned{EVIL}", "--skip", "--min-quality", "0.99",
                        "--reference", p / EVIL / f"tile/train/good/{EVIL}.png", "--workers", "1"),
    "masks": lambda p: ("data", "masks", p / EVIL / "tile/ground_truth", p / f"masks{EVIL}", "--rgb", "255,255,255"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset, and a run, whose names change a terminal."""
    place = tmp_path_factory.mktemp("names")
    tile = make_dataset(place / EVIL, good=3, test_good=2, defects=2)
    for folder in ("train/good", "test/good", "test/spot"):
        (tile / folder / "000.png").rename(tile / folder / f"{EVIL}.png")
        (tile / folder / f"{EVIL}.xyz").touch()
        (tile / folder / f"link{EVIL}.png").symlink_to("nowhere")
    (tile / "ground_truth/spot/000_mask.png").rename(tile / f"ground_truth/spot/{EVIL}_mask.png")
    run = place / f"run{EVIL}" / CHECKPOINT
    run.parent.mkdir(parents=True)
    hostile.save(hostile.sound(place / EVIL), run)
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_of_a_file_changes_the_terminal(place, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["oddpatch", *map(str, COMMANDS[name](place))])
    with contextlib.suppress(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert "Usage" not in printed.err
    for line in (printed.out + printed.err).splitlines():
        assert line.replace("\t", "").isprintable(), line
        assert not line.startswith("vil")
    assert "\\x1b[2J" in printed.out + printed.err or name == "predict"  # whose lines are JSON where no terminal is


def test_what_is_logged_changes_no_terminal(capsys):
    """By a program that sets up no logging, as the command line is one."""
    assert logging.lastResort is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["oddpatch", "--version"])
        with contextlib.suppress(SystemExit):
            cli.main()
    capsys.readouterr()
    record = logging.LogRecord("oddpatch.x", logging.WARNING, "", 0, "%s is broken", (EVIL,), None)
    logging.lastResort.handle(record)
    assert capsys.readouterr().err == "e\\x1b[2J\\nvil is broken\n"
