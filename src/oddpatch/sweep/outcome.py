"""Running planned jobs through a Hydra launcher, and what became of each of them."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from hydra.core.utils import JobReturn, JobStatus

from oddpatch.locking import held_by
from oddpatch.sweep.plan import Job
from oddpatch.sweep.process import explain
from oddpatch.sweep.record import Record

log = logging.getLogger(__name__)

Status = Literal["done", "failed", "skipped", "not run"]


class Outcome(NamedTuple):
    """What became of a job."""

    job: Job
    status: Status
    reason: str
    record: Record | None

    @property
    def finished(self) -> bool:
        """Whether its folder holds a result, of this sweep or an earlier one."""
        return self.status != "failed" and self.record is not None and self.record.status == "done"

    @property
    def objective(self) -> float | None:
        """The metric that the sweep looks at, of a finished job."""
        return self.record.objective if self.record is not None and self.finished else None


def run_all(launcher: Any, jobs: Sequence[Job], outcomes: list[Outcome]) -> list[Outcome]:
    """Launch all jobs and find out what became of each, also where Ctrl-C or a failure of the launcher ends them.

    Args:
        outcomes: of the jobs launched before; those of jobs that are not among them are added.
    """
    before = [Record.read(job.folder) for job in jobs]
    known = {outcome.job.folder for outcome in outcomes}
    found: list[Outcome] = []
    try:
        returns = launcher.launch([job.overrides for job in jobs], initial_job_idx=len(outcomes))
    except KeyboardInterrupt:
        lost = "the sweep was interrupted"
        found = [outcome_of(*row, lost=lost, status="not run") for row in zip(jobs, before, strict=True)]
        raise
    except Exception as error:
        # Jobs may have finished all the same: their records tell.
        log.exception("the launcher failed")
        lost = f"the launcher failed: {explain(error)[1]}"
        found = [outcome_of(*row, lost=lost) for row in zip(jobs, before, strict=True)]
    else:
        found = [_of_return(*row) for row in zip(jobs, before, returns, strict=True)]
    finally:
        outcomes += [outcome for outcome in found if outcome.job.folder not in known]
    return found


def _of_return(job: Job, before: Record | None, returned: JobReturn) -> Outcome:
    if returned.status != JobStatus.FAILED:
        return outcome_of(job, before, lost="it has left no record")
    error = explain(returned._return_value)[1]
    outcome = outcome_of(job, before, lost=error)
    return outcome if outcome.status != "skipped" else outcome._replace(status="failed", reason=error)


def outcome_of(job: Job, before: Record | None, lost: str, status: Status = "failed") -> Outcome:
    """What became of a job, by its record; where this sweep has left none it has `status`, for the reason `lost`."""
    after = Record.read(job.folder)
    if after is not None and after.status == "done":
        return Outcome(job, "skipped", "finished before", after) if after == before else Outcome(job, "done", "", after)
    if status == "failed" and (holder := held_by(job.folder)):  # not one's own job, which is about to end
        return Outcome(job, "skipped", f"{holder} runs it", after)
    if after is not None and after.status == "failed" and after != before:
        return Outcome(job, "failed", after.reason, after)
    return Outcome(job, status, lost, after)
