"""Files of results that grow as images are inspected: JSON lines, CSV or Parquet, valid at any moment."""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from oddpatch.errors import ConfigError, DataError, ResourceError
from oddpatch.files import from_cell, parse_json, replacing, to_cell
from oddpatch.temporary import unwritable

Record = dict[str, Any]
#: The columns of CSV and Parquet, in order. A record of an image that could not be inspected has `path` and `error`.
COLUMNS = (
    "path", "score", "threshold", "p_value", "anomaly_score", "is_anomalous", "regions", "inspected",
    "brightness", "sharpness", "aligned", "product", "reason", "latency_ms", "error",
)  # fmt: skip
#: Those of text that may be missing.
_TEXTS = ("product", "reason", "error")
#: Records of a part of a Parquet file.
PART = 4096


class Held(NamedTuple):
    """What is kept in memory of a result that a file holds."""

    is_anomalous: bool | None
    inspected: float


class Records(ABC):
    """A file of records that is written in a `with` block; what it holds already is read first.

    >>> with open_records(Path("results.csv")) as records:
    ...     records.write({"path": "a.png", "error": "a.png: no such file"})

    Attributes:
        held: what the file holds, by `key` of the path; without images that could not be inspected.
        thresholds: the image thresholds of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: dict[str, Held] = {}
        self.thresholds: set[float | None] = set()

    def __enter__(self) -> Self:
        with self._naming():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(ResourceError) if kind else nullcontext(), self._naming():
            self._close()

    def write(self, record: Record) -> None:
        """Add a record.

        Raises:
            ResourceError: it cannot be written.
        """
        with self._naming():
            self._write(record)

    @abstractmethod
    def resume(self) -> None:
        """Read what the file holds, and drop from it failures, to be tried again, and half a last line.

        Raises:
            DataError: it holds something else than results.
            ResourceError: it cannot be written.
        """

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _write(self, record: Record) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _hold(self, record: Record) -> None:
        self.held[key(record["path"])] = Held(record["is_anomalous"], record["inspected"])
        self.thresholds.add(record["threshold"])

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.path, error) from error


def open_records(path: Path, resume: bool = False) -> Records:
    """The file of that name, for JSON lines, CSV or Parquet by its suffix. Parquet is a folder of parts.

    Args:
        path: of the file.
        resume: go on with one that is there, such as of a process that was killed.

    Raises:
        ConfigError: the suffix is another, or the file is there and `resume` is not set.
        DataError, ResourceError: see `Records.resume`.
    """
    kinds: dict[str, type[Records]] = {".jsonl": _JsonLines, ".csv": _Csv, ".parquet": _Parquet}
    if path.suffix not in kinds:
        raise ConfigError(f"{path}: the suffix sets the format of results: choose one of {', '.join(kinds)}")
    records = kinds[path.suffix](path)
    if path.exists():
        if not resume:
            raise ConfigError(f"{path} exists: choose another name, or go on with it by --resume")
        records.resume()
    return records


def read_records(path: Path) -> Iterator[Record]:
    """The records that such a file holds, in its order, images that could not be inspected among them.

    Regions are left out, and so are values that are not there, and half a last line of a process that still writes.

    Raises:
        ConfigError: the suffix is none of those of `open_records`.
        DataError: there is no such file, or it holds something else.
    """
    readers = {".jsonl": _read_json_lines, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: the suffix sets the format of results: choose one of {', '.join(readers)}")
    if not path.exists():
        raise DataError(f"{path}: no such file: give results of oddpatch predict")
    number = 0
    try:
        for record in readers[path.suffix](path):
            if type(record) is not dict or type(record.get("path")) is not str:
                raise ValueError("no record")
            number += 1
            yield {name: value for name, value in record.items() if name != "regions" and value is not None}
    except (ValueError, TypeError, KeyError, csv.Error, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} holds something else than results of `oddpatch predict` after record {number}: correct it, or "
            "predict again"
        ) from error


def _read_json_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        for line in file:
            if line.endswith("\n"):
                yield parse_json(line)


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        whole = _Whole(file)
        rows = _until_the_end(csv.reader(whole, strict=True), whole)
        if tuple(next(rows, ())) != COLUMNS:
            raise ValueError("other columns")
        for cells in rows:
            if not whole.ended_well:
                return
            row = dict(zip(COLUMNS, cells, strict=True))
            record: Record = {"path": from_cell(row["path"])}
            if row["error"]:
                yield {**record, "error": from_cell(row["error"])}
                continue
            for name in set(COLUMNS) - {"path", "regions", "is_anomalous", *_TEXTS}:
                record[name] = float(row[name]) if row[name] else None
            for name in {*_TEXTS} - {"error"}:
                record[name] = from_cell(row[name]) or None
            record["is_anomalous"] = {"true": True, "false": False, "": None}[row["is_anomalous"]]
            yield record


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in COLUMNS if name != "regions"]
    try:
        for part in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(columns=names):
                    yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def key(name: str) -> str:
    """A path as every format can hold it: bytes that are no text are written as `\\udcNN`."""
    return name.encode("utf-8", "backslashreplace").decode()


class _Lines(Records):
    """A text file with a line for each record."""

    head = ""
    _file: IO[str]

    @abstractmethod
    def _read(self, file: IO[str]) -> Iterator[tuple[str, Record]]:
        """The whole lines, each with what it holds; a `ValueError`, `TypeError` or `KeyError` for what is no result."""

    def resume(self) -> None:
        size = len(self.head)
        for text, record in self._lines():
            self._hold(record)
            size += len(text.encode())
        if size != self.path.stat().st_size:
            with replacing(self.path) as file:
                file.write(self.head)
                file.writelines(text for text, _ in self._lines())

    def _lines(self) -> Iterator[tuple[str, Record]]:
        number = 0
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                for text, record in self._read(file):
                    number += 1
                    if not record.get("error"):
                        yield text, record
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise DataError(
                f"{self.path} holds something else than results of `oddpatch predict` after record {number}: choose "
                "another name, or correct it"
            ) from error

    def _open(self) -> None:
        self._file = self.path.open("a", encoding="utf-8", newline="", errors="backslashreplace")
        if self._file.tell() == 0:
            self._file.write(self.head)

    def _close(self) -> None:
        self._file.close()

    def _put(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()  # who is killed leaves all but the last line


class _JsonLines(_Lines):
    def _write(self, record: Record) -> None:
        self._put(json.dumps(record) + "\n")

    def _read(self, file: IO[str]) -> Iterator[tuple[str, Record]]:
        for line in file:
            if not line.endswith("\n"):
                return
            record = parse_json(line)
            if "error" not in record:
                _check(record)
            yield line, record


class _Csv(_Lines):
    head = ",".join(COLUMNS) + "\n"

    def _write(self, record: Record) -> None:
        row = dict(record)
        if "regions" in row:
            row["regions"] = json.dumps(row["regions"])
        self._put(_row([_cell(row.get(name)) for name in COLUMNS]))

    def _read(self, file: IO[str]) -> Iterator[tuple[str, Record]]:
        whole = _Whole(file)
        rows = csv.reader(whole, strict=True)
        for number, cells in enumerate(_until_the_end(rows, whole)):
            if not whole.ended_well:
                return
            if number == 0:
                if tuple(cells) != COLUMNS:
                    raise ValueError("other columns")
                continue
            row = dict(zip(COLUMNS, cells, strict=True))
            record: Record = {"path": from_cell(row["path"]), "error": row["error"]}
            if not row["error"]:
                threshold = float(row["threshold"]) if row["threshold"] else None
                flag = {"true": True, "false": False, "": None}[row["is_anomalous"]]
                record |= {"threshold": threshold, "is_anomalous": flag, "inspected": float(row["inspected"])}
                _check(record)
            yield _row(cells), record


class _Whole:
    """The lines of a file, and whether the last one had an end."""

    def __init__(self, file: Iterable[str]) -> None:
        self._lines = iter(file)
        self.ended_well, self.over = True, False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.over = True
            raise
        self.ended_well = line.endswith("\n")
        return line


def _until_the_end(rows: Iterator[list[str]], whole: _Whole) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error:
        if not whole.over:  # else it ended between quotes
            raise


def _cell(value: Any) -> Any:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else to_cell(value)


def _row(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _check(record: Record) -> None:
    """Raise a `ValueError`, `TypeError` or `KeyError` for what is no result."""
    if not isinstance(record["path"], str) or not isinstance(record["is_anomalous"], bool | None):
        raise TypeError("no result")
    float(record["inspected"])
    hash(record["threshold"])


class _Parquet(Records):
    """A folder of parts, each whole: pandas, Polars, DuckDB and Spark read it as one table."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import pyarrow as pa

        coordinate, number = pa.int32(), pa.float64()
        box = pa.struct([(side, coordinate) for side in ("left", "top", "width", "height")])
        outlines = pa.list_(pa.list_(pa.list_(coordinate)))
        region = pa.struct([("box", box), ("area", pa.int64()), ("peak", number), ("mean", number),
                            ("contours", outlines)])  # fmt: skip
        kinds = {"is_anomalous": pa.bool_(), "regions": pa.list_(region)}
        kinds |= dict.fromkeys(("path", *_TEXTS), pa.string())
        self._schema = pa.schema([(name, kinds.get(name, number)) for name in COLUMNS])
        self._rows: list[Record] = []
        self._next = 0

    def resume(self) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if not self.path.is_dir():
            raise DataError(f"{self.path} is no folder of parts: choose another name")
        for part in sorted(self.path.glob("*.parquet")):
            try:
                table = pq.read_table(part, schema=self._schema)
                self._next = max(self._next, int(part.stem.removeprefix("part-")) + 1)
            except (pa.ArrowException, OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise DataError(
                    f"{part} is no part of results of `oddpatch predict` ({reason}): remove it, or choose another name"
                ) from error
            good = table.filter(pc.is_null(table["error"]))
            for record in good.select(["path", "is_anomalous", "inspected", "threshold"]).to_pylist():
                self._hold(record)
            if len(good) < len(table):
                self._put(part, good)

    def _open(self) -> None:
        self.path.mkdir(exist_ok=True)

    def _write(self, record: Record) -> None:
        self._rows.append({**record, **{name: key(record[name]) for name in ("path", *_TEXTS) if record.get(name)}})
        if len(self._rows) == PART:
            self._close()

    def _close(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._put(
                self.path / f"part-{self._next:06}.parquet", pa.Table.from_pylist(self._rows, schema=self._schema)
            )
            self._rows, self._next = [], self._next + 1

    def _put(self, part: Path, table: Any) -> None:
        import pyarrow.parquet as pq

        with replacing(part, "wb") as file:
            pq.write_table(table, file)
