"""Files of results: what was written is read back, half lines and failures are dropped, and nothing else is touched."""

import csv
import json

import pytest

from oddpatch.errors import ConfigError, DataError
from oddpatch.inference import records as module
from oddpatch.inference.records import COLUMNS, key, open_records

REGION = {
    "box": {"left": 1, "top": 2, "width": 3, "height": 4}, "area": 12, "peak": 0.1 + 0.2, "mean": 0.1,
    "contours": [[[1, 2], [3, 4]], [[5, 6]]],
}  # fmt: skip
FORMATS = ("jsonl", "csv", "parquet")


def record(path, anomalous=False, regions=()):
    return {
        "path": path, "score": 1 / 3, "threshold": 0.5, "p_value": 0.1, "anomaly_score": None,
        "is_anomalous": anomalous, "regions": list(regions), "inspected": 0.9876, "latency_ms": 12.34,
    }  # fmt: skip


RECORDS = [
    record("a.png"), record("=1+1.png", True, [REGION]), record('with "quotes", commas\nand lines.png'),
    {"path": "gone.png", "error": "gone.png: no such file"}, record("bytes\udcff.png"),
]  # fmt: skip


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"deep/results.{request.param}"


def write(path, some, resume=False):
    with open_records(path, resume) as records:
        for one in some:
            records.write(one)
    return records


def content(path):
    """Paths and scores by another reader."""
    if path.suffix == ".parquet":
        import pandas

        table = pandas.read_parquet(path)
        return list(zip(table["path"], table["score"].fillna(-1), strict=True))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [(row["path"], float(row["score"] or -1)) for row in csv.DictReader(file)]
    return [(key(row["path"]), row.get("score", -1)) for row in map(json.loads, path.read_text().splitlines())]


def test_other_readers_read_what_was_written(path):
    write(path, RECORDS)
    paths = [key(one["path"]) for one in RECORDS]
    if path.suffix == ".csv":
        paths[1] = "'=1+1.png"  # no spreadsheet takes it for a formula
    assert content(path) == [(name, -1 if "gone" in name else 1 / 3) for name in paths]


def test_regions_are_read_back_exactly(path):
    write(path, RECORDS)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        assert tuple(table.column_names) == COLUMNS
        found = table["regions"].to_pylist()[1]
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            found = json.loads(list(csv.DictReader(file))[1]["regions"])
    else:
        found = json.loads(path.read_text().splitlines()[1])["regions"]
    assert found == [REGION]


def test_what_is_there_is_not_written_over(path):
    write(path, RECORDS[:1])
    with pytest.raises(ConfigError, match="exists: choose another name, or go on with it by --resume"):
        open_records(path)
    assert content(path) == [("a.png", 1 / 3)]


def test_resuming_holds_results_and_drops_failures(path):
    write(path, RECORDS)
    records = open_records(path, resume=True)
    assert set(records.held) == {key(one["path"]) for one in RECORDS if "error" not in one}
    assert records.held["=1+1.png"] == (True, 0.9876)
    assert records.thresholds == {0.5}
    with records:
        records.write(record("gone.png"))
    names = [name.removeprefix("'") for name, _ in content(path)]
    assert names == [*(key(one["path"]) for one in RECORDS if "error" not in one), "gone.png"]
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_wherever_it_was_cut_off_the_whole_lines_are_held(tmp_path, suffix):
    path = tmp_path / f"results.{suffix}"
    good = [one for one in RECORDS if "error" not in one]
    write(path, good)
    whole = path.read_bytes()
    ends = {}  # bytes at which each record is whole
    for number in range(len(good) + 1):
        path.unlink()
        write(path, good[:number])
        ends[number] = path.stat().st_size
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        records = write(path, [], resume=True)
        expected = max((number for number, end in ends.items() if end <= cut), default=0)
        assert set(records.held) == {key(one["path"]) for one in good[:expected]}, cut
        assert path.read_bytes() == whole[: ends[expected]]


def test_a_part_is_written_when_it_is_full_and_at_the_end(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(module, "PART", 4)
    path = tmp_path / "results.parquet"

    def interrupted():
        for number in range(10):
            if number:
                assert len(list(path.iterdir())) == number // 4
            yield record(f"{number}.png")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted())
    assert [name for name, _ in content(path)] == [f"{number}.png" for number in range(10)]
    write(path, [record("10.png")], resume=True)
    assert [name for name, _ in content(path)] == [f"{number}.png" for number in range(11)]
    assert sorted(part.name for part in path.iterdir()) == [f"part-{number:06}.parquet" for number in range(4)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"path": "a.png"}\n'),
        ("a.jsonl", "[]\n"),
        ("a.jsonl", "hello\n"),
        ("a.jsonl", "[" * 100_000 + "\n"),
        ("a.jsonl", b"\xff\xff\n"),
        ("a.jsonl", json.dumps({**record("a.png"), "inspected": "all"}) + "\n"),
        ("a.jsonl", json.dumps({**record("a.png"), "is_anomalous": "no"}) + "\n"),
        ("a.csv", "path,score\na.png,1\n"),
        ("a.csv", ",".join(COLUMNS) + "\na.png,1\n"),
        ("a.csv", ",".join(COLUMNS) + '\n"a"b,,,,,,,,,\n'),
        ("a.csv", ",".join(COLUMNS) + "\na.png,1,x,,,true,[],1,1,\n"),
        ("a.parquet", "hello"),
        ("a.parquet/part-000000.parquet", "hello"),
        ("a.parquet/other.parquet", "hello"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, name, text):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    if ".parquet" in name:
        pytest.importorskip("pyarrow")
    path = tmp_path / name.partition("/")[0]
    with pytest.raises(DataError, match="choose another name") as error:
        open_records(path, resume=True)
    assert "\n" not in str(error.value)
    assert file.read_bytes() == (text if isinstance(text, bytes) else text.encode())


def test_the_format_goes_by_the_suffix(tmp_path):
    with pytest.raises(ConfigError, match=r"choose one of \.jsonl, \.csv, \.parquet"):
        open_records(tmp_path / "results.txt")
