"""A search with Optuna whose study lies in a file, so that it can be gone on with and shared."""

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from oddpatch.files import write_whole
from oddpatch.locking import Holder
from oddpatch.sweep.outcome import Outcome, run_all
from oddpatch.sweep.plan import Job

log = logging.getLogger(__name__)

#: Set on a trial that ended without a value; one that was killed has none of these and is run again.
FAILED, OWNER = "failed", "owner"
Plan = Callable[[Sequence[Sequence[str]]], list[Job]]


class Search:
    """A study and the jobs of its trials.

    Args:
        path: of the study's file.
        space: what each setting is drawn from.
        direction: maximize or minimize.
        sampler: config of an Optuna sampler; its seed is moved on by the trials that there are, so that a search that
            goes on does not repeat itself.
    """

    def __init__(self, path: Path, space: Mapping[str, BaseDistribution], direction: str, sampler: Any) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path)))
        self.space = dict(space)
        way = optuna.study.StudyDirection[direction.upper()]
        self.study = optuna.create_study(storage=storage, study_name="sweep", direction=way, load_if_exists=True)
        seed = {"seed": sampler["seed"] + len(self.study.trials)} if sampler.get("seed") is not None else {}
        self.study.sampler = instantiate(sampler, **seed)
        self._requeue_killed()

    def _requeue_killed(self) -> None:
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if OWNER in trial.user_attrs and Holder(*trial.user_attrs[OWNER]).is_dead():
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params)

    @property
    def finished(self) -> int:
        """Trials that have a value, or failed to give one."""
        ended = self.study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))
        return sum(trial.state == TrialState.COMPLETE or FAILED in trial.user_attrs for trial in ended)

    def ask(self, count: int) -> list[Trial]:
        """The next `count` trials; none if it is not positive."""
        trials = [self.study.ask(self.space) for _ in range(count)]
        for trial in trials:
            trial.set_user_attr(OWNER, [socket.gethostname(), os.getpid()])
        return trials

    def run(
        self,
        trials: Sequence[Trial],
        fixed: Sequence[Sequence[str]],
        plan: Plan,
        launcher: Any,
        outcomes: list[Outcome],
    ) -> None:
        """Run the jobs of some trials side by side, and tell the study what they gave.

        Args:
            fixed: the other overrides; each of several categories is a job of every trial.
            outcomes: is added to.
        """
        planned = [plan([[*others, *_overrides(trial)] for others in fixed]) for trial in trials]
        jobs = {job.folder: job for of_trial in planned for job in of_trial}  # trials may be the same
        by_folder = {outcome.job.folder: outcome for outcome in run_all(launcher, list(jobs.values()), outcomes)}
        for trial, of_trial in zip(trials, planned, strict=True):
            self._tell(trial, [by_folder[job.folder] for job in of_trial])

    def _tell(self, trial: Trial, outcomes: Sequence[Outcome]) -> None:
        values = [outcome.objective for outcome in outcomes]
        given = [value for value in values if value is not None]
        if len(given) == len(values) and given:
            self.study.tell(trial, sum(given) / len(given))
            log.info("trial %d: %.4f with %s", trial.number, sum(given) / len(given), " ".join(_overrides(trial)))
            return
        reason = next((o.reason for o in outcomes if o.objective is None and o.reason), "it gave no such metric")
        trial.set_user_attr(FAILED, reason)
        self.study.tell(trial, state=TrialState.FAIL)
        log.warning("trial %d: %s", trial.number, reason)

    def tell_best(self, path: Path) -> None:
        """Log the best trial, and write its overrides to `path`."""
        if not self.study.get_trials(states=(TrialState.COMPLETE,)):
            log.warning("no trial has a value, so there is no best one")
            return
        best = self.study.best_trial
        overrides = _overrides(best)
        log.info("best of %d trials: %.4f with %s", self.finished, best.value, " ".join(overrides))
        write_whole(path, OmegaConf.to_yaml({"value": best.value, "trial": best.number, "overrides": overrides}))


def _overrides(trial: Trial | FrozenTrial) -> list[str]:
    return [f"{name}={value}" for name, value in trial.params.items()]
