"""Names and texts of files, as they are shown, written and followed."""

import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddpatch.errors import DataError
from oddpatch.files import (
    escape_on_terminal,
    from_cell,
    inside,
    parse_json,
    read_yaml,
    replacing,
    shown,
    to_cell,
)

TEXTS = st.text(st.characters(), max_size=20) | st.text("'=+-@\t\r x", max_size=6)


@given(TEXTS)
def test_a_cell_is_never_a_formula_and_gives_its_text_back(text):
    assert not to_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert from_cell(to_cell(text)) == text


def test_numbers_and_ordinary_texts_are_written_as_they_are():
    assert [to_cell(value) for value in (-1.5, 3, None, "a/b.png", "'quoted'", "a=b")] == [
        -1.5, 3, None, "a/b.png", "'quoted'", "a=b",
    ]  # fmt: skip
    assert to_cell("=cmd|'/C calc'!A0") == "'=cmd|'/C calc'!A0"


@given(st.text())
def test_what_is_shown_is_one_printable_line(text):
    assert shown(text).isprintable()


def test_control_characters_and_foreign_bytes_are_shown_as_escapes():
    assert shown("a\x1b[2J\x07\nb\u202e") == "a\\x1b[2J\\x07\\nb\\u202e"
    assert shown(os.fsdecode(b"\xff.png")) == "\\udcff.png"
    assert shown("Prüfteil 1 ✓.png") == "Prüfteil 1 ✓.png"


@pytest.mark.parametrize("name", ["a.png", "b/c.png", "b/./c.png", "absent/x", "within/x.png", "out.txt.png"])
def test_names_inside_are_followed(tmp_path, name):
    base = tmp_path / "base"
    (base / "b").mkdir(parents=True)
    (base / "within").symlink_to(base / "b")
    assert inside(base, name, "list.csv") == base / name


@pytest.mark.parametrize(
    "name", ["../x", "b/../../x", "b/../a", "/etc/hostname", "out/x", "file", "loop", "a\0b", ".."]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    base = tmp_path / "base"
    (base / "b").mkdir(parents=True)
    (base / "out").symlink_to(tmp_path)
    (base / "file").symlink_to("/etc/hostname")
    (base / "loop").symlink_to(base / "loop")
    with pytest.raises(DataError, match=r"list\.csv: names .* leads out of"):
        inside(base, name, "list.csv")


def test_a_folder_that_is_a_link_holds_its_files(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "link", "x.png", "f") == tmp_path / "link/x.png"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "nul", "9" * 5000, ""])
def test_json_that_cannot_be_followed_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_is_read_as_it_is():
    assert parse_json('{"a": [1, 2.5, null]}') == json.loads('{"a": [1, 2.5, null]}')


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    "text",
    [
        BOMB, "a: &a [*a]\n", "a: &a {b: 1}\nc: *a\n", "[" * 100_000, "{a: " * 100_000, "a: b: c", "\x00", "- 1\n",
        "1: 2\n", "? [1, 2]\n: 3\n", "a: !!python/object/apply:os.system [x]\n", "a: 1\na: 2\n", "a: ${b\n",
    ],
)  # fmt: skip
def test_yaml_that_holds_no_settings_is_one_line(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"config\.yaml") as error:
        read_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(error.value)


def test_yaml_is_read_as_it_is_written(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\nmodel: {seed: '${seed}', epsilon: 1e-3, k: [1, null]}\n")
    assert read_yaml(tmp_path / "config.yaml") == {
        "seed": 0,
        "model": {"seed": "${seed}", "epsilon": 0.001, "k": [1, None]},
    }


LATIN = os.fsdecode(b"caf\xe9")  # as a zip from another system leaves it: not UTF-8


def test_a_block_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as file:
        file.write(f"half {1 / 0}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_any_name_can_be_written(tmp_path):
    with replacing(tmp_path / "a.csv") as file:
        file.write(f"部品/{LATIN}.png\n")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == f"部品/{shown(LATIN)}.png\n"
    assert shown(LATIN) == "caf\\udce9"
    assert json.loads(json.dumps(LATIN)) == LATIN


def test_any_name_can_be_printed(capfd, monkeypatch):
    with open(os.dup(1), "w", encoding="utf-8") as out:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", out)
        escape_on_terminal()
        sys.stdout.write(f"{LATIN}\n")
    assert capfd.readouterr().out == "caf\\udce9\n"
