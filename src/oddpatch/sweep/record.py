"""job.json: what is known of a job, in its folder."""

import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_type_hints

from oddpatch.files import parse_json, shown, write_whole
from oddpatch.report.runs import is_number
from oddpatch.sweep.identity import Identity

log = logging.getLogger(__name__)

NAME = "job.json"
Status = Literal["running", "done", "failed", "interrupted"]


@dataclass
class Record:
    """State of a job. A job that was killed stays `running`, with nobody holding its lock."""

    status: Status
    identity: Identity
    overrides: list[str]
    reason: str = ""
    objective: float | None = None
    seconds: float = 0.0
    attempt: int = 1
    started: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    cuda_visible_devices: str | None = None
    threads: str | None = None

    def write(self, folder: Path) -> None:
        """Write the record into a job's folder, whole or not at all."""
        content = {**asdict(self), "identity": self.identity._asdict()}
        write_whole(folder / NAME, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """The record of a job's folder; None if there is none that can be read."""
        try:
            content = parse_json((folder / NAME).read_text(encoding="utf-8"))
            found = cls(**{**content, "identity": Identity(**content["identity"])})
            found._check()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s): the job counts as not run", shown(folder / NAME), shown(error))
            return None
        return found

    def _check(self) -> None:
        """Raise a `TypeError` for a field of another type than it has here."""
        for name, kinds in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if name == "status":
                right = value in get_args(Status)
            elif name == "identity":
                right = all(isinstance(one, str | None) for one in value)
            elif name == "overrides":
                right = isinstance(value, list) and all(isinstance(one, str) for one in value)
            elif kinds is float or name == "objective":
                right = is_number(value) or (value is None and name == "objective")
            else:
                right = isinstance(value, kinds) and not isinstance(value, bool)
            if not right:
                raise TypeError(f"{name} is {value!r:.100}")
