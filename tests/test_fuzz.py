"""A few spoilt files and command lines for everything that reads some: `tests/fuzz.py` does it for as long as asked."""

import fuzz
import pytest
from hypothesis import strategies as st

from oddpatch.data import decoding

#: Cases of each surface: a second or so.
CASES = {"images": 60, "layout": 15, "checkpoints": 25, "overrides": 15}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.SURFACES)
def test_what_is_spoilt_works_or_is_told_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "pixels_that_fit", lambda: 2**20)
    findings = fuzz.run_few(name, CASES.get(name, 40), tmp_path)
    assert findings.cases > 0
    assert findings.found == {}


def test_a_finding_is_kept_with_its_smallest_case(tmp_path):
    def check(case, folder):
        if len(case) > 2:
            raise KeyError(case)

    findings = fuzz.Findings()
    for case in ("ab", "abcdef", "abc", "abcd"):
        fuzz.run_case(fuzz.Surface(st.nothing, check), case, tmp_path, findings)
    ((case, told),) = findings.found.values()
    assert (case, findings.cases) == ("'abc'", 4)
    assert "KeyError: 'abc'" in told


def test_what_is_written_outside_is_found(tmp_path):
    (tmp_path / "scratch").mkdir()
    findings = fuzz.Findings()
    surface = fuzz.Surface(st.nothing, lambda case, folder: (tmp_path / case).write_text(""))
    fuzz.run_case(surface, "escaped", tmp_path / "scratch", findings)
    assert any("acts outside" in kind for kind in findings.found)
