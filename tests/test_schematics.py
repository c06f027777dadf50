"""Every method has a drawing on its page, made by docs/schematics.py, for light and dark and for screen readers."""

import runpy
import xml.etree.ElementTree as ET

import pytest
from conftest import CONFIGS, ROOT

DRAWN = runpy.run_path(str(ROOT / "docs/schematics.py"))
PAGES = sorted(path.stem for path in (ROOT / "docs/methods").glob("*.md"))
SVG = "{http://www.w3.org/2000/svg}"


def test_every_method_has_one():
    assert sorted(DRAWN["METHODS"]) == PAGES
    assert {*PAGES} >= {path.stem for path in (CONFIGS / "model").glob("*.yaml")} - {"patchcore_ensemble"}


@pytest.mark.parametrize("name", PAGES)
def test_it_is_on_its_page_as_the_script_draws_it(name):
    title, panels = DRAWN["METHODS"][name]
    assert f"![{title} in four steps](../images/methods/{name}.svg)" in (ROOT / f"docs/methods/{name}.md").read_text()
    text = (ROOT / f"docs/images/methods/{name}.svg").read_text(encoding="utf-8")
    assert text == DRAWN["draw"](name), "run: python docs/schematics.py"
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == title
    for head, _, lines in panels:
        assert f"{head}: {' '.join(lines)}" in (root.findtext(f"{SVG}desc") or "")
        assert max(map(len, lines)) <= 36  # what a panel has room for
    assert "prefers-color-scheme: dark" in (root.findtext(f"{SVG}style") or "")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
