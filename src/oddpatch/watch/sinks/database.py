"""SQLite files of one process: what a sink must not forget."""

import sqlite3
from pathlib import Path
from typing import Any

from oddpatch.errors import ConfigError, DataError, ResourceError
from oddpatch.temporary import unwritable


def open_database(path: Path, schema: str, rows: str) -> tuple[sqlite3.Connection, list[Any]]:
    """Open or make a file that no other process uses meanwhile. What is committed survives a kill and a power cut.

    Args:
        path: of the file; its folder is made.
        schema: statement that makes the table.
        rows: query of what the file holds.

    Returns:
        The connection, for any thread but one at a time, and the rows.

    Raises:
        ConfigError: another process uses it.
        DataError: it is damaged, or something else.
        ResourceError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=0.5, check_same_thread=False)
        # Exclusive before the first access, so that the lock is held until the file is closed.
        for statement in (
            "PRAGMA locking_mode=EXCLUSIVE",
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            schema,
        ):
            connection.execute(statement)
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
        return connection, connection.execute(rows).fetchall()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        code = error.sqlite_errorcode & 0xFF  # without what extends it
        if code == sqlite3.SQLITE_BUSY:
            raise ConfigError(f"{path} is used by another watch: end that one, or choose another folder") from error
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
            raise DataError(f"{path} is damaged ({error}): move it away; what waits in it is lost") from error
        raise ResourceError(f"{path} cannot be written ({error}): free disk space, or choose another folder") from error
