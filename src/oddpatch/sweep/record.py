"""job.json: what is known of a job, in its folder."""

import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from oddpatch.files import replacing
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
        with replacing(folder / NAME) as file:
            json.dump({**asdict(self), "identity": self.identity._asdict()}, file, indent=2)
            file.write("\n")

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """The record of a job's folder; None if there is none that can be read."""
        try:
            content = json.loads((folder / NAME).read_text(encoding="utf-8"))
            return cls(**{**content, "identity": Identity(**content["identity"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s): the job counts as not run", folder / NAME, error)
            return None
