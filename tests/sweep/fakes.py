"""Jobs that do nothing, and import next to nothing, for tests of what runs them."""

import os
from dataclasses import dataclass

from hydra.core.utils import JobReturn, JobStatus


@dataclass
class Fake:
    """Stands for a `RemoteJob`."""

    name: str
    threads: int | None = None

    def __call__(self):
        if self.name == "dies":
            os._exit(1)
        return JobReturn(status=JobStatus.COMPLETED, _return_value=(self.threads, os.environ["CUDA_VISIBLE_DEVICES"]))
