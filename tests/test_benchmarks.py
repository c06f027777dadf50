"""The table of benchmarks: what is written, what a part that fails leaves; and the guard on core operations."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from patience import PATIENCE

import equality
import guard
from common import BenchmarkError, Used, alternate, compare, run, slope

GOOD = (
    "from common import Row\ndef rows(options):\n    yield Row('sorting', 'a peer', 1.0, 4.0, ratio=0.25, target=0.5)\n"
)
BROKEN = GOOD.replace("sorting", "resizing") + "    raise RuntimeError('no luck')\n"
#: It waits for a process that it started, whose number is in a file.
WAITING = (
    GOOD
    + """    import sys
    from common import run
    run([sys.executable, "-c", "import os, time; open('waiting', 'w').write(f'{os.getpid()} '); time.sleep(600)"])
"""
)


@pytest.fixture
def checkout(tmp_path):
    """`run.py` with parts that take no time."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("common.py", "run.py"):
        shutil.copy(ROOT / "benchmarks" / name, folder)
    (folder / "metrics.py").write_text(GOOD)
    (folder / "image_pipeline.py").write_text(BROKEN)
    return tmp_path


def start(checkout, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(checkout / "benchmarks" / "run.py"), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def bench(checkout, *arguments):
    process = start(checkout, *arguments)
    told, failed = process.communicate()
    return process.returncode, told, failed


def test_a_part_that_fails_is_a_row_and_the_others_stay(checkout):
    assert bench(checkout, "--only", "metrics")[0] == 0
    code, _, failed = bench(checkout, "--only", "pipeline")
    table = (checkout / "benchmarks" / "RESULTS.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    found = {row[1]: row for row in rows}
    assert code == 1
    assert "no luck" in failed
    assert found["sorting"][3:8] == ["1 CPU s", "4 CPU s", "0.25", "0.5", "yes"]
    assert found["resizing"][7] == "yes"
    assert found["pipeline"][7] == "not measured"
    assert "exit code 1" in found["pipeline"][11]
    assert "Not measured: `padim`, " in table
    assert "the rest of" not in table
    assert str(checkout) not in table


def test_parts_are_separated_by_commas_or_spaces(checkout):
    code, told, _ = bench(checkout, "--only", "metrics,pipeline", "--quick")
    assert code == 1
    assert "| sorting |" in told
    assert "| resizing |" in told
    assert (checkout / "build/bench/quick/RESULTS.md").exists()
    assert not (checkout / "benchmarks/RESULTS.md").exists()


def test_an_unknown_part_is_named(checkout):
    code, _, failed = bench(checkout, "--only", "speed")
    assert code == 2
    assert "--only speed: choose of padim, " in failed


def test_rows_measured_with_other_versions_stand_below_and_say_so(checkout):
    bench(checkout, "--only", "metrics")
    file = checkout / "benchmarks/rows/metrics.json"
    kept = json.loads(file.read_text())
    kept["about"]["versions"] = "torch 1.0"
    file.write_text(json.dumps(kept))
    bench(checkout, "--only", "pipeline")
    table = (checkout / "benchmarks/RESULTS.md").read_text()
    here, below = table.split("## Elsewhere or with other versions")
    assert "| sorting |" not in here
    assert "see below: `metrics`." in here
    assert "torch 1.0.\n" in below
    assert "| sorting |" in below


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_rows_so_far_and_leaves_no_process(checkout, sent):
    (checkout / "benchmarks/metrics.py").write_text(WAITING)
    process = start(checkout, "--only", "metrics", "pipeline")
    results, waiting = checkout / "benchmarks/RESULTS.md", checkout / "waiting"
    while process.poll() is None and not (waiting.exists() and waiting.read_text().endswith(" ")):
        time.sleep(0.05)
    started = psutil.Process(int(waiting.read_text()))
    process.send_signal(sent)
    failed = process.communicate()[1]
    psutil.wait_procs([started], timeout=PATIENCE)
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE
    assert process.returncode == 1
    assert failed == "stopped; the rows so far are in benchmarks/RESULTS.md\n"
    assert "| sorting |" in results.read_text()
    assert "| resizing |" not in results.read_text()
    assert "the rest of `metrics` (stopped on " in results.read_text()


def test_sides_take_turns_and_the_ratio_is_the_median_of_rounds():
    order = []
    times = {"ours": [1.0, 2.0, 9.0], "theirs": [2.0, 8.0, 10.0]}

    def side(name):
        def call():
            order.append(name)
            return Used(times[name][order.count(name) - 1], {"ours": 4.0, "theirs": 5.0}[name])

        return call

    used = alternate({name: side(name) for name in times}, 3)
    assert order == ["ours", "theirs"] * 3
    row = compare("what", "against", used["ours"], used["theirs"], 0.5)
    assert (row.ours, row.theirs, row.ratio, row.met) == (2.0, 8.0, 0.5, "yes")  # of 0.5, 0.25 and 0.9
    assert row.wall == "4 / 5"
    assert compare("what", "against", used["ours"], used["theirs"], 0.4).met == "no"


def test_the_slope_of_a_square():
    row = slope("squares", [1, 2, 4, 8], [3, 12, 48, 192], 1)
    assert row.ours == pytest.approx(2)
    assert row.met == "no"
    assert slope("squares", [1, 2, 4, 8], [3, 12, 48, 192], 2).met == "yes"


def test_a_program_counts_its_children_and_tells_facts():
    work = "sum(range(10**7))"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{work}']); print('{{\"found\": 3}}')"
    alone = run([sys.executable, "-c", work])
    used = run([sys.executable, "-c", inner])
    assert used.facts == {"found": 3}
    assert used.cpu > alone.cpu / 4  # without the child it is that of a start; what else is busy may double either
    assert used.memory > 2**20


def test_a_program_that_fails_says_why():
    with pytest.raises(BenchmarkError, match=r"^exit code 1: ValueError: no luck$"):
        run([sys.executable, "-c", "raise ValueError('no luck')"])


def test_the_guard_names_what_became_slower():
    kept = {"search": 2.0, "maps": 1.0}
    assert guard.slower(kept, {"search": 2.9, "maps": 0.5}) == []
    (told,) = guard.slower(kept, {"search": 3.1, "maps": 1.4})
    assert told == "search: 3.10 of its reference, it was 2.00 and may be 3.00"


def test_every_operation_has_a_kept_ratio_for_each_kind_of_vector_units():
    found = json.loads(guard.KEPT.read_text())
    assert {"AVX2", "AVX512"} <= set(found)
    assert all(set(ratios) == set(guard.operations()) for ratios in found.values())


def test_ratios_of_other_vector_units_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "KEPT", tmp_path / "guard.json")
    guard.KEPT.write_text(json.dumps({"NEON": {"search": 1.0}}))
    assert guard.kept() == {}
    guard.keep({"search": 2.0004})
    assert guard.kept() == {"search": 2.0}
    assert json.loads(guard.KEPT.read_text())["NEON"] == {"search": 1.0}


@pytest.mark.slow
def test_core_operations_are_no_slower_than_they_were():
    kept = guard.kept()
    if not kept:
        pytest.skip("no ratios are kept for the vector units of this processor: python benchmarks/guard.py --write")
    for _ in range(3):  # what is slow once may be another program; what is slow three times is not
        slower = guard.slower(kept, guard.measure())
        if not slower:
            return
    pytest.fail("\n".join(slower))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they cannot be counted")
def test_time_of_a_process_whose_parent_has_ended_is_counted():
    spin = "import time\nwhile time.process_time() < 0.5: pass"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {spin!r}])"
    code = (
        "import subprocess, sys; from common import adopt_orphans, descendants_cpu; adopt_orphans(); "
        f"subprocess.run([sys.executable, '-c', {orphan!r}], check=True); print(descendants_cpu())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )
    assert float(done.stdout) >= 0.5


def test_how_far_results_differ():
    before = ([("a.png", "1.0"), ("b.png", "4.0")], {"image_auroc": 0.5, "image_f1_max_threshold": 2.0})
    after = ([("a.png", "1.5"), ("b.png", "4.0")], {"image_auroc": 0.25, "image_f1_max_threshold": 3.0})
    assert equality.largest([before, after]) == "metrics by 2.5e-01 at most, scores by 1.2e-01 of the largest"
    assert equality.largest([before, (after[0][:1], after[1])]) == "other images"
